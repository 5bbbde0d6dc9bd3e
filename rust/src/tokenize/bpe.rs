//! CLIP's byte-pair encoding.
//!
//! A text is cut into words: a contraction such as `'s`, a run of letters, one digit, or a run of other characters. A
//! word is cut into bytes, of which the last one is marked. Then neighbouring symbols are merged: of all pairs in the
//! word, the one that comes first in the list of merges is merged everywhere, until no pair is in the list.
//! Source: Radford et al. 2021, §2.4; Sennrich et al. 2016.
//!
//! Text that needs repair (other alphabets, HTML entities, control characters) is not cut here: `encode` returns false,
//! and the caller passes its words to `encode_pieces`.

use super::cache::WordCache;
use super::merges::{MergeScratch, Merges};
use super::row::{Row, TokenId};
use super::scan;
use crate::error::Result;
use crate::memory;

const START_TEXT: &[u8] = b"<start_of_text>";
const END_TEXT: &[u8] = b"<end_of_text>";

/// Buffers for encoding a text.
#[derive(Default)]
pub struct BpeScratch {
    merging: MergeScratch,
    lowered: Vec<u8>,
}

impl BpeScratch {
    /// Make room for any word of a text of `length` bytes.
    pub fn reserve(&mut self, length: usize) -> Result<()> {
        self.lowered.clear();
        memory::reserve(&mut self.lowered, length)?;
        self.merging.reserve(length)
    }
}

/// The encoding by one vocabulary file.
pub struct Bpe {
    merges: Merges,
}

impl Bpe {
    /// Read the text of a vocabulary file, as `Merges::new` does.
    pub fn new(vocabulary: &str) -> Result<Self> {
        Ok(Self {
            merges: Merges::new(vocabulary)?,
        })
    }

    /// The ids of the start mark and of the end mark, the last two ids.
    pub fn marks(&self) -> (u32, u32) {
        let start = self.merges.symbols();
        (start, start + 1)
    }

    /// Append the ids of a text; false, and nothing is appended, if the caller must repair and cut it.
    pub fn encode<T: TokenId>(
        &self,
        text: &str,
        buffer: &mut Vec<u8>,
        scratch: &mut BpeScratch,
        cache: &mut WordCache,
        row: &mut Row<'_, T>,
    ) -> bool {
        let text = text.as_bytes();
        if !scan::is_printable_without_ampersand(text) && !needs_no_repair(text) {
            return false;
        }
        scan::load_text(buffer, text);
        let mut at = 0;
        while at < text.len() && !row.is_full() {
            let bytes = scan::load(buffer, at);
            let length = scan::letter_run(bytes);
            if length == 0 {
                at = self.encode_other(&buffer[..text.len()], at, scratch, cache, row);
                continue;
            }
            if length < 16 || !buffer[at + 16].is_ascii_alphabetic() {
                let key = scan::prefix(scan::lower(bytes), length);
                cache.emit_key(key, length, row, |word, ids| {
                    self.encode_word(word, &mut scratch.merging, ids)
                });
                at += length;
            } else {
                let end = at
                    + buffer[at..]
                        .iter()
                        .take_while(|byte| byte.is_ascii_alphabetic())
                        .count();
                self.emit_lowered(&buffer[at..end], scratch, cache, row);
                at = end;
            }
            at += usize::from(buffer[at] == b' ');
        }
        true
    }

    /// Append the word that begins at a byte other than a letter, and return its end.
    fn encode_other<T: TokenId>(
        &self,
        text: &[u8],
        at: usize,
        scratch: &mut BpeScratch,
        cache: &mut WordCache,
        row: &mut Row<'_, T>,
    ) -> usize {
        let rest = &text[at..];
        let byte = rest[0];
        if byte.is_ascii_whitespace() {
            return at + 1;
        }
        if byte.is_ascii_digit() {
            row.push(self.merges.of_byte(byte));
            return at + 1;
        }
        let length = match byte {
            b'\'' => contraction(rest),
            b'<' => [START_TEXT, END_TEXT]
                .into_iter()
                .find(|mark| starts_with(rest, mark))
                .map_or(0, <[u8]>::len),
            _ => 0,
        };
        if length > 0 {
            self.emit_lowered(&rest[..length], scratch, cache, row);
            return at + length;
        }
        let run = rest
            .iter()
            .take_while(|byte| !byte.is_ascii_alphanumeric() && !byte.is_ascii_whitespace())
            .count();
        if run == 1 {
            row.push(self.merges.of_byte(byte));
        } else {
            cache.emit(&rest[..run], row, |word, ids| {
                self.encode_word(word, &mut scratch.merging, ids)
            });
        }
        at + run
    }

    fn emit_lowered<T: TokenId>(
        &self,
        word: &[u8],
        scratch: &mut BpeScratch,
        cache: &mut WordCache,
        row: &mut Row<'_, T>,
    ) {
        let BpeScratch { merging, lowered } = scratch;
        lowered.clear();
        lowered.extend(word.iter().map(u8::to_ascii_lowercase));
        cache.emit(lowered, row, |word, ids| {
            self.encode_word(word, merging, ids)
        });
    }

    /// Append the ids of words that the caller has repaired and cut, one per line.
    pub fn encode_pieces<T: TokenId>(
        &self,
        pieces: &str,
        scratch: &mut BpeScratch,
        cache: &mut WordCache,
        row: &mut Row<'_, T>,
    ) {
        for piece in pieces.split('\n').filter(|piece| !piece.is_empty()) {
            if row.is_full() {
                break;
            }
            cache.emit(piece.as_bytes(), row, |word, ids| {
                self.encode_word(word, &mut scratch.merging, ids)
            });
        }
    }

    /// Append the ids of one word of at least one byte.
    fn encode_word(&self, word: &[u8], scratch: &mut MergeScratch, ids: &mut Vec<u32>) {
        match word {
            START_TEXT => ids.push(self.marks().0),
            END_TEXT => ids.push(self.marks().1),
            _ => self.merges.apply(word, scratch, ids),
        }
    }
}

/// Whether repair would not change an ASCII text: it has no control character but white space, and no `&` that could
/// begin an HTML entity.
fn needs_no_repair(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, &byte)| match byte {
        b'&' => matches!(
            text.get(at + 1),
            None | Some(b' ' | b'\t' | b'\n' | b'\x0c' | b'&' | b'<')
        ),
        b'\t' | b'\n' | b'\x0c' | b'\r' => true,
        _ => (0x20..0x7f).contains(&byte),
    })
}

/// The length of the contraction at the start of a text, which begins with an apostrophe; 0 for none.
fn contraction(text: &[u8]) -> usize {
    let letter = |at: usize| text.get(at).map_or(0, u8::to_ascii_lowercase);
    match (letter(1), letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r', b'e') | (b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

fn starts_with(text: &[u8], lower: &[u8]) -> bool {
    text.get(..lower.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: &str =
        "header\nl o\nlo w\ne r</w>\nn e\nne w\nlow er</w>\na a\naa a\na a</w>\naa aa";

    fn ids(bpe: &Bpe, text: &str) -> Vec<i64> {
        let mut found = [0i64; 4096];
        let mut row = Row::new(&mut found);
        let (mut buffer, mut scratch, mut cache) = Default::default();
        assert!(bpe.encode(text, &mut buffer, &mut scratch, &mut cache, &mut row));
        let used = row.used();
        found[..used].to_vec()
    }

    #[test]
    fn merges_apply_in_their_order() {
        let bpe = Bpe::new(VOCABULARY).unwrap();
        assert_eq!(bpe.marks(), (522, 523));
        assert_eq!(ids(&bpe, "LOWER  lower"), [517, 517]);
        assert_eq!(ids(&bpe, "<start_of_text>"), [522]);
        assert_eq!(
            ids(&bpe, "it's"),
            [ids(&bpe, "it"), ids(&bpe, "'s")].concat()
        );
    }

    #[test]
    fn text_that_needs_repair_is_left_to_the_caller() {
        for text in [
            "caf\u{e9}",
            "a &amp; b",
            "a\u{7f}",
            "\u{1b}[0m",
            "a\x0bb",
            "&#65",
        ] {
            let bpe = Bpe::new(VOCABULARY).unwrap();
            let mut found = [0i64; 8];
            let mut row = Row::new(&mut found);
            let (mut buffer, mut scratch, mut cache) = Default::default();
            assert!(
                !bpe.encode(text, &mut buffer, &mut scratch, &mut cache, &mut row),
                "{text:?}"
            );
            assert_eq!(row.used(), 0);
        }
    }
}
