//! What the blocks of a scan are decoded by: the scan's header, and the tables of each of its components.

use super::codes::Codes;
use super::pairs::Pairs;
use super::skip::Skip;

/// From the order of the file to natural order. Runs that lead past the block end at the last coefficient.
pub const NATURAL: [u8; 128] = {
    let order: [u8; 64] = [
        0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27,
        20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
        58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    ];
    let mut padded = [63; 128];
    let mut k = 0;
    while k < 64 {
        padded[k] = order[k];
        k += 1;
    }
    padded
};

/// What a scan header says.
pub struct Scan {
    /// Component, and the numbers of its two tables.
    pub components: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub band: (usize, usize),
    /// Bit position before this scan and in it.
    pub approximation: (u32, u32),
    /// Units across and down. Those of a single component are its blocks, without the ones that fill up the frame's units.
    pub units: (usize, usize),
}

impl Scan {
    /// Whether the scan holds one component.
    pub fn single(&self) -> bool {
        self.components.len() == 1
    }
}

/// A component of a scan. `None` stands for a table that the scan does not need.
pub struct Part<'t> {
    pub index: usize,
    pub dc: Option<&'t Codes>,
    pub ac: Option<&'t Codes>,
    /// For two coefficients at a time, in a sequential scan with enough data.
    pub pairs: Option<&'t Pairs>,
    /// For skipping coefficients after `depth`, and whole blocks, of a sequential scan.
    pub skip: Option<&'t Skip>,
    /// The last coefficient that is decoded, in the order of the file.
    pub depth: usize,
    pub prediction: i32,
}
