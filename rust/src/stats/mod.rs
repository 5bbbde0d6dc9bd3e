//! Streaming statistics: moments of arrays that do not fit in memory.

pub mod moments;
