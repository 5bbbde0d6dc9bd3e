//! The two passes of a resize in plain loops, and what they share with `resize_v3.rs`: layouts, buffers, inputs.

use super::weights::Weights;
use crate::error::Result;
use crate::memory;

/// How a row of the result lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The three levels of a pixel side by side.
    Packed,
    /// All red levels, then all green, then all blue, each beginning at a multiple of [`pitch`].
    Planes,
}

/// Levels from one plane of a row to the next: rows are computed eight levels at a time.
pub const fn pitch(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// Where the level of a channel of a pixel is in a row.
#[inline(always)]
pub fn place(layout: Layout, width: usize, x: usize, channel: usize) -> usize {
    match layout {
        Layout::Packed => x * 3 + channel,
        Layout::Planes => channel * pitch(width) + x,
    }
}

/// Buffers that a thread keeps between pictures.
#[derive(Default)]
pub struct Scratch {
    /// The picture after the first pass.
    pub between: Vec<u8>,
    /// Eight rows of the source of a pass across, in the form that it reads.
    pub tile: Vec<[u32; 8]>,
    /// Finished rows.
    pub lines: Vec<u8>,
}

/// The part of a picture that is resized, and by which weights.
pub struct Passes<'a> {
    /// From the first level that is used.
    pub source: &'a [u8],
    /// Bytes from one row of `source` to the next.
    pub stride: usize,
    pub across: Weights,
    pub down: Weights,
    /// Down before across.
    pub down_first: bool,
    pub layout: Layout,
}

/// Plain loops, which the compiler vectorises where it can.
pub fn portable(
    passes: &Passes<'_>,
    scratch: &mut Scratch,
    row: &mut dyn FnMut(usize, &[u8]),
) -> Result<()> {
    let Passes {
        source,
        stride,
        across,
        down,
        layout,
        ..
    } = passes;
    let (width, count) = (across.count(), across.used * 3);
    let Scratch { between, lines, .. } = scratch;
    let long = 3 * pitch(width);
    memory::resize(lines, long, 0)?;
    if passes.down_first {
        memory::resize(between, count, 0)?;
        for (y, (begin, weights)) in down.iter().enumerate() {
            down_row(&source[begin * stride..], *stride, weights, down, between);
            across_row(between, across, *layout, lines);
            row(y, lines);
        }
    } else {
        memory::resize(between, long * down.used, 0)?;
        for (source, out) in source.chunks(*stride).zip(between.chunks_exact_mut(long)) {
            across_row(&source[..count], across, *layout, out);
        }
        for (y, (begin, weights)) in down.iter().enumerate() {
            down_row(&between[begin * long..], long, weights, down, lines);
            row(y, lines);
        }
    }
    Ok(())
}

fn to_level(sum: i32, bits: u32) -> u8 {
    (sum >> bits).clamp(0, 255) as u8
}

/// One row from as many as there are weights.
fn down_row(rows: &[u8], stride: usize, weights: &[i16], all: &Weights, out: &mut [u8]) {
    const RUN: usize = 32;
    for (index, out) in out.chunks_mut(RUN).enumerate() {
        let mut sums = [1 << all.bits >> 1; RUN];
        for (row, &weight) in rows.chunks(stride).zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(row.iter().skip(index * RUN)) {
                *sum += i32::from(weight) * i32::from(level);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = to_level(sum, all.bits);
        }
    }
}

/// One row, each pixel from as many as there are weights.
fn across_row(source: &[u8], all: &Weights, layout: Layout, out: &mut [u8]) {
    for (x, (begin, weights)) in all.iter().enumerate() {
        let mut sums = [1 << all.bits >> 1; 3];
        for (pixel, &weight) in source[begin * 3..].chunks_exact(3).zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(weight) * i32::from(level);
            }
        }
        for (channel, sum) in sums.into_iter().enumerate() {
            out[place(layout, all.count(), x, channel)] = to_level(sum, all.bits);
        }
    }
}
