//! Huffman codes, one at a time: a lookup by ten bits decodes most codes and gives the length of code and value together.

use super::bits::Bits;
use super::error::bad;
use crate::error::Result;

/// Bits of a lookup. Small tables stay in the first-level cache, four of them beside the blocks.
const LOOK: u32 = 10;

/// A table for decoding one code.
pub struct Codes {
    look: Box<[u32; 1 << LOOK]>,
    /// First code of more than each length, aligned to 16 bits; `u32::MAX` after the last length.
    limit: [u32; 18],
    /// From code to position in `symbols`.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// Entry of a lookup: bits 0 to 5 the length of code and value, bits 8 to 11 that of the value, bits 16 to 20 the run of
/// zeros and the coefficient after them; all 0 for a code longer than [`LOOK`].
#[derive(Clone, Copy)]
pub struct Entry(u32);

impl Entry {
    fn new(length: u32, symbol: u8) -> Entry {
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        Entry((length + size) | size << 8 | (run + 1) << 16)
    }

    /// Bits of code and value.
    #[inline(always)]
    pub fn total(self) -> u32 {
        self.0 & 63
    }

    /// Bits of the value.
    #[inline(always)]
    pub fn size(self) -> u32 {
        self.0 >> 8 & 15
    }

    /// Whether a code of an AC table ends the block: those without a value do, but for the one of sixteen zeros.
    #[inline(always)]
    pub fn ends(self) -> bool {
        self.size() == 0 && self.step() != 16
    }

    /// How far the coefficient is from the one before: zeros between them plus one.
    #[inline(always)]
    pub fn step(self) -> usize {
        (self.0 >> 16 & 31) as usize
    }
}

impl Codes {
    /// From a DHT segment: codes of each length 1 to 16, and the symbols in order of their codes.
    pub fn new(counts: &[u8; 16], symbols: &[u8], dc: bool) -> Result<Codes> {
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        if total > 256 || symbols.len() < total {
            return Err(bad("a Huffman table has more symbols than its segment"));
        }
        if dc && symbols[..total].iter().any(|&symbol| symbol > 15) {
            return Err(bad("a Huffman table has a size above 15"));
        }
        let mut table = Codes {
            look: Box::new([0; 1 << LOOK]),
            limit: [u32::MAX; 18],
            offset: [0; 17],
            symbols: [0; 256],
        };
        table.symbols[..total].copy_from_slice(&symbols[..total]);
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if length <= LOOK {
                    table.fill(code, length, symbols[index]);
                }
                code += 1;
                index += 1;
                // The code of all ones must stay free.
                if code >= 1 << length {
                    return Err(bad("damaged: a Huffman table has more codes than fit"));
                }
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Enters a code of at most [`LOOK`] bits for every continuation.
    fn fill(&mut self, code: u32, length: u32, symbol: u8) {
        let spare = LOOK - length;
        let begin = (code << spare) as usize;
        self.look[begin..begin + (1 << spare)].fill(Entry::new(length, symbol).0);
    }

    /// The entry of the next bits, which stay. [`Bits::refill`] must have gone before.
    #[inline(always)]
    pub fn look(&self, bits: &Bits<'_>) -> Entry {
        Entry(self.look[bits.peek(LOOK) & ((1 << LOOK) - 1)])
    }

    /// The same for a code of any length.
    #[inline(always)]
    pub fn find(&self, bits: &Bits<'_>) -> Entry {
        let entry = self.look(bits);
        if entry.total() != 0 {
            return entry;
        }
        self.long(bits.peek(16) as u32)
    }

    /// Takes a code alone and gives its symbol.
    #[inline(always)]
    pub fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let entry = self.find(bits);
        bits.skip(entry.total() - entry.size());
        ((entry.step() - 1) << 4) as u8 | entry.size() as u8
    }

    /// The entry of a code longer than [`LOOK`], from the next 16 bits. One that the table lacks counts as symbol 0 of
    /// 17 bits, as libjpeg has it. (By value: a reference to the bits would keep them out of registers.)
    #[cold]
    #[inline(never)]
    fn long(&self, code: u32) -> Entry {
        let mut length = LOOK + 1;
        while length <= 16 && code >= self.limit[length as usize] {
            length += 1;
        }
        if length > 16 {
            return Entry::new(length, 0);
        }
        let index = (code >> (16 - length)) as i32 + self.offset[length as usize];
        Entry::new(length, self.symbols[(index & 255) as usize])
    }
}

/// Fills `out` with an entry for every value of `known` bits that begins with a whole code: `first(code, value)`, plus the
/// entry of `fewer` for the bits after both. `value` is `None` where it does not lie within the bits.
///
/// Entries for k bits begin at `fewer[1 << k]`. Nothing is added after a code that ends the block, to 0, or where `fewer`
/// is empty. Entries are written as ranges: a table of 4,096 takes some microseconds.
pub fn lay<T: Copy + Default + PartialEq + std::ops::Add<Output = T>>(
    table: &Codes,
    known: u32,
    out: &mut [T],
    fewer: &[T],
    first: impl Fn(Entry, Option<i32>) -> T,
) {
    let mut code = 0;
    for length in 1..=known.min(16) {
        let end = table.limit[length as usize] >> (16 - length);
        let spare = known - length;
        for code in code..end {
            let index = code as i32 + table.offset[length as usize];
            let entry = Entry::new(length, table.symbols[(index & 255) as usize]);
            let size = entry.size();
            let out = &mut out[(code << spare) as usize..][..1 << spare];
            if size > spare {
                out.fill(first(entry, None));
                continue;
            }
            let left = spare - size;
            for (bits, out) in out.chunks_exact_mut(1 << left).enumerate() {
                // A leading 0 means negative.
                let bits = bits as i32;
                let negative = size > 0 && bits >> (size - 1) == 0;
                let value = first(
                    entry,
                    Some(if negative {
                        bits + 1 - (1 << size)
                    } else {
                        bits
                    }),
                );
                if fewer.is_empty() || entry.ends() || value == T::default() {
                    out.fill(value);
                    continue;
                }
                for (out, rest) in out.iter_mut().zip(&fewer[1 << left..2 << left]) {
                    *out = value + *rest;
                }
            }
        }
        code = end << 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_length() {
        // One code of each length: 0, 10, 110, ..., and the one of all ones but the last bit of 16.
        let symbols: Vec<u8> = (0..16).collect();
        let table = Codes::new(&[1; 16], &symbols, true).unwrap();
        for length in 1..=16_u32 {
            let code = ((1_u32 << length) - 2) << (32 - length);
            let mut data = code.to_be_bytes().to_vec();
            data.extend([0; 12]);
            let mut bits = Bits::new(&data);
            bits.refill();
            assert_eq!(table.symbol(&mut bits), length as u8 - 1);
            bits.refill();
            assert_eq!(bits.take(1), 0);
        }
        let mut data = vec![0xff; 4];
        data.extend([0; 8]);
        let mut bits = Bits::new(&data);
        bits.refill();
        assert_eq!(table.symbol(&mut bits), 0, "no such code");
    }

    #[test]
    fn impossible_tables_are_refused() {
        assert!(Codes::new(&[3; 16], &[0; 48], false).is_err());
        assert!(Codes::new(&[1; 16], &[0; 15], false).is_err());
        assert!(Codes::new(&[1; 16], &[16; 16], true).is_err());
        assert!(Codes::new(&[255; 16], &[0; 256], false).is_err());
    }
}
