//! The two passes of `passes.rs` in AVX2: two products and their sum an instruction, eight sums at a time.
//!
//! `vpmaddwd` wants the two levels that one pair of weights meets side by side, in 16 bits. Across, eight rows are taken
//! at a time, a lane each, and their pixels are laid out in pairs once (`Tile`); a pair of weights is then the same for
//! all lanes. Two rows that pass down together are interleaved when they are written between the passes.
//! Equal to the plain loops to the bit.

use std::arch::x86_64::__m256i;

use pulp::cast;
use pulp::x86::V3;

use super::passes::{pitch, Layout, Passes, Scratch};
use super::weights::Weights;
use crate::error::Result;
use crate::memory;

/// Rows that a pass across works on at once.
const ROWS: usize = 8;
/// Levels of a row that a pass down works on at once.
const RUN: usize = 32;

/// Both passes; `row` gets each finished row.
pub fn run(
    simd: V3,
    passes: &Passes<'_>,
    scratch: &mut Scratch,
    row: &mut dyn FnMut(usize, &[u8]),
) -> Result<()> {
    simd.vectorize(Run {
        simd,
        passes,
        scratch,
        row,
    })
}

/// A call of [`run`] as a struct: a closure might not be inlined into the code compiled for AVX2.
struct Run<'a, 'b> {
    simd: V3,
    passes: &'a Passes<'b>,
    scratch: &'a mut Scratch,
    row: &'a mut dyn FnMut(usize, &[u8]),
}

impl pulp::NullaryFnOnce for Run<'_, '_> {
    type Output = Result<()>;

    #[inline(always)]
    fn call(self) -> Result<()> {
        let Run {
            simd,
            passes,
            scratch,
            row,
        } = self;
        let Passes {
            source,
            stride,
            across,
            down,
            layout,
            ..
        } = passes;
        let Scratch {
            between,
            tile,
            lines,
        } = scratch;
        let wide = (3 * pitch(across.count())).next_multiple_of(RUN);
        let (horizontal, vertical) = (Pairs::new(across)?, Pairs::new(down)?);
        // Pairs of weights that are 0 may lie past the last pixel used.
        let long = (across.used.div_ceil(4) * 2 + horizontal.pairs) * 3;
        memory::resize(tile, long, [0; 8])?;
        if passes.down_first {
            let long = (across.used * 3).next_multiple_of(RUN);
            memory::resize(between, long * ROWS, 0)?;
            memory::resize(lines, wide * ROWS, 0)?;
            let mut done = 0;
            for (begins, weights) in vertical.groups() {
                let weights = weights.chunks_exact(vertical.pairs);
                for ((begin, weights), out) in begins
                    .iter()
                    .zip(weights)
                    .zip(between.chunks_exact_mut(long))
                {
                    let rows = &source[begin * 2 * stride..];
                    down_plain(simd, rows, *stride, weights, down.bits, out);
                }
                fill_tile(simd, between, long, begins.len(), across.used * 3, tile);
                let mut rows = Rows(pieces(lines, wide));
                across_rows(simd, tile, &horizontal, across.bits, *layout, &mut rows);
                for line in lines.chunks_exact(wide).take(begins.len()) {
                    row(done, line);
                    done += 1;
                }
            }
        } else {
            let groups = down.used.div_ceil(ROWS);
            // Rows past the last meet weights of 0: they may be any.
            memory::resize(between, (groups * ROWS + 2 * vertical.pairs) * wide, 0)?;
            let groups = between.chunks_exact_mut(ROWS * wide).take(groups);
            for (first, out) in (0..).step_by(ROWS).zip(groups) {
                let count = (down.used - first).min(ROWS);
                fill_tile(
                    simd,
                    &source[first * stride..],
                    *stride,
                    count,
                    across.used * 3,
                    tile,
                );
                let mut pairs = Interleaved(pieces(out, 2 * wide));
                across_rows(simd, tile, &horizontal, across.bits, *layout, &mut pairs);
            }
            memory::resize(lines, wide, 0)?;
            let weights = vertical.values.chunks_exact(vertical.pairs);
            for (y, (begin, weights)) in vertical.begins.iter().zip(weights).enumerate() {
                down_interleaved(
                    simd,
                    &between[begin * 2 * wide..],
                    weights,
                    down.bits,
                    lines,
                );
                row(y, lines);
            }
        }
        Ok(())
    }
}

/// The weights of one axis in pairs, as `vpmaddwd` takes them.
struct Pairs {
    begins: Vec<usize>,
    values: Vec<i32>,
    /// Pairs an output position.
    pairs: usize,
}

impl Pairs {
    fn new(weights: &Weights) -> Result<Pairs> {
        let pair = |pair: &[i16]| i32::from(pair[1]) << 16 | i32::from(pair[0]) & 0xffff;
        let pairs = weights.taps / 2;
        let mut values = Vec::new();
        memory::reserve(&mut values, weights.count() * pairs)?;
        for (_, weights) in weights.iter() {
            values.extend(weights.chunks_exact(2).map(pair));
        }
        let mut begins = Vec::new();
        memory::reserve(&mut begins, weights.count())?;
        begins.extend(weights.iter().map(|(begin, _)| begin / 2));
        Ok(Pairs {
            begins,
            values,
            pairs,
        })
    }

    /// Eight output positions at a time.
    #[inline(always)]
    fn groups(&self) -> impl Iterator<Item = (&[usize], &[i32])> {
        self.begins
            .chunks(8)
            .zip(self.values.chunks(8 * self.pairs))
    }
}

/// Where eight rows of sums go, eight levels of each at a time.
trait Sink {
    /// `outer` holds rows 0 and 1 and, in its upper half, 4 and 5, level beside level; `inner` rows 2, 3, 6 and 7.
    fn put(&mut self, simd: V3, at: usize, outer: __m256i, inner: __m256i);
}

/// Four pairs of rows, each pair interleaved.
struct Interleaved<'a>([&'a mut [u8]; 4]);

impl Sink for Interleaved<'_> {
    #[inline(always)]
    fn put(&mut self, _: V3, at: usize, outer: __m256i, inner: __m256i) {
        let (outer, inner): ([[u8; 16]; 2], [[u8; 16]; 2]) = (cast(outer), cast(inner));
        for (row, levels) in self
            .0
            .iter_mut()
            .zip([outer[0], inner[0], outer[1], inner[1]])
        {
            row[2 * at..][..16].copy_from_slice(&levels);
        }
    }
}

/// Eight rows.
struct Rows<'a>([&'a mut [u8]; 8]);

impl Sink for Rows<'_> {
    #[inline(always)]
    fn put(&mut self, simd: V3, at: usize, outer: __m256i, inner: __m256i) {
        const APART: [u8; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
        let apart = cast([APART; 2]);
        let outer: [[u8; 8]; 4] = cast(simd.avx2._mm256_shuffle_epi8(outer, apart));
        let inner: [[u8; 8]; 4] = cast(simd.avx2._mm256_shuffle_epi8(inner, apart));
        let levels = [
            outer[0], outer[1], inner[0], inner[1], outer[2], outer[3], inner[2], inner[3],
        ];
        for (row, levels) in self.0.iter_mut().zip(levels) {
            row[at..][..8].copy_from_slice(&levels);
        }
    }
}

/// So many pieces of equal length of a buffer.
#[inline(always)]
fn pieces<const N: usize>(buffer: &mut [u8], length: usize) -> [&mut [u8]; N] {
    let mut pieces = buffer.chunks_exact_mut(length);
    std::array::from_fn(|_| pieces.next().unwrap_or_default())
}

/// Lays the pixels of eight rows out in pairs: for each pair of pixels and each channel, both levels of every row.
///
/// Rows are `stride` bytes apart and `used` bytes long; of fewer than eight (`count`) the last is repeated.
#[inline(always)]
fn fill_tile(
    simd: V3,
    rows: &[u8],
    stride: usize,
    count: usize,
    used: usize,
    tile: &mut [[u32; 8]],
) {
    // From R G B R G B to R . R . G . G . B . B .
    const FIRST: [u8; 16] = [
        0, 128, 3, 128, 1, 128, 4, 128, 2, 128, 5, 128, 128, 128, 128, 128,
    ];
    const SECOND: [u8; 16] = [
        6, 128, 9, 128, 7, 128, 10, 128, 8, 128, 11, 128, 128, 128, 128, 128,
    ];
    let avx2 = simd.avx2;
    let sources: [&[u8]; ROWS] =
        std::array::from_fn(|lane| &rows[lane.min(count - 1) * stride..][..used]);
    let (tile, _) = tile.as_chunks_mut::<6>();
    for (step, tile) in tile.iter_mut().take(used.div_ceil(12)).enumerate() {
        let at = step * 12;
        let mut levels = [[0_u8; 16]; ROWS];
        if at + 16 <= used {
            for (levels, source) in levels.iter_mut().zip(sources) {
                levels.copy_from_slice(&source[at..at + 16]);
            }
        } else {
            for (levels, source) in levels.iter_mut().zip(sources) {
                levels[..used - at].copy_from_slice(&source[at..]);
            }
        }
        // Rows 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        let pairs: [__m256i; 4] = [
            cast([levels[0], levels[4]]),
            cast([levels[1], levels[5]]),
            cast([levels[2], levels[6]]),
            cast([levels[3], levels[7]]),
        ];
        for (tile, mask) in tile.as_chunks_mut::<3>().0.iter_mut().zip([FIRST, SECOND]) {
            let mask = cast([mask; 2]);
            let a = avx2._mm256_shuffle_epi8(pairs[0], mask);
            let b = avx2._mm256_shuffle_epi8(pairs[1], mask);
            let c = avx2._mm256_shuffle_epi8(pairs[2], mask);
            let d = avx2._mm256_shuffle_epi8(pairs[3], mask);
            let red_green = avx2._mm256_unpacklo_epi32(a, b);
            let more_red_green = avx2._mm256_unpacklo_epi32(c, d);
            let blue = avx2._mm256_unpackhi_epi32(a, b);
            let more_blue = avx2._mm256_unpackhi_epi32(c, d);
            tile[0] = cast(avx2._mm256_unpacklo_epi64(red_green, more_red_green));
            tile[1] = cast(avx2._mm256_unpackhi_epi64(red_green, more_red_green));
            tile[2] = cast(avx2._mm256_unpacklo_epi64(blue, more_blue));
        }
    }
}

/// Eight rows across, from a tile.
#[inline(always)]
fn across_rows<S: Sink>(
    simd: V3,
    tile: &[[u32; 8]],
    all: &Pairs,
    bits: u32,
    layout: Layout,
    sink: &mut S,
) {
    let (avx, avx2) = (simd.avx, simd.avx2);
    let half = avx._mm256_set1_epi32(1 << bits >> 1);
    let shift = simd.sse2._mm_cvtsi32_si128(bits as i32);
    let pitch = pitch(all.begins.len());
    for (group, (begins, values)) in all.groups().enumerate() {
        let mut sums = [[half; 3]; 8];
        let values = values.chunks_exact(all.pairs);
        for ((&begin, values), sums) in begins.iter().zip(values).zip(&mut sums) {
            let (pixels, _) = tile[begin * 3..].as_chunks::<3>();
            let [mut red, mut green, mut blue] = [half; 3];
            for (pair, &weights) in pixels.iter().zip(values) {
                let weights = avx._mm256_set1_epi32(weights);
                red = avx2._mm256_add_epi32(red, avx2._mm256_madd_epi16(cast(pair[0]), weights));
                green =
                    avx2._mm256_add_epi32(green, avx2._mm256_madd_epi16(cast(pair[1]), weights));
                blue = avx2._mm256_add_epi32(blue, avx2._mm256_madd_epi16(cast(pair[2]), weights));
            }
            *sums = [red, green, blue];
        }
        macro_rules! put {
            ($at:expr, $columns:expr) => {{
                // Eight columns of eight rows, two columns at a time to 16 bits, then rows 0, 1, 4, 5 and 2, 3, 6, 7.
                macro_rules! two {
                    ($column:expr) => {
                        avx2._mm256_packs_epi32(
                            avx2._mm256_sra_epi32($columns[$column], shift),
                            avx2._mm256_sra_epi32($columns[$column + 1], shift),
                        )
                    };
                }
                macro_rules! pick {
                    ($from:expr, $and:expr, $which:literal) => {
                        avx._mm256_castps_si256(avx._mm256_shuffle_ps::<$which>(
                            avx._mm256_castsi256_ps($from),
                            avx._mm256_castsi256_ps($and),
                        ))
                    };
                }
                let (a, b, c, d) = (two!(0), two!(2), two!(4), two!(6));
                let outer = avx2._mm256_packus_epi16(pick!(a, b, 0x88), pick!(c, d, 0x88));
                let inner = avx2._mm256_packus_epi16(pick!(a, b, 0xdd), pick!(c, d, 0xdd));
                sink.put(simd, $at, outer, inner);
            }};
        }
        match layout {
            Layout::Planes => {
                let [a, b, c, d, e, f, g, h] = sums;
                for channel in 0..3 {
                    let columns = [
                        a[channel], b[channel], c[channel], d[channel], e[channel], f[channel],
                        g[channel], h[channel],
                    ];
                    put!(channel * pitch + group * 8, columns);
                }
            }
            Layout::Packed => {
                for (part, columns) in sums.as_flattened().as_chunks::<8>().0.iter().enumerate() {
                    put!(group * 24 + part * 8, columns);
                }
            }
        }
    }
}

/// One row from interleaved pairs of rows.
#[inline(always)]
fn down_interleaved(simd: V3, pairs: &[u8], weights: &[i32], bits: u32, out: &mut [u8]) {
    let (avx, avx2) = (simd.avx, simd.avx2);
    let half = avx._mm256_set1_epi32(1 << bits >> 1);
    let shift = simd.sse2._mm_cvtsi32_si128(bits as i32);
    let stride = 2 * out.len();
    // From the order in which packing leaves fours of columns.
    let order: __m256i = cast([0_u32, 4, 1, 5, 2, 6, 3, 7]);
    for (run, out) in out.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let mut sums = [half; 4];
        for (pair, &weights) in pairs.chunks_exact(stride).zip(weights) {
            let weights = avx._mm256_set1_epi32(weights);
            let levels = &pair[run * 2 * RUN..][..2 * RUN];
            for (sum, levels) in sums.iter_mut().zip(levels.as_chunks::<16>().0) {
                let levels = avx2._mm256_cvtepu8_epi16(cast(*levels));
                *sum = avx2._mm256_add_epi32(*sum, avx2._mm256_madd_epi16(levels, weights));
            }
        }
        let [a, b, c, d] = sums;
        let low = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(a, shift),
            avx2._mm256_sra_epi32(b, shift),
        );
        let high = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(c, shift),
            avx2._mm256_sra_epi32(d, shift),
        );
        let levels = avx2._mm256_packus_epi16(low, high);
        *out = cast(avx2._mm256_permutevar8x32_epi32(levels, order));
    }
}

/// One row from rows as they are, `stride` bytes apart, of which the last may be cut short.
#[inline(always)]
fn down_plain(simd: V3, rows: &[u8], stride: usize, weights: &[i32], bits: u32, out: &mut [u8]) {
    let (avx, avx2) = (simd.avx, simd.avx2);
    let half = avx._mm256_set1_epi32(1 << bits >> 1);
    let shift = simd.sse2._mm_cvtsi32_si128(bits as i32);
    let zero = avx._mm256_setzero_si256();
    for (run, out) in out.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let mut sums = [half; 4];
        let mut at = run * RUN;
        for &weights in weights {
            let weights = avx._mm256_set1_epi32(weights);
            let (first, second) = (load(rows, at), load(rows, at + stride));
            at += 2 * stride;
            let low = avx2._mm256_unpacklo_epi8(first, second);
            let high = avx2._mm256_unpackhi_epi8(first, second);
            let levels = [
                avx2._mm256_unpacklo_epi8(low, zero),
                avx2._mm256_unpackhi_epi8(low, zero),
                avx2._mm256_unpacklo_epi8(high, zero),
                avx2._mm256_unpackhi_epi8(high, zero),
            ];
            for (sum, levels) in sums.iter_mut().zip(levels) {
                *sum = avx2._mm256_add_epi32(*sum, avx2._mm256_madd_epi16(levels, weights));
            }
        }
        let [a, b, c, d] = sums;
        let low = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(a, shift),
            avx2._mm256_sra_epi32(b, shift),
        );
        let high = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(c, shift),
            avx2._mm256_sra_epi32(d, shift),
        );
        *out = cast(avx2._mm256_packus_epi16(low, high));
    }
}

/// The levels from one on; zeros past the end of the picture, where weights are 0.
#[inline(always)]
fn load(rows: &[u8], at: usize) -> __m256i {
    let mut levels = [0; RUN];
    match rows.get(at..at + RUN) {
        Some(whole) => levels.copy_from_slice(whole),
        None => {
            let rest = rows.get(at..).unwrap_or_default();
            levels[..rest.len()].copy_from_slice(rest);
        }
    }
    cast(levels)
}
