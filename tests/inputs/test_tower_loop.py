"""The loop through a tower: evaluation mode, no gradient, one arithmetic for queries and for the data."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import varalign
from varalign.data.errors import DataError
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.towers import Towers
from varalign.inputs.assemble import assemble
from varalign.inputs.models import new_model
from varalign.inputs.open_data import open_data
from varalign.inputs.parts import Parts
from varalign.inputs.tower_loop import embedded_files, embedded_texts, encoded_rows, gathered, run_tower
from varalign.options.config import TrainConfig
from varalign.options.recipe import fill


@pytest.fixture(params=["fp32", "bf16"])
def parts(request: pytest.FixtureRequest, image_folder: Path) -> Parts:
    config = TrainConfig(data=str(image_folder), image_size=32, device="cpu", threads=1, precision=request.param)
    config, data = open_data(config.validate(), lambda line: None)
    config = fill(config, 60)
    torch.manual_seed(0)
    return assemble(config, data, new_model(config, data).eval(), lambda line: None)


def test_queries_are_embedded_as_the_data_are(parts: Parts) -> None:
    model, rows = parts.model, np.array([3, 70, 5])
    texts = [parts.data.captions[row] for row in rows]
    files = [parts.data.image_paths[row] for row in rows]
    for side, head, found in (
        ("text", model.project_texts, embedded_texts(model, parts.config, texts)),
        ("image", model.project_images, embedded_files(model, parts.config, files)),
    ):
        ((_, wanted),) = encoded_rows(parts, side, rows, 64, head=head)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.numpy())
    assert embedded_texts(model, parts.config, []).shape == (0, model.shape.embedding_dim)


def test_a_file_that_is_no_image_is_named(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("text")
    with pytest.raises(DataError, match=r"note\.jpg"):
        embedded_files(parts.model, parts.config, [parts.data.image_paths[0], tmp_path / "note.jpg"])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_nothing_has_a_gradient(training: bool) -> None:
    model = DualEncoder(Towers(None, None, image_feature_dim=4, text_feature_dim=4), HeadShape(2, dropout=0.5))
    model.train(training)
    x = torch.randn(6, 4)
    modes = []

    def encode(rows: torch.Tensor) -> torch.Tensor:
        modes.append(model.image_head.training)
        return model.project_images(rows)

    batches = ((rows, x[torch.from_numpy(rows)]) for rows in (np.array([4, 0]), np.array([2])))
    found = run_tower(model, batches, encode, nullcontext, what="rows", total=3)
    assert torch.is_grad_enabled()
    next(found)
    assert torch.is_grad_enabled(), "the caller's gradients are its own"
    list(found)
    assert model.training == training and modes == [False, False]


def test_missing_rows_are_zeros_and_named() -> None:
    batches = [(np.array([3, 0]), torch.ones(2, 2)), (np.array([1]), torch.full((1, 2), 2.0))]
    matrix, missing = gathered(batches, 4, 2)
    assert matrix.tolist() == [[1, 1], [2, 2], [0, 0], [1, 1]] and missing.tolist() == [2]


def test_a_text_query_of_a_run_opens_no_image(image_folder: Path, tmp_path: Path) -> None:
    from varalign.inputs.models import saved_model
    from varalign.runs.folder import RunFolder

    config = TrainConfig(data=str(image_folder), image_size=32, epochs=1, batch_size=30, device="cpu", threads=1)
    result = varalign.train(
        TrainConfig(**{**config.as_dict(), "out": str(tmp_path / "run")}), say=lambda line: None, progress=False
    )
    whole = saved_model(RunFolder.open(tmp_path / "run"))
    text = saved_model(RunFolder.open(tmp_path / "run"), sides=("text",))
    assert text.image_encoder is None and whole.image_encoder is not None
    text.load_checkpoint_state(result.aligner.model.checkpoint_state())
    wanted = embedded_texts(result.aligner.model, config, ["a red square"])
    np.testing.assert_array_equal(embedded_texts(text.eval(), config, ["a red square"]), wanted)
