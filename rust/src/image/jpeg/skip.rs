//! A table for skipping coefficients that are not needed, two or three with one lookup.

use super::bits::Bits;
use super::codes::{lay, Codes, Entry};

/// Bits of a lookup: two tables of 8 KiB stay in the first-level cache, beside those of single codes.
const LOOK: u32 = 12;
/// Marks of the last code that ends the block, and of a first code that is longer than [`LOOK`].
const END: u16 = 1 << 14;
const LONG: u16 = 1 << 15;

/// A table for skipping coefficients.
pub struct Skip {
    look: Box<[u16; 1 << LOOK]>,
}

/// Entry of the table: all codes that lie whole in the bits looked at (the value of the last may reach further). Bits 0 to
/// 5: length of codes and values; bits 6 to 13: coefficients that they step over; then the two marks.
#[derive(Clone, Copy)]
pub struct Run(u16);

impl Run {
    fn of(entry: Entry, _: Option<i32>) -> u16 {
        match entry.ends() {
            true => entry.total() as u16 | END,
            false => entry.total() as u16 | (entry.step() as u16) << 6,
        }
    }

    /// Bits of codes and values: at most 27, as only the last value can reach past the bits looked at.
    #[inline(always)]
    pub fn total(self) -> u32 {
        u32::from(self.0 & 63)
    }

    /// Coefficients stepped over, at most 192; at least 256 where the run is marked.
    #[inline(always)]
    pub fn steps(self) -> usize {
        usize::from(self.0 >> 6)
    }

    /// The position of the block's last coefficient, if the run ends the block; `next` is that of the last before the
    /// run and the steps together.
    #[inline(always)]
    pub fn end(self, next: usize) -> Option<usize> {
        let end = next.wrapping_sub(usize::from(END >> 6));
        (end < 63).then_some(end)
    }
}

impl Skip {
    /// From the table of single codes.
    pub fn new(table: &Codes) -> Skip {
        let mut runs = vec![0; 2 << LOOK];
        for known in 1..=LOOK {
            let (fewer, more) = runs.split_at_mut(1 << known);
            lay(table, known, &mut more[..1 << known], fewer, Run::of);
        }
        let mut look = Box::new([0; 1 << LOOK]);
        look.copy_from_slice(&runs[1 << LOOK..]);
        for run in look.iter_mut().filter(|run| **run == 0) {
            *run = LONG;
        }
        Skip { look }
    }

    /// The run that the next bits begin, which stay.
    #[inline(always)]
    pub fn look(&self, bits: &Bits<'_>) -> Run {
        Run(self.look[bits.peek(LOOK) & ((1 << LOOK) - 1)])
    }
}
