//! EVEs that begin as a BEiT.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::Raw;
use merge::convert::{BeitStart, EveStart};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, EveTask};
use merge::progress::Silent;
use merge::random::Draws;
use safetensors::Dtype;

use crate::eve::{opened, synthesis, tiny, write};

/// A BEiT with names as published, or with `transformer.` before them, and a number for each tensor.
fn beit(prefix: &str, with_positions: bool) -> BTreeMap<String, Raw> {
    let (width, ffn, side) = (8, 16, 3);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("cls_token".into(), vec![1, 1, width]),
        ("mask_token".into(), vec![1, 1, width]),
        ("patch_embed.proj.weight".into(), vec![width, 3, 4, 4]),
        ("patch_embed.proj.bias".into(), vec![width]),
        (
            "rel_pos_bias.relative_position_bias_table".into(),
            vec![(2 * side - 1) * (2 * side - 1) + 3, 2],
        ),
        ("norm.weight".into(), vec![width]),
        ("norm.bias".into(), vec![width]),
        ("lm_head.weight".into(), vec![5, width]),
        ("lm_head.bias".into(), vec![5]),
    ];
    if with_positions {
        shapes.push(("pos_embed".into(), vec![1, side * side + 1, width]));
    }
    for block in 0..4 {
        for (name, shape) in [
            ("gamma_1", vec![width]),
            ("gamma_2", vec![width]),
            ("norm1.weight", vec![width]),
            ("norm1.bias", vec![width]),
            ("attn.q_bias", vec![width]),
            ("attn.v_bias", vec![width]),
            ("attn.qkv.weight", vec![3 * width, width]),
            ("attn.proj.weight", vec![width, width]),
            ("attn.proj.bias", vec![width]),
            ("norm2.weight", vec![width]),
            ("norm2.bias", vec![width]),
            ("mlp.fc1.weight", vec![ffn, width]),
            ("mlp.fc1.bias", vec![ffn]),
            ("mlp.fc2.weight", vec![width, ffn]),
            ("mlp.fc2.bias", vec![width]),
        ] {
            shapes.push((format!("blocks.{block}.{name}"), shape));
        }
    }
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let mut values = vec![0.0; shape.iter().product()];
        Draws::new(3, &name).add_normal(1.0, 0, &mut values);
        let raw = Raw {
            dtype: Dtype::F32,
            bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
            shape,
        };
        (format!("{prefix}{name}"), raw)
    });
    tensors.collect()
}

fn of_beit() -> BeitStart {
    BeitStart {
        mixtures: Some(2..4),
        n_experts: Some(3),
        vocabulary: Some(50),
    }
}

#[test]
fn an_eve_begins_as_a_beit_whose_network_is_that_of_each_modality_and_expert() {
    let folder = tempfile::tempdir().expect("a folder");
    for (prefix, with_positions) in [("", false), ("transformer.", true)] {
        let tensors = beit(prefix, with_positions);
        let path = folder
            .path()
            .join(format!("beit{with_positions}.safetensors"));
        fixtures::write(&path, &tensors);
        let start = EveStart {
            of_beit: of_beit(),
            image_size: Some(12),
            ..EveStart::of(EveTask::Pretrain)
        };
        let (plan, report) = start.plan(Arc::new(opened(&path))).expect("a plan");
        let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
        let layout = layouts::detect(&model).expect("a layout");
        assert_eq!(layout.name(), "eve/pretrain");
        assert_eq!(
            layout
                .dimensions()
                .only_stack()
                .and_then(|stack| stack.n_heads),
            Some(2)
        );
        let block = |at: usize, rest: &str| format!("backbone.encoder.layers.{at}.{rest}");
        let expert =
            |at: usize, rest: &str| block(3, &format!("mlp_moe.moe.experts.experts.{at}.{rest}"));
        let mut pairs = vec![
            (
                "backbone.class_embedding_vision".to_owned(),
                "cls_token".to_owned(),
            ),
            (
                "backbone.mask_embed_vision".to_owned(),
                "mask_token".to_owned(),
            ),
            (
                "backbone.patch_embed.weight".to_owned(),
                "patch_embed.proj.weight".to_owned(),
            ),
            ("backbone.norm.weight".to_owned(), "norm.weight".to_owned()),
            (block(0, "gamma_1"), "blocks.0.gamma_1".to_owned()),
            (
                block(1, "attn.qkv.weight"),
                "blocks.1.attn.qkv.weight".to_owned(),
            ),
            (
                block(1, "norm2_imag.bias"),
                "blocks.1.norm2.bias".to_owned(),
            ),
            (
                block(1, "norm2_text.bias"),
                "blocks.1.norm2.bias".to_owned(),
            ),
            (
                block(2, "norm2_vl.weight"),
                "blocks.2.norm2.weight".to_owned(),
            ),
        ];
        for rest in ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"] {
            for network in ["mlp_imag", "mlp_text"] {
                let name = block(0, &format!("{network}.{rest}"));
                pairs.push((name, format!("blocks.0.mlp.{rest}")));
            }
            pairs.extend((0..3).map(|at| (expert(at, rest), format!("blocks.3.mlp.{rest}"))));
        }
        if with_positions {
            let positions = "backbone.pos_embed_vision".to_owned();
            pairs.push((positions, "pos_embed".to_owned()));
        }
        for (name, from) in pairs {
            let from = &tensors[&format!("{prefix}{from}")];
            assert!(
                model.read_all(&name).expect("there") == from.bytes,
                "{name}"
            );
        }
        let drawn = |name: &str| report.missing.iter().any(|missing| missing == name);
        for name in [
            "backbone.word_embedding.weight",
            "backbone.pre_layrnorm.weight",
            &block(3, "mlp_moe.moe.gate.wg.weight"),
        ] {
            assert!(drawn(name), "{name}: {:?}", report.missing);
        }
        assert_eq!(drawn("backbone.pos_embed_vision"), !with_positions);
        let unexpected = [
            "lm_head.bias",
            "lm_head.weight",
            "rel_pos_bias.relative_position_bias_table",
        ];
        let unexpected = unexpected.map(|name| format!("{prefix}{name}"));
        assert_eq!(report.unexpected, unexpected);
    }
    // Positions for a larger picture.
    let path = folder.path().join("beittrue.safetensors");
    let start = EveStart {
        of_beit: of_beit(),
        image_size: Some(16),
        ..EveStart::of(EveTask::Retrieval)
    };
    let (plan, _) = start.plan(Arc::new(opened(&path))).expect("a plan");
    let positions = plan
        .entries()
        .iter()
        .find(|entry| entry.name == "backbone.pos_embed_vision");
    let positions = positions.expect("there");
    assert_eq!(positions.info.shape, [17, 8]);
    assert!(
        positions.why.contains("3x3 positions to 4x4"),
        "{}",
        positions.why
    );
}

#[test]
fn what_a_beit_leaves_open_must_be_said_and_nothing_else_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("beit.safetensors");
    fixtures::write(&path, &beit("", false));
    let fault = |path: &Path, of_beit: BeitStart| {
        let start = EveStart {
            of_beit,
            ..EveStart::of(EveTask::Pretrain)
        };
        start
            .plan(Arc::new(opened(path)))
            .err()
            .expect("refused")
            .to_string()
    };
    let said = fault(&path, BeitStart::default());
    assert!(said.contains("blocks with experts"), "{said}");
    let others = BeitStart {
        mixtures: Some(1..3),
        ..of_beit()
    };
    let said = fault(&path, others);
    assert!(said.contains("blocks 1..3 are not the last of 4"), "{said}");
    let path = folder.path().join("eve.safetensors");
    write(
        &synthesis(tiny(EveTask::Retrieval)).plan().expect("a plan"),
        &path,
    );
    let said = fault(&path, of_beit());
    assert!(said.contains("a BEiT can"), "{said}");
}
