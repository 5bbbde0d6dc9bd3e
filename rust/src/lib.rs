//! The compiled core of varalign: caption tokenizers, image decoding, streaming statistics and exact search.
//!
//! Every module but `python` is plain Rust and is tested by `cargo test` without an interpreter.

pub mod error;
pub mod image;
pub mod memory;
pub mod nearest;
mod python;
mod simd;
pub mod stats;
pub mod threads;
pub mod tokenize;
