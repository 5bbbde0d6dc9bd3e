"""The library's own tokenizer behind varalign's: equal ids, and the errors of the other kinds."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from text_models import TEXTS, write_model
from varalign.data.tokens.tokenizers import hf_tokenizer, load_tokenizer


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mpnet"])
def test_ids_are_transformers(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    folder = write_model(tmp_path / family, family)
    tokenizer, reference = hf_tokenizer(folder, 20), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS)
    wanted = reference(TEXTS, padding="max_length", truncation=True, max_length=20)
    assert batch.ids.tolist() == wanted["input_ids"]
    assert batch.mask().astype(int).tolist() == wanted["attention_mask"]
    assert tokenizer.vocabulary_size == len(reference)
    assert tokenizer.pad_id == reference.pad_token_id
    tokenizer.save(tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        assert again == tokenizer
        assert again(TEXTS).ids.tolist() == batch.ids.tolist()


def test_a_prompt_stands_before_each_text(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "xlm-roberta")
    plain, prompted = hf_tokenizer(folder, 30), hf_tokenizer(folder, 30, "the dog: ")
    assert prompted(["a cat"]).ids.tolist() == plain(["the dog: a cat"]).ids.tolist()
    assert prompted.fingerprint != plain.fingerprint
    prompted.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").prompt == "the dog: "


def test_errors(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "roberta")
    tokenizer = hf_tokenizer(folder, 20)
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a surrogate pair"):
        tokenizer(["a", "b\ud800"])
    with pytest.raises(TypeError, match=r"texts\[0\] must be a str, got int"):
        tokenizer([3])  # type: ignore[list-item]
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer.json that the library tokenizers reads"):
        load_tokenizer(tmp_path / "saved")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match="lacks tokenizer.json, or merges.txt, vocab.json, which RobertaTokenizer reads"
    ):
        hf_tokenizer(folder)
