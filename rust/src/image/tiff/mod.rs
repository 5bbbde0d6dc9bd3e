//! TIFF: the first picture of a file, with the levels that Pillow (libtiff) gives it, but for 16-bit grey, whose high byte is
//! taken as for PNG.
//!
//! The layout is read here and not by the crate `tiff`, which refuses headers that libtiff reads, allocates what a file asks
//! for without being able to fail, and has another JPEG decoder's levels. Packed data are the libraries' (`unpack.rs`).
//! Refused by name: 32-bit and signed 16-bit samples, which have no levels of their own (Pillow cuts them off at 255), YCbCr
//! outside JPEG, CIE L*a*b*, and compressions that need libraries in C.

mod colors;
mod directory;
mod error;
mod fax;
mod unpack;

use std::borrow::Cow;

use colors::Colors;
use directory::Directory;
use error::{bad, cut_short, refused};
use unpack::Packing;

use super::format::{check_size, Stored};
use super::{jpeg, Limits, Rgb};
use crate::error::Result;
use crate::memory;

/// Where the pixels of a file are, and what they mean.
struct Layout {
    width: usize,
    height: usize,
    /// Samples a pixel, bits a sample.
    samples: usize,
    bits: usize,
    big_endian: bool,
    colors: Colors,
    packing: Packing,
    /// Every sample has a plane of its own.
    planar: bool,
    /// Bits stand in bytes from the lowest.
    reversed: bool,
    /// Samples are differences.
    predicted: bool,
    /// Width and height of the tiles, or of the strips.
    tile: (usize, usize),
    offsets: Vec<usize>,
    counts: Vec<usize>,
}

/// The first picture of a TIFF file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    // Of Olympus, Panasonic and Canon: their first picture would be a thumbnail.
    if matches!(data, [b'I', b'I', b'R' | b'U', ..]) || data.get(8..10) == Some(b"CR") {
        return Err(refused("a camera's raw data"));
    }
    let directory = Directory::read(data)?;
    let layout = Layout::of(&directory)?;
    let (width, height) = (layout.width, layout.height);
    let each = 3 + layout.samples as u64 * (1 + layout.bits.div_ceil(8) as u64);
    check_size("TIFF", width, height, each, limits)?;
    // Of whole tiles: the picture, a tile as stored, and its samples as bytes.
    let (across, down) = layout.tiles();
    let whole = (across * layout.tile.0, down * layout.tile.1);
    check_size("TIFF", whole.0, whole.1, each, limits)?;
    let mut pixels: Vec<u8> = memory::zeros(width * height * 3)?;
    for tile in 0..across * down {
        let place = (tile % across * layout.tile.0, tile / across * layout.tile.1);
        match layout.packing {
            Packing::Jpeg => {
                layout.jpeg_tile(data, directory.bytes(347), tile, place, limits, &mut pixels)?
            }
            _ => layout.tile(data, tile, across * down, place, &mut pixels)?,
        }
    }
    let orientation = directory.number(274).filter(|turn| (1..=8).contains(turn));
    Ok(Stored {
        image: Rgb {
            width,
            height,
            pixels,
        },
        orientation: orientation.unwrap_or(1) as u8,
        eighths: 8,
    })
}

impl Layout {
    fn of(directory: &Directory<'_>) -> Result<Layout> {
        if directory.number(0xc612).is_some() {
            return Err(refused("a camera's raw data (DNG)"));
        }
        let (width, height) = (
            directory.needed(256, "width")?,
            directory.needed(257, "height")?,
        );
        let (samples, bits) = samples_of(directory)?;
        let planar = directory.number(284) == Some(2) && samples > 1;
        let packing = Packing::of(
            directory.number(259).unwrap_or(1),
            directory.number(292).unwrap_or(0),
        )?;
        let colors = Colors::of(directory, bits)?;
        if colors == Colors::YCbCr && packing != Packing::Jpeg {
            return Err(refused("YCbCr without JPEG"));
        }
        let predicted = match (packing, directory.number(317)) {
            (Packing::Lzw | Packing::Deflate, Some(2)) => true,
            (Packing::Lzw | Packing::Deflate, Some(3)) => {
                return Err(refused("floating-point prediction"))
            }
            _ => false,
        };
        if (colors.needed() > samples && packing != Packing::Jpeg)
            || (matches!(packing, Packing::Fax(_)) && bits * samples > 1)
        {
            return Err(refused(format_args!(
                "{samples} samples of {bits} bits for these colours"
            )));
        }
        let (tile, [offsets, counts]) = tiles_of(directory, (width, height))?;
        let big_endian = directory.big_endian;
        let reversed = directory.number(266) == Some(2) && packing != Packing::Jpeg;
        Ok(Layout {
            width,
            height,
            samples,
            bits,
            big_endian,
            colors,
            packing,
            planar,
            reversed,
            predicted,
            tile,
            offsets,
            counts,
        })
    }

    /// Tiles across and down.
    fn tiles(&self) -> (usize, usize) {
        (
            self.width.div_ceil(self.tile.0),
            self.height.div_ceil(self.tile.1),
        )
    }

    /// The stored bytes of a strip or tile.
    fn stored<'a>(&self, data: &'a [u8], index: usize) -> Result<&'a [u8]> {
        // Where one strip has all, Pillow takes the last of several offsets.
        let all =
            self.packing == Packing::None && !self.planar && self.tile == (self.width, self.height);
        let index = if all {
            self.offsets.len().saturating_sub(1)
        } else {
            index
        };
        let offset = *self
            .offsets
            .get(index)
            .ok_or_else(|| bad("damaged: strips of the picture are missing"))?;
        let stored = data.get(offset..).ok_or_else(cut_short)?;
        // What is not packed is as long as it must be; other counts may be missing too.
        let count = self
            .counts
            .get(index)
            .copied()
            .filter(|_| self.packing != Packing::None);
        Ok(&stored[..count.unwrap_or(stored.len()).min(stored.len())])
    }

    /// Rows of this tile, and pixels of each, that the picture has.
    fn seen(&self, (left, top): (usize, usize)) -> (usize, usize) {
        (
            self.tile.1.min(self.height - top),
            self.tile.0.min(self.width - left),
        )
    }

    /// Writes tile number `index` of `count` into the picture.
    fn tile(
        &self,
        data: &[u8],
        index: usize,
        count: usize,
        place: (usize, usize),
        pixels: &mut [u8],
    ) -> Result<()> {
        let (rows, columns) = self.seen(place);
        let (planes, together) = if self.planar {
            (self.colors.needed(), 1)
        } else {
            (1, self.samples)
        };
        let stride = (self.tile.0 * together * self.bits).div_ceil(8);
        // Strips end with the picture, tiles do not; what nobody sees of tiles that are not packed need not be there.
        let strip = self.tile.0 == self.width;
        let stored_rows = if strip || self.packing == Packing::None {
            rows
        } else {
            self.tile.1
        };
        let step = if self.planar { planes } else { self.samples };
        let mut levels: Vec<u8> = memory::zeros(rows * columns * step)?;
        let mut unpacked: Vec<u8> = memory::zeros(stored_rows * stride)?;
        for plane in 0..planes {
            let stored = self.stored(data, plane * count + index)?;
            let stored = if self.reversed {
                Cow::Owned(unpack::reversed(stored)?)
            } else {
                Cow::Borrowed(stored)
            };
            unpacked.fill(0);
            unpack::unpack(self.packing, &stored, self.tile.0, stride, &mut unpacked)?;
            let indices = matches!(self.colors, Colors::Palette(_));
            for (row, levels) in unpacked
                .chunks_exact_mut(stride)
                .zip(levels.chunks_exact_mut(columns * step))
            {
                if self.predicted {
                    unpack::sum_up(row, self.bits, self.big_endian, together)?;
                }
                let places = (plane..columns * step).step_by(planes);
                colors::to_bytes(row, self.bits, self.big_endian, indices, places, levels);
            }
        }
        let (left, top) = place;
        for (row, levels) in levels.chunks_exact(columns * step).enumerate() {
            let out = &mut pixels[((top + row) * self.width + left) * 3..][..columns * 3];
            self.colors.row(levels, step, out);
        }
        Ok(())
    }

    /// Writes a tile that is a JPEG picture into the picture. `tables`: what all have in common.
    fn jpeg_tile(
        &self,
        data: &[u8],
        tables: &[u8],
        index: usize,
        place: (usize, usize),
        limits: &Limits,
        pixels: &mut [u8],
    ) -> Result<()> {
        if self.planar || self.bits != 8 {
            return Err(refused("JPEG in planes, or not of 8 bits,"));
        }
        let stored = self.stored(data, index)?;
        // Without the tables' end mark and the picture's start mark.
        let tables = tables.strip_suffix(&[0xff, 0xd9]).unwrap_or(tables);
        let file = match stored.strip_prefix(&[0xff, 0xd8]) {
            Some(picture) if !tables.is_empty() => Cow::Owned(memory::concat(&[tables, picture])?),
            _ => Cow::Borrowed(stored),
        };
        let image = jpeg::decode_as(&file, self.colors.in_jpeg(self.samples)?, limits)?;
        let (rows, columns) = self.seen(place);
        if image.width < columns || image.height < rows {
            return Err(bad("damaged: a strip is smaller than the picture"));
        }
        let (left, top) = place;
        for (row, stored) in image
            .pixels
            .chunks_exact(image.width * 3)
            .take(rows)
            .enumerate()
        {
            let out = &mut pixels[((top + row) * self.width + left) * 3..][..columns * 3];
            out.copy_from_slice(&stored[..columns * 3]);
        }
        Ok(())
    }
}

/// Samples a pixel, and bits of each.
fn samples_of(directory: &Directory<'_>) -> Result<(usize, usize)> {
    let samples = directory.number(277).unwrap_or(1);
    let depths = directory.numbers(258)?;
    let bits = depths.first().copied().unwrap_or(1);
    let alike = depths.iter().take(samples).all(|&depth| depth == bits);
    if !alike || !(1..=64).contains(&samples) || (depths.len() > 1 && depths.len() < samples) {
        return Err(refused("samples of different depths"));
    }
    let format = directory.number(339).unwrap_or(1);
    match (format, bits) {
        (1, 1 | 2 | 4 | 8 | 12 | 16) | (2, 8) => {}
        (1, _) => return Err(refused(format_args!("samples of {bits} bits"))),
        (2, _) => return Err(refused(format_args!("signed samples of {bits} bits"))),
        (3, _) => {
            return Err(refused(format_args!(
                "floating-point samples of {bits} bits"
            )))
        }
        _ => return Err(refused(format_args!("samples of format {format}"))),
    }
    Ok((samples, bits))
}

/// Width and height of tiles or strips, and where each stands and how long it is.
type Tiles = ((usize, usize), [Vec<usize>; 2]);

/// The tiles, or else the strips.
fn tiles_of(directory: &Directory<'_>, (width, height): (usize, usize)) -> Result<Tiles> {
    let (tile, places) = match directory.numbers(324)? {
        offsets if offsets.is_empty() => {
            let rows = directory
                .number(278)
                .unwrap_or(height)
                .clamp(1, height.max(1));
            (
                (width, rows),
                [directory.numbers(273)?, directory.numbers(279)?],
            )
        }
        offsets => {
            let tile = (
                directory.needed(322, "tiles' width")?,
                directory.needed(323, "tiles' height")?,
            );
            (tile, [offsets, directory.numbers(325)?])
        }
    };
    if (tile.0 == 0 && width > 0)
        || tile.1 == 0
        || tile.0.max(tile.1) > 1 << 31
        || width.max(height) > 1 << 31
    {
        return Err(bad(format_args!(
            "declares {width}x{height} in tiles of {}x{}",
            tile.0, tile.1
        )));
    }
    Ok((tile, places))
}
