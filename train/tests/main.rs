//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod augmentation;
mod checks;
mod counted;
mod crossings;
mod eve;
mod eve_model;
mod expert_runs;
mod fisher;
mod fixture;
#[path = "../../evaluate/tests/flm_model.rs"]
mod flm_model;
mod fused_blocks;
mod golden;
mod golden_clip;
mod golden_eve;
mod golden_eve_data;
mod golden_eve_pictures;
mod golden_flm;
mod golden_flm_losses;
mod golden_flm_recipes;
mod golden_flm_steps;
mod golden_vit;
mod golden_zerovl;
mod groups;
mod logs;
mod masked_images;
mod model_record;
mod objectives;
mod operations;
mod optimizer;
mod padding;
mod pairs;
mod patches;
mod ranks;
mod recipes;
mod resharding;
mod running;
mod shared_experts;
mod shared_passes;
mod shared_runs;
mod starts;
mod threads;
mod views;
mod word_objectives;
mod words;
