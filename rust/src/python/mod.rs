//! Every Python binding of the crate, and nothing else; one file and one `register` a subject.

mod tokenize;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::Value(message) => PyValueError::new_err(message),
        }
    }
}

/// The compiled core of varalign.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    tokenize::register(module)?;
    Ok(())
}
