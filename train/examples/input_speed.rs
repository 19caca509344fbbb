//! Decodes pictures and makes random views of them, on one thread, and prints pictures a second:
//! `benches/input.py` compares it with Pillow and OpenCV.
//!
//! `cargo run --release --workspace --example input_speed -- SIDE SECONDS FILE...`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::time::{Duration, Instant};

use evaluate::images::{Filter, Resampler, Rgb, decode, normalize_into};
use merge::random::Draws;
use train::augment::{Operation, Slips, TrainTransform, mirror};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let side: usize = arguments.next().ok_or("no SIDE")?.parse()?;
    let seconds: f64 = arguments.next().ok_or("no SECONDS")?.parse()?;
    let files: Vec<Vec<u8>> = arguments.map(std::fs::read).collect::<Result<_, _>>()?;
    let transform = TrainTransform::new(side);
    let mut values = vec![0.0; transform.len()];
    let (mut spent, mut n) = ([Duration::ZERO; 4], 0_u32);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        for file in &files {
            let mut draws = Draws::new(1, &format!("picture {n}")).sequence();
            let mut last = Instant::now();
            let mut lap = |part: usize| {
                spent[part] += last.elapsed();
                last = Instant::now();
            };
            let picture = decode(file)?;
            lap(0);
            let part = transform.crop.draw(&picture, &mut draws);
            let from = (part.width, part.height);
            let resampler = Resampler::with_filter(from, (side, side), Filter::Bicubic);
            let mut view = resampler.resize_part(&picture, part);
            if draws.chance(transform.flip) {
                mirror(&mut view);
            }
            lap(1);
            transform.augment.apply(&mut view, &mut draws);
            lap(2);
            normalize_into(&view, &mut values);
            lap(3);
            n += 1;
        }
    }
    let rate = f64::from(n) / start.elapsed().as_secs_f64();
    let micros = spent.map(|time| 1e6 * time.as_secs_f64() / f64::from(n.max(1)));
    let [decoded, cropped, augmented, normalized] = micros;
    println!(
        "{rate:.1} pictures/s; us: decode {decoded:.0}, crop {cropped:.0}, augment {augmented:.0}, normalize {normalized:.0}"
    );
    operations(&decode(files.first().ok_or("no FILE")?)?, side);
    Ok(())
}

/// Prints the time of each operation on one view.
fn operations(picture: &Rgb, side: usize) {
    let view = Resampler::new((picture.width, picture.height), (side, side)).resize(picture);
    for operation in Operation::ALL {
        let mut fastest = Duration::MAX;
        for _ in 0..50 {
            let mut view = view.clone();
            let start = Instant::now();
            operation.apply(&mut view, operation.strength(7.0), Slips::default());
            fastest = fastest.min(start.elapsed());
        }
        println!("{operation:?} {:.0}", 1e6 * fastest.as_secs_f64());
    }
}
