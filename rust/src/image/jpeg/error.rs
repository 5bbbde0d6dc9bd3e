//! The errors of JPEG files.

use crate::error::Error;
use crate::image::format::damaged;

pub fn bad(what: impl std::fmt::Display) -> Error {
    damaged("JPEG", what)
}

pub fn cut_short() -> Error {
    bad("the file is cut short: it ends before the picture does")
}
