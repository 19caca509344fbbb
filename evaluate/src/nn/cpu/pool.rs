//! Work that calls upon the thread pool many times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rayon::Yield;

/// Runs `work` on a thread of the pool. Until it is done the other threads look for its tasks without
/// falling asleep: each of its loops would else have to wake them, which takes as long as a small loop
/// itself. Threads without a task let others of the machine go first.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let is_done = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let own = rayon::current_thread_index();
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // The thread that works takes this up itself where it waits for others; it would then
                // wait for itself.
                if rayon::current_thread_index() != own {
                    stay_awake(is_done);
                }
            });
        }
        let _end = SetAtEnd(is_done);
        work()
    })
}

fn stay_awake(is_done: &AtomicBool) {
    while !is_done.load(Ordering::Acquire) {
        if rayon::yield_now() != Some(Yield::Executed) {
            thread::yield_now();
        }
    }
}

/// Sets a flag at its end, be it a panic's.
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
    fn a_panic_comes_out() {
        let caught = catch_unwind(|| in_pool(|| panic!("as asked")));
        assert!(caught.is_err());
        assert_eq!(in_pool(|| 7), 7);
    }
}
