//! BMP, and the same without its file header (DIB), with the levels that Pillow gives its pixels.
//!
//! A reader of our own: crates round levels of 5 and 6 bits otherwise, and refuse headers that Pillow reads (several planes, a
//! pixel offset of 0 or one that leaves out the palette, top-down run lengths, a last row without padding). Read beyond
//! Pillow: any masks of colours, 2 bits a pixel, run lengths whose end comes early.

use super::format::{check_size, damaged, Stored};
use super::{Limits, Rgb};
use crate::error::{Error, Result};
use crate::memory;

/// What the headers say.
struct Header {
    width: usize,
    height: usize,
    /// The first row stored is the top one.
    top_down: bool,
    bits: usize,
    /// Values of [`RAW`] and the others.
    compression: usize,
    /// Masks of red, green and blue.
    masks: [u32; 3],
    /// Colours of the palette, blue first, and bytes of each.
    palette: Vec<[u8; 3]>,
    /// Where the pixels begin.
    offset: usize,
}

const RAW: usize = 0;
const RLE8: usize = 1;
const RLE4: usize = 2;
const FIELDS: usize = 3;

fn bad(what: impl std::fmt::Display) -> Error {
    damaged("BMP", what)
}

fn cut_short() -> Error {
    bad("the file is cut short: it ends before the picture does")
}

/// Whether the bytes begin as a BMP file's second header does: its length, and one of the depths.
pub(super) fn is_dib(data: &[u8]) -> bool {
    let depth = |at: usize| {
        data.get(at..at + 2)
            .is_some_and(|bits| matches!(bits, [1 | 4 | 8 | 16 | 24 | 32, 0]))
    };
    match data {
        [12, 0, 0, 0, ..] => depth(10),
        [40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0, ..] => depth(14),
        _ => false,
    }
}

/// A BMP or DIB file: palettes, masks and run lengths as RGB, alpha dropped.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let header = read_header(data)?;
    let Header { width, height, .. } = header;
    let indexed = header.bits <= 8;
    check_size("BMP", width, height, if indexed { 4 } else { 3 }, limits)?;
    let mut pixels: Vec<u8> = memory::zeros(width * height * 3)?;
    match header.compression {
        RLE8 | RLE4 if indexed => {
            let indices = run_lengths(data, &header)?;
            for (row, stored) in indices.chunks_exact(width).enumerate() {
                let out = header.row_of(row, &mut pixels);
                for (out, &index) in out.chunks_exact_mut(3).zip(stored) {
                    out.copy_from_slice(&header.color(usize::from(index)));
                }
            }
        }
        RAW | FIELDS => {
            let stride = (width * header.bits).div_ceil(32) * 4;
            let stored = data.get(header.offset..).unwrap_or_default();
            // The last row's padding may be missing.
            if stored.len() < stride * (height - 1) + (width * header.bits).div_ceil(8) {
                return Err(cut_short());
            }
            for (row, stored) in stored.chunks(stride).take(height).enumerate() {
                let out = header.row_of(row, &mut pixels);
                header.row_to_rgb(stored, out);
            }
        }
        other => {
            return Err(bad(format_args!(
                "compression {other} at {} bits a pixel is not supported",
                header.bits
            )))
        }
    }
    let image = Rgb {
        width,
        height,
        pixels,
    };
    Ok(Stored {
        image,
        orientation: 1,
        eighths: 8,
    })
}

impl Header {
    /// The row of the picture that is stored as number `row`.
    fn row_of<'p>(&self, row: usize, pixels: &'p mut [u8]) -> &'p mut [u8] {
        let y = if self.top_down {
            row
        } else {
            self.height - 1 - row
        };
        &mut pixels[y * self.width * 3..][..self.width * 3]
    }

    /// A colour of the palette; an index past it is black.
    fn color(&self, index: usize) -> [u8; 3] {
        self.palette.get(index).copied().unwrap_or_default()
    }

    fn row_to_rgb(&self, stored: &[u8], out: &mut [u8]) {
        let out = out.chunks_exact_mut(3);
        match self.bits {
            bits @ ..=8 => {
                for (x, out) in out.enumerate() {
                    let bit = x * bits;
                    let index = stored[bit / 8] >> (8 - bits - bit % 8) & (0xff >> (8 - bits));
                    out.copy_from_slice(&self.color(usize::from(index)));
                }
            }
            bits => {
                for (out, stored) in out.zip(stored.chunks_exact(bits / 8)) {
                    let value = stored
                        .iter()
                        .rev()
                        .fold(0, |sum, &byte| sum << 8 | u32::from(byte));
                    for (out, mask) in out.iter_mut().zip(self.masks) {
                        // Rounded down, as Pillow does.
                        let largest = u64::from(mask >> mask.trailing_zeros().min(31));
                        let level = u64::from((value & mask) >> mask.trailing_zeros().min(31));
                        *out = (level * 255 / largest.max(1)) as u8;
                    }
                }
            }
        }
    }
}

fn read_header(data: &[u8]) -> Result<Header> {
    let start = if data.starts_with(b"BM") { 14 } else { 0 };
    let number = |at: usize, size: usize| {
        let bytes = data.get(at..at + size).ok_or_else(cut_short)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    };
    let field = |at: usize, size: usize| number(start + at, size);
    let length = field(0, 4)?;
    let end = start + length;
    let (width, height, bits, compression, colors, padding) = match length {
        12 => (field(4, 2)?, field(6, 2)?, field(10, 2)?, RAW, 0, 3),
        40 | 52 | 56 | 64 | 108 | 124 => (
            field(4, 4)?,
            field(8, 4)?,
            field(14, 2)?,
            field(16, 4)?,
            field(32, 4)?,
            4,
        ),
        _ => {
            return Err(bad(format_args!(
                "a header of {length} bytes is not supported"
            )))
        }
    };
    if end > data.len() {
        return Err(cut_short());
    }
    // A negative height, as Pillow knows it.
    let top_down = length > 12 && height >> 24 == 0xff;
    let height = if top_down { (1 << 32) - height } else { height };
    if !matches!(bits, 1 | 2 | 4 | 8 | 16 | 24 | 32) {
        return Err(bad(format_args!("{bits} bits a pixel are not supported")));
    }
    let mut masks = if bits == 16 {
        [0x7c00, 0x3e0, 0x1f]
    } else {
        [0xff_0000, 0xff00, 0xff]
    };
    let mut behind = end;
    if compression == FIELDS {
        if bits <= 8 {
            return Err(bad(format_args!(
                "masks of colours at {bits} bits a pixel are not supported"
            )));
        }
        // They stand in longer headers, and behind one of 40 bytes.
        let mut given = [0; 3];
        for (place, mask) in given.iter_mut().enumerate() {
            *mask = field(40 + 4 * place, 4)? as u32;
        }
        behind = behind.max(start + 52);
        if given != [0; 3] {
            masks = given;
        }
    }
    let colors = if colors == 0 {
        1 << bits.min(16)
    } else {
        colors
    };
    let mut palette = Vec::new();
    if bits <= 8 {
        if colors > 1 << 16 {
            return Err(bad(format_args!("declares a palette of {colors} colours")));
        }
        let stored = &data[behind.min(data.len())..];
        palette.extend(
            stored
                .chunks_exact(padding)
                .take(colors.min(256))
                .map(|color| [color[2], color[1], color[0]]),
        );
        behind += padding * colors;
        // With levels of grey, each at its own index, Pillow takes every index for its level.
        let grey = |(index, color): (usize, &[u8; 3])| *color == [index as u8; 3];
        if colors > 2 && palette.iter().enumerate().all(grey) {
            palette.extend((palette.len()..256).map(|index| [index as u8; 3]));
        }
    }
    let offset = match start {
        0 => 0,
        _ => number(10, 4)?,
    };
    // Some writers give no offset, or one that leaves the palette out.
    let offset = if offset == 0 || (offset == end && bits <= 8) {
        behind
    } else {
        offset
    };
    Ok(Header {
        width,
        height,
        top_down,
        bits,
        compression,
        masks,
        palette,
        offset,
    })
}

/// The indices of a picture of run lengths, row by row as stored. Pixels that runs leave out are 0.
fn run_lengths(data: &[u8], header: &Header) -> Result<Vec<u8>> {
    let (width, four) = (header.width, header.compression == RLE4);
    let mut indices: Vec<u8> = memory::zeros(width * header.height)?;
    let (mut at, mut x, mut place) = (header.offset, 0, 0);
    // Of a byte that holds one index or two.
    let index_in = |byte: u8, index: usize| match four {
        true if index.is_multiple_of(2) => byte >> 4,
        true => byte & 15,
        false => byte,
    };
    while place < indices.len() {
        let &[count, what] = data
            .get(at..at + 2)
            .and_then(|pair| pair.first_chunk())
            .ok_or_else(cut_short)?;
        at += 2;
        match (usize::from(count), what) {
            (0, 0) => {
                place = place.next_multiple_of(width);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let &[right, down] = data
                    .get(at..at + 2)
                    .and_then(|pair| pair.first_chunk())
                    .ok_or_else(cut_short)?;
                at += 2;
                place = indices
                    .len()
                    .min(place + usize::from(right) + usize::from(down) * width);
                x = place % width;
            }
            (0, count) => {
                let count = usize::from(count);
                let here = count.min(indices.len() - place);
                let bytes = if four { here.div_ceil(2) } else { here };
                let stored = data.get(at..at + bytes).ok_or_else(cut_short)?;
                for (index, out) in indices[place..place + here].iter_mut().enumerate() {
                    *out = index_in(stored[if four { index / 2 } else { index }], index);
                }
                place += here;
                x += count;
                // To an even place in the file, as Pillow counts.
                at = (at + bytes).next_multiple_of(2);
            }
            (count, _) => {
                // What does not fit the row is dropped.
                let here = count
                    .min(width.saturating_sub(x))
                    .min(indices.len() - place);
                for (index, out) in indices[place..place + here].iter_mut().enumerate() {
                    *out = index_in(what, index);
                }
                place += here;
                x += here;
            }
        }
    }
    Ok(indices)
}
