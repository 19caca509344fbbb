//! Numbers that the published ZeroVL program printed, case by case of `fixtures/zerovl/manifest.json`.

mod gradients;
mod loading;
mod losses;
mod optimizer;
mod pictures;
mod probe;
mod runs;
mod sampling;
mod words;
