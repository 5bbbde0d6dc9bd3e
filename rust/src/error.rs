//! The one error type of the crate: a sentence a variant. `python/mod.rs` maps it to Python exceptions.

use std::path::PathBuf;

use thiserror::Error;

/// What can go wrong in the core.
#[derive(Debug, Error)]
pub enum Error {
    /// An argument has a value that the function cannot work with (`ValueError` in Python).
    #[error("{0}")]
    Value(String),
    /// Bytes that are no image of a supported format, or a damaged one (`ValueError` in Python).
    #[error("{0}")]
    Image(String),
    /// Memory that the system does not give (`MemoryError` in Python).
    #[error("not enough memory: {bytes} bytes{what} cannot be allocated")]
    Memory {
        /// How many were asked for.
        bytes: u64,
        /// What for: empty, or ` for ...`.
        what: String,
    },
    /// A file that cannot be read (`OSError` or the subclass that fits in Python).
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the process has run out of memory or of file handles: no fault of the file at which that showed.
    pub fn is_exhaustion(&self) -> bool {
        const HANDLES: &[i32] = if cfg!(windows) { &[4] } else { &[23, 24] };
        match self {
            Error::Memory { .. } => true,
            Error::Read { source, .. } => {
                source.kind() == std::io::ErrorKind::OutOfMemory
                    || source
                        .raw_os_error()
                        .is_some_and(|number| HANDLES.contains(&number))
            }
            _ => false,
        }
    }

    /// The same error, saying what it is about: a file, or a batch.
    pub fn about(self, subject: impl std::fmt::Display) -> Error {
        match self {
            Error::Image(message) => Error::Image(format!("{subject}: {message}")),
            Error::Memory { bytes, .. } => Error::Memory {
                bytes,
                what: format!(" for {subject}"),
            },
            other => other,
        }
    }
}

/// The result of a fallible function of the core.
pub type Result<T> = std::result::Result<T, Error>;
