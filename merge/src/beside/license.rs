//! The license in a model's card, and a path's place on the hub.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::read_text;
use crate::Result;
use crate::io::model_folder;
use crate::remote::{self, address::is_address};

/// The license fields of a model card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct License {
    /// Identifiers, usually one.
    pub ids: Vec<String>,
    /// The name, where the identifier is `other`.
    pub name: Option<String>,
    /// The address of its text, where the identifier is `other`.
    pub link: Option<String>,
}

/// The part of a card's front matter that is read; all else is passed over.
#[derive(Deserialize)]
struct FrontMatter {
    license: Option<OneOrMany>,
    license_name: Option<String>,
    license_link: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The file name of a model's card.
const CARD: &str = "README.md";

/// The license in a model's card, here or by its address, if there is a card with one.
pub(crate) fn of_model(path: &Path) -> Result<Option<License>> {
    let card = if is_address(path) {
        let files = remote::neighbors(path)?.into_iter();
        let mut cards = files.filter(|(name, _)| name == CARD);
        cards.next().map(|(_, address)| address)
    } else {
        let card = model_folder(path).map(|folder| folder.join(CARD));
        card.filter(|card| card.is_file())
    };
    Ok(match card {
        Some(card) => of_card(&read_text(&card)?),
        None => None,
    })
}

fn of_card(text: &str) -> Option<License> {
    let rest = text.strip_prefix("---")?.trim_start_matches('\r');
    let (front, _) = rest.strip_prefix('\n')?.split_once("\n---")?;
    // A card is written for people: an entry that cannot be understood says nothing.
    let front: FrontMatter = serde_saphyr::from_str(front).ok()?;
    let ids = match front.license? {
        OneOrMany::One(id) => vec![id],
        OneOrMany::Many(ids) => ids,
    };
    Some(License {
        ids,
        name: front.license_name,
        link: front.license_link,
    })
}

/// The model's name on the hub, if its path is `hf://org/name` or lies in the hub's cache.
pub(crate) fn hub_name(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    if let Some(rest) = text.strip_prefix("hf://") {
        let name = rest.split('@').next()?;
        let mut parts = name.split('/');
        return Some(format!("{}/{}", parts.next()?, parts.next()?));
    }
    let cached = (path.components())
        .filter_map(|part| part.as_os_str().to_str())
        .find_map(|part| part.strip_prefix("models--"))?;
    let (organization, name) = cached.split_once("--")?;
    Some(format!("{organization}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_its_license_in_one_of_three_ways() {
        let card = |front: &str| of_card(&format!("---\n{front}\n---\n# Model\n"));
        let ids = |front: &str| card(front).map(|license| license.ids);
        assert_eq!(ids("license: mit\ntags: [a]"), Some(vec!["mit".to_owned()]));
        assert_eq!(
            ids("license: [mit, apache-2.0]").map(|ids| ids.len()),
            Some(2)
        );
        let other = card("license: other\nlicense_name: tiny\nlicense_link: LICENSE");
        assert_eq!(other.and_then(|license| license.name), Some("tiny".into()));
        assert_eq!(ids("tags: [a]"), None);
        assert_eq!(of_card("# No front matter"), None);
        assert_eq!(ids("license: [broken"), None);
    }

    #[test]
    fn a_path_tells_the_hub_where_it_comes_from() {
        let name = |path: &str| hub_name(Path::new(path));
        assert_eq!(name("hf://org/tiny@main"), Some("org/tiny".into()));
        let cached = "/c/hub/models--org--tiny-2/snapshots/abc/model.safetensors";
        assert_eq!(name(cached), Some("org/tiny-2".into()));
        assert_eq!(name("models/tiny"), None);
    }
}
