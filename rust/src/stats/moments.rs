//! Count, mean, variance, minimum and maximum, column by column, in one pass and in float64.
//!
//! Blocks (`sums`) and accumulators merge by Chan, Golub and LeVeque (1979): with delta = mean_b - mean_a and n = n_a + n_b,
//! mean = mean_a + delta n_b / n, m2 = m2_a + m2_b + delta^2 n_a n_b / n.
//! Blocks and the order in which they merge depend on the data's shape alone, never on threads.

use std::sync::{Mutex, PoisonError};

use super::sums::{Scalars, Table, Value};
use super::wide::dispatch;
use crate::error::{Error, Result};

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 19;

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

    /// Adds the moments of `other_count` values to those of `count`.
    #[inline(always)]
    pub(super) fn merge(&mut self, count: u64, other: &Column, other_count: u64) {
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
        let queue = Mutex::new(parts.iter_mut().zip(values.chunks(chunk)));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((part, values)) = next() {
                *part = Some(moments_of(values, width));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
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
fn moments_of<T: Value>(values: &[T], width: usize) -> RunningMoments {
    let mut columns = vec![Column::EMPTY; width];
    match &mut columns[..] {
        [column] => dispatch(Scalars { values, column }),
        columns => dispatch(Table { values, columns }),
    }
    let count = (values.len() / width) as u64;
    RunningMoments { count, columns }
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
