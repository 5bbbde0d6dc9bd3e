//! The packed data of a strip or tile to its samples, by the libraries that have the codings.

use flate2::{Decompress, FlushDecompress};
use weezl::{decode::Decoder, BitOrder};

use super::error::{bad, cut_short, SAVE_AGAIN};
use super::fax::{self, Coding};
use crate::error::Result;
use crate::memory;

/// How strips and tiles are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    None,
    PackBits,
    Lzw,
    Deflate,
    Fax(Coding),
    /// JPEG pictures, whose tables may stand apart.
    Jpeg,
}

impl Packing {
    /// Of a compression's number, with the options of fax group 3.
    pub fn of(compression: usize, fax_options: usize) -> Result<Packing> {
        let other = match compression {
            1 => return Ok(Packing::None),
            2 => return Ok(Packing::Fax(Coding::Runs)),
            3 if fax_options & 1 == 1 => return Ok(Packing::Fax(Coding::Group3Both)),
            3 => return Ok(Packing::Fax(Coding::Group3)),
            4 => return Ok(Packing::Fax(Coding::Group4)),
            5 => return Ok(Packing::Lzw),
            7 => return Ok(Packing::Jpeg),
            8 | 32946 => return Ok(Packing::Deflate),
            32773 => return Ok(Packing::PackBits),
            6 => "old-style JPEG",
            34925 => "LZMA",
            34712 => "JPEG 2000",
            34892 => "lossy JPEG of a camera's raw file",
            50000 => "Zstandard",
            50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            _ => "",
        };
        let other = match other {
            "" => format!("number {compression}"),
            name => name.into(),
        };
        Err(bad(format_args!(
            "its compression ({other}) is not supported; {}",
            SAVE_AGAIN
        )))
    }
}

/// Unpacks into `out`, which is all 0 and has rows of `stride` bytes and `width` bits in fax codes. More data than fit are left.
pub fn unpack(
    packing: Packing,
    data: &[u8],
    width: usize,
    stride: usize,
    out: &mut [u8],
) -> Result<()> {
    match packing {
        Packing::None => {
            let data = data.get(..out.len()).ok_or_else(cut_short)?;
            out.copy_from_slice(data);
            Ok(())
        }
        Packing::PackBits => pack_bits(data, out),
        Packing::Lzw => lzw(data, out),
        Packing::Deflate => deflate(data, out),
        Packing::Fax(coding) => fax::decode(data, coding, width, stride, out),
        Packing::Jpeg => Err(bad("JPEG in separate planes is not supported")),
    }
}

fn pack_bits(mut data: &[u8], mut out: &mut [u8]) -> Result<()> {
    while !out.is_empty() {
        let (&count, rest) = data.split_first().ok_or_else(cut_short)?;
        data = rest;
        let count = usize::from(count);
        let (size, stored) = match count {
            128 => continue,
            0..128 => (count + 1, count + 1),
            _ => (257 - count, 1),
        };
        let run = data.get(..stored).ok_or_else(cut_short)?;
        data = &data[stored..];
        let (here, rest) = out.split_at_mut(size.min(out.len()));
        match run {
            [value] => here.fill(*value),
            run => here.copy_from_slice(&run[..here.len()]),
        }
        out = rest;
    }
    Ok(())
}

fn lzw(data: &[u8], mut out: &mut [u8]) -> Result<()> {
    if let [0, second, ..] = data {
        if second & 1 == 1 {
            return Err(bad(format_args!(
                "its old-style LZW compression is not supported; {}",
                SAVE_AGAIN
            )));
        }
    }
    let mut decoder = Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let mut data = data;
    while !out.is_empty() {
        let done = decoder.decode_bytes(data, out);
        let unread = &data[done.consumed_in..];
        if done.status.is_err() {
            return Err(bad("damaged: the compressed data cannot be unpacked"));
        }
        if done.consumed_out == 0 && done.consumed_in == 0 {
            return Err(cut_short());
        }
        (data, out) = (unread, &mut out[done.consumed_out..]);
    }
    Ok(())
}

fn deflate(data: &[u8], out: &mut [u8]) -> Result<()> {
    let mut decoder = Decompress::new(true);
    let (mut read, mut written) = (0, 0);
    while written < out.len() {
        let status = decoder.decompress(&data[read..], &mut out[written..], FlushDecompress::None);
        status.map_err(|_| bad("damaged: the compressed data cannot be unpacked"))?;
        let (before_read, before_written) = (read, written);
        (read, written) = (decoder.total_in() as usize, decoder.total_out() as usize);
        if (read, written) == (before_read, before_written) {
            return Err(cut_short());
        }
    }
    Ok(())
}

/// Turns around the bits of every byte, for files that store them so.
pub fn reversed(data: &[u8]) -> Result<Vec<u8>> {
    memory::collect(data.iter().map(|byte| byte.reverse_bits()))
}

/// Undoes the horizontal predictor: every sample was stored as the difference from the one `step` samples before it.
pub fn sum_up(row: &mut [u8], bits: usize, big_endian: bool, step: usize) -> Result<()> {
    match bits {
        8 => {
            for at in step..row.len() {
                row[at] = row[at].wrapping_add(row[at - step]);
            }
        }
        16 => {
            let read = |pair: &[u8]| {
                let pair = [pair[0], pair[1]];
                if big_endian {
                    u16::from_be_bytes(pair)
                } else {
                    u16::from_le_bytes(pair)
                }
            };
            for at in (2 * step..row.len() / 2 * 2).step_by(2) {
                let sum = read(&row[at..]).wrapping_add(read(&row[at - 2 * step..]));
                let bytes = if big_endian {
                    sum.to_be_bytes()
                } else {
                    sum.to_le_bytes()
                };
                row[at..at + 2].copy_from_slice(&bytes);
            }
        }
        _ => {
            return Err(bad(format_args!(
                "the predictor at {bits} bits a sample is not supported"
            )))
        }
    }
    Ok(())
}
