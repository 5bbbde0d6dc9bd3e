//! A vocabulary of whole words, built from the training captions.
//!
//! Words are lowered, composed (NFC) and cut as in BERT's basic tokenizer; punctuation is dropped.

use rustc_hash::FxHashMap;

use super::cache::WordCache;
use super::clean::{Clean, WordSink};
use super::row::{Row, TokenId};
use super::scan;
use crate::error::{Error, Result};
use crate::memory;

/// The ids before the first word: padding, an unknown word, the start mark and the end mark.
pub const PAD: u32 = 0;
pub const UNKNOWN: u32 = 1;
pub const START: u32 = 2;
pub const END: u32 = 3;
const FIRST_WORD: u32 = 4;

const CLEAN: Clean = Clean {
    lower: true,
    strip_accents: false,
    split_chinese: true,
    compose: true,
};

/// The words of a vocabulary in the order of their ids.
pub struct Words {
    ids: FxHashMap<Box<[u8]>, u32>,
}

impl Words {
    /// Words, the first one with id 4.
    pub fn new(words: &[&str]) -> Result<Self> {
        let mut ids = FxHashMap::default();
        memory::reserve_map(&mut ids, words.len())?;
        for (id, word) in (FIRST_WORD..).zip(words) {
            if word.is_empty() || ids.insert(Box::from(word.as_bytes()), id).is_some() {
                return Err(Error::Value(format!(
                    "word vocabulary, line {}: {word:?} is empty or stands there twice; \
                     give the file that a word tokenizer saved",
                    id - FIRST_WORD + 1
                )));
            }
        }
        Ok(Self { ids })
    }

    /// Append the ids of a text.
    pub fn encode<T: TokenId>(
        &self,
        text: &str,
        buffer: &mut Vec<u8>,
        cleaned: &mut String,
        cache: &mut WordCache,
        row: &mut Row<'_, T>,
    ) {
        split(
            text,
            buffer,
            cleaned,
            &mut Ids {
                model: self,
                cache,
                row,
            },
        );
    }
}

fn split(text: &str, buffer: &mut Vec<u8>, cleaned: &mut String, sink: &mut impl WordSink) {
    if scan::is_printable(text.as_bytes()) {
        CLEAN.split_printable(text.as_bytes(), buffer, sink);
    } else {
        CLEAN.split(text, cleaned, sink);
    }
}

/// The words of some texts that occur at least `min_count` times, at most `max_words`: the most frequent first, and
/// equally frequent ones in the order of their bytes. A text that is None is skipped.
pub fn build_vocabulary(
    texts: &[Option<&str>],
    min_count: usize,
    max_words: usize,
) -> Result<Vec<String>> {
    let mut counts = Counts::default();
    let (mut buffer, mut cleaned) = (Vec::new(), String::new());
    for text in texts.iter().flatten() {
        scan::reserve_text(text, &mut buffer, &mut cleaned)?;
        split(text, &mut buffer, &mut cleaned, &mut counts);
        if let Some(error) = counts.failed {
            return Err(error);
        }
    }
    let mut words = Vec::new();
    memory::reserve(&mut words, counts.words.len())?;
    words.extend(
        counts
            .words
            .into_iter()
            .filter(|&(_, count)| count >= min_count),
    );
    // All words differ, so an unstable sort, which allocates nothing, has only one result.
    words.sort_unstable_by(|left: &(String, usize), right| {
        right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0))
    });
    words.truncate(max_words);
    memory::collect(words.into_iter().map(|(word, _)| word))
}

#[derive(Default)]
struct Counts {
    words: FxHashMap<String, usize>,
    failed: Option<Error>,
}

impl WordSink for Counts {
    fn short(&mut self, key: u128, length: usize) {
        self.word(&key.to_le_bytes()[..length]);
    }

    fn word(&mut self, word: &[u8]) {
        let word = String::from_utf8_lossy(word);
        if let Some(count) = self.words.get_mut(word.as_ref()) {
            *count += 1;
            return;
        }
        match memory::reserve_map(&mut self.words, 1) {
            Ok(()) => drop(self.words.insert(word.into_owned(), 1)),
            Err(error) => self.failed = Some(error),
        }
    }

    fn punctuation(&mut self, _rest: &[u8], _length: usize) {}

    fn is_full(&self) -> bool {
        false
    }
}

struct Ids<'a, 'row, T> {
    model: &'a Words,
    cache: &'a mut WordCache,
    row: &'a mut Row<'row, T>,
}

impl<T: TokenId> WordSink for Ids<'_, '_, T> {
    #[inline(always)]
    fn short(&mut self, key: u128, length: usize) {
        self.cache.emit_key(key, length, self.row, |word, ids| {
            ids.push(self.model.ids.get(word).copied().unwrap_or(UNKNOWN));
        });
    }

    fn word(&mut self, word: &[u8]) {
        self.cache.emit(word, self.row, |word, ids| {
            ids.push(self.model.ids.get(word).copied().unwrap_or(UNKNOWN));
        });
    }

    fn punctuation(&mut self, _rest: &[u8], _length: usize) {}

    #[inline(always)]
    fn is_full(&self) -> bool {
        self.row.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_ranked_by_count_then_bytes() {
        let texts = ["A dog, a Dog.", "the cafe\u{301} dog", "café a"];
        let texts = texts.map(Some);
        assert_eq!(
            build_vocabulary(&texts, 1, 10).unwrap(),
            ["a", "dog", "café", "the"]
        );
        assert_eq!(build_vocabulary(&texts, 2, 2).unwrap(), ["a", "dog"]);
    }

    #[test]
    fn unknown_words_are_one_and_punctuation_none() {
        let words = Words::new(&["dog", "café"]).unwrap();
        let mut found = [0i64; 8];
        let mut row = Row::new(&mut found);
        words.encode(
            "DOG! cat CAFE\u{301}",
            &mut Vec::new(),
            &mut String::new(),
            &mut WordCache::default(),
            &mut row,
        );
        assert_eq!(row.used(), 3);
        assert_eq!(found[..3], [4, 1, 5]);
        assert!(Words::new(&["a", "b", "a"])
            .err()
            .unwrap()
            .to_string()
            .contains("line 3"));
    }
}
