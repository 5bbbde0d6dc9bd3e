//! Running mean and variance of two quantities of every training pair, over the epochs (Welford 1962).

use crate::error::{Error, Result};

/// Quantities kept of a pair: its positive probability and its margin.
pub const QUANTITIES: usize = 2;

/// Moments by pair.
#[derive(Clone, Debug, PartialEq)]
pub struct PairMoments {
    counts: Vec<u64>,
    /// Mean and sum of squared deviations, a table a quantity.
    means: [Vec<f64>; QUANTITIES],
    m2s: [Vec<f64>; QUANTITIES],
}

impl PairMoments {
    /// Nothing seen yet of `pairs` pairs.
    pub fn new(pairs: usize) -> PairMoments {
        let zeros = || std::array::from_fn(|_| vec![0.0; pairs]);
        PairMoments {
            counts: vec![0; pairs],
            means: zeros(),
            m2s: zeros(),
        }
    }

    /// From a checkpoint: all vectors of one length.
    pub fn from_parts(
        counts: Vec<u64>,
        means: [Vec<f64>; QUANTITIES],
        m2s: [Vec<f64>; QUANTITIES],
    ) -> Result<PairMoments> {
        if let Some(odd) = means
            .iter()
            .chain(&m2s)
            .find(|part| part.len() != counts.len())
        {
            return Err(Error::Value(format!(
                "a state of PairMoments has counts of {} pairs but moments of {}",
                counts.len(),
                odd.len()
            )));
        }
        Ok(PairMoments { counts, means, m2s })
    }

    /// How often each pair was seen.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The mean of a quantity, 0 where a pair was never seen.
    pub fn means(&self, quantity: usize) -> &[f64] {
        &self.means[quantity]
    }

    /// The sum of squared deviations of a quantity.
    pub fn m2s(&self, quantity: usize) -> &[f64] {
        &self.m2s[quantity]
    }

    /// Adds one observation an index; `values` holds [`QUANTITIES`] numbers each. Nothing changes if an index is wrong.
    pub fn update<T: Copy + Into<f64>>(&mut self, indices: &[i64], values: &[T]) -> Result<()> {
        if values.len() != indices.len() * QUANTITIES {
            return Err(Error::Value(format!(
                "{} indices need {QUANTITIES} values each, got {} values",
                indices.len(),
                values.len()
            )));
        }
        let pairs = self.counts.len();
        if let Some(index) = indices
            .iter()
            .find(|&&index| usize::try_from(index).map_or(true, |index| index >= pairs))
        {
            return Err(Error::Value(format!(
                "pair index {index} is not within 0 to {pairs} (exclusive)"
            )));
        }
        for (&index, values) in indices.iter().zip(values.chunks_exact(QUANTITIES)) {
            let index = index as usize;
            self.counts[index] += 1;
            let count = self.counts[index] as f64;
            for (quantity, &value) in values.iter().enumerate() {
                let mean = &mut self.means[quantity][index];
                let delta = value.into() - *mean;
                *mean += delta / count;
                self.m2s[quantity][index] += delta * (value.into() - *mean);
            }
        }
        Ok(())
    }

    /// Adds another accumulator's observations.
    pub fn merge(&mut self, other: &PairMoments) -> Result<()> {
        if self.counts.len() != other.counts.len() {
            return Err(Error::Value(format!(
                "cannot merge moments of {} pairs into those of {}",
                other.counts.len(),
                self.counts.len()
            )));
        }
        for index in 0..self.counts.len() {
            if other.counts[index] == 0 {
                continue;
            }
            let (a, b) = (self.counts[index] as f64, other.counts[index] as f64);
            for quantity in 0..QUANTITIES {
                let delta = other.means[quantity][index] - self.means[quantity][index];
                self.means[quantity][index] += delta * (b / (a + b));
                self.m2s[quantity][index] +=
                    other.m2s[quantity][index] + delta * delta * (a / (a + b)) * b;
            }
            self.counts[index] += other.counts[index];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_variance_of_one_pair() {
        let mut pairs = PairMoments::new(3);
        pairs
            .update(
                &[1, 1, 1, 2],
                &[1.0_f32, 10.0, 2.0, 10.0, 6.0, 10.0, 5.0, 5.0],
            )
            .unwrap();
        assert_eq!(pairs.counts(), [0, 3, 1]);
        assert_eq!(pairs.means(0), [0.0, 3.0, 5.0]);
        assert!((pairs.m2s(0)[1] - 14.0).abs() < 1e-12);
        assert_eq!(pairs.m2s(1), [0.0; 3]);
    }

    #[test]
    fn merging_is_adding() {
        let values: Vec<f64> = (0..20).map(|k| f64::from(k * k % 7)).collect();
        let indices: Vec<i64> = (0..10).map(|k| k % 4).collect();
        let mut whole = PairMoments::new(5);
        whole.update(&indices, &values).unwrap();
        let (mut a, mut b) = (PairMoments::new(5), PairMoments::new(5));
        a.update(&indices[..3], &values[..6]).unwrap();
        b.update(&indices[3..], &values[6..]).unwrap();
        a.merge(&b).unwrap();
        assert_eq!(a.counts(), whole.counts());
        for index in 0..5 {
            assert!((a.m2s(0)[index] - whole.m2s(0)[index]).abs() < 1e-12);
        }
    }

    #[test]
    fn a_wrong_index_changes_nothing() {
        let mut pairs = PairMoments::new(2);
        for wrong in [-1, 2, i64::MIN] {
            assert!(pairs.update(&[0, wrong], &[1.0; 4]).is_err());
        }
        assert_eq!(pairs, PairMoments::new(2));
    }
}
