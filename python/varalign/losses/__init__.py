"""Contrastive losses and their plain-PyTorch reference."""

from varalign.losses.contrastive import ContrastiveLoss, ContrastiveOutput, contrastive
from varalign.losses.direction_stats import DirectionStats

__all__ = ["ContrastiveLoss", "ContrastiveOutput", "DirectionStats", "contrastive"]
