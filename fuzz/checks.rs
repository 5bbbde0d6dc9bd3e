//! What must hold for any bytes: the bodies of the fuzz targets, which the replay of the seeds runs too.

use _core::error::Error;
use _core::image::{decode::decode, Limits};
use _core::tokenize::{Clean, Input, Tokenizer};

/// Small, so that a run of the fuzzer spends its time on decoding and not on filling large pictures.
const LIMITS: Limits = Limits {
    max_pixels: 1 << 20,
    max_memory: 32 << 20,
};

/// Any bytes are a picture of the size that it says, or an error of a sentence.
pub fn image(data: &[u8]) {
    match decode(data, &LIMITS) {
        Ok(picture) => {
            assert_eq!(
                picture.pixels.len(),
                picture.width * picture.height * 3,
                "a picture of another size than it says"
            );
            assert!(picture.width as u64 * picture.height as u64 <= LIMITS.max_pixels);
            assert_eq!(
                decode(data, &LIMITS).ok(),
                Some(picture),
                "another picture the second time"
            );
        }
        Err(Error::Image(message)) => assert!(
            !message.is_empty() && !message.contains("did not expect"),
            "a decoder panicked: {message}"
        ),
        Err(other) => panic!("an error of the wrong kind: {other}"),
    }
}

/// Splits bytes at the first 0xff, which no UTF-8 has: a vocabulary before it, where there is one, and a text.
fn parts(data: &[u8]) -> (Option<String>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match data.iter().position(|&byte| byte == 0xff) {
        Some(at) => (Some(text(&data[..at])), text(&data[at + 1..])),
        None => (None, text(data)),
    }
}

/// Ids are in range, rows begin, end and are padded as they should, and a text's row depends on nothing but the text.
fn check(tokenizer: &Tokenizer, text: &str, input: Input) {
    const WIDTH: usize = 16;
    let encode = |texts: &[Option<&str>]| {
        let (mut ids, mut lengths) = (vec![-1_i64; texts.len() * WIDTH], vec![-1; texts.len()]);
        let left = tokenizer
            .encode(texts, input, &mut ids, &mut lengths, 1)
            .expect("rows of the right size");
        (ids, lengths, left)
    };
    let (ids, lengths, left) = encode(&[Some(text)]);
    let (start, end, pad) = tokenizer.marks();
    if left.is_empty() {
        let used = usize::try_from(lengths[0]).expect("a length is at least 2");
        assert!((2..=WIDTH).contains(&used));
        assert_eq!((ids[0], ids[used - 1]), (i64::from(start), i64::from(end)));
        assert!(ids[used..].iter().all(|&id| id == i64::from(pad)));
        let size = tokenizer.vocabulary_size() as i64;
        assert!(ids.iter().all(|id| (0..size).contains(id)), "{ids:?}");
    } else {
        assert_eq!(left, [0]);
    }
    // Among others, and with its words in the cache.
    let (again, again_lengths, again_left) = encode(&[Some("a dog"), Some(text), None]);
    assert_eq!(again_left.contains(&1), !left.is_empty());
    assert!(again_left.contains(&2));
    if left.is_empty() {
        assert_eq!(
            (&again[WIDTH..2 * WIDTH], again_lengths[1]),
            (&ids[..], lengths[0])
        );
    }
}

/// CLIP's byte pairs, over a vocabulary of a few merges or the one in the bytes.
pub fn clip(data: &[u8]) {
    const MERGES: &str =
        "#version\na d\no g</w>\nd og</w>\nt h\nth e</w>\ni n\nr u\nru n\n\u{e2} \u{122}";
    let (vocabulary, text) = parts(data);
    let Ok(tokenizer) = Tokenizer::clip(vocabulary.as_deref().unwrap_or(MERGES)) else {
        return;
    };
    check(&tokenizer, &text, Input::Texts);
    check(&tokenizer, &text, Input::Pieces);
}

/// BERT's WordPiece, with every combination of its cleaning.
pub fn bert(data: &[u8]) {
    const ENTRIES: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ndog\n##s\nrun\n##ning\n狗\nd\n##o\n##g\n,\n.\ncafe\n##́";
    let (vocabulary, text) = parts(data);
    let entries: Vec<&str> = vocabulary
        .as_deref()
        .unwrap_or(ENTRIES)
        .split('\n')
        .collect();
    for bits in 0..8 {
        let clean = Clean {
            lower: bits & 1 != 0,
            strip_accents: bits & 2 != 0,
            split_chinese: bits & 4 != 0,
            compose: false,
        };
        let marks = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"];
        if let Ok(tokenizer) = Tokenizer::bert(&entries, marks, &["[MASK]"], clean) {
            check(&tokenizer, &text, Input::Texts);
        }
    }
}

/// Whole words.
pub fn words(data: &[u8]) {
    let (vocabulary, text) = parts(data);
    let entries: Vec<&str> = vocabulary.as_deref().map_or_else(
        || vec!["a", "dog", "runs", "café"],
        |all| all.split('\n').collect(),
    );
    if let Ok(tokenizer) = Tokenizer::words(&entries) {
        check(&tokenizer, &text, Input::Texts);
    }
}
