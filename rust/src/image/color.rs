//! Brightness, contrast and saturation of a picture, as torchvision's v2 transforms change uint8 images.
//!
//! Each blends with something and is cut to whole levels before the next: `x f` (brightness), `x f + mean (1 - f)` with
//! the mean grey level of the picture (contrast), `x f + grey (1 - f)` with the pixel's own (saturation), clamped to 0 and
//! 255. A grey level is `0.2989 r + 0.587 g + 0.114 b` rounded down.

use crate::simd::vectorize;

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blended with black.
    Brightness,
    /// Blended with the mean grey level.
    Contrast,
    /// Blended with its grey picture.
    Saturation,
}

/// Changes in the order in which they are made, with their factors.
pub type Jitter = [(Change, f32); 3];

/// Makes the changes to packed RGB; a factor of 1 is none.
pub fn jitter(rgb: &mut [u8], changes: &Jitter) {
    for &(change, factor) in changes {
        if factor == 1.0 || rgb.is_empty() {
            continue;
        }
        match change {
            Change::Brightness => blend_with(rgb, factor, 0.0),
            Change::Contrast => blend_with(rgb, factor, mean_grey(rgb)),
            Change::Saturation => saturate(rgb, factor),
        }
    }
}

#[inline(always)]
fn blend(level: f32, factor: f32, other: f32) -> u8 {
    // The conversion saturates and cuts. One rounding for the product and the sum, as torch does it.
    other.mul_add(1.0 - factor, level * factor) as u8
}

fn blend_with(rgb: &mut [u8], factor: f32, other: f32) {
    let table: [u8; 256] = std::array::from_fn(|level| blend(level as f32, factor, other));
    for level in rgb {
        *level = table[usize::from(*level)];
    }
}

#[inline(always)]
fn grey(pixel: [u8; 3]) -> f32 {
    let [r, g, b] = pixel.map(f32::from);
    b.mul_add(0.114, g.mul_add(0.587, r * 0.2989)).floor()
}

fn mean_grey(rgb: &[u8]) -> f32 {
    let (pixels, _) = rgb.as_chunks::<3>();
    let sum: u64 = vectorize(
        #[inline(always)]
        || pixels.iter().map(|&pixel| grey(pixel) as u64).sum(),
    );
    (sum as f64 / pixels.len() as f64) as f32
}

fn saturate(rgb: &mut [u8], factor: f32) {
    let (pixels, _) = rgb.as_chunks_mut::<3>();
    vectorize(
        #[inline(always)]
        || {
            for pixel in pixels {
                let other = grey(*pixel);
                *pixel = pixel.map(|level| blend(f32::from(level), factor, other));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let only = |change, factor| {
            let none = (Change::Brightness, 1.0);
            let mut rgb = [10, 20, 30, 200, 100, 255];
            jitter(&mut rgb, &[(change, factor), none, none]);
            rgb
        };
        assert_eq!(only(Change::Brightness, 1.5), [15, 30, 45, 255, 150, 255]);
        // Grey levels 18 and 147, their mean 82.5.
        assert_eq!(only(Change::Contrast, 0.5), [46, 51, 56, 141, 91, 168]);
        assert_eq!(only(Change::Saturation, 0.0), [18, 18, 18, 147, 147, 147]);
        assert_eq!(only(Change::Saturation, 1.0), [10, 20, 30, 200, 100, 255]);
    }
}
