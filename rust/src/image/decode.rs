//! Bytes to upright RGB: finds the format by content, hands over to its decoder, applies the orientation.
//!
//! The result is that of Pillow's `ImageOps.exif_transpose(Image.open(...)).convert("RGB")`: alpha is dropped, not
//! blended; 16-bit samples keep their high byte; palettes are looked up; the first frame of several is taken.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::format::{damaged, Choose, Decoder, Stored, Wanted};
use super::{bmp, exif, gif, jpeg, png, tiff, webp, Limits, Rgb};
use crate::error::{Error, Result};

/// The formats that are decoded: name and decoder, by the first bytes.
fn decoder_of(data: &[u8]) -> Option<(&'static str, Decoder)> {
    match data {
        [0xff, 0xd8, 0xff, ..] => Some(("JPEG", jpeg::decode)),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => {
            Some(("PNG", |data, limits, _| png::decode(data, limits)))
        }
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => {
            Some(("GIF", |data, limits, _| gif::decode(data, limits)))
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            Some(("WebP", |data, limits, _| webp::decode(data, limits)))
        }
        [b'I', b'I', 0x2a | 0x2b, 0, ..]
        | [b'M', b'M', 0, 0x2a | 0x2b, ..]
        | [b'M', b'M', 0x2a, 0, ..]
        | [b'I', b'I', 0, 0x2a, ..]
        | [b'I', b'I', b'R' | b'U', ..] => {
            Some(("TIFF", |data, limits, _| tiff::decode(data, limits)))
        }
        [b'B', b'M', ..] => Some(("BMP", |data, limits, _| bmp::decode(data, limits))),
        _ if bmp::is_dib(data) => Some(("BMP", |data, limits, _| bmp::decode(data, limits))),
        _ => None,
    }
}

/// The name of what else the bytes may be, for the message.
fn name_of_other(data: &[u8]) -> String {
    let brand = |data: &[u8]| match data.get(8..12) {
        Some(b"avif" | b"avis") => "AVIF",
        Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1" | b"heim" | b"heis") => "HEIF",
        _ => "MP4",
    };
    let name = match data {
        [] => return "the file is empty".into(),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => brand(data),
        [0, 0, 0, 0x0c, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => "JPEG 2000",
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', b' ', ..] => "JPEG XL",
        [0, 0, 1 | 2, 0, ..] => "icon (ICO)",
        [b'8', b'B', b'P', b'S', ..] => "Photoshop (PSD)",
        [b'%', b'P', b'D', b'F', ..] => "PDF",
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => "portable pixmap (PNM)",
        [b'P', b'K', 3, 4, ..] => "ZIP archive",
        [0x1f, 0x8b, ..] => "gzip archive",
        [b'#', b'?', b'R', b'A', b'D', ..] => "Radiance HDR",
        [b'q', b'o', b'i', b'f', ..] => "QOI",
        _ => {
            let start = &data[..data.len().min(256)];
            let lower = start.to_ascii_lowercase();
            let holds = |what: &[u8]| lower.windows(what.len()).any(|window| window == what);
            if holds(b"<svg") {
                "SVG"
            } else if holds(b"<!doctype html") || holds(b"<html") {
                "HTML page"
            } else if std::str::from_utf8(&start[..start.len().min(253)]).is_ok_and(|text| {
                text.chars()
                    .all(|letter| !letter.is_control() || letter.is_whitespace())
            }) {
                "text file"
            } else {
                let shown: Vec<String> = start
                    .iter()
                    .take(8)
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                return format!("no image format begins with the bytes {}", shown.join(" "));
            }
        }
    };
    format!("this is a file of another kind: {name}")
}

/// Decodes one image to upright RGB.
///
/// Fails with [`Error::Image`] where the bytes are of another format, damaged, cut short, or over the limits.
pub fn decode(data: &[u8], limits: &Limits) -> Result<Rgb> {
    Ok(decode_wanted(data, limits, &|_, _| Wanted::ALL)?.0)
}

/// Decodes what is wanted of an image to upright RGB, and says at how many eighths of its size it is.
pub fn decode_wanted(data: &[u8], limits: &Limits, choose: Choose<'_>) -> Result<(Rgb, usize)> {
    let Some((name, decoder)) = decoder_of(data) else {
        return Err(Error::Image(format!(
            "{}; supported are JPEG (MPO), PNG, WebP, GIF, BMP and TIFF, whatever the file's name",
            name_of_other(data)
        )));
    };
    // No input is known on which a decoder panics; if one does, the sample is lost and not the process.
    let stored =
        catch_unwind(AssertUnwindSafe(|| decoder(data, limits, choose))).unwrap_or_else(|_| {
            Err(damaged(
                name,
                "damaged in a way that the decoder did not expect",
            ))
        })?;
    let Stored {
        image,
        orientation,
        eighths,
    } = stored;
    Ok((exif::upright(image, orientation)?, eighths))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &[u8]) -> String {
        decode(data, &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        for (data, name) in [
            (b"\0\0\0\x20ftypavif".as_slice(), "AVIF"),
            (b"\0\0\0\x20ftypheic", "HEIF"),
            (b"", "empty"),
            (b"hello, world", "text file"),
            (b"<?xml version='1.0'?><svg>", "SVG"),
            (b"\x01\x02\x03\x04", "01 02 03 04"),
        ] {
            assert!(message(data).contains(name), "{name}: {}", message(data));
        }
    }

    #[test]
    fn bare_signatures_are_errors() {
        for data in [
            b"\xff\xd8\xff".as_slice(),
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"RIFF\0\0\0\0WEBP",
            b"BM",
            b"II\x2a\0",
        ] {
            message(data);
        }
    }
}
