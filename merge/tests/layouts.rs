//! Keys understood and sizes read.

use std::collections::BTreeSet;

use merge::layouts::{self, BlockId, Dimensions, Form, Heads, Layout, Sizes, Stack, Task};
use merge::{Checkpoint, Expert, ParamKind, Role, Slot};

use crate::catalog::listed;
use crate::memory::{checkpoint, fixture};

use Expert::{Language, Vision, VisionLanguage};

pub fn detected(name: &str) -> (Checkpoint, Box<dyn Layout>) {
    let checkpoint = fixture(name);
    let layout = layouts::detect(&checkpoint).expect("a sound checkpoint");
    (checkpoint, layout)
}

pub fn slot_of(layout: &dyn Layout, key: &str) -> (Option<Expert>, Slot) {
    match layout.role(key) {
        Ok(Role::Shared(slot)) => (None, slot),
        Ok(Role::Expert { expert, slot }) => (Some(expert), slot),
        other => panic!("`{key}` is {other:?}"),
    }
}

/// Keys of the merged model that a checkpoint has something for.
pub fn slot_keys(checkpoint: &Checkpoint, layout: &dyn Layout) -> BTreeSet<String> {
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
fn sizes_are_read_off_the_tensors() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    // fixtures/config.json
    let expected = Dimensions {
        stacks: vec![Stack {
            name: "blocks",
            n_blocks: 12,
            width: 24,
            n_heads: Some(3),
            ffn_width: Some(96),
        }],
        fusion_start: Some(10),
        patch_size: Some(16),
        image_size: Some(48),
        text_len: Some(12),
        text_table_len: Some(16),
        vocabulary: Some(101),
        n_token_types: Some(3),
        joint_width: None,
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
    assert_eq!(dimensions.n_heads(), Some(3));
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
    assert_eq!(
        (slot.block, slot.kind),
        (Some(BlockId::only(3)), ParamKind::Bias)
    );

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
fn gram_names_of_each_task_are_those_of_the_published_files() {
    let (all_moe, layout) = detected("ckpt/all_moe.safetensors");
    for (file, task) in [
        ("irtr", Task::Retrieval),
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
                names.extend(layout.gram_key(&slot, Some(expert)));
            }
        }
        let grams = fixture(&format!("merge/gram_{file}.safetensors"));
        let published: BTreeSet<String> =
            grams.tensors().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, published, "{file}");
    }
}

#[test]
fn flags_and_recipes_have_the_same_names_of_tasks() {
    for task in Task::ALL {
        for name in [task.name()].iter().chain(task.aliases()) {
            assert_eq!(Task::of(name), Some(task), "{name}");
            let read: Task = serde_json::from_value((*name).into()).expect("a task");
            assert_eq!(read, task, "{name}");
        }
        assert_eq!(
            serde_json::to_value(task).expect("a name"),
            task.name(),
            "a recipe is written with the first name"
        );
    }
    assert_eq!(Task::of("captions"), None);
}

#[test]
fn tasks_use_the_published_experts() {
    let (_, layout) = detected("ckpt/all_moe.safetensors");
    let block = BlockId::only;
    assert_eq!(layout.block_experts(block(9)), [Vision, Language]);
    assert_eq!(
        layout.block_experts(block(10)),
        [Vision, Language, VisionLanguage]
    );
    for task in [Task::Retrieval, Task::Vqa, Task::Nlvr2] {
        assert_eq!(layout.used_experts(task, block(9)), [Vision, Language]);
    }
    assert_eq!(
        layout.used_experts(Task::Retrieval, block(10)),
        [Vision, Language]
    );
    assert_eq!(layout.used_experts(Task::Vqa, block(11)), [VisionLanguage]);
    assert_eq!(
        layout.used_experts(Task::Nlvr2, block(10)),
        [VisionLanguage]
    );
}
