"""Plots and HTML pages: t-SNE, training curves, a run's report, a diagnosis."""
