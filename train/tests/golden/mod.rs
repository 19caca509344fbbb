//! Golden sets: losses and gradients that published programs printed, driven by the sets' manifests
//! alone. `VLMERGE_GOLDEN=DIR` runs these tests over another set (`CONTRIBUTING.md`, *Golden sets*).

mod gradients;
mod losses;
#[path = "../../../evaluate/tests/golden/models.rs"]
mod models;
