//! COCO and Flickr30K in the splits of Karpathy: one JSON file for all images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::plan::{CAPTIONS, Cell, Picture, Place, Row, TablePlan, Textless, shown};
use super::{BuildOptions, chosen};
use crate::predictions::file;
use crate::{DataFault, Error, Result};

/// One of the two data sets.
pub(crate) struct Source {
    dataset: &'static str,
    json: &'static str,
    /// The folder of all pictures, or none where each image names its own.
    folder: Option<&'static str>,
    table: &'static str,
    splits: &'static [&'static str],
}

pub(crate) const COCO: Source = Source {
    dataset: "coco",
    json: "karpathy/dataset_coco.json",
    folder: None,
    table: "coco_caption_karpathy_",
    splits: &["train", "restval", "val", "test"],
};

pub(crate) const FLICKR30K: Source = Source {
    dataset: "f30k",
    json: "karpathy/dataset_flickr30k.json",
    folder: Some("flickr30k-images"),
    table: "f30k_caption_karpathy_",
    splits: &["train", "val", "test"],
};

/// X-VLM's list of COCO's test images.
const LISTED_TEST: &str = "coco_test.json";

const WHAT: &str = "a list of images in Karpathy's form";

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    filename: String,
    filepath: Option<String>,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

pub(crate) fn plan(source: &Source, options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let splits = chosen(source.dataset, source.splits, options)?;
    let json = options.raw.join(source.json);
    let annotations: Annotations = file::json(&json, WHAT)?;
    let mut plans: Vec<TablePlan> = splits
        .iter()
        .map(|split| TablePlan {
            name: format!("{}{split}", source.table),
            columns: CAPTIONS.to_vec(),
            is_pair: false,
            rows: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
        })
        .collect();
    let file: Arc<Path> = json.as_path().into();
    let mut seen = HashSet::new();
    let new = || Textless::new("caption", options);
    let mut textless: Vec<Textless> = splits.iter().map(|_| new()).collect();
    // Images of splits that are not built are checked, too.
    let mut others = new();
    for (row, image) in annotations.images.into_iter().enumerate() {
        let place = Place {
            file: Arc::clone(&file),
            row,
        };
        if !source.splits.contains(&image.split.as_str()) {
            return Err(place.fault(format!("split {} is unknown", shown(&image.split))));
        }
        place.check_name(&image.filename)?;
        if !seen.insert(image.filename.clone()) {
            return Err(Error::DuplicateId {
                path: json,
                what: "image",
                id: image.filename,
            });
        }
        let number = splits.iter().position(|split| *split == image.split);
        let n_texts = image.sentences.len();
        let of_split = match number {
            Some(number) => &mut textless[number],
            None => &mut others,
        };
        if !of_split.has_text(&place, &image.filename, n_texts)? {
            continue;
        }
        let folder = match (source.folder, &image.filepath) {
            (Some(folder), _) => folder,
            (None, Some(folder)) => {
                place.check_name(folder)?;
                folder
            }
            (None, None) if image.filename.contains("_train2014_") => "train2014",
            (None, None) => "val2014",
        };
        let Some(number) = number else {
            continue;
        };
        plans[number].rows.push(Row {
            place,
            pictures: vec![Picture::file(
                options.raw.join(folder).join(&image.filename),
            )],
            cells: vec![
                Cell::Texts(
                    image
                        .sentences
                        .into_iter()
                        .map(|sentence| sentence.raw)
                        .collect(),
                ),
                Cell::Text(image.filename),
                Cell::Text(image.split),
            ],
        });
    }
    for (plan, textless) in plans.iter_mut().zip(textless) {
        plan.left_out = textless.left_out();
    }
    for (plan, split) in plans.iter().zip(&splits) {
        if plan.rows.is_empty() {
            let fault = format!("no image is of split {split:?}");
            return Err(Error::Data(DataFault::NoSuchExamples { path: json, fault }));
        }
    }
    Ok(plans)
}

/// COCO's annotations, and the names of its test images: those of Karpathy, or else of X-VLM's `coco_test.json`.
pub(super) fn test_images(options: &BuildOptions) -> Result<(PathBuf, HashSet<String>)> {
    let json = options.raw.join(COCO.json);
    let listed = options.raw.join(LISTED_TEST);
    if !json.exists() && listed.exists() {
        #[derive(Deserialize)]
        struct Listed {
            image: String,
        }
        let images: Vec<Listed> = file::json(&listed, "a list of images with captions")?;
        let names = images.iter().map(|listed| &listed.image);
        let names = names.map(|name| name.rsplit('/').next().unwrap_or_default().to_owned());
        return Ok((listed, names.collect()));
    }
    let annotations: Annotations = file::json(&json, WHAT)?;
    let images = annotations.images.into_iter();
    let names = images.filter(|image| image.split == "test");
    Ok((json, names.map(|image| image.filename).collect()))
}
