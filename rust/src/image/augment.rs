//! Random resized crop, mirror and colours as a pure function of (seed, epoch, row): no state, no order, no thread in it.
//!
//! The draws are a counter through SplitMix64's finaliser. With `mix(x)` that finaliser and `G` the golden-ratio
//! increment 0x9e3779b97f4a7c15, all modulo 2^64:
//!
//! ```text
//! key  = mix(mix(mix(seed + G) + epoch + G) + row + G)
//! u_k  = (mix(key + (k + 1) G) >> 11) / 2^53        k = 0, 1, 2, ...   uniform on [0, 1)
//! ```
//!
//! u_0 decides the mirror (u_0 < flip). Try t = 0..10 takes four more: area = W H (scale_0 + u_{4t+1} (scale_1 -
//! scale_0)), ratio = exp(ln ratio_0 + u_{4t+2} (ln ratio_1 - ln ratio_0)), w = round(sqrt(area ratio)),
//! h = round(sqrt(area / ratio)); if 0 < w <= W and 0 < h <= H the crop begins at column floor(u_{4t+3} (W - w + 1))
//! and row floor(u_{4t+4} (H - h + 1)). After ten misses it is the largest centred crop whose ratio is within bounds.
//! These are the steps of torchvision's `RandomResizedCrop`, with draws that do not depend on what came before.
//!
//! Colours take u_41 for the order (the floor(6 u)-th of the orders below) and u_42, u_43, u_44 for the factors of brightness,
//! contrast and saturation, uniform from max(0, 1 - x) to 1 + x: torchvision's `ColorJitter` without hue.

use super::color::{Change, Jitter};
use super::geometry::Area;
use crate::error::{Error, Result};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const TRIES: u64 = 10;
const CHANGES: [Change; 3] = [Change::Brightness, Change::Contrast, Change::Saturation];
/// Which of the three comes first, second and last.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// SplitMix64's finaliser (Steele, Lea, Flood 2014; constants by Stafford).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The k-th draw of a key, uniform on [0, 1).
fn draw(key: u64, k: u64) -> f64 {
    let bits = mix(key.wrapping_add((k + 1).wrapping_mul(GOLDEN))) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// The key of all draws for a row.
fn key(seed: u64, epoch: u64, row: u64) -> u64 {
    let step = |key: u64, part: u64| mix(key.wrapping_add(part).wrapping_add(GOLDEN));
    step(step(mix(seed.wrapping_add(GOLDEN)), epoch), row)
}

/// Bounds of the random resized crop and of the colours, and the chance of a mirror.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    scale: (f64, f64),
    ratio: (f64, f64),
    flip: f64,
    jitter: [f64; 3],
}

impl Augment {
    /// Share of the area, aspect ratio (width over height), chance of the mirror, and how far the factors of
    /// brightness, contrast and saturation may be from 1.
    pub fn new(
        scale: (f64, f64),
        ratio: (f64, f64),
        flip: f64,
        jitter: [f64; 3],
    ) -> Result<Augment> {
        if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0) {
            return Err(Error::Value(format!(
                "scale must be 0 < low <= high <= 1, got ({}, {})",
                scale.0, scale.1
            )));
        }
        if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
            return Err(Error::Value(format!(
                "ratio must be 0 < low <= high, got ({}, {})",
                ratio.0, ratio.1
            )));
        }
        if !(0.0..=1.0).contains(&flip) {
            return Err(Error::Value(format!(
                "flip must be a chance from 0 to 1, got {flip}"
            )));
        }
        if let Some(bad) = jitter.iter().find(|x| !(**x >= 0.0 && x.is_finite())) {
            return Err(Error::Value(format!(
                "jitter must be three numbers of at least 0, got {bad}"
            )));
        }
        Ok(Augment {
            scale,
            ratio,
            flip,
            jitter,
        })
    }

    /// How the colours are changed, if they are.
    pub fn colors(&self, seed: u64, epoch: u64, row: u64) -> Option<Jitter> {
        if self.jitter == [0.0; 3] {
            return None;
        }
        let key = key(seed, epoch, row);
        let first = 4 * TRIES + 1;
        let order = ORDERS[(draw(key, first) * ORDERS.len() as f64) as usize];
        Some(order.map(|index| {
            let (low, high) = (
                (1.0 - self.jitter[index]).max(0.0),
                1.0 + self.jitter[index],
            );
            let factor = low + draw(key, first + 1 + index as u64) * (high - low);
            (CHANGES[index], factor as f32)
        }))
    }

    /// The crop of a `width` by `height` picture, and whether it is mirrored.
    pub fn crop(
        &self,
        width: usize,
        height: usize,
        seed: u64,
        epoch: u64,
        row: u64,
    ) -> (Area, bool) {
        let key = key(seed, epoch, row);
        let flip = draw(key, 0) < self.flip;
        let area = (width * height) as f64;
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for attempt in 0..TRIES {
            let u = |k| draw(key, 4 * attempt + k);
            let target = area * (self.scale.0 + u(1) * (self.scale.1 - self.scale.0));
            let ratio = (low + u(2) * (high - low)).exp();
            let w = (target * ratio).sqrt().round_ties_even() as usize;
            let h = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let left = (u(3) * (width - w + 1) as f64) as usize;
                let top = (u(4) * (height - h + 1) as f64) as usize;
                return (
                    Area {
                        left,
                        top,
                        width: w,
                        height: h,
                    },
                    flip,
                );
            }
        }
        (self.fallback(width, height), flip)
    }

    /// The largest centred crop with a ratio within bounds.
    fn fallback(&self, width: usize, height: usize) -> Area {
        let ratio = width as f64 / height as f64;
        let (mut w, mut h) = (width, height);
        if ratio < self.ratio.0 {
            h = ((width as f64 / self.ratio.0).round_ties_even() as usize).clamp(1, height);
        } else if ratio > self.ratio.1 {
            w = ((height as f64 * self.ratio.1).round_ties_even() as usize).clamp(1, width);
        }
        Area {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn augment() -> Augment {
        Augment::new((0.5, 1.0), (0.75, 4.0 / 3.0), 0.5, [0.0; 3]).unwrap()
    }

    #[test]
    fn crops_lie_within_the_picture() {
        for (width, height) in [(1, 1), (1, 1000), (1000, 1), (640, 480), (3, 7)] {
            for row in 0..500 {
                let (area, _) = augment().crop(width, height, 1, 2, row);
                assert!(area.width >= 1 && area.height >= 1);
                assert!(area.left + area.width <= width && area.top + area.height <= height);
            }
        }
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let base = augment().crop(640, 480, 1, 2, 3);
        assert_eq!(base, augment().crop(640, 480, 1, 2, 3));
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1), (2, 1, 3)] {
            assert_ne!(base, augment().crop(640, 480, other.0, other.1, other.2));
        }
    }

    #[test]
    fn published_first_values() {
        // SplitMix64 seeded with 0 begins with this value; `mix(GOLDEN)` is its first step.
        assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn wrong_bounds_are_refused() {
        for (scale, ratio, flip) in [
            ((0.0, 1.0), (0.75, 1.3), 0.5),
            ((0.9, 0.5), (0.75, 1.3), 0.5),
            ((0.5, 1.5), (0.75, 1.3), 0.5),
            ((0.5, 1.0), (2.0, 1.0), 0.5),
            ((0.5, 1.0), (0.75, f64::INFINITY), 0.5),
            ((0.5, 1.0), (0.75, 1.3), f64::NAN),
        ] {
            assert!(Augment::new(scale, ratio, flip, [0.0; 3]).is_err());
        }
    }
}
