//! The rows of a large matrix that have the highest inner products with some queries, in one pass at the memory's speed.
//!
//! Products are made in float32 and may be wrong by their rounding, so each query gets every row that may be among its
//! best `k`: the caller compares those few again, exactly. float16 is widened by shifts alone: as float32, the bits of a
//! finite float16, moved to the places of exponent and mantissa, are its value times 2^-112, and the queries are
//! multiplied by 2^112 before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::simd::vectorize;
use crate::threads::share;

/// Rows that a thread takes at a time.
const CHUNK: usize = 1 << 12;
/// Neighbouring components that are summed in parallel, in vector registers.
const LANES: usize = 32;
/// Rows and queries of a tile, whose products are made together.
const ROWS: usize = 16;
const QUERIES: usize = 4;
/// Rows that a query collects before those that have been surpassed are dropped.
const COLLECTED: usize = 256;

/// An element type of the rows.
pub trait Value: Copy + Default + Send + Sync + 'static {
    /// What [`Value::wide`] is too small by.
    const SCALE: f32;
    /// The value divided by `SCALE`.
    fn wide(self) -> f32;
}

impl Value for f32 {
    const SCALE: f32 = 1.0;
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

/// float16 by its bits.
impl Value for u16 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(((i32::from(self as i16) << 13) as u32) & 0x8FFF_E000)
    }
}

/// What is searched: rows of `width` finite values, with what is subtracted from their products, and whether they are
/// left out.
pub struct Rows<'a, T> {
    pub values: &'a [T],
    pub width: usize,
    pub prior: Option<&'a [f32]>,
    pub skip: Option<&'a [bool]>,
}

/// The rows found for one query so far.
#[derive(Clone)]
struct Found {
    /// Rows below it are not among the best.
    least: f32,
    /// Times 1 + |score|, bounds the rounding error of a score.
    error: f32,
    rows: Vec<(f32, usize)>,
    room: usize,
}

impl Found {
    fn new(query: &[f32]) -> Found {
        let norm = query
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        // A float32 sum of `width` products of rows of about unit length; one more rounding each for prior and score.
        let error = (query.len() + 8) as f64 * f64::from(f32::EPSILON) * norm.max(1.0);
        Found {
            least: f32::NEG_INFINITY,
            error: error as f32,
            rows: Vec::new(),
            room: COLLECTED,
        }
    }

    #[inline(always)]
    fn offer(&mut self, score: f32, row: usize, k: usize) {
        if score >= self.least {
            self.rows.push((score, row));
            if self.rows.len() >= self.room {
                self.thin(k);
            }
        }
    }

    /// Drops the rows that cannot be among the best `k`.
    #[inline(never)]
    fn thin(&mut self, k: usize) {
        if self.rows.len() > k {
            let (_, last, _) = self
                .rows
                .select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0));
            let least = last.0 - 2.0 * self.error * (1.0 + last.0.abs());
            self.least = least;
            self.rows.retain(|row| row.0 >= least);
        }
        self.room = (2 * self.rows.len()).max(COLLECTED);
    }
}

/// For each query, the rows that may be among the `k` with the highest product less the prior, in order.
///
/// # Errors
/// Shapes that do not fit together, or `k` is 0.
pub fn nearest<T: Value>(
    rows: &Rows<'_, T>,
    queries: &[f32],
    k: usize,
    threads: usize,
) -> Result<Vec<Vec<i64>>> {
    let width = rows.width;
    if width == 0
        || k == 0
        || !rows.values.len().is_multiple_of(width)
        || !queries.len().is_multiple_of(width)
    {
        return Err(Error::Value(
            "wanted rows and queries of one width, and k of at least 1".into(),
        ));
    }
    let count = rows.values.len() / width;
    let fits = |length: Option<usize>| length.is_none_or(|length| length == count);
    if !fits(rows.prior.map(<[f32]>::len)) || !fits(rows.skip.map(<[bool]>::len)) {
        return Err(Error::Value(format!(
            "prior and skip must have {count} values, one a row"
        )));
    }
    let scaled: Vec<f32> = queries.iter().map(|x| x * T::SCALE).collect();
    let empty: Vec<Found> = queries.chunks_exact(width).map(Found::new).collect();
    let all = Mutex::new(empty.clone());
    let next = AtomicUsize::new(0);
    let chunks = count.div_ceil(CHUNK);
    share(threads.min(chunks), || {
        let mut found = empty.clone();
        let mut tile = vec![
            0.0_f32;
            if found.len() < QUERIES {
                0
            } else {
                ROWS * width
            }
        ];
        loop {
            let first = next.fetch_add(1, Ordering::Relaxed) * CHUNK;
            if first >= count {
                break;
            }
            let part = first..(first + CHUNK).min(count);
            vectorize(
                #[inline(always)]
                || {
                    if tile.is_empty() {
                        one_by_one(rows, part, &scaled, &mut found, k);
                    } else {
                        in_tiles(rows, part, &scaled, &mut found, &mut tile, k);
                    }
                },
            );
        }
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        for (whole, part) in all.iter_mut().zip(found) {
            whole.rows.extend(part.rows);
        }
    });
    let all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(all
        .into_iter()
        .map(|mut found| {
            found.thin(k);
            let mut rows: Vec<i64> = found.rows.into_iter().map(|row| row.1 as i64).collect();
            rows.sort_unstable();
            rows
        })
        .collect())
}

/// A few queries: each row is read once from memory, and once more from the cache for each further query.
#[inline(always)]
fn one_by_one<T: Value>(
    rows: &Rows<'_, T>,
    part: std::ops::Range<usize>,
    queries: &[f32],
    found: &mut [Found],
    k: usize,
) {
    let width = rows.width;
    let values = rows.values[part.start * width..part.end * width].chunks_exact(width);
    for (row, values) in part.zip(values) {
        if rows.skip.is_some_and(|skip| skip[row]) {
            continue;
        }
        let prior = rows.prior.map_or(0.0, |prior| prior[row]);
        for (query, found) in queries.chunks_exact(width).zip(found.iter_mut()) {
            found.offer(product(values, query) - prior, row, k);
        }
    }
}

/// The inner product of a row and a scaled query.
#[inline(always)]
fn product<T: Value>(row: &[T], query: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let mut values = row.chunks_exact(LANES);
    let mut factors = query.chunks_exact(LANES);
    for (value, factor) in values.by_ref().zip(factors.by_ref()) {
        for lane in 0..LANES {
            sums[lane] += value[lane].wide() * factor[lane];
        }
    }
    let mut rest = 0.0;
    for (value, factor) in values.remainder().iter().zip(factors.remainder()) {
        rest += value.wide() * factor;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0] + rest
}

/// Many queries: 16 rows are widened and turned, and all queries multiplied with them, four at a time.
#[inline(always)]
fn in_tiles<T: Value>(
    rows: &Rows<'_, T>,
    part: std::ops::Range<usize>,
    queries: &[f32],
    found: &mut [Found],
    tile: &mut [f32],
    k: usize,
) {
    let width = rows.width;
    for first in part.clone().step_by(ROWS) {
        let count = ROWS.min(part.end - first);
        for lane in 0..count {
            let row = &rows.values[(first + lane) * width..][..width];
            for (at, value) in row.iter().enumerate() {
                tile[at * ROWS + lane] = value.wide();
            }
        }
        let mut least = [0.0_f32; ROWS];
        for (lane, prior) in least[..count].iter_mut().enumerate() {
            *prior = rows.prior.map_or(0.0, |prior| prior[first + lane]);
        }
        let skip = |lane: usize| lane >= count || rows.skip.is_some_and(|skip| skip[first + lane]);
        let skipped: [bool; ROWS] = std::array::from_fn(skip);
        for (queries, found) in queries
            .chunks(QUERIES * width)
            .zip(found.chunks_mut(QUERIES))
        {
            let sums = tile_products(tile, queries, width);
            for (sums, found) in sums.iter().zip(found.iter_mut()) {
                let mut any = false;
                for lane in 0..ROWS {
                    any |= sums[lane] - least[lane] >= found.least;
                }
                if any {
                    for lane in (0..ROWS).filter(|lane| !skipped[*lane]) {
                        found.offer(sums[lane] - least[lane], first + lane, k);
                    }
                }
            }
        }
    }
}

/// The products of a tile's rows with up to four queries.
#[inline(always)]
fn tile_products(tile: &[f32], queries: &[f32], width: usize) -> [[f32; ROWS]; QUERIES] {
    let mut sums = [[0.0_f32; ROWS]; QUERIES];
    let given = queries.len() / width;
    // Where there are fewer, the first is multiplied again.
    let query: [&[f32]; QUERIES] = std::array::from_fn(|place| {
        &queries[if place < given { place * width } else { 0 }..][..width]
    });
    for (at, values) in tile.chunks_exact(ROWS).enumerate().take(width) {
        let values: &[f32; ROWS] = values.try_into().unwrap_or(&[0.0; ROWS]);
        for (sums, query) in sums.iter_mut().zip(query) {
            let factor = query[at];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value * factor;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// float16 of a value that it holds exactly: eighths between -2 and 2.
    fn half(eighths: i32) -> u16 {
        if eighths == 0 {
            return 0;
        }
        let magnitude = eighths.unsigned_abs();
        let exponent = 31 - magnitude.leading_zeros();
        let mantissa = (magnitude << (10 - exponent)) & 0x3FF;
        let sign = if eighths < 0 { 0x8000 } else { 0 };
        (sign | ((exponent + 15 - 3) << 10) | mantissa) as u16
    }

    fn eighths(count: usize, seed: u64) -> Vec<i32> {
        (0..count as u64)
            .map(|at| (crate::image::augment::mix(at + (seed << 32)) % 33) as i32 - 16)
            .collect()
    }

    #[test]
    fn float16_is_widened_exactly() {
        for value in -16..=16 {
            let wide = half(value).wide() * u16::SCALE;
            assert_eq!(wide, value as f32 / 8.0);
        }
        assert_eq!(
            1_u16.wide() * u16::SCALE,
            2.0_f32.powi(-24),
            "the least subnormal"
        );
        assert_eq!(0x7BFF_u16.wide() * u16::SCALE, 65504.0, "the largest");
    }

    #[test]
    fn the_best_rows_are_found_whatever_the_shape_and_the_threads() {
        for (count, width, asked, threads) in [
            (1, 1, 1, 1),
            (40, 37, 1, 1),
            (5000, 33, 3, 2),
            (9001, 8, 6, 3),
            (300, 70, 9, 2),
        ] {
            let (values, queries) = (eighths(count * width, 1), eighths(asked * width, 2));
            let prior: Vec<f32> = eighths(count, 3).iter().map(|x| *x as f32 / 8.0).collect();
            let skip: Vec<bool> = eighths(count, 4)
                .iter()
                .map(|x| *x == 0 && count > 1)
                .collect();
            let halves: Vec<u16> = values.iter().map(|x| half(*x)).collect();
            let floats: Vec<f32> = values.iter().map(|x| *x as f32 / 8.0).collect();
            let wide: Vec<f32> = queries.iter().map(|x| *x as f32 / 8.0).collect();
            let k = 7.min(count);
            let (prior, skip) = (Some(&prior[..]), Some(&skip[..]));
            let of_halves = Rows {
                values: &halves[..],
                width,
                prior,
                skip,
            };
            let of_floats = Rows {
                values: &floats[..],
                width,
                prior,
                skip,
            };
            let found = nearest(&of_halves, &wide, k, threads).unwrap();
            assert_eq!(found, nearest(&of_floats, &wide, k, 1).unwrap());
            for (query, found) in wide.chunks_exact(width).zip(&found) {
                let score = |row: usize| -> f32 {
                    let own = &floats[row * width..][..width];
                    own.iter().zip(query).map(|(a, b)| a * b).sum::<f32>() - prior.unwrap()[row]
                };
                let mut order: Vec<usize> = (0..count).filter(|row| !skip.unwrap()[*row]).collect();
                order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
                let last = score(order[k.min(order.len()) - 1]);
                for row in order {
                    assert_eq!(
                        found.contains(&(row as i64)),
                        score(row) >= last,
                        "{count} {width} {row}"
                    );
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let rows = |prior| Rows {
            values: &[0_u16; 6][..],
            width: 3,
            prior,
            skip: None,
        };
        assert!(nearest(&rows(None), &[0.0; 4], 1, 1).is_err());
        assert!(nearest(&rows(None), &[0.0; 3], 0, 1).is_err());
        assert!(nearest(&rows(Some(&[0.0][..])), &[0.0; 3], 1, 1).is_err());
    }
}
