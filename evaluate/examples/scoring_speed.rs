//! Times the ranking of images and texts by features that are at hand: products in tiles, recall
//! both ways, no score kept.
//!
//! `scoring_speed [IMAGES] [TEXTS] [WIDTH]`

use std::io::Write;
use std::time::Instant;

use evaluate::Result;
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::tasks::Similarities;
use merge::random::Draws;

fn main() -> Result<()> {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    let size = |index: usize, usual| sizes.get(index).copied().unwrap_or(usual);
    let (n_images, n_texts, width) = (size(0, 5000), size(1, 25000), size(2, 768));
    let draw = |name: &str, n: usize| {
        let mut values = vec![0.0; n * width];
        Draws::new(0, name).add_normal(1.0, 0, &mut values);
        values
    };
    let (images, texts) = (draw("images", n_images), draw("texts", n_texts));
    let image_ids: Vec<i64> = (0..n_images as i64).collect();
    let text_ids: Vec<i64> = (0..n_texts)
        .map(|text| (text * n_images / n_texts) as i64)
        .collect();
    let captions = Captions::new(&image_ids, &text_ids)?;
    let scores = Similarities::new(images, texts, width);
    for _ in 0..3 {
        let started = Instant::now();
        let found = standings(&scores, &captions)?;
        let judged = sample(&found, &captions, Ties::Expected);
        let seconds = started.elapsed().as_secs_f64();
        let rsum = judged
            .quantities
            .last()
            .and_then(|quantity| judged.value(quantity));
        let line = format!("{n_images} x {n_texts} x {width}: {seconds:.2} s, RSUM {rsum:.2?}");
        // A closed standard output is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    Ok(())
}
