//! CLIP's byte-pair encoding.
//!
//! A text is cut into words (a contraction such as `'s`, a run of letters, one digit, a run of other characters), a
//! word into bytes, the last byte marked as such, and then neighbours are merged: the pair that stands first in the
//! list of merges, everywhere in the word, until no pair is in the list.
//! Source: Radford et al. 2021, §2.4; Sennrich et al. 2016.
//!
//! Text that needs repair (other alphabets, HTML entities, control characters) is not cut here: `encode` says so, and
//! the caller hands over the words.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::cache::WordCache;
use super::row::{Row, TokenId};
use super::scan;
use crate::error::{Error, Result};

/// How many merges of a vocabulary file count: 49,152 less the 256 bytes less the two marks.
const MERGES: usize = 49_152 - 256 - 2;
const NONE: u32 = u32::MAX;
/// Words of at most this many bytes are merged by looking at every pair each time, longer ones with a heap.
const SCANNED_BYTES: usize = 48;
const START_TEXT: &[u8] = b"<start_of_text>";
const END_TEXT: &[u8] = b"<end_of_text>";

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    result: u32,
}

/// Buffers for taking a word apart.
#[derive(Default)]
pub struct BpeScratch {
    symbols: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
    batch: Vec<(u32, u32, u32)>,
    lowered: Vec<u8>,
}

/// The merges of one vocabulary file.
pub struct Bpe {
    merges: FxHashMap<u64, Merge>,
    inner: [u32; 256], // a byte's id inside a word
    last: [u32; 256],  // a byte's id at its end
    start: u32,
    end: u32,
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The bytes in the order of their ids, and the character that stands for each in a vocabulary file.
fn byte_characters() -> Vec<(u8, char)> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let shown = (0..=255)
        .filter(|&byte| printable(byte))
        .map(|byte| (byte, char::from(byte)));
    let hidden = (0..=255).filter(|&byte| !printable(byte)).zip(256u32..);
    shown
        .chain(hidden.map(|(byte, code)| (byte, char::from_u32(code).unwrap_or_default())))
        .collect()
}

impl Bpe {
    /// Read the text of a vocabulary file: one line of header, then a merge a line, the most frequent first.
    pub fn new(vocabulary: &str) -> Result<Self> {
        let characters = byte_characters();
        let (mut inner, mut last) = ([0; 256], [0; 256]);
        // Every symbol stands in one string, which the map borrows: 49,000 small allocations would double the time.
        let mut text = String::with_capacity(vocabulary.len());
        let mut symbols: Vec<(std::ops::Range<usize>, u32)> = Vec::with_capacity(512 + MERGES);
        let mut write = |parts: [&str; 2], id: u32| {
            let from = text.len();
            text.push_str(parts[0]);
            text.push_str(parts[1]);
            symbols.push((from..text.len(), id));
        };
        for (id, &(byte, character)) in (0u32..).zip(&characters) {
            inner[usize::from(byte)] = id;
            last[usize::from(byte)] = id + 256;
            write([character.encode_utf8(&mut [0; 4]), ""], id);
            write([character.encode_utf8(&mut [0; 4]), "</w>"], id + 256);
        }
        let lines: Vec<&str> = vocabulary.split('\n').skip(1).take(MERGES).collect();
        let mut parts: Vec<(u32, &str, &str)> = Vec::with_capacity(lines.len());
        // A blank line takes an id and merges nothing, as in the reference, whose file ends without a line feed.
        for (rank, line) in (0u32..).zip(lines.iter()) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (None, _, _) => {}
                (Some(left), Some(right), None) => {
                    write([left, right], 512 + rank);
                    parts.push((rank, left, right));
                }
                _ => {
                    let line: String = line.chars().take(60).collect();
                    return Err(Error::Value(format!(
                        "CLIP vocabulary, line {}: a merge is two symbols with a space between, got {line:?}; \
                         give the bpe_simple_vocab file of open_clip",
                        rank + 2
                    )));
                }
            }
        }
        if parts.is_empty() {
            return Err(Error::Value(
                "CLIP vocabulary: no merges after the first line; give the bpe_simple_vocab file of open_clip".into(),
            ));
        }
        // Equal symbols have one id, that of the last merge that makes them.
        let mut ids: FxHashMap<&str, u32> =
            FxHashMap::with_capacity_and_hasher(symbols.len(), Default::default());
        for (range, id) in &symbols {
            ids.insert(&text[range.clone()], *id);
        }
        let repeated = ids.len() < symbols.len();
        let mut merges = FxHashMap::with_capacity_and_hasher(parts.len(), Default::default());
        for (&(rank, left, right), (range, id)) in parts.iter().zip(&symbols[512..]) {
            let find = |symbol: &str| {
                ids.get(symbol).copied().ok_or_else(|| {
                    Error::Value(format!(
                        "CLIP vocabulary, line {}: symbol {symbol:?} is neither a byte nor made by another merge; \
                         the file is incomplete",
                        rank + 2
                    ))
                })
            };
            let result = if repeated {
                ids[&text[range.clone()]]
            } else {
                *id
            };
            merges.insert(pair(find(left)?, find(right)?), Merge { rank, result });
        }
        let start = 512 + lines.len() as u32;
        Ok(Self {
            merges,
            inner,
            last,
            start,
            end: start + 1,
        })
    }

    /// The ids of the start mark and of the end mark, the two last ones.
    pub fn marks(&self) -> (u32, u32) {
        (self.start, self.end)
    }

    /// Append the ids of a text, or say false and append nothing if it must be repaired and cut by the caller.
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
                    self.encode_word(word, scratch, ids)
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

    /// Append what begins at a byte that is no letter, and return where it ends.
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
            row.push(self.last[usize::from(byte)]);
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
            row.push(self.last[usize::from(byte)]);
        } else {
            cache.emit(&rest[..run], row, |word, ids| {
                self.encode_word(word, scratch, ids)
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
        let mut lowered = std::mem::take(&mut scratch.lowered);
        lowered.clear();
        lowered.extend(word.iter().map(u8::to_ascii_lowercase));
        cache.emit(&lowered, row, |word, ids| {
            self.encode_word(word, scratch, ids)
        });
        scratch.lowered = lowered;
    }

    /// Append the ids of words that the caller has repaired and cut, one a line.
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
                self.encode_word(word, scratch, ids)
            });
        }
    }

    /// Append the ids of one word of at least one byte.
    fn encode_word(&self, word: &[u8], scratch: &mut BpeScratch, ids: &mut Vec<u32>) {
        if word == START_TEXT {
            ids.push(self.start);
            return;
        }
        if word == END_TEXT {
            ids.push(self.end);
            return;
        }
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend(word.iter().map(|&byte| self.inner[usize::from(byte)]));
        if let (Some(symbol), Some(&byte)) = (symbols.last_mut(), word.last()) {
            *symbol = self.last[usize::from(byte)];
        }
        if symbols.len() <= SCANNED_BYTES {
            self.merge_by_scanning(symbols);
            ids.extend_from_slice(symbols);
        } else {
            self.merge_by_heap(scratch, ids);
        }
    }

    fn find(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&pair(left, right)).copied()
    }

    fn merge_by_scanning(&self, symbols: &mut Vec<u32>) {
        loop {
            let best = symbols
                .windows(2)
                .filter_map(|two| {
                    self.find(two[0], two[1])
                        .map(|merge| (merge.rank, merge.result, two[0], two[1]))
                })
                .min();
            let Some((_, result, left, right)) = best else {
                return;
            };
            let (mut from, mut to) = (0, 0);
            while from < symbols.len() {
                let is_pair = symbols[from] == left && symbols.get(from + 1) == Some(&right);
                symbols[to] = if is_pair { result } else { symbols[from] };
                from += if is_pair { 2 } else { 1 };
                to += 1;
            }
            symbols.truncate(to);
        }
    }

    /// The same merges in O(n log n): a word of 10,000 letters is legal. All places of the best pair are merged, from
    /// left to right, before a pair that this makes is looked at, as scanning does it.
    fn merge_by_heap(&self, scratch: &mut BpeScratch, ids: &mut Vec<u32>) {
        let BpeScratch {
            symbols,
            next,
            previous,
            heap,
            batch,
            ..
        } = scratch;
        let count = symbols.len() as u32;
        next.clear();
        next.extend((1..count).chain([NONE]));
        previous.clear();
        previous.extend([NONE].into_iter().chain(0..count - 1));
        heap.clear();
        for at in 0..count - 1 {
            let (left, right) = (symbols[at as usize], symbols[at as usize + 1]);
            if let Some(merge) = self.find(left, right) {
                heap.push(Reverse((merge.rank, at, left, right)));
            }
        }
        while let Some(&Reverse((rank, ..))) = heap.peek() {
            batch.clear();
            while let Some(&Reverse((same, at, left, right))) = heap.peek() {
                if same != rank {
                    break;
                }
                heap.pop();
                batch.push((at, left, right));
            }
            for &(at, left, right) in batch.iter() {
                let here = at as usize;
                let neighbour = next[here];
                if symbols[here] != left
                    || neighbour == NONE
                    || symbols[neighbour as usize] != right
                {
                    continue; // one of the two has been merged since
                }
                let Some(merge) = self.find(left, right) else {
                    continue;
                };
                symbols[here] = merge.result;
                symbols[neighbour as usize] = NONE;
                next[here] = next[neighbour as usize];
                if next[here] != NONE {
                    previous[next[here] as usize] = at;
                    let following = symbols[next[here] as usize];
                    if let Some(made) = self.find(merge.result, following) {
                        heap.push(Reverse((made.rank, at, merge.result, following)));
                    }
                }
                if previous[here] != NONE {
                    let before = symbols[previous[here] as usize];
                    if let Some(made) = self.find(before, merge.result) {
                        heap.push(Reverse((made.rank, previous[here], before, merge.result)));
                    }
                }
            }
        }
        ids.extend(symbols.iter().filter(|&&symbol| symbol != NONE));
    }
}

/// Whether no repair changes an ASCII text: no control character but white space, and no `&` that could begin an
/// HTML entity.
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

/// The length of the contraction that a text beginning with an apostrophe begins with, or 0.
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
    fn the_heap_merges_as_scanning_does() {
        let bpe = Bpe::new(VOCABULARY).unwrap();
        let mut state = 7u64;
        for length in 2..400 {
            let mut word: Vec<u8> = Vec::new();
            for _ in 0..length {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                word.push(b"aaaaaloewnr"[(state >> 33) as usize % 11]);
            }
            let mut symbols: Vec<u32> = word
                .iter()
                .map(|&byte| bpe.inner[usize::from(byte)])
                .collect();
            *symbols.last_mut().unwrap() = bpe.last[usize::from(*word.last().unwrap())];
            let mut scratch = BpeScratch {
                symbols: symbols.clone(),
                ..Default::default()
            };
            let mut found = Vec::new();
            bpe.merge_by_heap(&mut scratch, &mut found);
            bpe.merge_by_scanning(&mut symbols);
            assert_eq!(found, symbols);
        }
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

    #[test]
    fn a_wrong_file_is_named() {
        assert!(Bpe::new("").is_err());
        let message = Bpe::new("header\na b c").err().unwrap().to_string();
        assert!(
            message.contains("line 2") && message.contains("two symbols"),
            "{message}"
        );
        assert!(Bpe::new("header\nab c")
            .err()
            .unwrap()
            .to_string()
            .contains("\"ab\""));
    }
}
