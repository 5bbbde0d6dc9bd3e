//! The entropy-coded data of one scan: sequential to samples row by row, progressive into stored coefficients.
//!
//! Damage is treated as libjpeg treats it: data that end early are read as zeros until the unit is whole and the units
//! after it stay as they are, up to the next restart marker; a restart marker out of turn is found again by libjpeg's
//! rules; codes that no table has count as 0.

use std::ops::Range;
use std::rc::Rc;

use super::bits::{unstuff, Bits};
use super::error::bad;
use super::frame::{Component, Frame};
use super::huffman::Table;
use super::idct::{Block, Transform};
use super::part::{Part, Scan};
use super::progressive::progressive_block;
use super::sequential::{sequential_block, skipped_block};
use crate::error::Result;
use crate::image::pool;
use crate::memory;

/// libjpeg's largest number of blocks in an interleaved unit.
pub const MAX_BLOCKS: usize = 10;

/// Minimum number of skipped blocks for which building the skip table pays off.
const SKIPPED: usize = 200;

/// Minimum number of bytes in a scan for which building the table of pairs pays off.
const PAIRED: usize = 24 << 10;

/// What scans share.
pub struct Tables {
    /// Huffman tables of first coefficients.
    pub dc: [Option<Rc<Table>>; 4],
    /// Huffman tables of the others.
    pub ac: [Option<Rc<Table>>; 4],
    /// Units between restart markers, 0 for none.
    pub restart_interval: usize,
}

/// Decodes the scan whose data begin at `data[at]`; returns the position of the marker (or the end) that follows, and
/// whether the data sufficed.
#[inline(always)]
pub fn decode_scan<T: Transform>(
    transform: T,
    data: &[u8],
    at: usize,
    scan: &Scan,
    tables: &Tables,
    frame: &mut Frame,
) -> Result<(usize, bool)> {
    let Frame {
        components,
        progressive,
        last_good,
        ..
    } = frame;
    let mut parts = parts_of(scan, tables, *progressive)?;
    if !*progressive {
        for (part, &(index, _, ac)) in parts.iter_mut().zip(&scan.components) {
            set_tables(
                part,
                tables.ac[ac].as_deref(),
                &components[index],
                data.len() - at,
            );
        }
    }
    let mut coded = Coded::new(data, at, tables.restart_interval)?;
    if *progressive {
        let last = progressive_units(&mut coded, &mut parts, scan, components);
        *last_good = last.unwrap_or(*last_good);
    } else {
        sequential_units(transform, &mut coded, &mut parts, scan, components)?;
    }
    pool::give(coded.clean);
    Ok((coded.at, coded.intact))
}

/// The coded data of a scan, one restart interval after the other.
struct Coded<'a> {
    data: &'a [u8],
    /// Where the data of the interval end.
    at: usize,
    /// The data of the interval without stuffing.
    clean: Vec<u8>,
    spare: Vec<u8>,
    /// Units in an interval, and those that are left of this one.
    interval: usize,
    left: usize,
    /// Number of the next restart marker.
    next: u8,
    /// The rest of the interval has no data.
    lost: bool,
    /// No unit so far lacked data.
    intact: bool,
}

impl<'a> Coded<'a> {
    fn new(data: &'a [u8], at: usize, interval: usize) -> Result<Coded<'a>> {
        let room = data.len() - at + 8;
        let mut clean = pool::take_empty(room)?;
        let at = at + unstuff(&data[at..], &mut clean);
        let interval = if interval == 0 { usize::MAX } else { interval };
        let mut spare = Vec::new();
        if interval < usize::MAX {
            memory::reserve(&mut spare, room)?;
        }
        Ok(Coded {
            data,
            at,
            clean,
            spare,
            interval,
            left: interval,
            next: 0,
            lost: false,
            intact: true,
        })
    }

    /// Goes to the next interval: the data after its restart marker, none where the marker is missing.
    fn restart(&mut self, parts: &mut [Part<'_>]) {
        self.left = self.interval;
        for part in parts {
            part.prediction = 0;
        }
        let (position, found) = next_restart(self.data, self.at, self.next);
        self.next = (self.next + 1) & 7;
        self.at = position;
        if found {
            self.at += unstuff(&self.data[position..], &mut self.spare);
            std::mem::swap(&mut self.clean, &mut self.spare);
            self.lost = false;
        } else {
            self.clean.clear();
            self.clean.extend_from_slice(&[0; 8]);
        }
    }
}

/// Decodes every unit of a progressive scan into stored coefficients; returns the last row of the frame's units that has data.
fn progressive_units(
    coded: &mut Coded<'_>,
    parts: &mut [Part<'_>],
    scan: &Scan,
    components: &mut [Component],
) -> Option<usize> {
    let mut bits = Bits::new(&coded.clean);
    let mut end_of_band = 0;
    let mut last_good = None;
    // A scan of one component has its blocks for units.
    let rows = match parts {
        [only] => components[only.index].vertical,
        _ => 1,
    };
    for unit_y in 0..scan.units.1 {
        for unit_x in 0..scan.units.0 {
            if !coded.lost {
                last_good = Some(unit_y / rows);
            }
            if coded.left == 0 {
                coded.restart(parts);
                bits = Bits::new(&coded.clean);
                end_of_band = 0;
            }
            if !coded.lost {
                for part in parts.iter_mut() {
                    let component = &mut components[part.index];
                    let (h, v) = component.blocks_a_unit(scan.single());
                    for (y, x) in places(h, v) {
                        let block = component.block(unit_x * h + x, unit_y * v + y);
                        progressive_block(&mut bits, part, scan, &mut end_of_band, block);
                    }
                }
            }
            coded.left -= 1;
            coded.lost |= bits.overrun();
            coded.intact &= !coded.lost;
        }
    }
    last_good
}

/// Decodes every unit of a sequential scan to samples, as far as they are wanted.
#[inline(always)]
fn sequential_units<T: Transform>(
    transform: T,
    coded: &mut Coded<'_>,
    parts: &mut [Part<'_>],
    scan: &Scan,
    components: &mut [Component],
) -> Result<()> {
    let mut bits = Bits::new(&coded.clean);
    // Of one unit, with the position of the last coefficient of each.
    let mut blocks: [Block; MAX_BLOCKS] = [[0; 64]; MAX_BLOCKS];
    let mut lasts = [0_usize; MAX_BLOCKS];
    let mut slots = slots_of(parts, components, scan.single());
    for unit_y in 0..scan.units.1 {
        for slot in &mut slots {
            slot.enter(unit_y, &components[parts[slot.part].index]);
        }
        for unit_x in 0..scan.units.0 {
            if coded.left == 0 {
                coded.restart(parts);
                bits = Bits::new(&coded.clean);
            }
            // All blocks of the unit are decoded before any is transformed: a wide load directly after narrow stores stalls
            // (store forwarding fails).
            for (index, slot) in slots.iter().enumerate() {
                let part = &mut parts[slot.part];
                let wanted = slot.wanted.contains(&unit_x);
                if coded.lost {
                    blocks[index] = [0; 64];
                    lasts[index] = 0;
                } else if wanted || part.skip.is_none() {
                    blocks[index] = [0; 64];
                    let depth = part.depth;
                    lasts[index] = sequential_block(&mut bits, part, depth, &mut blocks[index])?;
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
            coded.left -= 1;
            coded.lost |= bits.overrun();
            coded.intact &= !coded.lost;
        }
    }
    Ok(())
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

/// Gives a part of a sequential scan, of at most `bytes` bytes, the larger tables that pay off for it.
fn set_tables<'t>(part: &mut Part<'t>, ac: Option<&'t Table>, component: &Component, bytes: usize) {
    let Some(ac) = ac else { return };
    if bytes >= PAIRED || ac.again() {
        part.pairs = Some(ac.pairs());
    }
    let (columns, rows) = &component.wanted;
    let all = component.blocks.0 * component.blocks.1;
    let skipped = if component.depth() < 63 {
        all
    } else {
        all.saturating_sub(columns.len() * rows.len())
    };
    if skipped >= SKIPPED || (skipped > 0 && ac.again()) {
        part.skip = Some(ac.skip());
        part.depth = component.depth();
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
                dc: dc_table.map(|table| &table.codes),
                ac: ac_table.map(|table| &table.codes),
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
            // A stuffed byte, or no marker at all: skipped.
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
