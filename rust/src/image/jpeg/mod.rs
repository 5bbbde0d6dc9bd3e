//! JPEG, sequential and progressive, to the bit as libjpeg-turbo decodes it for Pillow.
//!
//! A decoder of our own, because the pixels must not depend on who decodes: crates that need no assembler to build differ
//! from libjpeg by up to 4 levels where colours are subsampled, garble valid files (grey with restart intervals), and
//! treat damage in ways of their own. Not decoded: arithmetic coding, lossless, hierarchical and 12-bit files.

mod bits;
mod codes;
mod error;
mod frame;
mod huffman;
mod idct;
#[cfg(target_arch = "x86_64")]
mod idct_v3;
mod pairs;
mod part;
mod progressive;
mod render;
mod scan;
mod segments;
mod sequential;
mod skip;
mod smooth;
mod standard;

pub(super) use render::{inks_to_rgb, Colors};

use error::bad;
use idct::{Portable, Transform};
use segments::File;
use smooth::Smoothing;

use super::format::{Choose, Stored, Wanted};
use super::{pool, Limits, Rgb};
use crate::error::Result;

/// The first picture of a JPEG (or MPO) file, as stored, of which only what `choose` wants must be there.
pub(super) fn decode(data: &[u8], limits: &Limits, choose: Choose<'_>) -> Result<Stored> {
    decode_of(data, limits, choose, None)
}

/// A picture that is part of a file of another format, which says what its samples mean.
pub(super) fn decode_as(data: &[u8], colors: Colors, limits: &Limits) -> Result<Rgb> {
    Ok(decode_of(data, limits, &|_, _| Wanted::ALL, Some(colors))?.image)
}

fn decode_of(
    data: &[u8],
    limits: &Limits,
    choose: Choose<'_>,
    colors: Option<Colors>,
) -> Result<Stored> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(Decode {
            simd,
            data,
            limits,
            choose,
            colors,
        });
    }
    decode_inner(Portable, data, limits, choose, colors)
}

/// A call of [`decode_inner`] as a struct: a closure might not be inlined into the code compiled for AVX2.
#[cfg(target_arch = "x86_64")]
struct Decode<'a> {
    simd: pulp::x86::V3,
    data: &'a [u8],
    limits: &'a Limits,
    choose: Choose<'a>,
    colors: Option<Colors>,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Decode<'_> {
    type Output = Result<Stored>;

    #[inline(always)]
    fn call(self) -> Result<Stored> {
        decode_inner(self.simd, self.data, self.limits, self.choose, self.colors)
    }
}

#[inline(always)]
fn decode_inner<T: Transform>(
    transform: T,
    data: &[u8],
    limits: &Limits,
    choose: Choose<'_>,
    colors: Option<Colors>,
) -> Result<Stored> {
    let mut file = File::new(data, limits, choose);
    loop {
        match file.next_segment() {
            Ok(Some((marker, body))) => file.segment(transform, marker, body)?,
            Ok(None) => break,
            // The end marker is missing, but no sample is.
            Err(_) if file.whole => break,
            Err(error) => return Err(error),
        }
    }
    let orientation = file.orientation();
    let File {
        frame,
        jfif,
        adobe,
        scans,
        ..
    } = file;
    let nothing = || bad("ends before any picture data");
    let mut frame = frame.ok_or_else(nothing)?;
    let wanted = frame.wanted.ok_or_else(nothing)?;
    if orientation != 1 && wanted.area.is_some() {
        // The orientation came after the picture: what was left out may be what is wanted.
        return decode_inner_whole(data, limits, colors);
    }
    let colors = match colors {
        None => render::colors_of(&frame.components, jfif, adobe),
        Some(colors) if colors.components() == frame.components.len() => colors,
        Some(_) => {
            return Err(bad(
                "damaged: has more or fewer components than its file declares",
            ))
        }
    };
    let smoothing = if frame.progressive {
        Smoothing::of(&frame, scans)
    } else {
        None
    };
    for (index, component) in frame.components.iter_mut().enumerate() {
        if !component.started {
            component.plane.fill(128);
        } else if frame.progressive {
            component.put_all(transform, smoothing.as_ref().map(|each| &each[index]));
        }
    }
    let size = wanted.size_of(frame.width, frame.height);
    let image = render::render(&frame.components, colors, size, wanted)?;
    for component in frame.components {
        pool::give(component.plane);
    }
    Ok(Stored {
        image,
        orientation,
        eighths: wanted.eighths,
    })
}

/// Apart from the usual path, so that the compiler inlines the decoder there once.
#[cold]
#[inline(never)]
fn decode_inner_whole(data: &[u8], limits: &Limits, colors: Option<Colors>) -> Result<Stored> {
    decode_of(data, limits, &|_, _| Wanted::ALL, colors)
}
