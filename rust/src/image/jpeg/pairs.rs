//! A table for decoding two coefficients with one lookup.
//!
//! The next lookup depends on the total code length alone; positions and values are stored straight from the entry, without
//! a branch.

use super::bits::Bits;
use super::codes::{lay, Codes, Entry};

/// Bits of a lookup: the used part of two tables of 16 KiB stays in the first-level cache.
const LOOK: u32 = 12;
/// Marks of a code that ends the block, and of bits that the table has no entry for.
const MARK: u32 = 1 << 17;
const LONG: u32 = MARK | 63 << 11;

/// A table for decoding two coefficients at a time.
pub struct Pairs {
    look: Box<[u32; 1 << LOOK]>,
}

/// Entry of the table: one coefficient or two that lie whole in the bits looked at, or the code that ends the block after
/// one or none. From bit 0 on: the length of all codes and values (6 bits, as shifts take them), the steps of the first (5) and of
/// both (6), the mark (1), the second value (6) and the first (8).
///
/// Sixteen zeros count as a coefficient of 0. A missing second coefficient is a 0 at the place of the first. A first code
/// that is longer than the bits looked at, or whose value is large, has no entry.
#[derive(Clone, Copy)]
pub struct Pair(u32);

/// A value in so many bits, where it is there and fits.
fn field(value: Option<i32>, bits: u32) -> Option<u32> {
    let value = value?;
    let half = 1 << (bits - 1);
    (-half..half)
        .contains(&value)
        .then_some(value as u32 & ((1 << bits) - 1))
}

/// A first coefficient and a second one, whose sum is a pair; 0 for what is not held.
fn as_first(entry: Entry, value: Option<i32>) -> u32 {
    if entry.ends() {
        return entry.total() | MARK;
    }
    let step = entry.step() as u32;
    field(value, 8).map_or(0, |value| {
        entry.total() | step << 6 | step << 11 | value << 24
    })
}

fn as_second(entry: Entry, value: Option<i32>) -> u32 {
    if entry.ends() {
        return entry.total() | MARK;
    }
    let step = entry.step() as u32;
    field(value, 6).map_or(0, |value| entry.total() | step << 11 | value << 18)
}

impl Pair {
    /// Bits of all codes and values, at most 12.
    #[inline(always)]
    pub fn total(self) -> u32 {
        self.0 & 63
    }

    /// Steps of both; at least 64 where the pair is marked.
    #[inline(always)]
    pub fn steps(self) -> usize {
        (self.0 >> 11 & 127) as usize
    }

    /// Steps of the first, 0 where there is none.
    #[inline(always)]
    pub fn step(self) -> usize {
        (self.0 >> 6 & 31) as usize
    }

    /// Whether the block ends after the first coefficient, or with none.
    #[inline(always)]
    pub fn ends(self) -> bool {
        self.0 & MARK != 0 && self.0 & LONG != LONG
    }

    /// The first value.
    #[inline(always)]
    pub fn first(self) -> i16 {
        (self.0 as i32 >> 24) as i16
    }

    /// The second value.
    #[inline(always)]
    pub fn second(self) -> i16 {
        ((self.0 << 8) as i32 >> 26) as i16
    }
}

impl Pairs {
    /// From the table of single codes.
    pub fn new(table: &Codes) -> Pairs {
        let mut seconds = vec![0; 1 << LOOK];
        for known in 1..LOOK {
            let all = 1 << known..2 << known;
            lay(table, known, &mut seconds[all], &[], as_second);
        }
        let mut look = Box::new([0; 1 << LOOK]);
        lay(table, LOOK, &mut look[..], &seconds, as_first);
        for pair in look.iter_mut().filter(|pair| **pair == 0) {
            *pair = LONG;
        }
        Pairs { look }
    }

    /// The pair that the next bits begin, which stay.
    #[inline(always)]
    pub fn look(&self, bits: &Bits<'_>) -> Pair {
        Pair(self.look[bits.peek(LOOK) & ((1 << LOOK) - 1)])
    }
}
