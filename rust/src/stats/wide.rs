//! The few vector operations that moments need: AVX2 and FMA where the processor has them, plain loops elsewhere.
//!
//! Written out rather than left to the compiler, which turned the same loops into scalar code or not, as the rest of the
//! function had it. AVX-512 was measured and left out: on a Zen 4 it was 5 % slower, and memory is the limit anyway.
//! Both ways give the same bits, and cost: without FMA a product rounded together with its sum is a call.

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
