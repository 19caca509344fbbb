//! Families told apart, and refusals.

use merge::layouts::{self, BlockId, Form, GramNames, Heads, Sizes, Task, vlmo};
use merge::{DType, Error, Expert, ParamKind, TensorInfo};

use crate::catalog::listed;
use crate::layouts::{detected, slot_keys, slot_of};
use crate::memory::{checkpoint, fixture, shapes};

use Expert::{Language, Vision, VisionLanguage};

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
        assert_eq!(dimensions.n_blocks(), n_blocks, "{file}");
        assert_eq!(dimensions.fusion_start, fusion_start, "{file}");
        assert!(!layout.evidence().is_empty(), "{file}");
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
        assert_eq!(dimensions.n_heads(), Some(3), "{file}");
        // 52 rows = (2·4 − 1)² + 3
        assert_eq!(dimensions.image_size, Some(64), "{file}");
        assert_eq!(dimensions.width(), 24, "{file}");
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
fn a_gram_name_says_whose_layer_it_is_and_shared_layers_have_the_same_name_in_every_form() {
    let attn = ["transformer.blocks.0.attn", "transformer.blocks.0.attn.l"];
    let fc2 = [
        "transformer.blocks.0.mlp.fc2",
        "transformer.blocks.0.mlp.l.fc2",
    ];
    for (form, owned) in [
        (Form::Agnostic, [false, false]),
        (Form::LnSpecific, [false, false]),
        (Form::FfnSpecific, [false, true]),
        (Form::Vlmo, [false, true]),
        (Form::AttnSpecific, [true, false]),
        (Form::AllSpecific, [true, true]),
    ] {
        let (tensors, _) = listed(form, &Sizes::tiny(), Heads::Pretrain, false);
        let checkpoint = checkpoint(tensors, &[]);
        let layout = layouts::detect(&checkpoint).expect("a sound checkpoint");
        let names = GramNames::of(&checkpoint, layout.as_ref());
        for (names_of, is_owned) in [attn, fc2].into_iter().zip(owned) {
            let [shared, language] = names_of;
            let expected = [(!is_owned).then_some(false), is_owned.then_some(true)];
            let found = [names.is_owned(shared), names.is_owned(language)];
            assert_eq!(found, expected, "{form:?}: {shared}");
        }
        // Inputs of heads are not recorded.
        assert!(
            names
                .iter()
                .all(|name| name.starts_with("transformer.blocks."))
        );
    }
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
            assert_eq!(dimensions.n_heads(), Some(sizes.n_heads), "{name}");
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
    assert!(
        found
            .used_experts(Task::Retrieval, BlockId::only(0))
            .is_empty()
    );
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
        (layout.name(), layout.dimensions().n_blocks()),
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
            (None, block.map(BlockId::only), kind),
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
            let layout = layouts::detect(&checkpoint(tensors, &config)).expect("always a layout");
            // Names decide, whatever the shapes: without its first key nothing is left of the family.
            let expected = match skipped {
                0 => "generic",
                _ => "vl_merging/agnostic",
            };
            assert_eq!(
                layout.name(),
                expected,
                "{shape:?} without {}",
                keys[skipped]
            );
        }
    }
}
