//! WebP through the `image-webp` crate: lossy, lossless, and the first frame of an animation.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::format::{check_size, damaged, without_alpha, Stored};
use super::{exif, Limits, Rgb};
use crate::error::{Error, Result};
use crate::memory;

/// The first image of a WebP file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
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
    check_size("WebP", width, height, BYTES, limits)?;
    decoder.set_memory_limit(usize::try_from(limits.max_memory).unwrap_or(usize::MAX));
    let image = if decoder.is_animated() {
        first_frame(data, (width, height), limits)?
    } else {
        still(&mut decoder)?
    };
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
        image,
        orientation,
        eighths: 8,
    })
}

/// Bytes a pixel that decoding takes at most.
const BYTES: u64 = 11;

fn bad(error: image_webp::DecodingError) -> Error {
    damaged("WebP", error)
}

/// The picture of a file that has one.
fn still(decoder: &mut WebPDecoder<Cursor<&[u8]>>) -> Result<Rgb> {
    let (width, height) = decoder.dimensions();
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| damaged("WebP", "too large for this machine"))?;
    // The crate allocates as much again and cannot be refused: see that there is room.
    drop(memory::zeros::<u8>(3 * size)?);
    let mut pixels: Vec<u8> = memory::zeros(size)?;
    decoder.read_image(&mut pixels).map_err(bad)?;
    if decoder.has_alpha() {
        pixels = without_alpha(pixels);
    }
    Ok(Rgb {
        width: width as usize,
        height: height as usize,
        pixels,
    })
}

/// The first frame of an animation on black, as libwebp has it: neither the background's colour nor blending play a part,
/// where the crate's frames have both.
fn first_frame(data: &[u8], (width, height): (usize, usize), limits: &Limits) -> Result<Rgb> {
    let lacks = || damaged("WebP", "holds no frame that can be read");
    let frame = chunks(&data[12..])
        .find(|(name, _)| name == b"ANMF")
        .map(|(_, frame)| frame)
        .ok_or_else(lacks)?;
    let (head, parts) = frame.split_first_chunk::<16>().ok_or_else(lacks)?;
    let number = |at: usize| {
        usize::from(head[at]) | usize::from(head[at + 1]) << 8 | usize::from(head[at + 2]) << 16
    };
    let (left, top) = (2 * number(0), 2 * number(3));
    // The frame as a file of its own.
    let alpha = parts.starts_with(b"ALPH");
    let mut extended = [*b"VP8X", [10, 0, 0, 0], [16, 0, 0, 0]].concat();
    extended.extend([&head[6..9], &head[9..12]].concat());
    let extended: &[u8] = if alpha { &extended } else { &[] };
    let length = (4 + extended.len() + parts.len()) as u32;
    let file = [b"RIFF", &length.to_le_bytes()[..], b"WEBP", extended, parts];
    let file = memory::concat(&file)?;
    let mut decoder = WebPDecoder::new(Cursor::new(&file[..])).map_err(bad)?;
    decoder.set_memory_limit(usize::try_from(limits.max_memory).unwrap_or(usize::MAX));
    let (own_width, own_height) = decoder.dimensions();
    let (own_width, own_height) = (own_width as usize, own_height as usize);
    let fits = (own_width, own_height) == (number(6) + 1, number(9) + 1)
        && left + own_width <= width
        && top + own_height <= height;
    if !fits {
        return Err(damaged("WebP", "damaged: a frame reaches past the picture"));
    }
    let image = still(&mut decoder)?;
    if (own_width, own_height) == (width, height) {
        return Ok(image);
    }
    let mut pixels: Vec<u8> = memory::zeros(width * height * 3)?;
    let rows = pixels.chunks_exact_mut(width * 3).skip(top);
    for (out, row) in rows.zip(image.pixels.chunks_exact(own_width * 3)) {
        out[left * 3..][..row.len()].copy_from_slice(row);
    }
    Ok(Rgb {
        width,
        height,
        pixels,
    })
}

/// The chunks of a file, or of a chunk: names and what they hold.
fn chunks(mut data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = data.split_at_checked(8)?;
        let (name, size) = head.split_at(4);
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]) as usize;
        let (content, _) = rest.split_at_checked(size)?;
        data = rest.get(size.next_multiple_of(2)..).unwrap_or_default();
        Some((name, content))
    })
}
