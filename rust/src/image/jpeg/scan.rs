//! The entropy-coded data of one scan: sequential to samples row by row, progressive into stored coefficients.
//!
//! Damage is treated as libjpeg treats it: data that end early are read as zeros until the unit is whole and the units
//! after it stay as they are, up to the next restart marker; a restart marker out of turn is found again by libjpeg's
//! rules; codes that no table has count as 0.

use std::ops::Range;
use std::rc::Rc;

use super::bits::{unstuff, Bits};
use super::huffman::Table;
use super::idct::{Block, Transform};
use super::pairs::Pairs;
use super::progressive::progressive_block;
use super::sequential::{sequential_block, skipped_block};
use super::skip::Skip;
use super::{bad, Component, MAX_BLOCKS};
use crate::error::Result;
use crate::image::pool;

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

/// Blocks from which on passing over them saves more than the table for it costs.
const SKIPPED: usize = 200;

/// Bytes of a scan from which on pairs save more than the table for them costs.
const PAIRED: usize = 24 << 10;

/// What a scan header says.
pub struct Scan {
    /// Component, and the numbers of its two tables.
    pub components: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub band: (usize, usize),
    /// Bit position before this scan and in it.
    pub approximation: (u32, u32),
}

/// What scans share.
pub struct Tables {
    /// Huffman tables of first coefficients.
    pub dc: [Option<Rc<Table>>; 4],
    /// Huffman tables of the others.
    pub ac: [Option<Rc<Table>>; 4],
    /// Units between restart markers, 0 for none.
    pub restart_interval: usize,
}

/// A component of a scan. `None` stands for a table that the scan does not need.
pub struct Part<'t> {
    pub index: usize,
    pub dc: Option<&'t Table>,
    pub ac: Option<&'t Table>,
    /// Of a sequential scan with enough data.
    pub pairs: Option<&'t Pairs>,
    /// Of a sequential scan where coefficients are passed over: those after `depth`, and whole blocks.
    pub skip: Option<&'t Skip>,
    pub depth: usize,
    pub prediction: i32,
}

/// Decodes the scan whose data begin at `data[at]`; returns the position of the marker (or the end) that
/// follows, and whether the data sufficed.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn decode_scan<T: Transform>(
    transform: T,
    data: &[u8],
    mut at: usize,
    scan: &Scan,
    tables: &Tables,
    components: &mut [Component],
    progressive: bool,
    units: (usize, usize),
) -> Result<(usize, bool)> {
    let mut parts = parts_of(scan, tables, progressive)?;
    // A scan of one component has its blocks one by one, without those that fill up the last unit.
    let (across, down) = match scan.components[..] {
        [(only, ..)] => (components[only].blocks_across, components[only].blocks_down),
        _ => units,
    };
    let single = scan.components.len() == 1;
    if !progressive {
        for part in &mut parts {
            part.set_pairs(data.len() - at);
            part.set_skip(&components[part.index]);
        }
    }
    let interval = if tables.restart_interval == 0 {
        usize::MAX
    } else {
        tables.restart_interval
    };
    let mut clean = pool::take_empty();
    clean.reserve(data.len() - at + 8);
    at += unstuff(&data[at..], &mut clean);
    let mut bits = Bits::new(&clean);
    let mut left = interval;
    let mut restarts = 0_u8;
    let mut skip = false;
    let mut intact = true;
    let mut end_of_band = 0_u32;
    // Of one unit, with the position of the last coefficient of each.
    let mut blocks: [Block; MAX_BLOCKS] = [[0; 64]; MAX_BLOCKS];
    let mut lasts = [0_usize; MAX_BLOCKS];
    // Borrowed anew after each restart, as the bits borrow the buffer.
    let mut spare = Vec::new();
    let mut slots = if progressive {
        Vec::new()
    } else {
        slots_of(&parts, components, single)
    };
    for unit_y in 0..down {
        for slot in &mut slots {
            slot.enter(unit_y, &components[parts[slot.part].index]);
        }
        for unit_x in 0..across {
            if left == 0 {
                left = interval;
                for part in &mut parts {
                    part.prediction = 0;
                }
                end_of_band = 0;
                let (position, found) = next_restart(data, at, restarts);
                restarts = (restarts + 1) & 7;
                at = position;
                if found {
                    at += unstuff(&data[at..], &mut spare);
                    std::mem::swap(&mut clean, &mut spare);
                    skip = false;
                } else {
                    clean.clear();
                    clean.extend_from_slice(&[0; 8]);
                }
                bits = Bits::new(&clean);
            }
            left -= 1;
            if progressive {
                if !skip {
                    for part in &mut parts {
                        let component = &mut components[part.index];
                        let (h, v) = component.blocks_a_unit(single);
                        for (y, x) in places(h, v) {
                            let block = component.block(unit_x * h + x, unit_y * v + y);
                            progressive_block(&mut bits, part, scan, &mut end_of_band, block);
                        }
                    }
                }
            } else {
                // All blocks of the unit first: what was just written is slow to read in wider pieces.
                for (index, slot) in slots.iter().enumerate() {
                    let part = &mut parts[slot.part];
                    let wanted = slot.wanted.contains(&unit_x);
                    if skip {
                        blocks[index] = [0; 64];
                        lasts[index] = 0;
                    } else if wanted || part.skip.is_none() {
                        blocks[index] = [0; 64];
                        let depth = part.depth;
                        lasts[index] =
                            sequential_block(&mut bits, part, depth, &mut blocks[index])?;
                    } else {
                        skipped_block(&mut bits, part)?;
                    }
                }
                for (index, slot) in slots.iter().enumerate() {
                    if slot.wanted.contains(&unit_x) {
                        let component = &mut components[parts[slot.part].index];
                        let at = slot.sample + unit_x * slot.pitch;
                        component.put(transform, at, &blocks[index], lasts[index] == 0);
                    }
                }
            }
            skip |= bits.overrun();
            intact &= !skip;
        }
    }
    pool::give(clean);
    Ok((at, intact))
}

/// A block of a unit.
struct Slot {
    part: usize,
    /// Column and row in the unit, and how many of each the component has there.
    place: (usize, usize),
    count: (usize, usize),
    /// Of the row of units: those whose block is wanted, the first sample of the first one's, samples between two.
    wanted: Range<usize>,
    sample: usize,
    pitch: usize,
}

fn slots_of(parts: &[Part<'_>], components: &[Component], single: bool) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(MAX_BLOCKS);
    for (part, entry) in parts.iter().enumerate() {
        let count = components[entry.index].blocks_a_unit(single);
        slots.extend(places(count.0, count.1).map(|(y, x)| Slot {
            part,
            place: (x, y),
            count,
            wanted: 0..0,
            sample: 0,
            pitch: 0,
        }));
    }
    slots
}

impl Slot {
    /// What holds for a whole row of units.
    fn enter(&mut self, unit_y: usize, component: &Component) {
        let row = unit_y * self.count.1 + self.place.1;
        let (columns, rows) = &component.wanted;
        let unit = |column: usize| column.saturating_sub(self.place.0).div_ceil(self.count.0);
        self.wanted = if rows.contains(&row) {
            unit(columns.start)..unit(columns.end)
        } else {
            0..0
        };
        self.sample = component.sample(self.place.0, row);
        self.pitch = self.count.0 * component.side;
    }
}

impl<'t> Part<'t> {
    /// Has codes looked up in pairs where that is worth the making of the table.
    fn set_pairs(&mut self, bytes: usize) {
        if let Some(ac) = self.ac {
            if bytes >= PAIRED || ac.again() {
                self.pairs = Some(ac.pairs());
            }
        }
    }

    /// Has coefficients passed over where that is worth the making of the table.
    fn set_skip(&mut self, component: &Component) {
        let (columns, rows) = &component.wanted;
        let wanted = columns.len() * rows.len();
        let all = component.blocks.0 * component.blocks.1;
        let skipped = if component.depth() < 63 {
            all
        } else {
            all.saturating_sub(wanted)
        };
        if let Some(ac) = self.ac {
            if skipped >= SKIPPED || (skipped > 0 && ac.again()) {
                self.skip = Some(ac.skip());
                self.depth = component.depth();
            }
        }
    }
}

/// Rows and columns of a unit's blocks of one component, in the order of the file.
#[inline(always)]
fn places(h: usize, v: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..v).flat_map(move |y| (0..h).map(move |x| (y, x)))
}

fn parts_of<'t>(scan: &Scan, tables: &'t Tables, progressive: bool) -> Result<Vec<Part<'t>>> {
    let (first, last) = scan.band;
    let (high, low) = scan.approximation;
    if progressive {
        let band_is_right = if first == 0 {
            last == 0
        } else {
            first <= last && last <= 63 && scan.components.len() == 1
        };
        if !band_is_right || low > 13 || (high != 0 && low + 1 != high) {
            return Err(bad(format_args!(
                "a scan has impossible progression parameters {first} {last} {high} {low}"
            )));
        }
    }
    let missing = |kind: &str, number| {
        bad(format_args!(
            "a scan uses Huffman table {kind} {number}, which is not defined"
        ))
    };
    let wants_dc = !progressive || (first == 0 && high == 0);
    let wants_ac = !progressive || first > 0;
    scan.components
        .iter()
        .map(|&(index, dc, ac)| {
            let dc_table = tables.dc.get(dc).and_then(Option::as_deref);
            let ac_table = tables.ac.get(ac).and_then(Option::as_deref);
            if wants_dc && dc_table.is_none() {
                return Err(missing("DC", dc));
            }
            if wants_ac && ac_table.is_none() {
                return Err(missing("AC", ac));
            }
            Ok(Part {
                index,
                dc: dc_table,
                ac: ac_table,
                pairs: None,
                skip: None,
                depth: 63,
                prediction: 0,
            })
        })
        .collect()
}

/// Looks for restart marker number `wanted` at or after `at`, by the rules of libjpeg's `jpeg_resync_to_restart`.
///
/// Returns where to go on, and whether data of the wanted interval may follow there; if not, the marker at the position
/// belongs to something later and the interval is lost.
fn next_restart(data: &[u8], mut at: usize, wanted: u8) -> (usize, bool) {
    loop {
        let Some(found) = data.get(at..).and_then(|rest| memchr::memchr(0xff, rest)) else {
            return (data.len(), false);
        };
        let position = at + found;
        let fill = data[position..]
            .iter()
            .take_while(|&&byte| byte == 0xff)
            .count();
        let Some(&marker) = data.get(position + fill) else {
            return (data.len(), false);
        };
        let after = position + fill + 1;
        match marker {
            // A stuffed byte, or no marker at all: passed over.
            0..=0xbf => at = after,
            0xd0..=0xd7 => match marker.wrapping_sub(wanted) & 7 {
                // One of the next two: this interval is lost.
                1 | 2 => return (position, false),
                // One of the last two: a repetition.
                6 | 7 => at = after,
                _ => return (after, true),
            },
            _ => return (position, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_markers_in_and_out_of_turn() {
        assert_eq!(next_restart(b"\xff\xd3data", 0, 3), (2, true));
        assert_eq!(next_restart(b"junk\xff\0\xff\xff\xd3data", 0, 3), (9, true));
        assert_eq!(
            next_restart(b"\xff\xd4data", 0, 3),
            (0, false),
            "the next one: this interval is lost"
        );
        assert_eq!(
            next_restart(b"\xff\xd2\xff\xd3data", 0, 3),
            (4, true),
            "a repetition is passed over"
        );
        assert_eq!(next_restart(b"\xff\xd9", 0, 3), (0, false));
        assert_eq!(next_restart(b"nothing", 0, 3), (7, false));
        assert_eq!(next_restart(b"", 0, 0), (0, false));
    }
}
