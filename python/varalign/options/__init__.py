"""The options of a run, the rules about them, the default recipe, device and precision."""
