//! A CLIP under the keys of another spelling, value for value: parameters taken out of packed tensors or packed,
//! matrices transposed, axes of length 1 put in or left out.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::io::TensorEntry;
use crate::layouts::ModelRecord;
use crate::layouts::runs::{Origin, Run, RunView};
use crate::{Checkpoint, ConversionFault, Error, Result, TensorInfo};

use super::facts::ClipConfig;
use super::spelling::{ClipNames, ClipSpelling, Held, Place};
use super::table::{BUFFERS, IMAGE_POSITIONS};

/// A CLIP as another spelling has it. Keys that are not in the family's grammar keep their names.
///
/// # Errors
/// [`ConversionFault::NameTaken`], [`ConversionFault::NoCounterpart`] for a parameter that the other spelling has no
/// name for, [`ConversionFault::Parts`] for parts of one tensor that differ in shape or dtype or are missing.
pub(super) fn respelled(
    source: Arc<Checkpoint>,
    from: ClipSpelling,
    to: ClipSpelling,
    is_siglip: bool,
) -> Result<Arc<Checkpoint>> {
    let (view, note) = view(source, from, to, is_siglip)?;
    Ok(Arc::new(Checkpoint::new(Box::new(view)).with_note(note)))
}

/// A parameter of the file.
struct Found {
    place: Place,
    info: TensorInfo,
    run: Run,
    is_turned: bool,
}

/// A tensor of the view under construction: its parts by number, and how many there are to be.
type Parts = (usize, BTreeMap<usize, (Found, bool)>);

/// The view, and what users should know of it.
fn view(
    inner: Arc<Checkpoint>,
    from: ClipSpelling,
    to: ClipSpelling,
    is_siglip: bool,
) -> Result<(RunView, Option<String>)> {
    let mut made: BTreeMap<String, Parts> = BTreeMap::new();
    let mut own: BTreeMap<String, TensorInfo> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (key, info) in inner.tensors() {
        let bare = key.strip_prefix(from.wrapper()).unwrap_or(key);
        if BUFFERS.contains(&bare) {
            left_out.push(key.to_owned());
            continue;
        }
        let places = from.places(key);
        if places.is_empty() {
            own.insert(key.to_owned(), info.clone());
        }
        for place in places {
            let found = found(&inner, from, place, key, info)?;
            let held = place.held(to).ok_or_else(|| {
                let why = "it has no such parameter";
                no_counterpart(&inner, key, to, why)
            })?;
            let Held {
                key: name,
                is_turned,
                part: (nth, of),
            } = held;
            let (_, parts) = made.entry(name.clone()).or_insert((of, BTreeMap::new()));
            if parts.insert(nth, (found, is_turned)).is_some() {
                return Err(taken(&inner, &name));
            }
        }
    }
    let mut tensors: Vec<(TensorEntry, Origin)> = Vec::new();
    for (name, (of, parts)) in made {
        if own.contains_key(&name) {
            return Err(taken(&inner, &name));
        }
        let (info, origin) = joined(&inner, &name, of, parts, to, is_siglip)?;
        tensors.push((TensorEntry::named(name, info), origin));
    }
    for (key, info) in own {
        let run = Run::whole(&key, &info);
        tensors.push((TensorEntry::named(key, info), Origin::Runs(vec![run])));
    }
    let mut info = inner.info().clone();
    if ModelRecord::of(&inner)? == ModelRecord::default()
        && let Some(config) = ClipConfig::of_archive(&inner, from)
    {
        config.record().add_to(&mut info.metadata);
    }
    let note = (!left_out.is_empty()).then(|| {
        format!(
            "{}: left out, for loaders rebuild it: `{}`",
            inner.path().display(),
            left_out.join("`, `")
        )
    });
    Ok((RunView::new(inner, info, tensors), note))
}

fn taken(source: &Checkpoint, key: &str) -> Error {
    ConversionFault::NameTaken {
        path: source.path().into(),
        key: key.to_owned(),
    }
    .into()
}

pub(super) fn no_counterpart(
    source: &Checkpoint,
    key: &str,
    to: ClipSpelling,
    why: &'static str,
) -> Error {
    ConversionFault::NoCounterpart {
        path: source.path().into(),
        key: key.to_owned(),
        target: match to.names {
            ClipNames::Apart | ClipNames::HuggingFace => "Hugging Face's spelling",
            ClipNames::OpenClip | ClipNames::OpenClipTimm => "open_clip's spelling",
        },
        why,
    }
    .into()
}

/// The place of a parameter in the file, and its shape as merges see it except for axes of length 1.
fn found(
    source: &Checkpoint,
    from: ClipSpelling,
    place: Place,
    key: &str,
    info: &TensorInfo,
) -> Result<Found> {
    let held = place.held(from);
    let (is_turned, (nth, of)) = held.map_or((false, (0, 1)), |held| (held.is_turned, held.part));
    let mut shape = info.shape.clone();
    let wrong = |reason: String| {
        Error::from(ConversionFault::Parts {
            path: source.path().into(),
            key: key.to_owned(),
            reason,
        })
    };
    if of > 1 {
        match shape.first_mut() {
            Some(rows) if rows.is_multiple_of(of) => *rows /= of,
            _ => return Err(wrong(format!("shape {shape:?} is not made of {of} parts"))),
        }
    }
    if is_turned && shape.len() != 2 {
        return Err(wrong(format!("shape {shape:?} is no matrix")));
    }
    let length: usize = shape.iter().product();
    if is_turned {
        shape.reverse();
    }
    Ok(Found {
        place,
        info: TensorInfo {
            dtype: info.dtype,
            shape,
        },
        run: Run {
            key: key.to_owned(),
            first: nth * length,
            length,
        },
        is_turned,
    })
}

/// A tensor of the view out of its parts.
fn joined(
    source: &Checkpoint,
    name: &str,
    of: usize,
    parts: BTreeMap<usize, (Found, bool)>,
    to: ClipSpelling,
    is_siglip: bool,
) -> Result<(TensorInfo, Origin)> {
    let wrong = |reason: String| {
        Error::from(ConversionFault::Parts {
            path: source.path().into(),
            key: name.to_owned(),
            reason,
        })
    };
    if parts.len() != of {
        let there: Vec<&str> = (parts.values().map(|(part, _)| part.run.key.as_str())).collect();
        return Err(wrong(format!(
            "it is made of {of} parts, of which {} are there: {}",
            there.len(),
            there.join(", ")
        )));
    }
    let mut parts = parts.into_values();
    let Some((first, is_turned)) = parts.next() else {
        return Err(wrong("no part of it is there".to_owned()));
    };
    let mut info = first.info.clone();
    let mut runs = vec![first.run.clone()];
    for (part, _) in parts {
        if part.info != first.info {
            return Err(wrong(format!(
                "`{}` is {} {:?}, but `{}` is {} {:?}",
                first.run.key,
                first.info.dtype,
                first.info.shape,
                part.run.key,
                part.info.dtype,
                part.info.shape
            )));
        }
        runs.push(part.run);
    }
    if let Some(rows) = info.shape.first_mut() {
        *rows *= of;
    }
    let origin = match (first.is_turned ^ is_turned, info.shape.as_slice()) {
        (true, &[rows, columns]) => {
            // The file has it the other way round from what the view shows.
            let there = if is_turned {
                [rows, columns]
            } else {
                [columns, rows]
            };
            let run = runs.swap_remove(0);
            Origin::Turned(run, there, OnceLock::new())
        }
        _ => Origin::Runs(runs),
    };
    if is_turned {
        info.shape.reverse();
    }
    info.shape = with_ones(first.place, info.shape, to, is_siglip);
    Ok((info, origin))
}

/// The shape with the axes of length 1 that a spelling has.
fn with_ones(place: Place, shape: Vec<usize>, to: ClipSpelling, is_siglip: bool) -> Vec<usize> {
    let is_open_clip = matches!(to.names, ClipNames::OpenClip | ClipNames::OpenClipTimm);
    if place.parameter.shape.is_empty() && shape.iter().product::<usize>() == 1 {
        return match is_siglip && !is_open_clip {
            true => vec![1],
            false => Vec::new(),
        };
    }
    if place.name() != IMAGE_POSITIONS {
        return shape;
    }
    match (shape.as_slice(), to.names) {
        (&[rows, width], ClipNames::OpenClipTimm) => vec![1, rows, width],
        (&[1, rows, width], ClipNames::OpenClip | ClipNames::HuggingFace | ClipNames::Apart) => {
            vec![rows, width]
        }
        _ => shape,
    }
}
