//! The report that the published program gives when it loads a checkpoint into a model.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::Checkpoint;
use crate::layouts::{FlmSpec, FlmTask};

/// Names that a checkpoint and a model do not share, in the order in which the published program registers them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Names of the model that the checkpoint lacks. Parts that the published program adds after loading, the
    /// classifier of NLVR2 and the ranking head, are not among them.
    pub missing: Vec<String>,
    /// Names of the checkpoint that the model does not have.
    pub unexpected: Vec<String>,
}

impl LoadReport {
    pub(super) fn of(source: &Checkpoint, from: &FlmSpec, to: &FlmSpec) -> Self {
        let added_later = match to.task {
            FlmTask::Nlvr2 => "nlvr2_classifier.",
            FlmTask::Retrieval => "rank_output.",
            _ => "\0",
        };
        let wanted: Vec<String> = to.names().into_iter().map(|(name, _)| name).collect();
        let known: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        let of_source: Vec<String> = (from.names().into_iter())
            .map(|(name, _)| name)
            .filter(|name| source.get(name).is_some())
            .collect();
        Self {
            missing: (wanted.iter())
                .filter(|name| source.get(name).is_none() && !name.starts_with(added_later))
                .cloned()
                .collect(),
            unexpected: (of_source.into_iter())
                .filter(|name| !known.contains(name.as_str()))
                .collect(),
        }
    }
}
