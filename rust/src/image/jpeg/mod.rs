//! JPEG, sequential and progressive, to the bit as libjpeg-turbo decodes it for Pillow.
//!
//! A decoder of our own, because the pixels must not depend on who decodes: crates that need no assembler to build differ
//! from libjpeg by up to 4 levels where colours are subsampled, garble valid files (grey with restart intervals), and
//! treat damage in ways of their own. Not decoded: arithmetic coding, lossless, hierarchical and 12-bit files. Known to
//! differ: where a progressive file ends before full precision, libjpeg smooths over the missing bits.

mod bits;
mod huffman;
mod idct;
mod render;
mod scan;
mod standard;

use huffman::Table;
use idct::Block;
use scan::{Scan, Tables, NATURAL};

use super::decode::{check_size, damaged, Stored};
use super::{exif, Limits};
use crate::error::{Error, Result};
use crate::simd::vectorize;

const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
/// libjpeg's largest side.
const MAX_SIDE: usize = 65_500;
/// Scans of a progressive file that are decoded; honest ones have about ten, and each costs time.
const MAX_SCANS: usize = 500;
/// Blocks that all scans together may visit: the limit of time, in work rather than in seconds, so that what becomes of
/// a file does not depend on the machine or on what else it does. About a second; the largest honest file that the
/// memory limit lets in (progressive, ten scans) takes two thirds of it.
const MAX_VISITS: usize = 1 << 25;
/// libjpeg's largest number of blocks in an interleaved unit.
const MAX_BLOCKS: usize = 10;

/// The colour space of the stored samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// One colour component of the frame.
struct Component {
    id: u8,
    /// Sampling factors.
    horizontal: usize,
    vertical: usize,
    quant_table: usize,
    /// The quantisation table that its first scan found, in natural order.
    quant: Box<Block>,
    started: bool,
    /// Samples that count.
    width: usize,
    height: usize,
    /// Blocks that hold them.
    blocks_across: usize,
    blocks_down: usize,
    /// Samples, in whole units.
    stride: usize,
    plane: Vec<u8>,
    /// Coefficients, block by block, in whole units: of all a progressive file, of one row of units of a sequential one.
    coefficients: Vec<Block>,
}

impl Component {
    fn row(&self, y: usize) -> &[u8] {
        &self.plane[y * self.stride..(y + 1) * self.stride]
    }

    fn block(&mut self, x: usize, y: usize) -> &mut Block {
        &mut self.coefficients[y * (self.stride / 8) + x]
    }

    /// Samples of `rows` rows of blocks from the stored coefficients, which begin at row `first`.
    #[inline(always)]
    fn transform(&mut self, first: usize, rows: usize) {
        let Component {
            coefficients,
            plane,
            quant,
            stride,
            ..
        } = self;
        let blocks = coefficients.chunks_exact(*stride / 8);
        let planes = plane.chunks_exact_mut(*stride * 8).skip(first).take(rows);
        for (row, plane) in blocks.zip(planes) {
            for (x, block) in row.iter().enumerate() {
                let out = &mut plane[x * 8..];
                if block[1..]
                    .iter()
                    .fold(0, |any, &coefficient| any | coefficient)
                    == 0
                {
                    idct::idct_flat(block[0], quant[0], out, *stride);
                } else {
                    idct::idct(block, quant, out, *stride);
                }
            }
        }
    }
}

struct Frame {
    progressive: bool,
    width: usize,
    height: usize,
    /// Interleaved units across and down.
    units: (usize, usize),
    components: Vec<Component>,
}

fn bad(what: impl std::fmt::Display) -> Error {
    damaged("JPEG", what)
}

fn cut_short() -> Error {
    bad("the file is cut short: it ends before the picture does")
}

/// The first picture of a JPEG (or MPO) file, as stored.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Stored> {
    vectorize(
        #[inline(always)]
        || decode_inner(data, limits),
    )
}

#[inline(always)]
fn decode_inner(data: &[u8], limits: &Limits) -> Result<Stored> {
    let mut file = File::new(data, limits);
    file.huffman_tables(&standard::HUFFMAN_TABLES)?;
    loop {
        match file.next_segment() {
            Ok(Some((marker, body))) => file.segment(marker, body)?,
            Ok(None) => break,
            // The end marker is missing, but no sample is.
            Err(_) if file.whole => break,
            Err(error) => return Err(error),
        }
    }
    let File {
        frame,
        xmp_orientation,
        exif_block,
        jfif,
        adobe,
        ..
    } = file;
    let mut frame = frame.ok_or_else(|| bad("ends before any picture data"))?;
    if !frame.components.iter().any(|component| component.started) {
        return Err(bad("ends before any picture data"));
    }
    let colors = colors_of(&frame.components, jfif, adobe);
    if frame.progressive {
        for component in &mut frame.components {
            component.transform(0, component.plane.len() / component.stride / 8);
        }
    }
    let image = render::render(&frame.components, colors, frame.width, frame.height)?;
    let orientation = exif::orientation(&exif_block)
        .or(xmp_orientation)
        .unwrap_or(1);
    Ok(Stored { image, orientation })
}

/// What was read of the file.
struct File<'a> {
    data: &'a [u8],
    at: usize,
    limits: &'a Limits,
    frame: Option<Frame>,
    tables: Tables,
    quant: [Option<Box<Block>>; 4],
    scans: usize,
    /// Blocks that the scans so far have visited.
    visits: usize,
    /// Every sample of a sequential file was decoded from data that are there.
    whole: bool,
    jfif: bool,
    adobe: Option<u8>,
    exif_block: Vec<u8>,
    xmp_orientation: Option<u8>,
}

impl<'a> File<'a> {
    fn new(data: &'a [u8], limits: &'a Limits) -> File<'a> {
        let tables = Tables {
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
        };
        File {
            data,
            at: 2,
            limits,
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

    /// The next marker with its segment, `None` at the end of the picture; junk between segments is passed over.
    fn next_segment(&mut self) -> Result<Option<(u8, &'a [u8])>> {
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

    #[inline(always)]
    fn segment(&mut self, marker: u8, body: &[u8]) -> Result<()> {
        match marker {
            SOS => self.scan(body)?,
            0xc0..=0xc2 if self.frame.is_some() => return Err(bad("damaged: declares two frames")),
            0xc0..=0xc2 => {
                self.frame = Some(read_frame(marker, body, self.data.len(), self.limits)?)
            }
            0xc3 => return Err(bad("lossless JPEG is not supported")),
            0xc4 => self.huffman_tables(body)?,
            0xc5..=0xc7 => return Err(bad("hierarchical JPEG is not supported")),
            0xc8 => return Err(bad("damaged: unknown marker c8")),
            0xc9..=0xcb | 0xcd..=0xcf => return Err(bad("arithmetic coding is not supported")),
            0xdb => self.quant_tables(body)?,
            0xdd => {
                let interval = body.get(..2).ok_or_else(cut_short)?;
                self.tables.restart_interval =
                    usize::from(u16::from_be_bytes([interval[0], interval[1]]));
            }
            0xe0 => self.jfif |= body.starts_with(b"JFIF\0"),
            0xe1 => {
                if let Some(block) = body.strip_prefix(b"Exif\0\0") {
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

    fn huffman_tables(&mut self, mut body: &[u8]) -> Result<()> {
        while let [head, counts @ ..] = body {
            let (counts, symbols) = counts.split_first_chunk::<16>().ok_or_else(cut_short)?;
            let (dc, number) = (head >> 4 == 0, usize::from(head & 15));
            if head >> 4 > 1 || number > 3 {
                return Err(bad(format_args!(
                    "damaged: Huffman table {head:02x} cannot be"
                )));
            }
            let table = Table::new(counts, symbols, dc)?;
            body = &symbols[counts
                .iter()
                .map(|&count| usize::from(count))
                .sum::<usize>()..];
            if dc {
                self.tables.dc[number] = Some(table);
            } else {
                self.tables.ac[number] = Some(table);
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
    fn scan(&mut self, body: &[u8]) -> Result<()> {
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(bad(format_args!("has more than {MAX_SCANS} scans")));
        }
        let frame = self
            .frame
            .as_mut()
            .ok_or_else(|| bad("damaged: a scan comes before the frame header"))?;
        let count = usize::from(*body.first().ok_or_else(cut_short)?);
        if !(1..=4).contains(&count) || body.len() != 1 + 2 * count + 3 {
            return Err(bad(format_args!(
                "damaged: a scan declares {count} components in {} bytes",
                body.len()
            )));
        }
        let mut scan = Scan {
            components: Vec::with_capacity(count),
            band: (
                usize::from(body[1 + 2 * count]),
                usize::from(body[2 + 2 * count]),
            ),
            approximation: (
                u32::from(body[3 + 2 * count] >> 4),
                u32::from(body[3 + 2 * count] & 15),
            ),
        };
        let mut blocks = 0;
        for entry in body[1..=2 * count].chunks_exact(2) {
            let index = frame
                .components
                .iter()
                .position(|component| component.id == entry[0]);
            let index =
                index.filter(|index| scan.components.iter().all(|&(seen, ..)| seen != *index));
            let index = index
                .ok_or_else(|| bad(format_args!("damaged: a scan names component {}", entry[0])))?;
            scan.components.push((
                index,
                usize::from(entry[1] >> 4),
                usize::from(entry[1] & 15),
            ));
            let component = &mut frame.components[index];
            blocks += component.horizontal * component.vertical;
            if !component.started {
                let table = self
                    .quant
                    .get(component.quant_table)
                    .and_then(Option::as_ref);
                let number = component.quant_table;
                let table = table.ok_or_else(|| {
                    bad(format_args!(
                        "damaged: quantisation table {number} is missing"
                    ))
                })?;
                component.quant.copy_from_slice(&table[..]);
                component.started = true;
            }
        }
        if count > 1 && blocks > MAX_BLOCKS {
            return Err(bad(format_args!(
                "damaged: {blocks} blocks in a unit, more than {MAX_BLOCKS}"
            )));
        }
        let Frame {
            components,
            progressive,
            units,
            ..
        } = frame;
        self.visits += match scan.components[..] {
            [(only, ..)] => components[only].blocks_across * components[only].blocks_down,
            _ => units.0 * units.1 * blocks,
        };
        if self.visits > MAX_VISITS {
            return Err(bad(format_args!(
                "takes too long to decode: its {} scans visit more than {MAX_VISITS} blocks",
                self.scans
            )));
        }
        let (at, intact) = scan::decode_scan(
            self.data,
            self.at,
            &scan,
            &self.tables,
            components,
            *progressive,
            *units,
        )?;
        self.at = at;
        self.whole =
            intact && !*progressive && components.iter().all(|component| component.started);
        Ok(())
    }
}

fn read_frame(marker: u8, body: &[u8], length: usize, limits: &Limits) -> Result<Frame> {
    let [precision, height_high, height_low, width_high, width_low, count, rest @ ..] = body else {
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
    let components = rest.chunks_exact(3).zip(factors).map(|(entry, (h, v))| {
        let (own_width, own_height) = ((width * h).div_ceil(h_max), (height * v).div_ceil(v_max));
        let (stride, rows) = (units.0 * h * 8, units.1 * v * 8);
        Component {
            id: entry[0],
            horizontal: h,
            vertical: v,
            quant_table: usize::from(entry[2]),
            quant: Box::new([0; 64]),
            started: false,
            width: own_width,
            height: own_height,
            blocks_across: own_width.div_ceil(8),
            blocks_down: own_height.div_ceil(8),
            stride,
            plane: vec![128; stride * rows],
            coefficients: vec![[0; 64]; stride / 8 * if progressive { rows / 8 } else { v }],
        }
    });
    Ok(Frame {
        progressive,
        width,
        height,
        units,
        components: components.collect(),
    })
}

/// libjpeg's rules: JFIF means YCbCr, Adobe's marker says which, else the component numbers may spell it.
fn colors_of(components: &[Component], jfif: bool, adobe: Option<u8>) -> Colors {
    let spelled = components.iter().map(|component| component.id).eq(*b"RGB");
    match (components.len(), adobe) {
        (1, _) => Colors::Grey,
        (3, _) if jfif => Colors::YCbCr,
        (3, Some(0)) => Colors::Rgb,
        (3, None) if spelled => Colors::Rgb,
        (3, _) => Colors::YCbCr,
        (_, None | Some(0)) => Colors::Cmyk,
        _ => Colors::Ycck,
    }
}
