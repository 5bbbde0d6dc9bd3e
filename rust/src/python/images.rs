//! Bindings of `image`: decoding, samples, and batches made ahead.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use numpy::ndarray::Array2;
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyReadwriteArray4,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
use crate::image::augment::{Augment, DRAWN};
use crate::image::decode::decode;
use crate::image::geometry::Fit;
use crate::image::kept::{Entry, Kept};
use crate::image::load::{Element, Preparation, Shrunk};
use crate::image::normalise::Normalisation;
use crate::image::pipeline::{self, Batch, Job, Next, Run};
use crate::image::weights::Interpolation;
use crate::image::Limits;

/// Between two looks at Python's signals while waiting.
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
    let image = py.detach(|| decode(bytes, &limits(max_pixels)))?;
    image
        .pixels
        .into_pyarray(py)
        .reshape([image.height, image.width, 3])
}

fn limits(max_pixels: Option<u64>) -> Limits {
    let default = Limits::default();
    Limits {
        max_pixels: max_pixels.unwrap_or(default.max_pixels),
        ..default
    }
}

/// Everything that decides a sample's pixels, but for its file, epoch and row.
#[pyclass(frozen, module = "varalign._core", name = "ImagePreparation")]
struct PyPreparation(Arc<Preparation>);

/// `(scale, ratio, flip, jitter)`.
type AugmentArguments = ((f64, f64), (f64, f64), f64, [f64; 3]);

#[pymethods]
impl PyPreparation {
    #[new]
    #[pyo3(signature = (size, mean, std, interpolation, resize, augment=None, seed=0, max_pixels=None, fast=false, channels_last=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        size: usize,
        mean: [f32; 3],
        std: [f32; 3],
        interpolation: &str,
        resize: &str,
        augment: Option<AugmentArguments>,
        seed: u64,
        max_pixels: Option<u64>,
        fast: bool,
        channels_last: bool,
    ) -> PyResult<PyPreparation> {
        if !(1..=8192).contains(&size) {
            return Err(
                Error::Value(format!("size must be from 1 to 8192 pixels, got {size}")).into(),
            );
        }
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
            "crop" => Fit::Crop,
            "squash" => Fit::Squash,
            other => {
                return Err(Error::Value(format!(
                    "resize must be 'crop' or 'squash', got {other:?}"
                ))
                .into())
            }
        };
        let augment = augment
            .map(|(scale, ratio, flip, jitter)| Augment::new(scale, ratio, flip, jitter))
            .transpose()?;
        let normalisation = Normalisation::new(mean, std)?;
        let limits = limits(max_pixels);
        Ok(PyPreparation(Arc::new(Preparation {
            size,
            fit,
            interpolation,
            normalisation,
            augment,
            seed,
            fast,
            channels_last,
            limits,
        })))
    }

    /// `(left, top, width, height, flip)` of the random crop of a picture.
    fn crop(
        &self,
        width: usize,
        height: usize,
        epoch: u64,
        row: u64,
    ) -> PyResult<(usize, usize, usize, usize, bool)> {
        let augment = self
            .0
            .augment
            .ok_or_else(|| Error::Value("this preparation draws no crops".into()))?;
        if width == 0 || height == 0 {
            return Err(
                Error::Value(format!("a picture of {width}x{height} has no pixels")).into(),
            );
        }
        let (area, flip) = augment.crop(width, height, self.0.seed, epoch, row);
        Ok((area.left, area.top, area.width, area.height, flip))
    }

    /// What is drawn for each row (`Augment::drawn`), given the widths and heights of the files' pictures: a row each.
    fn draws<'py>(
        &self,
        py: Python<'py>,
        sizes: PyReadonlyArray2<'_, i64>,
        rows: PyReadonlyArray1<'_, i64>,
        epoch: u64,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let augment = self
            .0
            .augment
            .ok_or_else(|| Error::Value("this preparation draws no crops".into()))?;
        let (sizes, rows) = (sizes.as_array(), rows.as_array());
        let wrong = sizes.ncols() != 2 || sizes.nrows() != rows.len();
        if wrong || sizes.iter().any(|&side| side < 1) || rows.iter().any(|&row| row < 0) {
            return Err(Error::Value(format!(
                "draws takes a width and a height of at least 1 for each of {} rows from 0 on, got {:?}",
                rows.len(),
                sizes.shape()
            ))
            .into());
        }
        let seed = self.0.seed;
        let drawn = rows.iter().zip(sizes.rows()).flat_map(|(&row, size)| {
            augment.drawn(
                (size[0] as usize, size[1] as usize),
                seed,
                epoch,
                row as u64,
            )
        });
        Array2::from_shape_vec((rows.len(), DRAWN), drawn.collect())
            .map(|drawn| drawn.into_pyarray(py))
            .map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    /// Name and factor of each change of colours, in their order; none where none are drawn.
    fn colors(&self, epoch: u64, row: u64) -> Vec<(String, f32)> {
        let changes = self.0.colors(epoch, row);
        let named = |(change, factor)| (format!("{change:?}").to_lowercase(), factor);
        changes.into_iter().flatten().map(named).collect()
    }
}

/// A caller's batch: four axes, normalised float32 or levels.
#[derive(FromPyObject)]
enum Samples<'py> {
    Floats(PyReadwriteArray4<'py, f32>),
    Levels(PyReadwriteArray4<'py, u8>),
}

/// Samples of some files at once, into `out`; position and message of each that failed.
#[pyfunction]
#[pyo3(signature = (paths, rows, preparation, out, epoch=0, threads=0))]
fn load_images(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    rows: Vec<u64>,
    preparation: &PyPreparation,
    out: Samples<'_>,
    epoch: u64,
    threads: usize,
) -> PyResult<Vec<(usize, String)>> {
    let preparation = &preparation.0;
    let files = pipeline::files(&paths, &rows)?;
    fn load<T: Element + numpy::Element>(
        py: Python<'_>,
        files: &[(&Path, u64)],
        preparation: &Preparation,
        mut out: PyReadwriteArray4<'_, T>,
        epoch: u64,
        threads: usize,
    ) -> PyResult<Vec<(usize, String)>> {
        let out = out.as_slice_mut()?;
        Ok(py.detach(|| pipeline::load_all(files, preparation, epoch, threads, out))?)
    }
    match out {
        Samples::Floats(out) => load(py, &files, preparation, out, epoch, threads),
        Samples::Levels(out) => load(py, &files, preparation, out, epoch, threads),
    }
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

/// Pixels (rows, columns, 3), width and height of the file's picture, and what went wrong.
type ShrunkPicture = (Option<Py<PyArray3<u8>>>, (usize, usize), Option<String>);

/// Whole pictures with their short sides at most `short`.
#[pyfunction]
#[pyo3(signature = (paths, short, preparation, threads=0))]
fn shrink_images(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    short: usize,
    preparation: &PyPreparation,
    threads: usize,
) -> PyResult<Vec<ShrunkPicture>> {
    if short == 0 {
        return Err(Error::Value("short must be at least 1 pixel, got 0".into()).into());
    }
    let preparation = &preparation.0;
    let made = py.detach(|| pipeline::shrink_all(&paths, preparation, short, threads));
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
    /// `entries`: offset, width, height, and the file's width and height, a row each; a width of 0 is not kept.
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

/// A data set's files and how samples are made of them.
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
        threads: usize,
        prefetch: usize,
        uint8: bool,
        kept: Option<&PyKept>,
    ) -> Self {
        let preparation = Arc::clone(&preparation.0);
        PyPipeline {
            paths: Arc::new(paths),
            preparation,
            threads,
            prefetch,
            uint8,
            kept: kept.map(|kept| Arc::clone(&kept.0)),
        }
    }

    /// Starts making the batches of `order`.
    fn start(&self, py: Python<'_>, order: Vec<Vec<i64>>, epoch: u64) -> PyResult<PyRun> {
        let mut job = Job::new(
            Arc::clone(&self.paths),
            Arc::clone(&self.preparation),
            order,
            epoch,
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

/// Batches under way.
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
