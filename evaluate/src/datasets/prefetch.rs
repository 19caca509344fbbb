//! Work done ahead on other threads, its results in order.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::Result;

/// The delivery of a worker: the number of the job, and its result or panic.
type Done<T> = (usize, std::thread::Result<Result<T>>);

/// Jobs that are not begun, counted.
type Jobs<J> = Mutex<std::iter::Enumerate<J>>;

/// Does `work` on every job with `n_workers` threads and returns the results in the order of the
/// jobs.
///
/// At most `depth` results (but one per worker at least) are begun or finished and not yet taken,
/// so memory is bounded. Nothing is left running when the iterator is dropped: jobs that have
/// begun are waited for. A panic of `work` goes on in the thread that takes the result.
///
/// # Example
/// ```
/// use evaluate::datasets::prefetch;
/// let squares = prefetch(0..5_u32, 2, 4, |n| Ok(n * n));
/// assert_eq!(squares.collect::<evaluate::Result<Vec<_>>>()?, [0, 1, 4, 9, 16]);
/// # Ok::<(), evaluate::Error>(())
/// ```
pub fn prefetch<J, T, W>(jobs: J, n_workers: usize, depth: usize, work: W) -> Prefetch<T>
where
    J: IntoIterator,
    J::IntoIter: Send + 'static,
    T: Send + 'static,
    W: Fn(J::Item) -> Result<T> + Send + Sync + 'static,
{
    let n_workers = n_workers.max(1);
    let depth = depth.max(n_workers);
    let jobs = Arc::new(Mutex::new(jobs.into_iter().enumerate()));
    let work = Arc::new(work);
    // A worker takes a permit before it takes a job; taking a result in order gives it back.
    let (permits, permits_taken) = sync_channel(depth);
    for _ in 0..depth {
        // The channel has room for all.
        let _ = permits.try_send(());
    }
    let permits_taken = Arc::new(Mutex::new(permits_taken));
    let (done, results) = sync_channel(depth);
    let workers = (0..n_workers)
        .map(|_| {
            let (jobs, work) = (Arc::clone(&jobs), Arc::clone(&work));
            let (permits, done) = (Arc::clone(&permits_taken), done.clone());
            std::thread::spawn(move || serve(&jobs, &permits, &done, &*work))
        })
        .collect();
    Prefetch {
        next: 0,
        waiting: BTreeMap::new(),
        results: Some(results),
        permits: Some(permits),
        workers,
    }
}

fn serve<J: Iterator, T>(
    jobs: &Jobs<J>,
    permits: &Mutex<Receiver<()>>,
    done: &SyncSender<Done<T>>,
    work: &(impl Fn(J::Item) -> Result<T> + ?Sized),
) {
    loop {
        // The lock is held while waiting: whoever holds it is first in line.
        let permit = permits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        if permit.is_err() {
            return;
        }
        let job = match jobs.lock() {
            Ok(mut jobs) => jobs.next(),
            // The iterator of jobs panicked in another thread, which reports it.
            Err(_) => return,
        };
        let Some((number, job)) = job else {
            return;
        };
        let result = catch_unwind(AssertUnwindSafe(|| work(job)));
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

/// Results in order; made by [`prefetch`].
#[derive(Debug)]
pub struct Prefetch<T> {
    next: usize,
    waiting: BTreeMap<usize, std::thread::Result<Result<T>>>,
    results: Option<Receiver<Done<T>>>,
    permits: Option<SyncSender<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let result = loop {
            if let Some(result) = self.waiting.remove(&self.next) {
                break result;
            }
            match self.results.as_ref()?.recv() {
                Ok((number, result)) => {
                    self.waiting.insert(number, result);
                }
                Err(_) => {
                    // All workers are gone: no more jobs, or their iterator panicked.
                    self.stop();
                    return None;
                }
            }
        };
        self.next += 1;
        if let Some(permits) = &self.permits {
            // Never full: there are no more permits than its room. Closed when all work is done.
            let _ = permits.try_send(());
        }
        match result {
            Ok(result) => Some(result),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl<T> Prefetch<T> {
    /// Ends the workers and waits for them; a panic outside `work` goes on here.
    fn stop(&mut self) {
        self.permits = None;
        self.results = None;
        for worker in self.workers.drain(..) {
            if let Err(panic) = worker.join()
                && !std::thread::panicking()
            {
                resume_unwind(panic);
            }
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_whatever_takes_longest() {
        let results = prefetch(0..200_u64, 4, 8, |n| {
            std::thread::sleep(Duration::from_micros(n * 7919 % 300));
            Ok(n)
        });
        let results: Vec<u64> = results.map(|n| n.expect("no job fails")).collect();
        assert_eq!(results, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_than_the_depth_is_begun_ahead() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&begun);
        let mut results = prefetch(0..1000, 2, 5, move |n| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        });
        for taken in 1..=20 {
            results.next();
            std::thread::sleep(Duration::from_millis(1));
            assert!(begun.load(Ordering::SeqCst) <= taken + 5);
        }
    }

    #[test]
    fn dropping_early_ends_the_threads() {
        for taken in [0, 1, 7] {
            let alive = Arc::new(());
            let token = Arc::clone(&alive);
            let mut results = prefetch(0.., 3, 6, move |n: u32| {
                let _ = &token;
                Ok(n)
            });
            for _ in 0..taken {
                results.next();
            }
            drop(results);
            assert_eq!(Arc::strong_count(&alive), 1);
        }
    }

    #[test]
    fn a_panic_goes_on_in_the_taking_thread() {
        let results = prefetch(0..10, 2, 4, |n| {
            if n == 3 {
                resume_unwind(Box::new("three"));
            }
            Ok(n)
        });
        let panic = catch_unwind(AssertUnwindSafe(|| results.map(Result::ok).count()));
        let panic = panic.expect_err("the third job panics");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"three"));
    }

    #[test]
    fn an_error_does_not_end_the_rest() {
        let results = prefetch(0..5, 2, 2, |n| match n {
            2 => Err(crate::Error::NotPaired {
                fault: "two".into(),
            }),
            n => Ok(n),
        });
        let ok: Vec<_> = results.map(|result| result.is_ok()).collect();
        assert_eq!(ok, [true, true, false, true, true]);
    }
}
