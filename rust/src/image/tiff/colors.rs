//! Rows of samples to RGB, by what the samples mean.

use super::directory::Directory;
use super::error::{bad, refused};
use crate::error::Result;
use crate::image::jpeg;

/// What samples mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Colors {
    /// Levels of grey; `true`: 0 is white.
    Grey(bool),
    Palette(Vec<[u8; 3]>),
    Rgb,
    /// RGB that was multiplied by the alpha behind it.
    Premultiplied,
    Cmyk,
    /// In JPEG only, whose decoder makes RGB of it.
    YCbCr,
}

const COLOR_MAP: u16 = 320;
const EXTRA_SAMPLES: u16 = 338;

impl Colors {
    pub fn of(directory: &Directory<'_>, bits: usize) -> Result<Colors> {
        let extra = directory.number(EXTRA_SAMPLES);
        Ok(match directory.number(262).unwrap_or(0) {
            0 | 1 if extra == Some(1) => return Err(refused("grey multiplied by its alpha")),
            photometric @ (0 | 1) => Colors::Grey(photometric == 0),
            2 if extra == Some(1) => Colors::Premultiplied,
            2 => Colors::Rgb,
            3 if bits > 8 => return Err(refused("a palette of 16 bits")),
            3 => {
                let numbers = directory.numbers(COLOR_MAP)?;
                let count = numbers.len() / 3;
                if count == 0 {
                    return Err(bad("damaged: the palette is missing"));
                }
                let level = |index: usize| (numbers[index] >> 8) as u8;
                let color = |index| [level(index), level(count + index), level(2 * count + index)];
                Colors::Palette((0..count.min(256)).map(color).collect())
            }
            5 => Colors::Cmyk,
            6 => Colors::YCbCr,
            8..=10 => return Err(refused("CIE L*a*b*")),
            32803 | 34892 => return Err(refused("a camera's raw data")),
            other => return Err(refused(format_args!("photometric interpretation {other}"))),
        })
    }

    /// Samples that a pixel needs.
    pub fn needed(&self) -> usize {
        match self {
            Colors::Grey(_) | Colors::Palette(_) => 1,
            Colors::Rgb | Colors::YCbCr => 3,
            Colors::Premultiplied | Colors::Cmyk => 4,
        }
    }

    /// What the JPEG decoder makes of a pixel's samples.
    pub fn in_jpeg(&self, samples: usize) -> Result<jpeg::Colors> {
        Ok(match (self, samples) {
            (Colors::Grey(false), 1) | (Colors::YCbCr, 1) => jpeg::Colors::Grey,
            (Colors::Rgb, 3) => jpeg::Colors::Rgb,
            (Colors::YCbCr, 3) => jpeg::Colors::YCbCr,
            (Colors::Cmyk, 4) => jpeg::Colors::Inks,
            _ => return Err(refused("JPEG with samples of this kind")),
        })
    }

    /// A row of samples of eight bits, `step` a pixel, to RGB.
    pub fn row(&self, samples: &[u8], step: usize, out: &mut [u8]) {
        let pixels = out.chunks_exact_mut(3).zip(samples.chunks_exact(step));
        match self {
            Colors::Grey(inverted) => {
                let flip = if *inverted { 255 } else { 0 };
                pixels.for_each(|(out, samples)| out.fill(samples[0] ^ flip));
            }
            Colors::Palette(palette) => pixels.for_each(|(out, samples)| {
                // An index past the palette is black.
                let color = palette.get(usize::from(samples[0]));
                out.copy_from_slice(color.unwrap_or(&[0; 3]));
            }),
            Colors::Rgb | Colors::YCbCr => {
                pixels.for_each(|(out, samples)| out.copy_from_slice(&samples[..3]))
            }
            Colors::Premultiplied => pixels.for_each(|(out, samples)| {
                let alpha = u32::from(samples[3]);
                for (out, &level) in out.iter_mut().zip(samples) {
                    let whole = (u32::from(level) * 255).checked_div(alpha);
                    *out = whole.unwrap_or(0).min(255) as u8;
                }
            }),
            Colors::Cmyk => pixels.for_each(|(out, samples)| {
                let inks = [samples[0], samples[1], samples[2]].map(|ink| 255 - ink);
                out.copy_from_slice(&jpeg::inks_to_rgb(inks, 255 - samples[3]));
            }),
        }
    }
}

/// A row of stored samples to samples of eight bits: the high byte of more, and fewer, unless they are indices, scaled.
pub fn to_bytes(
    row: &[u8],
    bits: usize,
    big_endian: bool,
    indices: bool,
    out: impl Iterator<Item = usize>,
    levels: &mut [u8],
) {
    let mask = 0xff_u8 >> (8 - bits.min(8));
    let scale = if indices { 1 } else { 255 / mask };
    for (number, place) in out.enumerate() {
        levels[place] = match bits {
            8 => row[number],
            16 => row[2 * number + usize::from(!big_endian)],
            12 => {
                let at = number / 2 * 3;
                if number.is_multiple_of(2) {
                    row[at]
                } else {
                    row[at + 1] << 4 | row[at + 2] >> 4
                }
            }
            _ => {
                let bit = number * bits;
                (row[bit / 8] >> (8 - bits - bit % 8) & mask) * scale
            }
        };
    }
}
