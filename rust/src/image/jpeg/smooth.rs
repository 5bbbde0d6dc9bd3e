//! libjpeg's smoothing between blocks, for progressive files that end before their coefficients are known to the last bit.
//!
//! The first nine coefficients after the first, where they are 0 and not fully known, are estimated from the first coefficients
//! of the 5 x 5 blocks around; where nothing but first coefficients is known, the first is smoothed too. The formulas are
//! those of libjpeg-turbo (`jdcoefct.c`, from 2.1 on), whose pixels these are to the bit.

use super::frame::{Component, Frame, Known, SAVED};
use super::idct::{Block, Transform};
use super::part::NATURAL;

type Kernel = [[i32; 5]; 5];

/// For each coefficient, in the order of the file: a kernel, and whether it is transposed.
type Kernels = [(Kernel, bool)];

const ACROSS: Kernel = [
    [-1, -1, 0, 1, 1],
    [-3, 13, 0, -13, 3],
    [-3, 38, 0, -38, 3],
    [-3, 13, 0, -13, 3],
    [-1, -1, 0, 1, 1],
];
const TWICE_DOWN: Kernel = [
    [0, 0, 1, 0, 0],
    [0, 2, 7, 2, 0],
    [0, -5, -14, -5, 0],
    [0, 2, 7, 2, 0],
    [0, 0, 1, 0, 0],
];
const DIAGONAL: Kernel = [
    [-1, 0, 0, 0, 1],
    [0, 9, 0, -9, 0],
    [0; 5],
    [0, -9, 0, 9, 0],
    [1, 0, 0, 0, -1],
];
const THRICE_ACROSS: Kernel = [
    [0; 5],
    [0, 1, 0, -1, 0],
    [0, 2, 0, -2, 0],
    [0, 1, 0, -1, 0],
    [0; 5],
];
const TWICE_ACROSS_DOWN: Kernel = [[0; 5], [0, 1, -3, 1, 0], [0; 5], [0, -1, 3, -1, 0], [0; 5]];
const FIRST: Kernel = [
    [-2, -6, -8, -6, -2],
    [-6, 6, 42, 6, -6],
    [-8, 42, 152, 42, -8],
    [-6, 6, 42, 6, -6],
    [-2, -6, -8, -6, -2],
];

/// Where first coefficients alone are known.
const WIDE: &Kernels = &[
    (FIRST, false),
    (ACROSS, false),
    (ACROSS, true),
    (TWICE_DOWN, false),
    (DIAGONAL, false),
    (TWICE_DOWN, true),
    (THRICE_ACROSS, false),
    (TWICE_ACROSS_DOWN, false),
    (TWICE_ACROSS_DOWN, true),
    (THRICE_ACROSS, true),
];

const ACROSS_ROW: Kernel = [[0; 5], [0; 5], [-7, 50, 0, -50, 7], [0; 5], [0; 5]];
const TWICE_ACROSS_ROW: Kernel = [[0; 5], [0; 5], [-1, 13, -24, 13, -1], [0; 5], [0; 5]];
const DIAGONALS: Kernel = [
    [0, -1, 0, 1, 0],
    [-1, 10, 0, -10, 1],
    [0; 5],
    [1, -10, 0, 10, -1],
    [0, 1, 0, -1, 0],
];

/// Where more is known: the first coefficient and those after the sixth stay.
const NARROW: &Kernels = &[
    ([[0; 5]; 5], false),
    (ACROSS_ROW, false),
    (ACROSS_ROW, true),
    (TWICE_ACROSS_ROW, true),
    (DIAGONALS, false),
    (TWICE_ACROSS_ROW, false),
];

impl Component {
    /// Samples of all blocks of a progressive file, smoothed where `smoothing` is given.
    #[inline(always)]
    pub fn put_all<T: Transform>(&mut self, transform: T, smoothing: Option<&Smoothing>) {
        let coefficients = std::mem::take(&mut self.coefficients);
        for (index, block) in coefficients.iter().enumerate() {
            let (x, y) = (index % self.blocks.0, index / self.blocks.0);
            if self.wanted.0.contains(&x) && self.wanted.1.contains(&y) {
                // Blocks that fill up the units are not seen.
                let inside = x < self.blocks_across && y < self.blocks_down;
                let smooth = smoothing.filter(|_| inside);
                let smooth = smooth.map(|smoothing| smoothing.block(self, &coefficients, x, y));
                let block = smooth.as_ref().unwrap_or(block);
                let any = block[1..].iter().fold(0, |any, value| any | value);
                self.put(transform, self.sample(x, y), block, any == 0);
            }
        }
    }
}

/// How the blocks of one component are smoothed.
pub struct Smoothing {
    /// What was known of the coefficients after the last scan, and before it.
    known: [Known; 2],
    /// The last row of units that the last scan has data for; the rows after it are as the scan before left them.
    last_good: usize,
    /// Rows of units in the picture.
    units: usize,
}

impl Smoothing {
    /// Of each component of a progressive frame; `None` where libjpeg does not smooth: a component has not come yet, or
    /// nothing is missing.
    pub fn of(frame: &Frame, scans: usize) -> Option<Vec<Smoothing>> {
        let components = &frame.components;
        let ready = |component: &Component| {
            let divides = |k: usize| component.quant[usize::from(NATURAL[k])] != 0;
            component.started && component.known[0][0] >= 0 && (0..SAVED).all(divides)
        };
        let missing = |component: &Component| component.known[0][1..].iter().any(|&bit| bit != 0);
        let useful = components.iter().all(ready) && components.iter().any(missing);
        useful.then(|| {
            let of = |component: &Component| Smoothing {
                known: match scans {
                    1 => [component.known[0], [-1; SAVED]],
                    _ => component.known,
                },
                last_good: frame.last_good,
                units: frame.units.1,
            };
            components.iter().map(of).collect()
        })
    }

    /// The block at column `x` and row `y` of the component's, smoothed.
    pub fn block(
        &self,
        component: &Component,
        coefficients: &[Block],
        x: usize,
        y: usize,
    ) -> Block {
        let unit = y / component.vertical;
        let known = &self.known[usize::from(unit > self.last_good)];
        let wide = known[1..].iter().all(|&bit| bit == -1);
        let around = self.around(component, coefficients, x, y);
        let mut block = coefficients[y * component.blocks.0 + x];
        let quant = |k: usize| i64::from(component.quant[usize::from(NATURAL[k])] as u16);
        let kernels = if wide { WIDE } else { NARROW };
        for (k, (kernel, transposed)) in kernels.iter().enumerate() {
            let place = usize::from(NATURAL[k]);
            let skipped = if k == 0 {
                !wide
            } else {
                known[k] == 0 || block[place] != 0
            };
            if skipped {
                continue;
            }
            let mut sum = 0_i32;
            for down in 0..5 {
                for across in 0..5 {
                    let weight = if *transposed {
                        kernel[across][down]
                    } else {
                        kernel[down][across]
                    };
                    sum = sum.wrapping_add(weight * around[down][across]);
                }
            }
            let scaled = quant(0) * i64::from(sum);
            let mut size = (((quant(k) << 7) + scaled.abs()) / (quant(k) << 8)) as i32;
            if k > 0 && known[k] > 0 {
                // Not so large that the bits that are known would show it.
                size = size.min((1 << known[k]) - 1);
            }
            block[place] = if scaled < 0 { -size } else { size } as i16;
        }
        block
    }

    /// The first coefficients of the 5 x 5 blocks around one; those outside are the nearest ones inside.
    fn around(&self, component: &Component, coefficients: &[Block], x: usize, y: usize) -> Kernel {
        let unit = y / component.vertical;
        // As libjpeg counts rows: in the last row of units by the rows that it has.
        let here = match component.blocks_down % component.vertical {
            rest if rest > 0 && unit == self.units - 1 => rest,
            _ => component.vertical,
        };
        let row = unit * here + y % component.vertical;
        let rows = here * self.units;
        let above = usize::from(row > 0);
        let above_that = above + usize::from(row > 1);
        let below = usize::from(row + 1 < rows);
        let below_that = below + usize::from(row + 2 < rows);
        let rows = [y - above_that, y - above, y, y + below, y + below_that];
        rows.map(|row| {
            let row = &coefficients[row * component.blocks.0..][..component.blocks_across];
            std::array::from_fn(|column| {
                let column = (x + column).saturating_sub(2).min(row.len() - 1);
                i32::from(row[column][0])
            })
        })
    }
}
