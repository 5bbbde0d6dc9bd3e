//! WebP through the `image-webp` crate: lossy, lossless, and the first frame of an animation.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::format::{check_size, damaged, without_alpha, Stored};
use super::{exif, Limits, Rgb};
use crate::error::Result;
use crate::memory;

/// The first image of a WebP file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let bad = |error: image_webp::DecodingError| damaged("WebP", error);
    // The size of all that follows the first eight bytes.
    let declared = data.get(4..8).map_or(0, |size| {
        u32::from_le_bytes([size[0], size[1], size[2], size[3]]) as usize
    });
    if declared > data.len() - 8 {
        return Err(damaged(
            "WebP",
            format_args!(
                "the file is cut short: {declared} bytes are declared, {} there",
                data.len() - 8
            ),
        ));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(data)).map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    check_size("WebP", width, height, 3 + 2 * channels as u64, limits)?;
    decoder.set_memory_limit(usize::try_from(limits.max_memory).unwrap_or(usize::MAX));

    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| damaged("WebP", "too large for this machine"))?;
    // The crate allocates as much again and cannot be refused: see that there is room.
    drop(memory::zeros::<u8>(3 * size)?);
    let mut pixels: Vec<u8> = memory::zeros(size)?;
    if decoder.is_animated() {
        decoder.read_frame(&mut pixels).map_err(bad)?;
    } else {
        decoder.read_image(&mut pixels).map_err(bad)?;
    }
    if channels == 4 {
        pixels = without_alpha(pixels);
    }
    let orientation = decoder
        .exif_metadata()
        .ok()
        .flatten()
        .and_then(|block| exif::orientation(&block));
    let orientation = orientation
        .or_else(|| {
            decoder
                .xmp_metadata()
                .ok()
                .flatten()
                .and_then(|packet| exif::xmp_orientation(&packet))
        })
        .unwrap_or(1);
    Ok(Stored {
        image: Rgb {
            width,
            height,
            pixels,
        },
        orientation,
        eighths: 8,
    })
}
