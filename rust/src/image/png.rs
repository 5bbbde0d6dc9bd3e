//! PNG through the `png` crate, with Pillow's conversions to RGB, but for 16-bit grey: its high byte is taken as that of
//! 16-bit colour is, where Pillow (up to 13 at least) turns every level above 255 white.

use std::io::{Cursor, ErrorKind};

use png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Transformations};

use super::format::{check_size, damaged, Stored};
use super::{exif, Limits, Rgb};
use crate::error::{Error, Result};
use crate::memory;

/// The first image of a PNG file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    if data.get(12..16) == Some(b"CgBI") {
        return Err(damaged(
            "PNG",
            "written for iPhones (chunk CgBI), which is no standard PNG; export the picture again as PNG",
        ));
    }
    // Pillow reads files without an end chunk.
    match decode_checked(data, limits) {
        Err(_) if !data.ends_with(&END[4..]) => {
            decode_checked(&memory::concat(&[data, &END])?, limits)
        }
        decoded => decoded,
    }
}

/// A file that has its end chunk. Pillow does not look at the checksums of the pixels, but at those before them.
fn decode_checked(data: &[u8], limits: &Limits) -> Result<Stored> {
    match decode_closed(data, limits, true) {
        Err(Error::Image(what)) if what.ends_with(WRONG_PIXELS) => {
            decode_closed(data, limits, false)
        }
        decoded => decoded,
    }
}

const WRONG_PIXELS: &str = "the checksum of chunk IDAT is wrong";

/// The end chunk.
const END: [u8; 12] = *b"\0\0\0\0IEND\xaeB\x60\x82";

/// What is wrong with a file, in words.
fn bad(error: DecodingError) -> Error {
    let cut_short = "the file is cut short: it ends before the picture does";
    match error {
        DecodingError::IoError(source) if source.kind() == ErrorKind::UnexpectedEof => {
            damaged("PNG", cut_short)
        }
        DecodingError::Format(what) => {
            let said = what.to_string();
            let letters = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphabetic());
            let named = said.split("type: ").nth(1);
            let named =
                named.map(|rest| rest.get(..4).filter(letters).unwrap_or("of no known kind"));
            match named {
                _ if said.starts_with("Corrupt deflate stream") => {
                    damaged("PNG", "damaged: the compressed data cannot be unpacked")
                }
                _ if said.starts_with("IDAT or fDAT chunk does not have enough data") => {
                    damaged("PNG", cut_short)
                }
                Some(chunk) if said.starts_with("CRC error") => damaged(
                    "PNG",
                    format_args!("damaged: the checksum of chunk {chunk} is wrong"),
                ),
                Some(chunk) => damaged(
                    "PNG",
                    format_args!("damaged: chunk {chunk} is in a wrong place"),
                ),
                None => damaged(
                    "PNG",
                    format_args!("damaged: {}", said.trim_end_matches('.')),
                ),
            }
        }
        other => damaged("PNG", other),
    }
}

/// A file that has its end chunk, with the checksums of its chunks verified or not.
fn decode_closed(data: &[u8], limits: &Limits, verified: bool) -> Result<Stored> {
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(!verified);
    // Colour profiles are not applied (Pillow does not either), and they may be bombs: not even inflated.
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(data), options);
    decoder.set_limits(png::Limits {
        bytes: usize::try_from(limits.max_memory).unwrap_or(usize::MAX),
    });
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(bad)?;
    let (width, height) = (header.width as usize, header.height as usize);
    let channels = header.color_type.samples() as u64;
    check_size(
        "PNG",
        width,
        height,
        3 + channels * (header.bit_depth as u64).div_ceil(8),
        limits,
    )?;

    let mut reader = decoder.read_info().map_err(bad)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| damaged("PNG", "too large for this machine"))?;
    let mut samples: Vec<u8> = memory::zeros(size)?;
    let frame = reader.next_frame(&mut samples).map_err(bad)?;
    // Metadata may follow the pixels; what follows them in a damaged file does not make the pixels wrong.
    let _ = reader.finish();

    let info = reader.info();
    let orientation = info
        .exif_metadata
        .as_deref()
        .map_or_else(|| raw_profile(info), exif::orientation);
    let orientation = orientation.or_else(|| xmp(info)).unwrap_or(1);

    let mut pixels: Vec<u8> = memory::zeros(width * height * 3)?;
    let palette = info.palette.as_deref().unwrap_or(&[]);
    for (row, out) in samples
        .chunks_exact(frame.line_size)
        .zip(pixels.chunks_exact_mut(width * 3))
    {
        row_to_rgb(row, frame.color_type, frame.bit_depth, palette, out);
    }
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

/// One row of stored samples to RGB.
fn row_to_rgb(
    row: &[u8],
    color_type: ColorType,
    bit_depth: BitDepth,
    palette: &[u8],
    out: &mut [u8],
) {
    let grey = |out: &mut [u8], value: u8| out.fill(value);
    match (color_type, bit_depth) {
        (ColorType::Rgb, BitDepth::Eight) => out.copy_from_slice(row),
        (ColorType::Rgba, BitDepth::Eight) => {
            for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(4)) {
                out.copy_from_slice(&pixel[..3]);
            }
        }
        (ColorType::Rgb | ColorType::Rgba, _) => {
            for (out, pixel) in out
                .chunks_exact_mut(3)
                .zip(row.chunks_exact(color_type.samples() * 2))
            {
                out.copy_from_slice(&[pixel[0], pixel[2], pixel[4]]);
            }
        }
        (ColorType::GrayscaleAlpha, depth) => {
            let step = if depth == BitDepth::Sixteen { 4 } else { 2 };
            for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(step)) {
                grey(out, pixel[0]);
            }
        }
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(2)) {
                grey(out, pixel[0]);
            }
        }
        (ColorType::Grayscale | ColorType::Indexed, depth) => {
            let bits = depth as usize;
            let mask = (1_u16 << bits) as u8;
            let mask = mask.wrapping_sub(1);
            let scale = if color_type == ColorType::Grayscale {
                255 / mask
            } else {
                1
            };
            for (x, out) in out.chunks_exact_mut(3).enumerate() {
                let bit = x * bits;
                let value = (row[bit / 8] >> (8 - bits - bit % 8)) & mask;
                if color_type == ColorType::Grayscale {
                    grey(out, value * scale);
                } else {
                    // An index past the palette is black.
                    let at = value as usize * 3;
                    out.copy_from_slice(palette.get(at..at + 3).unwrap_or(&[0; 3]));
                }
            }
        }
    }
}

/// The XMP packet's orientation.
fn xmp(info: &png::Info<'_>) -> Option<u8> {
    let chunk = info
        .utf8_text
        .iter()
        .find(|chunk| chunk.keyword == "XML:com.adobe.xmp")?;
    exif::xmp_orientation(chunk.get_text().ok()?.as_bytes())
}

/// The orientation of an EXIF block that ImageMagick wrote as hexadecimal text ("Raw profile type exif").
fn raw_profile(info: &png::Info<'_>) -> Option<u8> {
    const KEY: &str = "Raw profile type exif";
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == KEY)
        .map(|chunk| chunk.text.clone());
    let packed = || {
        let chunk = info
            .compressed_latin1_text
            .iter()
            .find(|chunk| chunk.keyword == KEY)?;
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(1 << 20).ok()?;
        chunk.get_text().ok()
    };
    let text = plain.or_else(packed)?;
    // A blank line, the name, the length; then lines of hexadecimal digits.
    let digits: Vec<u8> = text
        .split('\n')
        .skip(3)
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| nibble(pair[0]) << 4 | nibble(pair[1]))
        .collect();
    exif::orientation(&bytes)
}
