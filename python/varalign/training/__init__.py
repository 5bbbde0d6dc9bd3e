"""Training: from options to a finished run, and what its steps consist of."""
