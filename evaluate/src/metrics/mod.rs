//! Metrics: pure functions of arrays and strings, one file each.

pub mod accuracy;
pub mod answers;
pub mod bootstrap;
pub mod calibration;
pub mod captions;
pub mod folds;
pub mod holm;
pub mod mcnemar;
pub mod nlvr2;
pub mod rank_correlation;
pub mod reranking;
pub mod retrieval;
pub mod vqa;
pub mod zero_shot;
