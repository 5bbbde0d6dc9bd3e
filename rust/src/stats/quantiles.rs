//! Quantiles of a stream by a t-digest (Dunning and Ertl 2019), which the crate `tdigest` keeps.
//!
//! Values are digested in chunks whose size depends on nothing else, and the digests merge in order: threads do not show.

use std::sync::{Mutex, PoisonError};

use tdigest::{Centroid, TDigest};

use super::sums::Value;
use crate::error::{Error, Result};

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 17;

/// A t-digest of finite values.
#[derive(Clone, Debug)]
pub struct RunningQuantiles {
    digest: TDigest,
}

/// What a digest is made of: means and weights of the centroids in order, the sum, least and greatest value.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Means, ascending.
    pub means: Vec<f64>,
    /// Values that each centroid stands for.
    pub weights: Vec<f64>,
    /// Sum of all values.
    pub sum: f64,
    /// Least value; NaN before the first.
    pub min: f64,
    /// Greatest value; NaN before the first.
    pub max: f64,
}

impl RunningQuantiles {
    /// Nothing seen yet; at most `size` centroids are kept.
    pub fn new(size: usize) -> Result<RunningQuantiles> {
        if !(10..=1_000_000).contains(&size) {
            return Err(Error::Value(format!(
                "size must be 10 to 1,000,000 centroids, got {size}"
            )));
        }
        let digest = TDigest::new_with_size(size);
        Ok(RunningQuantiles { digest })
    }

    /// From a checkpoint.
    pub fn from_parts(size: usize, parts: Parts) -> Result<RunningQuantiles> {
        let empty = RunningQuantiles::new(size)?;
        let count = parts.means.len();
        if count != parts.weights.len() || count > size {
            return Err(Error::Value(format!(
                "a state of RunningQuantiles has {count} means and {} weights; as many are wanted, {size} at most",
                parts.weights.len()
            )));
        }
        if count == 0 {
            return Ok(empty);
        }
        let within = |mean: &f64| (parts.min..=parts.max).contains(mean);
        if !parts.means.iter().all(within)
            || !parts.weights.iter().all(|&w| w.is_finite() && w > 0.0)
            || !parts.min.is_finite()
            || !parts.max.is_finite()
        {
            return Err(Error::Value(
                "a state of RunningQuantiles needs finite means within min and max, and weights above 0"
                    .into(),
            ));
        }
        let centroids = parts.means.iter().zip(&parts.weights);
        let digest = TDigest::new(
            centroids.map(|(&m, &w)| Centroid::new(m, w)).collect(),
            parts.sum,
            parts.weights.iter().sum(),
            Some(parts.max),
            Some(parts.min),
            size,
        );
        Ok(RunningQuantiles { digest })
    }

    /// What a checkpoint holds.
    pub fn parts(&self) -> Parts {
        let centroids = self.digest.centroids();
        Parts {
            means: centroids.iter().map(Centroid::mean).collect(),
            weights: centroids.iter().map(Centroid::weight).collect(),
            sum: self.digest.sum(),
            min: self.digest.min().unwrap_or(f64::NAN),
            max: self.digest.max().unwrap_or(f64::NAN),
        }
    }

    /// The most centroids that are kept.
    pub fn size(&self) -> usize {
        self.digest.max_size()
    }

    /// Values seen.
    pub fn count(&self) -> u64 {
        self.digest.count() as u64
    }

    /// The values below which the shares `q` (0 to 1) of all values lie; NaN before the first value.
    pub fn quantiles(&self, q: &[f64]) -> Result<Vec<f64>> {
        if let Some(wrong) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            return Err(Error::Value(format!(
                "a quantile must be within 0 and 1, got {wrong}"
            )));
        }
        let found = self.digest.quantiles(q);
        Ok(found.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    }

    /// Adds values; nothing changes if one of them is not finite.
    pub fn update<T: Value>(&mut self, values: &[T], threads: usize) -> Result<()> {
        if let Some(at) = values.iter().position(|value| !value.wide().is_finite()) {
            return Err(Error::Value(format!(
                "quantiles take finite values, but value {at} is {}; leave such values out first",
                values[at].wide()
            )));
        }
        let chunks = values.len().div_ceil(CHUNK);
        let mut parts: Vec<Option<TDigest>> = vec![None; chunks];
        let queue = Mutex::new(parts.iter_mut().zip(values.chunks(CHUNK)));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((part, values)) = next() {
                let wide = values.iter().map(|value| value.wide()).collect();
                let digest = TDigest::new_with_size(self.digest.max_size());
                *part = Some(digest.merge_unsorted(wide));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(chunks) {
                scope.spawn(work);
            }
            work();
        });
        self.add(parts.into_iter().flatten());
        Ok(())
    }

    /// Adds another accumulator's values. The larger size of the two is not taken over.
    pub fn merge(&mut self, other: &RunningQuantiles) -> Result<()> {
        if self.size() != other.size() {
            return Err(Error::Value(format!(
                "cannot merge quantiles of size={} into those of size={}",
                other.size(),
                self.size()
            )));
        }
        self.add(std::iter::once(other.digest.clone()));
        Ok(())
    }

    /// All at once: a digest that is merged often loses a little each time.
    fn add(&mut self, parts: impl Iterator<Item = TDigest>) {
        let mut all = vec![self.digest.clone()];
        all.extend(parts);
        if all.len() > 1 {
            self.digest = TDigest::merge_digests(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_right_to_a_thousandth_and_threads_do_not_show() {
        let n = 3 * CHUNK + 17;
        let values: Vec<f64> = (0..n as u64)
            .map(|k| crate::image::augment::mix(k) as f64)
            .collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let mut results = Vec::new();
        for threads in [1, 3] {
            let mut quantiles = RunningQuantiles::new(500).unwrap();
            quantiles.update(&values, threads).unwrap();
            assert_eq!(quantiles.count(), n as u64);
            results.push(quantiles.parts());
            for q in [0.0, 0.001, 0.05, 0.5, 0.9, 0.999, 1.0] {
                let found = quantiles.quantiles(&[q]).unwrap()[0];
                let rank = sorted.partition_point(|&x| x < found) as f64 / n as f64;
                assert!((rank - q).abs() < 1e-3, "{q}: {rank}");
            }
        }
        assert_eq!(results[0], results[1]);
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut quantiles = RunningQuantiles::new(100).unwrap();
        assert!(quantiles.update(&[1.0_f32, f32::NAN], 1).is_err());
        assert_eq!(quantiles.count(), 0);
        assert!(quantiles.quantiles(&[0.5]).unwrap()[0].is_nan());
        assert!(quantiles.quantiles(&[1.5]).is_err());
        assert!(quantiles
            .merge(&RunningQuantiles::new(99).unwrap())
            .is_err());
        assert!(RunningQuantiles::new(1).is_err());
    }
}
