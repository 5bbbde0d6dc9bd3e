//! What is wrong with a TIFF file, and what to save instead of one that cannot be read.

use crate::error::Error;
use crate::image::format::damaged;

pub const SAVE_AGAIN: &str = "save the picture as PNG, or as TIFF with LZW";

pub fn bad(what: impl std::fmt::Display) -> Error {
    damaged("TIFF", what)
}

pub fn cut_short() -> Error {
    bad("the file is cut short: it ends before the picture does")
}

/// The error for samples of a kind that is not read.
pub fn refused(kind: impl std::fmt::Display) -> Error {
    bad(format_args!(
        "{kind} cannot be read; save the picture as PNG, or as TIFF in grey or RGB of 8 bits"
    ))
}
