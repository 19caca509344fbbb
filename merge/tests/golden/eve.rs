//! EVE's checkpoints: names, containers, position tables, and what a model for a task starts with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::{Case, Raw, Set, list, text};
use merge::convert::positions::{Resize, resize_relative};
use merge::convert::{Conversion, EveStart};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, EveSizes, EveSpec, EveTask, Part, TowerSizes};
use merge::progress::Silent;
use merge::synth::Fresh;
use merge::{Checkpoint, Expert, Role};
use ndarray::Array2;
use serde_json::Value;

use crate::eve::{converted, opened, synthesis, values, write};

fixtures::golden_tests! {
    package: "merge", set: "eve",
    every_container_holds_the_published_tensors: "container" => container,
    every_key_has_the_published_role: "layout" => roles,
    a_model_for_a_task_starts_as_published: "load" => load,
    position_tables_are_resized_as_published: "pos_resize" => resize,
    tables_of_relative_positions_are_resized_as_published: "relative_table_resize" => resize_relative_table,
    published_sizes_have_the_published_names_and_parameters: "published_sizes" => sizes,
}

type Listing = BTreeMap<String, (String, Vec<usize>, String)>;

fn listed(tensors: &Value) -> Listing {
    let tensors = tensors.as_object().expect("tensors").iter();
    let of = |value: &Value| {
        let shape = fixtures::integers(&value["shape"]).into_iter();
        (
            text(&value["dtype"]).to_owned(),
            shape.map(|axis| axis as usize).collect(),
            text(&value["sha256"]).to_owned(),
        )
    };
    tensors
        .map(|(key, value)| (key.clone(), of(value)))
        .collect()
}

fn found(checkpoint: &Checkpoint) -> Listing {
    let tensors = checkpoint.tensors().map(|(key, info)| {
        let dtype = match info.dtype {
            merge::DType::F32 => "float32",
            merge::DType::I64 => "int64",
            other => panic!("{key}: {other}"),
        };
        let bytes = checkpoint.read_all(key).expect("it reads");
        let hash = fixtures::sha256_of(&bytes);
        (key.to_owned(), (dtype.to_owned(), info.shape.clone(), hash))
    });
    tensors.collect()
}

fn container(case: &Case) {
    let listing = case.json("expected");
    let expected = listed(&listing["model"]);
    for path in case.files("input") {
        let is_training = path.to_string_lossy().contains("training_state");
        let contents = match is_training {
            true => &listing["top_level_training_file"],
            false => &listing["top_level_model_file"],
        };
        let has_weights = list(contents).iter().any(|name| text(name) == "model");
        let checkpoint = opened(&path);
        if !has_weights {
            assert_eq!(checkpoint.tensors().count(), 0);
            continue;
        }
        assert_eq!(checkpoint.info().root, "model");
        assert_eq!(found(&checkpoint), expected);
        // There and back, in the published container and in the others.
        let folder = tempfile::tempdir().expect("a folder");
        let mut source = Arc::new(checkpoint);
        for name in ["a.safetensors", "b.th", "c.pth", "d.th"] {
            let path = folder.path().join(name);
            write(&converted(&source, &Conversion::default()), &path);
            source = Arc::new(opened(&path));
            assert_eq!(found(&source), expected, "{name}");
            let root = if name.ends_with(".th") { "model" } else { "" };
            assert_eq!(source.info().root, root, "{name}");
        }
    }
}

fn roles(case: &Case) {
    let checkpoint = opened(&case.file("input"));
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let keys = case.json("expected");
    let keys = list(&keys["keys"]);
    assert_eq!(keys.len(), checkpoint.tensors().count());
    for row in keys {
        let key = text(&row["key"]);
        let role = layout.role(key).expect("a known key");
        let permuted = row["expert_permutation"].as_str();
        let part = match &role {
            Role::Shared(slot) | Role::Expert { slot, .. } | Role::Routing(slot) => {
                layout.part(slot)
            }
            _ => Part::Buffers,
        };
        let fits = match text(&row["role"]) {
            "task_head" => [Part::Heads, Part::Projections, Part::Temperature].contains(&part),
            "image_embedding" | "text_embedding" => {
                matches!(role, Role::Shared(_))
                    && [Part::Embeddings, Part::PositionTables].contains(&part)
            }
            "index_buffer" => role == Role::Derived,
            "shared" => matches!(role, Role::Shared(_)),
            "image_expert" => is_expert(&role, Expert::Vision),
            "text_expert" => is_expert(&role, Expert::Language),
            "modality_tag" => matches!(&role, Role::Shared(slot) if slot.block.is_some()),
            "router" => matches!(role, Role::Routing(_)) && permuted == Some("rows (axis 0)"),
            "routed_expert" => {
                let index: u16 = (key.split(".experts.experts.").nth(1))
                    .and_then(|rest| rest.split('.').next()?.parse().ok())
                    .expect("an index");
                is_expert(&role, Expert::Routed(index)) && permuted.is_some()
            }
            other => panic!("{key}: {other}"),
        };
        assert!(fits, "{key}: {role:?} is no {}", row["role"]);
    }
}

fn is_expert(role: &Role, wanted: Expert) -> bool {
    matches!(role, Role::Expert { expert, .. } if *expert == wanted)
}

/// A file that the manifest describes: a container, or tensors of one in another.
fn loaded(case: &Case, folder: &Path) -> PathBuf {
    let input = case.text("input");
    let Some((file, how)) = input.split_once(' ') else {
        return case.file("input");
    };
    let mut tensors = fixtures::tensors(&case.set().path(file));
    let bare = "without the itc_vl_* keys, as a bare dict";
    match how {
        "as {model, config}" => {}
        _ if how == bare => tensors.retain(|key, _| !key.starts_with("itc_vl_")),
        other => panic!("unknown input: {other}"),
    }
    let path = folder.join("plain.safetensors");
    fixtures::write(&path, &tensors);
    let target = folder.join(if how == bare { "bare.pth" } else { "model.th" });
    let source = Arc::new(opened(&path));
    write(&converted(&source, &Conversion::default()), &target);
    target
}

fn task(name: &str) -> EveTask {
    let found = EveTask::ALL.iter().find(|(_, known)| *known == name);
    found.unwrap_or_else(|| panic!("no task {name}")).0
}

fn set_of<'a>(names: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    names
        .into_iter()
        .map(|name| text(name).to_owned())
        .collect()
}

fn size(set: &Set, name: &str) -> usize {
    set.config()[name].as_u64().expect("a size") as usize
}

fn load(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Arc::new(opened(&loaded(case, folder.path())));
    let (set, task) = (case.set(), task(case.param("task").expect("a task")));
    let start = EveStart {
        image_size: Some(size(set, "image_size")),
        text_positions: Some(size(set, "texts_max_tokens")),
        vocabulary: Some(size(set, "vocab_size")),
        n_answers: Some(size(set, "vqa_answers")),
        with_fresh_heads: case["params"]["load_head"] != true,
        ..EveStart::of(task)
    };
    let (plan, report) = start.plan(Arc::clone(&source)).expect("a plan");
    let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("it runs");
    let rules = case.json("expected");
    let rules = &rules[case["key"].as_u64().expect("an index") as usize];
    let sources = rules["source"].as_object().expect("sources");
    let table = fixtures::tensors(&set.path("load/pos_resize.safetensors"));
    let mut n_same = 0;
    for (key, info) in model.tensors() {
        let from = match sources.get(key).map(text) {
            None => key,
            Some("initialisation") => {
                assert!(report.missing.iter().any(|name| name == key), "{key}");
                continue;
            }
            Some("file: resized") => {
                // The table of the one file that has another size.
                let expected = &table["load.64_to_48"];
                assert_eq!(info.shape, expected.shape);
                let tolerance = &manifest_tolerance(set);
                let [rtol, atol] = ["rtol", "atol"].map(|name| fixtures::number(&tolerance[name]));
                let found = values(&model, key);
                let differs = fixtures::first_difference(&found, &expected.values(), rtol, atol);
                assert_eq!(differs, None, "{key}");
                continue;
            }
            Some(other) => other.strip_prefix("file: ").expect("a file's key"),
        };
        n_same += usize::from(from == key);
        let bytes = |of: &Checkpoint, key: &str| of.read_all(key).expect("it reads");
        assert!(bytes(&model, key) == bytes(&source, from), "{key}");
    }
    assert_eq!(Some(n_same as u64), rules["same_key_count"].as_u64());
    let names = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&report.missing), set_of(list(&rules["missing_keys"])));
    assert_eq!(
        names(&report.unexpected),
        set_of(list(&rules["unexpected_keys"]))
    );
    // The new tensors are those to which the published program gives a rate of their own.
    assert_eq!(rules["new_parameters"], rules["missing_keys"]);
}

fn manifest_tolerance(set: &Set) -> Value {
    set.json("manifest.json")["tolerances"]["pos_resize"].clone()
}

/// Through the conversion of a small model that has the table.
fn resize(case: &Case) {
    let tables = fixtures::tensors(&case.file("expected"));
    let tolerance = manifest_tolerance(case.set());
    let [rtol, atol] = ["rtol", "atol"].map(|name| fixtures::number(&tolerance[name]));
    let folder = tempfile::tempdir().expect("a folder");
    for name in list(&case["params"]["cases"]).iter().map(text) {
        let sides = name.split("_to_").map(|side| side.parse().expect("a side"));
        let sides: Vec<usize> = sides.collect();
        let [before, after] = ["before", "after"].map(|when| &tables[&format!("{name}.{when}")]);
        let path = folder.path().join(format!("{name}.safetensors"));
        around(before, sides[0], &path);
        let all = fixtures::tensors(&path);
        for with_buffers in [false, true] {
            let conversion = Conversion {
                image_size: Some(PATCH * sides[1]),
                with_buffers,
                ..Conversion::default()
            };
            let source = Arc::new(opened(&path));
            let resized = conversion.in_memory(source, &RunOptions::default(), &Silent);
            let resized = resized.expect("it is resized");
            let found = values(&resized, POSITIONS);
            let differs = fixtures::first_difference(&found, &after.values(), rtol, atol);
            assert_eq!(differs, None, "{name}");
            let class = before.shape[1];
            assert_eq!(found[..class], before.values()[..class], "{name}");
            // The buffer is rebuilt or left out, and all else is as it was.
            let ids = resized.get(IDS).map(|info| info.shape[1]);
            let is_same = sides[0] == sides[1];
            let expected = (with_buffers || is_same).then_some(sides[1] * sides[1] + 1);
            assert_eq!(ids, expected, "{name}");
            for (key, raw) in all
                .iter()
                .filter(|(key, _)| ![POSITIONS, IDS].contains(&key.as_str()))
            {
                assert_eq!(resized.read_all(key).expect("it reads"), raw.bytes, "{key}");
            }
        }
    }
}

const POSITIONS: &str = "backbone.pos_embed_vision";
const IDS: &str = "backbone.position_ids_vision";

/// Side of a patch of the models that are made.
const PATCH: usize = 2;

/// Writes a small model with this table of positions for a grid of `side` patches a side.
fn around(table: &Raw, side: usize, path: &Path) {
    let width = *table.shape.last().expect("a width");
    let spec = EveSpec {
        task: EveTask::Backbone,
        sizes: EveSizes {
            blocks: TowerSizes {
                n_blocks: 2,
                width,
                n_heads: 1,
                ffn_width: 4,
            },
            n_mixtures: 1,
            n_experts: 2,
            patch_size: PATCH,
            image_size: PATCH * side,
            text_positions: 5,
            pair_len: 3,
            vocabulary: 3,
            n_answers: 2,
        },
        with_buffers: true,
    };
    write(&synthesis(spec).plan().expect("a plan"), path);
    let mut tensors = fixtures::tensors(path);
    tensors.insert(POSITIONS.to_owned(), table.clone());
    fixtures::write(path, &tensors);
}

/// The published program crops the table for a smaller picture, which must be asked for by name.
fn resize_relative_table(case: &Case) {
    let tables = case.tensors("expected");
    let [before, after] = ["before", "after"].map(|when| {
        let table = &tables[when];
        let (rows, columns) = (table.shape[0], table.shape[1]);
        Array2::from_shape_vec((rows, columns), table.values()).expect("a table")
    });
    let pixels = |name: &str| case["params"][name].as_u64().expect("pixels") as usize;
    let [from, to] = ["from_image", "to_image"].map(|name| pixels(name) / pixels("patch"));
    let is_refused = Resize::Geometric.check("table", from, to).is_err();
    assert_eq!(is_refused, to < from);
    let resize = Resize::GeometricOrCrop;
    resize.check("table", from, to).expect("it crops");
    let found = resize_relative(before.view(), from, to, resize);
    assert_eq!(found.dim(), after.dim());
    let [rtol, atol] = ["rtol", "atol"].map(|name| fixtures::number(&case["tolerance"][name]));
    let [found, after] = [found, after].map(|table| table.into_iter().collect::<Vec<f64>>());
    let differs = fixtures::first_difference(&found, &after, rtol, atol);
    assert_eq!(differs, None);
}

fn sizes(case: &Case) {
    let published = case.json("expected");
    for (name, expected) in published["sizes"].as_object().expect("sizes") {
        let (size, image_size) = name.split_once('_').expect("a size and a side");
        let sizes = match size {
            "base" => EveSizes::BASE,
            "large" => EveSizes::LARGE,
            other => panic!("no size {other}"),
        };
        let sizes = EveSizes {
            image_size: image_size.parse().expect("pixels"),
            ..sizes
        };
        let spec = EveSpec {
            task: EveTask::Backbone,
            sizes,
            with_buffers: true,
        };
        spec.check().expect("published sizes");
        let plan = synthesis(spec).plan().expect("a plan");
        let count = |wanted: &dyn Fn(&str) -> bool| -> u64 {
            let entries = plan.entries().iter();
            let floats = entries.filter(|entry| entry.info.dtype.is_float() && wanted(&entry.name));
            floats.map(|entry| entry.info.n_elements() as u64).sum()
        };
        assert_eq!(
            Some(count(&|_| true)),
            expected["parameters"].as_u64(),
            "{name}"
        );
        let of_experts = count(&|key| key.contains(".experts.experts."));
        assert_eq!(
            Some(of_experts),
            expected["expert_parameters"].as_u64(),
            "{name}"
        );
        let n = plan.entries().len() as u64;
        assert_eq!(Some(n), expected["entries"].as_u64(), "{name}");
        let mut lines: Vec<String> = (plan.entries().iter())
            .map(|entry| {
                let key = entry.name.strip_prefix("backbone.").expect("the backbone");
                format!("{key} {:?}", entry.info.shape)
            })
            .collect();
        lines.sort_unstable();
        if let Some(hash) = expected["sorted_key_shape_sha256"].as_str() {
            let found = fixtures::sha256_of(lines.join("\n").as_bytes());
            assert_eq!(found, hash, "{name}");
        }
        for (key, shape) in expected["non_expert_keys"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let line = format!("{key} {:?}", fixtures::integers(shape));
            assert!(lines.binary_search(&line).is_ok(), "{name}: {line}");
        }
    }
}
