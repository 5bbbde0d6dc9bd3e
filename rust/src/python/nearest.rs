//! Binding of `nearest`: exact search in stored vectors.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arguments::{elements, natural};
use crate::error::Result;
use crate::nearest::{nearest, Rows, Value};
use crate::threads::thread_count;

/// float16 by its bits, or float32.
#[derive(FromPyObject)]
enum Vectors<'py> {
    Half(PyReadonlyArray2<'py, u16>),
    Single(PyReadonlyArray2<'py, f32>),
}

/// For each of the queries (Q, D), the rows of vectors (N, D) that may be among its k nearest, ascending.
#[pyfunction]
#[pyo3(signature = (vectors, queries, k, prior=None, skip=None, threads=0))]
fn nearest_rows<'py>(
    py: Python<'py>,
    vectors: Vectors<'py>,
    queries: PyReadonlyArray2<'py, f32>,
    k: i128,
    prior: Option<PyReadonlyArray1<'py, f32>>,
    skip: Option<PyReadonlyArray1<'py, bool>>,
    threads: i128,
) -> PyResult<Vec<Bound<'py, PyArray1<i64>>>> {
    let k = natural("k", k)?;
    let threads = thread_count(natural("threads", threads)?)?;
    let width = queries.shape()[1];
    let queries = elements("queries", &queries)?;
    let prior = prior.as_ref().map(|prior| elements("prior", prior));
    let prior = prior.transpose()?;
    let skip = skip.as_ref().map(|skip| elements("skip", skip));
    let skip = skip.transpose()?;
    fn found<T: Value>(
        py: Python<'_>,
        rows: Rows<'_, T>,
        queries: &[f32],
        k: usize,
        threads: usize,
    ) -> Result<Vec<Vec<i64>>> {
        py.detach(|| nearest(&rows, queries, k, threads))
    }
    let found = match &vectors {
        Vectors::Half(values) => {
            let values = elements("vectors", values)?;
            let rows = Rows {
                values,
                width,
                prior,
                skip,
            };
            found(py, rows, queries, k, threads)
        }
        Vectors::Single(values) => {
            let values = elements("vectors", values)?;
            let rows = Rows {
                values,
                width,
                prior,
                skip,
            };
            found(py, rows, queries, k, threads)
        }
    };
    Ok(found?
        .into_iter()
        .map(|rows| rows.into_pyarray(py))
        .collect())
}

/// Adds this file's function to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(nearest_rows, module)?)?;
    Ok(())
}
