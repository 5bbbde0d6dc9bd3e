"""Figures over the folds of a cross-validation, against each fold's own and against a loop over queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from varalign.canonical.voices.fit import candidates_of, fit_voices
from varalign.canonical.voices.pooled import JudgedPart, pooled
from varalign.canonical.voices.voice_pairs import Pairs, folds


def made(images: int, captions: int = 2) -> Pairs:
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), captions)
    latent = random.normal(size=(images, 4))
    x = latent @ random.normal(size=(4, 9)) + 0.8 * random.normal(size=(images, 9))
    y = latent[owner] @ random.normal(size=(4, 7)) + 0.8 * random.normal(size=(len(owner), 7))
    x, y = (torch.from_numpy(part.astype(np.float32)) for part in (x, y))
    return Pairs(x, y, torch.from_numpy(owner))


def test_every_image_is_a_query_once_among_its_own_fold() -> None:
    pairs = made(43)  # folds of 9 and 8 images
    judged = []
    for rest, held in folds(pairs, seed=3, every_text=True):
        fitted = fit_voices(rest, voices=["closed-form"])
        judged.append(JudgedPart(held, fitted.mixture, fitted.scale, fitted.correction(fitted.mixture, rest)))
    figures, chance = pooled(judged)
    assert figures["judged"] == {"images": 43, "texts": 86} and figures["folds"] == 5
    assert (figures["images"], figures["texts"]) == (9, 17)
    plain, corrected, random = [], [], []
    for part in judged:
        found = candidates_of(part.held_out, part.mixture)
        s = found.images @ found.texts.T
        assert part.correction is not None
        by_text = s - part.correction.text_prior(found.texts)
        random += [2 / s.shape[1]] * len(s)
        for image in range(len(s)):
            own = found.pairs[found.pairs[:, 1] == image, 0].tolist()
            plain.append(int(s[image].argmax()) in own)
            corrected.append(int(by_text[image].argmax()) in own)
    assert figures["i2t_recall@1"] == pytest.approx(np.mean(corrected))
    assert figures["uncorrected"]["i2t_recall@1"] == pytest.approx(np.mean(plain))
    assert chance["i2t_recall@1"] == pytest.approx(np.mean(random))
    low, high = figures["intervals"]["i2t_recall@1"]
    assert low < figures["i2t_recall@1"] < high
    assert figures["t2i_recall@10"] == 1.0 and figures["intervals"]["t2i_recall@10"][1] == 1.0


def test_a_fold_keeps_texts_that_stand_elsewhere_too_where_it_stands_for_a_test_split() -> None:
    pairs = made(20, 1)
    ids = torch.arange(20)
    ids[7] = 2
    given = Pairs(pairs.images, pairs.texts, pairs.owner, text_ids=ids)
    assert sum(len(held.images) for _, held in folds(given, seed=0, every_text=True)) == 20
    assert sum(len(held.images) for _, held in folds(given, seed=0)) < 20
