//! What several codes come to together: for coefficients that nobody reads, at two or three of them a look.

use super::bits::Bits;
use super::huffman::{Entry, Table};

/// Bits looked at at once: two tables of 8 KiB stay in the first-level cache, beside those of single codes.
const LOOK: u32 = 12;
/// Marks of the last code that ends the block, and of a first code that is longer than [`LOOK`].
const END: u16 = 1 << 14;
const LONG: u16 = 1 << 15;

/// A table for passing over coefficients.
pub struct Skip {
    look: Box<[u16; 1 << LOOK]>,
}

/// What one look found, of all codes that lie in it whole (the value of the last may reach further): bits 0 to 5 the
/// length of codes and values, bits 6 to 13 the coefficients that they step over, then the two marks.
#[derive(Clone, Copy)]
pub struct Run(u16);

impl Run {
    fn of(entry: Entry) -> Run {
        // A code without a value ends the block, but for the one of sixteen zeros.
        if entry.size() == 0 && entry.step() != 16 {
            return Run(entry.total() as u16 | END);
        }
        Run(entry.total() as u16 | (entry.step() as u16) << 6)
    }

    /// Bits of codes and values: at most 27, as only the value of the last can reach past the look.
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
    pub fn new(table: &Table) -> Skip {
        // Runs within k known bits begin at 1 << k, for every value of these bits: what lies in fewer bits is what may
        // follow a code in more. So each entry takes one addition, over whole ranges at a time.
        let mut runs = vec![0; 2 << LOOK];
        for known in 1..=LOOK {
            let (fewer, own) = runs.split_at_mut(1 << known);
            table.for_each_code(known, |code, length, entry| {
                let run = Run::of(entry).0;
                let spare = known - length;
                let own = &mut own[(code << spare) as usize..][..1 << spare];
                if run & END != 0 || entry.size() >= spare {
                    own.fill(run);
                    return;
                }
                let left = spare - entry.size();
                let rest = &fewer[1 << left..2 << left];
                for own in own.chunks_exact_mut(rest.len()) {
                    for (own, rest) in own.iter_mut().zip(rest) {
                        *own = run + rest;
                    }
                }
            });
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
