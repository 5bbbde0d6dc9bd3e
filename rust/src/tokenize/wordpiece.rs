//! BERT's WordPiece: a word is cut into the longest vocabulary entry at its start, then the longest `##` entry at the
//! start of the rest, and so on. A word that cannot be cut, or has more than 100 characters, is `[UNK]`.
//! Source: Devlin et al. 2019; Wu et al. 2016.

use rustc_hash::FxHashMap;

use super::cache::WordCache;
use super::clean::{Clean, WordSink};
use super::row::{Row, TokenId};
use super::scan;
use crate::error::{Error, Result};
use crate::memory;

const LONGEST_WORD: usize = 100; // characters

/// A vocabulary, the special tokens that a text may contain, and the settings of its repair.
pub struct WordPiece {
    whole: FxHashMap<Box<[u8]>, u32>,
    continued: FxHashMap<Box<[u8]>, u32>,
    longest: usize, // bytes of the longest entry
    unknown: u32,
    clean: Clean,
    special: Vec<(Box<[u8]>, u32)>, // longest first
    begins_special: [bool; 256],
    scans_ascii: bool,
    ascii: [u32; 128],
}

impl WordPiece {
    /// `entries` are in the order of their ids; an empty one is never matched. `special` tokens are matched in the text
    /// before any repair.
    pub fn new(entries: &[&str], unknown: &str, special: &[&str], clean: Clean) -> Result<Self> {
        let (mut whole, mut continued) = (FxHashMap::default(), FxHashMap::default());
        memory::reserve_map(&mut whole, entries.len())?;
        memory::reserve_map(&mut continued, entries.len())?;
        for (id, entry) in (0u32..).zip(entries).filter(|(_, entry)| !entry.is_empty()) {
            whole.insert(Box::from(entry.as_bytes()), id);
            if let Some(rest) = entry.strip_prefix("##").filter(|rest| !rest.is_empty()) {
                continued.insert(Box::from(rest.as_bytes()), id);
            }
        }
        let find = |token: &str| {
            whole.get(token.as_bytes()).copied().ok_or_else(|| {
                Error::Value(format!(
                    "BERT vocabulary: no entry {token:?} among {}; give the vocab.txt or tokenizer.json of a BERT model",
                    entries.len()
                ))
            })
        };
        let unknown = find(unknown)?;
        let mut found = Vec::new();
        for token in special.iter().filter(|token| !token.is_empty()) {
            found.push((Box::from(token.as_bytes()), find(token)?));
        }
        found.sort_by_key(|(token, _): &(Box<[u8]>, u32)| std::cmp::Reverse(token.len()));
        let mut begins_special = [false; 256];
        for (token, _) in &found {
            begins_special[usize::from(token[0])] = true;
        }
        let scans_ascii = found
            .iter()
            .all(|(token, _)| token[0].is_ascii_punctuation());
        let longest = entries.iter().map(|entry| entry.len()).max().unwrap_or(0);
        let mut ascii = [unknown; 128];
        for byte in 0..128u8 {
            ascii[usize::from(byte)] = whole.get([byte].as_slice()).copied().unwrap_or(unknown);
        }
        Ok(Self {
            whole,
            continued,
            longest,
            unknown,
            clean,
            special: found,
            begins_special,
            scans_ascii,
            ascii,
        })
    }

    /// The id of an entry.
    pub fn id_of(&self, entry: &str) -> Option<u32> {
        self.whole.get(entry.as_bytes()).copied()
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
        if self.scans_ascii && scan::is_printable(text.as_bytes()) {
            let mut sink = Pieces {
                model: self,
                cache,
                row,
            };
            if text
                .as_bytes()
                .iter()
                .any(|&byte| self.begins_special[usize::from(byte)])
            {
                self.encode_segments(text, cleaned, &mut sink);
            } else {
                self.clean
                    .split_printable(text.as_bytes(), buffer, &mut sink);
            }
        } else {
            self.encode_segments(
                text,
                cleaned,
                &mut Pieces {
                    model: self,
                    cache,
                    row,
                },
            );
        }
    }

    /// Cut a text at its special tokens, and encode the parts between them.
    fn encode_segments<T: TokenId>(
        &self,
        text: &str,
        cleaned: &mut String,
        sink: &mut Pieces<'_, '_, T>,
    ) {
        let bytes = text.as_bytes();
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() && !sink.is_full() {
            match self.special_at(&bytes[at..]) {
                Some((length, id)) => {
                    self.clean.split(&text[from..at], cleaned, sink);
                    sink.row.push(id);
                    at += length;
                    from = at;
                }
                None => at += 1,
            }
        }
        self.clean.split(&text[from..], cleaned, sink);
    }

    fn special_at(&self, rest: &[u8]) -> Option<(usize, u32)> {
        if !self.begins_special[usize::from(rest[0])] {
            return None;
        }
        self.special
            .iter()
            .find(|(token, _)| rest.starts_with(token))
            .map(|(token, id)| (token.len(), *id))
    }

    fn encode_word(&self, word: &[u8], ids: &mut Vec<u32>) {
        let before = ids.len();
        let characters = word.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        let mut from = if characters > LONGEST_WORD {
            usize::MAX
        } else {
            0
        };
        while from < word.len() {
            let entries = if from == 0 {
                &self.whole
            } else {
                &self.continued
            };
            let furthest = word.len().min(from + self.longest);
            let found = (from + 1..=furthest)
                .rev()
                .filter(|&to| to == word.len() || word[to] & 0xc0 != 0x80)
                .find_map(|to| entries.get(&word[from..to]).map(|&id| (id, to)));
            let Some((id, to)) = found else {
                from = usize::MAX;
                break;
            };
            ids.push(id);
            from = to;
        }
        if from == usize::MAX {
            ids.truncate(before);
            ids.push(self.unknown);
        }
    }
}

struct Pieces<'a, 'row, T> {
    model: &'a WordPiece,
    cache: &'a mut WordCache,
    row: &'a mut Row<'row, T>,
}

impl<T: TokenId> WordSink for Pieces<'_, '_, T> {
    #[inline(always)]
    fn short(&mut self, key: u128, length: usize) {
        self.cache.emit_key(key, length, self.row, |word, ids| {
            self.model.encode_word(word, ids)
        });
    }

    fn word(&mut self, word: &[u8]) {
        self.cache.emit(word, self.row, |word, ids| {
            self.model.encode_word(word, ids)
        });
    }

    #[inline(always)]
    fn punctuation(&mut self, rest: &[u8], length: usize) {
        if rest[0].is_ascii() {
            self.row.push(self.model.ascii[usize::from(rest[0])]);
        } else {
            self.word(&rest[..length]);
        }
    }

    #[inline(always)]
    fn is_full(&self) -> bool {
        self.row.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<i64> {
        let clean = Clean {
            lower: true,
            strip_accents: true,
            split_chinese: true,
            compose: false,
        };
        let entries = [
            "[PAD]", "[UNK]", "[SEP]", "un", "##aff", "##able", "##a", "a", ",", "狗", "[",
        ];
        let model = WordPiece::new(&entries, "[UNK]", &["[UNK]", "[SEP]"], clean).unwrap();
        let mut found = [0i64; 64];
        let mut row = Row::new(&mut found);
        model.encode(
            text,
            &mut Vec::new(),
            &mut String::new(),
            &mut WordCache::default(),
            &mut row,
        );
        let used = row.used();
        found[..used].to_vec()
    }

    #[test]
    fn the_longest_piece_wins() {
        assert_eq!(
            ids("Unaffable, una x unaff狗"),
            [3, 4, 5, 8, 3, 6, 1, 3, 4, 9]
        );
        assert_eq!(ids("unaffab"), [1]);
        assert_eq!(ids(&"a".repeat(100)).len(), 64);
        assert_eq!(ids(&"a".repeat(101)), [1]);
    }

    #[test]
    fn special_tokens_are_matched_as_they_stand() {
        assert_eq!(ids("a[SEP]a [sep] é[SEP]"), [7, 2, 7, 10, 1, 1, 1, 2]);
    }
}
