//! Binding of `image::others`: a function of Python decodes the formats that the core does not.

use numpy::{PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Error, Result};
use crate::image::{others, Limits, Rgb};
use crate::memory;

/// Makes `decoder(data, format, max_pixels)`, which returns upright RGB or raises ValueError, decode the formats that the core
/// does not: AVIF, HEIC, JPEG 2000 and JPEG XL. It is called on any thread. The first decoder stays.
#[pyfunction]
fn decode_others_by(decoder: Py<PyAny>) {
    others::decode_others_by(Box::new(move |data, format, limits| {
        Python::try_attach(|py| decode_by(py, &decoder, data, format, limits))
            .unwrap_or_else(|| Err(Error::Image("the process is ending".into())))
    }));
}

fn decode_by(
    py: Python<'_>,
    decoder: &Py<PyAny>,
    data: &[u8],
    format: &str,
    limits: &Limits,
) -> Result<Rgb> {
    let failed = |error: PyErr| {
        let interrupted = error.is_instance_of::<PyKeyboardInterrupt>(py);
        let exhausted = error.is_instance_of::<PyMemoryError>(py);
        let said = error.value(py).to_string();
        // With its traceback go objects whose end runs code of Python, which would swallow the interrupt.
        drop(error);
        if interrupted {
            // Raised again when the core returns.
            let threads = py.import("_thread");
            let _ = threads.and_then(|threads| threads.call_method0("interrupt_main"));
        }
        match exhausted {
            true => Error::Memory {
                bytes: data.len() as u64,
                what: format!(" of {format}"),
            },
            false => Error::Image(said),
        }
    };
    let copy = |bytes: &mut [u8]| {
        bytes.copy_from_slice(data);
        Ok(())
    };
    let data = PyBytes::new_with(py, data.len(), copy).map_err(failed)?;
    let made = decoder.call1(py, (data, format, limits.max_pixels));
    let made = made.map_err(failed)?;
    let levels: PyReadonlyArray3<'_, u8> = made
        .extract(py)
        .map_err(|_| Error::Image(format!("{format} image: its decoder gave no levels")))?;
    let [height, width, _] = *levels.shape() else {
        return Err(Error::Image(format!("{format} image: no pixels")));
    };
    let levels = levels
        .as_slice()
        .map_err(|error| failed(PyErr::from(error)))?;
    let pixels = memory::concat(&[levels])?;
    Ok(Rgb {
        width,
        height,
        pixels,
    })
}

/// Adds this file's function to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(decode_others_by, module)?)
}
