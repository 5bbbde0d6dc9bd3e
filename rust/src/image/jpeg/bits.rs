//! Entropy-coded bytes: stuffing taken out, then read bit by bit through a 64-bit window.

/// Zero bytes after the data, so that the window can always be filled by one load of eight bytes.
const PADDING: usize = 8;

/// Copies entropy-coded data from `data` up to the marker that ends it into `out`, without stuffing, padded.
///
/// Returns the bytes that the coded data take in the file; a marker or the end of the file follows them.
pub fn unstuff(data: &[u8], out: &mut Vec<u8>) -> usize {
    out.clear();
    let mut at = 0;
    let end = loop {
        let Some(found) = memchr::memchr(0xff, &data[at..]) else {
            out.extend_from_slice(&data[at..]);
            break data.len();
        };
        let ff = at + found;
        // Any number of 0xff may fill the space before a marker or a stuffed zero.
        let fill = data[ff..].iter().take_while(|&&byte| byte == 0xff).count();
        if data.get(ff + fill) == Some(&0) {
            out.extend_from_slice(&data[at..=ff]);
            at = ff + fill + 1;
        } else {
            out.extend_from_slice(&data[at..ff]);
            break ff;
        }
    };
    out.extend_from_slice(&[0; PADDING]);
    end
}

/// A window on unstuffed, padded data. Past their end it reads zeros, and `overrun` says so.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    data: &'a [u8],
    /// Bytes loaded.
    at: usize,
    /// The next bit is the highest.
    window: u64,
    /// Bits of the window that count.
    count: u32,
}

impl<'a> Bits<'a> {
    /// `data` as [`unstuff`] makes them.
    pub fn new(data: &'a [u8]) -> Bits<'a> {
        Bits {
            data,
            at: 0,
            window: 0,
            count: 0,
        }
    }

    /// Makes at least 56 bits available: enough for a code of 16 with its value of 15, or for two short ones.
    ///
    /// No branch depends on the data: one would be mispredicted every few coefficients.
    #[inline(always)]
    pub fn refill(&mut self) {
        let next = self.data.get(self.at..).and_then(<[u8]>::first_chunk);
        let bytes = match next {
            Some(bytes) => u64::from_be_bytes(*bytes),
            None => tail(self.data, self.at),
        };
        // Bits past `count` may be set already: by the same bytes, to the same values (Giesen 2018, variant 4).
        self.window |= bytes >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// The next `n` bits, 1 to 32, which stay.
    #[inline(always)]
    pub fn peek(&self, n: u32) -> usize {
        (self.window >> (64 - n)) as usize
    }

    /// Takes `n` bits.
    #[inline(always)]
    pub fn skip(&mut self, n: u32) {
        self.window <<= n;
        self.count -= n;
    }

    /// Takes the next `n` bits, 0 to 16.
    #[inline(always)]
    pub fn take(&mut self, n: u32) -> i32 {
        let value = (self.window >> 1 >> (63 - n)) as i32;
        self.skip(n);
        value
    }

    /// Takes a code and the value behind it: `total` bits, 1 to 31, of which the last `size`, 0 to 15, are the value.
    ///
    /// The window is shifted by `total` alone: the next lookup does not wait for the value.
    #[inline(always)]
    pub fn take_value(&mut self, total: u32, size: u32) -> i32 {
        let value = self.value(total, size);
        self.skip(total);
        value
    }

    /// The same without taking it.
    #[inline(always)]
    pub fn value(&self, total: u32, size: u32) -> i32 {
        let mask = (1 << size) - 1;
        let value = self.window.wrapping_shr(total.wrapping_neg()) as i32 & mask;
        // All ones where the leading bit is 0, which means negative.
        let negative = (value - (mask >> 1) - 1) >> 31;
        value - (mask & negative)
    }

    /// Takes a value of `n` bits, 0 to 15: a leading 0 means negative.
    #[inline(always)]
    pub fn take_signed(&mut self, n: u32) -> i32 {
        // All ones where the leading bit is 0.
        let negative = !(self.window as i64 >> 63) as i32;
        let value = self.take(n);
        value + (negative & (1 - (1 << n)))
    }

    /// Whether more bits were taken than there are.
    #[inline(always)]
    pub fn overrun(&self) -> bool {
        self.at * 8 - self.count as usize > (self.data.len() - PADDING) * 8
    }
}

/// The eight bytes from `at` on, zeros past the end.
#[cold]
#[inline(never)]
fn tail(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(rest) = data.get(at..) {
        bytes[..rest.len()].copy_from_slice(rest);
    }
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuffing_and_markers() {
        let mut out = Vec::new();
        for (data, taken, expected) in [
            (
                b"ab\xff\0c\xff\xd9rest".as_slice(),
                5,
                b"ab\xffc".as_slice(),
            ),
            (b"ab\xff\xff\0c", 6, b"ab\xffc"),
            (b"ab\xff\xff\xd0", 2, b"ab"),
            (b"ab\xff", 2, b"ab"),
            (b"abc", 3, b"abc"),
            (b"", 0, b""),
        ] {
            assert_eq!(unstuff(data, &mut out), taken);
            assert_eq!(&out[..out.len() - PADDING], expected);
        }
    }

    #[test]
    fn every_bit_in_order_and_zeros_after() {
        let mut data: Vec<u8> = (0..50_u8).map(|k| k.wrapping_mul(37)).collect();
        let expected: Vec<i32> = data
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |bit| i32::from(byte >> bit & 1)))
            .collect();
        data.extend([0; PADDING]);
        let mut bits = Bits::new(&data);
        for (index, bit) in expected.iter().enumerate() {
            bits.refill();
            assert_eq!((bits.take(1), bits.overrun()), (*bit, false), "bit {index}");
        }
        for _ in 0..1000 {
            bits.refill();
            assert_eq!((bits.take(1), bits.overrun()), (0, true));
        }
    }

    #[test]
    fn signed_values() {
        let mut data = vec![0b0101_1010];
        data.extend([0; PADDING]);
        let mut bits = Bits::new(&data);
        bits.refill();
        assert_eq!(
            (
                bits.take_signed(2),
                bits.take_signed(2),
                bits.take_signed(0),
                bits.take_signed(4)
            ),
            (-2, -2, 0, 10)
        );
    }
}
