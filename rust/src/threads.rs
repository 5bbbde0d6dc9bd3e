//! How many threads a call may start, and work that they share.

use crate::error::{Error, Result};

/// The number of threads for a request: 0 means every core.
pub fn thread_count(requested: usize) -> Result<usize> {
    const MOST: usize = 1024;
    match requested {
        0 => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        1..=MOST => Ok(requested),
        _ => Err(Error::Value(format!(
            "threads must be 0 (every core) to {MOST}, got {requested}"
        ))),
    }
}

/// Runs `work` on `threads` threads at a time, of which the caller's is one; on fewer where the system starts no more.
pub fn share(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if std::thread::Builder::new()
                .spawn_scoped(scope, &work)
                .is_err()
            {
                break;
            }
        }
        work();
    });
}
