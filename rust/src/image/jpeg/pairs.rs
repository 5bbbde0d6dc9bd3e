//! Two codes at one look, with where their values lie.
//!
//! What the next look waits for is the length of it all, so that half as many looks take little more than half the time;
//! runs and values are worked out beside it, without a branch.

use super::bits::Bits;
use super::huffman::{lay, Entry, Table};

/// Bits looked at at once: two tables of 16 KiB stay in the first-level cache, or most of what is used of them.
const LOOK: u32 = 12;
/// Marks of a last code that ends the block, and of a first code that is longer than [`LOOK`].
const END: u32 = 1 << 30;
const LONG: u32 = 1 << 31;

/// A table for decoding two coefficients at a time.
pub struct Pairs {
    look: Box<[u32; 1 << LOOK]>,
}

/// What one look found: one coefficient or two, or the code that ends the block after one or none. From bit 0 on: the length of all codes and values (6 bits), that of the first code and value (5), the lengths of the two
/// values (4, 4), the steps of the first (5) and of both (6), then the two marks.
///
/// Sixteen zeros count as a coefficient of 0; a second one that is not there, as a 0 at the place of the first.
#[derive(Clone, Copy)]
pub struct Pair(u32);

/// Sums of these are pairs.
fn as_first(entry: Entry) -> u32 {
    if entry.ends() {
        return entry.total() | END;
    }
    let (total, step) = (entry.total(), entry.step() as u32);
    total | total << 6 | entry.size() << 11 | step << 19 | step << 24
}

fn as_second(entry: Entry) -> u32 {
    if entry.ends() {
        return entry.total() | END;
    }
    entry.total() | entry.size() << 15 | (entry.step() as u32) << 24
}

impl Pair {
    /// Bits of all codes and values: at most 27, as only the value of the last can reach past the look.
    #[inline(always)]
    pub fn total(self) -> u32 {
        self.0 & 63
    }

    /// Steps of both; at least 64 where the pair is marked.
    #[inline(always)]
    pub fn steps(self) -> usize {
        (self.0 >> 24) as usize
    }

    /// Whether the block ends after the first coefficient, or with none.
    #[inline(always)]
    pub fn ends(self) -> bool {
        self.0 & END != 0
    }

    /// Steps of the first, 0 where there is none.
    #[inline(always)]
    pub fn step(self) -> usize {
        (self.0 >> 19 & 31) as usize
    }

    /// The first value.
    #[inline(always)]
    pub fn first(self, bits: &Bits<'_>) -> i16 {
        bits.value(self.0 >> 6 & 31, self.0 >> 11 & 15) as i16
    }

    /// The second value.
    #[inline(always)]
    pub fn second(self, bits: &Bits<'_>) -> i16 {
        bits.value(self.total(), self.0 >> 15 & 15) as i16
    }
}

impl Pairs {
    /// From the table of single codes.
    pub fn new(table: &Table) -> Pairs {
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
