//! The model card: what a merge is, for people and for a hub.

use serde::Serialize;

use super::{Beside, Ingredient, Share};
use crate::provenance::{InputFile, Provenance};
use crate::{Error, MergeRecipe, Result};

/// The head of the card, as hubs read it.
#[derive(Serialize)]
struct FrontMatter<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<Licenses<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_link: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    base_model: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model_relation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    library_name: Option<&'static str>,
    tags: &'static [&'static str],
}

#[derive(Serialize)]
#[serde(untagged)]
enum Licenses<'a> {
    One(&'a str),
    Many(Vec<&'a str>),
}

/// The card of a merge called `title`.
pub(crate) fn card(title: &str, beside: &Beside, made: &Provenance) -> Result<String> {
    let (how, heading, end) = match is_conversion(beside) {
        true => ("A conversion".to_owned(), "Command", "."),
        false if is_mixture(beside) => ("A mixture of experts".to_owned(), "Recipe", "."),
        false => {
            let recipe = MergeRecipe::parse(&made.recipe, "recipe".as_ref())?;
            let how = format!("A merge by the method `{}`", plain(&recipe.merge_method));
            (how, "Recipe", ": `vlmerge recipe FILE` prints it.")
        }
    };
    let front = front_matter(beside);
    let front = serde_saphyr::to_string(&front).map_err(|error| Error::BadRecipe {
        path: "README.md".into(),
        reason: error.to_string(),
    })?;
    let models: String = beside.ingredients.iter().map(model_row).collect();
    let files: String = made.inputs.iter().map(file_row).collect();
    let fence = fence(&made.recipe);
    Ok(format!(
        "---\n{front}---\n\
         # {}\n\n\
         {how}, made with vlmerge {}.\n\n\
         ## Models\n\n\
         | model | part | license |\n|---|---|---|\n{models}\n\
         {}\n\n\
         ## Files\n\n\
         | file | bytes | hash |\n|---|---|---|\n{files}\n\
         ## {heading}\n\n\
         {fence}yaml\n{}\n{fence}\n\n\
         It is in the metadata of the weights, too{end}\n",
        plain(title),
        env!("CARGO_PKG_VERSION"),
        license_note(&beside.ingredients),
        made.recipe.trim_end(),
    ))
}

/// Whether the output is no merge, but one model in another form, which may have the tokens of another.
fn is_conversion(beside: &Beside) -> bool {
    let shares = beside.ingredients.iter().map(|model| model.share);
    let mut shares = shares.filter(|share| *share != Share::Tokens);
    shares.next() == Some(Share::Converted) && shares.next().is_none()
}

/// Whether the output is a mixture of models.
fn is_mixture(beside: &Beside) -> bool {
    (beside.ingredients.iter()).any(|model| model.share == Share::Expert)
}

fn front_matter(beside: &Beside) -> FrontMatter<'_> {
    let all = beside
        .ingredients
        .iter()
        .filter_map(|model| model.license.as_ref());
    let mut ids: Vec<&str> = Vec::new();
    for id in all.clone().flat_map(|license| &license.ids) {
        if !ids.contains(&id.as_str()) {
            ids.push(id);
        }
    }
    let is_merge = !is_conversion(beside);
    // A name and a link go with one license.
    let one = (ids.len() == 1).then(|| all.clone().next()).flatten();
    let mut base_model: Vec<&str> = Vec::new();
    for hub in beside
        .ingredients
        .iter()
        .filter_map(|model| model.hub.as_deref())
    {
        if !base_model.contains(&hub) {
            base_model.push(hub);
        }
    }
    FrontMatter {
        license: match ids.as_slice() {
            [] => None,
            [id] => Some(Licenses::One(id)),
            _ => Some(Licenses::Many(ids)),
        },
        license_name: one.and_then(|license| license.name.as_deref()),
        license_link: one.and_then(|license| license.link.as_deref()),
        base_model_relation: (!base_model.is_empty() && is_merge).then_some("merge"),
        base_model,
        library_name: (beside.files.iter().any(|file| file.name == "config.json"))
            .then_some("transformers"),
        tags: match is_merge {
            true if is_mixture(beside) => &["moe", "merge", "vlmerge"],
            true => &["merge", "vlmerge"],
            false => &["vlmerge"],
        },
    }
}

/// A sentence on the licenses of all models.
fn license_note(models: &[Ingredient]) -> &'static str {
    let mut stated = models.iter().map(|model| &model.license);
    let n_silent = models
        .iter()
        .filter(|model| model.license.is_none())
        .count();
    let first = stated.next();
    match n_silent {
        n if n == models.len() => "No model's card states a license.",
        0 if stated.all(|license| Some(license) == first) => "All models have the same license.",
        0 => "The models have different licenses, each of which goes on to hold of this merge.",
        _ => "Not every model's card states a license.",
    }
}

fn model_row(model: &Ingredient) -> String {
    let license = match &model.license {
        None => "not stated".to_owned(),
        Some(license) => match &license.name {
            Some(name) => format!("{} ({name})", license.ids.join(", ")),
            None => license.ids.join(", "),
        },
    };
    let part = match model.share {
        Share::Base => "base",
        Share::Merged => "merged",
        Share::Adapter => "adapter",
        Share::Converted => "converted",
        Share::Expert => "expert",
        Share::Tokens => "tokens",
    };
    let name = match &model.hub {
        Some(hub) => format!("[{0}](https://huggingface.co/{0})", plain(hub)),
        None => plain(&model.name),
    };
    format!("| {name} | {part} | {} |\n", plain(&license))
}

fn file_row(file: &InputFile) -> String {
    let hash = match (file.hash(), &file.etag) {
        (Some(hash), _) => format!("{} `{}`", hash.kind.title(), hash.hex),
        (None, Some(etag)) => format!("ETag {}", plain(etag)),
        (None, None) => "`not computed`".to_owned(),
    };
    format!("| {} | {} | {hash} |\n", plain(&file.name), file.n_bytes)
}

/// Text that cannot end a cell or begin markup: names come from files.
fn plain(text: &str) -> String {
    let is_markup = |c: char| "\\`*_{}[]<>()#|!~".contains(c);
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '_' | '(' | ')' | '#' => safe.push(c),
            c if c.is_control() => safe.push(' '),
            c if is_markup(c) => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

/// A fence that the text cannot close.
fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beside::License;

    fn license(id: &str) -> Option<License> {
        Some(License {
            ids: vec![id.to_owned()],
            name: None,
            link: None,
        })
    }

    fn model(name: &str, license: Option<License>) -> Ingredient {
        Ingredient {
            name: name.to_owned(),
            share: Share::Merged,
            hub: name.strip_prefix("hf://").map(str::to_owned),
            license,
            note: None,
        }
    }

    fn card_of(ingredients: Vec<Ingredient>) -> String {
        let made = Provenance {
            recipe: "merge_method: linear\nmodels:\n- model: a\n".into(),
            inputs: vec![InputFile {
                name: "a|b.safetensors".into(),
                n_bytes: 7,
                blake3: None,
                sha256: Some("ab".repeat(32)),
                etag: None,
            }],
        };
        let beside = Beside {
            ingredients,
            ..Beside::default()
        };
        card("out", &beside, &made).expect("a card")
    }

    #[test]
    fn a_card_has_hub_fields_hashes_and_the_recipe() {
        let card = card_of(vec![
            model("hf://org/a", license("mit")),
            model("b", license("mit")),
        ]);
        for part in [
            "---\nlicense: mit\nbase_model:\n- org/a\nbase_model_relation: merge\ntags:\n",
            "# out\n",
            "the method `linear`",
            "| [org/a](https://huggingface.co/org/a) | merged | mit |",
            "All models have the same license.",
            &format!("| a\\|b.safetensors | 7 | SHA-256 `{}` |", "ab".repeat(32)),
            "```yaml\nmerge_method: linear\nmodels:\n- model: a\n```\n",
        ] {
            assert!(card.contains(part), "no {part} in\n{card}");
        }
    }

    #[test]
    fn licenses_that_differ_or_are_not_known_are_said_so() {
        let both = card_of(vec![
            model("a", license("mit")),
            model("b", license("gpl-3.0")),
        ]);
        assert!(both.contains("license:\n- mit\n- gpl-3.0\n"), "{both}");
        assert!(both.contains("different licenses"));
        let half = card_of(vec![model("a", license("mit")), model("b", None)]);
        assert!(half.contains("Not every model's card states a license."));
        let none = card_of(vec![model("a", None)]);
        assert!(none.contains("No model's card states a license."));
        assert!(!none.contains("license:"));
    }

    #[test]
    fn names_cannot_break_out_of_their_places() {
        assert_eq!(plain("a|b\n<c>"), "a\\|b \\<c\\>");
        assert_eq!(fence("```` x `"), "`````");
    }
}
