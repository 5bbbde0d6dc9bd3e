//! Fax codes (CCITT groups 3 and 4) to rows of bits, of which a 1 is black. The crate `fax` has the code tables; its decoders
//! lack the two-dimensional group 3 and rows without end marks.

use std::convert::Infallible;

use fax::maps::{black, mode, white, Mode};
use fax::BitReader;

use super::error::{bad, cut_short};
use crate::error::{Error, Result};
use crate::memory;

/// How rows follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Every row in runs, from a new byte on (compression 2).
    Runs,
    /// Rows in runs behind an end mark (3).
    Group3,
    /// The same, where a bit says whether a row is coded by the one above.
    Group3Both,
    /// Every row by the one above (4).
    Group4,
}

struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl BitReader for Bits<'_> {
    type Error = Infallible;

    /// Zeros behind the end.
    fn peek(&self, bits: u8) -> Option<u16> {
        let byte =
            |index: usize| u32::from(self.data.get(self.at / 8 + index).copied().unwrap_or(0));
        let window = byte(0) << 16 | byte(1) << 8 | byte(2);
        Some((window << (8 + self.at % 8) >> (32 - u32::from(bits.clamp(1, 16)))) as u16)
    }

    fn consume(&mut self, bits: u8) -> std::result::Result<(), Infallible> {
        self.at += usize::from(bits);
        Ok(())
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        (self.at.next_multiple_of(8) - self.at) as u8
    }
}

fn damaged() -> Error {
    bad("damaged: fax codes that no table has")
}

/// Positions at which a row changes its colour, the first to black; strictly rising, but that the first may be 0.
type Changes = Vec<usize>;

/// Decodes rows of `width` bits into `out`, `stride` bytes each, which is all 0. Rows after an early end stay white.
pub fn decode(
    data: &[u8],
    coding: Coding,
    width: usize,
    stride: usize,
    out: &mut [u8],
) -> Result<()> {
    let mut bits = Bits { data, at: 0 };
    let (mut above, mut row) = (Changes::new(), Changes::new());
    for out in out.chunks_exact_mut(stride) {
        row.clear();
        let by_row_above = match coding {
            Coding::Group4 => true,
            Coding::Runs => false,
            Coding::Group3 | Coding::Group3Both => {
                if !bits.find_row() {
                    return Ok(());
                }
                let by_row_above = coding == Coding::Group3Both && bits.peek(1) == Some(0);
                bits.at += usize::from(coding == Coding::Group3Both);
                by_row_above
            }
        };
        if by_row_above {
            if !bits.row_by(&above, width, &mut row)? {
                return Ok(());
            }
        } else {
            bits.row_of_runs(width, &mut row)?;
        }
        if coding == Coding::Runs {
            bits.at = bits.at.next_multiple_of(8);
        }
        if bits.at > data.len() * 8 {
            return Err(cut_short());
        }
        for run in row.chunks(2) {
            set(out, run[0], run.get(1).copied().unwrap_or(width).min(width));
        }
        std::mem::swap(&mut above, &mut row);
    }
    Ok(())
}

impl Bits<'_> {
    /// Goes behind the next end mark; false where nothing or another end mark follows: the end of the picture.
    fn find_row(&mut self) -> bool {
        while self.at < self.data.len() * 8 {
            if self.peek(12) == Some(1) {
                self.at += 12;
                return self.peek(12) != Some(1);
            }
            self.at += 1;
        }
        false
    }

    /// A run's length.
    fn run(&mut self, is_black: bool) -> Result<usize> {
        let mut length = 0;
        loop {
            let code = if is_black {
                black::decode(self)
            } else {
                white::decode(self)
            };
            let code = usize::from(code.ok_or_else(damaged)?);
            length += code;
            if code < 64 {
                return Ok(length);
            }
            if self.at > self.data.len() * 8 {
                return Err(cut_short());
            }
        }
    }

    fn row_of_runs(&mut self, width: usize, row: &mut Changes) -> Result<()> {
        let (mut at, mut is_black) = (0, false);
        while at < width {
            at += self.run(is_black)?;
            is_black = !is_black;
            change(row, at)?;
            if self.at > self.data.len() * 8 {
                return Err(cut_short());
            }
        }
        Ok(())
    }

    /// A row that is coded by the one above; false at the end of the picture.
    fn row_by(&mut self, above: &Changes, width: usize, row: &mut Changes) -> Result<bool> {
        // Before the first pixel at first, so that a change at 0 lies to the right.
        let (mut at, mut is_black) = (None, false);
        let mut next = 0;
        while at.is_none_or(|at| at < width) {
            // The change above, to the right, to the other colour.
            let right = |position: usize| at.is_none_or(|at| position > at);
            while next > 0 && right(above[next - 1]) {
                next -= 1;
            }
            while next < above.len() && !(right(above[next]) && (next % 2 == 1) == is_black) {
                next += 1;
            }
            let above_at = |index: usize| above.get(index).copied().unwrap_or(width).min(width);
            match mode::decode(self).ok_or_else(damaged)? {
                Mode::Pass => at = Some(above_at(next + 1)),
                Mode::Vertical(by) => {
                    let to = above_at(next).checked_add_signed(isize::from(by));
                    let to = to.filter(|&to| to >= at.unwrap_or(0)).ok_or_else(damaged)?;
                    change(row, to)?;
                    at = Some(to);
                    is_black = !is_black;
                }
                Mode::Horizontal => {
                    let first = at.unwrap_or(0) + self.run(is_black)?;
                    let second = first + self.run(!is_black)?;
                    change(row, first)?;
                    change(row, second)?;
                    at = Some(second);
                }
                Mode::EOF => return Ok(false),
                Mode::Extension => {
                    return Err(bad("fax codes with uncompressed parts are not supported"))
                }
            }
            if self.at > self.data.len() * 8 {
                return Err(cut_short());
            }
        }
        Ok(true)
    }
}

/// Adds a change of colour; one where the last was is none.
fn change(row: &mut Changes, at: usize) -> Result<()> {
    if row.last() == Some(&at) {
        row.pop();
        return Ok(());
    }
    memory::reserve(row, 1)?;
    row.push(at);
    Ok(())
}

/// Sets the bits from `begin` up to `end`.
fn set(out: &mut [u8], begin: usize, end: usize) {
    if begin >= end {
        return;
    }
    let (first, last) = (begin / 8, (end - 1) / 8);
    let (head, tail) = (0xff >> (begin % 8), !(0x7f >> ((end - 1) % 8)));
    if first == last {
        out[first] |= head & tail;
    } else {
        out[first] |= head;
        out[first + 1..last].fill(0xff);
        out[last] |= tail;
    }
}
