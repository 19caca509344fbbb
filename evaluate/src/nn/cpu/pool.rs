//! Work that calls the thread pool many times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rayon::{Scope, Yield};

/// Runs `work` on a thread of the pool. Until it is done the other threads look for its tasks without
/// falling asleep: each of its loops would else have to wake them, which takes as long as a small loop
/// itself. Threads without a task let others of the machine go first.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let is_done = &AtomicBool::new(false);
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|scope| stay_awake(scope, is_done));
        }
        let _end = SetAtEnd(is_done);
        work()
    })
}

/// Looks for one task, and asks to be called again. It never waits for the end: whoever takes it may
/// itself be waited for, so that two of them would wait for each other.
fn stay_awake<'scope>(scope: &Scope<'scope>, is_done: &'scope AtomicBool) {
    if is_done.load(Ordering::Acquire) {
        return;
    }
    if rayon::yield_now() != Some(Yield::Executed) {
        thread::yield_now();
    }
    scope.spawn(|scope| stay_awake(scope, is_done));
}

/// Sets a flag when it is dropped, after a panic, too.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_within_work_ends_on_any_number_of_threads() {
        for n_threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            let pool = pool.build().expect("threads");
            let sum = |n: u64| (0..n).into_par_iter().sum::<u64>();
            let nested = || in_pool(|| (0..100).map(|n| in_pool(|| sum(n))).sum::<u64>());
            assert_eq!(pool.install(nested), 161_700);
        }
        assert_eq!(in_pool(|| 7), 7);
    }

    #[test]
    fn works_at_the_same_time_do_not_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
        let pool = pool.build().expect("threads");
        let sum = |n: u64| (0..n).into_par_iter().map(|k| k % 7).sum::<u64>();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for n in 0..2000 {
                        let found = pool.install(|| in_pool(|| sum(n)));
                        assert_eq!(found, (0..n).map(|k| k % 7).sum::<u64>());
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_comes_out() {
        let caught = catch_unwind(|| in_pool(|| panic!("as asked")));
        assert!(caught.is_err());
        assert_eq!(in_pool(|| 7), 7);
    }
}
