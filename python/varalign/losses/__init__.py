"""Contrastive losses and their plain-PyTorch reference."""
