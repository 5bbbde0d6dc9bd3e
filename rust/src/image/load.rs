//! One image file to one sample of a batch: read, decoded, cropped, resized, normalised.

use std::cell::Cell;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::augment::Augment;
use super::color::{jitter, Jitter};
use super::decode::decode_wanted;
use super::format::Wanted;
use super::geometry::{Fit, Geometry};
use super::kept::{read_at, Kept};
use super::kernel::Interpolation;
use super::normalise::Normalisation;
use super::passes::{pitch, Layout, Scratch};
use super::resize::resize;
use super::{pool, Limits, Rgb};
use crate::error::{Error, Result};
use crate::memory;

/// All settings that a sample's pixels depend on, beside its file, the epoch and the row.
#[derive(Clone, Debug)]
pub struct Preparation {
    /// Side of the square.
    pub size: usize,
    /// How a whole picture is fitted to the square; not used where `augment` draws a part.
    pub fit: Fit,
    /// The kernel.
    pub interpolation: Interpolation,
    /// How levels become float32.
    pub normalisation: Normalisation,
    /// Random resized crops, mirrors and colours.
    pub augment: Option<Augment>,
    /// Seed of the augmentation.
    pub seed: u64,
    /// Decode large JPEG files at a half, a quarter or an eighth of their size where that leaves a pixel for each one.
    pub fast: bool,
    /// Samples of size x size pixels of three elements, rather than of three planes.
    pub channels_last: bool,
    /// What a file may cost.
    pub limits: Limits,
}

/// A sample's element type: normalised float32 or levels.
pub trait Element: Copy + Default + Send + bytemuck::Zeroable + 'static {
    /// A level of the channel that the table is of.
    fn of(level: u8, table: &[f32; 256]) -> Self;

    /// Levels of one channel.
    fn fill(levels: &[u8], normalisation: &Normalisation, channel: usize, out: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn of(level: u8, table: &[f32; 256]) -> f32 {
        table[usize::from(level)]
    }

    fn fill(levels: &[u8], normalisation: &Normalisation, channel: usize, out: &mut [f32]) {
        normalisation.fill(channel, levels, out);
    }
}

impl Element for u8 {
    #[inline(always)]
    fn of(level: u8, _: &[f32; 256]) -> u8 {
        level
    }

    fn fill(levels: &[u8], _: &Normalisation, _: usize, out: &mut [u8]) {
        out.copy_from_slice(levels);
    }
}

/// A picture made smaller, and the size that it had.
pub struct Shrunk {
    /// The picture as it is kept.
    pub image: Rgb,
    /// Width and height of the whole one.
    pub full: (usize, usize),
}

/// Buffers that a thread keeps between samples.
#[derive(Default)]
pub struct Buffers {
    scratch: Scratch,
    rgb: Vec<u8>,
}

/// Where a member of a tar shard lies, by its path `SHARD/@OFFSET+SIZE/NAME`: the shard, the offset and the size.
///
/// No file lies below a file, so such a path names nothing else. `data/shards/members.py` makes and reads it too.
fn member(path: &Path) -> Option<(&Path, u64, u64)> {
    let place = path.parent()?;
    let range = place.file_name()?.to_str()?.strip_prefix('@')?;
    let (offset, size) = range.split_once('+')?;
    let shard = place.parent()?;
    let found = (shard, offset.parse().ok()?, size.parse().ok()?);
    shard.is_file().then_some(found)
}

/// Reads a whole regular file, or a member of a tar shard, of at most `limits.max_memory` bytes.
pub fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    match member(path) {
        Some(place) => read_member(path, place, limits),
        None => read_file(path, limits),
    }
}

fn read_member(
    path: &Path,
    (shard, offset, size): (&Path, u64, u64),
    limits: &Limits,
) -> Result<Vec<u8>> {
    let failed = |source| Error::Read {
        path: path.into(),
        source,
    };
    let file = fs::File::open(shard).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if offset.checked_add(size).is_none_or(|end| end > length) {
        let message = format!("the shard ends at byte {length}, before this image");
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            message,
        )));
    }
    check_size(size, limits).map_err(failed)?;
    let mut data = pool::take(size as usize).map_err(|e| e.about(path.display()))?;
    read_at(&file, &mut data, offset).map_err(failed)?;
    Ok(data)
}

fn check_size(bytes: u64, limits: &Limits) -> std::io::Result<()> {
    if bytes <= limits.max_memory {
        return Ok(());
    }
    let message = format!(
        "has {bytes} bytes, more than the limit of {}",
        limits.max_memory
    );
    Err(std::io::Error::new(
        std::io::ErrorKind::FileTooLarge,
        message,
    ))
}

fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
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
    check_size(metadata.len(), limits).map_err(failed)?;
    let mut data =
        pool::take_empty(metadata.len() as usize + 1).map_err(|e| e.about(path.display()))?;
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

    /// How the colours of a row's sample are changed, if they are.
    pub fn colors(&self, epoch: u64, row: u64) -> Option<Jitter> {
        self.augment?.colors(self.seed, epoch, row)
    }

    /// Crops, resizes, changes the colours of and normalises a decoded picture into `out` (`3 * size * size`).
    fn apply<T: Element>(
        &self,
        image: &Rgb,
        geometry: &Geometry,
        changes: Option<&Jitter>,
        buffers: &mut Buffers,
        out: &mut [T],
    ) -> Result<()> {
        let (size, kernel) = (self.size, self.interpolation);
        let tables: [_; 3] = std::array::from_fn(|channel| self.normalisation.table(channel));
        let packed = |row: &[u8], out: &mut [T]| {
            for (out, levels) in out.chunks_exact_mut(3).zip(row.chunks_exact(3)) {
                for channel in 0..3 {
                    out[channel] = T::of(levels[channel], tables[channel]);
                }
            }
        };
        let Buffers { scratch, rgb } = buffers;
        if let Some(changes) = changes {
            // Contrast asks for the mean of the whole picture.
            rgb.clear();
            memory::reserve(rgb, size * size * 3)?;
            let mut row = |_: usize, row: &[u8]| rgb.extend_from_slice(&row[..size * 3]);
            resize(
                image,
                geometry,
                (size, size),
                kernel,
                Layout::Packed,
                scratch,
                &mut row,
            )?;
            jitter(rgb, changes);
            if self.channels_last {
                packed(rgb, out);
                return Ok(());
            }
            for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
                for (out, levels) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
                    *out = T::of(levels[channel], tables[channel]);
                }
            }
        } else if self.channels_last {
            let mut row = |y: usize, row: &[u8]| packed(row, &mut out[y * size * 3..][..size * 3]);
            resize(
                image,
                geometry,
                (size, size),
                kernel,
                Layout::Packed,
                scratch,
                &mut row,
            )?;
        } else {
            let mut row = |y: usize, row: &[u8]| {
                let planes = out
                    .chunks_exact_mut(size * size)
                    .zip(row.chunks(pitch(size)));
                for (channel, (plane, row)) in planes.take(3).enumerate() {
                    let out = &mut plane[y * size..][..size];
                    T::fill(&row[..size], &self.normalisation, channel, out);
                }
            };
            resize(
                image,
                geometry,
                (size, size),
                kernel,
                Layout::Planes,
                scratch,
                &mut row,
            )?;
        }
        Ok(())
    }

    /// Makes the sample of a file, and returns the width and height of its picture; `out` is written only where that
    /// succeeds. The error names the file.
    pub fn load<T: Element>(
        &self,
        path: &Path,
        epoch: u64,
        row: u64,
        buffers: &mut Buffers,
        out: &mut [T],
    ) -> Result<(usize, usize)> {
        let (image, geometry, full) =
            self.open(path, Some((self.size, self.size)), &|width, height| {
                self.geometry(width, height, epoch, row)
            })?;
        let changes = self.colors(epoch, row);
        self.apply(&image, &geometry, changes.as_ref(), buffers, out)?;
        pool::give(image.pixels);
        Ok(full)
    }

    /// The whole picture of a file with its short side at most `short`, never enlarged. The error names the file.
    pub fn shrink(&self, path: &Path, short: usize, buffers: &mut Buffers) -> Result<Shrunk> {
        let size_of = |width: usize, height: usize| {
            let least = width.min(height).max(1);
            let to = |side: usize| ((side * short + least / 2) / least).max(1);
            if least <= short {
                (width, height)
            } else {
                (to(width), to(height))
            }
        };
        let whole =
            |width: usize, height: usize| Geometry::whole(width, height, size_of(width, height));
        let (image, geometry, full) = self.open(path, None, &whole)?;
        let (width, height) = size_of(full.0, full.1);
        if (image.width, image.height) == (width, height) {
            return Ok(Shrunk { image, full });
        }
        let mut pixels = Vec::new();
        memory::reserve(&mut pixels, width * height * 3)?;
        let mut row = |_: usize, row: &[u8]| pixels.extend_from_slice(&row[..width * 3]);
        let (kernel, scratch) = (self.interpolation, &mut buffers.scratch);
        resize(
            &image,
            &geometry,
            (width, height),
            kernel,
            Layout::Packed,
            scratch,
            &mut row,
        )?;
        pool::give(image.pixels);
        let image = Rgb {
            width,
            height,
            pixels,
        };
        Ok(Shrunk { image, full })
    }

    /// Makes the sample of a row that `kept` holds; false where it does not. The random crop is that of the file.
    pub fn load_kept<T: Element>(
        &self,
        kept: &Kept,
        epoch: u64,
        row: u64,
        buffers: &mut Buffers,
        out: &mut [T],
    ) -> Result<bool> {
        let Some(entry) = kept.entry(row) else {
            return Ok(false);
        };
        let (width, height) = entry.full;
        let across = entry.width as f64 / width as f64;
        let down = entry.height as f64 / height as f64;
        let mut geometry = self
            .geometry(width, height, epoch, row)
            .scaled(across, down);
        let source = &mut geometry.source;
        let first = source.top as usize;
        let end = ((source.top + source.height).ceil() as usize).min(entry.height);
        source.top -= first as f64;
        let image = kept.rows(entry, first, end)?;
        let changes = self.colors(epoch, row);
        self.apply(&image, &geometry, changes.as_ref(), buffers, out)?;
        pool::give(image.pixels);
        Ok(true)
    }

    /// Decodes what a geometry needs of a file: the picture, the geometry in it, and the size that the file declares.
    fn open(
        &self,
        path: &Path,
        size: Option<(usize, usize)>,
        geometry_of: &dyn Fn(usize, usize) -> Geometry,
    ) -> Result<(Rgb, Geometry, (usize, usize))> {
        let data = read(path, &self.limits)?;
        // Set when the size is known; a decoder that does not ask gives the picture as it is.
        let chosen = Cell::new(None);
        let choose = |width: usize, height: usize| {
            let geometry = geometry_of(width, height);
            let eighths = if self.fast { geometry.eighths() } else { 8 };
            let mut wanted = Wanted {
                eighths,
                area: None,
            };
            let scale = eighths as f64 / 8.0;
            let scaled = geometry.scaled(scale, scale);
            wanted.area = size.map(|size| scaled.needed(size, self.interpolation));
            chosen.set(Some((
                scaled,
                wanted.size_of(width, height),
                (width, height),
            )));
            wanted
        };
        let (image, _) = decode_wanted(&data, &self.limits, &choose)
            .map_err(|error| error.about(path.display()))?;
        pool::give(data);
        let found = (image.width, image.height);
        Ok(match chosen.get() {
            Some((geometry, size, full)) if size == found => (image, geometry, full),
            _ => (image, geometry_of(found.0, found.1), found),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_a_shard_is_a_part_of_the_file_and_its_end_is_checked() {
        let shard = std::env::temp_dir().join(format!("varalign-{}.tar", std::process::id()));
        fs::write(&shard, b"before, the member, after").unwrap();
        let limits = Limits::default();
        let member = |place: &str| read(&shard.join(place).join("a.jpg"), &limits);
        assert_eq!(member("@8+10").unwrap(), b"the member");
        assert_eq!(member("@8+0").unwrap(), b"");
        let error = member("@8+18").unwrap_err().to_string();
        assert!(error.contains("the shard ends at byte 25, before this image"));
        assert!(member("@8-10").is_err() && member("@8+18446744073709551615").is_err());
        fs::remove_file(&shard).unwrap();
    }
}
