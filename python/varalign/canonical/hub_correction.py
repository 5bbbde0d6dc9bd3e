"""Hub correction: a score that takes from each item of a gallery how near it is to queries in general.

A gallery item that is near everything (a hub) wins queries that are not its own. With R the bank, embeddings of queries
other than those asked, score(q, g) = s(q, g) − b(g) and b(g) = (1/τ) log mean_{r∈R} exp(τ s(r, g)), the item's prior.
To second order b(g) = g·μ_R + (τ/2) gᵀ Σ_R g: the mean and the variance of the item's similarity scores over the bank,
from the bank's mean and covariance alone, so that no embedding of a training pair need be stored. Between the two lie
the centroids of the bank with their shares π_c, b(g) = (1/τ) log Σ_c π_c exp(τ c·g): with 32 of them, half the state of
mean and covariance at 128 dimensions, they keep more of the gain, and 128 lose 0.2 points or less of the bank's
(bench/hub_forms.py). As an inner product the score is [q, 1]·[g, −b(g)].

Source: Smith et al. 2017 (inverted softmax); the second-order form is the cumulant expansion of the first.

R queries of the bank, G gallery items, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.evenly import evenly
from varalign.evaluation.products import exact_products
from varalign.evaluation.retrieval import Array, ranks

HubForm = Literal["bank", "centroids", "variance"]
FORMS: tuple[HubForm, ...] = get_args(HubForm)
TRAINED_SHARPNESS = 0.6
"""τ / logit scale for a bank of training pairs, which lie closer to each other than unseen ones do."""
HELD_OUT_SHARPNESS = 0.7
"""τ / logit scale for a bank of pairs that were not trained on."""
TRAIN = "train"
CENTROIDS = 128
BANK_IMAGES, BANK_TEXTS = 1000, 5000
"""Queries of a bank at most."""
_SIMILARITIES = 1 << 24  # held at once


@dataclass(frozen=True)
class QueryBank:
    """The queries of one modality as the prior of the other modality's items needs them.

    Attributes:
        tensors: of the form "bank": `queries` (R, D) float32. Of the form "centroids": means of clusters as `queries`
            (at most `CENTROIDS`, D), and `log_shares`, the logarithm of each one's share of the bank. Of the form
            "variance": `mean` (D,) and `covariance` (D, D) float32, divided by R.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, queries: Tensor, form: HubForm) -> QueryBank:
        """The bank of (R, D) unit vectors, R at least 1.

        Raises:
            ValueError: there is no query, or the form is unknown.
        """
        if form not in FORMS:
            raise ValueError(f"form {form!r}: wanted one of {', '.join(FORMS)}")
        if queries.ndim != 2 or not len(queries):
            raise ValueError(f"queries: wanted (R, D) with at least one row, got {tuple(queries.shape)}")
        if form == "bank":
            return cls({"queries": queries.float()})
        if form == "centroids":
            return cls(_centroids(queries.float()))
        wide = queries.double()
        mean = wide.mean(0)
        centred = wide - mean
        return cls({"mean": mean.float(), "covariance": (centred.T @ centred / len(wide)).float()})

    def prior(self, items: Tensor, tau: float) -> Tensor:
        """b (G,) float32 of gallery items (G, D), at the inverse temperature τ above 0."""
        given = {name: tensor.to(items.device) for name, tensor in self.tensors.items()}
        with exact_products():
            if "mean" in given:
                return items @ given["mean"] + tau / 2 * ((items @ given["covariance"]) * items).sum(1)
            queries = given["queries"]
            log_shares = given.get("log_shares")
            prior = torch.empty(len(items), device=items.device)
            step = max(1, _SIMILARITIES // len(queries))
            for start in range(0, len(items), step):
                part = slice(start, start + step)
                z = tau * (items[part] @ queries.T)
                prior[part] = (z if log_shares is None else z + log_shares).logsumexp(1)
        return (prior - (math.log(len(queries)) if log_shares is None else 0.0)) / tau


def _centroids(queries: Tensor) -> dict[str, Tensor]:
    """`queries` and `log_shares` of the k-means of (R, D) queries, seeded."""
    from sklearn.cluster import KMeans

    distinct = torch.unique(queries, dim=0).cpu()
    found = KMeans(min(CENTROIDS, len(distinct)), n_init=1, max_iter=50, random_state=0).fit(queries.cpu().numpy())
    shares = torch.bincount(torch.from_numpy(found.labels_), minlength=found.n_clusters) / len(queries)
    means = torch.from_numpy(found.cluster_centers_).float()
    return {"queries": means.to(queries.device), "log_shares": shares.log().to(queries.device)}


@dataclass(frozen=True)
class HubCorrection:
    """The correction of both directions.

    Attributes:
        source: where the queries come from: "train", "dev", "unpaired", "gallery" or the name of a file.
        form: one of `FORMS`.
        tau: the inverse temperature of both directions.
        images: the bank of image queries, which gives the prior of texts.
        texts: the bank of text queries, which gives the prior of images.
    """

    source: str
    form: HubForm
    tau: float
    images: QueryBank
    texts: QueryBank

    @classmethod
    def of(
        cls, images: Tensor, texts: Tensor, logit_scale: float, *, source: str, form: HubForm = "bank"
    ) -> HubCorrection:
        """The correction by banks of image queries (R, D) and text queries (R', D), unit vectors.

        Args:
            logit_scale: of the similarities that are corrected.
            source: where the queries come from; those of "train" take a smaller τ.
        """
        return cls(
            source, form, sharpness_of(source) * logit_scale, QueryBank.of(images, form), QueryBank.of(texts, form)
        )

    @property
    def name(self) -> str:
        """For tables: where the queries come from, and the form; a gallery's own queries are test material."""
        return f"{self.source}, {self.form}{' (transductive)' if self.source == 'gallery' else ''}"

    def image_prior(self, image_embeddings: Tensor) -> Tensor:
        """b (I,) of images as gallery items, (I, D) unit vectors."""
        return self.texts.prior(image_embeddings, self.tau)

    def text_prior(self, text_embeddings: Tensor) -> Tensor:
        """b (T,) of texts as gallery items, (T, D) unit vectors."""
        return self.images.prior(text_embeddings, self.tau)


def sharpness_of(source: str) -> float:
    """τ / logit scale for a bank from this source."""
    return TRAINED_SHARPNESS if source == TRAIN else HELD_OUT_SHARPNESS


def thinned_rows(rows: Tensor, most: int) -> Tensor:
    """At most `most` of the rows (N, D), evenly spread."""
    return rows if len(rows) <= most else rows[evenly(len(rows), most, rows.device)]


def thinned_texts(texts: Tensor) -> Tensor:
    """At most `BANK_TEXTS` of the text queries (T, D), evenly spread."""
    return thinned_rows(texts, BANK_TEXTS)


def as_queries(embeddings: Tensor) -> Tensor:
    """[q, 1] (Q, D + 1): queries whose inner product with `as_items` is the corrected score."""
    return torch.cat([embeddings, torch.ones_like(embeddings[:, :1])], dim=1)


def as_items(embeddings: Tensor, prior: Tensor) -> Tensor:
    """[g, −b(g)] (G, D + 1) of gallery items (G, D) and their prior (G,)."""
    return torch.cat([embeddings, -prior[:, None].to(embeddings.dtype)], dim=1)


def corrected_ranks(
    image_embeddings: Tensor, text_embeddings: Tensor, pairs: Array, correction: HubCorrection
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`varalign.evaluation.retrieval.ranks` by the corrected score: the same arguments and the same result."""
    texts = as_items(text_embeddings, correction.text_prior(text_embeddings))
    images = as_items(image_embeddings, correction.image_prior(image_embeddings))
    i2t, _ = ranks(as_queries(image_embeddings), texts, pairs)
    _, t2i = ranks(images, as_queries(text_embeddings), pairs)
    return i2t, t2i
