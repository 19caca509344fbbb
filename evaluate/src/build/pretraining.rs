//! COCO as EVE pre-trains on it: the official captions of 2014, without the test images of Karpathy.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::listed::sliced;
use super::plan::{Cell, FLAT_CAPTIONS, Picture, Place, Row, TablePlan};
use super::{BuildOptions, karpathy};
use crate::datasets::left_out::Omission;
use crate::predictions::file;
use crate::{DataFault, Error, Result};

/// The name of the split.
const SPLIT: &str = "pretrain";

/// The official files, and the folders of their pictures.
const FILES: [(&str, &str); 2] = [
    ("annotations/captions_train2014.json", "train2014"),
    ("annotations/captions_val2014.json", "val2014"),
];

#[derive(Deserialize)]
struct Official {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    caption: String,
}

/// Plans the splits of COCO: those of Karpathy, and this one where it is asked for.
pub(crate) fn coco(options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let (own, others): (Vec<String>, Vec<String>) =
        (options.splits.iter().cloned()).partition(|split| split == SPLIT);
    if own.is_empty() {
        return karpathy::plan(&karpathy::COCO, options);
    }
    let mut plans = plan(options)?;
    if !others.is_empty() {
        let options = BuildOptions {
            splits: others,
            ..options.clone()
        };
        plans.extend(karpathy::plan(&karpathy::COCO, &options)?);
    }
    Ok(plans)
}

/// A row for each caption, in the order of the annotations.
fn plan(options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let (test, of_test) = karpathy::test_images(options)?;
    let mut rows = Vec::new();
    let mut left_out: HashSet<String> = HashSet::new();
    let mut n_images = 0;
    for (json, folder) in FILES {
        let json = options.raw.join(json);
        let official: Official = file::json(&json, "an annotation file of COCO's captions")?;
        n_images += official.images.len();
        let names = names(&json, official.images)?;
        let path: Arc<Path> = json.as_path().into();
        for (row, annotation) in official.annotations.into_iter().enumerate() {
            let place = Place {
                file: Arc::clone(&path),
                row,
            };
            let id = annotation.image_id;
            let Some(name) = names.get(&id) else {
                return Err(place.fault(format!("`image_id` {id} is of no image of the file")));
            };
            place.check_name(name)?;
            if of_test.contains(name) {
                left_out.insert(name.clone());
                continue;
            }
            rows.push(Row {
                place,
                pictures: vec![Picture::file(options.raw.join(folder).join(name))],
                cells: vec![Cell::Text(annotation.caption), Cell::Text(name.clone())],
            });
        }
    }
    if rows.is_empty() {
        let fault = "no caption is of an image that is not a test image".to_owned();
        let path = options.raw.join(FILES[0].0);
        return Err(Error::Data(DataFault::NoSuchExamples { path, fault }));
    }
    let mut plans = sliced("coco_", &FLAT_CAPTIONS, rows);
    let mut ids: Vec<String> = left_out.into_iter().collect();
    ids.sort_unstable();
    let why = format!("test images of {}", name_of(&test));
    if let Some(first) = plans.first_mut() {
        first.left_out = (Omission::of_ids("images", why, ids, n_images).into_iter()).collect();
    }
    Ok(plans)
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The picture of each image.
fn names(json: &Path, images: Vec<Image>) -> Result<HashMap<i64, String>> {
    let mut names = HashMap::with_capacity(images.len());
    for Image { id, file_name } in images {
        if names.insert(id, file_name).is_some() {
            return Err(Error::DuplicateId {
                path: json.into(),
                what: "image",
                id: id.to_string(),
            });
        }
    }
    Ok(names)
}
