//! The documents: links lead somewhere, and sentences can be read once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Words that readers stumble over, and the reason.
const FORBIDDEN: &[(&str, &str)] = &[
    (r"\banew\b", "dated: again"),
    (r"\bso many\b", "translated: this number of"),
    (r"\bmanieth\b", "no word: every N-th"),
    (r"\bbe it\b", "dated: whether"),
    (r"\bif need be\b", "dated: if there are any, where needed"),
    (r"\bthe same holds of\b", "translated: say it of both"),
    (r"\b(is|are) said\b", "who says it?"),
    (r"\b(is|are) told\b", "who tells it?"),
    (r"\bwho finds (this|those)\b", "name the reader"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, and the sources of all packages.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["docs", "src", "merge", "evaluate", "train", "fixtures"]
        .map(|name| root().join(name))
        .into();
    let pages = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    let mut found: Vec<PathBuf> = pages.into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|found| found == ending));
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

/// The anchors of a page's headings, as the hubs of code make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        if let (false, Some(heading)) = (is_code, line.strip_prefix('#')) {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                _ => c.is_alphanumeric().then_some(c),
            });
            found.insert(kept.collect());
        }
    }
    found
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("an expression");
    let mut n_links = 0;
    let mut faults = Vec::new();
    for path in files("md") {
        let page = text(&path);
        for found in link.captures_iter(&page) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            n_links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = match file {
                "" => path.clone(),
                file => path.parent().expect("a folder").join(file),
            };
            let is_good =
                there.exists() && (anchor.is_empty() || anchors(&text(&there)).contains(anchor));
            if !is_good {
                faults.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(n_links > 60, "{n_links} links were looked at");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The part of a line of Rust that people read as prose.
fn comment(line: &str) -> Option<&str> {
    line.find("//").map(|at| &line[at..])
}

#[test]
fn no_sentence_has_a_word_that_readers_stumble_over() {
    let forbidden: Vec<(Regex, &str)> = FORBIDDEN
        .iter()
        .map(|(word, reason)| {
            let word = Regex::new(&format!("(?i){word}")).expect("an expression");
            (word, *reason)
        })
        .collect();
    let mut faults = Vec::new();
    let pages = files("md").into_iter().chain(files("rs"));
    for path in pages {
        let is_page = path.extension().is_some_and(|ending| ending == "md");
        for (index, line) in text(&path).lines().enumerate() {
            let Some(prose) = (if is_page { Some(line) } else { comment(line) }) else {
                continue;
            };
            for (word, reason) in &forbidden {
                if let Some(found) = word.find(prose) {
                    let found = found.as_str();
                    faults.push(format!(
                        "{}:{}: `{found}` ({reason})",
                        path.display(),
                        index + 1
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
