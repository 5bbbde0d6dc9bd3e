"""Readers of captions, a file a format; `captions.FORMATS` is their table."""
