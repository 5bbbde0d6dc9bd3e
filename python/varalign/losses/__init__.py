"""Contrastive losses and their plain-PyTorch reference."""

from varalign.losses.contrastive import ContrastiveLoss, ContrastiveOutput, contrastive
from varalign.losses.statistics import DirectionStats

__all__ = ["ContrastiveLoss", "ContrastiveOutput", "DirectionStats", "contrastive"]
