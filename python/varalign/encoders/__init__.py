"""Encoders of images and captions, named by spec strings, and the dual encoder over them."""
