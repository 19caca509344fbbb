//! CLIP and SigLIP: parts and sizes in every spelling, conversions with their configuration, and merges that do not
//! depend on the spelling.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merge::convert::{ClipTarget, Conversion, Spelling};
use merge::execute::{RunOptions, execute, in_memory, write_masks};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::layouts::{self, ClipSizes, ClipSpec, GramNames, ModelRecord, Part, TowerSizes};
use merge::methods::Base;
use merge::progress::Silent;
use merge::recipe::{ModelRef, OutputDType, Parameter, Parameters};
use merge::synth::{Spread, Synthesis};
use merge::{Checkpoint, Error, MergePlan, MergeRecipe};

use crate::every_method::give;

pub fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default()).expect("it opens")
}

pub fn values(checkpoint: &Checkpoint, key: &str) -> Vec<f64> {
    crate::zerovl::values(checkpoint, key)
}

pub fn write(spec: ClipSpec, path: &Path) {
    write_with(spec, 3, path);
}

fn write_with(spec: ClipSpec, seed: u64, path: &Path) {
    let synthesis = Synthesis {
        spec,
        seed,
        spread: Spread::default(),
        is_fresh: false,
        dtype: OutputDType::Keep,
    };
    run(&synthesis.plan().expect("a plan"), path);
}

fn run(plan: &MergePlan, path: &Path) {
    let options = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    execute(plan, &options, &RunOptions::default(), &Silent).expect("written");
}

fn plan_of(path: &Path, to: ClipTarget) -> merge::Result<MergePlan> {
    let conversion = Conversion {
        spelling: Some(Spelling::Clip(to)),
        ..Conversion::default()
    };
    let file = Arc::new(opened(path));
    let layout = layouts::detect(&file).expect("a layout");
    conversion.plan(file, layout.as_ref())
}

pub fn converted(path: &Path, to: ClipTarget) -> Checkpoint {
    let plan = plan_of(path, to).expect("a plan");
    in_memory(&plan, &RunOptions::default(), &Silent).expect("it runs")
}

/// A small model whose towers have different widths, depths and heads.
pub fn tiny(is_siglip: bool) -> ClipSpec {
    ClipSpec {
        sizes: ClipSizes {
            image: TowerSizes {
                n_blocks: 2,
                width: 8,
                n_heads: 4,
                ffn_width: 12,
            },
            text: TowerSizes {
                n_blocks: 1,
                width: 6,
                n_heads: 2,
                ffn_width: 10,
            },
            patch_size: 4,
            image_size: 12,
            vocabulary: 11,
            text_len: 5,
            joint_width: if is_siglip { 8 } else { 7 },
        },
        is_siglip,
    }
}

#[test]
fn every_parameter_has_its_part_and_both_spellings_count_the_same() {
    for is_siglip in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        write(tiny(is_siglip), &path);
        let file = opened(&path);
        let layout = layouts::detect(&file).expect("a layout");
        let name = if is_siglip {
            "clip/siglip"
        } else {
            "clip/clip"
        };
        assert_eq!(layout.name(), name);
        let sizes = layout.dimensions();
        let image = sizes.stack("image").expect("a stack");
        let text = sizes.stack("text").expect("a stack");
        assert_eq!(
            (image.n_blocks, image.width, image.n_heads),
            (2, 8, Some(4))
        );
        assert_eq!((text.n_blocks, text.width, text.n_heads), (1, 6, Some(2)));
        assert_eq!((image.ffn_width, text.ffn_width), (Some(12), Some(10)));
        assert_eq!((sizes.patch_size, sizes.image_size), (Some(4), Some(12)));
        assert_eq!((sizes.text_len, sizes.vocabulary), (Some(5), Some(11)));
        assert_eq!(sizes.joint_width, Some(if is_siglip { 8 } else { 7 }));
        let counts = layouts::count(&file, layout.as_ref());
        assert_eq!(counts.part(Part::Other).n_tensors, 0);
        let scales = if is_siglip { 2 } else { 1 };
        assert_eq!(counts.part(Part::LogitScales).n_elements, scales);
        let other = converted(&path, ClipTarget::OpenClip);
        let of_other = layouts::detect(&other).expect("a layout");
        assert_eq!(of_other.name(), name);
        assert_eq!(of_other.dimensions(), sizes);
        let others = layouts::count(&other, of_other.as_ref());
        for (part, count) in &counts.by_part {
            assert_eq!(others.part(*part).n_elements, count.n_elements, "{part:?}");
        }
        // A spelling that packs gives the same model back, bit for bit.
        let back = folder.path().join("open.safetensors");
        run(
            &plan_of(&path, ClipTarget::OpenClip).expect("a plan"),
            &back,
        );
        let back = converted(&back, ClipTarget::HuggingFace);
        for (key, _) in file.tensors() {
            assert_eq!(file.read_all(key).ok(), back.read_all(key).ok(), "{key}");
        }
        assert_eq!(back.tensors().count(), file.tensors().count());
        assert_eq!(ModelRecord::of(&back).ok(), ModelRecord::of(&file).ok());
    }
}

#[test]
fn keys_that_a_spelling_has_no_place_for_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(tiny(false), &path);
    let mut tensors = fixtures::tensors(&path);
    let odd = tensors["vision_model.post_layernorm.weight"].clone();
    tensors.insert("vision_model.encoder.layers.0.layer_scale1".into(), odd);
    fixtures::write(&path, &tensors);
    let error = plan_of(&path, ClipTarget::OpenClip).err().expect("refused");
    assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
    assert!(error.to_string().contains("layer_scale1"), "{error}");
    // A CLIP that was trained with a bias of similarities, which transformers' CLIP has not.
    tensors.remove("vision_model.encoder.layers.0.layer_scale1");
    let scale = tensors["logit_scale"].clone();
    tensors.insert("logit_bias".into(), scale);
    fixtures::write(&path, &tensors);
    let error = plan_of(&path, ClipTarget::HuggingFace).err();
    let error = error.expect("refused").to_string();
    assert!(error.contains("logit_bias"), "{error}");
}

#[test]
fn a_packed_tensor_that_is_not_whole_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(tiny(false), &path);
    let mut tensors = fixtures::tensors(&path);
    tensors.remove("text_model.encoder.layers.0.self_attn.v_proj.bias");
    fixtures::write(&path, &tensors);
    let error = plan_of(&path, ClipTarget::OpenClip).err();
    let error = error.expect("refused").to_string();
    assert!(
        error.contains("transformer.resblocks.0.attn.in_proj_bias"),
        "{error}"
    );
    assert!(error.contains("2 are there"), "{error}");
}

/// Two relatives and their base in a folder, as transformers and as open_clip spell them.
struct Family {
    folder: tempfile::TempDir,
    is_siglip: bool,
}

const MEMBERS: [&str; 3] = ["base", "one", "two"];

impl Family {
    fn new(is_siglip: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let family = Self { folder, is_siglip };
        for (seed, name) in MEMBERS.into_iter().enumerate() {
            let path = family.path("hf", name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            write_with(tiny(is_siglip), seed as u64, &path);
            let other = family.path("open_clip", name);
            std::fs::create_dir_all(other.parent().expect("a folder")).expect("made");
            run(
                &plan_of(&path, ClipTarget::OpenClip).expect("a plan"),
                &other,
            );
        }
        family
    }

    fn path(&self, spelling: &str, name: &str) -> PathBuf {
        let folder = self.folder.path().join(spelling);
        folder.join(format!("{name}.safetensors"))
    }

    /// Gram matrices for every layer of a member, in a file.
    fn grams(&self, name: &str) -> PathBuf {
        let file = opened(&self.path("hf", name));
        let (view, _) = layouts::clip::apart(Arc::new(file)).expect("a view");
        let layout = layouts::detect(&view).expect("a layout");
        let mut tensors = BTreeMap::new();
        for (key, info) in view.tensors() {
            let Ok(merge::Role::Shared(slot)) = layout.role(key) else {
                continue;
            };
            let Some(gram) = layout.gram_key(&slot, None) else {
                continue;
            };
            let width = info.shape[1];
            let of_name = name.bytes().map(usize::from).sum::<usize>();
            let values = (0..width * width).flat_map(|at| {
                let (row, column) = (at / width, at % width);
                let value = match row == column {
                    true => 3.0 + ((row * 7 + of_name) % 5) as f64,
                    false => 0.1,
                };
                f64::to_le_bytes(value)
            });
            let raw = fixtures::Raw {
                dtype: safetensors::Dtype::F64,
                shape: vec![width, width],
                bytes: values.collect(),
            };
            tensors.insert(gram, raw);
        }
        let path = self.folder.path().join(format!("{name}.gram.safetensors"));
        fixtures::write(&path, &tensors);
        path
    }

    /// Diagonals of Fisher information of a member, under the names that merges see.
    fn fisher(&self, name: &str) -> PathBuf {
        let file = opened(&self.path("hf", name));
        let (view, _) = layouts::clip::apart(Arc::new(file)).expect("a view");
        let of_name = name.bytes().map(usize::from).sum::<usize>();
        let tensors = view.tensors().map(|(key, info)| {
            let values = (0..info.n_elements()).flat_map(|at| {
                let value = ((at * 7 + of_name) % 5) as f32;
                value.to_le_bytes()
            });
            let raw = fixtures::Raw {
                dtype: safetensors::Dtype::F32,
                shape: info.shape.clone(),
                bytes: values.collect(),
            };
            (key.to_owned(), raw)
        });
        let path = (self.folder.path()).join(format!("{name}.fisher.safetensors"));
        fixtures::write(&path, &tensors.collect());
        path
    }

    fn recipe(&self, method: &str, spellings: [&str; 3]) -> MergeRecipe {
        let described = merge::methods::by_name(method, &Parameters::default(), false);
        let described = described.expect("a method");
        let mut parameters = Parameters::default();
        give(&mut parameters, described.as_ref(), 0.75);
        let mut models: Vec<ModelRef> = (spellings[1..].iter().zip(&MEMBERS[1..]))
            .map(|(spelling, name)| ModelRef::new(self.path(spelling, name)))
            .collect();
        if described.needs().grams {
            for (model, name) in models.iter_mut().zip(&MEMBERS[1..]) {
                let grams = self.grams(name);
                let text = grams.to_str().expect("UTF-8").to_owned();
                model.parameters.set("grams", Parameter::Text(text));
            }
        }
        if method == "fisher" {
            for (model, name) in models.iter_mut().zip(&MEMBERS[1..]) {
                let fisher = self.fisher(name);
                let text = fisher.to_str().expect("UTF-8").to_owned();
                model.parameters.set("fisher", Parameter::Text(text));
            }
        }
        if method == "passthrough" {
            models.truncate(1);
        }
        let needs = described.needs();
        let has_base = needs.base != Base::None && needs.takes(models.len(), true);
        let base = self.path(spellings[0], MEMBERS[0]);
        MergeRecipe {
            merge_method: method.to_owned(),
            models,
            base_model: has_base.then(|| ModelRef::new(base)),
            parameters,
            ..MergeRecipe::default()
        }
    }

    fn merged(&self, method: &str, spellings: [&str; 3]) -> merge::Result<Checkpoint> {
        let (plan, _) = MergePlan::resolve(&self.recipe(method, spellings))?;
        let name = format!("{method}.{}.safetensors", spellings.concat());
        let path = self.folder.path().join(name);
        let options = WriteOptions {
            force: true,
            ..WriteOptions::new(&path)
        };
        execute(&plan, &options, &RunOptions::default(), &Silent)?;
        Ok(opened(&path))
    }
}

/// Methods that merge checkpoints.
fn methods() -> impl Iterator<Item = &'static str> {
    let names = merge::methods::NAMES.into_iter();
    names.filter(|name| {
        let method = merge::methods::by_name(name, &Parameters::default(), false);
        method.is_ok_and(|method| !method.is_for_experts())
    })
}

#[test]
fn every_method_gives_the_same_model_whatever_the_spelling() {
    for is_siglip in [false, true] {
        let family = Family::new(is_siglip);
        let mut n_methods = 0;
        for method in methods() {
            let all = |spelling| [spelling; 3];
            let hf = match family.merged(method, all("hf")) {
                Ok(merged) => merged,
                Err(error) => panic!("{method}: {error}"),
            };
            for spellings in [all("open_clip"), ["open_clip", "hf", "open_clip"]] {
                let other = family.merged(method, spellings);
                let other = other.unwrap_or_else(|error| panic!("{method}: {error}"));
                let layout = layouts::Clip::read(&other).expect("it reads");
                let names = layout.expect("a CLIP").spelling().names;
                // The result is spelled as the base, or else the first model.
                let has_base = family.recipe(method, spellings).base_model.is_some();
                let first = if has_base { spellings[0] } else { spellings[1] };
                let is_hf = names == layouts::ClipNames::HuggingFace;
                assert_eq!(is_hf, first == "hf", "{method} {spellings:?}");
                let to = layouts::ClipSpelling::HUGGING_FACE;
                let other = layouts::clip::respelled(Arc::new(other), to).expect("a view");
                assert_eq!(other.tensors().count(), hf.tensors().count());
                for (key, info) in hf.tensors() {
                    assert_eq!(other.get(key), Some(info), "{method} {key}");
                    assert_eq!(
                        other.read_all(key).ok(),
                        hf.read_all(key).ok(),
                        "{method} {spellings:?} {key} of {}",
                        family.is_siglip
                    );
                }
            }
            n_methods += 1;
        }
        assert!(n_methods > 10, "{n_methods} methods");
    }
}

/// `iso_c` gives another matrix than the base with the mean of differences, which it gives of all other tensors.
#[test]
fn projections_and_the_pooling_head_are_matrices_in_every_spelling() {
    for (is_siglip, keys) in [
        (
            false,
            &["visual_projection.weight", "text_projection.weight"][..],
        ),
        (
            true,
            &[
                "text_model.head.weight",
                "vision_model.head.attention.q_proj.weight",
                "vision_model.head.attention.v_proj.weight",
                "vision_model.head.mlp.fc1.weight",
            ],
        ),
    ] {
        let family = Family::new(is_siglip);
        for spelling in ["hf", "open_clip"] {
            let merged = family.merged("iso_c", [spelling; 3]).expect("merged");
            let models = MEMBERS.map(|name| opened(&family.path(spelling, name)));
            let apart = |file| layouts::clip::apart(Arc::new(file)).expect("a view").0;
            let merged = apart(merged);
            let [base, one, two] = models.map(apart);
            for key in keys {
                let [base, one, two] = [&base, &one, &two].map(|file| values(file, key));
                let lambda = values(&merged, key)
                    .iter()
                    .zip(&base)
                    .zip(one.iter().zip(&two))
                    .map(|((merged, base), (one, two))| (merged - base) / (one + two - 2.0 * base))
                    .fold([f64::MAX, f64::MIN], |[least, most], of| {
                        [least.min(of), most.max(of)]
                    });
                let spread = lambda[1] - lambda[0];
                assert!(spread > 1e-2, "{key} of {spelling}: {lambda:?}");
            }
        }
    }
}

#[test]
fn keys_and_values_of_the_pooling_head_share_a_matrix_and_its_queries_have_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(tiny(true), &path);
    let open = folder.path().join("open.safetensors");
    run(
        &plan_of(&path, ClipTarget::OpenClip).expect("a plan"),
        &open,
    );
    for path in [path, open] {
        let file = opened(&path);
        let layout = layouts::detect(&file).expect("a layout");
        let names = GramNames::of(&file, layout.as_ref());
        let of_head: Vec<&str> = (names.iter())
            .filter_map(|name| name.strip_prefix("vision_model.head."))
            .collect();
        assert_eq!(
            of_head,
            ["attention.kv", "attention.out_proj", "mlp.fc1", "mlp.fc2"]
        );
    }
}

#[test]
fn masks_of_tasks_are_of_the_names_that_merges_see() {
    let family = Family::new(false);
    let masks = family.folder.path().join("masks.safetensors");
    for (spelling, is_written) in [("hf", true), ("open_clip", false)] {
        let recipe = family.recipe("emr", [spelling; 3]);
        let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
        let options = WriteOptions::new(&masks);
        let found = write_masks(&plan, &options, &RunOptions::default(), &Silent);
        match found {
            Ok(files) => assert_eq!((files, is_written), (vec![masks.clone()], true)),
            Err(error) => {
                assert!(!is_written, "{error}");
                assert!(error.to_string().contains("--to hf"), "{error}");
            }
        }
    }
}

#[test]
fn queries_keys_and_values_share_the_matrix_of_their_inputs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(tiny(false), &path);
    let file = opened(&path);
    let layout = layouts::detect(&file).expect("a layout");
    let names = GramNames::of(&file, layout.as_ref());
    let of_block: Vec<&str> = (names.iter())
        .filter(|name| name.starts_with("text_model.encoder.layers.0."))
        .map(|name| &name["text_model.encoder.layers.0.".len()..])
        .collect();
    assert_eq!(
        of_block,
        ["mlp.fc1", "mlp.fc2", "self_attn.out_proj", "self_attn.qkv"]
    );
    let projections = ["text_projection", "visual_projection"];
    assert!(
        projections
            .iter()
            .all(|name| names.is_owned(name).is_some())
    );
}

#[test]
fn a_conversion_into_a_folder_brings_the_configuration_of_the_library() {
    for is_siglip in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let mut spec = tiny(is_siglip);
        if is_siglip {
            // As wide as a tower that timm knows.
            (spec.sizes.image.width, spec.sizes.joint_width) = (768, 768);
            spec.sizes.image.n_heads = 12;
        }
        write(spec, &path);
        let plan = plan_of(&path, ClipTarget::OpenClip).expect("a plan");
        assert_eq!(plan.beside().notes, Vec::<String>::new());
        let options = WriteOptions::in_folder(&folder.path().join("open"), None);
        let options = options.called(plan.beside().weights);
        execute(&plan, &options, &RunOptions::default(), &Silent).expect("written");
        let weights = folder.path().join("open/open_clip_model.safetensors");
        let found = layouts::Clip::read(&opened(&weights)).expect("it reads");
        let config = found.expect("a CLIP").config(&opened(&weights));
        let config = config.expect("a configuration");
        assert_eq!(config.image_heads, Some(spec.sizes.image.n_heads));
        assert_eq!(config.text_heads, Some(spec.sizes.text.n_heads));
        assert_eq!(config.facts.is_causal, Some(!is_siglip));
        // And back: transformers' own.
        let plan = plan_of(&weights, ClipTarget::HuggingFace).expect("a plan");
        let options = WriteOptions::in_folder(&folder.path().join("hf"), None);
        let options = options.called(plan.beside().weights);
        execute(&plan, &options, &RunOptions::default(), &Silent).expect("written");
        let text = std::fs::read_to_string(folder.path().join("hf/config.json"));
        let written: serde_json::Value =
            serde_json::from_str(&text.expect("a file")).expect("JSON");
        let kind = if is_siglip { "siglip" } else { "clip" };
        assert_eq!(written["model_type"], kind);
        assert_eq!(
            written["vision_config"]["num_attention_heads"],
            spec.sizes.image.n_heads
        );
        assert!(folder.path().join("hf/preprocessor_config.json").is_file());
        assert!(!folder.path().join("hf/README.md").exists());
    }
}
