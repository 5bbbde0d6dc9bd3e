//! The frame of a JPEG file: its components, their blocks, and what of them is wanted.

use std::ops::Range;

use super::error::{bad, cut_short};
use super::idct::{self, Block, Transform};
use crate::error::Result;
use crate::image::format::{check_size, Choose, Wanted};
use crate::image::{pool, Limits};
use crate::memory;

/// libjpeg's largest side.
const MAX_SIDE: usize = 65_500;

/// Coefficients whose precision is kept: the first ten in the order of the file.
pub const SAVED: usize = 10;

/// For each of the first coefficients, the lowest bit that is known: 0 for all bits, -1 for none.
pub type Known = [i32; SAVED];

/// One colour component of the frame.
pub struct Component {
    pub id: u8,
    /// Sampling factors.
    pub horizontal: usize,
    pub vertical: usize,
    pub quant_table: usize,
    /// The quantisation table that its first scan found, in natural order.
    pub quant: Box<Block>,
    pub started: bool,
    /// Samples a block has on a side of the result: 8, less where the picture is wanted smaller.
    pub side: usize,
    /// Samples that count.
    pub width: usize,
    pub height: usize,
    /// Blocks that hold them.
    pub blocks_across: usize,
    pub blocks_down: usize,
    /// Blocks in whole units.
    pub blocks: (usize, usize),
    /// The blocks whose samples are wanted, columns and rows.
    pub wanted: (Range<usize>, Range<usize>),
    /// Samples a row, in whole units.
    pub stride: usize,
    /// Samples; those of blocks that are not wanted are undefined.
    pub plane: Vec<u8>,
    /// All coefficients of a progressive file, block by block, in whole units.
    pub coefficients: Vec<Block>,
    /// What of the coefficients of a progressive file is known, and what was before the last scan.
    pub known: [Known; 2],
}

impl Component {
    pub fn row(&self, y: usize) -> &[u8] {
        &self.plane[y * self.stride..(y + 1) * self.stride]
    }

    pub fn block(&mut self, x: usize, y: usize) -> &mut Block {
        &mut self.coefficients[y * self.blocks.0 + x]
    }

    /// Blocks across and down in a unit of a scan, which may be of this component alone.
    #[inline(always)]
    pub fn blocks_a_unit(&self, single: bool) -> (usize, usize) {
        if single {
            (1, 1)
        } else {
            (self.horizontal, self.vertical)
        }
    }

    /// Where the samples of a block begin.
    pub fn sample(&self, x: usize, y: usize) -> usize {
        (y * self.stride + x) * self.side
    }

    /// The last coefficient, in the order of the file, that the transform reads.
    pub fn depth(&self) -> usize {
        match self.side {
            1 => 0,
            2 => 4,
            4 => 24,
            _ => 63,
        }
    }

    /// Samples of a block, from `at` on. `flat`: only the first coefficient can be other than 0.
    #[inline(always)]
    pub fn put<T: Transform>(&mut self, transform: T, at: usize, block: &Block, flat: bool) {
        let (stride, side, quant) = (self.stride, self.side, &self.quant);
        let out = &mut self.plane[at..];
        if flat || side == 1 {
            idct::idct_flat(block[0], quant[0], side, out, stride);
        } else if side == 8 {
            transform.idct(block, quant, out, stride);
        } else if side == 4 {
            transform.idct_half(block, quant, out, stride);
        } else {
            idct::idct_reduced::<2>(block, quant, out, stride);
        }
    }

    /// Makes room for the samples, and for the coefficients where they are stored.
    fn allocate(&mut self, progressive: bool) -> Result<()> {
        let samples = self.stride * self.blocks.1 * self.side;
        self.plane = pool::take(samples)?;
        if progressive {
            self.coefficients = memory::zeros(self.blocks.0 * self.blocks.1)?;
        }
        Ok(())
    }
}

pub struct Frame {
    pub progressive: bool,
    /// As declared.
    pub width: usize,
    pub height: usize,
    /// What of the picture is wanted; set with the first scan, when planes are allocated.
    pub wanted: Option<Wanted>,
    /// Interleaved units across and down.
    pub units: (usize, usize),
    pub components: Vec<Component>,
    /// The last row of units that the last scan has data for.
    pub last_good: usize,
}

impl Frame {
    /// From the segment of marker `marker` of a file of `length` bytes.
    pub fn read(marker: u8, body: &[u8], length: usize, limits: &Limits) -> Result<Frame> {
        let [precision, height_high, height_low, width_high, width_low, count, rest @ ..] = body
        else {
            return Err(cut_short());
        };
        if *precision != 8 {
            return Err(bad(format_args!(
                "{precision} bits a sample are not supported, only 8"
            )));
        }
        let height = usize::from(u16::from_be_bytes([*height_high, *height_low]));
        let width = usize::from(u16::from_be_bytes([*width_high, *width_low]));
        let count = usize::from(*count);
        if !matches!(count, 1 | 3 | 4) {
            return Err(bad(format_args!(
                "{count} components are not supported, only 1, 3 or 4"
            )));
        }
        if rest.len() != 3 * count {
            return Err(bad(format_args!(
                "damaged: a frame header of {count} components has {} bytes",
                body.len()
            )));
        }
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(bad(format_args!(
                "declares {width}x{height}; a side can be {MAX_SIDE} at most"
            )));
        }
        let factors: Vec<(usize, usize)> = rest
            .chunks_exact(3)
            .map(|entry| (usize::from(entry[1] >> 4), usize::from(entry[1] & 15)))
            .collect();
        if let Some((h, v)) = factors
            .iter()
            .find(|(h, v)| !(1..=4).contains(h) || !(1..=4).contains(v))
        {
            return Err(bad(format_args!(
                "damaged: a sampling factor is {h}x{v}, not within 1 to 4"
            )));
        }
        let progressive = marker == 0xc2;
        // The planes and, of a progressive file, two bytes a coefficient.
        let each = if progressive { 3 } else { 1 };
        check_size("JPEG", width, height, 3 + each * count as u64, limits)?;

        let h_max = factors.iter().map(|factors| factors.0).max().unwrap_or(1);
        let v_max = factors.iter().map(|factors| factors.1).max().unwrap_or(1);
        let units = (width.div_ceil(8 * h_max), height.div_ceil(8 * v_max));
        // A unit takes at least one bit, so that a short file cannot make us work for a large picture.
        if units.0 * units.1 > length.saturating_mul(8) {
            return Err(bad(format_args!(
                "the file is cut short: {width}x{height} cannot be in {length} bytes"
            )));
        }
        let components = rest
            .chunks_exact(3)
            .zip(factors)
            .map(|(entry, (h, v))| Component {
                id: entry[0],
                horizontal: h,
                vertical: v,
                quant_table: usize::from(entry[2]),
                quant: Box::new([0; 64]),
                started: false,
                side: 8,
                width: (width * h).div_ceil(h_max),
                height: (height * v).div_ceil(v_max),
                blocks_across: (width * h).div_ceil(h_max * 8),
                blocks_down: (height * v).div_ceil(v_max * 8),
                blocks: (units.0 * h, units.1 * v),
                wanted: (0..units.0 * h, 0..units.1 * v),
                stride: units.0 * h * 8,
                plane: Vec::new(),
                coefficients: Vec::new(),
                known: [[-1; SAVED]; 2],
            });
        Ok(Frame {
            progressive,
            width,
            height,
            wanted: None,
            units,
            components: components.collect(),
            last_good: 0,
        })
    }

    /// Asks what of the picture is wanted, and makes room for it.
    pub fn allocate(&mut self, choose: Choose<'_>, orientation: u8) -> Result<()> {
        let (width, height) = (self.width, self.height);
        let mut wanted = if orientation < 5 {
            choose(width, height)
        } else {
            choose(height, width)
        };
        if orientation != 1 {
            wanted.area = None;
            // A last column that covers less than a pixel would become the first when turned, and shift the others.
            if !((width * wanted.eighths).is_multiple_of(8)
                && (height * wanted.eighths).is_multiple_of(8))
            {
                wanted.eighths = 8;
            }
        }
        let scale = wanted.eighths;
        let most = |of: fn(&Component) -> usize| self.components.iter().map(of).max().unwrap_or(1);
        let (h_max, v_max) = (most(|c| c.horizontal), most(|c| c.vertical));
        for component in &mut self.components {
            let (h, v) = (component.horizontal, component.vertical);
            // Components with fewer samples are reduced less (libjpeg's rule).
            let mut side = scale;
            while side < 8
                && (h_max * scale).is_multiple_of(h * side * 2)
                && (v_max * scale).is_multiple_of(v * side * 2)
            {
                side *= 2;
            }
            component.side = side;
            component.width = (width * h * side).div_ceil(h_max * 8);
            component.height = (height * v * side).div_ceil(v_max * 8);
            component.stride = component.blocks.0 * side;
            if let Some(area) = wanted.area {
                // With one more sample on each side, for interpolation.
                let blocks = |first: usize, count: usize, most: usize, own: usize| {
                    let begin = (first * own * side / (most * scale)).saturating_sub(1) / side;
                    let end = ((first + count) * own * side).div_ceil(most * scale) + 1;
                    begin..end.div_ceil(side)
                };
                component.wanted = (
                    blocks(area.left, area.width, h_max, h),
                    blocks(area.top, area.height, v_max, v),
                );
            }
            component.allocate(self.progressive)?;
        }
        self.wanted = Some(wanted);
        Ok(())
    }
}
