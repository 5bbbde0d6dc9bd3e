//! The merges of a CLIP vocabulary file, and the symbols that a word is merged to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::memory;

/// Number of merges that are read: 49,152 less the 256 bytes and the two marks.
const MERGES: usize = 49_152 - 256 - 2;
const NONE: u32 = u32::MAX;
/// Words of at most this many bytes are merged by scanning all pairs each time, longer ones with a heap.
const SCANNED_BYTES: usize = 48;

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    result: u32,
}

/// Buffers for merging a word.
#[derive(Default)]
pub struct MergeScratch {
    symbols: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
    batch: Vec<(u32, u32, u32)>,
}

impl MergeScratch {
    /// Make room for merging a word of `length` bytes.
    pub fn reserve(&mut self, length: usize) -> Result<()> {
        self.symbols.clear();
        memory::reserve(&mut self.symbols, length)?;
        if length > SCANNED_BYTES {
            for links in [&mut self.next, &mut self.previous] {
                links.clear();
                memory::reserve(links, length)?;
            }
            // Each merge makes at most two pairs, and there are fewer merges than bytes.
            self.heap.clear();
            self.batch.clear();
            memory::reserve_heap(&mut self.heap, 3 * length)?;
            memory::reserve(&mut self.batch, 3 * length)?;
        }
        Ok(())
    }
}

/// The merges of one vocabulary file.
pub struct Merges {
    by_pair: FxHashMap<u64, Merge>,
    inner: [u32; 256], // id of each byte inside a word
    last: [u32; 256],  // id of each byte at the end of a word
    symbols: u32,
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The bytes in the order of their ids, each with the character for it in a vocabulary file.
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

/// The symbols of a vocabulary, each with its id: 512 of single bytes, then one per merge.
struct Symbols {
    text: String, // holds every symbol: 49,000 small allocations would double the time
    found: Vec<(Range<usize>, u32)>,
}

impl Symbols {
    /// No symbol yet, with room for those of a vocabulary file of `bytes` bytes.
    fn with_room(bytes: usize) -> Result<Self> {
        let (mut text, mut found) = (String::new(), Vec::new());
        memory::reserve_string(&mut text, bytes + 4096)?;
        memory::reserve(&mut found, 512 + MERGES)?;
        Ok(Self { text, found })
    }

    /// Append the symbol that two parts make.
    fn push(&mut self, parts: [&str; 2], id: u32) {
        let from = self.text.len();
        self.text.push_str(parts[0]);
        self.text.push_str(parts[1]);
        self.found.push((from..self.text.len(), id));
    }

    /// Append the symbols of single bytes, and return the ids of each byte inside a word and at its end.
    fn push_bytes(&mut self) -> ([u32; 256], [u32; 256]) {
        let (mut inner, mut last) = ([0; 256], [0; 256]);
        for (id, &(byte, character)) in (0u32..).zip(&byte_characters()) {
            inner[usize::from(byte)] = id;
            last[usize::from(byte)] = id + 256;
            self.push([character.encode_utf8(&mut [0; 4]), ""], id);
            self.push([character.encode_utf8(&mut [0; 4]), "</w>"], id + 256);
        }
        (inner, last)
    }

    /// Append the symbols that the lines of merges make, and return the rank and the two parts of each merge.
    fn push_merges<'a>(&mut self, lines: &[&'a str]) -> Result<Vec<(u32, &'a str, &'a str)>> {
        let mut merges = Vec::new();
        memory::reserve(&mut merges, lines.len())?;
        // A blank line takes an id and merges nothing, as in the reference, whose file ends without a line feed.
        for (rank, line) in (0u32..).zip(lines.iter()) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (None, _, _) => {}
                (Some(left), Some(right), None) => {
                    self.push([left, right], 512 + rank);
                    merges.push((rank, left, right));
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
        if merges.is_empty() {
            return Err(Error::Value(
                "CLIP vocabulary: no merges after the first line; give the bpe_simple_vocab file of open_clip".into(),
            ));
        }
        Ok(merges)
    }

    /// The merges by the ids of their two parts.
    fn by_pair(&self, merges: &[(u32, &str, &str)]) -> Result<FxHashMap<u64, Merge>> {
        // Equal symbols have one id, that of the last merge that makes them.
        let mut ids: FxHashMap<&str, u32> = FxHashMap::default();
        memory::reserve_map(&mut ids, self.found.len())?;
        for (range, id) in &self.found {
            ids.insert(&self.text[range.clone()], *id);
        }
        let repeated = ids.len() < self.found.len();
        let mut by_pair = FxHashMap::default();
        memory::reserve_map(&mut by_pair, merges.len())?;
        for (&(rank, left, right), (range, id)) in merges.iter().zip(&self.found[512..]) {
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
                ids[&self.text[range.clone()]]
            } else {
                *id
            };
            by_pair.insert(pair(find(left)?, find(right)?), Merge { rank, result });
        }
        Ok(by_pair)
    }
}

impl Merges {
    /// Read the text of a vocabulary file: a header line, then one merge per line, the most frequent first.
    pub fn new(vocabulary: &str) -> Result<Self> {
        let mut symbols = Symbols::with_room(vocabulary.len())?;
        let (inner, last) = symbols.push_bytes();
        let mut lines: Vec<&str> = Vec::new();
        memory::reserve(&mut lines, MERGES)?;
        lines.extend(vocabulary.split('\n').skip(1).take(MERGES));
        let merges = symbols.push_merges(&lines)?;
        Ok(Self {
            by_pair: symbols.by_pair(&merges)?,
            inner,
            last,
            symbols: 512 + lines.len() as u32,
        })
    }

    /// How many symbols there are, bytes and merges.
    pub fn symbols(&self) -> u32 {
        self.symbols
    }

    /// The id of a word of one byte.
    #[inline(always)]
    pub fn of_byte(&self, byte: u8) -> u32 {
        self.last[usize::from(byte)]
    }

    /// Append the ids of a word of at least one byte.
    pub fn apply(&self, word: &[u8], scratch: &mut MergeScratch, ids: &mut Vec<u32>) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend(word.iter().map(|&byte| self.inner[usize::from(byte)]));
        if let (Some(symbol), Some(&byte)) = (symbols.last_mut(), word.last()) {
            *symbol = self.of_byte(byte);
        }
        if symbols.len() <= SCANNED_BYTES {
            self.merge_by_scanning(symbols);
            ids.extend_from_slice(symbols);
        } else {
            self.merge_by_heap(scratch, ids);
        }
    }

    fn find(&self, left: u32, right: u32) -> Option<Merge> {
        self.by_pair.get(&pair(left, right)).copied()
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

    /// The same merges in O(n log n), for long words: a word of 10,000 letters is legal. As in scanning, all places of
    /// the best pair are merged, from left to right, before any pair that these merges make.
    fn merge_by_heap(&self, scratch: &mut MergeScratch, ids: &mut Vec<u32>) {
        let count = scratch.symbols.len() as u32;
        scratch.next.clear();
        scratch.next.extend((1..count).chain([NONE]));
        scratch.previous.clear();
        scratch
            .previous
            .extend([NONE].into_iter().chain(0..count - 1));
        scratch.heap.clear();
        for at in 0..count - 1 {
            self.push_pair(scratch, at, at + 1);
        }
        while let Some(&Reverse((rank, ..))) = scratch.heap.peek() {
            let mut batch = std::mem::take(&mut scratch.batch);
            batch.clear();
            while let Some(&Reverse((same, at, left, right))) = scratch.heap.peek() {
                if same != rank {
                    break;
                }
                scratch.heap.pop();
                batch.push((at, left, right));
            }
            for &(at, left, right) in &batch {
                self.merge_at(scratch, at, left, right);
            }
            scratch.batch = batch;
        }
        ids.extend(scratch.symbols.iter().filter(|&&symbol| symbol != NONE));
    }

    /// Merge the symbol at `at` with its neighbour, unless one of the two has been merged since they were a pair.
    fn merge_at(&self, scratch: &mut MergeScratch, at: u32, left: u32, right: u32) {
        let here = at as usize;
        let neighbour = scratch.next[here] as usize;
        if scratch.symbols[here] != left || scratch.symbols.get(neighbour) != Some(&right) {
            return;
        }
        let Some(merge) = self.find(left, right) else {
            return;
        };
        scratch.symbols[here] = merge.result;
        scratch.symbols[neighbour] = NONE;
        let following = scratch.next[neighbour];
        scratch.next[here] = following;
        if following != NONE {
            scratch.previous[following as usize] = at;
            self.push_pair(scratch, at, following);
        }
        if scratch.previous[here] != NONE {
            self.push_pair(scratch, scratch.previous[here], at);
        }
    }

    /// Put two neighbours on the heap if there is a merge for them.
    fn push_pair(&self, scratch: &mut MergeScratch, at: u32, following: u32) {
        let left = scratch.symbols[at as usize];
        let right = scratch.symbols[following as usize];
        if let Some(merge) = self.find(left, right) {
            scratch.heap.push(Reverse((merge.rank, at, left, right)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: &str = "header\nl o\nlo w\na a\naa a\na a</w>\naa aa";

    #[test]
    fn the_heap_merges_as_scanning_does() {
        let merges = Merges::new(VOCABULARY).unwrap();
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
                .map(|&byte| merges.inner[usize::from(byte)])
                .collect();
            *symbols.last_mut().unwrap() = merges.last[usize::from(*word.last().unwrap())];
            let mut scratch = MergeScratch {
                symbols: symbols.clone(),
                ..Default::default()
            };
            let mut found = Vec::new();
            merges.merge_by_heap(&mut scratch, &mut found);
            merges.merge_by_scanning(&mut symbols);
            assert_eq!(found, symbols);
        }
    }

    #[test]
    fn a_wrong_file_is_named() {
        assert!(Merges::new("").is_err());
        let message = Merges::new("header\na b c").err().unwrap().to_string();
        assert!(
            message.contains("line 2") && message.contains("two symbols"),
            "{message}"
        );
        assert!(Merges::new("header\nab c")
            .err()
            .unwrap()
            .to_string()
            .contains("\"ab\""));
    }
}
