"""Closed-form alignment of the features of two frozen encoders."""
