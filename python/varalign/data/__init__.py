"""Data sets of images and captions: reading, splitting, sampling, tokenizing, decoding."""
