//! Adapters behind a model: `model+a*0.5+b`, each with a weight, applied one after the other.

use std::path::{Path, PathBuf};

/// The adapters of a text behind the model's `+`, with their weights; 1 where none is given.
#[must_use]
pub fn adapters(text: &Path) -> Vec<(PathBuf, f64)> {
    let Some(text) = text.to_str() else {
        return vec![(text.to_owned(), 1.0)];
    };
    text.split('+').map(weighted).collect()
}

/// The text that [`adapters`] takes apart.
#[must_use]
pub fn spelled(adapters: &[(PathBuf, f64)]) -> PathBuf {
    let mut text = std::ffi::OsString::new();
    for (index, (path, weight)) in adapters.iter().enumerate() {
        if index > 0 {
            text.push("+");
        }
        text.push(path);
        if *weight != 1.0 {
            text.push(format!("*{weight}"));
        }
    }
    text.into()
}

/// A path, and the weight behind its last `*`, if that is a number.
fn weighted(text: &str) -> (PathBuf, f64) {
    let parts = text
        .rsplit_once('*')
        .map(|(path, weight)| (path.trim(), weight.trim().parse()));
    match parts {
        Some((path, Ok(weight))) if !path.is_empty() && f64::is_finite(weight) => {
            (path.into(), weight)
        }
        _ => (text.trim().into(), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_weights_and_are_spelled_as_they_were_written() {
        let found = adapters(Path::new("a*0.5+folder/b + c * -2"));
        let expected = [("a", 0.5), ("folder/b", 1.0), ("c", -2.0)];
        let expected = expected.map(|(path, weight)| (PathBuf::from(path), weight));
        assert_eq!(found, expected);
        assert_eq!(spelled(&found), Path::new("a*0.5+folder/b+c*-2"));
        assert_eq!(
            adapters(Path::new("odd*name")),
            [(PathBuf::from("odd*name"), 1.0)]
        );
    }
}
