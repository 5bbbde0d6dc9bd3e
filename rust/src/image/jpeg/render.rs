//! Component planes to RGB: libjpeg's "fancy" upsampling (triangle filter) and colour conversion, row by row.

use super::error::bad;
use super::frame::Component;
use crate::error::Result;
use crate::image::format::Wanted;
use crate::image::geometry::Area;
use crate::image::{pool, Rgb};
use crate::memory;

/// The colour space of the stored samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
    /// CMYK that is not inverted.
    Inks,
}

impl Colors {
    /// Components of a pixel.
    pub fn components(self) -> usize {
        match self {
            Colors::Grey => 1,
            Colors::YCbCr | Colors::Rgb => 3,
            Colors::Cmyk | Colors::Ycck | Colors::Inks => 4,
        }
    }
}

/// How a component's rows come to full width and height.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Upsampling {
    None,
    /// Two samples from one across, by a triangle filter.
    Across,
    /// Two rows from one, by a triangle filter.
    Down,
    Both,
    /// Every sample this often across and down.
    Repeat(usize, usize),
}

/// The wanted part of the picture from its planes; pixels outside it are undefined.
#[inline(always)]
pub fn render(
    components: &[Component],
    colors: Colors,
    (width, height): (usize, usize),
    wanted: Wanted,
) -> Result<Rgb> {
    let most = |of: fn(&Component) -> usize| components.iter().map(of).max().unwrap_or(1);
    let full_width = most(|component| component.horizontal) * wanted.eighths;
    let full_height = most(|component| component.vertical) * wanted.eighths;
    let upsampling: Vec<Upsampling> = components
        .iter()
        .map(|component| upsampling_of(component, full_width, full_height))
        .collect::<Result<_>>()?;
    let whole = Area {
        left: 0,
        top: 0,
        width,
        height,
    };
    let area = wanted.area.unwrap_or(whole);
    let mut pixels = pool::take(width * height * 3)?;
    // Room for the last repetitions of a row whose width is no whole number of them.
    let mut rows: Vec<Vec<u8>> = components
        .iter()
        .map(|component| memory::zeros(component.width * full_width + full_width))
        .collect::<Result<_>>()?;
    let mut sums = Vec::new();
    memory::reserve(&mut sums, most(|component| component.width))?;
    let lines = pixels.chunks_exact_mut(width * 3).enumerate();
    for (y, out) in lines.skip(area.top).take(area.height) {
        let columns = area.left..area.left + area.width;
        let out = &mut out[columns.start * 3..columns.end * 3];
        for ((component, &upsampling), row) in components.iter().zip(&upsampling).zip(&mut rows) {
            upsample(component, upsampling, y, row, &mut sums);
        }
        let full = |index: usize| -> &[u8] {
            match upsampling[index] {
                Upsampling::None => &components[index].row(y)[columns.clone()],
                _ => &rows[index][columns.clone()],
            }
        };
        match colors {
            Colors::Grey => {
                for (out, &level) in out.chunks_exact_mut(3).zip(full(0)) {
                    out.fill(level);
                }
            }
            Colors::YCbCr => ycc_row(full(0), full(1), full(2), out),
            Colors::Rgb => {
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    out.copy_from_slice(&[full(0)[x], full(1)[x], full(2)[x]]);
                }
            }
            Colors::Cmyk | Colors::Inks => {
                let (c, m, y, k) = (full(0), full(1), full(2), full(3));
                let flip = if colors == Colors::Inks { 255 } else { 0 };
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    let inks = [c[x], m[x], y[x]].map(|ink| ink ^ flip);
                    out.copy_from_slice(&inks_to_rgb(inks, k[x] ^ flip));
                }
            }
            Colors::Ycck => {
                let (y, cb, cr, k) = (full(0), full(1), full(2), full(3));
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    let inks = ycc_to_rgb(y[x], cb[x], cr[x]).map(|level| 255 - level);
                    out.copy_from_slice(&inks_to_rgb(inks, k[x]));
                }
            }
        }
    }
    Ok(Rgb {
        width,
        height,
        pixels,
    })
}

fn upsampling_of(
    component: &Component,
    full_width: usize,
    full_height: usize,
) -> Result<Upsampling> {
    let (h, v) = (
        component.horizontal * component.side,
        component.vertical * component.side,
    );
    if !full_width.is_multiple_of(h) || !full_height.is_multiple_of(v) {
        return Err(bad(format_args!(
            "sampling {}x{} is no whole ratio of the largest, which is not supported",
            component.horizontal, component.vertical
        )));
    }
    // libjpeg filters only where a row has more than two samples to go by.
    let wide = component.width > 2;
    Ok(match (full_width / h, full_height / v) {
        (1, 1) => Upsampling::None,
        (2, 1) if wide => Upsampling::Across,
        (2, 2) if wide => Upsampling::Both,
        (1, 2) => Upsampling::Down,
        (across, down) => Upsampling::Repeat(across, down),
    })
}

/// Row `y` of the picture, of one component.
#[inline(always)]
fn upsample(
    component: &Component,
    upsampling: Upsampling,
    y: usize,
    out: &mut [u8],
    sums: &mut Vec<i32>,
) {
    let width = component.width;
    // The row that is nearest but for this one: above for an even row, below for an odd one; itself at the edges.
    let near = |y: usize| {
        let row = y / 2;
        let other = if y.is_multiple_of(2) {
            row.saturating_sub(1)
        } else {
            (row + 1).min(component.height - 1)
        };
        (&component.row(row)[..width], &component.row(other)[..width])
    };
    match upsampling {
        Upsampling::None => {}
        Upsampling::Across => {
            across(&component.row(y)[..width], out);
        }
        Upsampling::Down => {
            let (row, other) = near(y);
            let bias = if y.is_multiple_of(2) { 1 } else { 2 };
            for ((out, &a), &b) in out.iter_mut().zip(row).zip(other) {
                *out = ((u16::from(a) * 3 + u16::from(b) + bias) >> 2) as u8;
            }
        }
        Upsampling::Both => {
            let (row, other) = near(y);
            sums.clear();
            sums.extend(
                row.iter()
                    .zip(other)
                    .map(|(&a, &b)| i32::from(a) * 3 + i32::from(b)),
            );
            both(sums, out);
        }
        Upsampling::Repeat(across, down) => {
            for (out, &level) in out
                .chunks_exact_mut(across)
                .zip(&component.row(y / down)[..width])
            {
                out.fill(level);
            }
        }
    }
}

/// Each sample to two: three quarters of it and one of the neighbour on that side; the outermost stay.
#[inline(always)]
fn across(row: &[u8], out: &mut [u8]) {
    let last = row.len() - 1;
    out[0] = row[0];
    out[2 * last + 1] = row[last];
    for (pair, out) in row.windows(2).zip(out[1..].chunks_exact_mut(2)) {
        let (a, b) = (u16::from(pair[0]), u16::from(pair[1]));
        out[0] = ((a * 3 + b + 2) >> 2) as u8;
        out[1] = ((b * 3 + a + 1) >> 2) as u8;
    }
}

/// The same from sums of two rows, in sixteenths.
#[inline(always)]
fn both(sums: &[i32], out: &mut [u8]) {
    let last = sums.len() - 1;
    out[0] = ((sums[0] * 4 + 8) >> 4) as u8;
    out[2 * last + 1] = ((sums[last] * 4 + 7) >> 4) as u8;
    for (pair, out) in sums.windows(2).zip(out[1..].chunks_exact_mut(2)) {
        let (a, b) = (pair[0], pair[1]);
        out[0] = ((a * 3 + b + 7) >> 4) as u8;
        out[1] = ((b * 3 + a + 8) >> 4) as u8;
    }
}

#[inline(always)]
fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    for (((out, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
        let [r, g, b] = ycc_to_rgb(y, cb, cr);
        out[0] = r;
        out[1] = g;
        out[2] = b;
    }
}

/// libjpeg's integer conversion.
#[inline(always)]
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [
        red.clamp(0, 255) as u8,
        green.clamp(0, 255) as u8,
        blue.clamp(0, 255) as u8,
    ]
}

/// Stored inks (inverted, as Adobe writes them and Pillow assumes of every file) to RGB by Pillow's formula.
pub fn inks_to_rgb(stored: [u8; 3], stored_black: u8) -> [u8; 3] {
    let light = u32::from(stored_black);
    stored.map(|ink| {
        let product = u32::from(255 - ink) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

/// libjpeg's rules: JFIF means YCbCr, Adobe's marker says which, else the component numbers may spell it.
pub fn colors_of(components: &[Component], jfif: bool, adobe: Option<u8>) -> Colors {
    let spelled = components.iter().map(|component| component.id).eq(*b"RGB");
    match (components.len(), adobe) {
        (1, _) => Colors::Grey,
        (3, _) if jfif => Colors::YCbCr,
        (3, Some(0)) => Colors::Rgb,
        (3, None) if spelled => Colors::Rgb,
        (3, _) => Colors::YCbCr,
        (_, None | Some(0)) => Colors::Cmyk,
        _ => Colors::Ycck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_at_the_corners() {
        assert_eq!(ycc_to_rgb(255, 128, 128), [255; 3]);
        assert_eq!(ycc_to_rgb(76, 85, 255), [254, 0, 0]);
        assert_eq!(inks_to_rgb([255, 255, 255], 255), [255; 3]);
        assert_eq!(inks_to_rgb([0, 128, 255], 255), [0, 128, 255]);
        assert_eq!(inks_to_rgb([9, 9, 9], 0), [0; 3]);
    }

    #[test]
    fn triangle_filter_by_hand() {
        let mut out = [0; 6];
        across(&[0, 100, 40], &mut out);
        assert_eq!(out, [0, 25, 75, 85, 55, 40]);
        both(&[0, 400, 160], &mut out);
        assert_eq!(out, [0, 25, 75, 85, 55, 40]);
    }
}
