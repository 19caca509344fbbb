//! Names of files without the folders that they share.

use std::collections::BTreeMap;
use std::path::Path;

use crate::remote::address::is_address;

/// For each path the last of its parts, or as many as no other path ends with. An address is kept
/// whole: it means the same everywhere.
pub(crate) fn short_names(paths: &[&Path]) -> Vec<String> {
    let parts = |path: &Path| -> Vec<String> {
        let parts = path.components().rev();
        parts
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect()
    };
    let all: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let mut names: BTreeMap<&[String], &[String]> = BTreeMap::new();
    let mut open: Vec<&[String]> = all.iter().map(Vec::as_slice).collect();
    open.sort_unstable();
    open.dedup();
    let mut n_parts = 1;
    while !open.is_empty() {
        let mut users: BTreeMap<&[String], usize> = BTreeMap::new();
        let ends: std::collections::BTreeSet<&[String]> = all.iter().map(Vec::as_slice).collect();
        for parts in ends {
            *users.entry(&parts[..n_parts.min(parts.len())]).or_default() += 1;
        }
        open.retain(|parts| {
            let end = &parts[..n_parts.min(parts.len())];
            let is_done = end.len() == parts.len() || users.get(end) == Some(&1);
            if is_done {
                names.insert(parts, end);
            }
            !is_done
        });
        n_parts += 1;
    }
    let name = |parts: &Vec<String>| {
        let end = names.get(parts.as_slice()).copied().unwrap_or_default();
        end.iter()
            .rev()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("/")
    };
    let names = all.iter().map(name).zip(paths);
    names
        .map(|(name, path)| match is_address(path) {
            true => path.to_string_lossy().into_owned(),
            false => name,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_it_takes_to_tell_them_apart() {
        let paths = ["/m/a/x.pt", "/m/b/x.pt", "/n/b/x.pt", "y.pt", "/m/a/x.pt"].map(Path::new);
        let expected = ["a/x.pt", "m/b/x.pt", "n/b/x.pt", "y.pt", "a/x.pt"];
        assert_eq!(short_names(&paths), expected);
        assert_eq!(
            short_names(&[Path::new("x"), Path::new("/a/x")]),
            ["x", "a/x"]
        );
    }
}
