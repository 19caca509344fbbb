//! Long work: on a thread of its own, without the interpreter, with progress and Ctrl-C.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use merge::{Progress, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors::raised;

/// The time between two looks at signals and progress.
const TICK: Duration = Duration::from_millis(50);

/// The state of a job, which its threads write and the calling thread reads.
#[derive(Default)]
pub struct Watch {
    is_cancelled: AtomicBool,
    done: AtomicU64,
    stage: Mutex<Option<(String, u64)>>,
}

impl Watch {
    fn stage(&self) -> Option<(String, u64)> {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        stage.clone()
    }

    /// Calls `report(what, done, total)`.
    fn report(&self, py: Python<'_>, report: Option<&Py<PyAny>>) -> PyResult<()> {
        if let (Some(report), Some((what, total))) = (report, self.stage()) {
            let done = self.done.load(Ordering::Relaxed).min(total);
            report.bind(py).call1((what, done, total))?;
        }
        Ok(())
    }
}

impl Progress for Watch {
    fn start(&self, what: &str, total_bytes: u64) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = Some((what.to_owned(), total_bytes));
        self.done.store(0, Ordering::Relaxed);
    }

    fn start_items(&self, what: &str, total: u64) {
        self.start(what, total);
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

/// Does the work on another thread. Meanwhile the calling thread lets other Python threads run, and looks at signals and
/// calls `report` at times: signal handlers run on Python's main thread alone, and so they are seen there.
///
/// # Errors
/// Those of the work; what a signal handler (Ctrl-C) or `report` raises, after the work has stopped in good order.
pub fn run<T: Send>(
    py: Python<'_>,
    report: Option<&Py<PyAny>>,
    work: impl FnOnce(&Watch) -> Result<T> + Send,
) -> PyResult<T> {
    refuse_where_it_would_hang()?;
    let watch = &Watch::default();
    let (outcome, interruption) = py.detach(|| {
        thread::scope(|scope| {
            let (ended, end) = sync_channel::<()>(1);
            let worker = scope.spawn(move || {
                let outcome = work(watch);
                // If nobody waits any more, nobody has to know.
                let _ = ended.send(());
                outcome
            });
            let mut interruption = None;
            while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(TICK) {
                if interruption.is_some() {
                    continue;
                }
                let looked = Python::attach(|py| {
                    py.check_signals()?;
                    watch.report(py, report)
                });
                if let Err(error) = looked {
                    watch.is_cancelled.store(true, Ordering::Relaxed);
                    interruption = Some(error);
                }
            }
            // A panic of the worker is a bug and goes on as one.
            let outcome = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            (outcome, interruption)
        })
    });
    if let Some(error) = interruption {
        return Err(error);
    }
    let value = outcome.map_err(|error| raised(py, &error))?;
    watch.report(py, report)?;
    Ok(value)
}

/// Refuses work that would wait forever for the threads of the pool.
fn refuse_where_it_would_hang() -> PyResult<()> {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    let own = std::process::id();
    if *PROCESS.get_or_init(|| own) != own {
        return Err(PyRuntimeError::new_err(
            "this process was forked from one that had used vlmerge, and its threads were not copied; start processes \
             by multiprocessing.get_context(\"spawn\")",
        ));
    }
    if rayon::current_thread_index().is_some() {
        return Err(PyRuntimeError::new_err(
            "the function of an added method cannot call vlmerge: the merge that calls it holds the threads",
        ));
    }
    Ok(())
}
