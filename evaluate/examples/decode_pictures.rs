//! Decodes pictures, resizes them to a square, and prints hashes and times, one line a file:
//! `benches/pictures.py` compares them with Pillow's.
//!
//! `cargo run --release -p vlmerge-evaluate --example decode_pictures -- SIDE REPEATS FILE...`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::time::Instant;

use evaluate::images::{Resampler, Rgb, decode};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let side: usize = arguments.next().ok_or("no SIDE")?.parse()?;
    let repeats: usize = arguments.next().ok_or("no REPEATS")?.parse()?;
    for file in arguments {
        let bytes = std::fs::read(&file)?;
        let picture = match decode(&bytes) {
            Ok(picture) => picture,
            Err(error) => {
                println!("{file} - - 0 0 {error}");
                continue;
            }
        };
        let (mut fastest_decode, mut fastest_resize) = (f64::MAX, f64::MAX);
        let mut square = picture.clone();
        for _ in 0..repeats.max(1) {
            let start = Instant::now();
            let picture = decode(&bytes)?;
            let decoded = Instant::now();
            let from = (picture.width, picture.height);
            square = Resampler::new(from, (side, side)).resize(&picture);
            fastest_resize = fastest_resize.min(1e3 * decoded.elapsed().as_secs_f64());
            fastest_decode = fastest_decode.min(1e3 * (decoded - start).as_secs_f64());
        }
        let (decoded, resized) = (hash(&picture), hash(&square));
        println!("{file} {decoded} {resized} {fastest_decode:.3} {fastest_resize:.3}");
    }
    Ok(())
}

fn hash(picture: &Rgb) -> String {
    let digest = Sha256::digest(&picture.pixels);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
