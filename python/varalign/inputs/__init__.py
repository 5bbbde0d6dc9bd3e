"""The model and where its inputs come from."""
