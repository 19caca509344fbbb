//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod annotations;
mod attention;
mod build;
mod byte_level;
#[path = "../examples/candle_clip.rs"]
#[allow(dead_code, reason = "the example's own way in")]
mod candle_clip;
mod candle_layers;
mod captions;
mod conformance;
mod dvae;
mod eve;
mod fixture;
mod flm;
mod flm_model;
mod fused;
mod golden;
mod golden_clip;
mod golden_clip_inputs;
mod golden_eve;
mod golden_eve_errors;
mod golden_eve_inputs;
mod golden_eve_reranking;
mod golden_flm;
mod golden_flm_data;
mod golden_flm_tasks;
mod golden_flm_text;
mod golden_resnet;
mod golden_vit;
mod golden_zerovl_data;
mod golden_zerovl_scores;
mod grams;
mod hostile_tables;
mod images;
mod nlvr2;
mod openai_archive;
mod opening;
mod packed;
mod packing;
mod pretraining_pairs;
mod ranking;
mod reports;
mod reranking;
mod retrieval;
mod tables;
mod text;
mod tower_gradients;
mod towers;
mod two_towers;
mod var_builder;
mod vqa;
mod writing;
mod xvlm;
