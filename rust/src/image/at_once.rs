//! Some files at once: samples for a caller's batch, or whole pictures made smaller.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::load::{Buffers, Element, Preparation, Shrunk};
use crate::error::{Error, Result};
use crate::memory;
use crate::threads::{share, thread_count};

/// Makes the samples of `files` (path and row each) on `threads` threads; the caller's is one of them.
///
/// `out` holds one after another; a file that fails leaves zeros. Returns the width and height of each picture, or what
/// went wrong.
pub fn load_all<T: Element>(
    files: &[(&Path, u64)],
    preparation: &Preparation,
    epoch: u64,
    threads: usize,
    out: &mut [T],
) -> Result<Vec<Result<(usize, usize)>>> {
    let elements = files.len() * preparation.elements();
    if out.len() != elements {
        return Err(Error::Value(format!(
            "{} files need room for {elements} elements, got {}",
            files.len(),
            out.len()
        )));
    }
    let work = files
        .iter()
        .zip(out.chunks_exact_mut(preparation.elements()));
    on_threads(work, threads, |(&(path, row), planes), buffers| {
        let loaded = preparation.load(path, epoch, row, buffers, planes);
        if loaded.is_err() {
            planes.fill(T::default());
        }
        loaded
    })
}

/// The pictures of `paths` with their short sides at most `short`, on `threads` threads.
pub fn shrink_all(
    paths: &[PathBuf],
    preparation: &Preparation,
    short: usize,
    threads: usize,
) -> Result<Vec<Result<Shrunk>>> {
    on_threads(paths.iter(), threads, |path, buffers| {
        preparation.shrink(path, short, buffers)
    })
}

/// What `make` makes of each item, in their order, on `threads` threads; the caller's is one of them.
///
/// Fails where the process has run out of memory or of file handles.
fn on_threads<I: Send, O: Send>(
    items: impl ExactSizeIterator<Item = I> + Send,
    threads: usize,
    make: impl Fn(I, &mut Buffers) -> Result<O> + Sync,
) -> Result<Vec<Result<O>>> {
    let count = items.len();
    let threads = thread_count(threads)?.min(count);
    let work = Mutex::new(items.enumerate());
    let mut made = Vec::new();
    memory::reserve(&mut made, count)?;
    let made = Mutex::new(made);
    let run = || {
        let mut buffers = Buffers::default();
        loop {
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((position, item)) = next else {
                return;
            };
            let one = make(item, &mut buffers);
            made.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((position, one));
        }
    };
    share(threads, run);
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_unstable_by_key(|(position, _)| *position);
    made.into_iter()
        .map(|(_, one)| match one {
            Err(error) if error.is_exhaustion() => Err(error),
            one => Ok(one),
        })
        .collect()
}
