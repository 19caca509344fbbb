//! Arrow files of images with captions in shards of webdatasets and in parquet files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::listed::{is_flat, sliced};
use super::plan::{CAPTIONS, Cell, FLAT_CAPTIONS, Picture, Place, Row, TablePlan};
use super::{BuildOptions, chosen};
use crate::datasets::captions::CaptionSet;
use crate::datasets::packed::Packed;
use crate::datasets::{DatasetSpec, Kind, Split};
use crate::{DataFault, Error, Result};

/// The plans of a data set of captions whose packed files are in the raw folder; `None` where there are none, or a split
/// is asked for that they do not have.
///
/// # Errors
/// As the readers of the files.
pub(super) fn plan(
    dataset: &'static DatasetSpec,
    options: &BuildOptions,
) -> Result<Option<Vec<TablePlan>>> {
    if dataset.kind != Kind::Captions {
        return Ok(None);
    }
    let mut found = Vec::new();
    for split in dataset
        .splits
        .iter()
        .filter(|split| split.tables.len() == 1)
    {
        let is_asked = options.splits.iter().any(|name| name == split.name);
        let packed = Packed::in_folder(&options.raw, split.name)?;
        let Some(packed) = packed.filter(|_| is_asked || options.splits.is_empty()) else {
            continue;
        };
        match CaptionSet::of_packed(&packed) {
            Ok(set) => found.push((split, set)),
            // Files of several splits have none of this one, which nobody asked for.
            Err(Error::Data(DataFault::MissingTable { .. })) if !is_asked => {}
            Err(error) => return Err(error),
        }
    }
    let known: Vec<&str> = found.iter().map(|(split, _)| split.name).collect();
    let is_known = |name: &String| known.contains(&name.as_str());
    if known.is_empty() || !options.splits.iter().all(is_known) {
        return Ok(None);
    }
    chosen(dataset.name, &known, options)?;
    let plans = found.into_iter();
    let plans = plans.map(|(split, set)| plans_of(dataset, split, set));
    Ok(Some(plans.flatten().collect()))
}

fn plans_of(dataset: &DatasetSpec, split: &Split, set: CaptionSet) -> Vec<TablePlan> {
    let set = Arc::new(set);
    let table = split.tables.first().copied().unwrap_or(split.name);
    // Tables of one file are named by their split.
    let of_split = match table.contains("{}") {
        true => split.name,
        false => table.rsplit('_').next().unwrap_or(table),
    };
    let mut files: BTreeMap<&Path, Arc<Path>> = BTreeMap::new();
    let mut rows = Vec::new();
    let flat = is_flat(dataset.name);
    for image in 0..set.n_images() {
        let (path, row) = set.place(image).unwrap_or((Path::new(""), image));
        let file = files.entry(path).or_insert_with(|| path.into());
        let id = set.image_id(image);
        let row = |cells: Vec<Cell>| Row {
            place: Place {
                file: Arc::clone(file),
                row,
            },
            pictures: vec![Picture {
                path: path.join(id),
                packed: Some((Arc::clone(&set), image)),
            }],
            cells,
        };
        let captions = set.captions(image);
        match flat {
            true => {
                rows.extend(captions.iter().map(|caption| {
                    row(vec![Cell::Text(caption.clone()), Cell::Text(id.to_owned())])
                }))
            }
            false => rows.push(row(vec![
                Cell::Texts(captions.to_vec()),
                Cell::Text(id.to_owned()),
                Cell::Text(of_split.to_owned()),
            ])),
        }
    }
    let columns = match flat {
        true => FLAT_CAPTIONS.to_vec(),
        false => CAPTIONS.to_vec(),
    };
    match table.split_once("{}") {
        Some((before, _)) => sliced(before, &columns, rows),
        None => vec![TablePlan {
            name: table.to_owned(),
            columns,
            is_pair: false,
            rows,
            left_out: Vec::new(),
            notes: Vec::new(),
        }],
    }
}
