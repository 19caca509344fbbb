//! `key.key=value` in place of a recipe's own settings.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Puts the value of `setting` (`key.key=value`) into a document. A number in the path is a place in
/// a list.
///
/// # Errors
/// [`Error::BadSetting`].
pub fn overlay_setting(document: &mut Value, setting: &str) -> Result<()> {
    let bad = |reason: &str| Error::BadSetting {
        key: setting.into(),
        reason: reason.into(),
    };
    let (path, text) = setting
        .split_once('=')
        .ok_or_else(|| bad("write KEY=VALUE, e.g. optim.lr=3e-5"))?;
    let value: Value = serde_saphyr::from_str(text).map_err(|_| bad("the value is no YAML"))?;
    let mut place = document;
    for key in path.split('.') {
        place = match (key.parse::<usize>(), place) {
            (Ok(index), Value::Array(list)) => list
                .get_mut(index)
                .ok_or_else(|| bad("the list has no such place"))?,
            (_, place @ (Value::Object(_) | Value::Null)) => {
                if place.is_null() {
                    *place = Value::Object(Map::new());
                }
                match place {
                    Value::Object(map) => map.entry(key).or_insert(Value::Null),
                    _ => return Err(bad("there is nothing to set")),
                }
            }
            _ => {
                return Err(bad(
                    "a part of the key stands for a value, not for settings",
                ));
            }
        };
    }
    *place = value;
    Ok(())
}

/// Puts the settings of `over` in place of those of `document`: dictionaries are joined, and everything
/// else is replaced.
pub fn overlay(document: &mut Value, over: &Value) {
    match (document, over) {
        (Value::Object(document), Value::Object(over)) => {
            for (key, value) in over {
                overlay(document.entry(key).or_insert(Value::Null), value);
            }
        }
        (document, over) => document.clone_from(over),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_replace_and_add() {
        let mut document = json!({ "optim": { "lr": 1 }, "list": [{ "a": 1 }] });
        for setting in [
            "optim.lr=3e-5",
            "save.every={steps: 10}",
            "list.0.a=true",
            "seed=7",
        ] {
            overlay_setting(&mut document, setting).expect(setting);
        }
        assert_eq!(document["optim"]["lr"], json!(3e-5));
        assert_eq!(document["save"], json!({ "every": { "steps": 10 } }));
        assert_eq!(document["list"][0]["a"], json!(true));
        assert_eq!(document["seed"], json!(7));
    }

    #[test]
    fn documents_are_joined_key_by_key() {
        let mut document = json!({ "optim": { "lr": 1, "warmup": 2 }, "list": [1, 2], "a": 1 });
        overlay(
            &mut document,
            &json!({ "optim": { "lr": 3 }, "list": [4], "a": { "b": 1 } }),
        );
        let expected = json!({ "optim": { "lr": 3, "warmup": 2 }, "list": [4], "a": { "b": 1 } });
        assert_eq!(document, expected);
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let mut document = json!({ "seed": 1, "list": [] });
        for setting in ["seed", "seed.of=1", "list.3=1"] {
            assert!(
                overlay_setting(&mut document, setting).is_err(),
                "{setting}"
            );
        }
    }
}
