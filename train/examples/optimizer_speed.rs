//! Times a step of AdamW against the memory traffic that it cannot do without: 16 bytes read and 12
//! written per parameter, at the speed of a loop that only moves as many bytes.
//!
//! `RAYON_NUM_THREADS=2 optimizer_speed [MILLIONS OF PARAMETERS]`

use std::io::Write;
use std::time::Instant;

use rayon::prelude::*;
use train::Result;
use train::optim::{OptimSettings, Step};

/// Elements per task, as in the optimizer.
const CHUNK: usize = 1 << 14;

const ROUNDS: u64 = 10;

fn main() -> Result<()> {
    let millions: usize = (std::env::args().nth(1))
        .and_then(|text| text.parse().ok())
        .unwrap_or(85);
    let n = millions * 1_000_000;
    let rule = OptimSettings::default().adamw();
    let (mut p, mut m, mut v) = (vec![1.0f32; n], vec![0.0; n], vec![0.0; n]);
    let g: Vec<f32> = (0..n).map(|i| (i % 1009) as f32 - 500.0).collect();
    let mut step_seconds = f64::INFINITY;
    let mut floor_seconds = f64::INFINITY;
    for index in 0..ROUNDS {
        let step = Step {
            index,
            rate: 1e-4,
            decay: 0.01,
            gradient_scale: 1.0,
        };
        let started = Instant::now();
        rule.update(step, &mut p, &g, &mut m, &mut v)?;
        step_seconds = step_seconds.min(started.elapsed().as_secs_f64());
        let started = Instant::now();
        touch(&mut p, &g, &mut m, &mut v);
        floor_seconds = floor_seconds.min(started.elapsed().as_secs_f64());
    }
    let speed = |seconds: f64| 28.0 * n as f64 / seconds / 1e9;
    let line = format!(
        "{millions} M parameters, {} threads: step {:.1} ms ({:.1} GB/s), bytes moved alone {:.1} ms \
         ({:.1} GB/s), ratio {:.2}",
        rayon::current_num_threads(),
        step_seconds * 1e3,
        speed(step_seconds),
        floor_seconds * 1e3,
        speed(floor_seconds),
        floor_seconds / step_seconds,
    );
    // A closed standard output is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}

/// Reads and writes what a step does, with one addition per slice.
fn touch(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    (p.par_chunks_mut(CHUNK))
        .zip(g.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((p, g), (m, v))| {
            merge::vectorized(
                #[inline(always)]
                || {
                    let moments = m.iter_mut().zip(v.iter_mut());
                    for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(moments) {
                        *p += g;
                        *m += g;
                        *v += g;
                    }
                },
            );
        });
}
