"""What a run is told: options, rules about them, the recipe, device and precision."""
