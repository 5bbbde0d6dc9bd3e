//! Pillow's two-pass resampling, of the needed pixels only, a finished row at a time.
//!
//! Across and down with rounding to 8 bits between, as Pillow does it; only pixels that the crop needs are computed.
//! Weights have 16 bits (`weights.rs`): levels are Pillow's but for a few in a thousand, which are off by one. Pillow
//! before 13 goes across first but for very tall pictures, which can differ by a level or two.

use super::geometry::Geometry;
use super::weights::{Interpolation, Weights};
use super::Rgb;

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
pub(super) fn place(layout: Layout, width: usize, x: usize, channel: usize) -> usize {
    match layout {
        Layout::Packed => x * 3 + channel,
        Layout::Planes => channel * pitch(width) + x,
    }
}

/// Buffers that a thread keeps between pictures.
#[derive(Default)]
pub struct Scratch {
    /// The picture after the first pass.
    pub(super) between: Vec<u8>,
    /// Eight rows of the source of a pass across, in the form that it reads.
    pub(super) tile: Vec<[u32; 8]>,
    /// Finished rows.
    pub(super) lines: Vec<u8>,
}

/// The part of a picture that is resized, and by which weights.
pub(super) struct Passes<'a> {
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

/// Resizes and crops to `size` (columns, rows); `row` gets each row of the result in turn, in the layout asked for.
///
/// A row holds at least `3 * pitch(columns)` levels; what the layout has no use for is of any value.
pub fn resize(
    image: &Rgb,
    geometry: &Geometry,
    size: (usize, usize),
    kernel: Interpolation,
    layout: Layout,
    scratch: &mut Scratch,
    row: &mut dyn FnMut(usize, &[u8]),
) {
    let Geometry {
        source,
        resized,
        left,
        top,
        flip,
    } = *geometry;
    let (x, y) = geometry.stretches();
    let across = Weights::new(x, resized.0, left, size.0, kernel, flip);
    let down = Weights::new(y, resized.1, top, size.1, kernel, false);
    // Pillow's choice since version 13 (found by experiment): down first for tall pictures.
    let shorter = source.height - resized.1 as f64;
    let narrower = source.width - resized.0 as f64;
    let stride = image.width * 3;
    let passes = Passes {
        source: &image.pixels[down.first * stride + across.first * 3..],
        stride,
        across,
        down,
        down_first: shorter > 0.0 && shorter > 2.0 * narrower,
        layout,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return super::resize_v3::run(simd, &passes, scratch, row);
    }
    portable(&passes, scratch, row);
}

/// Whatever the compiler makes of plain loops.
pub(super) fn portable(
    passes: &Passes<'_>,
    scratch: &mut Scratch,
    row: &mut dyn FnMut(usize, &[u8]),
) {
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
    lines.resize(long, 0);
    if passes.down_first {
        between.resize(count, 0);
        for (y, (begin, weights)) in down.iter().enumerate() {
            down_row(&source[begin * stride..], *stride, weights, down, between);
            across_row(between, across, *layout, lines);
            row(y, lines);
        }
    } else {
        between.resize(long * down.used, 0);
        for (source, out) in source.chunks(*stride).zip(between.chunks_exact_mut(long)) {
            across_row(&source[..count], across, *layout, out);
        }
        for (y, (begin, weights)) in down.iter().enumerate() {
            down_row(&between[begin * long..], long, weights, down, lines);
            row(y, lines);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::geometry::{Area, Fit};
    use super::*;
    use crate::image::augment::mix;

    fn packed(image: &Rgb, geometry: &Geometry, size: (usize, usize)) -> Vec<u8> {
        let mut out = Vec::new();
        let mut scratch = Scratch::default();
        let kernel = Interpolation::Bicubic;
        let mut row = |y: usize, row: &[u8]| {
            assert_eq!(y * size.0 * 3, out.len());
            out.extend_from_slice(&row[..size.0 * 3]);
        };
        resize(
            image,
            geometry,
            size,
            kernel,
            Layout::Packed,
            &mut scratch,
            &mut row,
        );
        out
    }

    #[test]
    fn one_colour_stays() {
        let image = Rgb {
            width: 9,
            height: 5,
            pixels: [10_u8, 128, 250].repeat(45),
        };
        let out = packed(&image, &Geometry::centre(9, 5, 7, Fit::Crop), (7, 7));
        assert_eq!(out, [10_u8, 128, 250].repeat(49));
    }

    #[test]
    fn same_size_is_identity_and_flip_mirrors() {
        let image = Rgb {
            width: 4,
            height: 4,
            pixels: (0..48).collect(),
        };
        let whole = Area {
            left: 0,
            top: 0,
            width: 4,
            height: 4,
        };
        let out = packed(&image, &Geometry::part(whole, 4, false), (4, 4));
        assert_eq!(out, image.pixels);
        let out = packed(&image, &Geometry::part(whole, 4, true), (4, 4));
        assert_eq!(&out[..6], &[9, 10, 11, 6, 7, 8]);
    }

    #[test]
    fn vector_instructions_and_plain_loops_agree_to_the_bit() {
        #[cfg(target_arch = "x86_64")]
        for seed in 0..200_u64 {
            let Some(simd) = pulp::x86::V3::try_new() else {
                return;
            };
            let draw = |k: u64, most: u64| 1 + (mix(seed * 64 + k) % most) as usize;
            let most = [4, 20, 90][seed as usize % 3];
            let (width, height) = (draw(0, most), draw(1, most));
            let (columns, rows) = (draw(2, 40), draw(3, 40));
            let pixels = (0..width * height * 3).map(|k| mix(seed << 32 | k as u64) as u8);
            let pixels: Vec<u8> = pixels.collect();
            let (x, y) = Geometry::whole(width, height, (columns, rows)).stretches();
            // Every part of the result, mirrored or not, in either order and layout.
            let (skip, flip) = (seed as usize % columns.min(rows), seed % 2 == 0);
            let kernel = [Interpolation::Bicubic, Interpolation::Bilinear][seed as usize / 3 % 2];
            let across = Weights::new(x, columns, skip, columns - skip, kernel, flip);
            let down = Weights::new(y, rows, skip, rows - skip, kernel, false);
            let passes = Passes {
                source: &pixels[(down.first * width + across.first) * 3..],
                stride: width * 3,
                across,
                down,
                down_first: seed % 5 < 2,
                layout: [Layout::Packed, Layout::Planes][seed as usize / 7 % 2],
            };
            let mut results = [vec![], vec![]];
            let columns = columns - skip;
            for (vector, result) in [true, false].into_iter().zip(&mut results) {
                // What was in the buffers before must not matter.
                let mut scratch = Scratch::default();
                scratch.between.resize(100_000, 7 + seed as u8);
                scratch.tile.resize(1000, [u32::MAX; 8]);
                let mut row = |_: usize, row: &[u8]| {
                    for x in 0..columns {
                        result.extend((0..3).map(|c| row[place(passes.layout, columns, x, c)]));
                    }
                };
                if vector {
                    crate::image::resize_v3::run(simd, &passes, &mut scratch, &mut row);
                } else {
                    portable(&passes, &mut scratch, &mut row);
                }
            }
            assert_eq!(results[0].len(), columns * (rows - skip) * 3);
            assert!(results[0] == results[1], "seed {seed}");
        }
    }
}
