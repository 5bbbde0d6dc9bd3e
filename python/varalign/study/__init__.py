"""Studies: a grid of training runs, resumable cell by cell, and the statistics that say what it shows."""
