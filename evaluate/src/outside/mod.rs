//! Results of other programs: a number in the JSON that one wrote, the answers that two left example by example.
//!
//! 1. [`json::number`] finds a number in JSON, as Python writes it, by the path of its keys.
//! 2. [`logs::Run`] reads the answers of a run of lm-evaluation-harness, lmms-eval or VLMEvalKit.
//! 3. [`compare::compare`] says which of two runs is better, or that the data cannot tell.
//! 4. [`power::Aim`] says how many examples tell a difference.

pub mod compare;
pub mod json;
pub mod logs;
pub mod power;
