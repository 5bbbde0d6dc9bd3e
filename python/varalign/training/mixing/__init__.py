"""Voices and members of a run: its start by voices."""
