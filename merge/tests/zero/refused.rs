//! Checkpoints that are refused, each by its own fault.

use super::*;

#[test]
fn a_tag_is_found_by_latest_and_never_outside() {
    let home = by_groups(2);
    write_by_groups(&home.path().join("global_step9"), 1);
    let notes = opened(home.path()).notes().join("\n");
    assert!(notes.contains("global_step9"), "{notes}");
    let latest = home.path().join("latest");
    for tag in ["../elsewhere", "/etc", "global_step2/../../x"] {
        fs::write(&latest, tag).expect("written");
        let said = fault(home.path());
        let is_outside =
            matches!(&said, Error::Trainer(f) if matches!(**f, TrainerFault::OutsideFolder { .. }));
        assert!(is_outside, "{tag}: {said}");
    }
    fs::write(&latest, "global_step7").expect("written");
    match zero_fault(home.path()) {
        ZeroFault::NoSuchTag { tag, found, .. } => {
            assert_eq!((&tag[..], found.len()), ("global_step7", 2));
        }
        other => panic!("{other}"),
    }
    for text in ["", " \n", "\u{0}"] {
        fs::write(&latest, text).expect("written");
        assert!(
            matches!(zero_fault(home.path()), ZeroFault::BadLatest { .. }),
            "{text:?}"
        );
    }
    fs::write(&latest, "x".repeat(1 << 20)).expect("written");
    assert!(matches!(
        zero_fault(home.path()),
        ZeroFault::BadLatest { .. }
    ));
    // Without the file a single tag is the model, and several are not.
    fs::remove_file(&latest).expect("removed");
    let said = fault(home.path()).to_string();
    assert!(
        said.contains("global_step2") && said.contains("global_step9"),
        "{said}"
    );
    fs::remove_dir_all(home.path().join("global_step9")).expect("removed");
    is_the_model(&opened(home.path()));
}

#[cfg(unix)]
#[test]
fn a_planted_link_is_not_followed() {
    let home = by_groups(2);
    let outside = tempfile::tempdir().expect("a folder");
    let file = home.path().join("global_step2").join(optimizer_file(1));
    let moved = outside.path().join("states.pt");
    fs::rename(&file, &moved).expect("moved");
    std::os::unix::fs::symlink(&moved, &file).expect("linked");
    let said = fault(home.path()).to_string();
    assert!(
        said.contains("not in its folder") && said.contains("rank_1_"),
        "{said}"
    );
    // Nor one in place of a tag.
    let tag = home.path().join("global_step2");
    fs::rename(&tag, outside.path().join("tag")).expect("moved");
    std::os::unix::fs::symlink(outside.path().join("tag"), &tag).expect("linked");
    fs::write(home.path().join("zero_to_fp32.py"), "").expect("written");
    let said = fault(home.path()).to_string();
    assert!(said.contains("not in its folder"), "{said}");
}

#[test]
fn a_missing_rank_is_named() {
    for (home, states) in [(by_groups(3), "optimizer"), (by_parameters(3), "optimizer")] {
        for rank in [0, 1, 2] {
            let file = home.path().join("global_step2").join(optimizer_file(rank));
            let bytes = fs::read(&file).expect("it is there");
            fs::remove_file(&file).expect("removed");
            match zero_fault(home.path()) {
                ZeroFault::MissingRank {
                    file: name,
                    states: of,
                    rank: found,
                    ..
                } => assert_eq!((name, of, found), (optimizer_file(rank), states, rank)),
                other => panic!("{other}"),
            }
            fs::write(&file, bytes).expect("written");
        }
    }
    // Weights that are not updated are in the model states of every rank.
    let home = by_parameters(3);
    for rank in [2, 0] {
        fs::remove_file(home.path().join("global_step2").join(model_file(rank))).expect("removed");
        match zero_fault(home.path()) {
            ZeroFault::MissingRank {
                states: "model",
                rank: found,
                ..
            } => assert_eq!(found, rank),
            other => panic!("{other}"),
        }
    }
    let home = by_groups(2);
    fs::remove_file(home.path().join("global_step2/mp_rank_00_model_states.pt")).expect("removed");
    let said = zero_fault(home.path());
    assert!(
        matches!(
            said,
            ZeroFault::MissingRank {
                states: "model",
                ..
            }
        ),
        "{said}"
    );
    let home = by_groups(1);
    fs::remove_file(home.path().join("global_step2").join(optimizer_file(0))).expect("removed");
    let said = zero_fault(home.path());
    assert!(
        matches!(
            said,
            ZeroFault::MissingRank {
                states: "optimizer",
                rank: 0,
                ..
            }
        ),
        "{said}"
    );
}

#[test]
fn ranks_of_another_run_are_refused() {
    let home = by_groups(3);
    let tag = home.path().join("global_step2");
    let other = by_groups(2);
    let from = other.path().join("global_step2").join(optimizer_file(1));
    fs::copy(&from, tag.join(optimizer_file(1))).expect("copied");
    match zero_fault(home.path()) {
        ZeroFault::OtherWorld {
            path,
            found,
            world: 3,
        } => {
            assert_eq!(&found, "2");
            assert!(path.ends_with(optimizer_file(1)));
        }
        said => panic!("{said}"),
    }
    // One rank too many.
    let home = by_groups(2);
    let tag = home.path().join("global_step2");
    fs::copy(tag.join(optimizer_file(1)), tag.join(optimizer_file(2))).expect("copied");
    let said = zero_fault(home.path());
    assert!(
        matches!(said, ZeroFault::OtherWorld { world: 2, .. }),
        "{said}"
    );
    // A file of the stage that splits otherwise.
    let home = by_groups(2);
    let tag = home.path().join("global_step2");
    let from = by_parameters(2);
    fs::copy(
        from.path().join("global_step2").join(optimizer_file(1)),
        tag.join(optimizer_file(1)),
    )
    .expect("copied");
    let said = zero_fault(home.path());
    assert!(matches!(said, ZeroFault::OtherWorld { .. }), "{said}");
    // Two of one rank.
    let home = by_groups(2);
    let tag = home.path().join("global_step2");
    let name = "zero_pp_rank_1_mp_rank_00_optim_states.pt";
    fs::copy(tag.join(optimizer_file(1)), tag.join(name)).expect("copied");
    let said = zero_fault(home.path());
    assert!(
        matches!(said, ZeroFault::TwoFiles { rank: 1, .. }),
        "{said}"
    );
}

#[test]
fn other_kinds_of_parallelism_are_refused_by_name() {
    for name in [
        "layer_0_expert_1_mp_rank_00_model_states.pt",
        "expp_rank_0_mp_rank_00_optim_states.pt",
        "layer_01-model_00-model_states.pt",
        "mp_rank_01_model_states.pt",
        "zero_pp_rank_0_mp_rank_01_optim_states.pt",
    ] {
        let home = by_groups(2);
        let tag = home.path().join("global_step2");
        fs::copy(tag.join(optimizer_file(0)), tag.join(name)).expect("copied");
        match zero_fault(home.path()) {
            ZeroFault::OtherParallelism { path, .. } => assert!(path.ends_with(name)),
            said => panic!("{name}: {said}"),
        }
    }
    // Groups over differently many ranks are of experts.
    let home = by_groups(2);
    let counts = Py::List(vec![Py::Integer(2), Py::Integer(1)]);
    let states = optimizer(OF_GROUPS, counts, parts_of_groups(2).remove(0));
    write(
        &home.path().join("global_step2").join(optimizer_file(0)),
        &states,
    );
    let said = zero_fault(home.path());
    assert!(matches!(said, ZeroFault::OtherParallelism { .. }), "{said}");
}

#[test]
fn a_file_of_a_rank_does_not_pass_for_the_model() {
    let home = by_parameters(2);
    let tag = home.path().join("global_step2");
    for name in [optimizer_file(0), model_file(0)] {
        let said = fault(&tag.join(name));
        let is_part =
            matches!(&said, Error::Trainer(f) if matches!(**f, TrainerFault::OnePart { .. }));
        assert!(is_part, "{said}");
    }
}

/// Writes another first file of the optimizer into a checkpoint of two ranks.
fn with_optimizer(home: &TempDir, key: &str, world: Py, groups: Vec<Py>) {
    let file = home.path().join("global_step2").join(optimizer_file(0));
    write(&file, &optimizer(key, world, groups));
}

#[test]
fn lies_on_counts_are_refused() {
    for world in [
        Py::Integer(0),
        Py::Integer(-1),
        Py::None,
        text("2"),
        Py::List(Vec::new()),
    ] {
        let home = by_groups(2);
        with_optimizer(&home, OF_GROUPS, world, parts_of_groups(2).remove(0));
        let said = zero_fault(home.path());
        assert!(matches!(said, ZeroFault::BadEntry { .. }), "{said}");
    }
    let home = by_groups(2);
    with_optimizer(
        &home,
        OF_GROUPS,
        Py::Integer(1 << 60),
        parts_of_groups(2).remove(0),
    );
    let said = zero_fault(home.path());
    assert!(
        matches!(
            said,
            ZeroFault::OtherWorld { .. } | ZeroFault::MissingRank { .. }
        ),
        "{said}"
    );
    // Fewer groups than are described, more, and none.
    for n in [0, 1, 3] {
        let home = by_groups(2);
        let mut parts = parts_of_groups(2).remove(0);
        parts.resize(n, floats(&[0.0; 4], &[4]));
        with_optimizer(&home, OF_GROUPS, Py::Integer(2), parts);
        let said = zero_fault(home.path());
        assert!(matches!(said, ZeroFault::GroupCount { .. }), "{n}: {said}");
    }
    // Something else than tensors in the list.
    let home = by_groups(2);
    with_optimizer(
        &home,
        OF_GROUPS,
        Py::Integer(2),
        vec![Py::Integer(1), Py::None],
    );
    assert!(matches!(
        zero_fault(home.path()),
        ZeroFault::BadEntry { .. }
    ));
    let home = by_groups(2);
    with_optimizer(&home, "nothing", Py::Integer(2), Vec::new());
    assert!(matches!(
        zero_fault(home.path()),
        ZeroFault::BadEntry { .. }
    ));
}

#[test]
fn weights_that_do_not_add_up_are_refused() {
    for n in [0, 8, 12, 64] {
        let home = by_groups(2);
        let mut parts = parts_of_groups(2).remove(0);
        parts[0] = floats(&vec![0.0; n], &[n]);
        with_optimizer(&home, OF_GROUPS, Py::Integer(2), parts);
        match zero_fault(home.path()) {
            ZeroFault::GroupSize {
                group: 0,
                found,
                wanted: 30,
                ..
            } => assert_eq!(found, n + 14),
            said => panic!("{said}"),
        }
        let home = by_parameters(2);
        with_optimizer(
            &home,
            OF_PARAMETERS,
            Py::Integer(2),
            vec![floats(&vec![0.0; n], &[n]), floats(&[0.0; 4], &[4])],
        );
        let said = zero_fault(home.path());
        assert!(matches!(said, ZeroFault::Share { rank: 0, .. }), "{said}");
    }
    // A rank in another precision.
    let home = by_groups(2);
    let parts = vec![brain_floats(&[0.0; 16], &[16]), floats(&[0.0; 6], &[6])];
    with_optimizer(&home, OF_GROUPS, Py::Integer(2), parts);
    let said = fault(home.path());
    assert!(
        matches!(said, Error::Assembly(ref fault) if matches!(**fault, AssemblyFault::OtherDtype { .. })),
        "{said}"
    );
}

/// A checkpoint of two ranks whose model states have other entries.
fn with_model(
    of: fn(usize) -> TempDir,
    file: &str,
    change: impl FnOnce(&mut Vec<(String, Py)>),
) -> TempDir {
    let home = of(2);
    let mut entries = common(&groups(), Vec::new());
    entries.retain(|(key, _)| key != "frozen_param_shapes");
    change(&mut entries);
    write(
        &home.path().join("global_step2").join(file),
        &Py::Dict(entries),
    );
    home
}

#[test]
fn what_model_states_say_is_compared_with_what_there_is() {
    let replaced = |key: &'static str, value: Py| {
        with_model(by_groups, "mp_rank_00_model_states.pt", move |entries| {
            entries.retain(|(name, _)| name != key);
            entries.push((key.into(), value));
        })
    };
    let shapes = |shape: Py| Py::List(vec![dict([("a", shape)]), dict([("b", size(&[11]))])]);
    for shape in [
        Py::Tuple(vec![Py::Integer(-1)]),
        Py::Tuple(vec![Py::Integer(1 << 40); 3]),
        Py::Tuple(vec![Py::Integer(1); 65]),
        text("30"),
        Py::None,
    ] {
        let home = replaced("param_shapes", shapes(shape));
        let said = zero_fault(home.path());
        assert!(matches!(said, ZeroFault::BadEntry { .. }), "{said}");
    }
    // More elements than all ranks have, and fewer.
    for n in [33, 26, 1 << 50] {
        let home = replaced("param_shapes", shapes(size(&[n])));
        let said = zero_fault(home.path());
        assert!(
            matches!(said, ZeroFault::GroupSize { group: 0, .. }),
            "{said}"
        );
    }
    for (key, value) in [
        ("module", Py::None),
        ("buffer_names", text("table")),
        ("buffer_names", Py::List(vec![Py::Integer(1)])),
        ("shared_params", Py::List(Vec::new())),
        ("shared_params", dict([("a", Py::Integer(1))])),
        ("param_shapes", Py::Integer(1)),
    ] {
        let said = zero_fault(replaced(key, value).path());
        assert!(matches!(said, ZeroFault::BadEntry { .. }), "{key}: {said}");
    }
    // One name for two parameters.
    let twice = Py::List(vec![dict([("a", size(&[30]))]), dict([("a", size(&[11]))])]);
    let said = fault(replaced("param_shapes", twice).path());
    assert!(matches!(said, Error::DuplicateKey { .. }), "{said}");
    let tied = dict([("scale", text("embed.weight"))]);
    let said = fault(replaced("shared_params", tied).path());
    assert!(matches!(said, Error::DuplicateKey { .. }), "{said}");
}

#[test]
fn names_that_are_repeated_take_no_memory() {
    // A list of 3,000 references to one text of 32 KiB.
    let text = "n".repeat(32 << 10);
    let mut list = b"](X".to_vec();
    list.extend((text.len() as u32).to_le_bytes());
    list.extend(text.bytes());
    list.extend(b"q\x07");
    list.extend(b"h\x07".repeat(3_000));
    list.push(b'e');
    let home = with_model(by_groups, "mp_rank_00_model_states.pt", |entries| {
        entries.retain(|(name, _)| name != "buffer_names");
        entries.push(("buffer_names".into(), Py::Raw(list)));
    });
    let said = zero_fault(home.path());
    assert!(matches!(said, ZeroFault::TooMuchMemory { .. }), "{said}");
}

#[test]
fn what_is_not_updated_must_be_there_in_stage_3() {
    type Entries = Vec<(String, Py)>;
    let with = |rank: usize, change: &dyn Fn(&mut Entries)| {
        let home = by_parameters(2);
        let mut entries = common(&groups(), Vec::new());
        let fragment = dict([("frozen", brain_floats(&[0.0; 4], &[4]))]);
        entries.push(("frozen_param_fragments".into(), fragment));
        change(&mut entries);
        write(
            &home.path().join("global_step2").join(model_file(rank)),
            &Py::Dict(entries),
        );
        home
    };
    for rank in [0, 1] {
        for fragment in [dict([("frozen", brain_floats(&[0.0; 3], &[3]))]), dict([])] {
            let home = with(rank, &|entries| {
                entries.retain(|(key, _)| key != "frozen_param_fragments");
                entries.push(("frozen_param_fragments".into(), fragment.clone()));
            });
            match zero_fault(home.path()) {
                ZeroFault::Share {
                    rank: found,
                    wanted: 4,
                    ..
                } => assert_eq!(found, rank),
                said => panic!("{said}"),
            }
        }
    }
    // A parameter of the module whose values are nowhere.
    let home = with(0, &|entries| {
        let module = dict([("lost.weight", brain_floats(&[], &[0]))]);
        entries.retain(|(key, _)| key != "module");
        entries.push(("module".into(), module));
    });
    match zero_fault(home.path()) {
        ZeroFault::NoValues { key, .. } => assert_eq!(key, "lost.weight"),
        said => panic!("{said}"),
    }
}
