//! Bytes to upright RGB: finds the format by content, hands over to its decoder, applies the orientation.
//!
//! The result is that of Pillow's `ImageOps.exif_transpose(Image.open(...)).convert("RGB")`: alpha is dropped, not
//! blended; 16-bit samples keep their high byte; palettes are looked up; the first frame of several is taken.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::format::{damaged, Choose, Decoder, Stored, Wanted};
use super::{bmp, exif, gif, jpeg, others, png, tiff, webp, Limits, Rgb};
use crate::error::Result;

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

/// Decodes one image to upright RGB.
///
/// Fails with [`Error::Image`] where the bytes are of another format, damaged, cut short, or over the limits.
pub fn decode(data: &[u8], limits: &Limits) -> Result<Rgb> {
    Ok(decode_wanted(data, limits, &|_, _| Wanted::ALL)?.0)
}

/// Decodes what is wanted of an image to upright RGB, and says at how many eighths of its size it is.
pub fn decode_wanted(data: &[u8], limits: &Limits, choose: Choose<'_>) -> Result<(Rgb, usize)> {
    let Some((name, decoder)) = decoder_of(data) else {
        return Ok((others::decode(data, limits)?, 8));
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
