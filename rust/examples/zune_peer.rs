//! The crate zune-jpeg as a Python module, so that `bench/decode.py` times it beside the others: see `bench/image_peers.py`.

use numpy::{IntoPyArray, PyArray3, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Decodes a JPEG file to RGB (H, W, 3).
#[pyfunction]
fn decode<'py>(py: Python<'py>, data: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let bytes = data.as_bytes();
    let decoded = py.detach(|| {
        let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        let pixels = decoder.decode()?;
        Ok::<_, zune_jpeg::errors::DecodeErrors>((pixels, decoder.dimensions()))
    });
    let (pixels, size) = decoded.map_err(|error| PyValueError::new_err(error.to_string()))?;
    let (width, height) = size.ok_or_else(|| PyValueError::new_err("no size"))?;
    pixels.into_pyarray(py).reshape([height, width, 3])
}

#[pymodule]
fn zune_peer(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(decode, module)?)
}
