//! Count, mean, variance, minimum and maximum, column by column, in one pass and in float64.
//!
//! A block of n values x is shifted by its first value c, so that sums lose no digits to a large mean:
//! d = x - c, mean = c + (sum d) / n, m2 = sum d^2 - (sum d)^2 / n. Blocks and accumulators merge by Chan, Golub and
//! LeVeque (1979): with delta = mean_b - mean_a and n = n_a + n_b,
//! mean = mean_a + delta n_b / n, m2 = m2_a + m2_b + delta^2 n_a n_b / n.
//! Blocks and the order in which they merge depend on the data's shape alone, never on threads.

use crate::error::{Error, Result};
use crate::simd::vectorize;

/// Values in a block that is shifted by one value.
const BLOCK: usize = 4096;
/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 19;
/// Independent sums of a column of scalars: enough to fill vector registers and hide the latency of additions.
const LANES: usize = 16;

/// Moments of one column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Mean; 0 before the first value.
    pub mean: f64,
    /// Sum of squared deviations from the mean.
    pub m2: f64,
    /// Smallest value; NaN as soon as one value is.
    pub min: f64,
    /// Largest value; NaN as soon as one value is.
    pub max: f64,
}

impl Column {
    const EMPTY: Column = Column {
        mean: 0.0,
        m2: 0.0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
    };

    fn merge(&mut self, count: u64, other: &Column, other_count: u64) {
        if other_count == 0 {
            return;
        }
        if count == 0 {
            *self = *other;
            return;
        }
        let (a, b) = (count as f64, other_count as f64);
        let delta = other.mean - self.mean;
        self.mean += delta * (b / (a + b));
        self.m2 += other.m2 + delta * delta * (a / (a + b)) * b;
        self.min = lesser(self.min, other.min);
        self.max = greater(self.max, other.max);
    }
}

/// The smaller; NaN if either is.
fn lesser(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b {
        a
    } else {
        b
    }
}

/// The larger; NaN if either is.
fn greater(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b {
        a
    } else {
        b
    }
}

/// An element type of the input.
pub trait Value: Copy + PartialOrd + Send + Sync {
    /// As float64, exactly.
    fn wide(self) -> f64;
    /// Moments of a run of at most [`BLOCK`] values of one column.
    #[inline(always)]
    fn block(values: &[Self]) -> Column {
        float_block(values)
    }
}

impl Value for f64 {
    fn wide(self) -> f64 {
        self
    }
}

impl Value for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Value for u8 {
    fn wide(self) -> f64 {
        f64::from(self)
    }

    /// Whole numbers: the sums are exact.
    #[inline(always)]
    fn block(values: &[u8]) -> Column {
        let (mut sum, mut squares) = (0_u32, 0_u32);
        let (mut min, mut max) = (u8::MAX, 0);
        for &value in values {
            sum += u32::from(value);
            squares += u32::from(value) * u32::from(value);
            min = min.min(value);
            max = max.max(value);
        }
        let count = values.len() as u64;
        let (sum, squares) = (u64::from(sum), u64::from(squares));
        Column {
            mean: sum as f64 / count as f64,
            m2: (count * squares - sum * sum) as f64 / count as f64,
            min: f64::from(min),
            max: f64::from(max),
        }
    }
}

#[inline(always)]
fn float_block<T: Value>(values: &[T]) -> Column {
    let first = values[0];
    let shift = first.wide();
    let mut sums = [0.0; LANES];
    let mut squares = [0.0; LANES];
    let mut low = [first; LANES];
    let mut high = [first; LANES];
    let whole = values.chunks_exact(LANES);
    let rest = whole.remainder();
    for values in whole {
        for lane in 0..LANES {
            let value = values[lane];
            let d = value.wide() - shift;
            sums[lane] += d;
            squares[lane] += d * d;
            low[lane] = if value < low[lane] { value } else { low[lane] };
            high[lane] = if value > high[lane] {
                value
            } else {
                high[lane]
            };
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        let d = value.wide() - shift;
        sums[lane] += d;
        squares[lane] += d * d;
        low[lane] = if value < low[lane] { value } else { low[lane] };
        high[lane] = if value > high[lane] {
            value
        } else {
            high[lane]
        };
    }
    let count = values.len() as f64;
    let sum = tree_sum(sums);
    let (mut min, mut max) = (low[0].wide(), high[0].wide());
    for lane in 1..LANES {
        min = lesser(min, low[lane].wide());
        max = greater(max, high[lane].wide());
    }
    if sum.is_nan() && values.iter().any(|value| value.wide().is_nan()) {
        (min, max) = (f64::NAN, f64::NAN);
    }
    let m2 = tree_sum(squares) - sum * sum / count;
    // Rounding may leave a tiny negative number; NaN stays NaN.
    Column {
        mean: shift + sum / count,
        m2: if m2 < 0.0 { 0.0 } else { m2 },
        min,
        max,
    }
}

#[inline(always)]
fn tree_sum(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Moments of `columns` columns.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningMoments {
    count: u64,
    columns: Vec<Column>,
}

impl RunningMoments {
    /// Nothing seen yet. There must be at least one column.
    pub fn new(columns: usize) -> Result<RunningMoments> {
        if columns == 0 {
            return Err(Error::Value(
                "RunningMoments needs at least one column, got 0".into(),
            ));
        }
        Ok(RunningMoments {
            count: 0,
            columns: vec![Column::EMPTY; columns],
        })
    }

    /// From a checkpoint.
    pub fn from_parts(count: u64, columns: Vec<Column>) -> Result<RunningMoments> {
        let mut moments = RunningMoments::new(columns.len())?;
        if columns.iter().any(|column| column.m2 < 0.0) {
            return Err(Error::Value(
                "a state of RunningMoments has a negative sum of squares".into(),
            ));
        }
        if count > 0 {
            moments = RunningMoments { count, columns };
        }
        Ok(moments)
    }

    /// Rows seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The columns' moments.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Adds rows: `values` holds them one after the other, `columns` values each.
    pub fn update<T: Value>(&mut self, values: &[T], threads: usize) -> Result<()> {
        let width = self.columns.len();
        if !values.len().is_multiple_of(width) {
            return Err(Error::Value(format!(
                "{} values are no whole rows of {width} columns",
                values.len()
            )));
        }
        let chunk = (CHUNK / width).max(1) * width;
        let chunks = values.len().div_ceil(chunk);
        let threads = threads.clamp(1, chunks.max(1));
        let mut parts: Vec<Option<RunningMoments>> = vec![None; chunks];
        let share = chunks.div_ceil(threads).max(1);
        let work = |parts: &mut [Option<RunningMoments>], values: &[T]| {
            for (part, values) in parts.iter_mut().zip(values.chunks(chunk)) {
                *part = Some(vectorize(
                    #[inline(always)]
                    || moments_of(values, width),
                ));
            }
        };
        std::thread::scope(|scope| {
            let mut shares = parts.chunks_mut(share).zip(values.chunks(share * chunk));
            let mine = shares.next();
            for (parts, values) in shares {
                scope.spawn(move || work(parts, values));
            }
            if let Some((parts, values)) = mine {
                work(parts, values);
            }
        });
        for part in parts.iter().flatten() {
            self.add(part);
        }
        Ok(())
    }

    /// Adds another accumulator's rows.
    pub fn merge(&mut self, other: &RunningMoments) -> Result<()> {
        if self.columns.len() != other.columns.len() {
            return Err(Error::Value(format!(
                "cannot merge moments of {} columns into those of {}",
                other.columns.len(),
                self.columns.len()
            )));
        }
        self.add(other);
        Ok(())
    }

    fn add(&mut self, other: &RunningMoments) {
        for (column, part) in self.columns.iter_mut().zip(&other.columns) {
            column.merge(self.count, part, other.count);
        }
        self.count += other.count;
    }
}

/// Moments of whole rows, from blocks in order.
#[inline(always)]
fn moments_of<T: Value>(values: &[T], width: usize) -> RunningMoments {
    let mut moments = RunningMoments {
        count: 0,
        columns: vec![Column::EMPTY; width],
    };
    if width == 1 {
        for block in values.chunks(BLOCK) {
            moments.add(&RunningMoments {
                count: block.len() as u64,
                columns: vec![T::block(block)],
            });
        }
        return moments;
    }
    let rows = (BLOCK / width).max(16);
    let mut sums = vec![0.0; width];
    let mut squares = vec![0.0; width];
    for block in values.chunks(rows * width) {
        let first = &block[..width];
        sums.fill(0.0);
        squares.fill(0.0);
        let mut low = first.to_vec();
        let mut high = first.to_vec();
        for row in block.chunks_exact(width) {
            for (column, &value) in row.iter().enumerate() {
                let d = value.wide() - first[column].wide();
                sums[column] += d;
                squares[column] += d * d;
                low[column] = if value < low[column] {
                    value
                } else {
                    low[column]
                };
                high[column] = if value > high[column] {
                    value
                } else {
                    high[column]
                };
            }
        }
        let count = block.len() / width;
        let columns = (0..width).map(|column| {
            let m2 = squares[column] - sums[column] * sums[column] / count as f64;
            let mean = first[column].wide() + sums[column] / count as f64;
            let nan = mean.is_nan()
                && block
                    .iter()
                    .skip(column)
                    .step_by(width)
                    .any(|value| value.wide().is_nan());
            let (min, max) = if nan {
                (f64::NAN, f64::NAN)
            } else {
                (low[column].wide(), high[column].wide())
            };
            Column {
                mean,
                m2: if m2 < 0.0 { 0.0 } else { m2 },
                min,
                max,
            }
        });
        moments.add(&RunningMoments {
            count: count as u64,
            columns: columns.collect(),
        });
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two passes in plain order.
    fn slow(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (
            mean,
            values.iter().map(|value| (value - mean).powi(2)).sum(),
        )
    }

    fn noise(count: usize) -> Vec<f64> {
        (0..count as u64)
            .map(|k| (crate::image::augment::mix(k) >> 11) as f64 / (1_u64 << 53) as f64)
            .collect()
    }

    #[test]
    fn agrees_with_two_passes() {
        for count in [1, 2, 15, 17, 4096, 4097, 10_000] {
            let values = noise(count);
            let mut moments = RunningMoments::new(1).unwrap();
            moments.update(&values, 1).unwrap();
            let (mean, m2) = slow(&values);
            let got = moments.columns()[0];
            assert!(
                (got.mean - mean).abs() < 1e-13 && (got.m2 - m2).abs() <= 1e-11 * m2.max(1.0),
                "{count}"
            );
            assert_eq!(
                got.min,
                values.iter().copied().fold(f64::INFINITY, f64::min)
            );
        }
    }

    #[test]
    fn threads_do_not_show() {
        let values = noise(3 * CHUNK + 7);
        let mut results = Vec::new();
        for threads in [1, 2, 3, 8] {
            let mut moments = RunningMoments::new(1).unwrap();
            moments.update(&values, threads).unwrap();
            results.push(moments);
        }
        assert!(results.iter().all(|result| *result == results[0]));
    }

    #[test]
    fn columns_are_scalars_side_by_side() {
        let values = noise(3000);
        let mut table = RunningMoments::new(3).unwrap();
        table.update(&values, 2).unwrap();
        for column in 0..3 {
            let part: Vec<f64> = values.iter().skip(column).step_by(3).copied().collect();
            let (mean, m2) = slow(&part);
            assert!((table.columns()[column].mean - mean).abs() < 1e-13);
            assert!((table.columns()[column].m2 - m2).abs() < 1e-10);
        }
        assert!(table.update(&values[..4], 1).is_err());
    }

    #[test]
    fn bytes_are_exact_and_nan_spreads() {
        let mut bytes = RunningMoments::new(1).unwrap();
        bytes.update(&[0_u8, 255, 255, 0], 1).unwrap();
        assert_eq!(
            bytes.columns()[0],
            Column {
                mean: 127.5,
                m2: 65025.0,
                min: 0.0,
                max: 255.0
            }
        );
        let mut floats = RunningMoments::new(1).unwrap();
        floats.update(&[1.0_f32, f32::NAN, 3.0], 1).unwrap();
        floats.update(&[1.0_f32], 1).unwrap();
        let got = floats.columns()[0];
        assert!(got.mean.is_nan() && got.m2.is_nan() && got.min.is_nan() && got.max.is_nan());
    }
}
