//! Pictures decoded once and kept in a file, back to back: rows of them are read again as they are.
//!
//! Read by position rather than through a memory map: the system's cache holds the pages either way, a copy of the rows
//! costs a twentieth of the resizing, and a file cut off by somebody else is an error of one sample, not a SIGBUS.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{pool, Rgb};
use crate::error::{Error, Result};

/// Where a picture lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of its first byte.
    pub offset: u64,
    /// Pixels a row as kept.
    pub width: usize,
    /// Rows as kept.
    pub height: usize,
    /// Width and height of the file's picture.
    pub full: (usize, usize),
}

/// An open file of pictures and where each row's lies.
pub struct Kept {
    path: PathBuf,
    file: File,
    entries: Vec<Option<Entry>>,
}

impl Kept {
    /// Opens the file. `entries` go by row of the data set, `None` for a picture that is not kept.
    pub fn open(path: &Path, entries: Vec<Option<Entry>>) -> Result<Kept> {
        let failed = |source| Error::Read {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        for (row, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let pixels = (entry.width as u64)
                .checked_mul(entry.height as u64)
                .and_then(|pixels| pixels.checked_mul(3)?.checked_add(entry.offset));
            if entry.full.0 == 0 || entry.full.1 == 0 || pixels.is_none_or(|end| end > length) {
                return Err(Error::Value(format!(
                    "{}: the picture of row {row} lies outside the file",
                    path.display()
                )));
            }
        }
        Ok(Kept {
            path: path.into(),
            file,
            entries,
        })
    }

    /// Where the picture of a row lies.
    pub fn entry(&self, row: u64) -> Option<Entry> {
        *self.entries.get(usize::try_from(row).ok()?)?
    }

    /// The rows `first..end` of a picture.
    pub fn rows(&self, entry: Entry, first: usize, end: usize) -> Result<Rgb> {
        let stride = entry.width * 3;
        let mut pixels = pool::take((end - first) * stride)?;
        let offset = entry.offset + (first * stride) as u64;
        read_at(&self.file, &mut pixels, offset).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(Rgb {
            width: entry.width,
            height: end - first,
            pixels,
        })
    }
}

/// Fills `out` with the bytes from `offset` on.
#[cfg(unix)]
pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills `out` with the bytes from `offset` on.
#[cfg(windows)]
pub(super) fn read_at(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[count..];
        offset += count as u64;
    }
    Ok(())
}
