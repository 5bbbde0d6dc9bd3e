//! Buffers that a thread uses again and again: fresh memory costs a page fault for each 4 KiB, a tenth of a decode.

use std::cell::RefCell;

/// Bytes that a thread keeps, at most; what is larger goes back to the system.
const KEPT: usize = 64 << 20;
/// Buffers that a thread keeps, at most.
const COUNT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, with room where one was given back.
pub fn take_empty() -> Vec<u8> {
    let mut buffer = take(0);
    buffer.clear();
    buffer
}

/// A buffer of `length` bytes of any value: whoever takes it writes what it reads.
pub fn take(length: usize) -> Vec<u8> {
    let mut buffer = FREE.with_borrow_mut(|free| {
        // The smallest that fits, else the largest.
        let fits = |buffer: &Vec<u8>| buffer.capacity() >= length && length > 0;
        let best = (0..free.len()).min_by_key(|&index| {
            let capacity = free[index].capacity();
            (
                !fits(&free[index]),
                if fits(&free[index]) {
                    capacity
                } else {
                    usize::MAX - capacity
                },
            )
        });
        best.map(|index| free.swap_remove(index))
            .unwrap_or_default()
    });
    if buffer.capacity() < length {
        // Grown anew: nothing in it is worth copying.
        return vec![0; length];
    }
    buffer.resize(length, 0);
    buffer
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
