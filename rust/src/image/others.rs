//! Files of other formats, by their first bytes: those that a decoder outside the core reads, and those that are refused.

use std::sync::OnceLock;

use super::{Limits, Rgb};
use crate::error::{Error, Result};

/// Decodes a file of the named format to upright RGB.
pub type Outside = Box<dyn Fn(&[u8], &str, &Limits) -> Result<Rgb> + Send + Sync>;

static OUTSIDE: OnceLock<Outside> = OnceLock::new();

/// Sets who decodes AVIF, HEIC, JPEG 2000 and JPEG XL; the first one stays.
pub fn decode_others_by(decoder: Outside) {
    let _ = OUTSIDE.set(decoder);
}

/// The format that the bytes are in, of those that are decoded outside.
fn outside(data: &[u8]) -> Option<&'static str> {
    match data {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
            let length = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
            let brands = data.get(8..length.clamp(8, data.len()).min(256))?;
            let has = |names: &[&[u8; 4]]| {
                brands
                    .chunks_exact(4)
                    .any(|brand| names.iter().any(|name| brand == *name))
            };
            if has(&[b"avif", b"avis"]) {
                Some("AVIF")
            } else if has(&[
                b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1",
            ]) {
                Some("HEIC")
            } else {
                None
            }
        }
        [0, 0, 0, 0x0c, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => Some("JPEG 2000"),
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', b' ', ..] => Some("JPEG XL"),
        _ => None,
    }
}

/// A picture of a format that is decoded outside, upright, or the error that names what the file is.
pub fn decode(data: &[u8], limits: &Limits) -> Result<Rgb> {
    match (outside(data), OUTSIDE.get()) {
        (Some(name), Some(decoder)) => decoder(data, name, limits),
        (name, _) => Err(Error::Image(format!(
            "{}; supported are JPEG (MPO), PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 and JPEG XL, whatever the file's name",
            name.map_or_else(
                || refusal(data),
                |name| format!("this is a file of another kind: {name}")
            )
        ))),
    }
}

const AS_PNG: &str = "save it as PNG or JPEG";
const DEVELOP: &str = "develop it as JPEG or TIFF, with darktable or dcraw";

/// What the bytes may be, and what makes a picture of them.
fn refusal(data: &[u8]) -> String {
    let start = &data[..data.len().min(256)];
    let lower = start.to_ascii_lowercase();
    let holds = |what: &[u8]| lower.windows(what.len()).any(|window| window == what);
    let is_text = || {
        std::str::from_utf8(&start[..start.len().min(253)]).is_ok_and(|text| {
            text.chars()
                .all(|letter| !letter.is_control() || letter.is_whitespace())
        })
    };
    let (name, advice) = match data {
        [] => return "the file is empty".into(),
        [_, _, _, _, b'f', b't', b'y', b'p', b'c', b'r', b'x', ..]
        | [b'F', b'U', b'J', b'I', b'F', b'I', b'L', b'M', ..]
        | [b'F', b'O', b'V', b'b', ..] => ("a camera's raw file", DEVELOP),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
            ("MP4", "take single pictures out of it, with ffmpeg")
        }
        _ if data.get(128..132) == Some(b"DICM") => {
            ("DICOM", "convert it to PNG, with dcm2img of DCMTK")
        }
        [0, 0, 1 | 2, 0, ..] => ("icon (ICO)", AS_PNG),
        [b'8', b'B', b'P', b'S', ..] => ("Photoshop (PSD)", AS_PNG),
        [b'%', b'P', b'D', b'F', ..] => ("PDF", "draw its pages as PNG, with pdftoppm"),
        [b'%', b'!', ..] | [0xc5, 0xd0, 0xd3, 0xc6, ..] => {
            ("PostScript", "draw it as PNG, with Ghostscript")
        }
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => ("portable pixmap (PNM)", AS_PNG),
        [b'P', b'K', 3, 4, ..] => ("ZIP archive", "unpack it"),
        [0x1f, 0x8b, ..] => ("gzip archive", "unpack it"),
        [b'#', b'?', b'R', b'A', b'D', ..] => ("Radiance HDR", AS_PNG),
        [b'q', b'o', b'i', b'f', ..] => ("QOI", AS_PNG),
        _ if holds(b"<svg") => ("SVG", "draw it as PNG, with rsvg-convert"),
        _ if holds(b"<!doctype html") || holds(b"<html") => {
            ("HTML page", "download the picture itself")
        }
        _ if is_text() => return "this is a file of another kind: text file".into(),
        _ => {
            let shown: Vec<String> = start
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            return format!("no image format begins with the bytes {}", shown.join(" "));
        }
    };
    format!("this is a file of another kind: {name}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_refused_by_name() {
        let mut dicom = [0; 140];
        dicom[128..132].copy_from_slice(b"DICM");
        for (data, name) in [
            (b"\0\0\0\x14ftypavif\0\0\0\0mif1".as_slice(), "AVIF"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
            (b"\0\0\0\x14ftypheic\0\0\0\0mif1", "HEIC"),
            (b"\0\0\0\x14ftypcrx \0\0\0\0crx ", "raw file; develop"),
            (b"\xff\x0a\0", "JPEG XL"),
            (&dicom, "DICOM; convert it to PNG"),
            (b"%!PS-Adobe-3.0", "PostScript; draw"),
            (b"8BPS\0\x01", "Photoshop (PSD); save"),
            (b"", "empty"),
            (b"hello, world", "text file"),
            (b"<?xml version='1.0'?><svg>", "SVG; draw"),
            (b"\x01\x02\x03\x04", "01 02 03 04"),
        ] {
            let message = decode(data, &Limits::default()).unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
    }
}
