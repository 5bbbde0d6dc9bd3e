//! The first directory of a TIFF file: its numbers by tag. Entries whose data are not there are left out, as Pillow does.

use rustc_hash::FxHashMap;

use super::error::{bad, cut_short};
use crate::error::Result;
use crate::memory;

/// Where an entry's numbers stand.
struct Entry {
    /// Bytes of a number.
    unit: usize,
    count: usize,
    place: usize,
}

/// The numbers of a directory.
pub struct Directory<'a> {
    data: &'a [u8],
    pub big_endian: bool,
    entries: FxHashMap<u16, Entry>,
}

impl<'a> Directory<'a> {
    pub fn read(data: &'a [u8]) -> Result<Directory<'a>> {
        let big_endian = data.starts_with(b"MM");
        // BigTIFF has eight bytes for counts and places.
        let big = matches!(data.get(2..4), Some([0x2b, 0] | [0, 0x2b]));
        let mut directory = Directory {
            data,
            big_endian,
            entries: FxHashMap::default(),
        };
        let (wide, counted) = if big { (8, 8) } else { (4, 2) };
        let start = directory.number_at(if big { 8 } else { 4 }, wide);
        let start = start.ok_or_else(cut_short)? as usize;
        let count = directory.number_at(start, counted).ok_or_else(cut_short)? as usize;
        let length = 4 + 2 * wide;
        // No more than the file has room for.
        for index in 0..count.min(data.len() / length) {
            let at = start + counted + index * length;
            let (Some(tag), Some(kind), Some(count)) = (
                directory.number_at(at, 2),
                directory.number_at(at + 2, 2),
                directory.number_at(at + 4, wide),
            ) else {
                return Err(cut_short());
            };
            let unit: usize = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 13 => 4,
                16..=18 => 8,
                _ => continue,
            };
            let size = unit.saturating_mul(count as usize);
            let inside = at + 4 + wide;
            let place = match directory.number_at(inside, wide) {
                _ if size <= wide => inside,
                Some(place) => place as usize,
                None => continue,
            };
            let whole = place.checked_add(size).is_some_and(|end| end <= data.len());
            if whole && size > 0 {
                memory::reserve_map(&mut directory.entries, 1)?;
                let count = count as usize;
                directory
                    .entries
                    .entry(tag as u16)
                    .or_insert(Entry { unit, count, place });
            }
        }
        Ok(directory)
    }

    fn number_at(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.data.get(at..at.checked_add(size)?)?.iter();
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian {
            bytes.fold(0, add)
        } else {
            bytes.rev().fold(0, add)
        })
    }

    /// The first number of a tag.
    pub fn number(&self, tag: u16) -> Option<usize> {
        let entry = self.entries.get(&tag)?;
        self.number_at(entry.place, entry.unit)
            .map(|number| number as usize)
    }

    /// A number that there must be.
    pub fn needed(&self, tag: u16, name: &str) -> Result<usize> {
        self.number(tag)
            .ok_or_else(|| bad(format_args!("damaged: the {name} is missing")))
    }

    /// All numbers of a tag; none where it is missing.
    pub fn numbers(&self, tag: u16) -> Result<Vec<usize>> {
        let Some(entry) = self.entries.get(&tag) else {
            return Ok(Vec::new());
        };
        let number = |index| self.number_at(entry.place + index * entry.unit, entry.unit);
        memory::collect((0..entry.count).map(|index| number(index).unwrap_or(0) as usize))
    }

    /// The bytes of a tag.
    pub fn bytes(&self, tag: u16) -> &'a [u8] {
        let entry = self.entries.get(&tag);
        entry.map_or(&[], |entry| {
            &self.data[entry.place..entry.place + entry.count * entry.unit]
        })
    }
}
