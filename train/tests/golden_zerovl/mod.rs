//! What the published ZeroVL program printed, case by case of `fixtures/zerovl/manifest.json`.

mod losses;
mod optimizer;
mod pictures;
mod sampling;
mod words;
