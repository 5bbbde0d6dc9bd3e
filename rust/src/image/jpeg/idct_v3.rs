//! The inverse DCT of `idct.rs` in AVX2: the same sums of products, two factors an instruction.
//!
//! A row of a block is held twice, `[0..4, 0..4, 4..8, 4..8]`, so that interleaving two rows makes pairs for `vpmaddwd`
//! in the order of the lanes. Equal to the plain loops to the bit, for coefficients that no picture has too.

use std::arch::x86_64::{__m128i, __m256i};

use pulp::cast;
use pulp::x86::V3;

use super::idct::{Block, Transform, A, B, C};

impl Transform for V3 {
    #[inline(always)]
    fn idct(self, block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
        let (avx, avx2) = (self.avx, self.avx2);
        let block: [__m256i; 4] = cast(*block);
        let quant: [__m256i; 4] = cast(*quant);
        let below = avx2._mm256_or_si256(
            avx2._mm256_or_si256(
                avx2._mm256_permute2x128_si256::<0x81>(block[0], block[0]),
                block[1],
            ),
            avx2._mm256_or_si256(block[2], block[3]),
        );
        let mut rows = [avx._mm256_setzero_si256(); 8];
        if avx._mm256_testz_si256(below, below) == 1 {
            // Nothing to do down the columns but the scaling, at 16 bits: each column is one value.
            let first = avx2._mm256_mullo_epi16(block[0], quant[0]);
            let first: [i16; 16] = cast(avx2._mm256_slli_epi16::<2>(first));
            for x in 0..8 {
                rows[x] = avx._mm256_set1_epi16(first[x]);
            }
        } else {
            for pair in 0..4 {
                let values = avx2._mm256_mullo_epi16(block[pair], quant[pair]);
                rows[2 * pair] = avx2._mm256_permute4x64_epi64::<0x50>(values);
                rows[2 * pair + 1] = avx2._mm256_permute4x64_epi64::<0xfa>(values);
            }
            let turned = turn(self, pass::<11>(self, rows));
            for x in 0..4 {
                rows[x] = avx2._mm256_permute4x64_epi64::<0x50>(turned[x]);
                rows[x + 4] = avx2._mm256_permute4x64_epi64::<0xfa>(turned[x]);
            }
        }
        let turned = turn(self, pass::<18>(self, rows));
        // Saturated at 8 bits about 0, then 128 added: rows 0, 1, 4, 5 and 2, 3, 6, 7.
        let middle = avx._mm256_set1_epi8(-128);
        for (first, pair) in [(0, [turned[0], turned[1]]), (2, [turned[2], turned[3]])] {
            let levels = avx2._mm256_packs_epi16(pair[0], pair[1]);
            let levels: [u64; 4] = cast(avx2._mm256_xor_si256(levels, middle));
            for (row, levels) in [first, first + 1, first + 4, first + 5]
                .into_iter()
                .zip(levels)
            {
                out[row * stride..][..8].copy_from_slice(&levels.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn idct_half(self, block: &Block, quant: &Block, out: &mut [u8], stride: usize) {
        let (sse2, avx, avx2) = (self.sse2, self.avx, self.avx2);
        let block: [__m256i; 4] = cast(*block);
        let quant: [__m256i; 4] = cast(*quant);
        // Four of each of two rows as float32, one row a half.
        macro_rules! rows {
            ($pair:expr) => {{
                let values: [__m128i; 2] =
                    cast(avx2._mm256_mullo_epi16(block[$pair], quant[$pair]));
                let four = sse2._mm_unpacklo_epi64(values[0], values[1]);
                avx._mm256_cvtepi32_ps(avx2._mm256_cvtepi16_epi32(four))
            }};
        }
        // In each half another row of the result, or the same for both.
        macro_rules! halves {
            ($low:expr, $high:expr) => {
                avx._mm256_setr_ps($low, $low, $low, $low, $high, $high, $high, $high)
            };
        }
        macro_rules! twice {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {
                avx._mm256_setr_ps($a, $b, $c, $d, $a, $b, $c, $d)
            };
        }
        macro_rules! add_product {
            ($sum:expr, $a:expr, $b:expr) => {
                avx._mm256_add_ps($sum, avx._mm256_mul_ps($a, $b))
            };
        }
        let (rows01, rows23) = (rows!(0), rows!(1));
        let rows = [
            avx._mm256_permute2f128_ps::<0x00>(rows01, rows01),
            avx._mm256_permute2f128_ps::<0x11>(rows01, rows01),
            avx._mm256_permute2f128_ps::<0x00>(rows23, rows23),
            avx._mm256_permute2f128_ps::<0x11>(rows23, rows23),
        ];
        // The sums in the order of `idct_reduced`.
        macro_rules! levels {
            ($b1:expr, $b2:expr, $b3:expr) => {{
                let mut sum = avx._mm256_mul_ps(rows[0], halves!(A, A));
                sum = add_product!(sum, rows[1], $b1);
                sum = add_product!(sum, rows[2], $b2);
                sum = add_product!(sum, rows[3], $b3);
                let mut levels = avx._mm256_set1_ps(128.5);
                let column = avx._mm256_permute_ps::<0x00>(sum);
                levels = add_product!(levels, column, twice!(A, A, A, A));
                let column = avx._mm256_permute_ps::<0x55>(sum);
                levels = add_product!(levels, column, twice!(B, C, -C, -B));
                let column = avx._mm256_permute_ps::<0xaa>(sum);
                levels = add_product!(levels, column, twice!(A, -A, -A, A));
                let column = avx._mm256_permute_ps::<0xff>(sum);
                levels = add_product!(levels, column, twice!(C, -B, B, -C));
                avx._mm256_cvttps_epi32(levels)
            }};
        }
        let top = levels!(halves!(B, C), halves!(A, -A), halves!(C, -B));
        let bottom = levels!(halves!(-C, -B), halves!(-A, A), halves!(B, -C));
        // Rows 0 and 2, 1 and 3.
        let levels = avx2._mm256_packs_epi32(top, bottom);
        let levels: [u32; 8] = cast(avx2._mm256_packus_epi16(levels, levels));
        for (row, index) in [0, 4, 1, 5].into_iter().enumerate() {
            out[row * stride..][..4].copy_from_slice(&levels[index].to_le_bytes());
        }
    }
}

/// One dimension: rows held twice of 16 bits to rows of 32, scaled down by `SHIFT` bits, rounded.
#[inline(always)]
fn pass<const SHIFT: i32>(simd: V3, x: [__m256i; 8]) -> [__m256i; 8] {
    let (avx, avx2) = (simd.avx, simd.avx2);
    // Macros, because closures might not be inlined into the code compiled for AVX2.
    macro_rules! add {
        ($a:expr, $b:expr) => {
            avx2._mm256_add_epi32($a, $b)
        };
    }
    macro_rules! sub {
        ($a:expr, $b:expr) => {
            avx2._mm256_sub_epi32($a, $b)
        };
    }
    macro_rules! short {
        ($a:expr, $b:expr) => {
            avx2._mm256_add_epi16($a, $b)
        };
    }
    macro_rules! pairs {
        ($a:expr, $b:expr) => {
            avx2._mm256_unpacklo_epi16($a, $b)
        };
    }
    // a * first + b * second of each pair.
    macro_rules! products {
        ($pairs:expr, $first:expr, $second:expr) => {
            avx2._mm256_madd_epi16(
                $pairs,
                avx._mm256_set1_epi32(($second) << 16 | ($first) & 0xffff),
            )
        };
    }
    let zero = avx._mm256_setzero_si256();
    let half = avx._mm256_set1_epi32(1 << (SHIFT - 1));

    // Cosines times 2^13 as in `idct.rs`, sums of those that meet the same value.
    let even = pairs!(x[2], x[6]);
    let even2 = products!(even, 4433, 4433 - 15137);
    let even3 = products!(even, 4433 + 6270, 4433);
    // 16 bits to 32, times 2^13.
    macro_rules! wide {
        ($value:expr) => {
            avx2._mm256_srai_epi32::<3>(pairs!(zero, $value))
        };
    }
    let even0 = add!(wide!(short!(x[0], x[4])), half);
    let even1 = add!(wide!(avx2._mm256_sub_epi16(x[0], x[4])), half);
    let (a0, a3) = (add!(even0, even3), sub!(even0, even3));
    let (a1, a2) = (add!(even1, even2), sub!(even1, even2));

    let sums = pairs!(short!(x[7], x[3]), short!(x[5], x[1]));
    let z3 = products!(sums, 9633 - 16069, 9633);
    let z4 = products!(sums, 9633, 9633 - 3196);
    let outer = pairs!(x[7], x[1]);
    let inner = pairs!(x[5], x[3]);
    let b0 = add!(products!(outer, 2446 - 7373, -7373), z3);
    let b3 = add!(products!(outer, -7373, 12299 - 7373), z4);
    let b1 = add!(products!(inner, 16819 - 20995, -20995), z4);
    let b2 = add!(products!(inner, -20995, 25172 - 20995), z3);

    macro_rules! scale {
        ($sum:expr) => {
            avx2._mm256_srai_epi32::<SHIFT>($sum)
        };
    }
    [
        scale!(add!(a0, b3)),
        scale!(add!(a1, b2)),
        scale!(add!(a2, b1)),
        scale!(add!(a3, b0)),
        scale!(sub!(a3, b0)),
        scale!(sub!(a2, b1)),
        scale!(sub!(a1, b2)),
        scale!(sub!(a0, b3)),
    ]
}

/// Rows of 32 bits to columns of 16, saturated: columns 0 and 4 in the first, 1 and 5 in the second, and so on.
#[inline(always)]
fn turn(simd: V3, rows: [__m256i; 8]) -> [__m256i; 4] {
    let avx2 = simd.avx2;
    // In each half: [a0 a1 a2 a3 c0 c1 c2 c3] with [b0 .. d3] to [a0 b0 a1 b1 ..] and [c0 d0 ..], then fours.
    macro_rules! fours {
        ($at:expr) => {{
            let ac = avx2._mm256_packs_epi32(rows[$at], rows[$at + 2]);
            let bd = avx2._mm256_packs_epi32(rows[$at + 1], rows[$at + 3]);
            let ab = avx2._mm256_unpacklo_epi16(ac, bd);
            let cd = avx2._mm256_unpackhi_epi16(ac, bd);
            (
                avx2._mm256_unpacklo_epi32(ab, cd),
                avx2._mm256_unpackhi_epi32(ab, cd),
            )
        }};
    }
    let (top01, top23) = fours!(0);
    let (bottom01, bottom23) = fours!(4);
    [
        avx2._mm256_unpacklo_epi64(top01, bottom01),
        avx2._mm256_unpackhi_epi64(top01, bottom01),
        avx2._mm256_unpacklo_epi64(top23, bottom23),
        avx2._mm256_unpackhi_epi64(top23, bottom23),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::idct::Portable;
    use super::*;
    use crate::image::augment::mix;

    #[test]
    fn equal_to_the_plain_loops_for_every_kind_of_block() {
        let Some(simd) = V3::try_new() else { return };
        for seed in 0..20_000_u64 {
            // From real pictures' range to the whole of 16 bits; few coefficients, some, or all.
            let range = [50, 600, 3000, 65_536][(seed % 4) as usize];
            let last = [1, 3, 8, 20, 64][(seed % 5) as usize];
            let draw = |k: u64| (mix(seed * 128 + k) % range) as i64 - range as i64 / 2;
            let block: Block =
                std::array::from_fn(|k| if k < last { draw(k as u64) as i16 } else { 0 });
            let quant: Block = std::array::from_fn(|k| 1 + (mix(seed + k as u64) % 40) as i16);
            let (mut ours, mut plain) = ([0; 8 * 11], [0; 8 * 11]);
            simd.vectorize(|| simd.idct(&block, &quant, &mut ours, 11));
            Portable.idct(&block, &quant, &mut plain, 11);
            assert_eq!(ours, plain, "seed {seed}");
            simd.vectorize(|| simd.idct_half(&block, &quant, &mut ours, 11));
            Portable.idct_half(&block, &quant, &mut plain, 11);
            assert_eq!(ours, plain, "half, seed {seed}");
        }
    }
}
