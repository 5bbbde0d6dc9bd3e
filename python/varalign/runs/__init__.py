"""What a run leaves behind: its folder, checkpoints, metrics, progress and quarantine."""
