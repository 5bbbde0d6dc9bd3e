//! The first frame of a GIF through the `gif` crate, on Pillow's canvas.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::format::{check_size, damaged, Stored};
use super::{Limits, Rgb};
use crate::error::Result;
use crate::memory;

/// The first frame of a GIF file. Transparent pixels keep their palette colour, as alpha is dropped everywhere.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let bad = |error: gif::DecodingError| damaged("GIF", error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(bytes) = NonZeroU64::new(limits.max_memory) {
        options.set_memory_limit(MemoryLimit::Bytes(bytes));
    }
    let data = first_frame(data)?;
    let mut decoder = options.read_info(&data[..]).map_err(bad)?;
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
    let mut indices: Vec<u8> = memory::zeros(frame_width * frame_height)?;
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
    let mut pixels: Vec<u8> = memory::zeros(width * height * 3)?;
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.copy_from_slice(&table[background as usize]);
    }
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

/// The file from which Pillow would read the first frame: without extensions but the frame's graphic control, and without
/// stray bytes between blocks; with a palette of grey levels where there is none.
fn first_frame(data: &[u8]) -> Result<Vec<u8>> {
    const HEADER: usize = 13;
    let palette = |flags: u8| {
        if flags & 128 != 0 {
            6 << (flags & 7)
        } else {
            0
        }
    };
    let global = data.get(10).map_or(0, |&flags| palette(flags));
    let mut at = (HEADER + global).min(data.len());
    let mut file = Vec::new();
    // With a grey palette, the graphic control and an end.
    memory::reserve(&mut file, data.len() + 768 + 8 + 1)?;
    file.extend_from_slice(&data[..at]);
    let mut control = None;
    while let Some(&kind) = data.get(at) {
        match kind {
            b';' => break,
            b',' => {
                let local = data.get(at + 9).map_or(0, |&flags| palette(flags));
                if global == 0 && local == 0 {
                    file[10] |= 0x87;
                    file.extend((0..=255).flat_map(|level| [level; 3]));
                }
                if let Some(control) = control {
                    file.extend([b'!', 0xf9, 4]);
                    file.extend_from_slice(control);
                    file.push(0);
                }
                file.extend_from_slice(&data[at..]);
                return Ok(file);
            }
            b'!' => {
                let (label, mut block) = (data.get(at + 1), at + 2);
                if label == Some(&0xf9) && data.get(block).is_some_and(|&length| length >= 4) {
                    control = data.get(block + 1..block + 5);
                }
                while let Some(&length @ 1..) = data.get(block) {
                    block += 1 + usize::from(length);
                }
                at = block + 1;
            }
            _ => at += 1,
        }
    }
    file.push(b';');
    Ok(file)
}
