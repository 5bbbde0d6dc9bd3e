//! One image file to one sample of a batch: read, decoded, cropped, resized, normalised.

use std::cell::Cell;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::augment::Augment;
use super::decode::{decode_wanted, Wanted};
use super::resize::{resize, Fit, Geometry, Interpolation, Normalisation, Scratch};
use super::{pool, Limits, Rgb};
use crate::error::{Error, Result};

/// Everything that decides the pixels of a sample, but for the file, the epoch and the row.
#[derive(Clone, Debug)]
pub struct Preparation {
    /// Side of the square.
    pub size: usize,
    /// How a whole picture comes to the square; not used where `augment` draws a part.
    pub fit: Fit,
    /// The kernel.
    pub interpolation: Interpolation,
    /// Of float32 output.
    pub normalisation: Normalisation,
    /// Random resized crops and mirrors.
    pub augment: Option<Augment>,
    /// Of the augmentation.
    pub seed: u64,
    /// Decode large JPEG files at a half, a quarter or an eighth of their size where that leaves a pixel for each one.
    pub fast: bool,
    /// What a file may cost.
    pub limits: Limits,
}

/// A sample's element type: normalised float32 or levels.
pub trait Element: Copy + Default + Send + 'static {
    /// Packed RGB to three planes.
    fn fill(rgb: &[u8], normalisation: &Normalisation, planes: &mut [Self]);
}

impl Element for f32 {
    fn fill(rgb: &[u8], normalisation: &Normalisation, planes: &mut [f32]) {
        normalisation.to_planes(rgb, planes);
    }
}

impl Element for u8 {
    fn fill(rgb: &[u8], _: &Normalisation, planes: &mut [u8]) {
        let area = planes.len() / 3;
        for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
            for (out, pixel) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
                *out = pixel[channel];
            }
        }
    }
}

/// Buffers that a thread keeps between samples.
#[derive(Default)]
pub struct Buffers {
    scratch: Scratch,
    rgb: Vec<u8>,
}

/// Reads a whole regular file of at most `limits.max_memory` bytes.
pub fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let failed = |source| Error::Read {
        path: path.into(),
        source,
    };
    // A pipe or a device could keep us waiting for ever.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() {
            "is a folder"
        } else {
            "is not a regular file"
        };
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            kind,
        )));
    }
    if metadata.len() > limits.max_memory {
        let message = format!(
            "has {} bytes, more than the limit of {}",
            metadata.len(),
            limits.max_memory
        );
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            message,
        )));
    }
    let mut data = pool::take_empty();
    data.reserve(metadata.len() as usize + 1);
    let file = fs::File::open(path).map_err(failed)?;
    file.take(limits.max_memory)
        .read_to_end(&mut data)
        .map_err(failed)?;
    Ok(data)
}

impl Preparation {
    /// Elements of a sample: `3 * size * size`.
    pub fn elements(&self) -> usize {
        3 * self.size * self.size
    }

    /// Where the sample of a row comes from in a picture of this size.
    pub fn geometry(&self, width: usize, height: usize, epoch: u64, row: u64) -> Geometry {
        match &self.augment {
            Some(augment) => {
                let (area, flip) = augment.crop(width, height, self.seed, epoch, row);
                Geometry::part(area, self.size, flip)
            }
            None => Geometry::centre(width, height, self.size, self.fit),
        }
    }

    /// Crops, resizes and normalises a decoded picture into `planes` (`3 * size * size`).
    pub fn apply<T: Element>(
        &self,
        image: &Rgb,
        geometry: &Geometry,
        buffers: &mut Buffers,
        planes: &mut [T],
    ) {
        buffers.rgb.resize(self.elements(), 0);
        resize(
            image,
            geometry,
            self.size,
            self.interpolation,
            &mut buffers.scratch,
            &mut buffers.rgb,
        );
        T::fill(&buffers.rgb, &self.normalisation, planes);
    }

    /// Makes the sample of a file; `planes` is written only where that succeeds. The error names the file.
    pub fn load<T: Element>(
        &self,
        path: &Path,
        epoch: u64,
        row: u64,
        buffers: &mut Buffers,
        planes: &mut [T],
    ) -> Result<()> {
        let data = read(path, &self.limits)?;
        // Set when the size is known; a decoder that does not ask gives the picture as it is.
        let chosen = Cell::new(None);
        let choose = |width: usize, height: usize| {
            let geometry = self.geometry(width, height, epoch, row);
            let eighths = if self.fast { geometry.eighths() } else { 8 };
            let mut wanted = Wanted {
                eighths,
                area: None,
            };
            let (width, height) = wanted.size_of(width, height);
            let scaled = geometry.at(eighths, width, height);
            wanted.area = Some(scaled.needed(self.size, self.interpolation));
            chosen.set(Some((scaled, width, height)));
            wanted
        };
        let (image, _) =
            decode_wanted(&data, &self.limits, &choose).map_err(|error| match error {
                Error::Image(message) => Error::Image(format!("{}: {message}", path.display())),
                other => other,
            })?;
        pool::give(data);
        let (width, height) = (image.width, image.height);
        let geometry = match chosen.get() {
            Some((geometry, w, h)) if (w, h) == (width, height) => geometry,
            _ => self.geometry(width, height, epoch, row),
        };
        self.apply(&image, &geometry, buffers, planes);
        pool::give(image.pixels);
        Ok(())
    }
}
