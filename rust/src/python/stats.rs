//! Bindings of `stats`: the accumulators, with contiguous NumPy arrays in and out.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::error::Error;
use crate::image::pipeline::thread_count;
use crate::stats::moments::{Column, RunningMoments};
use crate::stats::pairs::{PairMoments, QUANTITIES};
use crate::stats::quantiles::{Parts, RunningQuantiles};

/// Calls the function, without the GIL, with the elements of a contiguous float32, float64 or uint8 array.
macro_rules! with_values {
    ($py:expr, $array:expr, |$values:ident| $work:expr) => {
        if let Ok(array) = $array.extract::<PyReadonlyArrayDyn<'_, f32>>() {
            let $values = array.as_slice()?;
            Ok($py.detach(|| $work)?)
        } else if let Ok(array) = $array.extract::<PyReadonlyArrayDyn<'_, f64>>() {
            let $values = array.as_slice()?;
            Ok($py.detach(|| $work)?)
        } else if let Ok(array) = $array.extract::<PyReadonlyArrayDyn<'_, u8>>() {
            let $values = array.as_slice()?;
            Ok($py.detach(|| $work)?)
        } else {
            Err(PyTypeError::new_err(
                "values must be a float32, float64 or uint8 array",
            ))
        }
    };
}

/// Count, mean, variance, minimum and maximum by column.
#[pyclass(module = "varalign._core", name = "Moments")]
struct PyMoments(RunningMoments);

/// Count, then means, sums of squared deviations, minima and maxima by column.
type MomentsParts<'py> = (
    u64,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
);

#[pymethods]
impl PyMoments {
    #[new]
    fn new(columns: usize) -> PyResult<PyMoments> {
        Ok(PyMoments(RunningMoments::new(columns)?))
    }

    #[staticmethod]
    fn from_parts(
        count: u64,
        mean: PyReadonlyArray1<'_, f64>,
        m2: PyReadonlyArray1<'_, f64>,
        min: PyReadonlyArray1<'_, f64>,
        max: PyReadonlyArray1<'_, f64>,
    ) -> PyResult<PyMoments> {
        let (mean, m2, min, max) = (
            mean.as_array(),
            m2.as_array(),
            min.as_array(),
            max.as_array(),
        );
        if [m2.len(), min.len(), max.len()]
            .iter()
            .any(|&length| length != mean.len())
        {
            return Err(Error::Value(
                "a state of RunningMoments has arrays of different lengths".into(),
            )
            .into());
        }
        let columns = (0..mean.len()).map(|i| Column {
            mean: mean[i],
            m2: m2[i],
            min: min[i],
            max: max[i],
        });
        Ok(PyMoments(RunningMoments::from_parts(
            count,
            columns.collect(),
        )?))
    }

    fn parts<'py>(&self, py: Python<'py>) -> MomentsParts<'py> {
        let part = |get: fn(&Column) -> f64| {
            self.0
                .columns()
                .iter()
                .map(get)
                .collect::<Vec<_>>()
                .into_pyarray(py)
        };
        (
            self.0.count(),
            part(|c| c.mean),
            part(|c| c.m2),
            part(|c| c.min),
            part(|c| c.max),
        )
    }

    /// Adds a contiguous float32, float64 or uint8 array, rows of `columns` values.
    #[pyo3(signature = (values, threads=1))]
    fn update(
        &mut self,
        py: Python<'_>,
        values: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        with_values!(py, values, |values| self
            .0
            .update(values, thread_count(threads)))
    }

    fn merge(&mut self, other: PyRef<'_, PyMoments>) -> PyResult<()> {
        Ok(self.0.merge(&other.0)?)
    }
}

/// A t-digest of a stream.
#[pyclass(module = "varalign._core", name = "Quantiles")]
struct PyQuantiles(RunningQuantiles);

/// The most centroids, their means and weights, the sum, least and greatest value.
type QuantilesParts<'py> = (
    usize,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    f64,
    f64,
    f64,
);

#[pymethods]
impl PyQuantiles {
    #[new]
    fn new(size: usize) -> PyResult<PyQuantiles> {
        Ok(PyQuantiles(RunningQuantiles::new(size)?))
    }

    #[staticmethod]
    fn from_parts(
        size: usize,
        means: PyReadonlyArray1<'_, f64>,
        weights: PyReadonlyArray1<'_, f64>,
        sum: f64,
        min: f64,
        max: f64,
    ) -> PyResult<PyQuantiles> {
        let (means, weights) = (means.as_array().to_vec(), weights.as_array().to_vec());
        let parts = Parts {
            means,
            weights,
            sum,
            min,
            max,
        };
        Ok(PyQuantiles(RunningQuantiles::from_parts(size, parts)?))
    }

    fn parts<'py>(&self, py: Python<'py>) -> QuantilesParts<'py> {
        let parts = self.0.parts();
        (
            self.0.size(),
            parts.means.into_pyarray(py),
            parts.weights.into_pyarray(py),
            parts.sum,
            parts.min,
            parts.max,
        )
    }

    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    fn quantiles<'py>(
        &self,
        py: Python<'py>,
        q: PyReadonlyArray1<'_, f64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(self.0.quantiles(q.as_slice()?)?.into_pyarray(py))
    }

    /// Adds a contiguous float32, float64 or uint8 array.
    #[pyo3(signature = (values, threads=1))]
    fn update(
        &mut self,
        py: Python<'_>,
        values: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        with_values!(py, values, |values| self
            .0
            .update(values, thread_count(threads)))
    }

    fn merge(&mut self, other: PyRef<'_, PyQuantiles>) -> PyResult<()> {
        Ok(self.0.merge(&other.0)?)
    }
}

/// Moments of two quantities by pair.
#[pyclass(module = "varalign._core", name = "PairMoments")]
struct PyPairMoments(PairMoments);

/// Counts, then means and sums of squared deviations of each quantity.
type PairParts<'py> = (
    Bound<'py, PyArray1<u64>>,
    Vec<Bound<'py, PyArray1<f64>>>,
    Vec<Bound<'py, PyArray1<f64>>>,
);

#[pymethods]
impl PyPairMoments {
    #[new]
    fn new(pairs: usize) -> PyPairMoments {
        PyPairMoments(PairMoments::new(pairs))
    }

    #[staticmethod]
    fn from_parts(
        counts: PyReadonlyArray1<'_, u64>,
        means: [PyReadonlyArray1<'_, f64>; QUANTITIES],
        m2s: [PyReadonlyArray1<'_, f64>; QUANTITIES],
    ) -> PyResult<PyPairMoments> {
        let vectors = |parts: [PyReadonlyArray1<'_, f64>; QUANTITIES]| {
            parts.map(|part| part.as_array().to_vec())
        };
        let counts = counts.as_array().to_vec();
        Ok(PyPairMoments(PairMoments::from_parts(
            counts,
            vectors(means),
            vectors(m2s),
        )?))
    }

    fn parts<'py>(&self, py: Python<'py>) -> PairParts<'py> {
        let array = |values: &[f64]| values.to_vec().into_pyarray(py);
        (
            self.0.counts().to_vec().into_pyarray(py),
            (0..QUANTITIES)
                .map(|quantity| array(self.0.means(quantity)))
                .collect(),
            (0..QUANTITIES)
                .map(|quantity| array(self.0.m2s(quantity)))
                .collect(),
        )
    }

    /// Adds observations: contiguous int64 indices (B,) and float64 values (B, 2).
    fn update(
        &mut self,
        py: Python<'_>,
        indices: PyReadonlyArray1<'_, i64>,
        values: PyReadonlyArrayDyn<'_, f64>,
    ) -> PyResult<()> {
        let (indices, values) = (indices.as_slice()?, values.as_slice()?);
        py.detach(|| self.0.update(indices, values))?;
        Ok(())
    }

    fn merge(&mut self, other: PyRef<'_, PyPairMoments>) -> PyResult<()> {
        Ok(self.0.merge(&other.0)?)
    }
}

/// Adds this file's classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyMoments>()?;
    module.add_class::<PyQuantiles>()?;
    module.add_class::<PyPairMoments>()?;
    Ok(())
}
