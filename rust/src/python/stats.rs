//! Bindings of `stats`: the accumulators take and return contiguous NumPy arrays.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn};
use pyo3::prelude::*;

use super::arguments::{elements, natural};
use crate::error::Error;
use crate::stats::moments::{Column, RunningMoments, Value};
use crate::threads::thread_count;

/// A contiguous array.
#[derive(FromPyObject)]
enum Values<'py> {
    Single(PyReadonlyArrayDyn<'py, f32>),
    Double(PyReadonlyArrayDyn<'py, f64>),
    Bytes(PyReadonlyArrayDyn<'py, u8>),
}

/// Count, mean, variance, minimum and maximum of each column.
#[pyclass(module = "varalign._core", name = "Moments")]
struct PyMoments(RunningMoments);

/// Count, then means, sums of squared deviations, minima and maxima of the columns.
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
    fn new(columns: i128) -> PyResult<PyMoments> {
        Ok(PyMoments(RunningMoments::new(natural(
            "columns", columns,
        )?)?))
    }

    #[staticmethod]
    fn from_parts(
        count: i128,
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
            natural("count", count)?,
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

    /// Adds an array, rows of `columns` values.
    #[pyo3(signature = (values, threads=1))]
    fn update(&mut self, py: Python<'_>, values: Values<'_>, threads: i128) -> PyResult<()> {
        fn add<T: Value + numpy::Element>(
            moments: &mut RunningMoments,
            py: Python<'_>,
            values: &PyReadonlyArrayDyn<'_, T>,
            threads: usize,
        ) -> PyResult<()> {
            let values = elements("values", values)?;
            Ok(py.detach(|| moments.update(values, threads))?)
        }
        let threads = thread_count(natural("threads", threads)?)?;
        match values {
            Values::Single(values) => add(&mut self.0, py, &values, threads),
            Values::Double(values) => add(&mut self.0, py, &values, threads),
            Values::Bytes(values) => add(&mut self.0, py, &values, threads),
        }
    }

    /// Adds the rows of `other`, which may be `self`.
    fn merge(slf: &Bound<'_, PyMoments>, other: &Bound<'_, PyMoments>) -> PyResult<()> {
        let other = other.try_borrow()?.0.clone();
        Ok(slf.try_borrow_mut()?.0.merge(&other)?)
    }
}

/// Adds this file's classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyMoments>()?;
    Ok(())
}
