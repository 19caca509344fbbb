//! Which column is which, by usual names and by what the library `datasets` notes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ParquetTable;
use crate::Result;

/// Where the library `datasets` notes the types of columns.
const NOTE: &str = "huggingface";

/// Other names that stand for a column of ours, the usual first.
const OTHERS: [(&str, &[&str]); 6] = [
    ("image", &["img", "jpg", "jpeg", "png", "webp", "picture"]),
    (
        "caption",
        &["captions", "text", "txt", "sentences", "sentence"],
    ),
    ("label", &["fine_label", "labels", "cls", "class", "target"]),
    (
        "image_id",
        &[
            "img_id",
            "imgid",
            "cocoid",
            "filename",
            "file_name",
            "__key__",
            "id",
        ],
    ),
    ("image_0", &["left_image"]),
    ("image_1", &["right_image"]),
];

#[derive(Deserialize)]
struct Note {
    info: Info,
}

#[derive(Deserialize)]
struct Info {
    features: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Feature {
    #[serde(rename = "_type")]
    kind: String,
    names: Option<Vec<String>>,
}

impl ParquetTable {
    /// The name that a column of ours goes by in the file.
    pub(super) fn name_of<'a>(&'a self, column: &'a str) -> Option<&'a str> {
        if self.columns.contains_key(column) {
            return Some(column);
        }
        let others = OTHERS.iter().find(|(name, _)| *name == column);
        let mut others = others.map_or(&[][..], |(_, others)| others).iter();
        if let Some(found) = others.find(|other| self.columns.contains_key(**other)) {
            return Some(found);
        }
        // The only column that can be meant.
        let names = self.columns.keys().map(String::as_str);
        let can_be: Vec<&str> = match column {
            "image" => {
                let is_struct =
                    |name: &&str| self.only_leaf(name).is_none() && self.bytes_leaf(name).is_some();
                names.filter(is_struct).collect()
            }
            "label" => {
                let features = self.features().unwrap_or_default();
                names.filter(|name| features.contains_key(*name)).collect()
            }
            _ => Vec::new(),
        };
        match can_be[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The names of the classes of the column `label`, where the file has them.
    ///
    /// # Errors
    /// [`DataFault::Parquet`](crate::DataFault::Parquet) when the note is damaged.
    pub fn class_names(&self) -> Result<Option<Vec<String>>> {
        let features = self.features();
        let mut features = features
            .map_err(|error| self.fault(format!("its note `{NOTE}` is damaged: {error}")))?;
        let name = self.name_of("label");
        Ok(name.and_then(|name| features.remove(name)))
    }

    /// The columns of classes with the names of their classes.
    fn features(&self) -> Result<BTreeMap<String, Vec<String>>, serde_json::Error> {
        let Some(note) = self.notes().get(NOTE) else {
            return Ok(BTreeMap::new());
        };
        let note: Note = serde_json::from_str(note)?;
        let classes = note
            .info
            .features
            .into_iter()
            .filter_map(|(name, feature)| {
                // Features of other types have other forms.
                let feature: Feature = serde_json::from_value(feature).ok()?;
                let names = feature.names.filter(|_| feature.kind == "ClassLabel")?;
                Some((name, names))
            });
        Ok(classes.collect())
    }
}
