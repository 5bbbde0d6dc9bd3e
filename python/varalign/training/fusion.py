"""Chooses on dev, before each evaluation, the share of an ensemble's members in the similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.canonical.voices.held_out import Block, Scores
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.ensemble import EnsembleHead
from varalign.encoders.voices_head import VoicesHead
from varalign.inputs.pair_features import all_pairs, dev_pairs, first_pairs, thinned
from varalign.inputs.parts import Parts
from varalign.losses.pair_loss import Ids
from varalign.losses.relation import positive_pairs
from varalign.training.mixing.member_share import SHARES, choose_share


class Fusion:
    """The choice of an ensemble's share and logit scale by the symmetric loss of dev pairs (see `member_share`).

    Args:
        model: with ensemble heads.
        image_features: (N, Dx) of dev. text_features: (N, Dy) of one caption of each image.
        batch_size: number of images that are scored against each other, as in the run.
        ids: of images and captions, where a caption belongs to several images.
        bank: (R, Dx) and (R, Dy) of training pairs, by which hubs are corrected; None: they are not.
        share: of trained members, where it is known; None: it is chosen.

    Attributes:
        loss: of dev pairs at the last choice, hubs corrected where that lowers it; the best epoch has the least.
    """

    def __init__(
        self,
        model: DualEncoder,
        image_features: Tensor,
        text_features: Tensor,
        batch_size: int,
        ids: Ids | None = None,
        *,
        bank: tuple[Tensor, Tensor] | None = None,
        share: float | None = None,
    ) -> None:
        self.model, self.image_features, self.text_features = model, image_features, text_features
        self.bank, self.share, self.loss = bank, share, math.inf
        size = min(batch_size, len(image_features))
        rows = torch.arange(len(image_features) // size * size, device=image_features.device).split(size)
        self._blocks = [
            Block(batch, batch, None if ids is None else positive_pairs(*(part[batch] for part in ids)))
            for batch in rows
        ]

    @staticmethod
    def of(parts: Parts, batch_size: int) -> Fusion:
        """For a run's dev split and the first caption of each image, at most `DEV_IMAGES` images; the bank is as many.

        Args:
            parts: model, data and sources; the towers are frozen, so dev features are read once.
            batch_size: as for the class.
        """
        dev, bank = dev_pairs(parts), None
        images, texts, ids = first_pairs(parts.data, dev)
        if parts.config.hub_correction != "off" and parts.config.members_share is None:
            train = all_pairs(parts, thinned(parts.train_rows), training=False, lexical=True)
            rows, captions, _ = first_pairs(parts.data, train)
            bank = train.image_features[rows], train.text_features[captions]
        pairs = dev.image_features[images], dev.text_features[texts]
        return Fusion(parts.model, *pairs, batch_size, ids, bank=bank, share=parts.config.members_share)

    @torch.no_grad()
    def choose(self, *, trained: bool = True) -> float:
        """Set share and logit scale of both heads to the best of the grid on dev; returns the share.

        Args:
            trained: whether the members have been trained; if not, the share is 0 and only the scale is chosen.
        """
        was_training = self.model.training
        self.model.eval()
        closed, members = self._scores()
        self.model.train(was_training)
        shares = (0.0,) if not trained else SHARES if self.share is None else (self.share,)
        share, scale, self.loss = choose_share(closed, members, shares)
        for head in (self.model.image_head, self.model.text_head):
            assert isinstance(head, EnsembleHead | VoicesHead)
            head.share.fill_(share)
            head.logit_scale.fill_(scale)
        return share

    def _scores(self) -> tuple[list[Scores], list[Scores]]:
        """Those of the closed form, or of the fitted voices, and those of the members."""
        images, texts = self._parts(self.image_features, self.text_features)
        banks = (None, None) if self.bank is None else tuple(zip(*self._parts(*self.bank), strict=True))
        both = zip(images, texts, banks, strict=True)
        closed, members = ([block.scores(u, v, bank) for block in self._blocks] for u, v, bank in both)
        return closed, members

    def _parts(self, images: Tensor, texts: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of the images and of the texts: (n, k) of the fitted part and (n, K · D) of the members."""
        image_head, text_head = self.model.image_head, self.model.text_head
        assert isinstance(image_head, EnsembleHead | VoicesHead) and isinstance(text_head, EnsembleHead | VoicesHead)
        return image_head.parts(images), text_head.parts(texts)
