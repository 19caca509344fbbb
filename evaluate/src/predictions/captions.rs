//! Captions: the official annotation and result files.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::file;
use crate::metrics::captions::{Captioned, tokenize};
use crate::{Error, JudgedFault, Result};

/// The longest caption that is judged; those of benchmarks have some dozen words. The time that ROUGE-L takes
/// grows with the square.
const MAX_CAPTION_BYTES: usize = 10_000;

/// The caption of a model, as in a result file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Caption {
    /// The image.
    pub image_id: i64,
    /// Its caption.
    pub caption: String,
}

/// The number of an image in official files: the digits behind the last `_` of its file name, or the
/// whole name where it has none. None where these are no number.
///
/// # Example
/// ```
/// use evaluate::predictions::captions::official_id;
/// assert_eq!(official_id("COCO_val2014_000000000656.jpg"), Some(656));
/// assert_eq!(official_id("1000092795.jpg"), Some(1_000_092_795));
/// assert_eq!(official_id("a_dog.png"), None);
/// ```
#[must_use]
pub fn official_id(name: &str) -> Option<i64> {
    let file = name.rsplit(['/', '\\']).next()?;
    let stem = file.split_once('.').map_or(file, |(stem, _)| stem);
    let digits = stem.rsplit('_').next()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// Results whose images the annotations know, with people's captions of each, in the order of the
/// results: what FLM's published program hands to the official one. Other results are left out.
#[must_use]
pub fn known<'a>(
    results: &'a [Caption],
    references: &'a References,
) -> Vec<(&'a Caption, &'a [String])> {
    let said: HashMap<i64, &[String]> = (references.images.iter())
        .map(|(id, captions)| (*id, captions.as_slice()))
        .collect();
    let known = |result: &'a Caption| Some((result, *said.get(&result.image_id)?));
    results.iter().filter_map(known).collect()
}

/// The captions of people for each image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Each image and its captions, in the order of the file; every image has one.
    pub images: Vec<(i64, Vec<String>)>,
}

#[derive(Deserialize)]
struct AnnotationFile {
    images: Vec<Image>,
    annotations: Vec<Caption>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
}

/// Reads an annotation file: `{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a
/// dog"}]}`, and other fields that it ignores. With `is_partial` it skips images without a caption.
///
/// # Errors
/// [`Error::Json`] with line and column, [`Error::Empty`], [`Error::DuplicateId`],
/// [`Error::UnknownId`] for a caption whose image is not listed, [`JudgedFault::NoCaptions`] for an image
/// without one, [`JudgedFault::CaptionTooLong`], and what opening and reading the file may return.
pub fn read_annotations(path: &Path, is_partial: bool) -> Result<References> {
    let file: AnnotationFile = file::json(path, "an annotation file of captions")?;
    if file.images.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "images",
        });
    }
    refuse_long(path, &file.annotations)?;
    let places = index(path, file.images.iter().map(|image| image.id))?;
    let mut images: Vec<(i64, Vec<String>)> =
        file.images.iter().map(|i| (i.id, Vec::new())).collect();
    for said in file.annotations {
        let place = places.get(&said.image_id);
        let &place = place.ok_or_else(|| Error::UnknownId {
            path: path.into(),
            what: "the image of a caption,",
            id: said.image_id.to_string(),
            other: path.into(),
        })?;
        images[place].1.push(said.caption);
    }
    if is_partial {
        // Nobody is asked about an image that no caption tells of; a result for one is refused later.
        images.retain(|(_, captions)| !captions.is_empty());
        if images.is_empty() {
            return Err(Error::Empty {
                path: path.into(),
                what: "captions",
            });
        }
    }
    if let Some((mute, _)) = images.iter().find(|(_, captions)| captions.is_empty()) {
        return Err(JudgedFault::NoCaptions {
            path: path.into(),
            image: *mute,
        }
        .into());
    }
    Ok(References { images })
}

/// Reads a result file: a list of objects with `image_id` and `caption`, in file order.
///
/// # Errors
/// [`Error::Json`] with line and column, [`JudgedFault::CaptionTooLong`], and what opening and reading the
/// file may return.
pub fn read_results(path: &Path) -> Result<Vec<Caption>> {
    let results: Vec<Caption> = file::json(path, "a result file of captions")?;
    refuse_long(path, &results)?;
    Ok(results)
}

fn refuse_long(path: &Path, captions: &[Caption]) -> Result<()> {
    let mut all = captions.iter();
    match all.find(|said| said.caption.len() > MAX_CAPTION_BYTES) {
        None => Ok(()),
        Some(long) => Err(JudgedFault::CaptionTooLong {
            path: path.into(),
            image: long.image_id,
            n_bytes: long.caption.len(),
            limit: MAX_CAPTION_BYTES,
        }
        .into()),
    }
}

/// Captions beside those of people, tokenized, in the order of the annotations. Every image must
/// have one; with `is_partial` those that have none are left out, as the official example does.
///
/// # Errors
/// [`Error::DuplicateId`], [`Error::UnknownId`], [`JudgedFault::MissingPredictions`], and [`Error::Empty`]
/// when nothing is captioned.
pub fn pair(
    path: &Path,
    results: &[Caption],
    references: &References,
    reference_path: &Path,
    is_partial: bool,
) -> Result<Vec<(i64, Captioned)>> {
    let captioned = index(path, results.iter().map(|caption| caption.image_id))?;
    let known = index(reference_path, references.images.iter().map(|(id, _)| *id))?;
    if results.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "captions",
        });
    }
    if let Some(stray) = results.iter().find(|r| !known.contains_key(&r.image_id)) {
        return Err(Error::UnknownId {
            path: path.into(),
            what: "image",
            id: stray.image_id.to_string(),
            other: reference_path.into(),
        });
    }
    let missing = || {
        let ids = references.images.iter().map(|(id, _)| id);
        ids.filter(|id| !captioned.contains_key(id))
    };
    if let (Some(first), false) = (missing().next(), is_partial) {
        return Err(JudgedFault::MissingPredictions {
            path: path.into(),
            what: "image",
            first: first.to_string(),
            n_missing: missing().count(),
            n: references.images.len(),
        }
        .into());
    }
    let judged = references.images.par_iter().filter_map(|(id, said)| {
        let &place = captioned.get(id)?;
        let pair = Captioned {
            caption: tokenize(&results[place].caption),
            references: said.iter().map(|text| tokenize(text)).collect(),
        };
        Some((*id, pair))
    });
    Ok(judged.collect())
}

/// The place of each image.
fn index(path: &Path, ids: impl Iterator<Item = i64>) -> Result<HashMap<i64, usize>> {
    let mut places = HashMap::with_capacity(ids.size_hint().0);
    for (place, id) in ids.enumerate() {
        if places.insert(id, place).is_some() {
            return Err(Error::DuplicateId {
                path: path.into(),
                what: "image",
                id: id.to_string(),
            });
        }
    }
    Ok(places)
}
