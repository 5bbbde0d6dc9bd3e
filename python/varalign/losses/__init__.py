"""Contrastive losses: the schedulable one, its plain-PyTorch reference, and other people's to compare with.

Importing this package loads no torch.
"""

from varalign.losses.others import OTHERS

LOSSES = ("clip", *OTHERS)
"""Names of all losses."""
