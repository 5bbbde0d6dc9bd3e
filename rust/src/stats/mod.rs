//! Streaming statistics: moments of arrays that do not fit in memory, and of every training pair over the epochs.

pub mod moments;
pub mod pairs;
pub mod quantiles;
mod sums;
mod wide;
