//! The threads that share a large batch; they are started once and kept.
//!
//! A forked process has none of its parent's threads. When the process id has changed, a new pool is made and the
//! parent's is leaked, because dropping it would wait forever for threads that do not exist.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// The cores that this process may use.
pub fn cores() -> usize {
    // Asking the system takes tens of microseconds.
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Run `work` on the caller's thread and on `helpers` threads of the pool, and wait for all of them. If the pool's
/// threads are busy or cannot be started, the caller does the whole work.
pub fn run(helpers: usize, work: impl Fn() + Sync) {
    let pool = if helpers == 0 { None } else { pool() };
    match pool {
        None => work(),
        Some(pool) => pool.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| work());
            }
            work();
        }),
    }
}

fn pool() -> Option<Arc<ThreadPool>> {
    let process = std::process::id();
    let mut current = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = current.as_ref() {
        if *owner == process {
            return Some(Arc::clone(pool));
        }
    }
    let threads = cores().saturating_sub(1).max(1);
    let name = |index| format!("varalign-tokens-{index}");
    let pool = Arc::new(
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(name)
            .build()
            .ok()?,
    );
    std::mem::forget(current.replace((process, Arc::clone(&pool))));
    Some(pool)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_helper_runs_once_and_the_caller_too() {
        for helpers in [0, 1, 5] {
            let runs = AtomicUsize::new(0);
            super::run(helpers, || {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), helpers + 1);
        }
    }
}
