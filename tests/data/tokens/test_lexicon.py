"""The lexicon against scikit-learn's TfidfVectorizer and TruncatedSVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from varalign.data.tokens.lexicon import Lexicon

CAPTIONS = [
    "A dog runs over the red grass .",
    "the DOG and a second dog sit",
    "Two cats sit on a red mat",
    "a cat, a mat; snow!",
    "snow over the grass",
    "unknown_word once",
]


def sklearn_rows(captions: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(min_df=2).fit(CAPTIONS).transform(captions).toarray()


def test_words_and_values_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import TruncatedSVD

    lexicon = Lexicon.fitted(CAPTIONS, 3)
    assert lexicon is not None
    rows = sklearn_rows(CAPTIONS)
    plain = Lexicon(lexicon.words, lexicon.idf, np.eye(len(lexicon.words), dtype=np.float32))
    np.testing.assert_allclose(plain(CAPTIONS), rows, atol=1e-6)
    svd = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(rows)
    ours, theirs = lexicon(CAPTIONS), svd.transform(rows)
    lengths = np.linalg.norm(theirs, axis=1, keepdims=True)
    theirs = theirs / np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)  # signs of the directions are free


def test_a_lexicon_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    lexicon = Lexicon.fitted(CAPTIONS, 3)
    assert lexicon is not None
    assert Lexicon.load(tmp_path) is None
    lexicon.save(tmp_path)
    again = Lexicon.load(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again(["a red dog", "nothing known"]), lexicon(["a red dog", "nothing known"]))
    assert not lexicon(["nothing known"]).any()
