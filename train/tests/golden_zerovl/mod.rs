//! What the published ZeroVL program printed, case by case of `fixtures/zerovl/manifest.json`.

mod gradients;
mod losses;
mod optimizer;
mod pictures;
mod runs;
mod sampling;
mod words;
