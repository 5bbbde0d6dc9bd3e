//! One image file to one sample of a batch: read, decoded, cropped, resized, normalised.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::augment::Augment;
use super::decode::decode;
use super::resize::{resize, Fit, Geometry, Interpolation, Normalisation, Scratch};
use super::{Limits, Rgb};
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
    let mut data = Vec::with_capacity(metadata.len() as usize + 1);
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

    /// Crops, resizes and normalises a decoded picture into `planes` (`3 * size * size`).
    pub fn apply<T: Element>(
        &self,
        image: &Rgb,
        epoch: u64,
        row: u64,
        buffers: &mut Buffers,
        planes: &mut [T],
    ) {
        let geometry = match &self.augment {
            Some(augment) => {
                let (area, flip) = augment.crop(image.width, image.height, self.seed, epoch, row);
                Geometry::part(area, self.size, flip)
            }
            None => Geometry::centre(image.width, image.height, self.size, self.fit),
        };
        buffers.rgb.resize(self.elements(), 0);
        resize(
            image,
            &geometry,
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
        let image = decode(&data, &self.limits).map_err(|error| match error {
            Error::Image(message) => Error::Image(format!("{}: {message}", path.display())),
            other => other,
        })?;
        self.apply(&image, epoch, row, buffers, planes);
        Ok(())
    }
}
