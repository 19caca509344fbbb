//! `docs/methods.md` is made from the doc comments of the methods, and must not be stale.

use std::fmt::Write;
use std::path::Path;

const SOURCES: [(&str, &str); 41] = [
    ("interpolate", include_str!("../src/methods/interpolate.rs")),
    ("arithmetic", include_str!("../src/methods/arithmetic.rs")),
    ("regmean", include_str!("../src/methods/regmean.rs")),
    ("linear", include_str!("../src/methods/linear.rs")),
    ("slerp", include_str!("../src/methods/slerp.rs")),
    ("nuslerp", include_str!("../src/methods/nuslerp.rs")),
    ("multislerp", include_str!("../src/methods/multislerp.rs")),
    ("karcher", include_str!("../src/methods/karcher.rs")),
    (
        "task_arithmetic",
        include_str!("../src/methods/task_arithmetic.rs"),
    ),
    ("ties", include_str!("../src/methods/ties.rs")),
    ("dare_linear", include_str!("../src/methods/dare_linear.rs")),
    ("dare_ties", include_str!("../src/methods/dare_ties.rs")),
    ("breadcrumbs", include_str!("../src/methods/breadcrumbs.rs")),
    (
        "breadcrumbs_ties",
        include_str!("../src/methods/breadcrumbs_ties.rs"),
    ),
    ("della", include_str!("../src/methods/della.rs")),
    (
        "della_linear",
        include_str!("../src/methods/della_linear.rs"),
    ),
    ("sce", include_str!("../src/methods/sce.rs")),
    ("model_stock", include_str!("../src/methods/model_stock.rs")),
    ("nearswap", include_str!("../src/methods/nearswap.rs")),
    (
        "arcee_fusion",
        include_str!("../src/methods/arcee_fusion.rs"),
    ),
    ("ram", include_str!("../src/methods/ram.rs")),
    ("ramplus_tl", include_str!("../src/methods/ramplus_tl.rs")),
    ("passthrough", include_str!("../src/methods/passthrough.rs")),
    ("fisher", include_str!("../src/methods/fisher.rs")),
    ("mats", include_str!("../src/methods/mats.rs")),
    ("tsv_m", include_str!("../src/methods/tsv_m.rs")),
    ("iso_c", include_str!("../src/methods/iso_c.rs")),
    ("iso_cts", include_str!("../src/methods/iso_cts.rs")),
    ("wudi", include_str!("../src/methods/wudi.rs")),
    ("optmerge", include_str!("../src/methods/optmerge.rs")),
    ("swudi", include_str!("../src/methods/swudi.rs")),
    ("aswudi", include_str!("../src/methods/aswudi.rs")),
    ("ace", include_str!("../src/methods/ace.rs")),
    ("cart", include_str!("../src/methods/cart.rs")),
    ("knots", include_str!("../src/methods/knots.rs")),
    ("lines", include_str!("../src/methods/lines.rs")),
    ("consensus", include_str!("../src/methods/consensus.rs")),
    ("tall_masks", include_str!("../src/methods/tall_masks.rs")),
    ("pcb", include_str!("../src/methods/pcb.rs")),
    ("emr", include_str!("../src/methods/emr.rs")),
    (
        "localize_and_stitch",
        include_str!("../src/methods/localize_and_stitch.rs"),
    ),
];

const HEADER: &str = "\
# Merge methods

Made from the doc comments in `merge/src/methods/`. To write it again:
`VLMERGE_WRITE_DOCS=1 cargo test --release --workspace --test merge_tests methods_document`.

Parameters stand under `parameters` in a recipe: of the whole recipe, of a slice, or of a model
(*per model*), in any of mergekit's forms. `interpolate`, `arithmetic` and `regmean` are verbs, too,
and have them as flags. Every method computes in f32 or wider, sums whole tensors in f64 and rounds
once to the output's element type, unless a section *As published* says otherwise. All but
`interpolate` and `arithmetic` merge checkpoints; all but `passthrough` merge the experts
of one checkpoint, if the recipe has `experts`, `for` or `layout`.
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
            None => writeln!(text, "{}", without_links(line)),
        }
        .expect("writing to a string");
    }
    text
}

/// Links to types as code, with or without a target.
fn without_links(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, link)) = rest.split_once("[`") {
        let (name, after) = link.split_once("`]").expect("a link ends");
        text += &format!("{before}`{name}`");
        rest = match after
            .strip_prefix('(')
            .and_then(|target| target.split_once(')'))
        {
            Some((_, after)) => after,
            None => after,
        };
    }
    text + rest
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
