//! The word cache: the token ids of words that were encoded before.
//!
//! Captions have few distinct words (Flickr8k: 9,000 in 480,000). Nearly every word has at most sixteen bytes and three
//! tokens; it is looked up with one probe of a table of 32-byte entries. Other words are in a hash map. Both tables are
//! bounded. A cache belongs to one thread at a time.

use rustc_hash::FxHashMap;

use super::row::{Row, TokenId};
use super::scan;
use crate::error::Result;
use crate::memory;

const SHORT_BYTES: usize = 16;
const SHORT_IDS: usize = 3;
const FIRST_SLOTS: usize = 1 << 10;
const LAST_SLOTS: usize = 1 << 16;
const PROBES: usize = 8;
const LONG_WORDS: usize = 1 << 14;
const LONG_BYTES: usize = 256;

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Entry {
    key: u128,
    ids: [u32; SHORT_IDS],
    count: u32, // 0: the slot is free
}

/// Token ids by word.
pub struct WordCache {
    short: Vec<Entry>,
    used: usize,
    long: FxHashMap<Box<[u8]>, Box<[u32]>>,
    ids: Vec<u32>,
}

impl Default for WordCache {
    fn default() -> Self {
        Self {
            short: vec![Entry::default(); FIRST_SLOTS],
            used: 0,
            long: FxHashMap::default(),
            ids: Vec::new(),
        }
    }
}

/// A slot number for a key: a folded 64×64-bit product, as in wyhash.
#[inline(always)]
fn slot_of(key: u128, slots: usize) -> usize {
    let product = u128::from(key as u64 ^ 0x9e37_79b9_7f4a_7c15)
        * u128::from((key >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03);
    (product as u64 ^ (product >> 64) as u64) as usize & (slots - 1)
}

impl WordCache {
    /// Make room for the ids of a word of `length` bytes, at most one per byte.
    pub fn reserve(&mut self, length: usize) -> Result<()> {
        self.ids.clear();
        memory::reserve(&mut self.ids, length)
    }

    /// Append the ids of a word given by its key (see `scan::key`); `compute` makes them if the cache lacks the word.
    #[inline(always)]
    pub fn emit_key<T: TokenId>(
        &mut self,
        key: u128,
        length: usize,
        row: &mut Row<'_, T>,
        compute: impl FnOnce(&[u8], &mut Vec<u32>),
    ) {
        let home = slot_of(key, self.short.len());
        let entry = &self.short[home];
        if entry.key == key {
            row.push_short(&entry.ids, entry.count as usize);
            return;
        }
        self.emit_displaced(home, key, length, row, compute);
    }

    /// Append the ids of any word.
    pub fn emit<T: TokenId>(
        &mut self,
        word: &[u8],
        row: &mut Row<'_, T>,
        compute: impl FnOnce(&[u8], &mut Vec<u32>),
    ) {
        // A word that ends in zero bytes would have the key of a shorter word.
        if word.len() <= SHORT_BYTES && !word.contains(&0) {
            self.emit_key(scan::key(word), word.len(), row, compute);
        } else {
            self.emit_long(word, None, row, compute);
        }
    }

    #[inline(never)]
    fn emit_displaced<T: TokenId>(
        &mut self,
        home: usize,
        key: u128,
        length: usize,
        row: &mut Row<'_, T>,
        compute: impl FnOnce(&[u8], &mut Vec<u32>),
    ) {
        for step in 1..PROBES {
            let entry = &self.short[(home + step) & (self.short.len() - 1)];
            if entry.key == key {
                row.push_short(&entry.ids, entry.count as usize);
                return;
            }
        }
        let bytes = key.to_le_bytes();
        self.emit_long(&bytes[..length], Some(key), row, compute);
    }

    fn emit_long<T: TokenId>(
        &mut self,
        word: &[u8],
        key: Option<u128>,
        row: &mut Row<'_, T>,
        compute: impl FnOnce(&[u8], &mut Vec<u32>),
    ) {
        if let Some(ids) = self.long.get(word) {
            row.push_all(ids);
            return;
        }
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        compute(word, &mut ids);
        row.push_all(&ids);
        match key {
            Some(key) if (1..=SHORT_IDS).contains(&ids.len()) => self.insert(key, &ids),
            _ if word.len() <= LONG_BYTES => {
                if self.long.len() >= LONG_WORDS || memory::reserve_map(&mut self.long, 1).is_err()
                {
                    self.long.clear();
                }
                self.long.insert(word.into(), ids.as_slice().into());
            }
            _ => {}
        }
        self.ids = ids;
    }

    fn insert(&mut self, key: u128, ids: &[u32]) {
        let mut larger = Vec::new();
        // If there is no memory for a larger table, the present one is kept.
        if self.used * 2 >= self.short.len()
            && self.short.len() < LAST_SLOTS
            && memory::resize(&mut larger, self.short.len() * 4, Entry::default()).is_ok()
        {
            let entries = std::mem::replace(&mut self.short, larger);
            self.used = 0;
            for entry in entries.into_iter().filter(|entry| entry.count > 0) {
                self.place(entry);
            }
        }
        let mut entry = Entry {
            key,
            ids: [0; SHORT_IDS],
            count: ids.len() as u32,
        };
        entry.ids[..ids.len()].copy_from_slice(ids);
        self.place(entry);
    }

    fn place(&mut self, entry: Entry) {
        let slots = self.short.len();
        let home = slot_of(entry.key, slots);
        for step in 0..PROBES {
            let slot = &mut self.short[(home + step) & (slots - 1)];
            if slot.count == 0 {
                *slot = entry;
                self.used += 1;
                return;
            }
        }
        // All probed slots are taken: the new word replaces the first one.
        self.short[home] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_answers_as_the_computation_does_and_stays_bounded() {
        let mut cache = WordCache::default();
        let compute = |word: &[u8], ids: &mut Vec<u32>| {
            ids.extend(word.iter().take(5).map(|&byte| u32::from(byte)))
        };
        for round in 0..2 {
            for number in 0..200_000u32 {
                let word = format!(
                    "{}{}",
                    if number % 7 == 0 {
                        "averyverylongprefix"
                    } else {
                        ""
                    },
                    number * 7919
                );
                let (mut found, mut expected) = ([0i64; 12], Vec::new());
                compute(word.as_bytes(), &mut expected);
                let mut row = Row::new(&mut found);
                cache.emit(word.as_bytes(), &mut row, compute);
                let count = row.used();
                let expected: Vec<i64> = expected.into_iter().map(i64::from).collect();
                assert_eq!(
                    &found[..count],
                    expected.as_slice(),
                    "round {round}, {word}"
                );
            }
        }
        assert!(cache.short.len() <= LAST_SLOTS && cache.long.len() <= LONG_WORDS);
    }

    #[test]
    fn zero_bytes_are_part_of_a_word() {
        let mut cache = WordCache::default();
        let count = |word: &[u8], ids: &mut Vec<u32>| ids.push(word.len() as u32);
        let mut found = [0i64; 12];
        let mut row = Row::new(&mut found);
        for word in [b"a".as_slice(), b"a\0", b"a\0\0", b"a", b"a\0"] {
            cache.emit(word, &mut row, count);
        }
        assert_eq!(&found[..5], [1, 2, 3, 1, 2]);
    }
}
