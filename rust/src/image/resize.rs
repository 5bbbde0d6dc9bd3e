//! Geometry (short side, centre crop, squash) and Pillow's two-pass resampling, of the needed pixels only.
//!
//! Pillow resamples 8-bit images by weights in 22-bit fixed point, across and down with
//! rounding to 8 bits between. The same is done here, so that the result agrees to the bit; only pixels that the crop
//! needs are computed. Pillow before 13 goes across first but for very tall pictures, which can differ by a level or two.

use super::Rgb;
use crate::error::{Error, Result};
use crate::simd::vectorize;

/// Bits after the point of a weight: 32 less 8 of a sample less 2 for the overshoot of the bicubic kernel.
const PRECISION: u32 = 22;

/// The resampling kernel, widened by the scale when making smaller (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle of half-width 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, half-width 2.
    Bicubic,
}

impl Interpolation {
    fn half_width(self) -> f64 {
        match self {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Interpolation::Bilinear => (1.0 - x).max(0.0),
            Interpolation::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What becomes of a picture: `source` of it is resized to `resized`, of which the square at `left`, `top` is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The part of the picture that is resized; pixels outside it have no influence.
    pub source: Area,
    /// Width and height after resizing.
    pub resized: (usize, usize),
    /// Column of the resized picture where the square begins.
    pub left: usize,
    /// Row of the resized picture where the square begins.
    pub top: usize,
    /// Mirror left and right.
    pub flip: bool,
}

/// How a whole picture comes to the square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Short side to the size, then the centre square (torchvision's `Resize` and `CenterCrop`).
    Crop,
    /// Both sides to the size.
    Squash,
}

impl Geometry {
    /// The centre square (or all of it, squashed) of a `width` by `height` picture at `size` pixels.
    pub fn centre(width: usize, height: usize, size: usize, fit: Fit) -> Geometry {
        let source = Area {
            left: 0,
            top: 0,
            width,
            height,
        };
        if fit == Fit::Squash {
            return Geometry {
                source,
                resized: (size, size),
                left: 0,
                top: 0,
                flip: false,
            };
        }
        // Short side to `size`, the long one rounded down, as torchvision's int() does.
        let resized = if width <= height {
            (size, size * height / width)
        } else {
            (size * width / height, size)
        };
        Geometry {
            source,
            resized,
            left: half(resized.0 - size),
            top: half(resized.1 - size),
            flip: false,
        }
    }

    /// A part of the picture, squashed to the square.
    pub fn part(source: Area, size: usize, flip: bool) -> Geometry {
        Geometry {
            source,
            resized: (size, size),
            left: 0,
            top: 0,
            flip,
        }
    }
}

impl Geometry {
    /// The part of the picture whose pixels have any influence at all, for a square of `size`.
    pub fn needed(&self, size: usize, kernel: Interpolation) -> Area {
        let axis = |from: usize, to: usize, first: usize| {
            let begin = span(from, to, first, kernel).0;
            (begin, span(from, to, first + size - 1, kernel).1 - begin)
        };
        let (left, width) = axis(self.source.width, self.resized.0, self.left);
        let (top, height) = axis(self.source.height, self.resized.1, self.top);
        Area {
            left: self.source.left + left,
            top: self.source.top + top,
            width,
            height,
        }
    }

    /// The fewest eighths of its size (8, 4, 2 or 1) at which a picture still has a pixel for each one of the result.
    pub fn eighths(&self) -> usize {
        let fits = |side: usize, eighths: usize, to: usize| side * eighths >= 8 * to;
        [1, 2, 4]
            .into_iter()
            .find(|&eighths| {
                fits(self.source.width, eighths, self.resized.0)
                    && fits(self.source.height, eighths, self.resized.1)
            })
            .unwrap_or(8)
    }

    /// The same for a picture that was made smaller to `eighths` (now `width` by `height`); edges are rounded.
    pub fn at(mut self, eighths: usize, width: usize, height: usize) -> Geometry {
        let axis = |first: usize, count: usize, most: usize| {
            let edge = |at: usize| ((at * eighths + 4) / 8).min(most);
            let begin = edge(first).min(most - 1);
            (begin, edge(first + count).max(begin + 1) - begin)
        };
        if eighths != 8 {
            let source = &mut self.source;
            (source.left, source.width) = axis(source.left, source.width, width);
            (source.top, source.height) = axis(source.top, source.height, height);
        }
        self
    }
}

/// First source pixel of an output position and the one after its last.
fn span(from: usize, to: usize, index: usize, kernel: Interpolation) -> (usize, usize) {
    let scale = from as f64 / to as f64;
    let support = kernel.half_width() * scale.max(1.0);
    let centre = (index as f64 + 0.5) * scale;
    let begin = ((centre - support + 0.5) as i64).max(0) as usize;
    (begin, ((centre + support + 0.5) as usize).min(from))
}

/// Half of a number rounded half to even: Python's `round(n / 2)`.
fn half(n: usize) -> usize {
    n / 2 + usize::from(n % 4 == 3)
}

/// The weights of one axis for a run of output positions.
struct Weights {
    /// First source index and number of weights for each output position.
    spans: Vec<(usize, usize)>,
    /// `taps` weights an output position, zeros after its own.
    values: Vec<i32>,
    taps: usize,
}

impl Weights {
    /// Weights for the outputs `first..first + count` of `from` source pixels resized to `to`.
    fn new(from: usize, to: usize, first: usize, count: usize, kernel: Interpolation) -> Weights {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = kernel.half_width() * stretch;
        let taps = support.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(count);
        let mut values = vec![0; count * taps];
        let mut exact = vec![0.0; taps];
        for (index, fixed) in values.chunks_exact_mut(taps).enumerate() {
            let centre = ((first + index) as f64 + 0.5) * scale;
            let (begin, end) = span(from, to, first + index, kernel);
            let length = end - begin;
            let mut sum = 0.0;
            for (tap, weight) in exact[..length].iter_mut().enumerate() {
                *weight = kernel.weight(((tap + begin) as f64 - centre + 0.5) * (1.0 / stretch));
                sum += *weight;
            }
            for (fixed, weight) in fixed.iter_mut().zip(&exact[..length]) {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = weight * f64::from(1_u32 << PRECISION);
                *fixed = if scaled < 0.0 {
                    (scaled - 0.5) as i32
                } else {
                    (scaled + 0.5) as i32
                };
            }
            spans.push((begin, length));
        }
        Weights {
            spans,
            values,
            taps,
        }
    }

    /// Counts source positions from the first that is used; returns that one and how many are used.
    fn rebase(&mut self) -> (usize, usize) {
        let first = self.spans.first().map_or(0, |span| span.0);
        let last = self.spans.last().map_or(0, |span| span.0 + span.1);
        for span in &mut self.spans {
            span.0 -= first;
        }
        (first, last - first)
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.values.chunks_exact(self.taps);
        self.spans
            .iter()
            .zip(weights)
            .map(|(&(begin, length), weights)| (begin, &weights[..length]))
    }
}

/// Rows that a pass across works on at once: a lane each.
const ROWS: usize = 8;
/// Bytes of a row that a pass down works on at once.
const RUN: usize = 32;
const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn to_level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Buffers that a thread keeps between pictures.
#[derive(Default)]
pub struct Scratch {
    between: Vec<u8>,
    tile: Vec<u64>,
    turned: Vec<u64>,
}

/// Resizes and crops to `size` by `size` RGB in `out` (`size * size * 3` bytes, pixels packed).
pub fn resize(
    image: &Rgb,
    geometry: &Geometry,
    size: usize,
    kernel: Interpolation,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    let Geometry {
        source,
        resized,
        left,
        top,
        flip,
    } = *geometry;
    let mut horizontal = Weights::new(source.width, resized.0, left, size, kernel);
    let mut vertical = Weights::new(source.height, resized.1, top, size, kernel);
    let stride = image.width * 3;
    let Scratch {
        between,
        tile,
        turned,
    } = scratch;
    vectorize(
        #[inline(always)]
        || {
            // Pillow's choice since version 13 (found by experiment): down first for tall pictures.
            let (shorter, narrower) = (
                source.height as i64 - resized.1 as i64,
                source.width as i64 - resized.0 as i64,
            );
            let (first_column, columns) = horizontal.rebase();
            let (first_row, rows) = vertical.rebase();
            let begin = (source.top + first_row) * stride + (source.left + first_column) * 3;
            if shorter > 0 && shorter > 2 * narrower {
                between.resize(size * columns * 3, 0);
                down(
                    &image.pixels[begin..],
                    stride,
                    &vertical,
                    between,
                    columns * 3,
                );
                across(between, columns * 3, &horizontal, out, size, tile, turned);
            } else {
                between.resize(rows * size * 3, 0);
                across(
                    &image.pixels[begin..],
                    stride,
                    &horizontal,
                    between,
                    rows,
                    tile,
                    turned,
                );
                down(between, size * 3, &vertical, out, size * 3);
            }
        },
    );
    if flip {
        for row in out.chunks_exact_mut(size * 3) {
            for x in 0..size / 2 {
                for channel in 0..3 {
                    row.swap(x * 3 + channel, (size - 1 - x) * 3 + channel);
                }
            }
        }
    }
}

/// Weighted sums of rows: `width` bytes of each row of `rows` (`stride` bytes apart) to rows of `out`.
#[inline(always)]
fn down(rows: &[u8], stride: usize, weights: &Weights, out: &mut [u8], width: usize) {
    for ((begin, weights), out) in weights.iter().zip(out.chunks_exact_mut(width)) {
        let rows = &rows[begin * stride..];
        let mut runs = out.chunks_exact_mut(RUN);
        let mut at = 0;
        for out in &mut runs {
            let mut sums = [HALF; RUN];
            for (row, &weight) in rows.chunks(stride).zip(weights) {
                for (sum, &level) in sums.iter_mut().zip(&row[at..at + RUN]) {
                    *sum += weight * i32::from(level);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_level(sum);
            }
            at += RUN;
        }
        for (offset, out) in runs.into_remainder().iter_mut().enumerate() {
            let sum: i32 = rows
                .chunks(stride)
                .zip(weights)
                .map(|(row, &weight)| weight * i32::from(row[at + offset]))
                .sum();
            *out = to_level(HALF + sum);
        }
    }
}

/// Weighted sums of pixels: `count` rows of `rows` (`stride` bytes apart) to packed rows of `out`.
///
/// Eight rows at a time are turned so that eight bytes of one column lie side by side, a lane each.
#[inline(always)]
fn across(
    rows: &[u8],
    stride: usize,
    weights: &Weights,
    out: &mut [u8],
    count: usize,
    tile: &mut Vec<u64>,
    turned: &mut Vec<u64>,
) {
    let used = weights.spans.last().map_or(0, |span| (span.0 + span.1) * 3);
    let width = weights.spans.len() * 3;
    tile.resize(used.next_multiple_of(8), 0);
    turned.resize(width.next_multiple_of(8), 0);
    for (group, out) in out.chunks_mut(ROWS * width).enumerate() {
        // Fewer than eight rows at the end: the last is repeated.
        let row = |lane: usize| {
            let begin = (group * ROWS + lane).min(count - 1) * stride;
            &rows[begin..begin + used]
        };
        let sources: [&[u8]; ROWS] = std::array::from_fn(row);
        for (index, tile) in tile.chunks_exact_mut(8).enumerate() {
            let mut square = [0; 8];
            for (word, row) in square.iter_mut().zip(sources) {
                *word = load(row, index * 8);
            }
            turn(&mut square);
            tile.copy_from_slice(&square);
        }
        for ((begin, weights), out) in weights.iter().zip(turned.chunks_exact_mut(3)) {
            let mut sums = [[HALF; ROWS]; 3];
            for (pixel, &weight) in tile[begin * 3..].chunks_exact(3).zip(weights) {
                for (sums, column) in sums.iter_mut().zip(pixel) {
                    for (sum, level) in sums.iter_mut().zip(column.to_le_bytes()) {
                        *sum += weight * i32::from(level);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                let mut levels = [0; ROWS];
                for (level, sum) in levels.iter_mut().zip(sums) {
                    *level = to_level(sum);
                }
                *out = u64::from_le_bytes(levels);
            }
        }
        for (index, turned) in turned.chunks_exact(8).enumerate() {
            let mut square = [0; 8];
            square.copy_from_slice(turned);
            turn(&mut square);
            let begin = index * 8;
            let end = width.min(begin + 8);
            for (row, bytes) in out.chunks_exact_mut(width).zip(square) {
                if end - begin == 8 {
                    row[begin..begin + 8].copy_from_slice(&bytes.to_le_bytes());
                } else {
                    row[begin..end].copy_from_slice(&bytes.to_le_bytes()[..end - begin]);
                }
            }
        }
    }
}

/// Eight bytes of a row, zeros past its end.
#[inline(always)]
fn load(row: &[u8], at: usize) -> u64 {
    if let Some(bytes) = row.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()) {
        return u64::from_le_bytes(bytes);
    }
    row[at..]
        .iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Transposes an 8 by 8 square of bytes, the lowest byte of a word being the first.
#[inline(always)]
pub(super) fn turn(square: &mut [u64; 8]) {
    // Swaps halves of halves: blocks of 4 by 4 bytes, then 2 by 2, then single bytes.
    for (distance, mask) in [
        (4, 0x0000_0000_ffff_ffff_u64),
        (2, 0x0000_ffff_0000_ffff),
        (1, 0x00ff_00ff_00ff_00ff),
    ] {
        for i in 0..8 {
            if i & distance == 0 {
                let swap = ((square[i] >> (8 * distance)) ^ square[i + distance]) & mask;
                square[i + distance] ^= swap;
                square[i] ^= swap << (8 * distance);
            }
        }
    }
}

/// Level to normalised value, a table a channel: `(level / 255 - mean) / std` in float32, as torchvision computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    tables: [[f32; 256]; 3],
}

impl Normalisation {
    /// Means and deviations on the scale 0 to 1.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Result<Normalisation> {
        if let Some(bad) = std
            .iter()
            .find(|value| !(**value > 0.0 && value.is_finite()))
        {
            return Err(Error::Value(format!(
                "std must be three positive numbers, got {bad}"
            )));
        }
        if let Some(bad) = mean.iter().find(|value| !value.is_finite()) {
            return Err(Error::Value(format!(
                "mean must be three finite numbers, got {bad}"
            )));
        }
        let mut tables = [[0.0; 256]; 3];
        for (table, (mean, std)) in tables.iter_mut().zip(mean.into_iter().zip(std)) {
            for (level, value) in table.iter_mut().enumerate() {
                *value = (level as f32 / 255.0 - mean) / std;
            }
        }
        Ok(Normalisation { tables })
    }

    /// Packed RGB to three planes of float32.
    pub fn to_planes(&self, rgb: &[u8], planes: &mut [f32]) {
        let area = planes.len() / 3;
        for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
            let table = &self.tables[channel];
            for (out, pixel) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
                *out = table[usize::from(pixel[channel])];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_rounds_to_even() {
        assert_eq!(
            (0..8).map(half).collect::<Vec<_>>(),
            [0, 0, 1, 2, 2, 2, 3, 4]
        );
    }

    #[test]
    fn geometry_of_torchvision() {
        let geometry = Geometry::centre(500, 375, 224, Fit::Crop);
        assert_eq!(
            (geometry.resized, geometry.left, geometry.top),
            ((298, 224), 37, 0)
        );
        let geometry = Geometry::centre(3, 1000, 7, Fit::Crop);
        assert_eq!(geometry.resized, (7, 2333));
    }

    #[test]
    fn weights_sum_to_one() {
        for (from, to) in [(500, 224), (10, 224), (1, 1), (1, 7), (3, 2)] {
            for kernel in [Interpolation::Bilinear, Interpolation::Bicubic] {
                for (_, weights) in Weights::new(from, to, 0, to, kernel).iter() {
                    let sum: i32 = weights.iter().sum();
                    assert!(
                        (sum - (1 << PRECISION)).abs() <= weights.len() as i32,
                        "{from} to {to}: {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn turning_is_transposing() {
        let bytes: [[u8; 8]; 8] =
            std::array::from_fn(|y| std::array::from_fn(|x| (y * 8 + x) as u8));
        let mut square = bytes.map(u64::from_le_bytes);
        turn(&mut square);
        for (y, word) in square.into_iter().enumerate() {
            assert_eq!(word.to_le_bytes(), std::array::from_fn(|x| bytes[x][y]));
        }
    }

    #[test]
    fn one_colour_stays() {
        let image = Rgb {
            width: 9,
            height: 5,
            pixels: [10_u8, 128, 250].repeat(45),
        };
        let mut out = vec![0; 7 * 7 * 3];
        let geometry = Geometry::centre(9, 5, 7, Fit::Crop);
        resize(
            &image,
            &geometry,
            7,
            Interpolation::Bicubic,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(out, [10_u8, 128, 250].repeat(49));
    }

    #[test]
    fn same_size_is_identity_and_flip_mirrors() {
        let image = Rgb {
            width: 4,
            height: 4,
            pixels: (0..48).collect(),
        };
        let mut out = vec![0; 48];
        let whole = Area {
            left: 0,
            top: 0,
            width: 4,
            height: 4,
        };
        resize(
            &image,
            &Geometry::part(whole, 4, false),
            4,
            Interpolation::Bicubic,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(out, image.pixels);
        resize(
            &image,
            &Geometry::part(whole, 4, true),
            4,
            Interpolation::Bicubic,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(&out[..6], &[9, 10, 11, 6, 7, 8]);
    }
}
