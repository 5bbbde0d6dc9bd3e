//! The few vector operations that moments need: AVX2 and FMA where the processor has them, plain loops elsewhere.
//!
//! Written out rather than left to the compiler, which turned the same loops into scalar code or not, as the rest of the
//! function had it. AVX-512 was measured and left out: on a Zen 4 it was 5 % slower, and memory is the limit anyway.
//! Both ways give the same bits (a NaN may have another sign), at another price: without FMA a product that is rounded
//! together with its sum is a call.

use pulp::{f32x8, f64x4};
#[cfg(target_arch = "x86_64")]
use pulp::{x86::V3, NullaryFnOnce};

/// Vectors of 256 bits.
pub trait Wide: Copy {
    /// As float64, exactly.
    fn widen(self, values: &[f32; 8]) -> [f64x4; 2];
    /// `a - b`.
    fn less(self, a: f64x4, b: f64x4) -> f64x4;
    /// `a + b`.
    fn plus(self, a: f64x4, b: f64x4) -> f64x4;
    /// `d² + sum`, rounded once.
    fn plus_square(self, sum: f64x4, d: f64x4) -> f64x4;
    /// `a` where it is less than `b`, else `b`.
    fn min32(self, a: f32x8, b: f32x8) -> f32x8;
    /// `a` where it is greater than `b`, else `b`.
    fn max32(self, a: f32x8, b: f32x8) -> f32x8;
    /// As `min32`.
    fn min64(self, a: f64x4, b: f64x4) -> f64x4;
    /// As `max32`.
    fn max64(self, a: f64x4, b: f64x4) -> f64x4;
}

/// Work that is written once for every kind of vector. `run` must be `#[inline(always)]`, as must all that it calls.
pub trait Work {
    /// What it returns.
    type Output;
    /// Does it.
    fn run<W: Wide>(self, wide: W) -> Self::Output;
}

/// Does the work with the widest vectors that the processor has.
pub fn dispatch<T: Work>(work: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new() {
        let one = simd.splat_f64x4(std::hint::black_box(1.0));
        let wide = Avx2 { simd, one };
        return simd.vectorize(WithAvx2 { wide, work });
    }
    work.run(Plain)
}

#[cfg(target_arch = "x86_64")]
struct WithAvx2<T> {
    wide: Avx2,
    work: T,
}

/// `one` is a 1 that the compiler does not know.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Avx2 {
    simd: V3,
    one: f64x4,
}

#[cfg(target_arch = "x86_64")]
impl<T: Work> NullaryFnOnce for WithAvx2<T> {
    type Output = T::Output;

    #[inline(always)]
    fn call(self) -> T::Output {
        self.work.run(self.wide)
    }
}

#[cfg(target_arch = "x86_64")]
impl Wide for Avx2 {
    #[inline(always)]
    fn widen(self, values: &[f32; 8]) -> [f64x4; 2] {
        let [a, b, c, d, e, f, g, h] = *values;
        [
            self.simd.convert_f32x4_to_f64x4(pulp::cast([a, b, c, d])),
            self.simd.convert_f32x4_to_f64x4(pulp::cast([e, f, g, h])),
        ]
    }

    #[inline(always)]
    fn less(self, a: f64x4, b: f64x4) -> f64x4 {
        // a · 1 - b is the same number. Zen has two units for additions, conversions and comparisons, which are the
        // bottleneck here, and two for products: 0.109 instead of 0.140 ns a float32 in cache.
        self.simd.mul_sub_f64x4(a, self.one, b)
    }

    #[inline(always)]
    fn plus(self, a: f64x4, b: f64x4) -> f64x4 {
        self.simd.add_f64x4(a, b)
    }

    #[inline(always)]
    fn plus_square(self, sum: f64x4, d: f64x4) -> f64x4 {
        self.simd.mul_add_f64x4(d, d, sum)
    }

    #[inline(always)]
    fn min32(self, a: f32x8, b: f32x8) -> f32x8 {
        self.simd.min_f32x8(a, b)
    }

    #[inline(always)]
    fn max32(self, a: f32x8, b: f32x8) -> f32x8 {
        self.simd.max_f32x8(a, b)
    }

    #[inline(always)]
    fn min64(self, a: f64x4, b: f64x4) -> f64x4 {
        self.simd.min_f64x4(a, b)
    }

    #[inline(always)]
    fn max64(self, a: f64x4, b: f64x4) -> f64x4 {
        self.simd.max_f64x4(a, b)
    }
}

/// Lane by lane.
#[derive(Clone, Copy)]
pub struct Plain;

#[inline(always)]
fn lanes<const N: usize, T: Copy, V: pulp::bytemuck::Pod>(a: V, b: V, f: impl Fn(T, T) -> T) -> V
where
    [T; N]: pulp::bytemuck::Pod,
{
    let (a, b): ([T; N], [T; N]) = (pulp::cast(a), pulp::cast(b));
    pulp::cast(std::array::from_fn::<T, N, _>(|lane| f(a[lane], b[lane])))
}

impl Wide for Plain {
    #[inline(always)]
    fn widen(self, values: &[f32; 8]) -> [f64x4; 2] {
        pulp::cast(values.map(f64::from))
    }

    #[inline(always)]
    fn less(self, a: f64x4, b: f64x4) -> f64x4 {
        lanes::<4, f64, _>(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn plus(self, a: f64x4, b: f64x4) -> f64x4 {
        lanes::<4, f64, _>(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn plus_square(self, sum: f64x4, d: f64x4) -> f64x4 {
        lanes::<4, f64, _>(sum, d, |sum, d| d.mul_add(d, sum))
    }

    #[inline(always)]
    fn min32(self, a: f32x8, b: f32x8) -> f32x8 {
        lanes::<8, f32, _>(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max32(self, a: f32x8, b: f32x8) -> f32x8 {
        lanes::<8, f32, _>(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min64(self, a: f64x4, b: f64x4) -> f64x4 {
        lanes::<4, f64, _>(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max64(self, a: f64x4, b: f64x4) -> f64x4 {
        lanes::<4, f64, _>(a, b, |a, b| if a > b { a } else { b })
    }
}

#[cfg(test)]
mod tests {
    use super::super::moments::Column;
    use super::super::sums::{Scalars, Table, Value};
    use super::*;

    /// Numbers of many sizes and both signs, with zeros of both signs among them.
    fn numbers(count: usize) -> Vec<f64> {
        let one = |k: u64| {
            let bits = crate::image::augment::mix(k);
            match bits % 11 {
                0 => 0.0,
                1 => -0.0,
                _ => ((bits >> 20) as f64 - 1e13) * 2_f64.powi((bits % 60) as i32 - 60),
            }
        };
        (0..count as u64).map(one).collect()
    }

    fn bits(column: &Column) -> [u64; 4] {
        [column.mean, column.m2, column.min, column.max].map(|value| {
            if value.is_nan() {
                u64::MAX
            } else {
                value.to_bits()
            }
        })
    }

    fn empty() -> Column {
        Column {
            mean: 0.0,
            m2: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }

    /// Compares the lane by lane way with whatever this processor has, as one column and as tables.
    fn compare<V: Value>(values: &[V]) {
        let (mut plain, mut fast) = (empty(), empty());
        Scalars {
            values,
            column: &mut plain,
        }
        .run(Plain);
        dispatch(Scalars {
            values,
            column: &mut fast,
        });
        assert_eq!(bits(&plain), bits(&fast), "{} values", values.len());
        for width in [2, 3, 8, 19, 300] {
            let whole = &values[..values.len() / width * width];
            if whole.is_empty() {
                continue;
            }
            let (mut plain, mut fast) = (vec![empty(); width], vec![empty(); width]);
            Table {
                values: whole,
                columns: &mut plain,
            }
            .run(Plain);
            dispatch(Table {
                values: whole,
                columns: &mut fast,
            });
            for (plain, fast) in plain.iter().zip(&fast) {
                assert_eq!(bits(plain), bits(fast), "{} rows of {width}", whole.len());
            }
        }
    }

    #[test]
    fn both_ways_give_the_same_bits() {
        for count in [1, 7, 8, 17, 1000, 5000] {
            let mut values = numbers(count);
            let bytes: Vec<u8> = values.iter().map(|value| value.to_bits() as u8).collect();
            compare(&bytes);
            for odd in [None, Some(f64::INFINITY), Some(f64::NAN)] {
                if let Some(odd) = odd {
                    values[count / 2] = odd;
                }
                let halves: Vec<f32> = values.iter().map(|&value| value as f32).collect();
                compare(&values);
                compare(&halves);
            }
        }
    }
}
