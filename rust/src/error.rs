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
    /// A file that cannot be read (`OSError` or the subclass that fits in Python).
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// The result of a fallible function of the core.
pub type Result<T> = std::result::Result<T, Error>;
