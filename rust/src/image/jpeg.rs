//! JPEG: the headers read as libjpeg and Pillow read them, the pixels decoded by `zune-jpeg`.
//!
//! The crate is given a stream that we wrote anew from the file's segments: nothing but tables, frame and scans, and
//! component numbers that leave no doubt about the colour space, because its own guesses differ from libjpeg's.

use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::decode::{check_size, damaged, Stored};
use super::{exif, Limits, Rgb};
use crate::error::{Error, Result};

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP14: u8 = 0xee;

/// The colour space of the stored samples, by libjpeg's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

struct Component {
    id: u8,
    horizontal: usize,
    vertical: usize,
}

struct Frame {
    width: usize,
    height: usize,
    components: Vec<Component>,
}

/// What the headers of a file say, and the stream for the crate.
struct Headers {
    frame: Frame,
    colors: Colors,
    orientation: u8,
    stream: Vec<u8>,
}

fn bad(what: impl std::fmt::Display) -> Error {
    damaged("JPEG", what)
}

fn cut_short() -> Error {
    bad("the file is cut short: it ends before the picture does")
}

/// The first picture of a JPEG (or MPO) file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    let headers = read_headers(data, limits)?;
    let Headers {
        frame,
        colors,
        orientation,
        stream,
    } = headers;
    let out = match colors {
        Colors::Grey => ColorSpace::Luma,
        Colors::YCbCr | Colors::Rgb => ColorSpace::RGB,
        Colors::Cmyk => ColorSpace::CMYK,
        Colors::Ycck => ColorSpace::YCCK,
    };
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(out);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&stream), options);
    let samples = decoder.decode().map_err(bad)?;
    let expected = frame.width * frame.height * out.num_components();
    if samples.len() != expected {
        return Err(bad(format_args!(
            "decoded to {} samples, {expected} were declared",
            samples.len()
        )));
    }
    let pixels = match colors {
        Colors::Grey => samples.iter().flat_map(|&level| [level; 3]).collect(),
        Colors::YCbCr | Colors::Rgb => samples,
        Colors::Cmyk => samples
            .chunks_exact(4)
            .flat_map(|ink| inks_to_rgb([ink[0], ink[1], ink[2]], ink[3]))
            .collect(),
        Colors::Ycck => samples
            .chunks_exact(4)
            .flat_map(|ink| {
                inks_to_rgb(
                    ycc_to_rgb(ink[0], ink[1], ink[2]).map(|level| 255 - level),
                    ink[3],
                )
            })
            .collect(),
    };
    Ok(Stored {
        image: Rgb {
            width: frame.width,
            height: frame.height,
            pixels,
        },
        orientation,
    })
}

/// Stored inks (inverted, as Adobe writes them and Pillow assumes of every file) to RGB by Pillow's formula.
fn inks_to_rgb(stored: [u8; 3], stored_black: u8) -> [u8; 3] {
    let light = u32::from(stored_black);
    stored.map(|ink| {
        let product = u32::from(255 - ink) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

/// libjpeg's integer conversion.
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|level| level.clamp(0, 255) as u8)
}

/// Walks the whole file, marker by marker.
fn read_headers(data: &[u8], limits: &Limits) -> Result<Headers> {
    let mut frame: Option<Frame> = None;
    let mut colors = Colors::Grey;
    let (mut jfif, mut adobe) = (false, None);
    let mut exif_block = Vec::new();
    let mut xmp_orientation = None;
    let mut scans = 0;
    let mut at = 2;
    let mut stream = Vec::with_capacity(data.len() + 32);
    stream.extend_from_slice(&[0xff, SOI]);
    loop {
        // The next marker, over whatever lies between: fill bytes, and junk that other decoders skip too.
        let marker = loop {
            let skip = data
                .get(at..)
                .and_then(|rest| rest.iter().position(|&byte| byte == 0xff));
            at += skip.ok_or_else(cut_short)? + 1;
            match data.get(at) {
                None => return Err(cut_short()),
                Some(0 | 0xff) => {}
                Some(&marker) => {
                    at += 1;
                    break marker;
                }
            }
        };
        if marker == EOI {
            if scans == 0 {
                return Err(bad("ends before any picture data"));
            }
            stream.extend_from_slice(&[0xff, EOI]);
            break;
        }
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let length = match data.get(at..at + 2) {
            Some(bytes) => usize::from(u16::from_be_bytes([bytes[0], bytes[1]])),
            None => return Err(cut_short()),
        };
        if length < 2 {
            return Err(bad(format_args!(
                "a segment (marker {marker:02x}) declares a length of {length}"
            )));
        }
        let body = data.get(at + 2..at + length).ok_or_else(cut_short)?;
        at += length;
        match marker {
            0xc0..=0xc2 => {
                if frame.is_some() {
                    return Err(bad("declares two frames"));
                }
                let (new, rewritten) = {
                    let new = read_frame(marker, body, limits)?;
                    colors = colors_of(&new.components, jfif, adobe)?;
                    let rewritten = rewrite_frame(body, &new, colors);
                    (new, rewritten)
                };
                check_length(&new, data.len())?;
                match colors {
                    Colors::Cmyk => push_adobe(&mut stream, 0),
                    Colors::Ycck => push_adobe(&mut stream, 2),
                    _ => {}
                }
                push_segment(&mut stream, marker, &rewritten);
                frame = Some(new);
            }
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(bad(unsupported_process(marker)))
            }
            // Tables and the restart interval.
            0xc4 | 0xdb | 0xdd => push_segment(&mut stream, marker, body),
            SOS => {
                let frame = frame
                    .as_ref()
                    .ok_or_else(|| bad("has a scan before its frame header"))?;
                push_segment(&mut stream, marker, &rewrite_scan(body, frame, colors)?);
                let end = at + entropy_length(&data[at..]);
                stream.extend_from_slice(&data[at..end]);
                at = end;
                scans += 1;
            }
            0xe0 => jfif |= body.starts_with(b"JFIF\0"),
            0xe1 => {
                if let Some(block) = body.strip_prefix(b"Exif\0\0") {
                    exif_block.extend_from_slice(block);
                } else if let Some(packet) = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    xmp_orientation = exif::xmp_orientation(packet);
                }
            }
            APP14 if body.starts_with(b"Adobe") && body.len() >= 12 => adobe = Some(body[11]),
            _ => {}
        }
    }
    let frame = frame.ok_or_else(|| bad("has no frame header"))?;
    let orientation = exif::orientation(&exif_block)
        .or(xmp_orientation)
        .unwrap_or(1);
    Ok(Headers {
        frame,
        colors,
        orientation,
        stream,
    })
}

fn unsupported_process(marker: u8) -> &'static str {
    match marker {
        0xc3 => "lossless JPEG is not supported",
        0xc9..=0xcb | 0xcd..=0xcf => "arithmetic coding is not supported",
        _ => "hierarchical JPEG is not supported",
    }
}

fn read_frame(marker: u8, body: &[u8], limits: &Limits) -> Result<Frame> {
    let [precision, height_high, height_low, width_high, width_low, count, rest @ ..] = body else {
        return Err(cut_short());
    };
    if *precision != 8 {
        return Err(bad(format_args!(
            "{precision} bits a sample are not supported, only 8"
        )));
    }
    let height = usize::from(u16::from_be_bytes([*height_high, *height_low]));
    let width = usize::from(u16::from_be_bytes([*width_high, *width_low]));
    let count = usize::from(*count);
    if !matches!(count, 1 | 3 | 4) {
        return Err(bad(format_args!(
            "{count} components are not supported, only 1, 3 or 4"
        )));
    }
    if rest.len() < 3 * count {
        return Err(cut_short());
    }
    let components: Vec<Component> = rest
        .chunks_exact(3)
        .take(count)
        .map(|entry| Component {
            id: entry[0],
            horizontal: usize::from(entry[1] >> 4),
            vertical: usize::from(entry[1] & 15),
        })
        .collect();
    if let Some(odd) = components
        .iter()
        .find(|c| !(1..=4).contains(&c.horizontal) || !(1..=4).contains(&c.vertical))
    {
        return Err(bad(format_args!(
            "a sampling factor is {}x{}, not within 1 to 4",
            odd.horizontal, odd.vertical
        )));
    }
    let progressive = marker == 0xc2;
    let wide = if count == 4 { 4 } else { 0 };
    let coefficients = if progressive { 2 * count as u64 } else { 0 };
    check_size("JPEG", width, height, 3 + wide + coefficients, limits)?;
    Ok(Frame {
        width,
        height,
        components,
    })
}

/// Refuses a frame whose blocks cannot all be in a file of this length: a block takes at least one bit.
fn check_length(frame: &Frame, length: usize) -> Result<()> {
    let across = frame
        .components
        .iter()
        .map(|component| component.horizontal)
        .max()
        .unwrap_or(1)
        * 8;
    let down = frame
        .components
        .iter()
        .map(|component| component.vertical)
        .max()
        .unwrap_or(1)
        * 8;
    let units = frame.width.div_ceil(across) * frame.height.div_ceil(down);
    if units > length.saturating_mul(8) {
        return Err(bad(format_args!(
            "the file is cut short: {}x{} cannot be in {length} bytes",
            frame.width, frame.height
        )));
    }
    Ok(())
}

fn colors_of(components: &[Component], jfif: bool, adobe: Option<u8>) -> Result<Colors> {
    let ids: Vec<u8> = components.iter().map(|component| component.id).collect();
    Ok(match (components.len(), adobe) {
        (1, _) => Colors::Grey,
        (3, _) if jfif => Colors::YCbCr,
        (3, Some(0)) => Colors::Rgb,
        (3, None) if ids == *b"RGB" => Colors::Rgb,
        (3, _) => Colors::YCbCr,
        (_, None | Some(0)) => Colors::Cmyk,
        _ => Colors::Ycck,
    })
}

/// Component numbers that the crate understands as the colour space that we found.
fn canonical_id(index: usize, colors: Colors) -> u8 {
    if colors == Colors::Rgb {
        b"RGB"[index]
    } else {
        index as u8 + 1
    }
}

fn rewrite_frame(body: &[u8], frame: &Frame, colors: Colors) -> Vec<u8> {
    let mut rewritten = body[..6 + 3 * frame.components.len()].to_vec();
    for index in 0..frame.components.len() {
        rewritten[6 + 3 * index] = canonical_id(index, colors);
    }
    rewritten
}

fn rewrite_scan(body: &[u8], frame: &Frame, colors: Colors) -> Result<Vec<u8>> {
    let count = usize::from(*body.first().ok_or_else(cut_short)?);
    if !(1..=4).contains(&count) || body.len() < 1 + 2 * count + 3 {
        return Err(bad(format_args!(
            "a scan declares {count} components in {} bytes",
            body.len()
        )));
    }
    let mut rewritten = body[..1 + 2 * count + 3].to_vec();
    for entry in rewritten[1..1 + 2 * count].chunks_exact_mut(2) {
        let index = frame
            .components
            .iter()
            .position(|component| component.id == entry[0]);
        let index = index.ok_or_else(|| {
            bad(format_args!(
                "a scan names component {}, which the frame lacks",
                entry[0]
            ))
        })?;
        entry[0] = canonical_id(index, colors);
    }
    Ok(rewritten)
}

fn push_segment(stream: &mut Vec<u8>, marker: u8, body: &[u8]) {
    let length = (body.len() + 2) as u16;
    stream.extend_from_slice(&[0xff, marker]);
    stream.extend_from_slice(&length.to_be_bytes());
    stream.extend_from_slice(body);
}

fn push_adobe(stream: &mut Vec<u8>, transform: u8) {
    let mut body = *b"Adobe\0\x64\0\0\0\0\0";
    body[11] = transform;
    push_segment(stream, APP14, &body);
}

/// Bytes of entropy-coded data before the next marker that ends them.
fn entropy_length(data: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = data[at..].iter().position(|&byte| byte == 0xff) {
        at += found;
        match data.get(at + 1) {
            Some(0 | 0xd0..=0xd7) => at += 2,
            Some(0xff) => at += 1,
            _ => return at,
        }
    }
    data.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_constants_at_the_corners() {
        assert_eq!(ycc_to_rgb(255, 128, 128), [255; 3]);
        assert_eq!(ycc_to_rgb(76, 85, 255), [254, 0, 0]);
        assert_eq!(inks_to_rgb([255, 255, 255], 255), [255; 3]);
        assert_eq!(inks_to_rgb([0, 128, 255], 255), [0, 128, 255]);
        assert_eq!(inks_to_rgb([9, 9, 9], 0), [0; 3]);
    }

    #[test]
    fn entropy_ends_at_a_marker() {
        assert_eq!(entropy_length(b"ab\xff\0c\xff\xd3d\xff\xd9rest"), 9);
        assert_eq!(entropy_length(b"ab\xff\0c"), 5);
        assert_eq!(entropy_length(b"ab\xff"), 2);
    }
}
