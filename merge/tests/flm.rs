//! FLM: names and ties of its checkpoints, parts and sizes, conversions, merges and adapters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fixtures::{Raw, Set};
use merge::convert::{Conversion, FlmStart};
use merge::execute::{RunOptions, execute, in_memory};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::layouts::{self, Flm, FlmSizes, FlmSpec, FlmTask, GramNames, Part, TowerSizes, count};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::synth::{Fresh, Spread, Synthesis};
use merge::{Checkpoint, Error, Layout, MergePlan, MergeRecipe, Role};
use safetensors::Dtype;

pub fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default()).expect("it opens")
}

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

/// Names of tensors, and their other names.
pub fn every_name(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let tensors = checkpoint.tensors().map(|(name, _)| name.to_owned());
    tensors
        .chain(checkpoint.aliases().keys().cloned())
        .collect()
}

pub fn synthesis(spec: FlmSpec) -> Synthesis<FlmSpec> {
    Synthesis {
        spec,
        seed: 3,
        spread: Spread::default(),
        is_fresh: false,
        dtype: OutputDType::Keep,
    }
}

/// Sizes of a small model of which no two are alike.
pub fn tiny_sizes() -> FlmSizes {
    let text = TowerSizes {
        n_blocks: 3,
        width: 6,
        n_heads: 3,
        ffn_width: 10,
    };
    FlmSizes {
        image: TowerSizes {
            n_blocks: 2,
            width: 8,
            n_heads: 4,
            ffn_width: 12,
        },
        text,
        cross: TowerSizes {
            n_blocks: 2,
            ffn_width: 14,
            ..text
        },
        n_bottom: 1,
        n_top: 2,
        patch_size: 4,
        image_size: 12,
        vocabulary: 11,
        text_positions: 9,
        n_token_types: 2,
        n_answers: 5,
        clip_text_positions: 7,
        clip_text_width: 13,
    }
}

fn tiny(task: FlmTask) -> FlmSpec {
    FlmSpec {
        sizes: FlmSizes {
            n_token_types: if task == FlmTask::Nlvr2 { 3 } else { 2 },
            ..tiny_sizes()
        },
        ..FlmSpec::published(task)
    }
}

fn written(spec: FlmSpec, path: &Path) -> Checkpoint {
    write(&synthesis(spec).plan().expect("a plan"), path);
    opened(path)
}

/// Keys, distinct parameters and scalars of the published models (their census, printed by the published program).
const CENSUS: [(FlmTask, usize, u64); 8] = [
    (FlmTask::Pretrain, 1051, 346_520_153),
    (FlmTask::Itm, 1055, 346_498_653),
    (FlmTask::Mlm, 574, 260_848_985),
    (FlmTask::Ar, 574, 260_848_985),
    (FlmTask::Vqa, 1039, 313_454_393),
    (FlmTask::Nlvr2, 1039, 309_641_986),
    (FlmTask::Caption, 1039, 346_571_611),
    (FlmTask::Retrieval, 1039, 307_326_469),
];

fn scalars(plan: &MergePlan) -> u64 {
    let floats = plan
        .entries()
        .iter()
        .filter(|entry| entry.info.dtype.is_float());
    floats.map(|entry| entry.info.n_elements() as u64).sum()
}

#[test]
fn published_models_have_the_published_names_and_scalars() {
    for (task, n_names, n_scalars) in CENSUS {
        let plan = synthesis(FlmSpec::published(task)).plan().expect("a plan");
        let n_found = plan.entries().len() + plan.aliases().len();
        assert_eq!((n_found, scalars(&plan)), (n_names, n_scalars), "{task:?}");
    }
    let pretrain = synthesis(FlmSpec::published(FlmTask::Pretrain))
        .plan()
        .expect("a plan");
    // 6 tensors of the embeddings twice, 98 of the text tower, 156 of the cross-modal layers twice, a transform
    // twice, a head twice.
    let n_aliases = 2 * 6 + 98 + 2 * 156 + 2 * 2 + 2 * 6;
    assert_eq!(pretrain.aliases().len(), n_aliases);
    // The 612 parameters, and the buffer.
    assert_eq!(pretrain.entries().len(), 612 + 1);
    let mut no_bottom = FlmSpec::published(FlmTask::Pretrain);
    no_bottom.sizes.n_bottom = 0;
    assert_eq!(no_bottom.names().len(), 955);
    let apart = FlmSpec {
        shares_heads: false,
        ..FlmSpec::published(FlmTask::Pretrain)
    };
    assert_eq!(apart.names().len(), 1051);
    assert_eq!(apart.aliases().len(), n_aliases - 12);
}

#[test]
fn parts_hold_the_published_scalars() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = written(
        tiny(FlmTask::Pretrain),
        &folder.path().join("tiny.safetensors"),
    );
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let counts = count(&checkpoint, layout.as_ref());
    let sizes = tiny_sizes();
    let (d, f) = (sizes.cross.width, sizes.cross.ffn_width);
    let fusion = 4 * (d * d + d) + 2 * d + (2 * d * f + f + d) + 2 * d;
    assert_eq!(
        counts.part(Part::Reconstructor).n_elements,
        3 * fusion as u64
    );
    let transforms = d * d + d + (d * sizes.image.width + d);
    let cross = 2 * (fusion + 4 * (d * d + d) + 2 * d);
    assert_eq!(
        counts.part(Part::CrossModal).n_elements,
        (cross + transforms) as u64
    );
    // Three poolers of the cross-modal width.
    assert_eq!(counts.part(Part::Pooler).n_elements, 3 * (d * d + d) as u64);
    assert_eq!(counts.part(Part::Embeddings).n_elements, 6 * d as u64);
    assert_eq!(counts.part(Part::Buffers).n_tensors, 1);
    assert_eq!(counts.part(Part::Other).n_tensors, 0);
    let total = scalars(&synthesis(tiny(FlmTask::Pretrain)).plan().expect("a plan"));
    assert_eq!(counts.parameters().n_elements, total);
}

#[test]
fn a_checkpoint_tells_its_task_and_its_sizes() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(FlmTask::named("irtr"), Some(FlmTask::Retrieval));
    for (task, name) in FlmTask::ALL {
        let spec = tiny(task);
        for file in ["model.safetensors", "model.ckpt"] {
            let checkpoint = written(spec, &folder.path().join(file));
            let layout = Flm::read(&checkpoint).expect("it reads").expect("an FLM");
            assert_eq!(layout.name(), format!("flm/{name}"));
            let mut found = layout.spec(&checkpoint).expect("sizes");
            let evidence = layout.evidence().join("\n");
            if !spec.is_three_stream {
                assert!(evidence.contains("one stream"), "{evidence}");
                (found.sizes.n_bottom, found.sizes.n_top) = (spec.sizes.n_bottom, spec.sizes.n_top);
            }
            if file == "model.ckpt" {
                // Heads are in the metadata, which both kinds of file hold.
                assert_eq!(found.sizes.image.n_heads, spec.sizes.image.n_heads);
            }
            if task != FlmTask::Vqa {
                found.sizes.n_answers = spec.sizes.n_answers;
            }
            assert_eq!(found, spec, "{evidence}");
            assert_eq!(every_name(&checkpoint).len(), spec.names().len());
            assert_eq!(FlmTask::named(name), Some(task));
            // The name of older versions.
            let former = layouts::by_name("flm/irtr", &checkpoint);
            assert_eq!(former.is_ok(), task == FlmTask::Retrieval);
        }
    }
}

#[test]
fn every_golden_model_is_known_by_its_keys_alone() {
    let set = Set::open("flm");
    let config = set.config();
    for (model, file) in config["models"].as_object().expect("models") {
        let checkpoint = opened(&set.path(fixtures::text(file)));
        let layout = layouts::detect(&checkpoint).expect("a layout");
        assert!(
            layout.name().starts_with("flm/"),
            "{model}: {}",
            layout.name()
        );
        for (key, _) in checkpoint.tensors() {
            let role = layout.role(key).expect("a known key");
            assert_eq!(
                role == Role::Derived,
                key.ends_with("position_ids"),
                "{key}"
            );
        }
        for key in checkpoint.aliases().keys() {
            let of = checkpoint.name_of(key).to_owned();
            assert_eq!(layout.role(key).expect("a known key"), Role::Alias { of });
        }
        assert_eq!(layout.dimensions().vocabulary.map(|n| n as u64), {
            let name = match model.as_str() {
                "caption" => "caption_vocab_size",
                _ => "vocab_size",
            };
            config[name].as_u64()
        });
    }
}

#[test]
fn unknown_keys_are_named_with_the_nearest_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = written(
        tiny(FlmTask::Pretrain),
        &folder.path().join("tiny.safetensors"),
    );
    let layout = layouts::detect(&checkpoint).expect("a layout");
    match layout.role("fusion_layers_top.1.crossattention.self.qeury.weight") {
        Err(Error::UnknownKey { nearest, .. }) => {
            let wanted = "fusion_layers_top.1.crossattention.self.query.weight";
            assert_eq!(nearest.as_deref(), Some(wanted));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn gram_matrices_are_named_for_every_linear_layer_of_all_stacks() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = written(tiny(FlmTask::Itm), &folder.path().join("tiny.safetensors"));
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let names = GramNames::of(&checkpoint, layout.as_ref());
    let names: BTreeSet<&str> = names.iter().collect();
    // Queries, keys and values of the image tower are one layer.
    assert!(names.contains("vit_model.visual.transformer.resblocks.1.attn.in_proj"));
    assert!(names.contains("text_transformer.encoder.layer.0.attention.self.key"));
    assert!(names.contains("cross_modal_text_layers.1.crossattention.output.dense"));
    assert!(names.contains("fusion_layers_bottom.0.crossattention.self.query"));
    assert!(names.contains("fusion_layers_top.1.output.dense"));
    // Of an image block 4, of a text layer 6, of a cross-modal one 10, of the reconstructor's 6, two transforms.
    assert_eq!(names.len(), 2 * 4 + 3 * 6 + 2 * 10 + 3 * 6 + 2);
}

/// The small model with the values once a name, in the published program's own way.
fn spelled_out(checkpoint: &Checkpoint, path: &Path) -> BTreeMap<String, Raw> {
    let mut all = BTreeMap::new();
    for name in every_name(checkpoint) {
        let info = checkpoint.require(&name).expect("there");
        let dtype = if info.dtype.is_float() {
            Dtype::F32
        } else {
            Dtype::I64
        };
        let raw = Raw {
            dtype,
            shape: info.shape.clone(),
            bytes: checkpoint.read_all(&name).expect("it reads"),
        };
        all.insert(name, raw);
    }
    fixtures::write(path, &all);
    all
}

#[test]
fn names_that_hold_other_values_are_said_and_the_last_registered_one_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = written(
        tiny(FlmTask::Pretrain),
        &folder.path().join("tiny.safetensors"),
    );
    let path = folder.path().join("all.safetensors");
    let mut all = spelled_out(&checkpoint, &path);
    let same = opened(&path);
    assert!(same.notes().is_empty(), "{:?}", same.notes());
    assert_eq!(same.aliases(), checkpoint.aliases());
    let last = "fusion_token_embedding.LayerNorm.weight";
    if let Some(raw) = all.get_mut(last) {
        raw.bytes.fill(0);
    }
    fixtures::write(&path, &all);
    let conflict = opened(&path);
    let canonical = "text_transformer.embeddings.LayerNorm.weight";
    assert_eq!(
        conflict.read_all(canonical).expect("it reads"),
        all[last].bytes
    );
    let [note] = conflict.notes() else {
        panic!("{:?}", conflict.notes());
    };
    assert!(note.contains(canonical) && note.contains(last), "{note}");
    // Names of one tensor with different shapes are no tensor.
    if let Some(raw) = all.get_mut(last) {
        raw.bytes.truncate(4);
        raw.shape = vec![1];
    }
    fixtures::write(&path, &all);
    let fault = open(&path, &OpenOptions::default()).err().expect("refused");
    assert!(matches!(fault, Error::ShapeMismatch { .. }), "{fault}");
}

#[test]
fn language_heads_of_their_own_stay_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = FlmSpec {
        shares_heads: false,
        ..tiny(FlmTask::Pretrain)
    };
    let checkpoint = written(spec, &folder.path().join("apart.safetensors"));
    // In files that say which names are tied, and in one that does not.
    let path = folder.path().join("all.safetensors");
    spelled_out(&checkpoint, &path);
    write(
        &converted(&Arc::new(opened(&path)), &Conversion::default()),
        &folder.path().join("apart.ckpt"),
    );
    for file in ["apart.safetensors", "all.safetensors", "apart.ckpt"] {
        let found = opened(&folder.path().join(file));
        assert!(found.notes().is_empty(), "{file}: {:?}", found.notes());
        assert!(!found.aliases().contains_key("lm_score_f.bias"), "{file}");
        let layout = Flm::read(&found).expect("it reads").expect("an FLM");
        assert!(!layout.spec(&found).expect("sizes").shares_heads);
        let role = layout.role("lm_score_r.decoder.weight").expect("a role");
        assert!(matches!(role, Role::Shared(_)), "{role:?}");
    }
}

#[test]
fn merges_of_every_kind_give_tied_names_the_same_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = [1, 2, 3].map(|seed| {
        let path = folder.path().join(format!("{seed}.ckpt"));
        let synthesis = Synthesis {
            seed,
            ..synthesis(tiny(FlmTask::Pretrain))
        };
        write(&synthesis.plan().expect("a plan"), &path);
        path.display().to_string()
    });
    let [base, a, b] = &models;
    let n_names = tiny(FlmTask::Pretrain).names().len();
    for (method, parameters) in [
        ("linear", "weight: 1"),
        ("slerp", "t: 0.5"),
        ("ties", "weight: 1, density: 0.5"),
        ("dare_ties", "weight: 1, density: 0.5"),
        ("della", "weight: 1, density: 0.5, epsilon: 0.2"),
    ] {
        let base = match method {
            "linear" => String::new(),
            "slerp" => format!("base_model: {a}\n"),
            _ => format!("base_model: {base}\n"),
        };
        let recipe = format!(
            "merge_method: {method}\n{base}models: [{a}, {b}]\nparameters: {{ {parameters} }}\nseed: 5"
        );
        let recipe = MergeRecipe::parse(&recipe, Path::new("test")).expect("valid");
        let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
        assert_eq!(
            plan.entries().len() + plan.aliases().len(),
            n_names,
            "{method}"
        );
        let path = folder.path().join("merged.ckpt");
        write(&plan, &path);
        let merged = opened(&path);
        assert_eq!(every_name(&merged).len(), n_names);
        assert_eq!(merged.name_of("fusion_token_embedding.LayerNorm.bias"), {
            "text_transformer.embeddings.LayerNorm.bias"
        });
        // The buffer is as it was.
        let ids = "text_transformer.embeddings.position_ids";
        let before = opened(Path::new(a)).read_all(ids).expect("it reads");
        assert_eq!(merged.read_all(ids).expect("it reads"), before);
    }
}

#[test]
fn an_adapter_changes_a_tied_layer_once_whatever_it_calls_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.safetensors");
    let checkpoint = written(tiny(FlmTask::Pretrain), &model);
    let canonical = "cross_modal_text_layers.0.crossattention.self.query.weight";
    let d = tiny_sizes().cross.width;
    let mut merged = Vec::new();
    for module in [
        "cross_modal_text_layers",
        "cross_modal_layers",
        "cross_modal_text_layers_r",
    ] {
        let adapter = folder.path().join(module);
        std::fs::create_dir(&adapter).expect("a folder");
        let ones = |shape: [usize; 2]| Raw {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: 1.0f32.to_le_bytes().repeat(shape[0] * shape[1]),
        };
        let start = format!("base_model.model.{module}.0.crossattention.self.query");
        let tensors = BTreeMap::from([
            (format!("{start}.lora_A.weight"), ones([1, d])),
            (format!("{start}.lora_B.weight"), ones([d, 1])),
        ]);
        fixtures::write(&adapter.join("adapter_model.safetensors"), &tensors);
        let settings =
            r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["query"]}"#;
        std::fs::write(adapter.join("adapter_config.json"), settings).expect("written");
        let recipe = format!(
            "merge_method: passthrough\nmodels: ['{}+{}']\n",
            model.display(),
            adapter.display()
        );
        let recipe = MergeRecipe::parse(&recipe, Path::new("test")).expect("valid");
        let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
        let made = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
        assert_eq!(made.aliases(), checkpoint.aliases());
        merged.push(made.read_all(canonical).expect("it reads"));
    }
    let before = checkpoint.read_all(canonical).expect("it reads");
    let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    assert!((value(&merged[0]) - value(&before) - 1.0).abs() < 1e-6);
    assert!(merged.iter().all(|bytes| *bytes == merged[0]));
}

#[test]
fn a_task_starts_from_what_the_file_has_and_draws_the_rest_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let source = Arc::new(written(tiny(FlmTask::Itm), &path));
    let made = |start: FlmStart| {
        let (plan, _) = start.plan(Arc::clone(&source)).expect("a plan");
        in_memory(&plan, &RunOptions::default(), &Silent).expect("made")
    };
    for (task, _) in FlmTask::ALL {
        let model = made(FlmStart::of(task));
        let again = made(FlmStart::of(task));
        let layout = Flm::read(&model).expect("it reads").expect("an FLM");
        let found = layout.spec(&model).expect("sizes");
        assert_eq!(found.task, task);
        assert_eq!(every_name(&model).len(), found.names().len(), "{task:?}");
        for (name, _) in model.tensors() {
            let [one, two] = [&model, &again].map(|model| model.read_all(name).expect("it reads"));
            assert_eq!(one, two, "{name}");
        }
    }
    // Captions have two more tokens, and all three names of the table see them.
    let caption = made(FlmStart::of(FlmTask::Caption));
    for name in [
        "text_transformer.embeddings",
        "text_transformer2.embeddings",
        "fusion_token_embedding",
    ] {
        let table = caption
            .require(&format!("{name}.word_embeddings.weight"))
            .expect("there");
        assert_eq!(table.shape[0], tiny_sizes().vocabulary + 2);
    }
    // Other families are refused by name.
    let zerovl = Arc::new(opened(&Set::open("zerovl").path("ckpt/model.safetensors")));
    let fault = FlmStart::of(FlmTask::Vqa)
        .plan(zerovl)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        fault.contains("layout zerovl cannot be started as an FLM"),
        "{fault}"
    );
}

#[test]
fn a_position_table_of_one_channel_is_resized_to_the_published_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    // One channel, the class row 9, and squares of the numbers 0, 1, 2, 3.
    let mut spec = tiny(FlmTask::Pretrain);
    spec.sizes.image.width = 1;
    spec.sizes.image.n_heads = 1;
    spec.sizes.image_size = 2 * spec.sizes.patch_size;
    let path = folder.path().join("tiny.safetensors");
    written(spec, &path);
    let mut all = fixtures::tensors(&path);
    let name = "vit_model.visual.positional_embedding";
    let before = [9.0f32, 0.0, 1.0, 2.0, 3.0];
    all.insert(
        name.to_owned(),
        Raw {
            dtype: Dtype::F32,
            shape: vec![5, 1],
            bytes: before
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        },
    );
    fixtures::write(&path, &all);
    let conversion = Conversion {
        image_size: Some(3 * spec.sizes.patch_size),
        ..Conversion::default()
    };
    let source = Arc::new(opened(&path));
    let plan = converted(&source, &conversion);
    let resized = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let bytes = resized.read_all(name).expect("it reads");
    let found: Vec<f64> = (bytes.chunks_exact(4))
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into())
        .collect();
    // Printed by torch's bicubic interpolation with six decimals.
    let expected = [
        9.0, -0.260_417, 0.326_389, 0.913_195, 0.913_195, 1.5, 2.086_806, 2.086_806, 2.673_611,
        3.260_417,
    ];
    assert_eq!(
        fixtures::first_difference(&found, &expected, 0.0, 2e-6),
        None
    );
}
