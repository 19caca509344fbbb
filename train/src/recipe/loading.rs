//! Puts the tensors of a checkpoint into a model of fresh weights.

use std::sync::Arc;

use merge::convert::Conversion;
use merge::layouts::{self, without_module};
use merge::plan::{Action, Entry, PlanBuilder, TensorRef};
use merge::{Checkpoint, MergePlan, Progress};
use serde::{Deserialize, Serialize};

use super::init::IN_MEMORY;
use crate::{Error, Result};

/// Faults that an error lists.
const MAX_LISTED: usize = 10;

/// The parts of a checkpoint that go into the model of `init.fill`, and the parts that may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loading {
    /// Words that a key must hold, all of them, to be taken: `[image]` takes ZeroVL's image tower with its
    /// projection. The rest of the model stays fresh. All keys unless given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Beginnings of keys that are replaced before anything is looked for, one rule after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rename: Vec<Rename>,
    /// The treatment of tensors that the checkpoint lacks or has in another shape (`fill`).
    pub fit: Fit,
    /// Resize the checkpoint's position tables to the image of the fresh model (false).
    pub interpolate_positions: bool,
}

/// A beginning of keys in place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The first part of the checkpoint's keys, without `module.`.
    pub from: String,
    /// The new first part.
    pub to: String,
}

/// The treatment of tensors that a checkpoint lacks or has in another shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Missing tensors stay fresh; another shape is an error.
    #[default]
    Fill,
    /// Both are errors, as ZeroVL's program has it where it loads all.
    Exact,
    /// Both stay fresh, as ZeroVL's program has it where it loads one tower.
    Lenient,
}

/// A plan, and the names that it takes from the checkpoint.
pub struct Placed {
    /// The weights.
    pub plan: MergePlan,
    /// Names of the fresh model that the checkpoint gives values to, in order.
    pub taken: Vec<String>,
}

impl Loading {
    /// The key of a tensor in the fresh model.
    fn renamed(&self, key: &str) -> String {
        let mut name = without_module(key).to_owned();
        for rule in &self.rename {
            let [from, to] = [&rule.from, &rule.to].map(|part| without_module(part));
            if let Some(rest) = name.strip_prefix(from) {
                name = format!("{to}{rest}");
            }
        }
        name
    }

    /// Whether the settings take a key.
    fn takes(&self, name: &str) -> bool {
        self.only.iter().all(|word| name.contains(word.as_str()))
    }

    /// The checkpoint with its keys renamed and those left out that are not asked for. Position tables have
    /// the size of the fresh model's image if that is asked for.
    ///
    /// # Errors
    /// [`Error::BadSetting`] when no key is asked for; when two keys get one name, or tables cannot be
    /// resized.
    fn chosen(
        &self,
        own: Arc<Checkpoint>,
        fresh: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<Arc<Checkpoint>> {
        let mut plan = PlanBuilder::new("init.load: chosen keys".into());
        let index = plan.side_source(Arc::clone(&own));
        let mut n = 0;
        for (key, info) in own.tensors() {
            let name = self.renamed(key);
            if !self.takes(&name) {
                continue;
            }
            let key = key.to_owned();
            plan.add(Entry {
                name,
                info: info.clone(),
                action: Action::Copy(TensorRef { source: index, key }),
                why: "chosen".into(),
            })?;
            n += 1;
        }
        if n == 0 {
            return Err(Error::BadSetting {
                key: "init.load.only".into(),
                reason: format!(
                    "no key of {} holds {}",
                    own.path().display(),
                    self.only.join(" and ")
                ),
            });
        }
        let chosen = Arc::new(merge::execute::in_memory(
            &plan.finish()?,
            &IN_MEMORY,
            progress,
        )?);
        let tables = layouts::detect(&chosen)?;
        if !self.interpolate_positions || tables.position_tables().is_empty() {
            return Ok(chosen);
        }
        let conversion = Conversion {
            image_size: layouts::detect(fresh)?.dimensions().image_size,
            ..Conversion::default()
        };
        Ok(conversion.in_memory(chosen, &IN_MEMORY, progress)?)
    }

    /// The tensors of `own` in the places of those of `fresh`.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with every tensor that does not, by [`Fit`]; [`Error::BadSetting`] when nothing
    /// is taken.
    pub fn place(
        &self,
        own: Arc<Checkpoint>,
        fresh: Arc<Checkpoint>,
        progress: &dyn Progress,
    ) -> Result<Placed> {
        let path = own.path().to_owned();
        let own = self.chosen(own, &fresh, progress)?;
        let mut plan = PlanBuilder::new("fill: fresh weights".into());
        let source = plan.side_source(Arc::clone(&own));
        let side = plan.side_source(Arc::clone(&fresh));
        let (mut taken, mut faults) = (Vec::new(), Vec::new());
        for (key, info) in own.tensors() {
            match fresh.get(key) {
                // No part of the fresh model; it goes along.
                None => plan.copy(source, key, "copied")?,
                Some(found) if found.shape == info.shape => {
                    plan.copy(source, key, "copied")?;
                    taken.push(key.to_owned());
                }
                Some(_) if self.fit == Fit::Lenient => {}
                Some(found) => faults.push(format!(
                    "`{key}` is {:?}, but the model has {:?}",
                    info.shape, found.shape
                )),
            }
        }
        for (key, _) in fresh.tensors() {
            let is_there = own.get(key).is_some();
            if !is_there && self.fit == Fit::Exact && self.takes(key) {
                faults.push(format!("`{key}` is missing"));
            } else if !plan.has(key) && (!is_there || self.fit == Fit::Lenient) {
                plan.copy(side, key, "fresh")?;
            }
        }
        if !faults.is_empty() {
            let n = faults.len();
            faults.truncate(MAX_LISTED);
            return Err(Error::DoesNotFit {
                path,
                n,
                faults: faults.join("; "),
            });
        }
        Ok(Placed {
            plan: plan.finish()?,
            taken,
        })
    }
}
