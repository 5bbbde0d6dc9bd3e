//! Buffers that a thread reuses: new memory costs a page fault for each 4 KiB, a tenth of the time of a decode.

use std::cell::RefCell;

use crate::error::Result;
use crate::memory;

/// Bytes that a thread keeps, at most; what is larger goes back to the system.
const KEPT: usize = 64 << 20;
/// Buffers that a thread keeps, at most.
const COUNT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for `room` bytes: of those given back, the one with the fewest initialised bytes.
pub fn take_empty(room: usize) -> Result<Vec<u8>> {
    let mut buffer = take_by(Vec::len);
    buffer.clear();
    memory::reserve(&mut buffer, room)?;
    Ok(buffer)
}

/// A buffer of `length` bytes of undefined value: the caller writes what it reads.
pub fn take(length: usize) -> Result<Vec<u8>> {
    // The shortest that is long enough, else the longest: bytes added to a buffer must be set.
    let mut buffer = take_by(|buffer| match buffer.len() {
        enough if enough >= length => enough,
        short => usize::MAX - short,
    });
    if buffer.capacity() < length {
        // A new one: growing would copy bytes that nobody reads.
        return memory::zeros(length);
    }
    buffer.resize(length, 0);
    Ok(buffer)
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
        let mut buffer = take(1000).unwrap();
        buffer.fill(7);
        let address = buffer.as_ptr();
        give(buffer);
        let again = take(900).unwrap();
        assert_eq!((again.len(), again.as_ptr()), (900, address));
        give(vec![0; KEPT + 1]);
        assert!(take(10).unwrap().capacity() <= KEPT);
        assert!(take_empty(5).unwrap().is_empty());
    }
}
