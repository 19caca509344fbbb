//! `docs/methods.md` is made from the doc comments of the methods, and must not be stale.

use std::fmt::Write;
use std::path::Path;

const SOURCES: [(&str, &str); 3] = [
    ("interpolate", include_str!("../src/methods/interpolate.rs")),
    ("arithmetic", include_str!("../src/methods/arithmetic.rs")),
    ("regmean", include_str!("../src/methods/regmean.rs")),
];

const HEADER: &str = "\
# Merge methods

Made from the doc comments in `merge/src/methods/`. To make it anew:
`VLMERGE_WRITE_DOCS=1 cargo test --release -p vlmerge-merge methods_document`.

Parameters stand under `parameters` in a recipe; the verb of the same name has them as flags. Every
method computes in f32 or wider and rounds once to the output's element type, unless a section *As
published* says otherwise.
";

/// The doc comment in front of the first public struct, as Markdown one level further down.
fn doc_comment(source: &str) -> String {
    let mut comment: Vec<&str> = Vec::new();
    for line in source.lines() {
        match line.strip_prefix("///") {
            Some(text) => comment.push(text.strip_prefix(' ').unwrap_or(text)),
            None if line.starts_with("pub struct") => break,
            None if line.starts_with("#[") => {}
            None => comment.clear(),
        }
    }
    assert!(!comment.is_empty(), "every method is documented");
    let mut text = String::new();
    for line in comment {
        let heading = line.strip_prefix("## ").or_else(|| line.strip_prefix("# "));
        match heading {
            Some(heading) => write!(text, "\n### {heading}\n\n"),
            None => writeln!(text, "{}", line.replace("[`", "`").replace("`]", "`")),
        }
        .expect("writing to a string");
    }
    text
}

fn generated() -> String {
    let mut document = HEADER.to_owned();
    for (name, source) in SOURCES {
        write!(document, "\n## {name}\n{}", doc_comment(source)).expect("writing to a string");
    }
    document
}

#[test]
fn the_document_of_methods_is_up_to_date() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/methods.md"));
    if std::env::var_os("VLMERGE_WRITE_DOCS").is_some() {
        std::fs::write(path, generated()).expect("written");
    }
    let written = std::fs::read_to_string(path).expect("docs/methods.md is there");
    assert!(
        written == generated(),
        "docs/methods.md is stale; its first lines say how to mend it"
    );
}

#[test]
fn every_method_is_in_the_document() {
    let names: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, merge::methods::NAMES);
}
