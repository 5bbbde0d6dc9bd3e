//! Blocks of progressive scans: a band of coefficients at a time, a bit at a time, into stored blocks.

use super::bits::Bits;
use super::idct::Block;
use super::part::{Part, Scan, NATURAL};

/// One block of a scan.
pub fn progressive_block(
    bits: &mut Bits<'_>,
    part: &mut Part<'_>,
    scan: &Scan,
    end_of_band: &mut u32,
    block: &mut Block,
) {
    let (high, low) = scan.approximation;
    match (scan.band.0, high) {
        (0, 0) => {
            let Some(dc) = part.dc else { return };
            bits.refill();
            let size = u32::from(dc.symbol(bits));
            part.prediction = part.prediction.wrapping_add(bits.take_signed(size));
            block[0] = (part.prediction << low) as i16;
        }
        (0, _) => {
            bits.refill();
            if bits.take(1) != 0 {
                block[0] |= 1 << low;
            }
        }
        (_, 0) => first_pass(bits, part, scan, end_of_band, block),
        _ => refinement(bits, part, scan, end_of_band, block),
    }
}

fn first_pass(
    bits: &mut Bits<'_>,
    part: &Part<'_>,
    scan: &Scan,
    end_of_band: &mut u32,
    block: &mut Block,
) {
    let Some(ac) = part.ac else { return };
    if *end_of_band > 0 {
        *end_of_band -= 1;
        return;
    }
    let (mut k, last) = scan.band;
    while k <= last {
        bits.refill();
        let symbol = ac.symbol(bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            k += run;
            let value = bits.take_signed(size);
            block[usize::from(NATURAL[k & 127] & 63)] = (value << scan.approximation.1) as i16;
        } else if run == 15 {
            k += 15;
        } else {
            *end_of_band = (1 << run) - 1 + bits.take(run as u32) as u32;
            break;
        }
        k += 1;
    }
}

fn refinement(
    bits: &mut Bits<'_>,
    part: &Part<'_>,
    scan: &Scan,
    end_of_band: &mut u32,
    block: &mut Block,
) {
    let Some(ac) = part.ac else { return };
    let one = 1_i16 << scan.approximation.1;
    let (mut k, last) = scan.band;
    // A correction bit for a coefficient that is not 0 already.
    let correct = |bits: &mut Bits<'_>, coefficient: &mut i16| {
        bits.refill();
        if bits.take(1) != 0 && *coefficient & one == 0 {
            *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
        }
    };
    if *end_of_band == 0 {
        while k <= last {
            bits.refill();
            let symbol = ac.symbol(bits);
            let (mut run, size) = (i32::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            if size > 0 {
                // The size should be 1; libjpeg warns of others and goes on likewise.
                new = if bits.take(1) != 0 { one } else { -one };
            } else if run != 15 {
                *end_of_band = (1 << run) + bits.take(run as u32) as u32;
                break;
            }
            // Over `run` coefficients that are still 0, correcting those that are not.
            while k <= last {
                let coefficient = &mut block[usize::from(NATURAL[k & 127] & 63)];
                if *coefficient != 0 {
                    correct(bits, coefficient);
                } else {
                    run -= 1;
                    if run < 0 {
                        break;
                    }
                }
                k += 1;
            }
            if new != 0 {
                block[usize::from(NATURAL[k & 127] & 63)] = new;
            }
            k += 1;
        }
    }
    if *end_of_band > 0 {
        while k <= last {
            let coefficient = &mut block[usize::from(NATURAL[k & 127] & 63)];
            if *coefficient != 0 {
                correct(bits, coefficient);
            }
            k += 1;
        }
        *end_of_band -= 1;
    }
}
