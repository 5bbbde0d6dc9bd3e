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

/// A rectangle in pixels whose edges may lie within one: that pixel counts by the part of it inside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Columns.
    pub width: f64,
    /// Rows.
    pub height: f64,
}

impl From<Area> for Window {
    fn from(area: Area) -> Window {
        Window {
            left: area.left as f64,
            top: area.top as f64,
            width: area.width as f64,
            height: area.height as f64,
        }
    }
}

/// What becomes of a picture: `source` of it is resized to `resized`, of which the square at `left`, `top` is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The part of the picture that is resized; pixels outside it have no influence.
    pub source: Window,
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
        if fit == Fit::Squash {
            return Geometry::whole(width, height, (size, size));
        }
        // Short side to `size`, the long one rounded down, as torchvision's int() does.
        let resized = if width <= height {
            (size, size * height / width)
        } else {
            (size * width / height, size)
        };
        Geometry {
            left: half(resized.0 - size),
            top: half(resized.1 - size),
            ..Geometry::whole(width, height, resized)
        }
    }

    /// The whole picture at another size.
    pub fn whole(width: usize, height: usize, resized: (usize, usize)) -> Geometry {
        let source = Area {
            left: 0,
            top: 0,
            width,
            height,
        };
        Geometry {
            source: source.into(),
            resized,
            left: 0,
            top: 0,
            flip: false,
        }
    }

    /// A part of the picture, squashed to the square.
    pub fn part(source: Area, size: usize, flip: bool) -> Geometry {
        Geometry {
            source: source.into(),
            flip,
            ..Geometry::whole(source.width, source.height, (size, size))
        }
    }
}

impl Geometry {
    /// The part of the picture whose pixels have any influence at all, for a result of `size` (columns, rows).
    pub fn needed(&self, size: (usize, usize), kernel: Interpolation) -> Area {
        let axis = |from: Stretch, to: usize, first: usize, size: usize| {
            let begin = from.span(to, first, kernel).0;
            let end = from.span(to, first + size - 1, kernel).1;
            (from.first() + begin, end - begin)
        };
        let (across, down) = self.stretches();
        let (left, width) = axis(across, self.resized.0, self.left, size.0);
        let (top, height) = axis(down, self.resized.1, self.top, size.1);
        Area {
            left,
            top,
            width,
            height,
        }
    }

    /// The source along both axes.
    fn stretches(&self) -> (Stretch, Stretch) {
        let Window {
            left,
            top,
            width,
            height,
        } = self.source;
        let stretch = |begin, length| Stretch { begin, length };
        (stretch(left, width), stretch(top, height))
    }

    /// The fewest eighths of its size (8, 4, 2 or 1) at which a picture still has a pixel for each one of the result.
    pub fn eighths(&self) -> usize {
        let fits = |side: f64, eighths: usize, to: usize| side * eighths as f64 >= (8 * to) as f64;
        [1, 2, 4]
            .into_iter()
            .find(|&eighths| {
                fits(self.source.width, eighths, self.resized.0)
                    && fits(self.source.height, eighths, self.resized.1)
            })
            .unwrap_or(8)
    }

    /// The same part of a picture whose pixels are that many times as many, across and down.
    pub fn scaled(mut self, across: f64, down: f64) -> Geometry {
        let source = &mut self.source;
        (source.left, source.width) = (source.left * across, source.width * across);
        (source.top, source.height) = (source.top * down, source.height * down);
        self
    }
}

/// The source along one axis.
#[derive(Clone, Copy)]
struct Stretch {
    begin: f64,
    length: f64,
}

impl Stretch {
    /// The first pixel that it touches.
    fn first(self) -> usize {
        self.begin as usize
    }

    /// Where it begins and ends, counted from the edge of its first pixel.
    fn ends(self) -> (f64, f64) {
        let begin = self.begin - self.first() as f64;
        // Scaling an edge that lies on a pixel's may take it a rounding error past it.
        let end = begin + self.length;
        let near = end.round();
        (begin, if (end - near).abs() < 1e-9 { near } else { end })
    }

    /// The middle of an output position, counted in the same way, and source pixels an output pixel.
    fn centre(self, to: usize, index: usize) -> (f64, f64) {
        let scale = self.length / to as f64;
        (self.ends().0 + (index as f64 + 0.5) * scale, scale)
    }

    /// First source pixel of an output position and the one after its last, counted from the first of all.
    fn span(self, to: usize, index: usize, kernel: Interpolation) -> (usize, usize) {
        let (centre, scale) = self.centre(to, index);
        let support = kernel.half_width() * scale.max(1.0);
        let begin = ((centre - support + 0.5) as i64).max(0) as usize;
        let most = self.ends().1.ceil() as usize;
        (begin, ((centre + support + 0.5) as usize).min(most))
    }
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
    /// Weights for the outputs `first..first + count` of the source resized to `to`.
    fn new(from: Stretch, to: usize, first: usize, count: usize, kernel: Interpolation) -> Weights {
        let stretch = (from.length / to as f64).max(1.0);
        let support = kernel.half_width() * stretch;
        let taps = support.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(count);
        let mut values = vec![0; count * taps];
        let mut exact = vec![0.0; taps];
        let ends = from.ends();
        for (index, fixed) in values.chunks_exact_mut(taps).enumerate() {
            let (centre, _) = from.centre(to, first + index);
            let (begin, end) = from.span(to, first + index, kernel);
            let length = end - begin;
            let mut sum = 0.0;
            for (tap, weight) in exact[..length].iter_mut().enumerate() {
                let pixel = (tap + begin) as f64;
                let inside = ends.1.min(pixel + 1.0) - ends.0.max(pixel);
                *weight = kernel.weight((pixel - centre + 0.5) * (1.0 / stretch)) * inside;
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

/// Resizes and crops to RGB of `size` (columns, rows) in `out` (rows * columns * 3 bytes, pixels packed).
pub fn resize(
    image: &Rgb,
    geometry: &Geometry,
    size: (usize, usize),
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
    let (x, y) = geometry.stretches();
    let mut horizontal = Weights::new(x, resized.0, left, size.0, kernel);
    let mut vertical = Weights::new(y, resized.1, top, size.1, kernel);
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
                source.height - resized.1 as f64,
                source.width - resized.0 as f64,
            );
            let (first_column, columns) = horizontal.rebase();
            let (first_row, rows) = vertical.rebase();
            let begin = (y.first() + first_row) * stride + (x.first() + first_column) * 3;
            if shorter > 0.0 && shorter > 2.0 * narrower {
                between.resize(size.1 * columns * 3, 0);
                down(
                    &image.pixels[begin..],
                    stride,
                    &vertical,
                    between,
                    columns * 3,
                );
                across(between, columns * 3, &horizontal, out, size.1, tile, turned);
            } else {
                between.resize(rows * size.0 * 3, 0);
                across(
                    &image.pixels[begin..],
                    stride,
                    &horizontal,
                    between,
                    rows,
                    tile,
                    turned,
                );
                down(between, size.0 * 3, &vertical, out, size.0 * 3);
            }
        },
    );
    if flip {
        for row in out.chunks_exact_mut(size.0 * 3) {
            for x in 0..size.0 / 2 {
                for channel in 0..3 {
                    row.swap(x * 3 + channel, (size.0 - 1 - x) * 3 + channel);
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

    /// Packed RGB to float32, packed alike.
    pub fn to_packed(&self, rgb: &[u8], out: &mut [f32]) {
        for (out, pixel) in out.chunks_exact_mut(3).zip(rgb.chunks_exact(3)) {
            for channel in 0..3 {
                out[channel] = self.tables[channel][usize::from(pixel[channel])];
            }
        }
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

    fn weights_of(from: usize, to: usize, kernel: Interpolation) -> Weights {
        let all = Stretch {
            begin: 0.0,
            length: from as f64,
        };
        Weights::new(all, to, 0, to, kernel)
    }

    #[test]
    fn weights_sum_to_one() {
        for (from, to) in [(500, 224), (10, 224), (1, 1), (1, 7), (3, 2)] {
            for kernel in [Interpolation::Bilinear, Interpolation::Bicubic] {
                for (_, weights) in weights_of(from, to, kernel).iter() {
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
            (7, 7),
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
            (4, 4),
            Interpolation::Bicubic,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(out, image.pixels);
        resize(
            &image,
            &Geometry::part(whole, 4, true),
            (4, 4),
            Interpolation::Bicubic,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(&out[..6], &[9, 10, 11, 6, 7, 8]);
    }
}
