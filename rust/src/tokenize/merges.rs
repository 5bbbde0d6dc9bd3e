//! The merges of a CLIP vocabulary file, and the symbols that a word is merged to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::memory;

/// How many merges of a vocabulary file count: 49,152 less the 256 bytes less the two marks.
const MERGES: usize = 49_152 - 256 - 2;
const NONE: u32 = u32::MAX;
/// Words of at most this many bytes are merged by looking at every pair each time, longer ones with a heap.
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
            // A merge makes two pairs at most, and there are fewer merges than bytes.
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
    inner: [u32; 256], // a byte's id inside a word
    last: [u32; 256],  // a byte's id at its end
    symbols: u32,
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

impl Merges {
    /// Read the text of a vocabulary file: one line of header, then a merge a line, the most frequent first.
    pub fn new(vocabulary: &str) -> Result<Self> {
        let characters = byte_characters();
        let (mut inner, mut last) = ([0; 256], [0; 256]);
        // Every symbol stands in one string, which the map borrows: 49,000 small allocations would double the time.
        let mut text = String::new();
        memory::reserve_string(&mut text, vocabulary.len() + 4096)?;
        let mut symbols: Vec<(std::ops::Range<usize>, u32)> = Vec::new();
        memory::reserve(&mut symbols, 512 + MERGES)?;
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
        let mut lines: Vec<&str> = Vec::new();
        memory::reserve(&mut lines, MERGES)?;
        lines.extend(vocabulary.split('\n').skip(1).take(MERGES));
        let mut parts: Vec<(u32, &str, &str)> = Vec::new();
        memory::reserve(&mut parts, lines.len())?;
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
        let mut ids: FxHashMap<&str, u32> = FxHashMap::default();
        memory::reserve_map(&mut ids, symbols.len())?;
        for (range, id) in &symbols {
            ids.insert(&text[range.clone()], *id);
        }
        let repeated = ids.len() < symbols.len();
        let mut merges = FxHashMap::default();
        memory::reserve_map(&mut merges, parts.len())?;
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
        Ok(Self {
            by_pair: merges,
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

    /// The same merges in O(n log n): a word of 10,000 letters is legal. All places of the best pair are merged, from
    /// left to right, before a pair that this makes is looked at, as scanning does it.
    fn merge_by_heap(&self, scratch: &mut MergeScratch, ids: &mut Vec<u32>) {
        let MergeScratch {
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
