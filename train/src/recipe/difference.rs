//! The settings in which two recipes differ.

use std::path::Path;

use serde_json::Value;

use super::read::parse_with;

/// The settings in which two recipes differ, as `batch_size: 4 then, 8 now`. A text that is no YAML
/// differs as a whole.
#[must_use]
pub fn differences(then: &str, now: &str) -> Vec<String> {
    let parse = |text: &str| parse_with::<Value>(text, Path::new("recipe"), &[]).ok();
    let mut found = Vec::new();
    match (parse(then), parse(now)) {
        (Some(then), Some(now)) => walk("", Some(&then), Some(&now), &mut found),
        _ => found.push("the recipe of the state cannot be read".to_owned()),
    }
    found
}

fn walk(key: &str, then: Option<&Value>, now: Option<&Value>, found: &mut Vec<String>) {
    if then == now {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (then, now) {
        let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in names {
            let inner = match key {
                "" => name.clone(),
                key => format!("{key}.{name}"),
            };
            walk(&inner, a.get(name), b.get(name), found);
        }
        return;
    }
    let said = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(value) => value.to_string(),
    };
    found.push(format!("`{key}`: {} then, {} now", said(then), said(now)));
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn settings_are_named_with_both_values() {
        let then = "batch_size: 4\noptim: { lr: 0.1, beta: 1 }\n";
        let now = "batch_size: 8\noptim: { lr: 0.1 }\n";
        assert_eq!(
            differences(then, now),
            [
                "`batch_size`: 4 then, 8 now",
                "`optim.beta`: 1 then, none now"
            ]
        );
        assert!(differences(then, then).is_empty());
    }
}
