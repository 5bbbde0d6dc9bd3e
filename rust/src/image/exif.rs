//! The orientation of a picture: read from EXIF or XMP as Pillow reads it, and applied to the pixels.

use super::Rgb;
use crate::error::Result;
use crate::memory;

/// Orientation tag of the first directory of an EXIF block: 1 where its value is no orientation or the block is damaged,
/// `None` where there is no such tag and an XMP packet may say it.
///
/// `exif` is a TIFF structure, with or without `Exif\0\0` (once or twice) before it. Entries are read as Pillow reads them:
/// of any numeric type, the first value of several, up to the first entry whose data are not there.
pub fn orientation(exif: &[u8]) -> Option<u8> {
    let mut tiff = exif;
    for _ in 0..2 {
        tiff = tiff.strip_prefix(b"Exif\0\0").unwrap_or(tiff);
    }
    let little = match tiff {
        [] => return None,
        [b'I', b'I', 0x2a, 0, _, _, _, _, ..] | [b'I', b'I', 0, 0x2a, _, _, _, _, ..] => true,
        [b'M', b'M', 0, 0x2a, _, _, _, _, ..] | [b'M', b'M', 0x2a, 0, _, _, _, _, ..] => false,
        _ => return Some(1),
    };
    let read = |at: usize, size: usize| {
        let bytes = tiff.get(at..at.checked_add(size)?)?.iter();
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little {
            bytes.rev().fold(0, add)
        } else {
            bytes.fold(0, add)
        })
    };
    let directory = read(4, 4)? as usize;
    let mut total = 0;
    for entry in 0..read(directory, 2)? as usize {
        let at = directory.checked_add(2 + 12 * entry)?;
        let (tag, kind, count) = (read(at, 2)?, read(at + 2, 2)?, read(at + 4, 4)? as usize);
        let inside = read(at + 8, 4)? as usize;
        let unit = match kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => continue,
        };
        let size = count * unit;
        let mut place = at + 8;
        if size > 4 {
            total += size;
            if total > tiff.len() {
                continue;
            }
            place = inside;
            tiff.get(place..place.checked_add(size)?)?;
        }
        if tag != 0x0112 || size == 0 {
            continue;
        }
        let bits = read(place, unit)?;
        let (high, low) = (read(place, 4), read(place + unit / 2, 4));
        let value = match kind {
            3 | 4 | 13 | 16 => bits as f64,
            6 => f64::from(bits as i8),
            8 => f64::from(bits as i16),
            9 => f64::from(bits as i32),
            11 => f64::from(f32::from_bits(bits as u32)),
            12 => f64::from_bits(bits),
            5 => high? as f64 / low? as f64,
            10 => f64::from(high? as i32) / f64::from(low? as i32),
            // Bytes and text.
            _ => 1.0,
        };
        return Some(
            (1..=8)
                .find(|&known| f64::from(known) == value)
                .unwrap_or(1),
        );
    }
    None
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>` in an XMP packet.
pub fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let after = rest
            .strip_prefix(b"=\"")
            .or_else(|| rest.strip_prefix(b">"));
        if let Some(digit) = after
            .and_then(<[u8]>::first)
            .filter(|byte| byte.is_ascii_digit())
        {
            return Some(digit - b'0');
        }
    }
    None
}

/// Turns the stored picture upright: the eight orientations of EXIF, anything else leaves it as it is.
pub fn upright(image: Rgb, orientation: u8) -> Result<Rgb> {
    let (width, height) = (image.width, image.height);
    Ok(match orientation {
        2 | 3 => {
            let mut image = if orientation == 3 {
                flip_rows(image)
            } else {
                image
            };
            for row in image.pixels.chunks_exact_mut(width * 3) {
                mirror(row);
            }
            image
        }
        4 => flip_rows(image),
        // 5 transpose, 6 quarter turn clockwise, 7 transverse, 8 quarter turn counter-clockwise:
        // out(x, y) = in(y', x') with either coordinate reversed.
        5..=8 => {
            let reverse_x = orientation == 7 || orientation == 8;
            let reverse_y = orientation == 6 || orientation == 7;
            let mut pixels: Vec<u8> = memory::zeros(image.pixels.len())?;
            // Tiles keep both sides in cache.
            const TILE: usize = 32;
            for top in (0..width).step_by(TILE) {
                for left in (0..height).step_by(TILE) {
                    for y in top..(top + TILE).min(width) {
                        let from_x = if reverse_x { width - 1 - y } else { y };
                        for x in left..(left + TILE).min(height) {
                            let from_y = if reverse_y { height - 1 - x } else { x };
                            let from = (from_y * width + from_x) * 3;
                            let to = (y * height + x) * 3;
                            pixels[to..to + 3].copy_from_slice(&image.pixels[from..from + 3]);
                        }
                    }
                }
            }
            Rgb {
                width: height,
                height: width,
                pixels,
            }
        }
        _ => image,
    })
}

fn flip_rows(mut image: Rgb) -> Rgb {
    let row = image.width * 3;
    let (upper, lower) = image.pixels.split_at_mut(image.height / 2 * row);
    for (above, below) in upper
        .chunks_exact_mut(row)
        .zip(lower.rchunks_exact_mut(row))
    {
        above.swap_with_slice(below);
    }
    image
}

fn mirror(row: &mut [u8]) {
    let pixels = row.len() / 3;
    for x in 0..pixels / 2 {
        for channel in 0..3 {
            row.swap(x * 3 + channel, (pixels - 1 - x) * 3 + channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Rgb {
        // a b c
        // d e f
        let pixels = b"abcdef".iter().flat_map(|&byte| [byte; 3]).collect();
        Rgb {
            width: 3,
            height: 2,
            pixels,
        }
    }

    #[test]
    fn eight_orientations() {
        let expected: [(usize, &[u8]); 8] = [
            (3, b"abcdef"),
            (3, b"cbafed"),
            (3, b"fedcba"),
            (3, b"defabc"),
            (2, b"adbecf"),
            (2, b"daebfc"),
            (2, b"fcebda"),
            (2, b"cfbead"),
        ];
        for (index, (width, letters)) in expected.into_iter().enumerate() {
            let out = upright(image(), index as u8 + 1).unwrap();
            let got: Vec<u8> = out.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect();
            assert_eq!(
                (out.width, got.as_slice()),
                (width, letters),
                "orientation {}",
                index + 1
            );
        }
    }

    #[test]
    fn tag_of_either_byte_order() {
        let little = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
        assert_eq!((orientation(little), orientation(big)), (Some(6), Some(8)));
        for length in 0..big.len() {
            let damaged = (1..8).contains(&length);
            assert_eq!(orientation(&big[..length]), damaged.then_some(1));
        }
        assert_eq!(orientation(b"II\x2a\0\xff\xff\xff\xff\x01\0"), None);
    }

    #[test]
    fn digit_in_xmp() {
        assert_eq!(xmp_orientation(b"<x tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(
            xmp_orientation(b"tiff:Orientation tiff:Orientation>8<"),
            Some(8)
        );
        assert_eq!(xmp_orientation(b"tiff:Orientation=\""), None);
    }
}
