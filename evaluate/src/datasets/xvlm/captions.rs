//! Images with captions.

use std::collections::HashMap;

use serde::Deserialize;

use super::{Id, JsonFiles, Listed, ListedPicture, places};
use crate::build::plan::shown;
use crate::predictions::file;
use crate::{Error, Result};

#[derive(Deserialize)]
struct Entry {
    image: String,
    caption: Captions,
    image_id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a caption or a list of captions")]
enum Captions {
    One(String),
    Many(Vec<String>),
}

/// The images of JSON files, each with its captions.
#[derive(Debug)]
pub(crate) struct Images {
    /// Their pictures.
    pub(crate) pictures: Listed,
    /// The name of each: its `image_id`, or else its path.
    pub(crate) ids: Vec<String>,
    /// The captions of each.
    pub(crate) captions: Vec<Vec<String>>,
}

/// Reads images with captions. Entries with one caption and the same `image_id` are one image, which comes where
/// its first caption does. An entry with a list of captions is an image of its own.
///
/// # Errors
/// [`Error::JsonEntry`] and the like for a file of another form; [`DataFault::Row`](crate::DataFault::Row) with file
/// and entry for an entry with one caption and no `image_id`, for an `image_id` of two pictures, for an empty list
/// of captions and for a picture out of its folder; [`Error::Empty`] without entries.
pub(crate) fn read(files: &JsonFiles) -> Result<Images> {
    let mut images = Images {
        pictures: files.listed(),
        ids: Vec::new(),
        captions: Vec::new(),
    };
    let mut of_id: HashMap<String, usize> = HashMap::new();
    for path in &files.files {
        let entries: Vec<Entry> = file::json(path, "a list of images with captions")?;
        for (entry, place) in entries.into_iter().zip(places(path)) {
            let captions = match entry.caption {
                Captions::One(caption) => {
                    let Some(id) = &entry.image_id else {
                        return Err(place.fault("has one `caption`, but no `image_id`"));
                    };
                    if let Some(&image) = of_id.get(&id.to_string()) {
                        let known = images.pictures.pictures().get(image);
                        if let Some(other) = known.filter(|known| known.name != entry.image) {
                            let (found, other) = (shown(&entry.image), shown(&other.name));
                            return Err(place.fault(format!(
                                "`image` is {found}, but `image_id` {id} was of {other} before"
                            )));
                        }
                        images.captions[image].push(caption);
                        continue;
                    }
                    of_id.insert(id.to_string(), images.captions.len());
                    vec![caption]
                }
                Captions::Many(captions) if captions.is_empty() => {
                    return Err(place.fault("`caption` is an empty list"));
                }
                Captions::Many(captions) => captions,
            };
            let id = entry.image_id.map(|id| id.to_string());
            images.ids.push(id.unwrap_or_else(|| entry.image.clone()));
            images.captions.push(captions);
            images.pictures.add(ListedPicture {
                root: 0,
                name: entry.image,
                place,
            })?;
        }
    }
    match (images.captions.is_empty(), files.files.first()) {
        (true, path) => Err(Error::Empty {
            path: path.cloned().unwrap_or_default(),
            what: "images",
        }),
        _ => Ok(images),
    }
}
