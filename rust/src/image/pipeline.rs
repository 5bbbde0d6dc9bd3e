//! Batches of samples made ahead of their reader, on threads of their own.
//!
//! Two drivers take the batches in order; each allocates its batch and hands the samples to one pool of threads, so
//! that the last samples of one batch and the first of the next are made at the same time. At most `prefetch` batches
//! are under way or waiting. A sample depends on its file, the epoch and its row alone: neither the number of threads
//! nor their timing shows in the result.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::kept::Kept;
use super::load::{Buffers, Element, Preparation};
use crate::error::{Error, Result};
use crate::memory;
use crate::threads::thread_count;

/// A finished batch.
#[derive(Debug)]
pub struct Batch<T> {
    /// Rows of the data set, as asked for.
    pub rows: Vec<i64>,
    /// `rows.len() * 3 * size * size` elements; zeros where the sample failed.
    pub pixels: Vec<T>,
    /// Position in the batch and what went wrong, by position.
    pub errors: Vec<(usize, String)>,
}

/// What one run works through.
pub struct Job {
    /// The data set's files, by row.
    pub paths: Arc<Vec<PathBuf>>,
    /// How samples are made.
    pub preparation: Arc<Preparation>,
    /// Rows of each batch.
    pub order: Vec<Vec<i64>>,
    /// Epoch, for the augmentation.
    pub epoch: u64,
    /// Pictures that were decoded before; the others come from their files.
    pub kept: Option<Arc<Kept>>,
}

impl Job {
    /// Checks that every row has a file.
    pub fn new(
        paths: Arc<Vec<PathBuf>>,
        preparation: Arc<Preparation>,
        order: Vec<Vec<i64>>,
        epoch: u64,
    ) -> Result<Job> {
        for (number, rows) in order.iter().enumerate() {
            if let Some(row) = rows
                .iter()
                .find(|&&row| usize::try_from(row).map_or(true, |row| row >= paths.len()))
            {
                return Err(Error::Value(format!(
                    "batch {number} asks for row {row}, but there are {} image paths (rows from 0)",
                    paths.len()
                )));
            }
        }
        Ok(Job {
            paths,
            preparation,
            order,
            epoch,
            kept: None,
        })
    }

    /// Makes the sample of a row.
    fn load<T: Element>(&self, row: u64, buffers: &mut Buffers, planes: &mut [T]) -> Result<()> {
        let (preparation, epoch) = (&self.preparation, self.epoch);
        if let Some(kept) = &self.kept {
            if preparation.load_kept(kept, epoch, row, buffers, planes)? {
                return Ok(());
            }
        }
        let path = &self.paths[row as usize];
        preparation
            .load(path, epoch, row, buffers, planes)
            .map(|_| ())
    }
}

/// Locks; a lock poisoned by a panic is used all the same, as the data behind our locks are never half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State<T> {
    /// What ended the run.
    failed: Option<Error>,
    /// Number of the next batch that a driver starts.
    next: usize,
    /// Batches that the reader has taken.
    taken: usize,
    ready: BTreeMap<usize, Batch<T>>,
    /// Drivers that have not ended.
    drivers: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A batch is ready, or a driver has ended.
    ready: Condvar,
    /// A batch was taken, or the run was closed.
    room: Condvar,
    closed: AtomicBool,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The loop of a driver: batch after batch, waiting while `prefetch` batches are ahead of the reader.
fn drive<T: Element>(shared: &Shared<T>, job: &Job, pool: &rayon::ThreadPool, prefetch: usize) {
    loop {
        let number = {
            let mut state = lock(&shared.state);
            loop {
                if state.next == job.order.len() || shared.closed.load(Ordering::Acquire) {
                    return;
                }
                if state.next < state.taken + prefetch {
                    break;
                }
                state = shared
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.next += 1;
            state.next - 1
        };
        let batch = make(job, &job.order[number], pool, &shared.closed);
        let mut state = lock(&shared.state);
        match batch {
            Ok(batch) => drop(state.ready.insert(number, batch)),
            Err(error) => {
                state.failed.get_or_insert(error);
                shared.closed.store(true, Ordering::Release);
                shared.room.notify_all();
            }
        }
        shared.ready.notify_all();
    }
}

fn make<T: Element>(
    job: &Job,
    rows: &[i64],
    pool: &rayon::ThreadPool,
    closed: &AtomicBool,
) -> Result<Batch<T>> {
    let (elements, size) = (job.preparation.elements(), job.preparation.size);
    let mut pixels: Vec<T> = memory::zeros(rows.len() * elements).map_err(|error| {
        let count = rows.len();
        error.about(format_args!(
            "a batch of {count} images of {size} x {size} pixels; make batches smaller"
        ))
    })?;
    let errors = Mutex::new(Vec::new());
    pool.in_place_scope(|scope| {
        for (position, (planes, &row)) in pixels.chunks_exact_mut(elements).zip(rows).enumerate() {
            let errors = &errors;
            scope.spawn(move |_| {
                if closed.load(Ordering::Acquire) {
                    return;
                }
                let loaded =
                    BUFFERS.with_borrow_mut(|buffers| job.load(row as u64, buffers, planes));
                if let Err(error) = loaded {
                    lock(errors).push((position, error));
                }
            });
        }
    });
    let mut errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
    errors.sort_unstable_by_key(|(position, _)| *position);
    let of_picture = |(position, error): (usize, Error)| match error.is_exhaustion() {
        true => Err(error),
        false => Ok((position, error.to_string())),
    };
    Ok(Batch {
        rows: rows.to_vec(),
        pixels,
        errors: errors.into_iter().map(of_picture).collect::<Result<_>>()?,
    })
}

/// What [`Run::next`] found.
pub enum Next<T> {
    /// The next batch, in order.
    Batch(Batch<T>),
    /// None within the time given.
    Waiting,
    /// All batches were taken, or the run was closed.
    End,
    /// The process has run out of memory or of file handles.
    Failed(Error),
}

/// Batches under way. Dropping it stops the threads and waits for them: at most one sample each.
pub struct Run<T: Element> {
    shared: Arc<Shared<T>>,
    batches: usize,
    drivers: Vec<JoinHandle<()>>,
    pool: Option<Arc<rayon::ThreadPool>>,
    workers: Vec<JoinHandle<()>>,
    waited: Duration,
}

/// Counts a driver out when it ends, by a panic too.
struct Turn<T>(Arc<Shared<T>>);

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.closed.store(true, Ordering::Release);
        }
        lock(&self.0.state).drivers -= 1;
        self.0.ready.notify_all();
        self.0.room.notify_all();
    }
}

impl<T: Element> Run<T> {
    /// Starts the threads. `prefetch` is the largest number of batches under way or waiting, at least 1.
    pub fn start(job: Job, threads: usize, prefetch: usize) -> Result<Run<T>> {
        let failed =
            |error: String| Error::Value(format!("cannot start the image threads: {error}"));
        let prefetch = prefetch.max(1);
        let mut workers = Vec::new();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(thread_count(threads)?)
            .thread_name(|index| format!("varalign-image-{index}"))
            .spawn_handler(|thread| {
                // Kept, so that closing can wait for them: rayon itself lets its threads go.
                let name = thread.name().unwrap_or("varalign-image").to_owned();
                workers.push(
                    std::thread::Builder::new()
                        .name(name)
                        .spawn(move || thread.run())?,
                );
                Ok(())
            })
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let count = prefetch.min(2);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                failed: None,
                next: 0,
                taken: 0,
                ready: BTreeMap::new(),
                drivers: 0,
            }),
            ready: Condvar::new(),
            room: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let batches = job.order.len();
        let pool = Arc::new(pool);
        let drivers = Vec::new();
        let mut run = Run {
            shared,
            batches,
            drivers,
            pool: Some(Arc::clone(&pool)),
            workers,
            waited: Duration::ZERO,
        };
        let job = Arc::new(job);
        for index in 0..count {
            let (job, pool) = (Arc::clone(&job), Arc::clone(&pool));
            lock(&run.shared.state).drivers += 1;
            let turn = Turn(Arc::clone(&run.shared));
            let driver = std::thread::Builder::new()
                .name(format!("varalign-batch-{index}"))
                .spawn(move || drive(&turn.0, &job, &pool, prefetch))
                .map_err(|error| failed(error.to_string()))?;
            run.drivers.push(driver);
        }
        Ok(run)
    }

    /// The next batch, waiting for it at most `patience`.
    pub fn next(&mut self, patience: Duration) -> Next<T> {
        let begin = Instant::now();
        let mut state = lock(&self.shared.state);
        let next = loop {
            let number = state.taken;
            if let Some(error) = state.failed.take() {
                break Next::Failed(error);
            }
            if number == self.batches || self.shared.closed.load(Ordering::Acquire) {
                break Next::End;
            }
            if let Some(batch) = state.ready.remove(&number) {
                state.taken += 1;
                self.shared.room.notify_all();
                break Next::Batch(batch);
            }
            let left = patience.saturating_sub(begin.elapsed());
            if state.drivers == 0 || left.is_zero() {
                break if state.drivers == 0 {
                    Next::End
                } else {
                    Next::Waiting
                };
            }
            state = self
                .shared
                .ready
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        drop(state);
        self.waited += begin.elapsed();
        next
    }

    /// Time spent in `next` since this was last asked.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Whether every batch was taken.
    pub fn finished(&self) -> bool {
        lock(&self.shared.state).taken == self.batches
    }

    /// Stops the threads and waits for them.
    pub fn close(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // With the lock held, no driver can be between its look at `closed` and its wait.
        drop(lock(&self.shared.state));
        self.shared.room.notify_all();
        for driver in self.drivers.drain(..) {
            let _ = driver.join();
        }
        self.pool = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        lock(&self.shared.state).ready.clear();
    }
}

impl<T: Element> Drop for Run<T> {
    fn drop(&mut self) {
        self.close();
    }
}
