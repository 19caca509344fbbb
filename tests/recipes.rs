//! Recipes: mergekit's as they stand, the one in a file's metadata, and plans of large models.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use merge::io::OpenOptions;
use serde_json::{Value, json};

use crate::program::{Said, vlmerge};

/// Runs the program in the folder of mergekit's recipes, whose models are named relative to it.
fn in_mergekits_folder(arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/mergekit"))
        .output()
        .expect("the program starts");
    let said = Said::new(&output);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
    said
}

fn values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = merge::io::open(path, &OpenOptions::default()).expect("opens");
    let names = checkpoint.tensors().map(|(name, _)| name);
    names
        .map(|name| {
            let bytes = checkpoint.read_all(name).expect("readable");
            let values = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name.to_owned(), values.collect())
        })
        .collect()
}

#[test]
fn the_recipe_of_mergekit_in_the_documents_runs_as_it_stands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/mergekit.md")).expect("readable");
    let recipe = std::fs::read_to_string(root.join("fixtures/mergekit/ties.yaml"));
    let recipe = recipe.expect("readable");
    assert!(
        page.contains(&format!("```yaml\n{recipe}```")),
        "the page shows ties.yaml"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("merged");
    let out_name = format!("{}/", out.display());
    in_mergekits_folder(&["merge", "ties.yaml", "--out", &out_name]);
    for name in ["README.md", "config.json", "model.safetensors"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let expected = values(&root.join("fixtures/mergekit/ties.safetensors"));
    let found = values(&out);
    assert!(found.keys().eq(expected.keys()));
    for (name, expected) in expected {
        let largest = expected
            .iter()
            .fold(0.0, |max: f32, value| max.max(value.abs()));
        // The error that float32 leaves after a few operations, of the largest value.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * largest;
        assert!(found[&name].iter().zip(&expected).all(near), "{name}");
    }
}

#[test]
fn the_recipe_in_a_file_makes_the_same_file_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    // Two files of one name, two documents, and masks that are drawn.
    let yaml = "name: sum\nmerge_method: dare_linear\nbase_model: base/model.safetensors\nmodels:\n- model: \
                a/model.safetensors\n- model: b/model.safetensors\nparameters: {weight: 0.5, density: 0.5}\nseed: \
                3\n---\nmerge_method: slerp\nparameters: {t: 0.25}\nmodels: [sum, c]\nbase_model: c\n";
    let recipe = path("recipe.yaml");
    std::fs::write(&recipe, yaml).expect("written");
    in_mergekits_folder(&["merge", &recipe, "--out", &path("once/")]);
    let said = vlmerge(&["recipe", &path("once"), "--inputs", "fixtures/mergekit"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for part in [
        "# base/model.safetensors (",
        "BLAKE3 ",
        "model: fixtures/mergekit/a/model.safetensors",
    ] {
        assert!(said.stdout.contains(part), "no {part} in {}", said.stdout);
    }
    let again = path("again.yaml");
    std::fs::write(&again, &said.stdout).expect("written");
    let said = vlmerge(&["merge", &again, "--out", &path("twice/")]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let bytes = |name: &str| std::fs::read(path(name)).expect("readable");
    assert!(bytes("once/model.safetensors") == bytes("twice/model.safetensors"));
    let said = vlmerge(&["recipe", "fixtures/mergekit/a"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("vlmerge did not write this file"),
        "{}",
        said.stderr
    );
    let converted = path("converted.safetensors");
    assert_eq!(
        vlmerge(&["convert", "fixtures/mergekit/a", &converted]).code,
        Some(0)
    );
    let said = vlmerge(&["recipe", &converted]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("made by a command, not by a recipe: "),
        "{}",
        said.stderr
    );
}

#[test]
fn keys_in_the_wrong_place_are_named_with_their_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe = folder.path().join("recipe.yaml");
    let start = "merge_method: linear\n";
    for (rest, line, words) in [
        (
            "modules:\n  text: {models: [a], merge_method: ties}\n",
            3,
            "`merge_method` of a module: there is one method for all modules",
        ),
        (
            "modules:\n  text: {models: [a], base_model: b}\n",
            3,
            "`base_model` of a module: there is one base for all modules",
        ),
        ("out_path: x\n", 2, "unknown field `out_path`"),
    ] {
        std::fs::write(&recipe, format!("{start}{rest}")).expect("written");
        let said = vlmerge(&[
            "merge",
            recipe.to_str().expect("UTF-8"),
            "--out",
            "x.safetensors",
        ]);
        assert_eq!(said.code, Some(2), "{rest}: {}", said.stderr);
        for part in [words.to_owned(), format!("line {line}")] {
            assert!(said.stderr.contains(&part), "{rest}: {}", said.stderr);
        }
    }
}

/// Writes a model of 20 files of 5 GB, nothing of which takes room on the disk but the headers.
fn sparse_model(folder: &Path, odd: bool) {
    std::fs::create_dir(folder).expect("made");
    let mut weight_map = BTreeMap::new();
    for shard in 0..20_u64 {
        let file = format!("model-{:05}-of-00020.safetensors", shard + 1);
        let (mut header, mut end) = (serde_json::Map::new(), 0_u64);
        for tensor in 0..160_u64 {
            let name = format!(
                "model.layers.{}.part{}.weight",
                shard * 8 + tensor / 20,
                tensor % 20
            );
            let rows = if odd && tensor == 7 { 3997 } else { 3906 };
            let first = end;
            end += 2 * rows * 4000;
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": [rows, 4000], "data_offsets": [first, end]}),
            );
            weight_map.insert(name, file.clone());
        }
        let text = Value::Object(header).to_string();
        let mut out = File::create(folder.join(file)).expect("created");
        out.write_all(&(text.len() as u64).to_le_bytes())
            .expect("written");
        out.write_all(text.as_bytes()).expect("written");
        out.set_len(8 + text.len() as u64 + end)
            .expect("a sparse file");
    }
    let index = json!({"metadata": {}, "weight_map": weight_map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .expect("written");
}

#[test]
#[allow(
    clippy::print_stdout,
    reason = "the time is a figure of docs/performance.md"
)]
fn a_plan_of_three_models_of_100_gb_takes_a_moment_and_lists_every_mismatch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, odd) in [("base", false), ("a", false), ("b", false), ("odd", true)] {
        sparse_model(&folder.path().join(name), odd);
    }
    let recipe = folder.path().join("recipe.yaml");
    let plan = |models: &str| {
        let at = folder.path().display().to_string();
        let models = models.split(' ').map(|name| format!("{at}/{name}"));
        let models = models.collect::<Vec<_>>().join(", ");
        let yaml = format!(
            "merge_method: ties\nbase_model: {at}/base\nmodels: [{models}]\nparameters: {{weight: 0.5, density: 0.2}}\n"
        );
        std::fs::write(&recipe, yaml).expect("written");
        let start = Instant::now();
        let said = vlmerge(&[
            "merge",
            recipe.to_str().expect("UTF-8"),
            "--dry-run",
            "--json",
        ]);
        (said, start.elapsed())
    };
    let (said, elapsed) = plan("a b");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    println!(
        "dry run over three models of 100 GB: {:.2} s",
        elapsed.as_secs_f64()
    );
    let seen = said.json();
    assert_eq!(seen["entries"].as_array().expect("a list").len(), 3200);
    // 20 · 160 tensors of 3906 · 4000 numbers in bf16.
    assert_eq!(seen["output_bytes"], 99_993_600_000_u64);
    assert_eq!(seen["input_bytes"], 3 * 99_993_600_000_u64);
    let peak = seen["peak_bytes"].as_u64().expect("a number");
    assert!((1 << 20..1 << 28).contains(&peak), "{peak}");
    // On a machine that does nothing else it takes a fifth of this.
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    let (said, _) = plan("a odd");
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("20 faults"), "{}", said.stderr);
    for shard in [0, 19] {
        let part = format!(
            "`model.layers.{}.part7.weight` has shape [3997, 4000]",
            shard * 8
        );
        assert!(said.stderr.contains(&part), "no {part} in {}", said.stderr);
    }
}
