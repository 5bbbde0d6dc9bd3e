"""The members' share of a run whose dev split is small, from members of every fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.canonical.voices.fit import fit_voices
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.options.config import TrainConfig
from varalign.options.recipe import fill
from varalign.runs.folder import RunFolder
from varalign.training.mixing.fold_members import _first_pairs, _ids, out_of_fold_share

SMALL: dict[str, Any] = {"members": 4, "hidden_dim": 16, "batch_size": 16, "epochs": 4, "settings": "cv"}


def pairs_of(bend: float, images: int = 120) -> Pairs:
    """Pairs whose sides share numbers: the texts' features bend them, so that a linear map sees less of them."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(images, 6, generator=generator)
    x = torch.cat([common, 0.3 * torch.randn(images, 4, generator=generator)], dim=1)
    y = torch.cat([(1 - bend) * common + bend * (3 * common).cos(), torch.randn(images, 2, generator=generator)], 1)
    return Pairs(x, y, torch.arange(images))


def share(bend: float, pairs: Pairs | None = None, **options: Any) -> float:
    fitted = fit_voices(pairs_of(bend) if pairs is None else pairs, voices=["closed-form"])
    config = TrainConfig(features="f", lr=0.01, input_noise=0.0, **SMALL | options)
    return out_of_fold_share(fitted.parts, fill(config, 120))


def test_members_count_where_the_closed_form_is_too_simple_for_the_pairs() -> None:
    assert share(1.0, epochs=150) > 0
    assert share(0.0, epochs=2) == 0


def test_several_texts_an_image_weights_and_labels_that_repeat() -> None:
    """The data set of `pairs_of` with two texts an image, of which every fifth is a label, and weights."""
    pairs = pairs_of(1.0)
    order = torch.arange(120).repeat(2)
    texts = torch.arange(240)
    texts[::5] = 240 + texts[::5] % 7
    more = replace(pairs, texts=pairs.texts[order], owner=order, text_ids=texts, weights=torch.ones(240))
    assert share(1.0, more, epochs=60) > 0


def test_a_share_depends_on_the_seed_alone_and_leaves_the_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert share(1.0, epochs=30) == share(1.0, epochs=30)
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_that_are_one_belong_to_each_of_their_images() -> None:
    pairs = Pairs(torch.eye(4), torch.eye(5), torch.tensor([0, 0, 1, 2, 3]))
    pairs = replace(pairs, image_ids=torch.tensor([7, 8, 9, 8]), text_ids=torch.tensor([1, 2, 2, 3, 4]))
    table, texts = _ids(pairs)
    assert texts.tolist() == [0, 1, 1, 2, 3]
    assert [sorted(row) for row in table.clamp_min(-1).tolist()] == [[0, 1], [1, 3], [-1, 2]]
    first, positive = _first_pairs(pairs)
    assert first.texts.argmax(1).tolist() == [0, 2, 3, 4]
    expected = [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]  # images 1 and 3 are copies
    assert positive.int().tolist() == expected


@pytest.mark.parametrize("found", [0.25, 0.0])
def test_a_run_keeps_the_share_or_goes_without_members(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: float
) -> None:
    monkeypatch.setattr("varalign.training.mixing.start_voices.out_of_fold_share", lambda parts, config: found)
    monkeypatch.setattr("varalign.training.mixing.start_voices.FEWEST_FOR_MEMBERS", 1)
    run = tmp_path / "run"
    said: list[str] = []
    config = TrainConfig(features=str(features_file), out=str(run), device="cpu", **SMALL)
    result = varalign.train(config, say=said.append, progress=False)
    options = RunFolder.open(run).config()["options"]
    assert result.voices is not None
    if found:
        assert (options["members_share"], result.epochs) == (0.25, 4)
        assert "members, by the loss of 5 folds: share 0.25" in said
    else:
        assert (options["members"], result.epochs) == (0, 0)
        assert "members, by the loss of 5 folds: none" in said
        assert "members" not in result.voices
