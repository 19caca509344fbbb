//! The program end to end: one file per walk.
#![allow(missing_docs, reason = "test names are the documentation")]

mod adamerging;
mod aligning;
mod aligning_by_activations;
mod bad_recipes;
mod cases;
mod class_folders;
mod clip;
mod compare;
mod comparing_ways;
mod convert;
mod corpus;
mod csv_tables;
mod data;
mod data_cases;
mod documents;
mod encode;
mod evaluating;
mod eve_merging;
mod eve_training;
mod fisher;
mod flm_files;
mod flm_training;
mod forward;
mod forward_golden;
mod gram_parts;
mod grams_between_checkpoints;
mod hardened;
mod hostile_data;
mod inspect;
mod interrupted;
mod kept_results;
mod linear_probe;
mod lora;
mod merging;
mod mixtures;
mod model_facts;
mod moe;
mod packed;
mod program;
mod prose;
mod quantized_models;
#[cfg(feature = "remote")]
#[path = "../merge/tests/range_server.rs"]
#[allow(
    dead_code,
    reason = "this harness needs less of the server than its own"
)]
mod range_server;
mod recipes;
mod regmeanpp;
#[cfg(feature = "remote")]
mod remote;
mod report;
mod reranking;
mod resnet;
mod resuming;
mod score;
mod score_logs;
mod searching;
mod searching_outside;
mod shell;
mod soups;
mod study;
mod study_of_tasks;
mod training;
mod transplant;
mod tree;
mod two_towers;
mod verifying;
mod vit;
mod xvlm_files;
