//! One file per verb: flags, calls into the library, printing.

pub mod arithmetic;
pub mod convert;
pub mod data;
pub mod diff;
pub mod distance;
pub mod encode;
pub mod evaluate;
pub mod expand;
pub mod extract_lora;
pub mod finetune;
pub mod forward;
pub mod gram;
pub mod inspect;
pub mod interpolate;
pub mod merge;
pub mod pretrain;
pub mod recipe;
pub mod regmean;
pub mod report;
pub mod score;
pub mod search;
pub mod soup;
pub mod study;
pub mod sweep;
pub mod synth;
pub mod verify;
