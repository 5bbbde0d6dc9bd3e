//! Blocks of sequential scans: coefficients are decoded up to the last one needed, the others are skipped.

use super::bits::Bits;
use super::error::bad;
use super::idct::Block;
use super::part::{Part, NATURAL};
use crate::error::Result;

/// Decodes a block up to coefficient `depth` (in the order of the file) and skips the others, whose values are undefined;
/// returns the position of the block's last coefficient.
#[inline(always)]
pub fn sequential_block(
    shared: &mut Bits<'_>,
    part: &mut Part<'_>,
    depth: usize,
    block: &mut Block,
) -> Result<usize> {
    let Some(ac) = part.ac else { return Ok(0) };
    // A copy that lives in registers.
    let mut bits = *shared;
    block[0] = first(&mut bits, part)?;
    let mut last = 0;
    'block: while last < depth {
        bits.refill();
        if let Some(pairs) = part.pairs {
            // A lookup takes at most 12 bits: one refill is enough for four.
            let (pair, first) = 'quick: loop {
                for _ in 0..2 {
                    for _ in 0..2 {
                        let pair = pairs.look(&bits);
                        let (first, next) = (last + pair.step(), last + pair.steps());
                        if next >= 63 {
                            break 'quick (pair, first);
                        }
                        // The second value first: a missing one has the place of the first, which overwrites it.
                        block[usize::from(NATURAL[next & 127] & 63)] = pair.second();
                        block[usize::from(NATURAL[first & 127] & 63)] = pair.first();
                        bits.skip(pair.total());
                        last = next;
                    }
                    if last >= depth {
                        break 'block;
                    }
                }
                bits.refill();
            };
            if pair.ends() && first < 63 {
                // No branch on whether there is a coefficient: it would often be mispredicted.
                let place = &mut block[usize::from(NATURAL[first & 127] & 63)];
                *place = if first > last { pair.first() } else { *place };
                bits.skip(pair.total());
                *shared = bits;
                return Ok(first);
            }
            bits.refill();
        }
        // One code: it is long, has a large value, or is near the block's end, which may come before the pair's.
        // Without pairs, two codes: after one of at most 25 bits the window still holds a code and its value.
        for _ in 0..2 {
            let entry = ac.find(&bits);
            let value = bits.take_value(entry.total(), entry.size());
            if entry.ends() {
                *shared = bits;
                return Ok(last);
            }
            last += entry.step();
            // Sixteen zeros that lead past the end leave the last coefficient alone.
            if entry.size() > 0 {
                block[usize::from(NATURAL[last & 127] & 63)] = value as i16;
            }
            if part.pairs.is_some() || last >= depth || entry.total() > 25 {
                break;
            }
        }
    }
    if last < 63 {
        last = pass_over(&mut bits, part, last);
    }
    *shared = bits;
    Ok(last)
}

/// Skips a whole block: its first coefficient alone is decoded, because the next block's is coded as a difference to it.
#[inline(always)]
pub fn skipped_block(shared: &mut Bits<'_>, part: &mut Part<'_>) -> Result<()> {
    let mut bits = *shared;
    first(&mut bits, part)?;
    pass_over(&mut bits, part, 0);
    *shared = bits;
    Ok(())
}

/// The first coefficient of a block.
#[inline(always)]
fn first(bits: &mut Bits<'_>, part: &mut Part<'_>) -> Result<i16> {
    let Some(dc) = part.dc else { return Ok(0) };
    bits.refill();
    let entry = dc.find(bits);
    part.prediction += bits.take_value(entry.total(), entry.size());
    if part.prediction != i32::from(part.prediction as i16) {
        return Err(bad("damaged: a first coefficient is out of range"));
    }
    Ok(part.prediction as i16)
}

/// Skips the rest of a block whose coefficients up to `last`, below 63, are decoded; returns the position of the last one.
#[inline(always)]
fn pass_over(bits: &mut Bits<'_>, part: &Part<'_>, mut last: usize) -> usize {
    let (Some(ac), Some(skip)) = (part.ac, part.skip) else {
        return last;
    };
    loop {
        bits.refill();
        // A lookup takes at most 27 bits: one refill is enough for two.
        for _ in 0..2 {
            let run = skip.look(bits);
            let next = last + run.steps();
            if next < 63 {
                bits.skip(run.total());
                last = next;
                continue;
            }
            if let Some(end) = run.end(next) {
                bits.skip(run.total());
                return end;
            }
            // One code: it is long, or near the block's end, which may come before the run's.
            bits.refill();
            let entry = ac.find(bits);
            bits.skip(entry.total());
            if entry.ends() {
                return last;
            }
            last += entry.step();
            if last >= 63 {
                return last;
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::augment::mix;
    use crate::image::jpeg::huffman::Table;
    use std::rc::Rc;

    /// Tables whose codes are of every length, with every symbol that makes a difference.
    fn tables(seed: u64) -> (Rc<Table>, Rc<Table>) {
        let dc = Table::kept(
            &[0, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8],
            true,
        );
        // Every length has codes to spare for the longer ones; the last has as many as are left.
        let counts = match seed % 3 {
            0 => [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
            1 => [1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2],
            _ => [0, 0, 5, 1, 3, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 30],
        };
        let symbols: Vec<u8> = (0..256)
            .map(|k| match (mix(seed ^ k << 9) % 9, mix(seed * 999 + k)) {
                (0, _) => 0x00,
                (1, _) => 0xf0,
                (2, draw) => (draw % 256) as u8,
                (_, draw) => (((draw % 3) << 4) + 1 + draw / 64 % 4) as u8,
            })
            .collect();
        (dc.unwrap(), Table::kept(&counts, &symbols, false).unwrap())
    }

    /// A block, one code after another.
    fn slow_block(bits: &mut Bits<'_>, part: &mut Part<'_>, block: &mut Block) -> usize {
        block[0] = first(bits, part).unwrap();
        let mut last = 0;
        while last < 63 {
            bits.refill();
            let symbol = part.ac.unwrap().symbol(bits);
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run != 15 {
                break;
            }
            last += run + 1;
            let value = bits.take_signed(size);
            if size > 0 {
                block[usize::from(NATURAL[last & 127] & 63)] = value as i16;
            }
        }
        last
    }

    #[test]
    fn pairs_and_runs_take_the_bits_that_single_codes_take() {
        for seed in 0..60 {
            let (dc, ac) = tables(seed);
            let mut data: Vec<u8> = (0..3000).map(|k| mix(seed << 32 | k) as u8).collect();
            data.extend([0; 8]);
            let plain = Part {
                index: 0,
                dc: Some(&dc.codes),
                ac: Some(&ac.codes),
                pairs: Some(ac.pairs()),
                skip: None,
                depth: 63,
                prediction: 0,
            };
            for depth in [0, 1, 4, 24, 62, 63, 63] {
                let (mut whole, mut part) = (Bits::new(&data), Bits::new(&data));
                let mut slow = Part { ..plain };
                let mut quick = Part {
                    pairs: (seed % 4 > 0).then(|| ac.pairs()),
                    skip: Some(ac.skip()),
                    depth,
                    ..plain
                };
                for number in 0.. {
                    slow.prediction = 0;
                    quick.prediction = 0;
                    let (mut all, mut some) = ([0; 64], [0; 64]);
                    let last = slow_block(&mut whole, &mut slow, &mut all);
                    if number % 3 == 2 {
                        skipped_block(&mut part, &mut quick).unwrap();
                    } else {
                        assert_eq!(
                            sequential_block(&mut part, &mut quick, depth, &mut some).unwrap(),
                            last
                        );
                        for &k in &NATURAL[..=depth] {
                            assert_eq!(some[usize::from(k)], all[usize::from(k)]);
                        }
                    }
                    assert_eq!(
                        quick.prediction, slow.prediction,
                        "seed {seed}, depth {depth}, block {number}"
                    );
                    assert_eq!(part.overrun(), whole.overrun());
                    if whole.overrun() {
                        break;
                    }
                }
            }
        }
    }
}
