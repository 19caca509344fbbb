//! Visual Genome: images with the descriptions of their regions.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::plan::{Cell, Kind, Picture, Place, Row, TablePlan, Textless};
use super::{BuildOptions, chosen};
use crate::predictions::file;
use crate::{Error, Result};

const FOLDERS: [&str; 2] = ["images/VG_100K", "images/VG_100K_2"];

#[derive(Deserialize)]
struct Image {
    id: Option<i64>,
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    image_id: i64,
    phrase: String,
    width: i64,
    height: i64,
    x: i64,
    y: i64,
}

pub(crate) fn plan(options: &BuildOptions) -> Result<Vec<TablePlan>> {
    chosen("vg", &["train"], options)?;
    let json = options.raw.join("annotations/region_descriptions.json");
    let images: Vec<Image> = file::json(&json, "a list of images with their regions")?;
    let file: Arc<Path> = json.as_path().into();
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    let mut textless = Textless::new("region", options);
    for (row, image) in images.into_iter().enumerate() {
        let place = Place {
            file: Arc::clone(&file),
            row,
        };
        let of_regions = image.regions.first().map(|region| region.image_id);
        let name = match of_regions.or(image.id) {
            Some(id) => id.to_string(),
            None => format!("of row {row}"),
        };
        let has_text = textless.has_text(&place, &name, image.regions.len())?;
        let Some(id) = of_regions.filter(|_| has_text) else {
            continue;
        };
        if let Some(other) = image.regions.iter().find(|region| region.image_id != id) {
            let fault = format!("regions are of images {id} and {}", other.image_id);
            return Err(place.fault(fault));
        }
        if !seen.insert(id) {
            return Err(Error::DuplicateId {
                path: json,
                what: "image",
                id: id.to_string(),
            });
        }
        let paths = FOLDERS.map(|folder| options.raw.join(folder).join(format!("{id}.jpg")));
        let path = paths
            .iter()
            .find(|path| path.exists())
            .unwrap_or(&paths[0])
            .clone();
        let numbers =
            |get: fn(&Region) -> i64| Cell::Integers(image.regions.iter().map(get).collect());
        let numbers = [
            numbers(|region| region.width),
            numbers(|region| region.height),
            numbers(|region| region.x),
            numbers(|region| region.y),
        ];
        let phrases = image.regions.into_iter().map(|region| region.phrase);
        let mut cells = vec![Cell::Texts(phrases.collect())];
        cells.extend(numbers);
        cells.push(Cell::Text(id.to_string()));
        rows.push(Row {
            place,
            pictures: vec![Picture::file(path)],
            cells,
        });
    }
    if rows.is_empty() {
        return Err(Error::Empty {
            path: json,
            what: "regions",
        });
    }
    Ok(vec![TablePlan {
        name: "vg".into(),
        columns: vec![
            ("caption", Kind::Texts),
            ("width", Kind::Integers),
            ("height", Kind::Integers),
            ("x", Kind::Integers),
            ("y", Kind::Integers),
            ("image_id", Kind::Text),
        ],
        is_pair: false,
        rows,
        left_out: textless.left_out(),
        notes: Vec::new(),
    }])
}
