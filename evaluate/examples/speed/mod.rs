//! The common part of the examples that time models: rounds, and the line that they print.

use std::io::Write;
use std::time::Instant;

use candle_core::Tensor;
use evaluate::Result;

/// The program's own.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs `round` once for warmth and then `rounds` times, and prints a JSON line: the median and the least
/// of their seconds, the first number of the last result, the threads, and the peak memory in bytes.
pub fn time(
    which: &str,
    batch: usize,
    rounds: usize,
    mut round: impl FnMut() -> Result<Tensor>,
) -> Result<()> {
    let (mut seconds, mut shown) = (Vec::new(), 0.0);
    for _ in 0..=rounds.max(1) {
        let started = Instant::now();
        let result = round()?;
        seconds.push(started.elapsed().as_secs_f64());
        shown = result.flatten_all()?.to_vec1::<f32>()?[0];
    }
    let mut timed = seconds.split_off(1);
    timed.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok());
    say(&format!(
        "{{\"engine\": \"vlmerge\", \"which\": \"{which}\", \"batch\": {batch}, \"threads\": {}, \
         \"seconds\": {:.4}, \"fastest_seconds\": {:.4}, \"first_number\": {shown:.6}, \
         \"peak_rss_bytes\": {}}}",
        rayon::current_num_threads(),
        timed[timed.len() / 2],
        timed[0],
        peak.unwrap_or(0) * 1024,
    ))
}

/// Prints a line.
pub fn say(line: &str) -> Result<()> {
    // A closed standard output is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}
