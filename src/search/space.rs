//! Numbers of a merge recipe that a search finds.
//!
//! ```yaml
//! parameters: { ratio: { search: [0.0, 1.0] } }
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use merge::MergeRecipe;
use serde_json::Value;
use train::recipe::overlay_setting;

use crate::output::UsageError;

/// Recipes are written by hand; anything larger is not one.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// Digits behind the point of a value that is tried: recipes stay legible.
const DIGITS: f64 = 1e6;

/// A number that is searched for.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The place of the number: `models.1.parameters.weight`.
    pub name: String,
    /// As a JSON pointer.
    pointer: String,
    /// The least value.
    pub low: f64,
    /// The greatest value.
    pub high: f64,
}

/// A recipe with its axes.
#[derive(Clone, Debug)]
pub struct Space {
    path: PathBuf,
    /// All documents of the file.
    documents: Value,
    is_single: bool,
    /// The numbers that a search sets.
    pub axes: Vec<Axis>,
}

impl Space {
    /// Reads a recipe; each of `over` is `KEY=LOW:HIGH`.
    pub fn open(path: &Path, over: &[String]) -> Result<Self> {
        let failed = || format!("cannot open {}", path.display());
        if std::fs::metadata(path).with_context(failed)?.len() > MAX_RECIPE_BYTES {
            let what = format!("{}: longer than {MAX_RECIPE_BYTES} bytes", path.display());
            return Err(UsageError(what).into());
        }
        let text = std::fs::read_to_string(path).with_context(failed)?;
        merge::io::require_fetched(path, text.as_bytes())?;
        let read: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|error| UsageError(format!("{}: {error}", path.display())))?;
        let is_single = read.len() == 1;
        let mut documents = Value::Array(read);
        for setting in over {
            let (key, range) = setting.split_once('=').unwrap_or((setting, ""));
            let ends = range.split_once(':');
            let ends = ends.and_then(|(low, high)| {
                Some((low.parse::<f64>().ok()?, high.parse::<f64>().ok()?))
            });
            let Some((low, high)) = ends else {
                let what =
                    format!("--over {setting}: write KEY=LOW:HIGH, e.g. parameters.ratio=0:1");
                return Err(UsageError(what).into());
            };
            let key = match is_single {
                true => format!("0.{key}"),
                false => key.to_owned(),
            };
            overlay_setting(
                &mut documents,
                &format!("{key}={{search: [{low}, {high}]}}"),
            )?;
        }
        let mut axes = Vec::new();
        collect(&documents, &mut Vec::new(), is_single, &mut axes)
            .map_err(|what| UsageError(format!("{}: {what}", path.display())))?;
        if axes.is_empty() {
            let what = format!(
                "{}: the recipe has no number to search; replace one with {{ search: [LOW, HIGH] }}, or give --over",
                path.display()
            );
            return Err(UsageError(what).into());
        }
        Ok(Self {
            path: path.into(),
            documents,
            is_single,
            axes,
        })
    }

    /// The values of a point of the unit cube; a coordinate beyond it is mirrored at the border.
    pub fn values(&self, unit: &[f64]) -> Vec<f64> {
        let value = |(axis, &at): (&Axis, &f64)| {
            let folded = 1.0 - (at.rem_euclid(2.0) - 1.0).abs();
            let value = axis.low + folded * (axis.high - axis.low);
            ((value * DIGITS).round() / DIGITS).clamp(axis.low, axis.high)
        };
        self.axes.iter().zip(unit).map(value).collect()
    }

    /// The recipe at these values, and its text.
    pub fn at(&self, values: &[f64]) -> Result<(MergeRecipe, String)> {
        let mut documents = self.documents.clone();
        for (axis, &value) in self.axes.iter().zip(values) {
            if let Some(place) = documents.pointer_mut(&axis.pointer) {
                *place = Value::from(value);
            }
        }
        let text = match (&documents, self.is_single) {
            (Value::Array(all), true) => serde_saphyr::to_string(&all[0])?,
            (Value::Array(all), false) => {
                let texts = all.iter().map(serde_saphyr::to_string);
                texts.collect::<Result<Vec<_>, _>>()?.join("---\n")
            }
            (other, _) => serde_saphyr::to_string(other)?,
        };
        Ok((MergeRecipe::parse(&text, &self.path)?, text))
    }

    /// The name of a point.
    pub fn name(&self, values: &[f64]) -> String {
        let said = self.axes.iter().zip(values);
        let said: Vec<String> = said
            .map(|(axis, value)| format!("{} {value}", axis.name))
            .collect();
        said.join(", ")
    }
}

/// Finds every `{ search: [LOW, HIGH] }`.
fn collect(
    value: &Value,
    path: &mut Vec<String>,
    is_single: bool,
    axes: &mut Vec<Axis>,
) -> Result<(), String> {
    match value {
        Value::Object(map) if map.contains_key("search") => {
            let name = path[usize::from(is_single)..].join(".");
            let ends = map["search"].as_array().map(Vec::as_slice);
            let ends = match ends {
                Some([low, high]) if map.len() == 1 => low.as_f64().zip(high.as_f64()),
                _ => None,
            };
            match ends {
                Some((low, high)) if low.is_finite() && high.is_finite() && low < high => {
                    let escaped = path
                        .iter()
                        .map(|key| key.replace('~', "~0").replace('/', "~1"));
                    let pointer = escaped.map(|key| format!("/{key}")).collect();
                    axes.push(Axis {
                        name,
                        pointer,
                        low,
                        high,
                    });
                    Ok(())
                }
                _ => Err(format!(
                    "`{name}`: write {{ search: [LOW, HIGH] }} with LOW < HIGH"
                )),
            }
        }
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            path.push(key.clone());
            let found = collect(value, path, is_single, axes);
            path.pop();
            found
        }),
        Value::Array(list) => list.iter().enumerate().try_for_each(|(index, value)| {
            path.push(index.to_string());
            let found = collect(value, path, is_single, axes);
            path.pop();
            found
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(text: &str, over: &[&str]) -> Result<Space> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("recipe.yaml");
        std::fs::write(&path, text).expect("written");
        let over: Vec<String> = over.iter().map(|&o| o.to_owned()).collect();
        Space::open(&path, &over)
    }

    const RECIPE: &str = "
merge_method: linear
models:
  - { model: a.safetensors, parameters: { weight: { search: [0, 2] } } }
  - { model: b.safetensors, parameters: { weight: 0.5 } }
";

    #[test]
    fn axes_are_marked_in_the_recipe_or_named() {
        let space = space(RECIPE, &["models.1.parameters.weight=-1:1"]).expect("a space");
        let names: Vec<&str> = space.axes.iter().map(|axis| axis.name.as_str()).collect();
        assert_eq!(
            names,
            ["models.0.parameters.weight", "models.1.parameters.weight"]
        );
        // The middle, a corner, and a place mirrored at the border.
        assert_eq!(space.values(&[0.5, 0.0]), [1.0, -1.0]);
        assert_eq!(space.values(&[1.25, -0.25]), [1.5, -0.5]);
        let (recipe, text) = space.at(&[1.5, -0.5]).expect("a recipe");
        assert_eq!(recipe.models.len(), 2);
        assert!(text.contains("1.5") && text.contains("-0.5"), "{text}");
    }

    #[test]
    fn what_cannot_be_searched_is_refused() {
        assert!(space("merge_method: linear", &[]).is_err());
        assert!(space(RECIPE, &["models.1.parameters.weight=1"]).is_err());
        assert!(space(RECIPE, &["models.1.parameters.weight=1:1"]).is_err());
        assert!(space(RECIPE, &["models.7.parameters.weight=0:1"]).is_err());
    }
}
