//! Families told apart, keys understood, sizes read.

use std::collections::BTreeSet;

use merge::layouts::{self, Dimensions, Form, Heads, Layout, Sizes, Task, vlmo};
use merge::{Checkpoint, DType, Error, Expert, ParamKind, Role, Slot, TensorInfo};

use crate::catalog::listed;
use crate::memory::{checkpoint, fixture, shapes};

use Expert::{Language, Vision, VisionLanguage};

fn detected(name: &str) -> (Checkpoint, Box<dyn Layout>) {
    let checkpoint = fixture(name);
    let layout = layouts::detect(&checkpoint).expect("a sound checkpoint");
    (checkpoint, layout)
}

fn slot_of(layout: &dyn Layout, key: &str) -> (Option<Expert>, Slot) {
    match layout.role(key) {
        Ok(Role::Shared(slot)) => (None, slot),
        Ok(Role::Expert { expert, slot }) => (Some(expert), slot),
        other => panic!("`{key}` is {other:?}"),
    }
}

/// Keys of the merged model that a checkpoint has something for.
fn slot_keys(checkpoint: &Checkpoint, layout: &dyn Layout) -> BTreeSet<String> {
    checkpoint
        .tensors()
        .filter_map(|(key, _)| match layout.role(key).expect("a known key") {
            Role::Shared(slot) | Role::Expert { slot, .. } => Some(slot.key),
            Role::Derived => None,
            other => panic!("`{key}` is {other:?}"),
        })
        .collect()
}

#[test]
fn every_fixture_is_detected_in_its_form() {
    // Sizes: fixtures/config.json; the depth models have width 8.
    for (file, name, n_blocks, fusion_start) in [
        ("ckpt/ufo.safetensors", "vl_merging/agnostic", 12, Some(10)),
        (
            "ckpt/all_moe.safetensors",
            "vl_merging/all_specific",
            12,
            Some(10),
        ),
        (
            "ckpt/attn_moe_blocks.safetensors",
            "vl_merging/attn_specific",
            12,
            Some(10),
        ),
        (
            "ckpt/ffn_moe_blocks.safetensors",
            "vl_merging/ffn_specific",
            12,
            Some(10),
        ),
        (
            "ckpt/ln_moe_blocks.safetensors",
            "vl_merging/ln_specific",
            12,
            Some(10),
        ),
        (
            "convert/beit_shared.safetensors",
            "beit/shared_table",
            12,
            None,
        ),
        (
            "convert/beit_perlayer.safetensors",
            "beit/per_block_tables",
            12,
            None,
        ),
        (
            "merge/half_f16_in.safetensors",
            "vl_merging/all_specific",
            11,
            Some(10),
        ),
        (
            "merge/half_bf16_in.safetensors",
            "vl_merging/all_specific",
            11,
            Some(10),
        ),
        (
            "merge/half_f16_interp_r0.25.safetensors",
            "vl_merging/agnostic",
            11,
            None,
        ),
        (
            "merge/depth3_in.safetensors",
            "vl_merging/all_specific",
            3,
            Some(2),
        ),
        (
            "merge/depth3_central.safetensors",
            "vl_merging/agnostic",
            3,
            None,
        ),
        (
            "merge/depth14_in.safetensors",
            "vl_merging/all_specific",
            14,
            Some(11),
        ),
        (
            "merge/depth14_central.safetensors",
            "vl_merging/agnostic",
            14,
            None,
        ),
        ("merge/gram_irtr.safetensors", "generic", 12, None),
        ("convert/nlvr2_token_type.safetensors", "generic", 0, None),
    ] {
        let (_, layout) = detected(file);
        let dimensions = layout.dimensions();
        assert_eq!(layout.name(), name, "{file}");
        assert_eq!(dimensions.n_blocks, n_blocks, "{file}");
        assert_eq!(dimensions.fusion_start, fusion_start, "{file}");
        assert!(!layout.evidence().is_empty(), "{file}");
    }
}

#[test]
fn sizes_are_read_off_the_tensors() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    // fixtures/config.json
    let expected = Dimensions {
        n_blocks: 12,
        width: 24,
        n_heads: Some(3),
        ffn_width: Some(96),
        fusion_start: Some(10),
        patch_size: Some(16),
        image_size: Some(48),
        text_len: Some(12),
        text_table_len: Some(16),
        vocabulary: Some(101),
        n_token_types: Some(3),
    };
    assert_eq!(layout.dimensions(), &expected);
    let evidence = layout.evidence().join("\n");
    for words in [
        "`transformer.blocks.0.attn.l.proj.bias`",
        "12 blocks of width 24",
        "vision_language experts from block 10",
        "image window 3x3 = 48 px",
    ] {
        assert!(evidence.contains(words), "{words} in:\n{evidence}");
    }
}

#[test]
fn beit_sizes_come_from_its_own_tables() {
    for file in [
        "convert/beit_shared.safetensors",
        "convert/beit_perlayer.safetensors",
    ] {
        let (_, layout) = detected(file);
        let dimensions = layout.dimensions();
        assert_eq!(dimensions.n_heads, Some(3), "{file}");
        // 52 rows = (2·4 − 1)² + 3
        assert_eq!(dimensions.image_size, Some(64), "{file}");
        assert_eq!(dimensions.width, 24, "{file}");
    }
}

#[test]
fn an_image_window_without_buffers_needs_a_fitting_text_length() {
    let (_, layout) = detected("ckpt/attn_moe_blocks.safetensors");
    // 62 rows are fewer than those of 196 text positions alone.
    assert_eq!(layout.dimensions().image_size, None);
    assert!(
        layout
            .evidence()
            .iter()
            .any(|line| line.contains("62 rows"))
    );

    let (tensors, _) = listed(Form::AllSpecific, &Sizes::base(), Heads::None, false);
    let layout = layouts::detect(&checkpoint(tensors, &[])).expect("a sound checkpoint");
    assert_eq!(layout.dimensions().image_size, Some(224));
    assert_eq!(layout.dimensions().text_table_len, Some(196));
}

#[test]
fn the_weights_win_over_the_stored_configuration_and_say_so() {
    let (tensors, _) = listed(Form::AllSpecific, &Sizes::tiny(), Heads::None, true);
    let config = [
        ("num_heads", 6),
        ("image_size", 384),
        ("vlffn_start_layer_index", 9),
        ("max_text_len", 40),
    ];
    let layout = layouts::detect(&checkpoint(tensors, &config)).expect("a sound checkpoint");
    let dimensions = layout.dimensions();
    assert_eq!(dimensions.n_heads, Some(3));
    assert_eq!(dimensions.image_size, Some(224));
    assert_eq!(dimensions.fusion_start, Some(10));
    let complaints: Vec<&String> = layout
        .evidence()
        .iter()
        .filter(|line| line.contains("the weights win"))
        .collect();
    assert_eq!(complaints.len(), 3, "{complaints:?}");
}

#[test]
fn the_stored_configuration_tells_what_weights_cannot() {
    let sizes = Sizes {
        image_size: 48,
        text_table_len: 60,
        fusion_start: 7,
        ..Sizes::tiny()
    };
    let (tensors, _) = listed(Form::Agnostic, &sizes, Heads::None, false);
    let config = [
        ("max_text_len_of_initckpt", 60),
        ("vlffn_start_layer_index", 7),
        ("image_size", 50),
    ];
    let layout = layouts::detect(&checkpoint(tensors, &config)).expect("a sound checkpoint");
    let dimensions = layout.dimensions();
    assert_eq!(dimensions.text_table_len, Some(60));
    assert_eq!(dimensions.fusion_start, Some(7));
    // 50 px make 3 whole patches of 16.
    assert_eq!(dimensions.image_size, Some(50));
}

#[test]
fn specific_forms_have_the_slots_of_the_agnostic_model() {
    let (ufo, agnostic) = detected("ckpt/ufo.safetensors");
    let everything = slot_keys(&ufo, agnostic.as_ref());
    let (all_moe, layout) = detected("ckpt/all_moe.safetensors");
    assert_eq!(slot_keys(&all_moe, layout.as_ref()), everything);

    let blocks: BTreeSet<String> = everything
        .into_iter()
        .filter(|key| key.starts_with("transformer.blocks."))
        .collect();
    for form in ["attn", "ffn", "ln"] {
        let (partial, layout) = detected(&format!("ckpt/{form}_moe_blocks.safetensors"));
        let found: BTreeSet<String> = slot_keys(&partial, layout.as_ref())
            .into_iter()
            .filter(|key| key.starts_with("transformer.blocks."))
            .collect();
        assert_eq!(found, blocks, "{form}");
    }
}

#[test]
fn the_value_bias_is_not_the_vision_expert() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    let (expert, slot) = slot_of(layout.as_ref(), "transformer.blocks.3.attn.v.v_bias");
    assert_eq!(expert, Some(Vision));
    assert_eq!(slot.key, "transformer.blocks.3.attn.v_bias");
    assert_eq!((slot.block, slot.kind), (Some(3), ParamKind::Bias));

    let (expert, slot) = slot_of(layout.as_ref(), "module.transformer.blocks.3.attn.v_bias");
    assert_eq!(expert, None);
    assert_eq!(slot.key, "transformer.blocks.3.attn.v_bias");

    let (expert, slot) = slot_of(layout.as_ref(), "transformer.blocks.11.mlp.vl.fc2.weight");
    assert_eq!(expert, Some(VisionLanguage));
    assert_eq!(
        (slot.module.as_str(), slot.kind),
        ("mlp.fc2", ParamKind::LinearWeight)
    );
}

#[test]
fn layer_scale_and_heads_are_shared_and_buffers_derived() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    for (key, kind) in [
        ("transformer.blocks.11.gamma_2", ParamKind::Scale),
        ("pooler.dense.weight", ParamKind::LinearWeight),
        ("relative_position_bias_table", ParamKind::PositionBias),
        ("logit_scale", ParamKind::Scale),
        ("text_embeddings.LayerNorm.bias", ParamKind::Norm),
        ("vqa_classifier.1.weight", ParamKind::Norm),
        ("mim_score.weight", ParamKind::LinearWeight),
        ("d_vae.encoder.blocks.input.w", ParamKind::Other),
    ] {
        let (expert, slot) = slot_of(layout.as_ref(), key);
        assert_eq!(
            (expert, slot.kind, slot.block.is_some()),
            (None, kind, key.contains("blocks.1"))
        );
        assert_eq!(slot.key, key);
    }
    for key in [
        "text_embeddings.position_ids",
        "relative_position_index",
        "vl_text_video_relative_position_index",
        "temporal_relative_position_index",
        "module.mask_for_combining_temporal",
    ] {
        assert_eq!(
            layout.role(key).expect("a known key"),
            Role::Derived,
            "{key}"
        );
    }
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_one() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    for (key, expected) in [
        (
            "transformer.blocks.0.attn.v.qkv.bias",
            "transformer.blocks.0.attn.v.q_bias",
        ),
        (
            "transformer.blocks.0.gamma_1.v.",
            "transformer.blocks.0.gamma_1",
        ),
        ("pooler.dens.weight", "pooler.dense.weight"),
    ] {
        match layout.role(key) {
            Err(Error::UnknownKey { nearest, .. }) => {
                assert_eq!(nearest.as_deref(), Some(expected));
            }
            other => panic!("`{key}` is {other:?}"),
        }
    }
    for key in [
        "transformer.blocks.99999.gamma_1",
        "transformer.blocks.+1.gamma_1",
        "",
    ] {
        assert!(layout.role(key).is_err(), "{key}");
    }
}

#[test]
fn two_keys_for_one_place_are_refused() {
    for rival in [
        "transformer.blocks.0.mlp.fc1.bias",
        "module.transformer.blocks.0.mlp.v.fc1.bias",
    ] {
        let checkpoint = shapes(&[("transformer.blocks.0.mlp.v.fc1.bias", &[4]), (rival, &[4])]);
        match layouts::detect(&checkpoint).map(|layout| layout.name()) {
            Err(Error::BrokenLayout { slot, .. }) => {
                assert_eq!(slot, "transformer.blocks.0.mlp.fc1.bias");
            }
            other => panic!("{rival}: {other:?}"),
        }
    }
}

#[test]
fn gram_names_of_each_task_are_those_of_the_published_files() {
    let (all_moe, layout) = detected("ckpt/all_moe.safetensors");
    for (file, task) in [
        ("irtr", Task::Irtr),
        ("vqa", Task::Vqa),
        ("nlvr2", Task::Nlvr2),
    ] {
        let mut names = BTreeSet::new();
        for (key, _) in all_moe.tensors() {
            let Ok(Role::Expert { expert, slot }) = layout.role(key) else {
                continue;
            };
            let block = slot.block.expect("experts live in blocks");
            if layout.used_experts(task, block).contains(&expert) {
                names.extend(layout.gram_key(&slot, expert));
            }
        }
        let grams = fixture(&format!("merge/gram_{file}.safetensors"));
        let published: BTreeSet<String> =
            grams.tensors().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, published, "{file}");
    }
}

#[test]
fn shared_parts_have_no_gram_name() {
    let qkv = "transformer.blocks.0.attn.qkv.weight";
    let fc2 = "transformer.blocks.0.mlp.fc2.weight";
    for (form, attn, mlp) in [
        (Form::Agnostic, None, None),
        (
            Form::FfnSpecific,
            None,
            Some("transformer.blocks.0.mlp.l.fc2"),
        ),
        (Form::Vlmo, None, Some("transformer.blocks.0.mlp.l.fc2")),
        (
            Form::AttnSpecific,
            Some("transformer.blocks.0.attn.l"),
            None,
        ),
    ] {
        let (tensors, _) = listed(form, &Sizes::tiny(), Heads::None, false);
        let layout = layouts::detect(&checkpoint(tensors, &[])).expect("a sound checkpoint");
        for (key, expected) in [(qkv, attn), (fc2, mlp)] {
            let (_, slot) = slot_of(layout.as_ref(), key);
            assert_eq!(
                layout.gram_key(&slot, Language).as_deref(),
                expected,
                "{form:?}"
            );
        }
    }
}

#[test]
fn tasks_use_the_published_experts() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    assert_eq!(layout.block_experts(9), [Vision, Language]);
    assert_eq!(layout.block_experts(10), [Vision, Language, VisionLanguage]);
    for task in [Task::Irtr, Task::Vqa, Task::Nlvr2] {
        assert_eq!(layout.used_experts(task, 9), [Vision, Language]);
    }
    assert_eq!(layout.used_experts(Task::Irtr, 10), [Vision, Language]);
    assert_eq!(layout.used_experts(Task::Vqa, 11), [VisionLanguage]);
    assert_eq!(layout.used_experts(Task::Nlvr2, 10), [VisionLanguage]);
}

#[test]
fn vlmo_sizes_are_named_and_its_keys_fill_the_slots_of_vl_merging() {
    for (form, sizes, name) in [
        (Form::Vlmo, Sizes::base(), "vlmo/base"),
        (Form::VlmoAbsolute, Sizes::base_plus(), "vlmo/base_plus"),
        (Form::Vlmo, Sizes::large(), "vlmo/large"),
        (Form::Vlmo, Sizes::tiny(), "vlmo/custom"),
    ] {
        let (tensors, _) = listed(form, &sizes, Heads::Pretrain, true);
        let released = checkpoint(tensors, &[]);
        let layout = layouts::detect(&released).expect("a sound checkpoint");
        assert_eq!(layout.name(), name);
        let dimensions = layout.dimensions();
        assert_eq!(dimensions.fusion_start, Some(sizes.fusion_start), "{name}");
        assert_eq!(dimensions.image_size, Some(224), "{name}");
        if form == Form::Vlmo {
            assert_eq!(dimensions.n_heads, Some(sizes.n_heads), "{name}");
        }
        for (key, _) in released.tensors() {
            assert_eq!(vlmo::from_vl_merging(&vlmo::to_vl_merging(key)), key);
        }
    }
    let layout = layouts::by_name(
        "vlmo",
        &shapes(&[("transformer.blocks.0.mlp_imag.fc1.bias", &[4])]),
    )
    .expect("a VLMo key");
    for (key, expert, slot) in [
        (
            "transformer.blocks.0.mlp_imag.fc1.weight",
            Some(Vision),
            "transformer.blocks.0.mlp.fc1.weight",
        ),
        (
            "transformer.blocks.0.norm2_text.bias",
            Some(Language),
            "transformer.blocks.0.norm2.bias",
        ),
        (
            "module.transformer.blocks.0.mlp_vl.fc2.bias",
            Some(VisionLanguage),
            "transformer.blocks.0.mlp.fc2.bias",
        ),
        (
            "itc_vl_text_proj.fc.weight",
            None,
            "ifm_vl_text_proj.fc.weight",
        ),
        ("transformer.pos_embed", None, "transformer.pos_embed"),
    ] {
        let (found, place) = slot_of(layout.as_ref(), key);
        assert_eq!((found, place.key.as_str()), (expert, slot));
    }
}

#[test]
fn beit_is_read_in_both_spellings() {
    let (prefixed, layout) = detected("convert/beit_perlayer.safetensors");
    let slots = slot_keys(&prefixed, layout.as_ref());
    let original = checkpoint(
        prefixed.tensors().map(|(key, info)| {
            let key = key
                .strip_prefix("transformer.")
                .expect("the fixture's prefix");
            (key.to_owned(), info.clone())
        }),
        &[],
    );
    let found = layouts::detect(&original).expect("a sound checkpoint");
    assert_eq!(found.name(), "beit/per_block_tables");
    assert_eq!(found.dimensions(), layout.dimensions());
    assert!(
        found
            .evidence()
            .iter()
            .any(|line| line.contains("original spelling"))
    );
    assert_eq!(slot_keys(&original, found.as_ref()), slots);
    assert!(slots.contains("transformer.blocks.0.attn.relative_position_bias_table"));
    assert!(slots.contains("transformer.fc_norm.weight"));
    assert!(found.used_experts(Task::Irtr, 0).is_empty());
}

#[test]
fn other_vision_transformers_stay_generic() {
    let timm = shapes(&[
        ("blocks.0.attn.qkv.weight", &[12, 4]),
        ("blocks.0.attn.qkv.bias", &[12]),
        ("blocks.0.norm1.weight", &[4]),
        ("blocks.10.ls1.gamma", &[4]),
        ("patch_embed.proj.weight", &[4, 3, 2, 2]),
        ("pos_embed", &[1, 5, 4]),
        ("logit_scale", &[]),
    ]);
    let layout = layouts::detect(&timm).expect("always a layout");
    assert_eq!(
        (layout.name(), layout.dimensions().n_blocks),
        ("generic", 11)
    );
    for (key, block, module, kind) in [
        (
            "blocks.0.attn.qkv.weight",
            Some(0),
            "attn.qkv",
            ParamKind::LinearWeight,
        ),
        (
            "blocks.0.attn.qkv.bias",
            Some(0),
            "attn.qkv",
            ParamKind::Bias,
        ),
        ("blocks.0.norm1.weight", Some(0), "norm1", ParamKind::Norm),
        ("blocks.10.ls1.gamma", Some(10), "ls1", ParamKind::Scale),
        (
            "patch_embed.proj.weight",
            None,
            "patch_embed.proj",
            ParamKind::Embedding,
        ),
        ("pos_embed", None, "pos_embed", ParamKind::Embedding),
        ("logit_scale", None, "logit_scale", ParamKind::Scale),
    ] {
        let (expert, slot) = slot_of(layout.as_ref(), key);
        assert_eq!(
            (expert, slot.block, slot.kind),
            (None, block, kind),
            "{key}"
        );
        assert_eq!((slot.key.as_str(), slot.module.as_str()), (key, module));
    }
}

#[test]
fn a_layout_can_be_asked_for_by_name() {
    let ufo = fixture("ckpt/ufo.safetensors");
    for (name, found) in [
        ("vl_merging", "vl_merging/agnostic"),
        ("vl_merging/agnostic", "vl_merging/agnostic"),
        ("generic", "generic"),
    ] {
        let layout = layouts::by_name(name, &ufo).expect("it fits");
        assert_eq!(layout.name(), found);
    }
    for name in ["vlmo", "beit", "vl_merging/all_specific"] {
        let error = layouts::by_name(name, &ufo)
            .map(|_| ())
            .expect_err("it does not fit");
        assert!(
            matches!(error, Error::LayoutMismatch { .. }),
            "{name}: {error}"
        );
    }
    let error = layouts::by_name("vl-merging", &ufo)
        .map(|_| ())
        .expect_err("no such name");
    assert!(error.is_usage());
    assert!(
        error.to_string().contains("nearest: `vl_merging`"),
        "{error}"
    );
}

#[test]
fn hostile_shapes_do_not_break_detection() {
    let info = |shape: &[usize]| TensorInfo {
        dtype: DType::F32,
        shape: shape.to_vec(),
    };
    for shape in [
        &[][..],
        &[0],
        &[0, 0],
        &[usize::MAX, usize::MAX],
        &[1, 0, 3, 0],
    ] {
        let keys = [
            "transformer.blocks.0.attn.q_bias",
            "transformer.blocks.65535.mlp.fc1.weight",
            "relative_position_bias_table",
            "relative_position_index",
            "text_relative_position_index",
            "transformer.patch_embed.proj.weight",
            "transformer.norm.weight",
        ];
        for skipped in 0..keys.len() {
            let some = keys
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != skipped);
            let tensors = some.map(|(_, key)| ((*key).to_owned(), info(shape)));
            let config = [
                ("image_size", i64::MAX),
                ("patch_size", 0),
                ("num_heads", -1),
            ];
            layouts::detect(&checkpoint(tensors, &config)).expect("always a layout");
        }
    }
}
