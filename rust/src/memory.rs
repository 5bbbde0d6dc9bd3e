//! Allocations whose size depends on input or on an option: where there is no memory they are errors, not the process's end.

use std::collections::BinaryHeap;
use std::hash::Hash;

use bytemuck::Zeroable;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};

/// `count` zeros. The system hands out zeroed pages: nothing is written.
pub fn zeros<T: Zeroable>(count: usize) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(count).map_err(|()| refused::<T>(count))
}

/// Makes room for `count` more elements.
pub fn reserve<T>(vector: &mut Vec<T>, count: usize) -> Result<()> {
    let all = vector.len() + count;
    vector.try_reserve(count).map_err(|_| refused::<T>(all))
}

/// Makes room for `count` more bytes.
pub fn reserve_string(string: &mut String, count: usize) -> Result<()> {
    let all = string.len() + count;
    string.try_reserve(count).map_err(|_| refused::<u8>(all))
}

/// Makes room for `count` more elements.
pub fn reserve_heap<T: Ord>(heap: &mut BinaryHeap<T>, count: usize) -> Result<()> {
    let all = heap.len() + count;
    heap.try_reserve(count).map_err(|_| refused::<T>(all))
}

/// Makes room for `count` more entries.
pub fn reserve_map<K: Eq + Hash, V>(map: &mut FxHashMap<K, V>, count: usize) -> Result<()> {
    let all = map.len() + count;
    map.try_reserve(count).map_err(|_| refused::<(K, V)>(all))
}

/// Makes a vector `count` elements long.
pub fn resize<T: Clone>(vector: &mut Vec<T>, count: usize, value: T) -> Result<()> {
    reserve(vector, count.saturating_sub(vector.len()))?;
    vector.resize(count, value);
    Ok(())
}

/// What an iterator of known length gives.
pub fn collect<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    reserve(&mut vector, items.len())?;
    vector.extend(items);
    Ok(vector)
}

/// Bytes one after the other.
pub fn concat(parts: &[&[u8]]) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    reserve(&mut all, parts.iter().map(|part| part.len()).sum())?;
    parts.iter().for_each(|part| all.extend_from_slice(part));
    Ok(all)
}

fn refused<T>(count: usize) -> Error {
    Error::Memory {
        bytes: count as u64 * size_of::<T>() as u64,
        what: String::new(),
    }
}
