//! FLM's checkpoints: names and ties, position tables, and what a model starts with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fixtures::{Case, Raw, Set};
use merge::convert::{Conversion, FlmStart, FlmTowers};
use merge::execute::{RunOptions, in_memory};
use merge::io::{PlainValue, TensorEntry};
use merge::layouts::{Flm, FlmSpec, FlmTask};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::{Checkpoint, Error, MergePlan};
use serde_json::Value;

use crate::flm::{converted, every_name, opened, synthesis, write};

fixtures::golden_tests! {
    package: "merge", set: "flm",
    names_that_disagree_take_the_values_of_the_last_one: "alias_conflict" => conflict,
    every_name_of_a_tied_tensor_is_written_to_a_lightning_file: "alias_expand" => expand,
    checkpoints_have_the_published_names_and_ties: "checkpoint_keys" => keys,
    a_new_model_takes_its_towers_from_clip_and_roberta: "init_from_clip_and_roberta" => init,
    what_no_tower_has_is_drawn_as_published: "init_statistics" => statistics,
    a_model_for_a_task_starts_as_published: "load_pretrained" => load,
    position_tables_are_resized_as_published: "position_resize" => resize,
    lightning_files_are_read_with_the_optimizer_beside: "read_lightning" => lightning,
    views_of_a_storage_are_read_at_their_offset: "read_view" => view,
    files_that_the_published_program_refuses_are_refused: "upstream_errors" => refusals,
}

/// The sizes of the set's models.
fn size(set: &Set, name: &str) -> usize {
    let size = set.config()[name].as_u64();
    size.unwrap_or_else(|| panic!("config.json has no {name}")) as usize
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    checkpoint.read_all(name).expect("it reads")
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let info = checkpoint.require(name).expect("the tensor");
    let mut values = vec![0.0; info.n_elements()];
    merge::decode_f64(name, info.dtype, &bytes(checkpoint, name), &mut values).expect("numbers");
    values
}

fn made(plan: &MergePlan) -> Checkpoint {
    in_memory(plan, &RunOptions::default(), &Silent).expect("it runs")
}

fn task(name: &str) -> FlmTask {
    let name = match name {
        "flm_pretrain" | "flm_separate_heads" => "pretrain",
        "flm_itm" => "itm",
        other => other,
    };
    FlmTask::named(name).unwrap_or_else(|| panic!("no task {name}"))
}

fn conflict(case: &Case) {
    let checkpoint = opened(&case.files("input")[0]);
    let expected = case.files("expected");
    for (name, raw) in fixtures::tensors(&expected[0]) {
        assert!(bytes(&checkpoint, &name) == raw.bytes, "{name}");
    }
    let winners: Value = read(&expected[1]);
    let note = checkpoint.notes().join("\n");
    assert!(note.contains("the last registered name wins"), "{note}");
    let n = winners.as_object().expect("winners").len();
    let listed = note.matches(" is taken)").count();
    assert!(listed == n || note.contains("and") && listed < n, "{note}");
    for (name, winner) in winners.as_object().expect("winners") {
        let winner = fixtures::text(&winner[0]);
        assert_eq!(checkpoint.name_of(winner), name);
    }
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("it reads");
    serde_json::from_str(&text).expect("JSON")
}

fn expand(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("all.ckpt");
    let source = Arc::new(opened(&case.files("input")[0]));
    write(&converted(&source, &Conversion::default()), &path);
    let written = opened(&path);
    let expected = fixtures::tensors(&case.files("expected")[0]);
    let names: BTreeSet<String> = expected.keys().cloned().collect();
    assert_eq!(every_name(&written), names);
    for (name, raw) in &expected {
        assert_eq!(
            written.require(name).expect("there").shape,
            raw.shape,
            "{name}"
        );
        assert!(bytes(&written, name) == raw.bytes, "{name}");
    }
    // And a file that has the values once a name is the same model.
    let all = opened(&case.files("expected")[0]);
    assert_eq!(all.aliases(), written.aliases());
    assert_eq!(all.tensors().count(), written.tensors().count());
    assert!(all.notes().is_empty(), "{:?}", all.notes());
}

fn keys(case: &Case) {
    let model = case.param("model").expect("a model");
    let checkpoint = opened(&case.files("input")[0]);
    let expected = case.files("expected");
    let known = &read(&expected[0])[model];
    let order: Vec<&str> = fixtures::list(&known["order"])
        .iter()
        .map(fixtures::text)
        .collect();
    assert_eq!(known["names"].as_u64(), Some(order.len() as u64));
    let names: BTreeSet<String> = order.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(every_name(&checkpoint), names);
    assert_eq!(
        known["distinct"].as_u64(),
        Some(checkpoint.tensors().count() as u64)
    );
    let ties: BTreeMap<String, String> = (known["aliases"].as_object().expect("aliases").iter())
        .flat_map(|(of, names)| {
            let names = fixtures::list(names).iter();
            names.map(move |name| (fixtures::text(name).to_owned(), of.clone()))
        })
        .collect();
    assert_eq!(*checkpoint.aliases(), ties);
    // The same order as the published program's, from sizes alone.
    let layout = Flm::read(&checkpoint).expect("it reads").expect("an FLM");
    let spec = layout.spec(&checkpoint).expect("sizes");
    assert_eq!(spec.task, task(model));
    let of_spec: Vec<String> = spec.names().into_iter().map(|(name, _)| name).collect();
    assert_eq!(of_spec, order);
    // Canonical names hold all values.
    let canonical = fixtures::tensors(&expected[1]);
    for (name, raw) in &canonical {
        assert_eq!(checkpoint.name_of(name), name);
        assert!(bytes(&checkpoint, name) == raw.bytes, "{name}");
    }
    // There and back: the ties are in the metadata, and shared storages again.
    let folder = tempfile::tempdir().expect("a folder");
    let mut source = Arc::new(checkpoint);
    for name in ["once.safetensors", "again.ckpt"] {
        let path = folder.path().join(name);
        write(&converted(&source, &Conversion::default()), &path);
        source = Arc::new(opened(&path));
        assert_eq!(*source.aliases(), ties, "{name}");
        for (name, raw) in &canonical {
            assert!(bytes(&source, name) == raw.bytes, "{name}");
        }
    }
}

/// The new model of the set's CLIP and RoBERTa.
fn towers(set: &Set, case: Option<&Case>) -> (Arc<Checkpoint>, FlmTowers) {
    let [clip, text] = [
        "convert/clip_archive.safetensors",
        "convert/roberta.safetensors",
    ]
    .map(|name| Arc::new(opened(&set.path(name))));
    let count = |name: &str| case.and_then(|case| case.count(name));
    let towers = FlmTowers {
        task: FlmTask::Pretrain,
        text,
        image_size: Some(count("image_size").unwrap_or_else(|| size(set, "image_size"))),
        n_text_blocks: Some(
            count("num_bottom_layer").unwrap_or_else(|| size(set, "num_bottom_layer")),
        ),
        n_cross_blocks: Some(size(set, "num_top_layer")),
        n_bottom: Some(size(set, "num_reconstructor_bottom_layer")),
        n_top: Some(size(set, "num_reconstructor_top_layer")),
        n_answers: None,
        seed: 5,
        dtype: OutputDType::Keep,
    };
    (clip, towers)
}

fn init(case: &Case) {
    let (clip, towers) = towers(case.set(), Some(case));
    let plan = towers.plan(Arc::clone(&clip)).expect("a plan");
    let model = made(&plan);
    let expected = case.files("expected");
    let listed = read(&expected[0]);
    let changed = fixtures::tensors(&expected[1]);
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    for (name, origin) in listed["tensors"].as_object().expect("tensors") {
        let source = match fixtures::text(&origin["source"]) {
            "clip_archive" => &clip,
            _ => &towers.text,
        };
        let key = fixtures::text(&origin["name"]);
        if origin["same"].as_bool() == Some(true) {
            assert_eq!(bytes(&model, name), bytes(source, key), "{name}");
            continue;
        }
        let raw = &changed[name];
        assert_eq!(model.require(name).expect("there").shape, raw.shape);
        let found = values(&model, name);
        let difference = fixtures::first_difference(&found, &raw.values(), rtol, atol);
        assert_eq!(difference, None, "{name}");
    }
    let dropped: BTreeSet<String> = (plan.dropped().iter())
        .map(|dropped| {
            let of = ["clip_archive", "roberta"][dropped.tensor.source];
            format!("{of}:{}", dropped.tensor.key)
        })
        .collect();
    let left_out = fixtures::list(&listed["source_keys_dropped"]).iter();
    let left_out: BTreeSet<String> = left_out
        .map(|name| fixtures::text(name).to_owned())
        .collect();
    assert_eq!(dropped, left_out);
    // Both spellings of the CLIP and of the RoBERTa give the same model.
    let folder = tempfile::tempdir().expect("a folder");
    let respelled = |source: &Path, name: &str, rename: &dyn Fn(&str) -> String| {
        let path = folder.path().join(name);
        let tensors = fixtures::tensors(source).into_iter();
        let renamed: BTreeMap<String, Raw> =
            tensors.map(|(name, raw)| (rename(&name), raw)).collect();
        fixtures::write(&path, &renamed);
        Arc::new(opened(&path))
    };
    let open_clip = respelled(clip.path(), "open_clip.safetensors", &|name| {
        let is_visual = name.starts_with("visual.") || name == "logit_scale";
        if is_visual {
            name.to_owned()
        } else {
            format!("text.{name}")
        }
    });
    let text = respelled(towers.text.path(), "roberta.safetensors", &|name| {
        format!("roberta.{name}")
    });
    let others = FlmTowers { text, ..towers };
    let same = made(&others.plan(open_clip).expect("a plan"));
    for (name, _) in model.tensors() {
        assert_eq!(bytes(&same, name), bytes(&model, name), "{name}");
    }
    assert_eq!(same.aliases(), model.aliases());
}

fn statistics(case: &Case) {
    let (clip, towers) = towers(case.set(), None);
    let model = made(&towers.plan(clip).expect("a plan"));
    let listed = read(&case.files("expected")[0]);
    for (name, expected) in listed.as_object().expect("tensors") {
        let info = model.require(name).expect("there");
        let shape = fixtures::integers(&expected["shape"]);
        let shape: Vec<usize> = shape.iter().map(|&axis| axis as usize).collect();
        assert_eq!(info.shape, shape, "{name}");
        let values = values(&model, name);
        let all = |wanted: f64| values.iter().all(|&value| value == wanted);
        let largest = values
            .iter()
            .fold(0.0f64, |most, value| most.max(value.abs()));
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / n;
        let std = variance.sqrt();
        // Two samples of n draws: each is off by about 1/√(2n) of the deviation.
        let is_near = (std / fixtures::number(&expected["std"]) - 1.0).abs() < 6.0 / n.sqrt();
        match fixtures::text(&expected["kind"]) {
            "zero" => assert!(all(0.0), "{name}"),
            "one" => assert!(all(1.0), "{name}"),
            "normal" => assert!(is_near, "{name}: {std}"),
            "uniform" => {
                // The bound is √3 deviations.
                assert!(is_near, "{name}: {std}");
                let bound = (shape_of_input(&model, name) as f64).sqrt().recip();
                assert!(
                    largest <= bound && largest > 0.3 * bound,
                    "{name}: {largest}"
                );
            }
            other => panic!("{name}: {other}"),
        }
    }
}

/// Inputs of the linear layer that a weight or a bias belongs to.
fn shape_of_input(model: &Checkpoint, name: &str) -> usize {
    let weight = name.replace(".bias", ".weight");
    model.require(&weight).expect("a weight").shape[1]
}

fn load(case: &Case) {
    let set = case.set();
    let target = case.param("target").expect("a target");
    let source = Arc::new(opened(&case.files("input")[0]));
    let found = Flm::read(&source).expect("it reads").expect("an FLM");
    let vocabulary = merge::Layout::dimensions(&found)
        .vocabulary
        .expect("a vocabulary");
    let start = FlmStart {
        image_size: case.count("image_size"),
        vocabulary: case.count("new_rows").map(|added| vocabulary + added),
        n_answers: Some(size(set, "vqav2_label_size")),
        seed: 7,
        ..FlmStart::of(task(target))
    };
    let (plan, report) = start.plan(Arc::clone(&source)).expect("a plan");
    let model = made(&plan);
    let expected = case.files("expected");
    let tensors = fixtures::tensors(&expected[0]);
    let of_table = match target {
        "nlvr2" => "token_type_embeddings.weight",
        _ => "vit_model.visual.positional_embedding",
    };
    let mut changed = BTreeSet::new();
    for (name, raw) in &tensors {
        let Some(rest) = name.strip_prefix("after") else {
            continue;
        };
        let name = rest.strip_prefix('.').unwrap_or(of_table);
        changed.insert(name.to_owned());
        assert_eq!(
            model.require(name).expect("there").shape,
            raw.shape,
            "{name}"
        );
        let mut found = values(&model, name);
        let mut wanted = raw.values();
        if case["params"]["new_rows"].is_u64() {
            // New rows are drawn.
            let n = wanted.len() / raw.shape[0] * vocabulary;
            assert!(
                found[n..]
                    .iter()
                    .all(|value| *value != 0.0 && value.abs() < 0.2)
            );
            found.truncate(n);
            wanted.truncate(n);
        }
        let tolerance = |name| case["tolerance"][name].as_f64().unwrap_or(0.0);
        let (rtol, atol) = (tolerance("rtol"), tolerance("atol"));
        let difference = fixtures::first_difference(&found, &wanted, rtol, atol);
        assert_eq!(difference, None, "{name}");
    }
    for (name, _) in model.tensors().filter(|(name, _)| !changed.contains(*name)) {
        if source.get(name).is_some() {
            assert_eq!(bytes(&model, name), bytes(&source, name), "{name}");
        }
    }
    let expected = &read(&expected[1])[target];
    let names = |what: &str| -> Vec<&str> {
        fixtures::list(&expected[what])
            .iter()
            .map(fixtures::text)
            .collect()
    };
    assert_eq!(report.missing, names("missing"));
    assert_eq!(report.unexpected, names("unexpected"));
    // The output is a model of the task.
    let spec = Flm::read(&model)
        .expect("it reads")
        .expect("an FLM")
        .spec(&model)
        .expect("sizes");
    assert_eq!(spec.task, task(target));
}

/// Through the conversion of a whole model that is made around the table.
fn resize(case: &Case) {
    let prefix = case.param("prefix").expect("a prefix");
    let tensors = fixtures::tensors(&case.files("input")[0]);
    let (before, after) = (
        &tensors[&format!("{prefix}.before")],
        &tensors[&format!("{prefix}.after")],
    );
    let patch = case.count("patch_size").expect("a patch");
    let mut spec = FlmSpec::published(FlmTask::Pretrain);
    spec.sizes = crate::flm::tiny_sizes();
    spec.sizes.image.width = before.shape[1];
    spec.sizes.image.n_heads = 1;
    spec.sizes.patch_size = patch;
    spec.sizes.image_size = patch * (before.shape[0] - 1).isqrt();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(&synthesis(spec).plan().expect("a plan"), &path);
    let mut all = fixtures::tensors(&path);
    all.insert(POSITIONS.to_owned(), before.clone());
    fixtures::write(&path, &all);
    let conversion = Conversion {
        image_size: case.count("image_size"),
        ..Conversion::default()
    };
    let source = Arc::new(opened(&path));
    let resized = made(&converted(&source, &conversion));
    assert_eq!(
        resized.require(POSITIONS).expect("there").shape,
        after.shape
    );
    if case["tolerance"]["identical"].as_bool() == Some(true) {
        assert_eq!(bytes(&resized, POSITIONS), after.bytes);
    }
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let found = values(&resized, POSITIONS);
    let difference = fixtures::first_difference(&found, &after.values(), rtol, atol);
    assert_eq!(difference, None);
    for (name, raw) in all.iter().filter(|(name, _)| *name != POSITIONS) {
        assert!(bytes(&resized, name) == raw.bytes, "{name}");
    }
}

const POSITIONS: &str = "vit_model.visual.positional_embedding";

fn lightning(case: &Case) {
    let checkpoint = opened(&case.files("input")[0]);
    let expected = read(&case.files("expected")[0]);
    let value = |name: &str| {
        let values = &checkpoint.info().values;
        values
            .iter()
            .find(|(path, _)| path.to_string() == name)
            .map(|(_, value)| value)
    };
    for name in ["epoch", "global_step"] {
        let wanted = case.count(name).expect("a count") as i64;
        assert_eq!(value(name), Some(&PlainValue::Integer(wanted)), "{name}");
    }
    let opaque = &checkpoint.info().opaque;
    assert!(
        opaque
            .iter()
            .any(|object| object.callable.ends_with("ModelCheckpoint")),
        "{opaque:?}"
    );
    let state = expected["state_dict"].as_object().expect("tensors");
    let names: BTreeSet<String> = state.keys().cloned().collect();
    assert!(every_name(&checkpoint).is_superset(&names));
    for (name, tensor) in state {
        let hash = fixtures::sha256_of(&bytes(&checkpoint, name));
        assert_eq!(hash, fixtures::text(&tensor["sha256"]), "{name}");
    }
    // Moments stand outside the weights, and only of what got a gradient.
    let source = checkpoint.source();
    let entries: BTreeMap<String, (usize, &TensorEntry)> = (source.tensors().iter().enumerate())
        .map(|(index, entry)| (entry.path.to_string(), (index, entry)))
        .collect();
    let moments = expected["optimizer"]["state"].as_object().expect("states");
    let n = entries
        .keys()
        .filter(|path| path.ends_with(".exp_avg"))
        .count();
    assert_eq!(n, moments.len());
    for (index, moment) in moments {
        for name in ["exp_avg", "exp_avg_sq"] {
            let (at, entry) = entries[&format!("optimizer_states.0.state.{index}.{name}")];
            let mut found = vec![0; entry.info.n_bytes() as usize];
            source.read(at, 0, &mut found).expect("it reads");
            let wanted = fixtures::text(&moment[&format!("{name}_sha256")]);
            assert_eq!(fixtures::sha256_of(&found), wanted, "{index} {name}");
        }
    }
}

fn view(case: &Case) {
    let checkpoint = opened(&case.files("input")[0]);
    assert!(checkpoint.aliases().is_empty());
    let expected = fixtures::tensors(&case.files("expected")[0]);
    let mut n = 0;
    for (name, _) in checkpoint.tensors() {
        if let Some(raw) = expected.get(&format!("after.{name}")) {
            // A row of the matching head: the same numbers in both files, or the same place in both.
            assert_eq!(checkpoint.require(name).expect("there").shape, raw.shape);
            n += 1;
        }
    }
    assert!(n > 0);
    for end in ["weight", "bias"] {
        let whole = bytes(&checkpoint, &format!("itm_score.fc.{end}"));
        let row = bytes(&checkpoint, &format!("rank_output.{end}"));
        assert_eq!(row, whole[whole.len() - row.len()..], "{end}");
    }
}

/// The cases that are about checkpoints; the others are about passes.
fn refusals(case: &Case) {
    let set = case.set();
    let expected = read(&case.files("expected")[0]);
    let is_refused = |name: &str| expected[name]["raised"].is_string();
    let model = |name: &str| {
        let config = set.config();
        Arc::new(opened(&set.path(fixtures::text(&config["models"][name]))))
    };
    let plan = |start: FlmStart, source: Arc<Checkpoint>| start.plan(source).err();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("no_positions.safetensors");
    let mut tensors = fixtures::tensors(model("flm_pretrain").path());
    tensors.remove(POSITIONS);
    fixtures::write(&path, &tensors);
    let patch = size(set, "patch_size");
    let of = FlmStart::of;
    let sized = |image_size| FlmStart {
        image_size: Some(image_size),
        ..of(FlmTask::Vqa)
    };
    let fewer = FlmStart {
        vocabulary: Some(size(set, "vocab_size")),
        ..of(FlmTask::Caption)
    };
    let answers = FlmStart {
        n_answers: Some(size(set, "vqav2_label_size") + 1),
        ..of(FlmTask::Vqa)
    };
    let checked: [(&str, Option<Error>); 6] = [
        (
            "position_missing",
            plan(sized(4 * patch), Arc::new(opened(&path))),
        ),
        (
            "position_indivisible",
            plan(sized(4 * patch + 1), model("flm_pretrain")),
        ),
        ("vocab_shrink", plan(fewer, model("caption"))),
        (
            "nlvr2_into_training",
            plan(of(FlmTask::Vqa), model("nlvr2")),
        ),
        ("nlvr2_test_only", plan(of(FlmTask::Nlvr2), model("nlvr2"))),
        ("vqa_label_size", plan(answers, model("vqa"))),
    ];
    for (name, fault) in checked {
        assert_eq!(fault.is_some(), is_refused(name), "{name}: {fault:?}");
    }
}
