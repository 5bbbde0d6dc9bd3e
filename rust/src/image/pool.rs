//! Buffers that a thread uses again and again: fresh memory costs a page fault for each 4 KiB, a tenth of a decode.

use std::cell::RefCell;

/// Bytes that a thread keeps, at most; what is larger goes back to the system.
const KEPT: usize = 64 << 20;
/// Buffers that a thread keeps, at most.
const COUNT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, with room where one was given back: the one in which the least is initialised.
pub fn take_empty() -> Vec<u8> {
    let mut buffer = take_by(Vec::len);
    buffer.clear();
    buffer
}

/// A buffer of `length` bytes of any value: whoever takes it writes what it reads.
pub fn take(length: usize) -> Vec<u8> {
    // The shortest that is long enough, else the longest: bytes past a buffer's end have to be set before they are used.
    let mut buffer = take_by(|buffer| match buffer.len() {
        enough if enough >= length => enough,
        short => usize::MAX - short,
    });
    if buffer.capacity() < length {
        // Grown anew: nothing in it is worth copying.
        return vec![0; length];
    }
    buffer.resize(length, 0);
    buffer
}

fn take_by(key: impl Fn(&Vec<u8>) -> usize) -> Vec<u8> {
    FREE.with_borrow_mut(|free| {
        let best = (0..free.len()).min_by_key(|&index| key(&free[index]));
        best.map(|index| free.swap_remove(index))
            .unwrap_or_default()
    })
}

/// Gives a buffer back.
pub fn give(buffer: Vec<u8>) {
    FREE.with_borrow_mut(|free| {
        let held: usize = free.iter().map(Vec::capacity).sum();
        if free.len() < COUNT && held + buffer.capacity() <= KEPT {
            free.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_has_the_length_asked_for() {
        let mut buffer = take(1000);
        buffer.fill(7);
        let address = buffer.as_ptr();
        give(buffer);
        let again = take(900);
        assert_eq!((again.len(), again.as_ptr()), (900, address));
        give(vec![0; KEPT + 1]);
        assert!(take(10).capacity() <= KEPT);
        assert!(take_empty().is_empty());
    }
}
