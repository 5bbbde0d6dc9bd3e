//! JPEG, sequential and progressive, to the bit as libjpeg-turbo decodes it for Pillow.
//!
//! A decoder of our own, because the pixels must not depend on who decodes: crates that need no assembler to build differ
//! from libjpeg by up to 4 levels where colours are subsampled, garble valid files (grey with restart intervals), and
//! treat damage in ways of their own. Not decoded: arithmetic coding, lossless, hierarchical and 12-bit files. Known to
//! differ: where a progressive file ends before full precision, libjpeg smooths over the missing bits.

mod bits;
mod huffman;
mod idct;
#[cfg(target_arch = "x86_64")]
mod idct_v3;
mod pairs;
mod progressive;
mod render;
mod scan;
mod sequential;
mod skip;
mod standard;

use std::ops::Range;
use std::rc::Rc;

use huffman::Table;
use idct::{Block, Portable, Transform};
use scan::{Scan, Tables, NATURAL};

use super::format::{check_size, damaged, Choose, Stored, Wanted};
use super::{exif, pool, Limits};
use crate::error::{Error, Result};

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
    /// Samples a block has on a side of the result: 8, less where the picture is wanted smaller.
    side: usize,
    /// Samples that count.
    width: usize,
    height: usize,
    /// Blocks that hold them.
    blocks_across: usize,
    blocks_down: usize,
    /// Blocks in whole units.
    blocks: (usize, usize),
    /// The blocks whose samples are wanted, columns and rows.
    wanted: (Range<usize>, Range<usize>),
    /// Samples a row, in whole units.
    stride: usize,
    /// Samples; of blocks that are not wanted, whatever was there.
    plane: Vec<u8>,
    /// All coefficients of a progressive file, block by block, in whole units.
    coefficients: Vec<Block>,
}

impl Component {
    fn row(&self, y: usize) -> &[u8] {
        &self.plane[y * self.stride..(y + 1) * self.stride]
    }

    fn block(&mut self, x: usize, y: usize) -> &mut Block {
        &mut self.coefficients[y * self.blocks.0 + x]
    }

    /// Blocks across and down in a unit of a scan, which may be of this component alone.
    #[inline(always)]
    fn blocks_a_unit(&self, single: bool) -> (usize, usize) {
        if single {
            (1, 1)
        } else {
            (self.horizontal, self.vertical)
        }
    }

    /// Where the samples of a block begin.
    fn sample(&self, x: usize, y: usize) -> usize {
        (y * self.stride + x) * self.side
    }

    /// The last coefficient, in the order of the file, that the transform reads.
    fn depth(&self) -> usize {
        match self.side {
            1 => 0,
            2 => 4,
            4 => 24,
            _ => 63,
        }
    }

    /// Samples of a block, from `at` on. `flat`: only the first coefficient can be other than 0.
    #[inline(always)]
    fn put<T: Transform>(&mut self, transform: T, at: usize, block: &Block, flat: bool) {
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

    /// Samples of all blocks of a progressive file.
    #[inline(always)]
    fn put_all<T: Transform>(&mut self, transform: T) {
        let coefficients = std::mem::take(&mut self.coefficients);
        for (index, block) in coefficients.iter().enumerate() {
            let (x, y) = (index % self.blocks.0, index / self.blocks.0);
            if self.wanted.0.contains(&x) && self.wanted.1.contains(&y) {
                let any = block[1..].iter().fold(0, |any, value| any | value);
                self.put(transform, self.sample(x, y), block, any == 0);
            }
        }
    }

    /// Makes room for the samples, and for the coefficients where they are stored.
    fn allocate(&mut self, progressive: bool) {
        let samples = self.stride * self.blocks.1 * self.side;
        self.plane = pool::take(samples);
        if progressive {
            self.coefficients = vec![[0; 64]; self.blocks.0 * self.blocks.1];
        }
    }
}

struct Frame {
    progressive: bool,
    /// As declared.
    width: usize,
    height: usize,
    /// What of the picture is wanted; set with the first scan, when planes are allocated.
    wanted: Option<Wanted>,
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

/// The first picture of a JPEG (or MPO) file, as stored, of which only what `choose` wants must be there.
pub(super) fn decode(data: &[u8], limits: &Limits, choose: Choose<'_>) -> Result<Stored> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(Decode {
            simd,
            data,
            limits,
            choose,
        });
    }
    decode_inner(Portable, data, limits, choose)
}

/// A call of [`decode_inner`]; a closure would not be sure to be inlined where the instructions are allowed.
#[cfg(target_arch = "x86_64")]
struct Decode<'a> {
    simd: pulp::x86::V3,
    data: &'a [u8],
    limits: &'a Limits,
    choose: Choose<'a>,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Decode<'_> {
    type Output = Result<Stored>;

    #[inline(always)]
    fn call(self) -> Result<Stored> {
        decode_inner(self.simd, self.data, self.limits, self.choose)
    }
}

#[inline(always)]
fn decode_inner<T: Transform>(
    transform: T,
    data: &[u8],
    limits: &Limits,
    choose: Choose<'_>,
) -> Result<Stored> {
    let mut file = File::new(data, limits, choose);
    loop {
        match file.next_segment() {
            Ok(Some((marker, body))) => file.segment(transform, marker, body)?,
            Ok(None) => break,
            // The end marker is missing, but no sample is.
            Err(_) if file.whole => break,
            Err(error) => return Err(error),
        }
    }
    let orientation = file.orientation();
    let File {
        frame, jfif, adobe, ..
    } = file;
    let nothing = || bad("ends before any picture data");
    let mut frame = frame.ok_or_else(nothing)?;
    let wanted = frame.wanted.ok_or_else(nothing)?;
    if orientation != 1 && wanted.area.is_some() {
        // The orientation came after the picture: what was left out may be what is wanted.
        return decode_inner_whole(data, limits);
    }
    let colors = colors_of(&frame.components, jfif, adobe);
    for component in &mut frame.components {
        if !component.started {
            component.plane.fill(128);
        } else if frame.progressive {
            component.put_all(transform);
        }
    }
    let size = wanted.size_of(frame.width, frame.height);
    let image = render::render(&frame.components, colors, size, wanted)?;
    for component in frame.components {
        pool::give(component.plane);
    }
    Ok(Stored {
        image,
        orientation,
        eighths: wanted.eighths,
    })
}

/// The rare case apart, so that the usual one is compiled once.
#[cold]
#[inline(never)]
fn decode_inner_whole(data: &[u8], limits: &Limits) -> Result<Stored> {
    decode(data, limits, &|_, _| Wanted::ALL)
}

/// What was read of the file.
struct File<'a> {
    data: &'a [u8],
    at: usize,
    limits: &'a Limits,
    choose: Choose<'a>,
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
    fn new(data: &'a [u8], limits: &'a Limits, choose: Choose<'a>) -> File<'a> {
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

    /// What the metadata read so far ask for.
    fn orientation(&self) -> u8 {
        exif::orientation(&self.exif_block)
            .or(self.xmp_orientation)
            .unwrap_or(1)
    }

    #[inline(always)]
    fn segment<T: Transform>(&mut self, transform: T, marker: u8, body: &[u8]) -> Result<()> {
        match marker {
            SOS => self.scan(transform, body)?,
            0xc0..=0xc2 if self.frame.is_some() => return Err(bad("damaged: declares two frames")),
            0xc0..=0xc2 => {
                self.frame = Some(read_frame(marker, body, self.data.len(), self.limits)?)
            }
            0xc3 => return Err(bad("lossless JPEG is not supported")),
            0xc4 => self.huffman_tables(body, true)?,
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
            frame.allocate(self.choose, orientation);
        }
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
        let Some(Frame {
            components,
            progressive,
            units,
            ..
        }) = &mut self.frame
        else {
            return Ok(());
        };
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
            transform,
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
        });
    Ok(Frame {
        progressive,
        width,
        height,
        wanted: None,
        units,
        components: components.collect(),
    })
}

impl Frame {
    /// Asks what of the picture is wanted, and makes room for it.
    fn allocate(&mut self, choose: Choose<'_>, orientation: u8) {
        let (width, height) = (self.width, self.height);
        let mut wanted = if orientation < 5 {
            choose(width, height)
        } else {
            choose(height, width)
        };
        if orientation != 1 {
            wanted.area = None;
            // A last pixel that covers less than a whole one would come to lie first, and shift the others.
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
            // Where colours have fewer samples, they need not be made smaller as much (libjpeg's rule).
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
                // With a sample more on each side where they are interpolated.
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
            component.allocate(self.progressive);
        }
        self.wanted = Some(wanted);
    }
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
