//! The one error type of the crate: a sentence a variant. `python.rs` maps it to Python exceptions.

use thiserror::Error;

/// What can go wrong in the core.
#[derive(Debug, Error)]
pub enum Error {
    /// An argument has a value that the function cannot work with (`ValueError` in Python).
    #[error("{0}")]
    Value(String),
}

/// The result of a fallible function of the core.
pub type Result<T> = std::result::Result<T, Error>;
