"""The LSTM sees a text's words and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from varalign.encoders.build import build_text_encoder, text_encoder_from_config
from varalign.encoders.lstm import GROUP, LSTMEncoder
from varalign.encoders.specs import SpecError

CAPTIONS = ["a dog runs in the snow", "two cats sit on a mat", "a red ball", "", "snow"]


def tokens(encoder: LSTMEncoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = encoder.tokenizer(texts)
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)


def build(**options: object) -> LSTMEncoder:
    torch.manual_seed(0)
    encoder = build_text_encoder("lstm", captions=CAPTIONS, **options)  # type: ignore[arg-type]
    assert isinstance(encoder, LSTMEncoder)
    return encoder.eval()


@pytest.mark.parametrize(("device", "far"), [("cpu", 1e-6), pytest.param("cuda", 1e-3, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_features_equal_the_bare_lstm_on_each_text_alone(
    bidirectional: bool, pooling: str, device: str, far: float
) -> None:
    """The same sums, in another order; a GPU's products may have ten bits of mantissa."""
    encoder = build(bidirectional=bidirectional, pooling=pooling).to(device)
    ids, lengths = tokens(encoder, CAPTIONS)
    ids = ids.to(device)
    with torch.no_grad():
        found = encoder(ids, lengths)
        assert found.shape == (len(CAPTIONS), encoder.feature_dim)
        for row, length in enumerate(lengths.clamp(min=1).tolist()):
            states, (hidden, _) = encoder.lstm(encoder.embedding(ids[row : row + 1, :length]))
            wanted = states[0].mean(dim=0) if pooling == "mean" else torch.cat(list(hidden[:, 0]))
            torch.testing.assert_close(found[row], wanted, atol=far, rtol=far)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_changes_nothing(pooling: str) -> None:
    encoder = build(bidirectional=True, pooling=pooling)
    ids, lengths = tokens(encoder, CAPTIONS)
    wider = torch.cat([ids, torch.full((len(ids), 7), encoder.tokenizer.pad_id)], dim=1)
    # What stands behind a text's length is not read, be it padding or not.
    scribbled = torch.where(
        torch.arange(wider.shape[1])[None] < lengths.clamp(min=1)[:, None], wider, torch.ones(()).long()
    )
    order = torch.tensor([4, 2, 0, 3, 1])
    with torch.no_grad():
        wanted = encoder(ids, lengths)
        assert torch.equal(encoder(wider, lengths), wanted)
        assert torch.equal(encoder(scribbled, lengths), wanted)
        torch.testing.assert_close(encoder(ids[order], lengths[order]), wanted[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_groups_by_length_equal_a_packed_sequence(bidirectional: bool, pooling: str) -> None:
    """More texts than one group holds; features to 5e-7, gradients to 1e-5 of their largest value."""
    encoder = build(bidirectional=bidirectional, pooling=pooling)
    torch.manual_seed(1)
    lengths = torch.randint(0, 13, (2 * GROUP + 7,))
    ids = torch.randint(4, encoder.tokenizer.vocabulary_size, (len(lengths), 15))
    found = encoder(ids, lengths)
    lengths = lengths.clamp(min=1)
    packed = pack_padded_sequence(encoder.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    outputs, (hidden, _) = encoder.lstm(packed)
    states, counts = pad_packed_sequence(outputs, batch_first=True)
    ends = torch.cat(list(hidden[-2 if bidirectional else -1 :]), dim=1)
    wanted = ends if pooling == "last" else states.sum(dim=1) / counts[:, None]
    torch.testing.assert_close(found, wanted, atol=5e-7, rtol=0)
    if not bidirectional:  # the way of a GPU: all texts at once
        at_once = encoder._dense(encoder.embedding(ids), lengths)
        torch.testing.assert_close(at_once, wanted, atol=5e-7, rtol=0)
    weights = [encoder.embedding.weight, *encoder.lstm.parameters()]
    sums = [torch.autograd.grad(features.square().sum(), weights) for features in (found, wanted)]
    for ours, theirs in zip(*sums, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


def test_gradients_reach_every_weight_but_not_padding() -> None:
    encoder = build(bidirectional=True).train()
    encoder(*tokens(encoder, CAPTIONS)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert encoder.embedding.weight.grad is not None
    assert encoder.embedding.weight.grad[encoder.tokenizer.pad_id].abs().sum() == 0


def test_max_length_cuts() -> None:
    assert build(max_length=4).tokenizer.max_length == 4
    assert build().tokenizer.max_length == 40


def test_what_it_cannot_be_built_from() -> None:
    with pytest.raises(SpecError, match="'lstm' has no vocabulary of its own: pass the training captions"):
        build_text_encoder("lstm")
    with pytest.raises(ValueError, match="'lstm' pools by mean or last, not by 'cls'"):
        build(pooling="cls")
    with pytest.raises(ValueError, match="max_length is a number of tokens, at least 2, not 1"):
        build(max_length=1)


def test_config_round_trip() -> None:
    encoder = build(bidirectional=True, pooling="last")
    again = text_encoder_from_config(encoder.to_config(), tokenizer=encoder.tokenizer, load_weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    assert again.weights_fingerprint() == encoder.weights_fingerprint()
    with torch.no_grad():
        inputs = tokens(encoder, CAPTIONS)
        assert torch.equal(again(*inputs), encoder(*inputs))


def test_the_word_embedding_starts_from_word_vectors_where_the_file_has_them(tmp_path: Path) -> None:
    """Scaled to a mean square of 1, as the random ones of the other words have; a saved run needs no file."""
    path = tmp_path / "vectors.vec"
    path.write_text("3 2\ndog 3 4\nSnow 0 -5\nhund 9 9\n")
    encoder = build(word_vectors=str(path))
    assert encoder.words_found == (2, len(encoder.tokenizer.words))
    assert encoder.embedding.embedding_dim == 2
    ids, _ = tokens(encoder, ["dog snow"])
    torch.testing.assert_close(
        encoder.embedding.weight[ids[0, 1:3]], torch.tensor([[3.0, 4.0], [0.0, -5.0]]) / 12.5**0.5
    )
    assert encoder.embedding.weight[0].tolist() == [0.0, 0.0], "padding"
    path.unlink()
    again = text_encoder_from_config(encoder.to_config(), tokenizer=encoder.tokenizer, load_weights=False)
    again.load_state_dict(encoder.state_dict())
