//! What the decoders of all formats share: request, result, errors and the check of a declared size.

use super::geometry::Area;
use super::{Limits, Rgb};
use crate::error::{Error, Result};

/// Result of a format's decoder: the picture as stored, and the orientation that its metadata ask for.
pub(super) struct Stored {
    pub image: Rgb,
    pub orientation: u8,
    /// Size of `image` in eighths of the declared one.
    pub eighths: usize,
}

/// What of a picture is wanted. Only JPEG's decoder leaves out the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Size in eighths: 8, or 4, 2 or 1 for a picture made smaller while it is decoded. Sides are rounded up.
    pub eighths: usize,
    /// The part that is needed, in pixels of the result; `None` for all of it. Pixels outside it are undefined.
    pub area: Option<Area>,
}

impl Wanted {
    /// The whole picture.
    pub const ALL: Wanted = Wanted {
        eighths: 8,
        area: None,
    };

    /// Width and height of the result for a picture of this size.
    pub fn size_of(&self, width: usize, height: usize) -> (usize, usize) {
        (
            (width * self.eighths).div_ceil(8),
            (height * self.eighths).div_ceil(8),
        )
    }
}

/// Says what is wanted of a picture of this (upright) width and height. Asked once the size is known.
pub type Choose<'a> = &'a dyn Fn(usize, usize) -> Wanted;

/// An error that names the format: `JPEG image: ...`.
pub(super) fn damaged(format: &str, what: impl std::fmt::Display) -> Error {
    Error::Image(format!("{format} image: {what}"))
}

/// Checks a declared size against the limits before anything is allocated for it.
///
/// `bytes_a_pixel` is what the decoder holds for each pixel, the RGB result included.
pub(super) fn check_size(
    format: &str,
    width: usize,
    height: usize,
    bytes_a_pixel: u64,
    limits: &Limits,
) -> Result<()> {
    let pixels = width as u64 * height as u64;
    if pixels == 0 {
        return Err(damaged(
            format,
            format_args!("declares {width}x{height}, which has no pixels"),
        ));
    }
    if pixels > limits.max_pixels {
        return Err(damaged(
            format,
            format_args!(
                "declares {width}x{height}, more than the limit of {} pixels",
                limits.max_pixels
            ),
        ));
    }
    if pixels.saturating_mul(bytes_a_pixel) > limits.max_memory {
        let need = pixels.saturating_mul(bytes_a_pixel) >> 20;
        let limit = limits.max_memory >> 20;
        return Err(damaged(
            format,
            format_args!(
                "{width}x{height} takes {need} MiB to decode, more than the limit of {limit} MiB"
            ),
        ));
    }
    Ok(())
}

/// RGBA to RGB, in place.
pub(super) fn without_alpha(mut pixels: Vec<u8>) -> Vec<u8> {
    let count = pixels.len() / 4;
    for index in 1..count {
        pixels.copy_within(index * 4..index * 4 + 3, index * 3);
    }
    pixels.truncate(count * 3);
    pixels
}

/// Bytes of one format to a picture; [`damaged`] says what is wrong with them.
pub(super) type Decoder = fn(&[u8], &Limits, Choose<'_>) -> Result<Stored>;
