//! Scans ASCII captions sixteen bytes at a time in 128-bit integers.
//!
//! Every function on such an integer requires bytes below 0x80, so that its additions do not carry into the next byte.

use crate::error::Result;
use crate::memory;

/// Number of bytes that may be read past the end of a scanned text; `load_text` appends as many zeros.
pub const PADDING: usize = 32;

const ONES: u128 = u128::from_ne_bytes([0x01; 16]);
const HIGH: u128 = ONES * 0x80;
const CASE: u128 = ONES * 0x20;

/// Whether every byte is printable ASCII.
pub fn is_printable(text: &[u8]) -> bool {
    !text
        .iter()
        .fold(false, |other, &byte| other | !(0x20..0x7f).contains(&byte))
}

/// Whether every byte is printable ASCII and none is `&`.
pub fn is_printable_without_ampersand(text: &[u8]) -> bool {
    !text.iter().fold(false, |other, &byte| {
        other | !(0x20..0x7f).contains(&byte) | (byte == b'&')
    })
}

/// Make room for repairing and scanning a text. Decomposition and spaces around Chinese characters at most triple its
/// bytes.
pub fn reserve_text(text: &str, buffer: &mut Vec<u8>, cleaned: &mut String) -> Result<()> {
    buffer.clear();
    memory::reserve(buffer, text.len() + PADDING)?;
    cleaned.clear();
    memory::reserve_string(cleaned, 3 * text.len())
}

/// Copy a text into a buffer and append the zeros that the scanner may read.
pub fn load_text(buffer: &mut Vec<u8>, text: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(text);
    buffer.extend_from_slice(&[0; PADDING]);
}

/// The sixteen bytes from `at` on, with the first byte lowest.
#[inline(always)]
pub fn load(buffer: &[u8], at: usize) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&buffer[at..at + 16]);
    u128::from_le_bytes(bytes)
}

/// The high bit of every byte that is an ASCII letter.
#[inline(always)]
fn letters(bytes: u128) -> u128 {
    let lower = bytes | CASE;
    (lower + ONES * (0x80 - b'a' as u128)) & !(lower + ONES * (0x7f - b'z' as u128)) & HIGH
}

/// The high bit of every byte that is an ASCII digit.
#[inline(always)]
fn digits(bytes: u128) -> u128 {
    (bytes + ONES * (0x80 - b'0' as u128)) & !(bytes + ONES * (0x7f - b'9' as u128)) & HIGH
}

/// The number of letters at the start of the sixteen bytes.
#[inline(always)]
pub fn letter_run(bytes: u128) -> usize {
    (!letters(bytes) & HIGH).trailing_zeros() as usize / 8
}

/// The number of letters and digits at the start of the sixteen bytes.
#[inline(always)]
pub fn alphanumeric_run(bytes: u128) -> usize {
    (!(letters(bytes) | digits(bytes)) & HIGH).trailing_zeros() as usize / 8
}

/// The lowest `length` (1 to 16) bytes, the others zero: the key of a short word.
#[inline(always)]
pub fn prefix(bytes: u128, length: usize) -> u128 {
    bytes & (u128::MAX >> (128 - 8 * length))
}

/// The bytes with lower-case letters; digits and the apostrophe do not change, other characters may.
#[inline(always)]
pub fn lower(bytes: u128) -> u128 {
    bytes | CASE
}

/// The key of a word of at most sixteen bytes.
pub fn key(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_a_loop() {
        for first in 0..128u8 {
            for second in [
                b'a', b'Z', b'5', b' ', b'\'', b'@', b'[', b'`', b'{', b'/', b':',
            ] {
                let word = [first, second, b'x'];
                let letters = word
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphabetic())
                    .count();
                let alphanumerics = word
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric())
                    .count();
                assert_eq!(letter_run(key(&word)), letters, "{word:?}");
                assert_eq!(alphanumeric_run(key(&word)), alphanumerics, "{word:?}");
            }
        }
        assert_eq!(letter_run(key(b"abcdefghijklmnop")), 16);
        assert_eq!(
            prefix(key(b"abcdefghijklmnop"), 16),
            key(b"abcdefghijklmnop")
        );
        assert_eq!(prefix(key(b"dogs in"), 4), key(b"dogs"));
        assert_eq!(lower(key(b"Do9S")) & prefix(u128::MAX, 4), key(b"do9s"));
    }
}
