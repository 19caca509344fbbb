//! Statements about pairs of images.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{JsonFiles, Listed, ListedPicture, places};
use crate::build::plan::shown;
use crate::datasets::nlvr2::Statement;
use crate::predictions::file;
use crate::{Error, Result};

/// The endings of a picture's name behind the identifier of its pair, by sides.
const SIDES: [&str; 2] = ["-img0", "-img1"];

#[derive(Deserialize)]
struct Entry {
    images: Vec<String>,
    sentence: String,
    label: Option<String>,
}

/// The statements of JSON files.
#[derive(Debug)]
pub(crate) struct Statements {
    /// The pictures: the left and the right one of each pair.
    pub(crate) pictures: Listed,
    /// The statements, in the order of the files.
    pub(crate) statements: Vec<Statement>,
}

/// Reads statements. Entries with the same two images are about one pair, which has the identifier that the names
/// of its pictures tell (`dev-850-0-img0.png`), or else the name of its left picture. The files do not tell the
/// official number of a sentence.
///
/// # Errors
/// [`Error::JsonEntry`] and the like for a file of another form; [`DataFault::Row`](crate::DataFault::Row) with file
/// and entry for other than two `images`, a `label` that is neither `True` nor `False` or that only others have, and a picture out of its
/// folder; [`Error::Empty`].
pub(crate) fn read(files: &JsonFiles) -> Result<Statements> {
    let mut pictures = files.listed();
    let mut statements = Vec::new();
    // The number of a pair, and how many statements there are about it so far.
    let mut of_images: HashMap<[String; 2], [usize; 2]> = HashMap::new();
    for path in &files.files {
        let entries: Vec<Entry> = file::json(path, "a list of statements about two images")?;
        for (entry, place) in entries.into_iter().zip(places(path)) {
            let images = <[String; 2]>::try_from(entry.images).map_err(|images| {
                let n = images.len();
                place.fault(format!(
                    "`images` has {n} entries; a left and a right one are expected"
                ))
            })?;
            let label = match entry.label.as_deref() {
                None => None,
                Some("True") => Some(true),
                Some("False") => Some(false),
                Some(other) => {
                    let other = shown(other);
                    return Err(place.fault(format!("`label` is {other}, not True or False")));
                }
            };
            let is_first = statements
                .first()
                .map(|first: &Statement| first.label.is_some());
            if is_first.is_some_and(|has_label| has_label != label.is_some()) {
                return Err(place.fault("`label`: some entries have one, and others have none"));
            }
            let [pair, place_in_pair] = match of_images.get_mut(&images) {
                Some(known) => {
                    known[1] += 1;
                    *known
                }
                None => {
                    let new = [of_images.len(), 0];
                    for name in images.clone() {
                        let place = place.clone();
                        pictures.add(ListedPicture {
                            root: 0,
                            name,
                            place,
                        })?;
                    }
                    of_images.insert(images.clone(), new);
                    new
                }
            };
            statements.push(Statement {
                sentence: entry.sentence,
                label,
                identifier: identifier(&images),
                pair,
                place: place_in_pair,
                official: None,
            });
        }
    }
    match (statements.is_empty(), files.files.first()) {
        (true, path) => Err(Error::Empty {
            path: path.cloned().unwrap_or_default(),
            what: "statements",
        }),
        _ => Ok(Statements {
            pictures,
            statements,
        }),
    }
}

/// The identifier of a pair.
fn identifier(images: &[String; 2]) -> String {
    let stem = |side: usize| {
        let stem = Path::new(&images[side]).file_stem()?.to_str()?;
        stem.strip_suffix(SIDES[side])
    };
    match (stem(0), stem(1)) {
        (Some(left), Some(right)) if left == right => left.to_owned(),
        _ => images[0].clone(),
    }
}
