//! Conversions beyond those of the published program, which `golden/convert.rs` compares with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use merge::convert::{Conversion, Expansion, Resize, Spelling};
use merge::execute::{RunOptions, execute};
use merge::io::{OpenOptions, WriteOptions, Writer, open};
use merge::layouts::{CatalogSpec, Form, Heads, Sizes, detect};
use merge::plan::Action;
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use merge::{Checkpoint, ConversionFault, Error, MergePlan};

use fixtures::{self as fixture, Raw};

/// Text positions that the tables of the fixtures have room for.
const TEXT_TABLE_LEN: usize = 16;

fn opened(path: &Path) -> Arc<Checkpoint> {
    Arc::new(open(path, &OpenOptions::default()).expect("opens"))
}

fn fixture_opened(name: &str) -> Arc<Checkpoint> {
    opened(&fixture::path(name))
}

fn written(plan: &MergePlan, target: &Path) -> BTreeMap<String, Raw> {
    execute(
        plan,
        &WriteOptions::new(target),
        &RunOptions::default(),
        &Silent,
    )
    .expect("runs");
    fixture::tensors(target)
}

fn run(plan: &MergePlan) -> BTreeMap<String, Raw> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    written(plan, &folder.path().join("out.safetensors"))
}

fn convert(source: &Arc<Checkpoint>, conversion: &Conversion) -> Result<MergePlan, Error> {
    let layout = detect(source)?;
    conversion.plan(Arc::clone(source), layout.as_ref())
}

fn expand(source: &Arc<Checkpoint>, expansion: &Expansion) -> Result<MergePlan, Error> {
    let layout = detect(source)?;
    expansion.plan(Arc::clone(source), layout.as_ref())
}

#[test]
fn a_third_token_type_that_is_there_stays() {
    let conversion = Conversion {
        third_token_type: true,
        ..Conversion::default()
    };
    let full = fixture::path("ckpt/ufo.safetensors");
    let found = run(&convert(&opened(&full), &conversion).expect("plans"));
    assert_eq!(found, fixture::tensors(&full), "three rows already");
}

#[test]
fn without_changes_every_tensor_is_copied_bit_for_bit() {
    for name in [
        "ckpt/all_moe.safetensors",
        "ckpt/ln_moe_blocks.safetensors",
        "convert/beit_perlayer.safetensors",
        "corpus/safetensors/valid/dtypes.safetensors",
        "corpus/safetensors/valid/odd_names.safetensors",
        "merge/gram_irtr.safetensors",
    ] {
        let path = fixture::path(name);
        let plan = convert(&opened(&path), &Conversion::default()).expect("plans");
        assert_eq!(run(&plan), fixture::tensors(&path), "{name}");
        assert!(plan.dropped().is_empty(), "{name}");
    }
}

#[test]
fn a_cast_rounds_parameters_but_no_indices() {
    let source = fixture_opened("ckpt/ufo.safetensors");
    let plan = convert(
        &source,
        &Conversion {
            dtype: OutputDType::Bf16,
            ..Conversion::default()
        },
    );
    let found = run(&plan.expect("plans"));
    let before = fixture::tensors(&fixture::path("ckpt/ufo.safetensors"));
    for (name, raw) in &found {
        let expected = match before[name].dtype {
            safetensors::Dtype::F32 if !name.contains("index") && !name.starts_with("mask_") => {
                safetensors::Dtype::BF16
            }
            kept => kept,
        };
        assert_eq!(raw.dtype, expected, "{name}");
    }
    assert_eq!(
        found["text_imag_relative_position_index"],
        before["text_imag_relative_position_index"]
    );
}

#[test]
fn beit_heads_are_dropped_with_a_reason_unless_as_published() {
    let source = fixture_opened("convert/beit_perlayer.safetensors");
    let expansion = Expansion::to(Form::Agnostic);
    let plan = expand(&source, &expansion).expect("plans");
    let dropped = plan.dropped().iter();
    let heads: Vec<_> = dropped
        .filter(|dropped| dropped.tensor.key.starts_with("transformer.head."))
        .collect();
    assert_eq!(heads.len(), 2);
    assert_eq!(heads[0].why, "head of BEiT's own task");
    // Every tensor of the input is used or dropped, once.
    let used: usize = (plan.entries().iter())
        .map(|entry| match &entry.action {
            Action::Whole { members, .. } => members.len(),
            _ => 1,
        })
        .sum();
    assert_eq!(used + plan.dropped().len(), source.tensors().count());
}

#[test]
fn the_original_spelling_of_beit_gives_the_same_seed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in [
        "convert/beit_shared.safetensors",
        "convert/beit_perlayer.safetensors",
    ] {
        let prefixed = fixture::tensors(&fixture::path(name));
        let original = (prefixed.iter())
            .map(|(key, raw)| (key.replacen("transformer.", "", 1), raw.clone()))
            .collect();
        let path = folder.path().join("original.safetensors");
        fixture::write(&path, &original);
        let expansion = Expansion {
            text_table_len: Some(TEXT_TABLE_LEN),
            ..Expansion::to(Form::AllSpecific)
        };
        let expected = run(&expand(&fixture_opened(name), &expansion).expect("plans"));
        let found = run(&expand(&opened(&path), &expansion).expect("plans"));
        assert_eq!(found, expected, "{name}");
    }
}

fn synthesis(form: Form) -> Synthesis {
    Synthesis {
        spec: CatalogSpec {
            form,
            sizes: Sizes {
                n_blocks: 3,
                width: 16,
                n_heads: 2,
                ffn_width: 32,
                fusion_start: 2,
                patch_size: 4,
                image_size: 16,
                text_len: 6,
                text_table_len: 8,
                vocabulary: 11,
                n_answers: 5,
                n_classes: 7,
            },
            heads: Heads::Pretrain,
            with_buffers: false,
            original_spelling: false,
        },
        seed: 5,
        dtype: OutputDType::F32,
        spread: Spread::default(),
        is_fresh: false,
    }
}

fn synthetic(folder: &Path, form: Form) -> Arc<Checkpoint> {
    let path = folder.join(format!("{form:?}.safetensors"));
    written(&synthesis(form).plan().expect("plans"), &path);
    opened(&path)
}

/// The same without what this program's files say of their model.
fn synthetic_by_others(folder: &Path, form: Form) -> Arc<Checkpoint> {
    let ours = synthetic(folder, form);
    let path = folder.join("others.safetensors");
    let infos: Vec<_> = (ours.tensors())
        .map(|(key, info)| (key.to_owned(), info.clone()))
        .collect();
    let metadata = BTreeMap::new();
    let writer = Writer::create(&infos, &metadata, &WriteOptions::new(&path)).expect("created");
    for (index, (key, _)) in infos.iter().enumerate() {
        let bytes = ours.read_all(key).expect("reads");
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&metadata).expect("finished");
    opened(&path)
}

fn respelled(to: Spelling) -> Conversion {
    Conversion {
        spelling: Some(to),
        ..Conversion::default()
    }
}

#[test]
fn vlmo_to_vl_merging_and_back_is_the_identity() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vlmo = synthetic(folder.path(), Form::Vlmo);
    let there = folder.path().join("there.safetensors");
    let plan = convert(&vlmo, &respelled(Spelling::VlMerging)).expect("plans");
    let renamed = written(&plan, &there);
    assert!(renamed.contains_key("transformer.blocks.2.mlp.vl.fc1.weight"));
    assert!(renamed.contains_key("ifm_vl_text_proj.fc.weight"));
    let there = opened(&there);
    assert_eq!(
        detect(&there).expect("detects").name(),
        "vl_merging/ffn_specific"
    );
    let back = run(&convert(&there, &respelled(Spelling::Vlmo)).expect("plans"));
    assert_eq!(back, fixture::tensors(vlmo.path()));
}

#[test]
fn vl_merging_to_vlmo_says_what_it_leaves_out_and_refuses_what_would_be_lost() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let specific = synthetic(folder.path(), Form::FfnSpecific);
    let plan = convert(&specific, &respelled(Spelling::Vlmo)).expect("plans");
    let dropped: Vec<_> = plan
        .dropped()
        .iter()
        .map(|d| d.tensor.key.as_str())
        .collect();
    assert_eq!(
        dropped,
        [
            "temporal_relative_position_bias_table",
            "transformer.mask_token"
        ]
    );
    // The same draws make the same weights in both spellings.
    let vlmo = synthetic(folder.path(), Form::Vlmo);
    assert_eq!(run(&plan), fixture::tensors(vlmo.path()));

    for (form, key) in [
        (Form::AllSpecific, "transformer.blocks.0.attn.l.proj.bias"),
        (Form::Agnostic, "transformer.blocks.0.mlp.fc1.bias"),
    ] {
        let source = synthetic(folder.path(), form);
        match convert(&source, &respelled(Spelling::Vlmo)).err() {
            Some(Error::Conversion(ConversionFault::NoCounterpart { key: found, .. })) => {
                assert_eq!(found, key)
            }
            other => panic!("{form:?}: {other:?}"),
        }
    }
    let absolute = synthetic(folder.path(), Form::VlmoAbsolute);
    match convert(&absolute, &respelled(Spelling::VlMerging)).err() {
        Some(Error::Conversion(ConversionFault::NoCounterpart { key, .. })) => {
            assert_eq!(key, "transformer.pos_embed")
        }
        other => panic!("{other:?}"),
    }
    let beit = fixture_opened("convert/beit_shared.safetensors");
    assert!(matches!(
        convert(&beit, &respelled(Spelling::VlMerging)),
        Err(Error::Conversion(ConversionFault::NoSuchConversion { .. }))
    ));
}

#[test]
fn vlmo_grows_by_geometric_spacing_and_shrinks_only_bicubically() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vlmo = synthetic_by_others(folder.path(), Form::Vlmo);
    assert!(matches!(
        convert(
            &vlmo,
            &Conversion {
                image_size: Some(24),
                ..Conversion::default()
            }
        ),
        Err(Error::Conversion(ConversionFault::UnknownSize {
            what: "image size"
        }))
    ));
    let sized = |image_size, resize| Conversion {
        image_size: Some(image_size),
        resize,
        text_table_len: Some(8),
        ..Conversion::default()
    };
    let table = |conversion: &Conversion| {
        let found = run(&convert(&vlmo, conversion).expect("plans"));
        found["relative_position_bias_table"].clone()
    };
    let grown = table(&sized(24, None));
    // (2 · 6 − 1)² offsets, 3 for the class token, 2 · 8 + 2 for text.
    assert_eq!(grown.shape, [121 + 3 + 18, 6]);
    assert_eq!(grown, table(&sized(24, Some(Resize::Geometric))));
    assert_ne!(grown, table(&sized(24, Some(Resize::Bicubic))));
    assert!(matches!(
        convert(&vlmo, &sized(12, None)),
        Err(Error::Conversion(ConversionFault::CannotShrink {
            from: 4,
            to: 3,
            ..
        }))
    ));
    assert_eq!(table(&sized(12, Some(Resize::Bicubic))).shape, [25 + 21, 6]);
    assert!(matches!(
        convert(&vlmo, &sized(18, None)),
        Err(Error::Conversion(ConversionFault::ImageSize {
            patch: 4,
            ..
        }))
    ));
    assert!(matches!(
        convert(&vlmo, &sized(400_000, None)),
        Err(Error::Conversion(ConversionFault::ImageTooLarge {
            window: 100_000,
            ..
        }))
    ));
}

#[test]
fn absolute_positions_are_resized_on_their_grid() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let absolute = synthetic(folder.path(), Form::VlmoAbsolute);
    let conversion = Conversion {
        image_size: Some(24),
        ..Conversion::default()
    };
    let found = run(&convert(&absolute, &conversion).expect("plans"));
    let before = &fixture::tensors(absolute.path())["transformer.pos_embed"];
    let after = &found["transformer.pos_embed"];
    assert_eq!(after.shape, [1, 37, 16]);
    assert_eq!(after.values()[..16], before.values()[..16], "class token");
}

#[test]
fn text_is_cut_but_never_invented() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let seed = synthetic(folder.path(), Form::Agnostic);
    let text = |text_len| Conversion {
        text_len: Some(text_len),
        ..Conversion::default()
    };
    let key = "text_embeddings.position_embeddings.weight";
    let cut = run(&convert(&seed, &text(4)).expect("plans"));
    let before = fixture::tensors(seed.path());
    assert_eq!(cut[key].values(), before[key].values()[..4 * 16]);
    assert_eq!(run(&convert(&seed, &text(6)).expect("plans")), before);
    assert!(matches!(
        convert(&seed, &text(7)),
        Err(Error::Conversion(ConversionFault::TextTooShort {
            from: 6,
            to: 7
        }))
    ));
}

#[test]
fn index_buffers_can_be_rebuilt_for_the_new_sizes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of_size = |image_size, text_len, name: &str| {
        let mut synthesis = synthesis(Form::AllSpecific);
        synthesis.spec.with_buffers = true;
        synthesis.spec.sizes.image_size = image_size;
        synthesis.spec.sizes.text_len = text_len;
        let path = folder.path().join(name);
        written(&synthesis.plan().expect("plans"), &path);
        opened(&path)
    };
    let (old, new) = (
        of_size(16, 6, "old.safetensors"),
        of_size(24, 5, "new.safetensors"),
    );
    let conversion = Conversion {
        image_size: Some(24),
        text_len: Some(5),
        with_buffers: true,
        ..Conversion::default()
    };
    let found = run(&convert(&old, &conversion).expect("plans"));
    let expected = fixture::tensors(new.path());
    let mut n_buffers = 0;
    for (name, raw) in &expected {
        if name.contains("index") || name.contains("position_ids") || name.starts_with("mask_") {
            n_buffers += 1;
            assert_eq!(&found[name], raw, "{name}");
        }
    }
    assert_eq!(n_buffers, 10, "all index buffers of a pre-trained model");
}

#[test]
fn experts_start_as_the_seed_or_as_another_seed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let seed = synthetic(folder.path(), Form::Agnostic);
    let mut other = synthesis(Form::Agnostic);
    other.seed = 6;
    let path = folder.path().join("other.safetensors");
    let other_tensors = written(&other.plan().expect("plans"), &path);
    let expansion = Expansion {
        fusion_start: Some(2),
        seeds: [(merge::Expert::Language, opened(&path))].into(),
        ..Expansion::to(Form::FfnSpecific)
    };
    let found = run(&expand(&seed, &expansion).expect("plans"));
    let seed_tensors = fixture::tensors(seed.path());
    let slot = |middle: &str| format!("transformer.blocks.2.mlp{middle}.fc2.weight");
    assert_eq!(found[&slot(".v")], seed_tensors[&slot("")]);
    assert_eq!(found[&slot(".vl")], seed_tensors[&slot("")]);
    assert_eq!(found[&slot(".l")], other_tensors[&slot("")]);
    let attention = "transformer.blocks.2.attn.proj.weight";
    assert_eq!(found[attention], seed_tensors[attention]);
}

#[test]
fn a_fusion_start_that_is_neither_stored_nor_usual_must_be_given() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let seed = synthetic_by_others(folder.path(), Form::Agnostic);
    let expansion = |fusion_start| Expansion {
        fusion_start,
        ..Expansion::to(Form::AllSpecific)
    };
    assert!(matches!(
        expand(&seed, &expansion(None)),
        Err(Error::Conversion(
            ConversionFault::FusionStartUnknown { .. }
        ))
    ));
    assert!(matches!(
        expand(&seed, &expansion(Some(4))),
        Err(Error::Conversion(ConversionFault::FusionStartRange { .. }))
    ));
    let specific = synthetic(folder.path(), Form::AllSpecific);
    assert!(matches!(
        expand(&specific, &expansion(Some(2))),
        Err(Error::Conversion(ConversionFault::NoSuchConversion { .. }))
    ));
}

#[test]
fn metadata_of_other_programs_stay_in_a_safetensors_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, to) = (
        folder.path().join("from.safetensors"),
        folder.path().join("to.safetensors"),
    );
    let values = [1.0f32, 2.0].map(f32::to_le_bytes).concat();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &values);
    let metadata = [
        ("format", "np"),
        ("ss_network_dim", "8"),
        ("sshs_model_hash", "beef"),
        ("vlmerge.recipe", "of another file"),
    ];
    let metadata = metadata.map(|(key, text)| (key.to_owned(), text.to_owned()));
    let bytes = safetensors::serialize(
        [("w", view.expect("a tensor"))],
        Some(metadata.into_iter().collect()),
    );
    std::fs::write(&from, bytes.expect("serializes")).expect("written");
    for (dtype, hash) in [(OutputDType::Keep, Some("beef")), (OutputDType::Bf16, None)] {
        let conversion = Conversion {
            dtype,
            ..Conversion::default()
        };
        let plan = convert(&opened(&from), &conversion).expect("plans");
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(&to)
        };
        execute(&plan, &write, &RunOptions::default(), &Silent).expect("runs");
        let found = opened(&to).info().metadata.clone();
        let said = |key: &str| found.get(key).map(String::as_str);
        assert_eq!(said("ss_network_dim"), Some("8"));
        assert_eq!(said("format"), Some("pt"));
        assert_ne!(said("vlmerge.recipe"), Some("of another file"));
        // A hash of other bytes would be wrong.
        assert_eq!(said("sshs_model_hash"), hash);
    }
}
