//! Huffman tables: one look at eleven bits decodes most codes, and most coefficients whole.

use super::bad;
use super::bits::Bits;
use crate::error::Result;

/// Bits looked at at once.
const LOOK: u32 = 11;

/// A table for decoding. An entry of `look` is 0 for a code longer than [`LOOK`], else
/// bits 0 to 4 bits to take, bit 5 whether the value is in the entry, bits 8 to 15 the symbol (run and size), and bits
/// 16 to 31 the value.
pub struct Table {
    look: Box<[u32; 1 << LOOK]>,
    /// First code of more than each length, aligned to 16 bits; `u32::MAX` after the last length.
    limit: [u32; 18],
    /// From code to position in `symbols`.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// What one look found.
#[derive(Clone, Copy)]
pub struct Entry(u32);

impl Entry {
    /// Whether the value is in the entry and its bits are taken.
    #[inline(always)]
    pub fn has_value(self) -> bool {
        self.0 & 32 != 0
    }

    /// Zeros before the coefficient.
    #[inline(always)]
    pub fn run(self) -> usize {
        (self.0 >> 12 & 15) as usize
    }

    /// Bits of the value.
    #[inline(always)]
    pub fn size(self) -> u32 {
        self.0 >> 8 & 15
    }

    /// The value.
    #[inline(always)]
    pub fn value(self) -> i16 {
        (self.0 as i32 >> 16) as i16
    }
}

impl Table {
    /// From a DHT segment: codes of each length 1 to 16, and the symbols in order of their codes.
    pub fn new(counts: &[u8; 16], symbols: &[u8], dc: bool) -> Result<Table> {
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        if total > 256 || symbols.len() < total {
            return Err(bad("a Huffman table has more symbols than its segment"));
        }
        if dc && symbols[..total].iter().any(|&symbol| symbol > 15) {
            return Err(bad("a Huffman table has a size above 15"));
        }
        let mut table = Table {
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
        let size = u32::from(symbol & 15);
        for rest in 0..1 << spare {
            let entry = &mut self.look[((code << spare) + rest) as usize];
            *entry = length | u32::from(symbol) << 8;
            // The value's own bits follow the code.
            if size > 0 && size <= spare {
                let bits = (rest >> (spare - size)) as i32;
                let value = if bits < 1 << (size - 1) {
                    bits + 1 - (1 << size)
                } else {
                    bits
                };
                *entry = (length + size) | 32 | u32::from(symbol) << 8 | (value as u32) << 16;
            }
        }
    }

    /// Takes a code (and its value, where the entry has it). [`Bits::refill`] must have gone before.
    #[inline(always)]
    pub fn next(&self, bits: &mut Bits<'_>) -> Entry {
        let mut entry = self.look[bits.peek(LOOK) & ((1 << LOOK) - 1)];
        if entry == 0 {
            entry = self.long(bits.peek(16) as u32);
        }
        bits.skip(entry & 31);
        Entry(entry)
    }

    /// Takes a code alone and gives its symbol.
    #[inline(always)]
    pub fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let mut entry = self.look[bits.peek(LOOK) & ((1 << LOOK) - 1)];
        if entry == 0 {
            entry = self.long(bits.peek(16) as u32);
        }
        let symbol = (entry >> 8) as u8;
        let value = if entry & 32 != 0 {
            u32::from(symbol & 15)
        } else {
            0
        };
        bits.skip((entry & 31) - value);
        symbol
    }

    /// The entry of a code longer than [`LOOK`], from the next 16 bits. One that the table lacks counts as symbol 0 of
    /// 17 bits, as libjpeg has it. (By value: a reference to the bits would keep them out of registers.)
    #[inline(never)]
    fn long(&self, code: u32) -> u32 {
        let mut length = LOOK + 1;
        while length <= 16 && code >= self.limit[length as usize] {
            length += 1;
        }
        if length > 16 {
            return length;
        }
        let index = (code >> (16 - length)) as i32 + self.offset[length as usize];
        length | u32::from(self.symbols[(index & 255) as usize]) << 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_length() {
        // One code of each length: 0, 10, 110, ..., and the one of all ones but the last bit of 16.
        let symbols: Vec<u8> = (0..16).collect();
        let table = Table::new(&[1; 16], &symbols, true).unwrap();
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
        assert!(Table::new(&[3; 16], &[0; 48], false).is_err());
        assert!(Table::new(&[1; 16], &[0; 15], false).is_err());
        assert!(Table::new(&[1; 16], &[16; 16], true).is_err());
        assert!(Table::new(&[255; 16], &[0; 256], false).is_err());
    }
}
