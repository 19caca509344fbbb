//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod ace;
mod advise;
mod aliases;
mod beside;
mod catalog;
mod changing;
mod checkpoint_methods;
mod clip;
mod clip_archives;
mod containers;
mod convert;
mod diff;
mod distance;
mod eve;
mod eve_of_beit;
mod every_method;
mod expert_folders;
mod expert_numbers;
mod extract;
mod flm;
mod gguf;
mod golden;
mod large_tensors;
mod layout_families;
mod layouts;
mod lora;
mod megatron;
mod memory;
mod mergekit;
mod methods_document;
mod mixture_models;
mod mixtures;
mod non_finite;
mod pickled;
mod quantized;
#[cfg(feature = "remote")]
mod range_server;
mod recipes;
mod relative_position;
#[cfg(feature = "remote")]
mod remote;
mod safetensors;
mod sharded;
mod statistics;
mod stored;
mod task_vectors;
mod ties;
mod torch_corpus;
mod torch_reader;
mod torchscript;
mod trainer;
mod vit;
mod writer;
mod zero;
mod zerovl;
