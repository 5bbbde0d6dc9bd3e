//! All Python bindings of the crate, and nothing else: a file with a `register` function for each subject.

mod arguments;
mod images;
mod nearest;
mod others;
mod stats;
mod tokenize;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use crate::error::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let exhausted = error.is_exhaustion();
        match error {
            Error::Value(message) | Error::Image(message) => PyValueError::new_err(message),
            Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
            Error::Read { path, source } => {
                // Python picks the subclass of OSError (FileNotFoundError, PermissionError, ...) from the number.
                let mut reason = source.to_string();
                if exhausted && source.kind() != std::io::ErrorKind::OutOfMemory {
                    reason += "; raise the limit (ulimit -n), or pass fewer --threads";
                }
                match source.raw_os_error() {
                    Some(number) => {
                        PyErr::new::<pyo3::exceptions::PyOSError, _>((number, reason, path))
                    }
                    None => pyo3::exceptions::PyOSError::new_err(format!(
                        "cannot read {}: {reason}",
                        path.display()
                    )),
                }
            }
        }
    }
}

/// The compiled core of varalign.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    images::register(module)?;
    nearest::register(module)?;
    others::register(module)?;
    stats::register(module)?;
    tokenize::register(module)?;
    Ok(())
}
