//! The segments of a JPEG file, one after the other: tables, metadata, the frame's and the scans' headers.

use std::rc::Rc;

use super::error::{bad, cut_short};
use super::frame::{Component, Frame, Known, SAVED};
use super::huffman::Table;
use super::idct::{Block, Transform};
use super::part::{Scan, NATURAL};
use super::scan::{decode_scan, Tables, MAX_BLOCKS};
use super::standard;
use crate::error::Result;
use crate::image::format::Choose;
use crate::image::{exif, Limits};
use crate::memory;

const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
/// Scans of a progressive file that are decoded; honest ones have about ten, and each costs time.
const MAX_SCANS: usize = 500;
/// Blocks that all scans together may visit: the limit of time, in work rather than in seconds, so that what becomes of
/// a file does not depend on the machine or on what else it does. About a second; the largest honest file that the
/// memory limit lets in (progressive, ten scans) takes two thirds of it.
const MAX_VISITS: usize = 1 << 25;
/// What was read of the file.
pub struct File<'a> {
    data: &'a [u8],
    at: usize,
    limits: &'a Limits,
    choose: Choose<'a>,
    pub frame: Option<Frame>,
    tables: Tables,
    quant: [Option<Box<Block>>; 4],
    pub scans: usize,
    /// Blocks that the scans so far have visited.
    visits: usize,
    /// Every sample of a sequential file was decoded from data that are there.
    pub whole: bool,
    pub jfif: bool,
    pub adobe: Option<u8>,
    exif_block: Vec<u8>,
    xmp_orientation: Option<u8>,
}

impl<'a> File<'a> {
    pub fn new(data: &'a [u8], limits: &'a Limits, choose: Choose<'a>) -> File<'a> {
        let tables = Tables {
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
        };
        File {
            data,
            at: 2,
            limits,
            choose,
            frame: None,
            tables,
            quant: [const { None }; 4],
            scans: 0,
            visits: 0,
            whole: false,
            jfif: false,
            adobe: None,
            exif_block: Vec::new(),
            xmp_orientation: None,
        }
    }

    /// The next marker with its segment, `None` at the end of the picture; junk between segments is skipped.
    pub fn next_segment(&mut self) -> Result<Option<(u8, &'a [u8])>> {
        loop {
            let skip = self
                .data
                .get(self.at..)
                .and_then(|rest| memchr::memchr(0xff, rest));
            self.at += skip.ok_or_else(cut_short)? + 1;
            let marker = *self.data.get(self.at).ok_or_else(cut_short)?;
            if matches!(marker, 0 | 0xff) {
                continue;
            }
            self.at += 1;
            match marker {
                EOI => return Ok(None),
                // Markers without a segment.
                0x01 | 0xd0..=0xd7 => continue,
                0xd8 => return Err(bad("damaged: a second picture begins within the first")),
                0x02..=0xbf | 0xf0..=0xfd => {
                    return Err(bad(format_args!("damaged: unknown marker {marker:02x}")))
                }
                _ => {}
            }
            let length = match self.data.get(self.at..self.at + 2) {
                Some(bytes) => usize::from(u16::from_be_bytes([bytes[0], bytes[1]])),
                None => return Err(cut_short()),
            };
            if length < 2 {
                return Err(bad(format_args!(
                    "damaged: a segment (marker {marker:02x}) declares a length of {length}"
                )));
            }
            let body = self
                .data
                .get(self.at + 2..self.at + length)
                .ok_or_else(cut_short)?;
            self.at += length;
            return Ok(Some((marker, body)));
        }
    }

    /// What the metadata read so far ask for.
    pub fn orientation(&self) -> u8 {
        exif::orientation(&self.exif_block)
            .or(self.xmp_orientation)
            .unwrap_or(1)
    }

    #[inline(always)]
    pub fn segment<T: Transform>(&mut self, transform: T, marker: u8, body: &[u8]) -> Result<()> {
        match marker {
            SOS => self.scan(transform, body)?,
            0xc0..=0xc2 if self.frame.is_some() => return Err(bad("damaged: declares two frames")),
            0xc0..=0xc2 => {
                self.frame = Some(Frame::read(marker, body, self.data.len(), self.limits)?)
            }
            0xc3 => return Err(bad("lossless JPEG is not supported")),
            0xc4 => self.huffman_tables(body, true)?,
            0xc5..=0xc7 => return Err(bad("hierarchical JPEG is not supported")),
            0xc8 => return Err(bad("damaged: unknown marker c8")),
            0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(bad(
                    "arithmetic coding is not supported; convert it without loss by `jpegtran -copy all IN > OUT`",
                ))
            },
            0xdb => self.quant_tables(body)?,
            0xdd => {
                let interval = body.get(..2).ok_or_else(cut_short)?;
                self.tables.restart_interval =
                    usize::from(u16::from_be_bytes([interval[0], interval[1]]));
            }
            0xe0 => self.jfif |= body.starts_with(b"JFIF\0"),
            0xe1 => {
                if let Some(block) = body.strip_prefix(b"Exif\0\0") {
                    memory::reserve(&mut self.exif_block, block.len())?;
                    self.exif_block.extend_from_slice(block);
                } else if let Some(packet) = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp_orientation = exif::xmp_orientation(packet);
                }
            }
            0xee if body.starts_with(b"Adobe") && body.len() >= 12 => self.adobe = Some(body[11]),
            _ => {}
        }
        Ok(())
    }

    /// Reads tables; those that are there already are left alone unless `replace`.
    fn huffman_tables(&mut self, mut body: &[u8], replace: bool) -> Result<()> {
        while let [head, counts @ ..] = body {
            let (counts, symbols) = counts.split_first_chunk::<16>().ok_or_else(cut_short)?;
            let (dc, number) = (head >> 4 == 0, usize::from(head & 15));
            if head >> 4 > 1 || number > 3 {
                return Err(bad(format_args!(
                    "damaged: Huffman table {head:02x} cannot be"
                )));
            }
            let table = Table::kept(counts, symbols, dc)?;
            body = &symbols[counts
                .iter()
                .map(|&count| usize::from(count))
                .sum::<usize>()..];
            let tables = if dc {
                &mut self.tables.dc
            } else {
                &mut self.tables.ac
            };
            if replace || tables[number].is_none() {
                tables[number] = Some(table);
            }
        }
        Ok(())
    }

    fn quant_tables(&mut self, mut body: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = body {
            let (wide, number) = (head >> 4 != 0, usize::from(head & 15));
            if number > 3 {
                return Err(bad(format_args!(
                    "damaged: quantisation table {head:02x} cannot be"
                )));
            }
            let size = if wide { 2 } else { 1 };
            let values = rest.get(..64 * size).ok_or_else(cut_short)?;
            let mut table: Box<Block> = Box::new([0; 64]);
            for (&natural, value) in NATURAL.iter().zip(values.chunks_exact(size)) {
                let value = value
                    .iter()
                    .fold(0_u16, |sum, &byte| sum << 8 | u16::from(byte));
                table[usize::from(natural)] = value as i16;
            }
            self.quant[number] = Some(table);
            body = &rest[64 * size..];
        }
        Ok(())
    }

    /// A scan's header, and the data after it.
    #[inline(always)]
    fn scan<T: Transform>(&mut self, transform: T, body: &[u8]) -> Result<()> {
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(bad(format_args!("has more than {MAX_SCANS} scans")));
        }
        let orientation = self.orientation();
        let frame = self
            .frame
            .as_mut()
            .ok_or_else(|| bad("damaged: a scan comes before the frame header"))?;
        if frame.wanted.is_none() {
            frame.allocate(self.choose, orientation)?;
        }
        let mut scan = read_scan(body, frame)?;
        for &(index, ..) in &scan.components {
            let component = &mut frame.components[index];
            start(component, &self.quant)?;
            note_precision(&mut component.known, &scan, self.scans == 1);
        }
        let blocks_of = |&(index, ..): &(usize, usize, usize)| {
            let component = &frame.components[index];
            component.horizontal * component.vertical
        };
        let mut blocks = scan.components.iter().map(blocks_of).sum();
        if !scan.single() && blocks > MAX_BLOCKS {
            return Err(bad(format_args!(
                "damaged: {blocks} blocks in a unit, more than {MAX_BLOCKS}"
            )));
        }
        let lacks = |tables: &[Option<Rc<Table>>; 4], number: usize| {
            tables.get(number).is_some_and(Option::is_none)
        };
        let entries = &scan.components;
        if entries
            .iter()
            .any(|&(_, dc, ac)| lacks(&self.tables.dc, dc) || lacks(&self.tables.ac, ac))
        {
            self.huffman_tables(&standard::HUFFMAN_TABLES, false)?;
        }
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        if let [(only, ..)] = scan.components[..] {
            let component = &frame.components[only];
            scan.units = (component.blocks_across, component.blocks_down);
            blocks = 1;
        }
        self.visits += scan.units.0 * scan.units.1 * blocks;
        if self.visits > MAX_VISITS {
            return Err(bad(format_args!(
                "takes too long to decode: its {} scans visit more than {MAX_VISITS} blocks",
                self.scans
            )));
        }
        let (at, intact) = decode_scan(transform, self.data, self.at, &scan, &self.tables, frame)?;
        self.at = at;
        self.whole = intact
            && !frame.progressive
            && frame.components.iter().all(|component| component.started);
        Ok(())
    }
}

/// A scan's header, with the units of the frame.
fn read_scan(body: &[u8], frame: &Frame) -> Result<Scan> {
    let count = usize::from(*body.first().ok_or_else(cut_short)?);
    if !(1..=4).contains(&count) || body.len() != 1 + 2 * count + 3 {
        return Err(bad(format_args!(
            "damaged: a scan declares {count} components in {} bytes",
            body.len()
        )));
    }
    let (entries, rest) = body[1..].split_at(2 * count);
    let mut scan = Scan {
        components: Vec::with_capacity(count),
        units: frame.units,
        band: (usize::from(rest[0]), usize::from(rest[1])),
        approximation: (u32::from(rest[2] >> 4), u32::from(rest[2] & 15)),
    };
    for entry in entries.chunks_exact(2) {
        let named = |component: &Component| component.id == entry[0];
        let index = frame.components.iter().position(named);
        let index = index.filter(|index| scan.components.iter().all(|&(seen, ..)| seen != *index));
        let index = index
            .ok_or_else(|| bad(format_args!("damaged: a scan names component {}", entry[0])))?;
        let (dc, ac) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
        scan.components.push((index, dc, ac));
    }
    Ok(scan)
}

/// Gives a component its quantisation table with its first scan.
fn start(component: &mut Component, tables: &[Option<Box<Block>>; 4]) -> Result<()> {
    if component.started {
        return Ok(());
    }
    let number = component.quant_table;
    let table = tables.get(number).and_then(Option::as_ref);
    let table = table.ok_or_else(|| {
        bad(format_args!(
            "damaged: quantisation table {number} is missing"
        ))
    })?;
    component.quant.copy_from_slice(&table[..]);
    component.started = true;
    Ok(())
}

/// Notes what a component's scan makes known of its first coefficients, and what was known before it.
fn note_precision([now, before]: &mut [Known; 2], scan: &Scan, first: bool) {
    let (begin, end) = scan.band;
    // libjpeg's way of counting: a first coefficient that does not come now stays as it was.
    let kept = begin.min(1);
    before[kept..].copy_from_slice(&now[kept..]);
    if first {
        before[kept..].fill(0);
    }
    if let Some(known) = now.get_mut(begin..SAVED.min(end + 1)) {
        known.fill(scan.approximation.1 as i32);
    }
}
