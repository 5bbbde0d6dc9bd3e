"""Tokenizers of captions, a file a kind."""
