//! EVE: names of its checkpoints, parts and experts, conversions, merges, and refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fixtures::{Raw, Set};
use merge::convert::{Conversion, EveStart, Wrapper};
use merge::execute::{RunOptions, execute, in_memory};
use merge::io::WriteOptions;
use merge::layouts::{self, Eve, EveSizes, EveSpec, EveTask, GramNames, Part, TowerSizes, count};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use merge::{BlockId, Checkpoint, Error, Expert, Layout, MergePlan, MergeRecipe, Role};
use safetensors::Dtype;

pub use crate::zerovl::{opened, values};

pub fn write(plan: &MergePlan, path: &Path) {
    let options = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    execute(plan, &options, &RunOptions::default(), &Silent).expect("written");
}

pub fn converted(source: &Arc<Checkpoint>, conversion: &Conversion) -> MergePlan {
    let layout = layouts::detect(source).expect("a layout");
    let plan = conversion.plan(Arc::clone(source), layout.as_ref());
    plan.expect("a plan")
}

pub fn synthesis(spec: EveSpec) -> Synthesis<EveSpec> {
    Synthesis {
        spec,
        seed: 3,
        spread: Spread::default(),
        is_fresh: false,
        dtype: OutputDType::Keep,
    }
}

/// A small model of which no two sizes are alike.
pub fn tiny(task: EveTask) -> EveSpec {
    EveSpec {
        task,
        sizes: EveSizes {
            blocks: TowerSizes {
                n_blocks: 4,
                width: 6,
                n_heads: 3,
                ffn_width: 10,
            },
            n_mixtures: 1,
            n_experts: 5,
            patch_size: 4,
            image_size: 12,
            text_positions: 9,
            pair_len: 7,
            vocabulary: 11,
            n_answers: 8,
        },
        with_buffers: true,
    }
}

fn written(spec: EveSpec, path: &Path) -> Checkpoint {
    write(&synthesis(spec).plan().expect("a plan"), path);
    opened(path)
}

#[test]
fn a_checkpoint_tells_its_task_and_its_sizes() {
    let folder = tempfile::tempdir().expect("a folder");
    for (task, name) in EveTask::ALL {
        let spec = tiny(task);
        for file in ["model.safetensors", "model.th", "model.pth"] {
            let checkpoint = written(spec, &folder.path().join(file));
            let layout = Eve::read(&checkpoint).expect("it reads").expect("an EVE");
            assert_eq!(layout.name(), format!("eve/{name}"));
            let mut found = layout.spec(&checkpoint).expect("sizes");
            if task != EveTask::Vqa {
                found.sizes.n_answers = spec.sizes.n_answers;
            }
            if task == EveTask::Nlvr2 {
                assert_eq!(layout.spec(&checkpoint).expect("sizes").sizes.n_answers, 2);
            }
            assert_eq!(found, spec, "{:?}", layout.evidence());
            for (key, _) in checkpoint.tensors() {
                layout.role(key).expect("a known key");
            }
        }
    }
}

#[test]
fn every_golden_model_is_known_by_its_keys_alone() {
    let set = Set::open("eve");
    for (file, name, experts) in [
        ("backbone", "eve/backbone", &[2, 2][..]),
        ("pretrain", "eve/pretrain", &[2, 2]),
        ("retrieval", "eve/retrieval", &[2, 2]),
        ("vqa", "eve/vqa", &[2, 2]),
        ("nlvr2", "eve/nlvr2", &[2, 2]),
        ("nlvr2_biattn", "eve/nlvr2_biattn", &[2, 2]),
        // One network for all has no experts in its block, three have three.
        ("variant_single", "eve/backbone", &[0]),
        ("variant_single_moe", "eve/backbone", &[3]),
        ("variant_vl", "eve/backbone", &[2, 3]),
        ("variant_no_modality_tag", "eve/backbone", &[2]),
        ("variant_relative_positions", "eve/backbone", &[2]),
    ] {
        let checkpoint = opened(&set.path(&format!("ckpt/{file}.safetensors")));
        let layout = layouts::detect(&checkpoint).expect("a layout");
        assert_eq!(layout.name(), name, "{file}");
        for (key, _) in checkpoint.tensors() {
            layout
                .role(key)
                .unwrap_or_else(|error| panic!("{file}: {error}"));
        }
        let found: Vec<usize> = (0..experts.len())
            .map(|block| layout.block_experts(BlockId::only(block)).len())
            .collect();
        assert_eq!(found, experts, "{file}");
        assert_eq!(
            count(&checkpoint, layout.as_ref())
                .part(Part::Other)
                .n_tensors,
            0
        );
    }
}

#[test]
fn parts_and_experts_hold_what_they_should() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = tiny(EveTask::Retrieval);
    let checkpoint = written(spec, &folder.path().join("tiny.safetensors"));
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let counts = count(&checkpoint, layout.as_ref());
    let TowerSizes {
        n_blocks,
        width: d,
        ffn_width: f,
        ..
    } = spec.sizes.blocks;
    let network = (2 * d * f + f + d) as u64;
    let norm = 2 * d as u64;
    let e = spec.sizes.n_experts as u64;
    let of = |expert| counts.by_expert[&expert].n_elements;
    let n_hard = n_blocks as u64 - 1;
    assert_eq!(of(Expert::Vision), n_hard * (network + norm));
    assert_eq!(of(Expert::Language), n_hard * (network + norm));
    for index in 0..spec.sizes.n_experts as u16 {
        assert_eq!(of(Expert::Routed(index)), network);
    }
    assert_eq!(counts.by_expert.len(), 2 + spec.sizes.n_experts);
    assert_eq!(counts.routers.n_elements, e * d as u64);
    // Attention, its norm and both scales of every block; the norm and the tags of the mixture.
    let attention = (3 * d * d + 2 * d + d * d + d + 2 * d + 2 * d) as u64;
    let shared = n_blocks as u64 * attention + norm + 2 * d as u64;
    assert_eq!(counts.shared_in_blocks().n_elements, shared);
    assert_eq!(counts.part(Part::Temperature).n_elements, 1);
    assert_eq!(
        counts.part(Part::Projections).n_elements,
        2 * (d * d) as u64
    );
    assert_eq!(counts.part(Part::Heads).n_elements, 2 * d as u64 + 2);
    assert_eq!(counts.part(Part::Buffers).n_tensors, 2);
}

#[test]
fn keys_without_backbone_and_with_module_are_the_same_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let checkpoint = written(tiny(EveTask::Backbone), &path);
    let names = |checkpoint: &Checkpoint| {
        let layout = layouts::detect(checkpoint).expect("a layout");
        assert_eq!(layout.name(), "eve/backbone");
        let names = GramNames::of(checkpoint, layout.as_ref());
        names.iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let expected = names(&checkpoint);
    assert!(expected.contains("backbone.encoder.layers.0.mlp_text.fc1"));
    assert!(expected.contains("backbone.encoder.layers.3.mlp_moe.moe.experts.experts.4.fc2"));
    assert!(expected.contains("backbone.encoder.layers.3.mlp_moe.moe.gate.wg"));
    assert!(expected.contains("backbone.encoder.layers.3.mlp_moe.moe.routing"));
    // Attention's two layers a block, four of networks below, two an expert, the router and its choices in the last.
    assert_eq!(expected.len(), 4 * 2 + 3 * 4 + 5 * 2 + 2);
    let respelled = |name: &str, rename: &dyn Fn(&str) -> String| {
        let path = folder.path().join(name);
        let tensors = fixtures::tensors(folder.path().join("tiny.safetensors").as_path());
        let renamed: BTreeMap<String, Raw> = (tensors.into_iter())
            .map(|(key, raw)| (rename(&key), raw))
            .collect();
        fixtures::write(&path, &renamed);
        opened(&path)
    };
    let bare = respelled("bare.safetensors", &|key| key.replacen("backbone.", "", 1));
    assert_eq!(names(&bare), expected);
    let conversion = Conversion {
        wrapper: Some(Wrapper::Add),
        ..Conversion::default()
    };
    let path = folder.path().join("wrapped.th");
    write(&converted(&Arc::new(checkpoint), &conversion), &path);
    assert_eq!(names(&opened(&path)), expected);
    let both = respelled("both.safetensors", &|key| key.to_owned());
    let mut twice = fixtures::tensors(both.path());
    let norm = twice["backbone.norm.weight"].clone();
    twice.insert("norm.weight".to_owned(), norm);
    fixtures::write(both.path(), &twice);
    let fault = layouts::detect(&opened(both.path()))
        .err()
        .expect("refused");
    assert!(matches!(fault, Error::BrokenLayout { .. }), "{fault}");
}

#[test]
fn unknown_keys_are_named_with_the_nearest_one() {
    let checkpoint = opened(&Set::open("eve").path("ckpt/retrieval.safetensors"));
    let layout = layouts::detect(&checkpoint).expect("a layout");
    for (key, wanted) in [
        (
            "backbone.encoder.layers.2.mlp_moe.moe.experts.experts.3.fc3.weight",
            "backbone.encoder.layers.2.mlp_moe.moe.experts.experts.3.fc1.weight",
        ),
        ("itc_tempp", "itc_temp"),
        (
            "backbone.pre_layernorm.weight",
            "backbone.pre_layrnorm.weight",
        ),
    ] {
        match layout.role(key) {
            Err(Error::UnknownKey { nearest, .. }) => assert_eq!(nearest.as_deref(), Some(wanted)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn routers_without_their_experts_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    written(tiny(EveTask::Backbone), &path);
    let all = fixtures::tensors(&path);
    let router = "backbone.encoder.layers.3.mlp_moe.moe.gate.wg.weight";
    let refused = |name: &str, change: &dyn Fn(&mut BTreeMap<String, Raw>)| {
        let mut tensors = all.clone();
        change(&mut tensors);
        let path = folder.path().join(name);
        fixtures::write(&path, &tensors);
        let fault = layouts::detect(&opened(&path)).err().expect("refused");
        assert!(matches!(fault, Error::RouterMisfit { .. }), "{fault}");
        let said = fault.to_string();
        assert!(said.contains(router), "{said}");
        said
    };
    let said = refused("a.safetensors", &|tensors| {
        let raw = tensors.get_mut(router).expect("a router");
        raw.shape[0] = 4;
        raw.bytes.truncate(4 * 4 * raw.shape[1]);
    });
    assert!(
        said.contains("rows for 4 experts, but its block has 5"),
        "{said}"
    );
    let said = refused("b.safetensors", &|tensors| {
        tensors.retain(|key, _| !key.contains("experts.experts."));
    });
    assert!(said.contains("has 0 experts"), "{said}");
    let said = refused("c.safetensors", &|tensors| {
        tensors.remove(router);
    });
    assert!(said.contains("is missing"), "{said}");
}

#[test]
fn networks_of_modalities_merge_into_one_and_mixtures_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let checkpoint = written(tiny(EveTask::Retrieval), &path);
    let merged = |recipe: &str| {
        let recipe = recipe.replace("MODEL", &path.display().to_string());
        let recipe = MergeRecipe::parse(&recipe, Path::new("test")).expect("valid");
        MergePlan::resolve(&recipe)
    };
    let (plan, _) =
        merged("merge_method: interpolate\nmodels: [MODEL]\nparameters: { ratio: 0.25 }")
            .expect("a plan");
    let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let layout = layouts::detect(&model).expect("a layout");
    assert_eq!(layout.name(), "eve/retrieval");
    for block in 0..3 {
        assert!(layout.block_experts(BlockId::only(block)).is_empty());
        for rest in ["mlp_{}.fc1.weight", "mlp_{}.fc2.bias", "norm2_{}.weight"] {
            let key =
                |of: &str| format!("backbone.encoder.layers.{block}.{}", rest.replace("{}", of));
            let [image, text] = ["imag", "text"].map(|of| values(&checkpoint, &key(of)));
            let expected: Vec<f64> = (image.iter().zip(&text))
                .map(|(image, text)| 0.25 * image + 0.75 * text)
                .collect();
            let found = values(&model, &key("imag"));
            let differs = fixtures::first_difference(&found, &expected, 1e-6, 1e-8);
            assert_eq!(differs, None, "{}", key("imag"));
            assert!(model.get(&key("text")).is_none());
        }
    }
    // The last block is as it was, to the bit, and so is all that modalities share.
    for (key, _) in checkpoint.tensors() {
        let is_of_modality = ["mlp_imag", "mlp_text", "norm2_imag", "norm2_text"]
            .iter()
            .any(|part| key.contains(part));
        if is_of_modality || key.contains("position_ids") {
            continue;
        }
        let [before, after] = [&checkpoint, &model].map(|of| of.read_all(key).expect("it reads"));
        assert_eq!(before, after, "{key}");
    }
    // A choice need not name blocks that a router serves, and cannot take its experts.
    let chosen = "merge_method: interpolate\nmodels: [MODEL]\nparameters: { ratio: 0.5 }\nexperts: { 0..3: [vision, language] }";
    merged(chosen).expect("a plan");
    let of_router = chosen.replace(
        "0..3: [vision, language]",
        "0..3: [vision, language], 3: [routed_0, routed_1]",
    );
    let fault = merged(&of_router).err().expect("refused").to_string();
    assert!(
        fault.contains("block 3") && fault.contains("router"),
        "{fault}"
    );
}

#[test]
fn modality_arithmetic_counts_from_a_model_with_one_network() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, seed) = (
        folder.path().join("tiny.safetensors"),
        folder.path().join("seed.safetensors"),
    );
    let checkpoint = written(tiny(EveTask::Backbone), &path);
    let mut tensors = fixtures::tensors(&path);
    tensors.retain(|key, _| !key.contains("_text.f") && !key.contains("norm2_text"));
    for (key, raw) in &mut tensors {
        if key.contains("_imag") {
            raw.bytes = 0.25f32.to_le_bytes().repeat(raw.bytes.len() / 4);
        }
    }
    fixtures::write(&seed, &tensors);
    let recipe = format!(
        "merge_method: arithmetic\nbase_model: {}\nmodels: [{}]\nparameters: {{ lambda: 0.5 }}",
        seed.display(),
        path.display()
    );
    let recipe = MergeRecipe::parse(&recipe, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let key = |of: &str| format!("backbone.encoder.layers.1.mlp_{of}.fc2.weight");
    let [image, text] = ["imag", "text"].map(|of| values(&checkpoint, &key(of)));
    let expected: Vec<f64> = (image.iter().zip(&text))
        .map(|(image, text)| 0.25 + 0.5 * (image - 0.25) + 0.5 * (text - 0.25))
        .collect();
    let differs = fixtures::first_difference(&values(&model, &key("imag")), &expected, 1e-6, 1e-7);
    assert_eq!(differs, None);
}

#[test]
fn regmean_takes_grams_of_each_modality() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let checkpoint = written(tiny(EveTask::Backbone), &path);
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let mut grams = BTreeMap::new();
    for (key, info) in checkpoint.tensors() {
        let Ok(Role::Expert { expert, slot }) = layout.role(key) else {
            continue;
        };
        let times = match expert {
            Expert::Vision => 1.0f64,
            Expert::Language => 3.0,
            _ => continue,
        };
        if let Some(name) = layout.gram_key(&slot, Some(expert)) {
            let n = info.shape[1];
            let values = (0..n * n).map(|at| if at % (n + 1) == 0 { times } else { 0.0 });
            let raw = Raw {
                dtype: Dtype::F64,
                shape: vec![n, n],
                bytes: values.flat_map(f64::to_le_bytes).collect(),
            };
            grams.insert(name, raw);
        }
    }
    // Two layers of each of three blocks and two modalities.
    assert_eq!(grams.len(), 12);
    let file = folder.path().join("grams.safetensors");
    fixtures::write(&file, &grams);
    let recipe = format!(
        "merge_method: regmean\nmodels: [{}]\nparameters: {{ grams: {} }}",
        path.display(),
        file.display()
    );
    let recipe = MergeRecipe::parse(&recipe, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let key = |of: &str| format!("backbone.encoder.layers.2.mlp_{of}.fc1.weight");
    let [image, text] = ["imag", "text"].map(|of| values(&checkpoint, &key(of)));
    let expected: Vec<f64> = (image.iter().zip(&text))
        .map(|(image, text)| 0.25 * image + 0.75 * text)
        .collect();
    let differs = fixtures::first_difference(&values(&model, &key("imag")), &expected, 1e-5, 1e-7);
    assert_eq!(differs, None);
}

#[test]
fn texts_are_cut_and_images_resized_with_their_buffers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let source = Arc::new(written(tiny(EveTask::Vqa), &path));
    let conversion = Conversion {
        text_len: Some(7),
        image_size: Some(20),
        with_buffers: true,
        ..Conversion::default()
    };
    let plan = converted(&source, &conversion);
    let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let shape = |key: &str| model.require(key).expect("there").shape.clone();
    assert_eq!(shape("backbone.pos_embed_text"), [7, 6]);
    assert_eq!(shape("backbone.position_ids_text"), [7]);
    assert_eq!(shape("backbone.pos_embed_vision"), [26, 6]);
    assert_eq!(shape("backbone.position_ids_vision"), [1, 26]);
    let ids = values(&model, "backbone.position_ids_vision");
    assert_eq!(ids, (0..26).map(f64::from).collect::<Vec<_>>());
    let kept = values(&source, "backbone.pos_embed_text");
    assert_eq!(values(&model, "backbone.pos_embed_text"), kept[..7 * 6]);
}

#[test]
fn a_training_state_without_weights_is_refused() {
    let path = Set::open("eve").path("ckpt/nlvr2_biattn/training_state_latest.th");
    let start = EveStart::of(EveTask::Vqa).plan(Arc::new(opened(&path)));
    let said = start.err().expect("refused").to_string();
    assert!(said.contains("cannot be started as an EVE"), "{said}");
}

/// Those cases of the set's refusals that load a file; each says what of the file is of another shape.
#[test]
fn files_that_do_not_fit_a_model_are_refused_by_name() {
    let set = Set::open("eve");
    let config = set.config();
    let size = |name: &str| config[name].as_u64().map(|size| size as usize);
    let folder = tempfile::tempdir().expect("a folder");
    let mut n_cases = 0;
    for case in set.cases("expect_error") {
        if case["operation"] != "load" {
            continue;
        }
        n_cases += 1;
        let mut tensors = case.tensors("input");
        let changes = case["change"]["replace"].as_object().expect("changes");
        for (key, shape) in changes {
            let shape: Vec<usize> = (fixtures::integers(shape).into_iter())
                .map(|axis| axis as usize)
                .collect();
            let raw = Raw {
                dtype: Dtype::F32,
                bytes: vec![0; 4 * shape.iter().product::<usize>()],
                shape,
            };
            tensors.insert(key.clone(), raw);
        }
        let path = folder.path().join("changed.safetensors");
        fixtures::write(&path, &tensors);
        let start = EveStart {
            image_size: size("image_size"),
            text_positions: size("texts_max_tokens"),
            vocabulary: size("vocab_size"),
            ..EveStart::of(EveTask::Vqa)
        };
        let fault = start.plan(Arc::new(opened(&path))).err().expect("refused");
        let said = fault.to_string();
        for key in changes.keys() {
            assert!(said.contains(key.as_str()), "{}: {said}", case.id());
        }
        let wants = fixtures::text(&case["want"]);
        if wants.contains("both shapes") {
            assert!(
                said.contains("[23, 24]") && said.contains("[20, 24]"),
                "{said}"
            );
        }
        if wants.contains("not a square") {
            assert!(said.contains("no square"), "{said}");
        }
    }
    assert!(n_cases >= 4, "{n_cases} cases");
}

#[test]
fn settings_of_the_published_program_become_a_record() {
    let set = Set::open("eve");
    let wanted = set.config()["pairs_max_tokens"]
        .as_u64()
        .map(|n| n as usize);
    let path = set.path("ckpt/vqa/model_state_epoch_0.th");
    let source = Arc::new(opened(&path));
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("plain.safetensors");
    write(&converted(&source, &Conversion::default()), &target);
    for checkpoint in [&source, &Arc::new(opened(&target))] {
        let layout = Eve::read(checkpoint).expect("it reads").expect("an EVE");
        assert_eq!(layout.pair_len(), wanted, "{:?}", layout.evidence());
    }
}
