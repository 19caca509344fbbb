//! Queries, keys and values of a block taken out of their packed tensor, and put into it again, value for value.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::io::TensorEntry;
use crate::layouts::runs::{Origin, Run, RunView};
use crate::layouts::{WRAPPER, split_block};
use crate::{Checkpoint, ConversionFault, Error, Result, TensorInfo};

use super::Vit;
use super::table::BLOCKS;

/// The name of the packed tensors, and the parts in their order.
const PACKED: &str = "attn.qkv.";
const PARTS: [&str; 3] = ["attn.q_proj.", "attn.k_proj.", "attn.v_proj."];

/// The spelling of a classifier's keys in a file of timm, which packs queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitSpelling {
    /// Whether all keys begin with `module.`.
    pub is_wrapped: bool,
}

impl VitSpelling {
    fn wrapper(self) -> &'static str {
        if self.is_wrapped { WRAPPER } else { "" }
    }

    /// The names that merges have for what a key holds: three where queries, keys and values are packed.
    #[must_use]
    pub fn apart_names(self, key: &str) -> Vec<String> {
        let key = key.strip_prefix(self.wrapper()).unwrap_or(key);
        match around(key, &[PACKED]) {
            Some((before, _, end)) => PARTS.map(|part| format!("{before}{part}{end}")).into(),
            None => vec![key.to_owned()],
        }
    }
}

/// The text before one of `parts` in a key of a block, the number of the part, and the text after it.
fn around<'k>(key: &'k str, parts: &[&str]) -> Option<(&'k str, usize, &'k str)> {
    let (_, rest) = key.strip_prefix(BLOCKS).and_then(split_block)?;
    let (nth, end) =
        (parts.iter().enumerate()).find_map(|(nth, part)| Some((nth, rest.strip_prefix(part)?)))?;
    let before = &key[..key.len() - rest.len()];
    matches!(end, "weight" | "bias").then_some((before, nth, end))
}

/// A classifier as merges read it: queries, keys and values are tensors of their own. Also how to pack the result. Other
/// checkpoints are returned as they are.
///
/// # Errors
/// [`ConversionFault::Parts`] for a packed tensor that is not made of three parts, and
/// [`ConversionFault::NameTaken`].
pub fn apart(checkpoint: Arc<Checkpoint>) -> Result<(Arc<Checkpoint>, Option<VitSpelling>)> {
    let Some(spelling) = Vit::spelling_of(&checkpoint) else {
        return Ok((checkpoint, None));
    };
    let mut tensors = Vec::new();
    for (key, info) in checkpoint.tensors() {
        let names = spelling.apart_names(key);
        let mut part = info.clone();
        if names.len() > 1 {
            match part.shape.first_mut() {
                Some(rows) if rows.is_multiple_of(names.len()) => *rows /= names.len(),
                _ => {
                    let reason = format!("shape {:?} is not made of 3 parts", info.shape);
                    return Err(wrong(&checkpoint, key, reason));
                }
            }
        }
        let length = part.n_elements();
        for (nth, name) in names.into_iter().enumerate() {
            if checkpoint.get(&name).is_some() && name != key {
                return Err(taken(&checkpoint, &name));
            }
            let run = Run {
                key: key.to_owned(),
                first: nth * length,
                length,
            };
            let entry = TensorEntry::named(name, part.clone());
            tensors.push((entry, Origin::Runs(vec![run])));
        }
    }
    Ok((viewed(checkpoint, tensors), Some(spelling)))
}

/// A classifier whose queries, keys and values are packed again.
///
/// # Errors
/// [`ConversionFault::Parts`] for parts that are missing or differ in shape or dtype, [`ConversionFault::NameTaken`].
pub fn packed(checkpoint: Arc<Checkpoint>, to: VitSpelling) -> Result<Arc<Checkpoint>> {
    let mut tensors = Vec::new();
    let mut made: BTreeMap<String, [Option<(Run, TensorInfo)>; 3]> = BTreeMap::new();
    for (key, info) in checkpoint.tensors() {
        let run = Run::whole(key, info);
        match around(key, &PARTS) {
            Some((before, nth, end)) => {
                let name = format!("{}{before}{PACKED}{end}", to.wrapper());
                made.entry(name).or_default()[nth] = Some((run, info.clone()));
            }
            None => {
                let name = format!("{}{key}", to.wrapper());
                let entry = TensorEntry::named(name, info.clone());
                tensors.push((entry, Origin::Runs(vec![run])));
            }
        }
    }
    for (name, parts) in made {
        let there: Vec<(Run, TensorInfo)> = parts.into_iter().flatten().collect();
        let Some((_, first)) = there.first().filter(|_| there.len() == PARTS.len()) else {
            let reason = format!("it is made of 3 parts, of which {} are there", there.len());
            return Err(wrong(&checkpoint, &name, reason));
        };
        let mut info = first.clone();
        if let Some((run, other)) = there.iter().find(|(_, other)| *other != info) {
            let reason = format!(
                "`{}` is {} {:?}, but the first part is {} {:?}",
                run.key, other.dtype, other.shape, info.dtype, info.shape
            );
            return Err(wrong(&checkpoint, &name, reason));
        }
        if let Some(rows) = info.shape.first_mut() {
            *rows *= PARTS.len();
        }
        let runs = there.into_iter().map(|(run, _)| run).collect();
        tensors.push((TensorEntry::named(name, info), Origin::Runs(runs)));
    }
    Ok(viewed(checkpoint, tensors))
}

/// The view of these tensors, with the notes of the file.
fn viewed(source: Arc<Checkpoint>, tensors: Vec<(TensorEntry, Origin)>) -> Arc<Checkpoint> {
    let (info, notes) = (source.info().clone(), source.notes().to_vec());
    let view = Checkpoint::new(Box::new(RunView::new(source, info, tensors)));
    let noted = notes
        .into_iter()
        .fold(view, |view, note| view.with_note(Some(note)));
    Arc::new(noted)
}

fn wrong(source: &Checkpoint, key: &str, reason: String) -> Error {
    ConversionFault::Parts {
        path: source.path().into(),
        key: key.to_owned(),
        reason,
    }
    .into()
}

fn taken(source: &Checkpoint, key: &str) -> Error {
    ConversionFault::NameTaken {
        path: source.path().into(),
        key: key.to_owned(),
    }
    .into()
}
