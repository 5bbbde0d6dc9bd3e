//! Checks of arguments from Python; errors name the argument and its value.

use numpy::ndarray::Dimension;
use numpy::{Element, PyArrayMethods, PyReadonlyArray, PyReadwriteArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A whole number of at least 0.
pub fn natural<T: TryFrom<i128>>(name: &str, value: i128) -> PyResult<T> {
    T::try_from(value).map_err(|_| {
        PyValueError::new_err(format!(
            "{name} must be a whole number of at least 0 that is not huge, got {value}"
        ))
    })
}

/// Fails unless the array is aligned and C-contiguous.
fn check<T: Element, D: Dimension>(
    name: &str,
    array: &Bound<'_, numpy::PyArray<T, D>>,
) -> PyResult<()> {
    let aligned = (array.data() as usize).is_multiple_of(align_of::<T>());
    if aligned && array.is_c_contiguous() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{name} must be aligned and C-contiguous, got shape {:?} with strides {:?}; pass numpy.ascontiguousarray of it",
        array.shape(),
        array.strides()
    )))
}

/// The elements of an array in C order.
pub fn elements<'a, T: Element, D: Dimension>(
    name: &str,
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<&'a [T]> {
    check(name, array)?;
    Ok(array.as_slice()?)
}

/// The elements of a writable array in C order.
pub fn elements_mut<'a, T: Element, D: Dimension>(
    name: &str,
    array: &'a mut PyReadwriteArray<'_, T, D>,
) -> PyResult<&'a mut [T]> {
    check(name, array)?;
    Ok(array.as_slice_mut()?)
}
