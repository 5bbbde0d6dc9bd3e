//! The inverse DCT of libjpeg's "islow": Loeffler, Ligtenberg and Moschytz 1989 in 13-bit fixed point.
//!
//! Columns first, kept with two more bits, then rows. Eight lanes at a time, in plain loops that the compiler turns
//! into vector instructions; results agree with libjpeg-turbo's to the bit.

// Lanes are counted in plain loops: that is the form that becomes vector instructions.
#![allow(clippy::needless_range_loop)]

const BITS: u32 = 13;
const PASS1_BITS: u32 = 2;

/// A block as stored in the file: 64 coefficients in natural order.
pub type Block = [i16; 64];

/// The instructions that transforms are made of.
pub trait Transform: Copy {
    /// Dequantises and transforms a block into eight rows of `out`, `stride` bytes apart.
    fn idct(self, block: &Block, quant: &Block, out: &mut [u8], stride: usize);

    /// [`idct_reduced`] of 4 x 4.
    #[inline(always)]
    fn idct_half(self, block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
        idct_reduced::<4>(block, quant, out, stride);
    }
}

/// Plain loops, which the compiler vectorises where it can.
#[derive(Clone, Copy)]
pub struct Portable;

impl Transform for Portable {
    #[inline(always)]
    fn idct(self, block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
        let mut lanes = [[0_i32; 8]; 8];
        for y in 0..8 {
            for lane in 0..8 {
                let k = y * 8 + lane;
                lanes[y][lane] = i32::from(block[k].wrapping_mul(quant[k]));
            }
        }
        if block[8..]
            .iter()
            .fold(0, |any, &coefficient| any | coefficient)
            == 0
        {
            // Nothing to do down the columns but the scaling, at 16 bits.
            for lane in 0..8 {
                lanes[0][lane] = i32::from((lanes[0][lane] << PASS1_BITS) as i16);
            }
            lanes = [lanes[0]; 8];
        } else {
            pass::<{ BITS - PASS1_BITS }>(&mut lanes);
        }
        let mut lanes = transpose(&lanes);
        pass::<{ BITS + PASS1_BITS + 3 }>(&mut lanes);
        let lanes = transpose(&lanes);
        for y in 0..8 {
            for x in 0..8 {
                out[y * stride + x] = (lanes[y][x] + 128).clamp(0, 255) as u8;
            }
        }
    }
}

// cos((2x + 1) u pi / 2N) / 2, the first over the root of 2; for N = 2 the second line is +, - of the same.
pub const A: f32 = 0.353_553_4;
pub const B: f32 = 0.461_939_77;
pub const C: f32 = 0.191_341_71;

/// Dequantises the lowest N x N coefficients and transforms them into N rows of `out`: the picture at N eighths.
///
/// The orthonormal transform of N points, in float32; N is 2 or 4.
#[inline(always)]
pub fn idct_reduced<const N: usize>(block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
    let basis = |x: usize, u: usize| match (N, u) {
        (_, 0) => A,
        (2, _) => [A, -A][x & 1],
        (_, 1) => [B, C, -C, -B][x & 3],
        (_, 2) => [A, -A, -A, A][x & 3],
        _ => [C, -B, B, -C][x & 3],
    };
    let mut columns = [[0.0_f32; N]; N];
    for v in 0..N {
        let mut row = [0.0_f32; N];
        for u in 0..N {
            row[u] = f32::from(block[v * 8 + u].wrapping_mul(quant[v * 8 + u]));
        }
        for y in 0..N {
            for u in 0..N {
                columns[y][u] += basis(y, v) * row[u];
            }
        }
    }
    for y in 0..N {
        let mut levels = [128.5_f32; N];
        for u in 0..N {
            for x in 0..N {
                levels[x] += basis(x, u) * columns[y][u];
            }
        }
        for x in 0..N {
            // The conversion saturates.
            out[y * stride + x] = levels[x] as u8;
        }
    }
}

/// The same where only the first coefficient is not 0: one level all over, of `side` rows.
#[inline(always)]
pub fn idct_flat(first: i16, quant: i16, side: usize, out: &mut [u8], stride: usize) {
    let level = (i32::from(first.wrapping_mul(quant) << PASS1_BITS) + 16) >> 5;
    let level = (level + 128).clamp(0, 255) as u8;
    // Of known length: a call of memset for eight bytes takes longer than they do.
    match side {
        8 => flat::<8>(level, out, stride),
        4 => flat::<4>(level, out, stride),
        2 => flat::<2>(level, out, stride),
        _ => out[0] = level,
    }
}

#[inline(always)]
fn flat<const N: usize>(level: u8, out: &mut [u8], stride: usize) {
    for y in 0..N {
        out[y * stride..][..N].copy_from_slice(&[level; N]);
    }
}

/// Rows to columns, saturated at 16 bits.
#[inline(always)]
fn transpose(lanes: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            out[x][y] = lanes[y][x].clamp(i32::from(i16::MIN), i32::from(i16::MAX));
        }
    }
    out
}

/// One dimension of all eight lanes, scaled down by `SHIFT` bits, rounded.
#[inline(always)]
fn pass<const SHIFT: u32>(v: &mut [[i32; 8]; 8]) {
    // Cosines times 2^13, rounded.
    const C0_298: i32 = 2446;
    const C0_390: i32 = 3196;
    const C0_541: i32 = 4433;
    const C0_765: i32 = 6270;
    const C0_899: i32 = 7373;
    const C1_175: i32 = 9633;
    const C1_501: i32 = 12299;
    const C1_847: i32 = 15137;
    const C1_961: i32 = 16069;
    const C2_053: i32 = 16819;
    const C2_562: i32 = 20995;
    const C3_072: i32 = 25172;
    let half = 1 << (SHIFT - 1);
    // Coefficients that no picture has (damaged files) overflow as they do in libjpeg-turbo's vector code: first sums
    // wrap at 16 bits, all else at 32, and the first pass saturates at 16.
    let short = |a: i32| i32::from(a as i16);
    let mul = |a: i32, b: i32| a.wrapping_mul(b);
    let add = |a: i32, b: i32| a.wrapping_add(b);
    let sub = |a: i32, b: i32| a.wrapping_sub(b);
    for lane in 0..8 {
        let x: [i32; 8] = [
            v[0][lane], v[1][lane], v[2][lane], v[3][lane], v[4][lane], v[5][lane], v[6][lane],
            v[7][lane],
        ];
        // Even part.
        let z1 = mul(add(x[2], x[6]), C0_541);
        let even2 = sub(z1, mul(x[6], C1_847));
        let even3 = add(z1, mul(x[2], C0_765));
        let even0 = short(add(x[0], x[4])) << BITS;
        let even1 = short(sub(x[0], x[4])) << BITS;
        let (a0, a3) = (add(even0, even3), sub(even0, even3));
        let (a1, a2) = (add(even1, even2), sub(even1, even2));
        // Odd part.
        let (z3, z4) = (short(add(x[7], x[3])), short(add(x[5], x[1])));
        let z5 = mul(add(z3, z4), C1_175);
        let z1 = mul(add(x[7], x[1]), -C0_899);
        let z2 = mul(add(x[5], x[3]), -C2_562);
        let z3 = add(mul(z3, -C1_961), z5);
        let z4 = add(mul(z4, -C0_390), z5);
        let b0 = add(mul(x[7], C0_298), add(z1, z3));
        let b1 = add(mul(x[5], C2_053), add(z2, z4));
        let b2 = add(mul(x[3], C3_072), add(z2, z3));
        let b3 = add(mul(x[1], C1_501), add(z1, z4));
        let scale = |sum: i32| add(sum, half) >> SHIFT;
        v[0][lane] = scale(add(a0, b3));
        v[7][lane] = scale(sub(a0, b3));
        v[1][lane] = scale(add(a1, b2));
        v[6][lane] = scale(sub(a1, b2));
        v[2][lane] = scale(add(a2, b1));
        v[5][lane] = scale(sub(a2, b1));
        v[3][lane] = scale(add(a3, b0));
        v[4][lane] = scale(sub(a3, b0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::augment::mix;

    /// The definition, in float64.
    fn slow(block: &Block) -> [f64; 64] {
        std::array::from_fn(|index| {
            let (y, x) = ((index / 8) as f64, (index % 8) as f64);
            let mut sum = 128.0;
            for v in 0..8 {
                for u in 0..8 {
                    let norm = |k: usize| if k == 0 { 0.5_f64.sqrt() } else { 1.0 };
                    let cosine = |at: f64, k: usize| {
                        ((2.0 * at + 1.0) * k as f64 * std::f64::consts::PI / 16.0).cos()
                    };
                    sum += norm(u) * norm(v) / 4.0
                        * f64::from(block[v * 8 + u])
                        * cosine(x, u)
                        * cosine(y, v);
                }
            }
            sum.clamp(0.0, 255.0)
        })
    }

    #[test]
    fn within_a_level_of_the_definition() {
        let quant = [1; 64];
        for seed in 0..200 {
            let mut block: Block =
                std::array::from_fn(|k| (mix(seed * 64 + k as u64) % 200) as i16 - 100);
            if seed % 2 == 0 {
                block[5..].fill(0);
            }
            let mut out = [0; 64];
            Portable.idct(&block, &quant, &mut out, 8);
            for (got, exact) in out.iter().zip(slow(&block)) {
                assert!((f64::from(*got) - exact).abs() <= 1.0, "{got} for {exact}");
            }
        }
    }

    #[test]
    fn flat_blocks_agree_with_the_whole_transform() {
        for first in (-1200..1200).step_by(7) {
            let mut block = [0; 64];
            block[0] = first;
            let (mut whole, mut flat) = ([0; 64], [0; 64]);
            Portable.idct(&block, &[1; 64], &mut whole, 8);
            idct_flat(first, 1, 8, &mut flat, 8);
            assert_eq!(whole, flat);
        }
    }

    #[test]
    fn wild_coefficients_do_not_panic() {
        Portable.idct(&[i16::MAX; 64], &[i16::MAX; 64], &mut [0; 64], 8);
        Portable.idct(&[i16::MIN; 64], &[1; 64], &mut [0; 64], 8);
    }

    #[test]
    fn reduced_blocks_are_the_means_of_smooth_ones() {
        // A slope: the mean of each half (quarter) of it is what the picture at 2 (4) eighths shows.
        let mut block = [0; 64];
        (block[0], block[1], block[8]) = (40, -300, 120);
        let whole = slow(&block);
        for side in [2, 4] {
            let mut out = [0; 16];
            match side {
                2 => idct_reduced::<2>(&block, &[1; 64], &mut out, side),
                _ => idct_reduced::<4>(&block, &[1; 64], &mut out, side),
            }
            let step = 8 / side;
            for y in 0..side {
                for x in 0..side {
                    let cells =
                        (0..step * step).map(|k| (y * step + k / step) * 8 + x * step + k % step);
                    let mean = cells.map(|cell| whole[cell]).sum::<f64>() / (step * step) as f64;
                    assert!(
                        (f64::from(out[y * side + x]) - mean).abs() < 6.0,
                        "{side}: {y} {x}"
                    );
                }
            }
        }
    }
}
