//! ZeroVL: its checkpoints in every container, its parts and sizes, conversions and merges.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fixtures::Set;
use merge::convert::{Conversion, Wrapper};
use merge::execute::{RunOptions, execute, in_memory};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::layouts::{self, GramNames, Part, TowerSizes, ZerovlSizes, ZerovlSpec};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use merge::{BlockId, Checkpoint, Error, MergePlan, MergeRecipe, Role};

pub fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default()).expect("it opens")
}

pub fn values(checkpoint: &Checkpoint, key: &str) -> Vec<f64> {
    let info = checkpoint.require(key).expect("the tensor");
    let mut values = vec![0.0; info.n_elements()];
    let bytes = checkpoint.read_all(key).expect("it reads");
    merge::decode_f64(key, info.dtype, &bytes, &mut values).expect("a number");
    values
}

fn model() -> Checkpoint {
    opened(&Set::open("zerovl").path("ckpt/model.safetensors"))
}

pub fn synthesis(spec: ZerovlSpec) -> Synthesis<ZerovlSpec> {
    Synthesis {
        spec,
        seed: 3,
        spread: Spread::default(),
        is_fresh: false,
        dtype: OutputDType::Keep,
    }
}

pub fn write(synthesis: &Synthesis<ZerovlSpec>, path: &Path) {
    let plan = synthesis.plan().expect("a plan");
    let options = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    execute(&plan, &options, &RunOptions::default(), &Silent).expect("written");
}

/// A small model whose towers have different widths, depths and heads.
pub fn tiny() -> ZerovlSpec {
    ZerovlSpec {
        sizes: ZerovlSizes {
            image: TowerSizes {
                n_blocks: 2,
                width: 8,
                n_heads: 4,
                ffn_width: 12,
            },
            text: TowerSizes {
                n_blocks: 3,
                width: 6,
                n_heads: 3,
                ffn_width: 10,
            },
            patch_size: 4,
            image_size: 12,
            vocabulary: 11,
            text_len: 7,
            n_token_types: 2,
            joint_width: 5,
        },
        has_temperature: true,
        with_buffers: true,
    }
}

#[test]
fn sizes_and_parts_are_read_off_the_shapes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.safetensors");
    let spec = tiny();
    write(&synthesis(spec), &path);
    let checkpoint = opened(&path);
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let found = layout.dimensions();
    for (name, tower) in [("image", spec.sizes.image), ("text", spec.sizes.text)] {
        let stack = found.stack(name).expect("the stack");
        assert_eq!((stack.n_blocks, stack.width), (tower.n_blocks, tower.width));
        assert_eq!(stack.ffn_width, Some(tower.ffn_width));
        // Heads are in the file's metadata alone.
        assert_eq!(stack.n_heads, Some(tower.n_heads));
    }
    let sizes = [
        found.patch_size,
        found.image_size,
        found.text_len,
        found.vocabulary,
        found.n_token_types,
        found.joint_width,
    ];
    assert_eq!(
        sizes,
        [Some(4), Some(12), Some(7), Some(11), Some(2), Some(5)]
    );
    assert_eq!(found.only_stack(), None);
    let counts = layouts::count(&checkpoint, layout.as_ref());
    let total: u64 = checkpoint
        .tensors()
        .map(|(_, info)| info.n_elements() as u64)
        .sum();
    assert_eq!(counts.parameters().n_elements + 7, total);
    assert_eq!(counts.part(Part::Projections).n_elements, 5 * (8 + 6));
    assert_eq!(counts.part(Part::Temperature).n_elements, 1);
    assert_eq!(counts.part(Part::Buffers).n_tensors, 1);
    assert_eq!(counts.part(Part::ImageEncoder).n_tensors, 6 + 2 * 12);
    assert_eq!(counts.part(Part::TextEncoder).n_tensors, 5 + 3 * 16);
}

#[test]
fn the_published_shape_has_the_published_number_of_parameters() {
    for (has_temperature, expected) in [(false, 195_476_736), (true, 195_476_737)] {
        let spec = ZerovlSpec {
            sizes: ZerovlSizes::BASE,
            has_temperature,
            with_buffers: false,
        };
        let plan = synthesis(spec).plan().expect("a plan");
        let n: usize = plan
            .entries()
            .iter()
            .map(|entry| entry.info.n_elements())
            .sum();
        assert_eq!(n, expected);
        // 150 of the ViT, 197 of BERT, two projections.
        assert_eq!(
            plan.entries().len(),
            150 + 197 + 2 + usize::from(has_temperature)
        );
    }
}

#[test]
fn places_say_which_stack_a_block_is_of() {
    let checkpoint = model();
    let layout = layouts::detect(&checkpoint).expect("a layout");
    for (key, stack, index, module) in [
        (
            "image_encoder.model.model.blocks.1.attn.qkv.weight",
            0,
            1,
            "attn.qkv",
        ),
        (
            "module.text_encoder.model.model.encoder.layer.2.attention.self.query.bias",
            1,
            2,
            "attention.self.query",
        ),
    ] {
        let Ok(Role::Shared(slot)) = layout.role(key) else {
            panic!("{key}");
        };
        assert_eq!(slot.block, Some(BlockId { stack, index }));
        assert_eq!(slot.module, module);
    }
    let unknown = layout.role("image_encoder.model.model.blocks.1.attn.qvk.weight");
    match unknown {
        Err(Error::UnknownKey { nearest, .. }) => assert_eq!(
            nearest.as_deref(),
            Some("image_encoder.model.model.blocks.1.attn.qkv.weight")
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_linear_layer_of_both_towers_has_a_gram_name_which_is_its_own() {
    let checkpoint = model();
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let names = GramNames::of(&checkpoint, layout.as_ref());
    let found: BTreeSet<&str> = names.iter().collect();
    let is_linear = |key: &str| !key.contains("embed") && !key.contains("Embed");
    let expected: BTreeSet<&str> = (checkpoint.tensors())
        .filter(|(key, info)| info.shape.len() == 2 && is_linear(key))
        .filter_map(|(key, _)| key.strip_suffix(".weight"))
        .collect();
    assert_eq!(found, expected);
    assert!(found.contains("text_encoder.model.model.encoder.layer.0.attention.self.key"));
    assert!(found.contains("image_projection.linear"));
}

#[test]
fn keys_with_and_without_module_are_one_place_and_go_over_into_each_other() {
    let source = Arc::new(model());
    let layout = layouts::detect(&source).expect("a layout");
    let run = RunOptions::default();
    let changed = |source: &Arc<Checkpoint>, wrapper| {
        let conversion = Conversion {
            wrapper: Some(wrapper),
            ..Conversion::default()
        };
        let plan = conversion.plan(Arc::clone(source), layout.as_ref());
        Arc::new(in_memory(&plan.expect("a plan"), &run, &Silent).expect("made"))
    };
    let added = changed(&source, Wrapper::Add);
    assert!(added.tensors().all(|(key, _)| key.starts_with("module.")));
    assert_eq!(added.tensors().count(), source.tensors().count());
    let back = changed(&added, Wrapper::Remove);
    for (key, _) in source.tensors() {
        assert_eq!(
            back.read_all(key).expect("there"),
            source.read_all(key).expect("there")
        );
    }
    // Both in one file are a contradiction.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("both.safetensors");
    let mut tensors = fixtures::tensors(&Set::open("zerovl").path("ckpt/model.safetensors"));
    let key = "image_encoder.model.model.norm.bias";
    tensors.insert(format!("module.{key}"), tensors[key].clone());
    fixtures::write(&path, &tensors);
    match layouts::detect(&opened(&path)).map(|layout| layout.name()) {
        Err(Error::BrokenLayout { slot, .. }) => assert_eq!(slot, key),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_checkpoints_merge_tensor_by_tensor_with_their_position_ids_untouched() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["a", "b"].map(|name| folder.path().join(format!("{name}.safetensors")));
    for (path, seed) in paths.iter().zip([1, 2]) {
        let synthesis = Synthesis {
            seed,
            ..synthesis(tiny())
        };
        write(&synthesis, path);
    }
    let yaml = format!(
        "merge_method: linear\nmodels: [{{model: {}, parameters: {{weight: 1}}}}, {{model: {}, \
         parameters: {{weight: 3}}}}]",
        paths[0].display(),
        paths[1].display()
    );
    let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let merged = in_memory(&plan, &RunOptions::default(), &Silent).expect("merged");
    let [a, b] = paths.each_ref().map(|path| opened(path));
    for (key, info) in a.tensors() {
        if !info.dtype.is_float() {
            assert_eq!(
                merged.read_all(key).expect("there"),
                a.read_all(key).expect("there")
            );
            continue;
        }
        let pairs = values(&a, key).into_iter().zip(values(&b, key));
        let expected: Vec<f64> = pairs.map(|(a, b)| 0.25 * a + 0.75 * b).collect();
        let difference = fixtures::first_difference(&values(&merged, key), &expected, 1e-6, 1e-7);
        assert_eq!(difference, None, "{key}");
    }
    // The heads of the towers travel along.
    let layout = layouts::detect(&merged).expect("a layout");
    let heads = |stack| {
        layout
            .dimensions()
            .stack(stack)
            .and_then(|stack| stack.n_heads)
    };
    assert_eq!((heads("image"), heads("text")), (Some(4), Some(3)));
}
