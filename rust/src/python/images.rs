//! Bindings of `image`: decoding, samples, and batches that are prepared in advance.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use numpy::ndarray::aview1;
use numpy::{
    IntoPyArray, PyArray1, PyArray3, PyArrayMethods, PyReadwriteArray2, PyReadwriteArray4,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arguments::{elements_mut, natural};
use crate::error::Error;
use crate::image::at_once;
use crate::image::augment::Augment;
use crate::image::decode::decode;
use crate::image::geometry::{Fit, Rounding};
use crate::image::kept::{Entry, Kept};
use crate::image::kernel::Interpolation;
use crate::image::load::{Element, Preparation, Shrunk};
use crate::image::normalise::Normalisation;
use crate::image::pipeline::{Batch, Job, Next, Run};
use crate::image::Limits;
use crate::threads::thread_count;

/// Longest wait before Python's signals are checked again.
const PATIENCE: Duration = Duration::from_millis(50);

/// Decodes one image to upright RGB.
#[pyfunction]
#[pyo3(signature = (data, max_pixels=None))]
fn decode_image<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
    max_pixels: Option<u64>,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let bytes = data.as_bytes();
    let mut limits = Limits::default();
    limits.max_pixels = max_pixels.unwrap_or(limits.max_pixels);
    let image = py.detach(|| decode(bytes, &limits))?;
    image
        .pixels
        .into_pyarray(py)
        .reshape([image.height, image.width, 3])
}

/// All settings that a sample's pixels depend on, besides its file, the epoch and the row.
#[pyclass(frozen, module = "varalign._core", name = "ImagePreparation")]
struct PyPreparation(Arc<Preparation>);

/// `(scale, ratio, flip, jitter)`.
type AugmentArguments = ((f64, f64), (f64, f64), f64, [f64; 3]);

#[pymethods]
impl PyPreparation {
    #[new]
    #[pyo3(signature = (size, mean, std, interpolation, resize, augment=None, seed=0, fast=false, channels_last=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        size: i128,
        mean: [f32; 3],
        std: [f32; 3],
        interpolation: &str,
        resize: &str,
        augment: Option<AugmentArguments>,
        seed: i128,
        fast: bool,
        channels_last: bool,
    ) -> PyResult<PyPreparation> {
        if !(1..=8192).contains(&size) {
            return Err(
                Error::Value(format!("size must be from 1 to 8192 pixels, got {size}")).into(),
            );
        }
        let (size, seed) = (size as usize, natural("seed", seed)?);
        let interpolation = match interpolation {
            "bicubic" => Interpolation::Bicubic,
            "bilinear" => Interpolation::Bilinear,
            other => {
                return Err(Error::Value(format!(
                    "interpolation must be 'bicubic' or 'bilinear', got {other:?}"
                ))
                .into())
            }
        };
        let fit = match resize {
            "crop" => Fit::Crop(Rounding::Even),
            "crop-down" => Fit::Crop(Rounding::Down),
            "crop-up" => Fit::Crop(Rounding::Up),
            "squash" => Fit::Squash,
            other => {
                return Err(Error::Value(format!(
                    "resize must be 'crop', 'crop-down', 'crop-up' or 'squash', got {other:?}"
                ))
                .into())
            }
        };
        let augment = augment
            .map(|(scale, ratio, flip, jitter)| Augment::new(scale, ratio, flip, jitter))
            .transpose()?;
        let normalisation = Normalisation::new(mean, std)?;
        Ok(PyPreparation(Arc::new(Preparation {
            size,
            fit,
            interpolation,
            normalisation,
            augment,
            seed,
            fast,
            channels_last,
            limits: Limits::default(),
        })))
    }
}

/// A caller's batch with four axes: normalised float32 values, or levels from 0 to 255.
#[derive(FromPyObject)]
enum Samples<'py> {
    Floats(PyReadwriteArray4<'py, f32>),
    Levels(PyReadwriteArray4<'py, u8>),
}

/// Writes samples of some files into `out`, and the width and height of each picture into the rows of `sizes`; returns
/// position and message of each file that failed.
#[pyfunction]
#[pyo3(signature = (paths, rows, preparation, out, epoch=0, threads=0, sizes=None))]
#[allow(clippy::too_many_arguments)]
fn load_images(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    rows: Vec<i64>,
    preparation: &PyPreparation,
    out: Samples<'_>,
    epoch: i128,
    threads: i128,
    sizes: Option<PyReadwriteArray2<'_, i64>>,
) -> PyResult<Vec<(usize, String)>> {
    fn load<T: Element + numpy::Element>(
        py: Python<'_>,
        files: &[(&Path, u64)],
        preparation: &Preparation,
        mut out: PyReadwriteArray4<'_, T>,
        epoch: u64,
        threads: usize,
    ) -> PyResult<Vec<crate::error::Result<(usize, usize)>>> {
        let out = elements_mut("out", &mut out)?;
        Ok(py.detach(|| at_once::load_all(files, preparation, epoch, threads, out))?)
    }
    if paths.len() != rows.len() {
        return Err(Error::Value(format!(
            "{} paths but {} rows; give one row a path",
            paths.len(),
            rows.len()
        ))
        .into());
    }
    let rows = rows.into_iter().map(|row| natural("rows", row.into()));
    let rows: Vec<u64> = rows.collect::<PyResult<_>>()?;
    let (epoch, threads) = (natural("epoch", epoch)?, natural("threads", threads)?);
    let files: Vec<_> = paths.iter().map(PathBuf::as_path).zip(rows).collect();
    let preparation = &preparation.0;
    let loaded = match out {
        Samples::Floats(out) => load(py, &files, preparation, out, epoch, threads)?,
        Samples::Levels(out) => load(py, &files, preparation, out, epoch, threads)?,
    };
    if let Some(mut sizes) = sizes {
        if sizes.shape() != [loaded.len(), 2] {
            let message = format!(
                "sizes must be of {} rows and 2 columns, got {:?}",
                loaded.len(),
                sizes.shape()
            );
            return Err(Error::Value(message).into());
        }
        for (mut place, found) in sizes.as_array_mut().outer_iter_mut().zip(&loaded) {
            let (width, height) = *found.as_ref().unwrap_or(&(0, 0));
            place.assign(&aview1(&[width as i64, height as i64]));
        }
    }
    let failed = loaded.into_iter().enumerate();
    Ok(failed
        .filter_map(|(position, found)| Some((position, found.err()?.to_string())))
        .collect())
}

fn to_array<T: Element + numpy::Element>(
    py: Python<'_>,
    pixels: Vec<T>,
    count: usize,
    preparation: &Preparation,
) -> PyResult<Py<PyAny>> {
    let size = preparation.size;
    let shape = if preparation.channels_last {
        [count, size, size, 3]
    } else {
        [count, 3, size, size]
    };
    Ok(pixels.into_pyarray(py).reshape(shape)?.into_any().unbind())
}

/// Pixels (rows, columns, 3), width and height of the file's picture, and the error message if it failed.
type ShrunkPicture = (Option<Py<PyArray3<u8>>>, (usize, usize), Option<String>);

/// Whole pictures, reduced so that their short sides are at most `short`.
#[pyfunction]
#[pyo3(signature = (paths, short, preparation, threads=0))]
fn shrink_images(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    short: i128,
    preparation: &PyPreparation,
    threads: i128,
) -> PyResult<Vec<ShrunkPicture>> {
    let (short, threads): (usize, _) = (natural("short", short)?, natural("threads", threads)?);
    if short == 0 {
        return Err(Error::Value("short must be at least 1 pixel, got 0".into()).into());
    }
    let preparation = &preparation.0;
    let made = py.detach(|| at_once::shrink_all(&paths, preparation, short, threads))?;
    made.into_iter()
        .map(|shrunk| match shrunk {
            Ok(Shrunk { image, full }) => {
                let pixels = image.pixels.into_pyarray(py);
                let pixels = pixels.reshape([image.height, image.width, 3])?;
                Ok((Some(pixels.unbind()), full, None))
            }
            Err(error) => Ok((None, (0, 0), Some(error.to_string()))),
        })
        .collect()
}

/// A file of decoded pictures.
#[pyclass(frozen, module = "varalign._core", name = "KeptImages")]
struct PyKept(Arc<Kept>);

#[pymethods]
impl PyKept {
    /// `entries`: for each row offset, width, height, and width and height of the original; a width of 0 means that the
    /// picture is not in the file.
    #[new]
    fn new(path: PathBuf, entries: Vec<(u64, usize, usize, usize, usize)>) -> PyResult<PyKept> {
        let entries = entries
            .into_iter()
            .map(|(offset, width, height, full_width, full_height)| {
                let full = (full_width, full_height);
                (width > 0 && height > 0).then_some(Entry {
                    offset,
                    width,
                    height,
                    full,
                })
            })
            .collect();
        Ok(PyKept(Arc::new(Kept::open(&path, entries)?)))
    }
}

/// The files of a data set and the settings of their samples.
#[pyclass(frozen, module = "varalign._core", name = "ImagePipeline")]
struct PyPipeline {
    paths: Arc<Vec<PathBuf>>,
    preparation: Arc<Preparation>,
    threads: usize,
    prefetch: usize,
    uint8: bool,
    kept: Option<Arc<Kept>>,
}

#[pymethods]
impl PyPipeline {
    #[new]
    #[pyo3(signature = (paths, preparation, threads, prefetch, uint8, kept=None))]
    fn new(
        paths: Vec<PathBuf>,
        preparation: &PyPreparation,
        threads: i128,
        prefetch: i128,
        uint8: bool,
        kept: Option<&PyKept>,
    ) -> PyResult<Self> {
        let preparation = Arc::clone(&preparation.0);
        let (threads, prefetch) = (natural("threads", threads)?, natural("prefetch", prefetch)?);
        thread_count(threads)?;
        Ok(PyPipeline {
            paths: Arc::new(paths),
            preparation,
            threads,
            prefetch,
            uint8,
            kept: kept.map(|kept| Arc::clone(&kept.0)),
        })
    }

    /// Starts making the batches of `order`.
    fn start(&self, py: Python<'_>, order: Vec<Vec<i64>>, epoch: i128) -> PyResult<PyRun> {
        let mut job = Job::new(
            Arc::clone(&self.paths),
            Arc::clone(&self.preparation),
            order,
            natural("epoch", epoch)?,
        )?;
        job.kept = self.kept.clone();
        let (threads, prefetch) = (self.threads, self.prefetch);
        let run = py.detach(|| -> crate::error::Result<AnyRun> {
            Ok(if self.uint8 {
                AnyRun::Levels(Run::start(job, threads, prefetch)?)
            } else {
                AnyRun::Floats(Run::start(job, threads, prefetch)?)
            })
        })?;
        Ok(PyRun {
            run: Some(run),
            preparation: Arc::clone(&self.preparation),
        })
    }
}

enum AnyRun {
    Floats(Run<f32>),
    Levels(Run<u8>),
}

/// A running preparation of batches.
#[pyclass(module = "varalign._core", name = "ImageRun")]
struct PyRun {
    run: Option<AnyRun>,
    preparation: Arc<Preparation>,
}

/// Rows, pixels, errors, seconds waited.
type PyBatch = (Py<PyArray1<i64>>, Py<PyAny>, Vec<(usize, String)>, f64);

#[pymethods]
impl PyRun {
    /// The next batch, or None after the last.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<PyBatch>> {
        let preparation = &self.preparation;
        match &mut self.run {
            None => Ok(None),
            Some(AnyRun::Floats(run)) => next(py, run, preparation),
            Some(AnyRun::Levels(run)) => next(py, run, preparation),
        }
    }

    /// Stops the threads and waits for them.
    fn close(&mut self, py: Python<'_>) {
        if let Some(run) = self.run.take() {
            py.detach(|| drop(run));
        }
    }
}

impl Drop for PyRun {
    /// Without the interpreter's lock, for which a thread that decodes outside the core may be waiting.
    fn drop(&mut self) {
        Python::try_attach(|py| self.close(py));
    }
}

fn next<T: Element + numpy::Element>(
    py: Python<'_>,
    run: &mut Run<T>,
    preparation: &Preparation,
) -> PyResult<Option<PyBatch>> {
    loop {
        match py.detach(|| run.next(PATIENCE)) {
            Next::Batch(Batch {
                rows,
                pixels,
                errors,
            }) => {
                let pixels = to_array(py, pixels, rows.len(), preparation)?;
                let waited = run.take_waited().as_secs_f64();
                return Ok(Some((
                    rows.into_pyarray(py).unbind(),
                    pixels,
                    errors,
                    waited,
                )));
            }
            Next::Failed(error) => return Err(error.into()),
            Next::Waiting => py.check_signals()?,
            Next::End if run.finished() => return Ok(None),
            Next::End => {
                return Err(PyRuntimeError::new_err(
                    "the image threads ended early: one of them panicked",
                ))
            }
        }
    }
}

/// Adds this file's functions and classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_PIXELS", Limits::default().max_pixels)?;
    module.add_function(wrap_pyfunction!(decode_image, module)?)?;
    module.add_function(wrap_pyfunction!(load_images, module)?)?;
    module.add_function(wrap_pyfunction!(shrink_images, module)?)?;
    module.add_class::<PyKept>()?;
    module.add_class::<PyPreparation>()?;
    module.add_class::<PyPipeline>()?;
    module.add_class::<PyRun>()?;
    Ok(())
}
