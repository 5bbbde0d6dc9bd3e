"""Studies: a grid of training runs, resumable cell by cell, and the statistics of its results."""
