//! Checkpoints that are refused, each by its own fault.

use super::*;

#[test]
fn a_rank_does_not_pass_for_the_model() {
    let home = written(RUN, &unchanged);
    let rank = home.path().join("iter_0000005/mp_rank_01_000");
    for path in [rank.clone(), rank.join("model_optim_rng.pt")] {
        let said = fault(&path);
        let is_part =
            matches!(&said, Error::Trainer(f) if matches!(**f, TrainerFault::OnePart { .. }));
        assert!(is_part, "{said}");
    }
    let run = Run {
        tensors: 1,
        stages: 1,
        ..RUN
    };
    let home = written(run, &unchanged);
    let rank = home.path().join("iter_0000005/mp_rank_00");
    is_the_model(&opened(&rank), run);
    is_the_model(&opened(&rank.join("model_optim_rng.pt")), run);
}

#[cfg(unix)]
#[test]
fn a_planted_link_is_not_followed() {
    let home = written(RUN, &unchanged);
    let outside = tempfile::tempdir().expect("a folder");
    let file = home
        .path()
        .join("iter_0000005/mp_rank_01_001/model_optim_rng.pt");
    fs::rename(&file, outside.path().join("states.pt")).expect("moved");
    std::os::unix::fs::symlink(outside.path().join("states.pt"), &file).expect("linked");
    let said = fault(home.path()).to_string();
    assert!(
        said.contains("not in its folder") && said.contains("mp_rank_01_001"),
        "{said}"
    );
}

#[test]
fn missing_ranks_and_those_of_another_run_are_refused() {
    for (tensor, stage) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let home = written(RUN, &unchanged);
        let folder = format!("iter_0000005/mp_rank_{tensor:02}_{stage:03}");
        fs::remove_dir_all(home.path().join(folder)).expect("removed");
        match megatron_fault(home.path()) {
            MegatronFault::MissingRank {
                tensor: t,
                stage: s,
                ..
            } => assert_eq!((t, s), (tensor, stage)),
            said => panic!("{said}"),
        }
    }
    let home = written(RUN, &unchanged);
    let iteration = home.path().join("iter_0000005");
    fs::create_dir(iteration.join("mp_rank_02_000")).expect("made");
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::OtherWorld { .. }
    ));
    fs::remove_dir(iteration.join("mp_rank_02_000")).expect("removed");
    fs::create_dir(iteration.join("mp_rank_0_0")).expect("made");
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::TwoFolders { .. }
    ));
    // A rank whose arguments say something else.
    let home = written(RUN, &|place, arguments, _| {
        if place == (1, 1) {
            arguments[0].1 = Py::Integer(4);
        }
    });
    match megatron_fault(home.path()) {
        MegatronFault::OtherWorld { path, found, .. } => {
            assert_eq!(found, [4, 2]);
            assert!(path.ends_with("mp_rank_01_001/model_optim_rng.pt"));
        }
        said => panic!("{said}"),
    }
}

#[test]
fn mixtures_of_experts_are_refused_by_name() {
    let with = |name: &str, size: i64| {
        written(RUN, &|_, arguments, _| {
            arguments.push((name.into(), Py::Integer(size)))
        })
    };
    let home = written(RUN, &|_, arguments, _| arguments[5].1 = Py::Integer(8));
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Experts { .. }
    ));
    assert!(matches!(
        megatron_fault(with("expert_model_parallel_size", 2).path()),
        MegatronFault::Experts { .. }
    ));
    let home = written(RUN, &|_, _, tensors| {
        tensors.push((
            "decoder.layers.0.mlp.router.weight".into(),
            floats(&[1.0], &[1]),
        ));
    });
    let said = megatron_fault(home.path()).to_string();
    assert!(said.contains("mlp.router.weight"), "{said}");
    let home = written(RUN, &unchanged);
    fs::create_dir(home.path().join("iter_0000005/mp_rank_00_000_001")).expect("made");
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Experts { .. }
    ));
}

#[test]
fn a_name_that_is_not_known_is_kept_only_if_all_ranks_agree() {
    let with = |value: fn(usize) -> f32| {
        written(RUN, &move |(rank, stage), _, tensors| {
            if stage == 0 {
                tensors.push((
                    "decoder.layers.0.mixer.in_proj.weight".into(),
                    floats(&[value(rank); 9], &[9]),
                ));
            }
        })
    };
    let home = with(|_| 1.0);
    assert!(
        opened(home.path())
            .get("decoder.layers.0.mixer.in_proj.weight")
            .is_some()
    );
    match megatron_fault(with(|rank| rank as f32).path()) {
        MegatronFault::UnknownSplit { key, files } => {
            assert_eq!(key, "decoder.layers.0.mixer.in_proj.weight");
            assert!(files[1].ends_with("mp_rank_01_000/model_optim_rng.pt"));
        }
        said => panic!("{said}"),
    }
}

/// Replaces a tensor of one rank, if it is there.
fn replace(tensors: &mut [(String, Py)], ending: &str, value: &Py) {
    for (name, tensor) in tensors {
        if name.ends_with(ending) {
            *tensor = value.clone();
        }
    }
}

#[test]
fn ranks_that_contradict_each_other_are_refused() {
    let with = |place: (usize, usize), ending: &'static str, value: Py| {
        written(RUN, &move |found, _, tensors| {
            if found == place {
                replace(tensors, ending, &value);
            }
        })
    };
    // All ranks have the same norm.
    let home = with(
        (1, 0),
        "0.self_attention.linear_qkv.layer_norm_weight",
        floats(&[0.0; HIDDEN], &[HIDDEN]),
    );
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Differs { .. }
    ));
    // The head of the last stage is the embeddings.
    let home = with(
        (1, 1),
        "output_layer.weight",
        floats(&[0.0; TOKENS / 2 * HIDDEN], &[TOKENS / 2, HIDDEN]),
    );
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Differs { .. }
    ));
    // The rows do not add up to those that the arguments say.
    let home = with(
        (1, 0),
        "word_embeddings.weight",
        floats(&[0.0; HIDDEN], &[1, HIDDEN]),
    );
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::OtherSize {
            argument: "padded_vocab_size",
            ..
        }
    ));
    let home = with(
        (1, 0),
        "0.mlp.linear_fc1.weight",
        floats(&[0.0; 2 * HIDDEN], &[2, HIDDEN]),
    );
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::OtherSize {
            argument: "ffn_hidden_size",
            ..
        }
    ));
    // A part that cannot be cut.
    let home = with(
        (1, 0),
        "0.self_attention.linear_proj.weight",
        floats(&[0.0; 8], &[8]),
    );
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::UnfitPart { .. }
    ));
    let other_width = floats(&[0.0; 12], &[3, 4]);
    let said = fault(with((1, 0), "0.self_attention.linear_proj.weight", other_width).path());
    assert!(matches!(said, Error::Assembly(_)), "{said}");
    // A name that one rank lacks, and one that only it has.
    for change in [0, 1] {
        let home = written(RUN, &move |place, _, tensors| {
            if place == (change, 0) {
                tensors.push(("decoder.extra.weight".into(), floats(&[0.0], &[1])));
            }
        });
        match megatron_fault(home.path()) {
            MegatronFault::MissingTensor { key, .. } => assert_eq!(key, "decoder.extra.weight"),
            said => panic!("{said}"),
        }
    }
}

#[test]
fn layers_that_do_not_add_up_are_refused() {
    let home = written(RUN, &|_, arguments, _| arguments[2].1 = Py::Integer(5));
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Layers { .. }
    ));
    let home = written(RUN, &|_, _, tensors| {
        tensors.push((
            "decoder.layers.7.mlp.linear_fc2.bias".into(),
            floats(&[0.0], &[1]),
        ));
    });
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::Layers { .. }
    ));
}

#[test]
fn how_a_model_is_split_is_not_guessed() {
    let run = Run { stages: 1, ..RUN };
    let home = tempfile::tempdir().expect("a folder");
    for rank in 0..2 {
        let tensors = dict([(
            "decoder.layers.0.mlp.linear_fc1.weight",
            floats(&[0.0; 8], &[4, 2]),
        )]);
        let root = dict([("model", tensors), ("checkpoint_version", Py::Float(3.0))]);
        let folder = home.path().join(format!("mp_rank_{rank:02}"));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("model_optim_rng.pt"), torch_file(&root)).expect("written");
    }
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::NoArguments { .. }
    ));
    let home = written(run, &|_, arguments, _| arguments[0].1 = text("two"));
    assert!(matches!(
        megatron_fault(home.path()),
        MegatronFault::BadEntry { .. }
    ));
}
