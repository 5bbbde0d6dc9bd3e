//! The weights of a resampling kernel along one axis, in fixed point of 16 bits.
//!
//! Pillow's weights have 22 bits after the point, too many for the instruction that multiplies and adds pairs of 16 bits.
//! These have as many as fit, 14 at least: a level in a few hundred then rounds the other way than Pillow's, by one.

use super::geometry::Stretch;
use super::kernel::Interpolation;
use crate::error::Result;
use crate::memory;
use crate::simd::vectorize;

/// Bits after the point of a weight, at most: 32 less 8 of a level less 2 for the overshoot of the bicubic kernel.
const MOST_BITS: u32 = 22;

/// The weights of one axis for a run of output positions.
///
/// Source positions are counted from the first that any of them uses, and in pairs: each output begins at an even one,
/// with a weight of 0 before its first where that is odd, and has `taps` weights (an even number), zeros after its last.
pub struct Weights {
    /// The first source position that is used.
    pub first: usize,
    /// Source positions from there to the last that is used.
    pub used: usize,
    /// Bits after the point.
    pub bits: u32,
    /// Weights an output position.
    pub taps: usize,
    /// The even source position at which each output begins.
    begins: Vec<usize>,
    values: Vec<i16>,
}

impl Weights {
    /// Weights for the outputs `first..first + count` (`mirrored`: in reverse) of the source resized to `to`.
    pub(super) fn new(
        from: Stretch,
        to: usize,
        first: usize,
        count: usize,
        kernel: Interpolation,
        mirrored: bool,
    ) -> Result<Weights> {
        // Without vector instructions every rounding is a function call.
        vectorize(
            #[inline(always)]
            || Weights::compute(from, to, first, count, kernel, mirrored),
        )
    }

    #[inline(always)]
    fn compute(
        from: Stretch,
        to: usize,
        first: usize,
        count: usize,
        kernel: Interpolation,
        mirrored: bool,
    ) -> Result<Weights> {
        let indices = first..first + count;
        let spans = memory::collect(indices.map(|index| from.span(to, index, kernel)))?;
        let start = spans.first().map_or(0, |span| span.0);
        let even = |begin: usize| (begin - start) & !1;
        let taps = spans
            .iter()
            .map(|&(begin, end)| (end - start - even(begin)).next_multiple_of(2));
        let taps = taps.max().unwrap_or(2);
        let mut exact: Vec<f64> = memory::zeros(count * taps)?;
        let mut largest = 0.0_f64;
        for ((index, &(begin, end)), exact) in spans.iter().enumerate().zip(exact.chunks_mut(taps))
        {
            let exact = &mut exact[begin - start - even(begin)..][..end - begin];
            fill(from, to, first + index, begin, kernel, exact);
            largest = exact
                .iter()
                .fold(largest, |most, weight| most.max(weight.abs()));
        }
        let fits = |bits: &u32| largest * f64::from(1_u32 << bits) + 1.0 <= f64::from(i16::MAX);
        let bits = (0..=MOST_BITS).rev().find(fits).unwrap_or(0);
        let mut values: Vec<i16> = memory::zeros(count * taps)?;
        let mut begins = memory::collect(spans.iter().map(|span| even(span.0)))?;
        for (index, exact) in exact.chunks(taps).enumerate() {
            let place = if mirrored { count - 1 - index } else { index };
            round(exact, bits, &mut values[place * taps..][..taps]);
        }
        if mirrored {
            begins.reverse();
        }
        Ok(Weights {
            first: from.first() + start,
            used: spans.last().map_or(0, |span| span.1) - start,
            bits,
            taps,
            begins,
            values,
        })
    }

    /// Where each output position begins, and its weights.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.begins
            .iter()
            .copied()
            .zip(self.values.chunks_exact(self.taps))
    }

    /// Output positions.
    pub fn count(&self) -> usize {
        self.begins.len()
    }
}

/// The weights of one output position, as Pillow computes them; the sum is 1.
#[inline(always)]
fn fill(
    from: Stretch,
    to: usize,
    index: usize,
    begin: usize,
    kernel: Interpolation,
    out: &mut [f64],
) {
    let stretch = (from.length / to as f64).max(1.0);
    let (centre, _) = from.centre(to, index);
    let ends = from.ends();
    let mut sum = 0.0;
    for (tap, weight) in out.iter_mut().enumerate() {
        let pixel = (tap + begin) as f64;
        let inside = ends.1.min(pixel + 1.0) - ends.0.max(pixel);
        *weight = kernel.weight((pixel - centre + 0.5) * (1.0 / stretch)) * inside;
        sum += *weight;
    }
    if sum != 0.0 {
        out.iter_mut().for_each(|weight| *weight /= sum);
    }
}

/// To fixed point, rounding running sums rather than weights: the sum stays 1, so that areas of one colour keep it, and the
/// rounding error of a weight is carried to the next, whose pixel is similar.
#[inline(always)]
fn round(exact: &[f64], bits: u32, out: &mut [i16]) {
    let scale = f64::from(1_u32 << bits);
    let (mut sum, mut before) = (0.0, 0);
    for (out, weight) in out.iter_mut().zip(exact) {
        sum += weight;
        let now = (sum * scale).round() as i32;
        *out = (now - before) as i16;
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_mirror() {
        for (from, to) in [(500, 224), (10, 224), (1, 1), (1, 7), (3, 2), (4000, 7)] {
            for kernel in [Interpolation::Bilinear, Interpolation::Bicubic] {
                let whole = Stretch {
                    begin: 0.0,
                    length: f64::from(from),
                };
                let weights = Weights::new(whole, to, 0, to, kernel, false).unwrap();
                assert!(weights.bits >= 14 && weights.taps.is_multiple_of(2));
                for (begin, values) in weights.iter() {
                    let sum: i32 = values.iter().map(|&weight| i32::from(weight)).sum();
                    assert_eq!(sum, 1 << weights.bits, "{from} to {to}");
                    assert!(begin.is_multiple_of(2) && begin < weights.used);
                    let past = &values[values.len().min(weights.used - begin)..];
                    assert!(past.iter().all(|&weight| weight == 0));
                }
                let mirrored = Weights::new(whole, to, 0, to, kernel, true).unwrap();
                let mut reversed: Vec<_> = mirrored.iter().collect();
                reversed.reverse();
                assert!(weights.iter().eq(reversed));
            }
        }
    }
}
