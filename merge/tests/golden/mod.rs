//! Golden sets: every number that published programs printed, driven by the sets' manifests alone.
//! `VLMERGE_GOLDEN=DIR` runs these tests over another set (`CONTRIBUTING.md`, *Golden sets*).

mod clip;
mod convert;
mod eve;
mod flm;
mod merging;
mod methods;
mod refusals;
mod relative_position;
mod safetensors_corpus;
pub mod torch_corpus;
mod vit;
mod zerovl;
