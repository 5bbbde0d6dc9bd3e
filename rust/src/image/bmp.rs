//! BMP through the `image` crate.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder, ImageError};

use super::format::{check_size, damaged, without_alpha, Stored};
use super::{Limits, Rgb};
use crate::error::Result;
use crate::memory;

/// A BMP file: palettes, bit fields and run lengths as RGB, alpha dropped.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let bad = |error: ImageError| damaged("BMP", error);
    let data = repaired(data)?;
    let decoder = BmpDecoder::new(Cursor::new(&data[..])).map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size("BMP", width, height, 7, limits)?;
    let color = decoder.color_type();
    let mut pixels: Vec<u8> = memory::zeros(width * height * color.bytes_per_pixel() as usize)?;
    decoder.read_image(&mut pixels).map_err(bad)?;
    let pixels = match color {
        ColorType::Rgb8 => pixels,
        ColorType::Rgba8 => without_alpha(pixels),
        ColorType::L8 => {
            let mut rgb: Vec<u8> = memory::zeros(width * height * 3)?;
            for (out, &value) in rgb.chunks_exact_mut(3).zip(&pixels) {
                out.fill(value);
            }
            rgb
        }
        other => {
            return Err(damaged(
                "BMP",
                format_args!("unexpected colour type {other:?}"),
            ))
        }
    };
    Ok(Stored {
        image: Rgb {
            width,
            height,
            pixels,
        },
        orientation: 1,
        eighths: 8,
    })
}

/// The file as the decoder takes it, where its header is one that Pillow reads and the decoder refuses or trusts too far:
/// a pixel offset of 0 or one that leaves out the palette, OS/2's header of 64 bytes, a last row without padding.
fn repaired(data: &[u8]) -> Result<Cow<'_, [u8]>> {
    let number = |at: usize, size: usize| {
        let bytes = data.get(at..at + size).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
    };
    let (mut offset, header) = (number(10, 4), number(14, 4));
    let (bits, compression, padding) = match header {
        12 => (number(24, 2), 0, 3),
        40.. => (number(28, 2), number(30, 4), 4),
        _ => return Ok(Cow::Borrowed(data)),
    };
    let colors = match number(46, 4) {
        used if header >= 40 && used > 0 => used,
        _ => 1 << bits.min(16),
    };
    let palette = if bits <= 8 { padding * colors } else { 0 };
    if offset == 0 || (offset == 14 + header && bits <= 8) {
        // The masks of the colours stand behind a header that has no place for them.
        let masks = if header == 40 && compression == 3 {
            12
        } else {
            0
        };
        offset = 14 + header + masks + palette;
    }
    let (width, height) = match header {
        12 => (number(18, 2), number(20, 2)),
        _ => (
            number(18, 4),
            (number(22, 4) as u32 as i32).unsigned_abs() as usize,
        ),
    };
    let row = width.saturating_mul(bits);
    let whole = row.div_ceil(32).saturating_mul(4).saturating_mul(height);
    let end = offset.saturating_add(whole);
    let missing = end.saturating_sub(data.len());
    let cut = compression == 0 && (1..=row.div_ceil(32) * 4 - row.div_ceil(8)).contains(&missing);
    if !cut && header != 64 && offset == number(10, 4) {
        return Ok(Cow::Borrowed(data));
    }
    // Less than a row's padding of four bytes is missing.
    let padding: &[u8] = if cut { &[0; 4][..missing] } else { &[] };
    let mut file = memory::concat(&[data, padding])?;
    if header == 64 && file.len() > 78 && compression < 3 {
        // A header of 40 bytes and the palette, before the whole file.
        let behind = &file[78..(78 + palette).min(file.len())];
        file = memory::concat(&[&file[..54], behind, &file])?;
        offset += 54 + palette;
        file[14] = 40;
    }
    if let Some(place) = file.get_mut(10..14) {
        place.copy_from_slice(&(offset as u32).to_le_bytes());
    }
    Ok(Cow::Owned(file))
}
