//! The inverse DCT of libjpeg's "islow": Loeffler, Ligtenberg and Moschytz 1989 in 13-bit fixed point.
//!
//! Columns first, kept with two more bits, then rows. Eight lanes at a time, in plain loops that the compiler turns
//! into vector instructions; results agree with libjpeg-turbo's to the bit.

// Lanes are counted in plain loops: that is the form that becomes vector instructions.
#![allow(clippy::needless_range_loop)]

use crate::image::resize::turn;

const BITS: u32 = 13;
const PASS1_BITS: u32 = 2;

/// A block as stored in the file: 64 coefficients in natural order.
pub type Block = [i16; 64];

/// Dequantises and transforms a block into eight rows of `out`, `stride` bytes apart.
#[inline(always)]
pub fn idct(block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
    let mut values = [0_i16; 64];
    for k in 0..64 {
        values[k] = block[k].wrapping_mul(quant[k]);
    }
    let mut lanes = [[0_i32; 8]; 8];
    for y in 0..8 {
        for lane in 0..8 {
            lanes[y][lane] = i32::from(values[y * 8 + lane]);
        }
    }
    if block[8..]
        .iter()
        .fold(0, |any, &coefficient| any | coefficient)
        == 0
    {
        // Nothing to do down the columns but the scaling, at 16 bits.
        let first = lanes[0].map(|value| i32::from((value << PASS1_BITS) as i16));
        lanes = [first; 8];
    } else {
        pass::<{ BITS - PASS1_BITS }>(&mut lanes);
    }
    let mut lanes = transpose(&lanes);
    pass::<{ BITS + PASS1_BITS + 3 }>(&mut lanes);
    // Columns by now; a square of bytes is quicker to turn than one of sums.
    let mut columns = lanes
        .map(|column| u64::from_le_bytes(column.map(|level| (level + 128).clamp(0, 255) as u8)));
    turn(&mut columns);
    for (row, levels) in out.chunks_mut(stride).zip(columns) {
        row[..8].copy_from_slice(&levels.to_le_bytes());
    }
}

/// The same where only the first coefficient is not 0: one level all over.
#[inline(always)]
pub fn idct_flat(first: i16, quant: i16, out: &mut [u8], stride: usize) {
    let level = (i32::from(first.wrapping_mul(quant) << PASS1_BITS) + 16) >> 5;
    let level = (level + 128).clamp(0, 255) as u8;
    for row in out.chunks_mut(stride).take(8) {
        row[..8].fill(level);
    }
}

/// Rows to columns, saturated at 16 bits.
#[inline(always)]
fn transpose(lanes: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let saturate = |value: i32| value.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
    let lanes = lanes.map(|row| row.map(saturate));
    let mut out = [[0; 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            out[x][y] = lanes[y][x];
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
            idct(&block, &quant, &mut out, 8);
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
            idct(&block, &[1; 64], &mut whole, 8);
            idct_flat(first, 1, &mut flat, 8);
            assert_eq!(whole, flat);
        }
    }

    #[test]
    fn wild_coefficients_do_not_panic() {
        idct(&[i16::MAX; 64], &[i16::MAX; 64], &mut [0; 64], 8);
        idct(&[i16::MIN; 64], &[1; 64], &mut [0; 64], 8);
    }
}
