//! Checkpoints that open as the whole model.

use super::*;

#[test]
fn stages_1_and_2_are_one_model_whatever_the_number_of_ranks() {
    for world in [1, 2, 3, 5, 8] {
        let home = by_groups(world);
        is_the_model(&opened(home.path()));
        is_the_model(&opened(&home.path().join("global_step2")));
    }
}

#[test]
fn stage_3_is_one_model_whatever_the_number_of_ranks() {
    for world in [1, 2, 3, 5, 8, 20] {
        let home = by_parameters(world);
        is_the_model(&opened(home.path()));
        is_the_model(&opened(&home.path().join("global_step2")));
    }
}

#[test]
fn parts_of_tensors_are_read_from_any_element_on() {
    let home = by_parameters(3);
    let checkpoint = opened(home.path());
    let values = groups()[0][2].values();
    for first in 0..values.len() {
        for end in first + 1..=values.len() {
            let mut bytes = vec![0; 4 * (end - first)];
            checkpoint
                .read("layer.weight", first, &mut bytes)
                .expect("it reads");
            let wanted = values[first..end]
                .iter()
                .flat_map(|value| value.to_le_bytes());
            assert_eq!(bytes, wanted.collect::<Vec<_>>(), "{first}..{end}");
        }
    }
}

#[test]
fn the_file_that_loaders_look_for_goes_first() {
    let home = by_groups(2);
    let weights = dict([("w", floats(&[1.0], &[1]))]);
    write(&home.path().join("pytorch_model.bin"), &weights);
    let checkpoint = opened(home.path());
    assert_eq!(f32s(&checkpoint, "w"), [1.0]);
    assert!(
        checkpoint
            .notes()
            .iter()
            .any(|note| note.contains("DeepSpeed")),
        "{:?}",
        checkpoint.notes()
    );
}

#[test]
fn what_is_not_updated_in_stage_1_is_read_from_the_module() {
    let home = by_groups(2);
    let in_module = [("frozen", brain_floats(&frozen().values(), &[7]))];
    let mut entries = common(&groups(), in_module.to_vec());
    entries.retain(|(key, _)| key != "frozen_param_shapes");
    write(
        &home.path().join("global_step2/mp_rank_00_model_states.pt"),
        &Py::Dict(entries),
    );
    is_the_model(&opened(home.path()));
}

#[test]
fn old_versions_leave_ties_to_the_storages_and_one_group_without_a_list() {
    let home = by_groups(2);
    let tied = brain_floats(&[0.0; 15], &[5, 3]);
    let in_module = [("embed.weight", tied.clone()), ("head.weight", tied)];
    let mut entries = common(&[], in_module.to_vec());
    entries.retain(|(key, _)| {
        !matches!(
            &key[..],
            "shared_params" | "frozen_param_shapes" | "param_shapes"
        )
    });
    entries.push(("param_shapes".into(), shapes(&groups()[0])));
    let tag = home.path().join("global_step2");
    write(&tag.join("mp_rank_00_model_states.pt"), &Py::Dict(entries));
    for (rank, mut parts) in parts_of_groups(2).into_iter().enumerate() {
        parts.truncate(1);
        write(
            &tag.join(optimizer_file(rank)),
            &optimizer(OF_GROUPS, Py::Integer(2), parts),
        );
    }
    let checkpoint = opened(home.path());
    assert_eq!(checkpoint.name_of("head.weight"), "embed.weight");
    assert_eq!(f32s(&checkpoint, "head.weight"), groups()[0][0].values());
}

#[test]
fn the_prefix_of_lightning_is_taken_away() {
    let home = tempfile::tempdir().expect("a folder");
    let group = vec![parameter("_forward_module.a", &[2], 1.0)];
    let entries = dict([
        (
            "module",
            dict([("_forward_module.a", brain_floats(&[0.0; 2], &[2]))]),
        ),
        ("buffer_names", Py::List(Vec::new())),
        ("param_shapes", Py::List(vec![shapes(&group)])),
        (
            "shared_params",
            dict([("_forward_module.b", text("_forward_module.a"))]),
        ),
    ]);
    let tag = home.path().join("checkpoint");
    write(&tag.join("mp_rank_00_model_states.pt"), &entries);
    let states = optimizer(OF_GROUPS, Py::Integer(1), vec![floats(&[1.0, 2.0], &[2])]);
    write(&tag.join(optimizer_file(0)), &states);
    fs::write(home.path().join("latest"), "checkpoint").expect("written");
    let checkpoint = opened(home.path());
    assert_eq!(f32s(&checkpoint, "a"), [1.0, 2.0]);
    assert_eq!(checkpoint.name_of("b"), "a");
}

#[test]
fn a_run_without_zero_has_the_model_in_one_file() {
    let home = tempfile::tempdir().expect("a folder");
    let entries = dict([
        ("module", dict([("a", floats(&[3.0], &[1]))])),
        ("param_shapes", Py::None),
        ("optimizer", dict([("state", floats(&[9.0], &[1]))])),
    ]);
    write(
        &home.path().join("step/mp_rank_00_model_states.pt"),
        &entries,
    );
    fs::write(home.path().join("latest"), "step").expect("written");
    assert_eq!(f32s(&opened(home.path()), "a"), [3.0]);
    let file = home.path().join("step/mp_rank_00_model_states.pt");
    assert_eq!(f32s(&opened(&file), "a"), [3.0]);
    // Beside another tensor-parallel rank it is not all of the model.
    fs::copy(&file, file.with_file_name("mp_rank_01_model_states.pt")).expect("copied");
    let said = fault(&file);
    assert!(
        matches!(said, Error::Trainer(ref fault) if matches!(**fault, TrainerFault::OnePart { .. })),
        "{said}"
    );
}

/// A universal checkpoint out of one of stage 3.
fn universal() -> TempDir {
    let home = by_parameters(2);
    let tag = home.path().join("global_step2");
    for rank in [0, 1] {
        fs::remove_file(tag.join(optimizer_file(rank))).expect("removed");
    }
    for parameter in groups().iter().flatten() {
        let root = dict([
            ("param", floats(&parameter.values(), parameter.shape)),
            ("cat_dim", Py::Integer(0)),
        ]);
        write(
            &tag.join("zero").join(parameter.name).join("fp32.pt"),
            &root,
        );
    }
    home
}

#[test]
fn a_universal_checkpoint_has_a_file_for_each_parameter() {
    let home = universal();
    is_the_model(&opened(home.path()));
    let file = home.path().join("global_step2/zero/layer.bias/fp32.pt");
    write(&file, &dict([("param", floats(&[0.0; 12], &[12]))]));
    assert!(matches!(
        zero_fault(home.path()),
        ZeroFault::OtherShape { .. }
    ));
    write(&file, &dict([("weights", floats(&[0.0; 11], &[11]))]));
    assert!(matches!(
        zero_fault(home.path()),
        ZeroFault::BadEntry { .. }
    ));
    fs::remove_file(&file).expect("removed");
    let said = fault(home.path()).to_string();
    assert!(
        said.contains("layer.bias") && said.contains("missing"),
        "{said}"
    );
}
