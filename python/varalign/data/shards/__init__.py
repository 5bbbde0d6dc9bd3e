"""Tar shards: where their images lie, their index, their copies of remote ones, and how they are written."""
