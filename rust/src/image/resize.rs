//! Geometry (short side, centre crop, squash) and Pillow's two-pass resampling, of the needed pixels only.
//!
//! Pillow resamples 8-bit images by weights in 22-bit fixed point, rows first, rounding to 8 bits between the passes.
//! The same is done here, so that the result agrees to the bit; only pixels inside the crop are computed.

use super::Rgb;
use crate::error::{Error, Result};

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
            let begin = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
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

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.values.chunks_exact(self.taps);
        self.spans
            .iter()
            .zip(weights)
            .map(|(&(begin, length), weights)| (begin, &weights[..length]))
    }
}

fn to_level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Buffers that a thread keeps between pictures.
#[derive(Default)]
pub struct Scratch {
    rows: Vec<u8>,
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
    const HALF: i32 = 1 << (PRECISION - 1);
    let Geometry {
        source,
        resized,
        left,
        top,
        flip,
    } = *geometry;
    let across = Weights::new(source.width, resized.0, left, size, kernel);
    let down = Weights::new(source.height, resized.1, top, size, kernel);
    let first_row = down.spans.first().map_or(0, |span| span.0);
    let last_row = down.spans.last().map_or(0, |span| span.0 + span.1);

    let stride = size * 3;
    scratch.rows.resize((last_row - first_row) * stride, 0);
    for (row, out) in (first_row..last_row).zip(scratch.rows.chunks_exact_mut(stride)) {
        let begin = ((source.top + row) * image.width + source.left) * 3;
        let row = &image.pixels[begin..begin + source.width * 3];
        for ((begin, weights), out) in across.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in row[begin * 3..].chunks_exact(3).zip(weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(level);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_level(sum);
            }
        }
    }
    let mut sums = vec![0_i32; stride];
    for ((begin, weights), out) in down.iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(HALF);
        let rows = scratch.rows[(begin - first_row) * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(level);
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = to_level(sum);
        }
        if flip {
            for x in 0..size / 2 {
                for channel in 0..3 {
                    out.swap(x * 3 + channel, (size - 1 - x) * 3 + channel);
                }
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
