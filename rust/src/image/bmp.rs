//! BMP through the `image` crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder, ImageError};

use super::format::{check_size, damaged, Stored};
use super::{Limits, Rgb};
use crate::error::Result;

/// A BMP file: palettes, bit fields and run lengths as RGB, alpha dropped.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let bad = |error: ImageError| damaged("BMP", error);
    let decoder = BmpDecoder::new(Cursor::new(data)).map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size("BMP", width, height, 7, limits)?;
    let color = decoder.color_type();
    let mut pixels = vec![0; width * height * color.bytes_per_pixel() as usize];
    decoder.read_image(&mut pixels).map_err(bad)?;
    let pixels = match color {
        ColorType::Rgb8 => pixels,
        ColorType::Rgba8 => pixels
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect(),
        ColorType::L8 => pixels.iter().flat_map(|&value| [value; 3]).collect(),
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
