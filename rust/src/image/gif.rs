//! The first frame of a GIF through the `gif` crate, on Pillow's canvas.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::format::{check_size, damaged, Stored};
use super::{Limits, Rgb};
use crate::error::Result;

/// The first frame of a GIF file. Transparent pixels keep their palette colour, as alpha is dropped everywhere.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let bad = |error: gif::DecodingError| damaged("GIF", error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(bytes) = NonZeroU64::new(limits.max_memory) {
        options.set_memory_limit(MemoryLimit::Bytes(bytes));
    }
    let mut decoder = options.read_info(data).map_err(bad)?;
    let screen = (decoder.width() as usize, decoder.height() as usize);
    if screen != (0, 0) {
        check_size("GIF", screen.0.max(1), screen.1.max(1), 4, limits)?;
    }
    let frame = decoder
        .next_frame_info()
        .map_err(bad)?
        .ok_or_else(|| damaged("GIF", "holds no picture"))?;
    let (left, top) = (frame.left as usize, frame.top as usize);
    let (frame_width, frame_height) = (frame.width as usize, frame.height as usize);
    let background = frame.transparent.unwrap_or(0);
    // A frame that reaches past the screen makes the picture larger.
    let (width, height) = (
        screen.0.max(left + frame_width),
        screen.1.max(top + frame_height),
    );
    check_size("GIF", width, height, 4, limits)?;

    let local = frame.palette.clone();
    let mut indices = vec![0; frame_width * frame_height];
    if !indices.is_empty() {
        decoder.read_into_buffer(&mut indices).map_err(bad)?;
    }
    let palette = local.as_deref().or_else(|| decoder.global_palette());
    let color = |index: u8| match palette {
        // An index past the palette is black; without any palette an index is a level of grey.
        Some(palette) => {
            let at = index as usize * 3;
            palette
                .get(at..at + 3)
                .map_or([0; 3], |color| [color[0], color[1], color[2]])
        }
        None => [index; 3],
    };
    let table: Vec<[u8; 3]> = (0..=255).map(color).collect();
    let mut pixels: Vec<u8> = table[background as usize].repeat(width * height);
    for (row, out) in indices
        .chunks_exact(frame_width.max(1))
        .zip(pixels.chunks_exact_mut(width * 3).skip(top))
    {
        for (&index, out) in row.iter().zip(out[left * 3..].chunks_exact_mut(3)) {
            out.copy_from_slice(&table[index as usize]);
        }
    }
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
