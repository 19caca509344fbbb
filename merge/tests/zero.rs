//! Checkpoints of DeepSpeed: whole ones, and refused ones.

use std::fs;
use std::path::Path;

use merge::io::{OpenOptions, open};
use merge::{AssemblyFault, Checkpoint, DType, Error, TrainerFault, ZeroFault};
use tempfile::TempDir;

use crate::pickled::{Py, brain_floats, dict, floats, longs, size, text, torch_file};

/// A parameter with the values `first..`.
struct Parameter {
    name: &'static str,
    shape: &'static [usize],
    first: f32,
}

impl Parameter {
    fn n(&self) -> usize {
        self.shape.iter().product()
    }

    fn values(&self) -> Vec<f32> {
        (0..self.n())
            .map(|place| self.first + place as f32)
            .collect()
    }
}

const fn parameter(name: &'static str, shape: &'static [usize], first: f32) -> Parameter {
    Parameter { name, shape, first }
}

/// Two groups; nothing divides evenly.
fn groups() -> Vec<Vec<Parameter>> {
    vec![
        vec![
            parameter("embed.weight", &[5, 3], 100.0),
            parameter("scale", &[], 7.0),
            parameter("layer.weight", &[2, 7], 200.0),
        ],
        vec![parameter("layer.bias", &[11], 300.0)],
    ]
}

fn frozen() -> Parameter {
    // All of them are numbers of bf16.
    parameter("frozen", &[7], 16.0)
}

fn shapes(group: &[Parameter]) -> Py {
    Py::Dict(
        (group.iter())
            .map(|one| (one.name.to_owned(), size(one.shape)))
            .collect(),
    )
}

/// The common part of both kinds of model states: two buffers, one of which was computed in bf16.
fn common(groups: &[Vec<Parameter>], module: Vec<(&str, Py)>) -> Vec<(String, Py)> {
    let mut module: Vec<(String, Py)> = module
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    module.push(("table".into(), brain_floats(&[0.5, 2.0], &[2])));
    module.push(("steps".into(), longs(&[1 << 40], &[1])));
    let entries = [
        ("module", Py::Dict(module)),
        ("buffer_names", Py::List(vec![text("table"), text("steps")])),
        (
            "param_shapes",
            Py::List(groups.iter().map(|group| shapes(group)).collect()),
        ),
        (
            "shared_params",
            dict([("head.weight", text("embed.weight"))]),
        ),
        ("frozen_param_shapes", dict([("frozen", size(&[7]))])),
        ("ds_version", text("0.19.2")),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

fn write(path: &Path, root: &Py) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, torch_file(root)).expect("written");
}

/// The states of an optimizer, with groups under `key`.
fn optimizer(key: &str, world: Py, groups: Vec<Py>) -> Py {
    dict([
        (
            "optimizer_state_dict",
            dict([
                ("zero_stage", Py::Member(2)),
                ("partition_count", world),
                (key, Py::List(groups)),
            ]),
        ),
        ("ds_version", text("0.19.2")),
    ])
}

const OF_GROUPS: &str = "single_partition_of_fp32_groups";
const OF_PARAMETERS: &str = "fp32_flat_groups";

fn optimizer_file(rank: usize) -> String {
    format!("bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
}

fn model_file(rank: usize) -> String {
    format!("zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
}

/// The part of each group that each rank holds in stages 1 and 2: equal parts of the flat group, filled up to a multiple of
/// twice the number of ranks; of the last part the filling is cut off.
fn parts_of_groups(world: usize) -> Vec<Vec<Py>> {
    let cut = |group: &Vec<Parameter>| -> Vec<Py> {
        let flat: Vec<f32> = group.iter().flat_map(Parameter::values).collect();
        let whole = flat.len().div_ceil(2 * world) * 2 * world;
        let part = whole / world;
        let range =
            |rank: usize| (rank * part).min(flat.len())..((rank + 1) * part).min(flat.len());
        (0..world)
            .map(|rank| floats(&flat[range(rank)], &[range(rank).len()]))
            .collect()
    };
    let cuts: Vec<Vec<Py>> = groups().iter().map(cut).collect();
    (0..world)
        .map(|rank| cuts.iter().map(|cut| cut[rank].clone()).collect())
        .collect()
}

/// A parameter cut into equal shares, the last filled up with -1.
fn shares(parameter: &Parameter, world: usize) -> Vec<Vec<f32>> {
    let share = parameter.n().div_ceil(world);
    let mut values = parameter.values();
    values.resize(share * world, -1.0);
    values.chunks(share).map(<[f32]>::to_vec).collect()
}

/// A folder with `latest` and the tag `global_step2` of stage 1 or 2.
fn by_groups(world: usize) -> TempDir {
    let home = tempfile::tempdir().expect("a folder");
    write_by_groups(&home.path().join("global_step2"), world);
    fs::write(home.path().join("latest"), "global_step2\n").expect("written");
    home
}

fn write_by_groups(tag: &Path, world: usize) {
    let in_module = [
        ("embed.weight", brain_floats(&[0.0; 15], &[5, 3])),
        ("head.weight", brain_floats(&[0.0; 15], &[5, 3])),
        ("frozen", brain_floats(&frozen().values(), &[7])),
    ];
    let mut entries = common(&groups(), in_module.to_vec());
    let fragment = brain_floats(&frozen().values(), &[7]);
    entries.push((
        "frozen_param_fragments".into(),
        dict([("frozen", fragment)]),
    ));
    write(&tag.join("mp_rank_00_model_states.pt"), &Py::Dict(entries));
    for (rank, parts) in parts_of_groups(world).into_iter().enumerate() {
        let counts = Py::List(vec![Py::Integer(world as i64); 2]);
        write(
            &tag.join(optimizer_file(rank)),
            &optimizer(OF_GROUPS, counts, parts),
        );
    }
}

/// The same of stage 3.
fn by_parameters(world: usize) -> TempDir {
    let home = tempfile::tempdir().expect("a folder");
    let tag = home.path().join("global_step2");
    for rank in 0..world {
        let placeholders = [
            "embed.weight",
            "head.weight",
            "scale",
            "layer.weight",
            "layer.bias",
            "frozen",
        ];
        let module = placeholders.map(|name| (name, brain_floats(&[], &[0])));
        let mut entries = common(&groups(), module.to_vec());
        let share = &shares(&frozen(), world)[rank];
        let fragment = dict([("frozen", brain_floats(share, &[share.len()]))]);
        entries.push(("frozen_param_fragments".into(), fragment));
        write(&tag.join(model_file(rank)), &Py::Dict(entries));
        // Groups of the optimizer that cut through those of the parameters.
        let all = groups().into_iter().flatten();
        let flat: Vec<f32> = all
            .flat_map(|one| shares(&one, world)[rank].clone())
            .collect();
        let (one, other) = flat.split_at(3);
        let parts = vec![floats(one, &[one.len()]), floats(other, &[other.len()])];
        let states = optimizer(OF_PARAMETERS, Py::Integer(world as i64), parts);
        write(&tag.join(optimizer_file(rank)), &states);
    }
    fs::write(home.path().join("latest"), "global_step2").expect("written");
    home
}

fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default())
        .unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

fn f32s(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.read_all(name).expect("it reads");
    let (chunks, _) = bytes.as_chunks();
    chunks
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// Checks that a checkpoint is the model that all of these tests write.
fn is_the_model(checkpoint: &Checkpoint) {
    let mut names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "embed.weight",
            "frozen",
            "layer.bias",
            "layer.weight",
            "scale",
            "steps",
            "table"
        ]
    );
    for parameter in groups().iter().flatten() {
        let info = checkpoint.get(parameter.name).expect("it is there");
        assert_eq!((info.dtype, &info.shape[..]), (DType::F32, parameter.shape));
        assert_eq!(
            f32s(checkpoint, parameter.name),
            parameter.values(),
            "{}",
            parameter.name
        );
    }
    assert_eq!(checkpoint.name_of("head.weight"), "embed.weight");
    // Buffers of floats in full precision, whole numbers as they are.
    assert_eq!(f32s(checkpoint, "table"), [0.5, 2.0]);
    assert_eq!(
        checkpoint.read_all("steps").expect("it reads"),
        (1i64 << 40).to_le_bytes()
    );
    // A weight that is not updated has no other precision than the one it was computed in.
    assert_eq!(
        checkpoint.get("frozen").expect("it is there").dtype,
        DType::BF16
    );
    let wanted = frozen().values().into_iter();
    let bits: Vec<u8> = wanted
        .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    assert_eq!(checkpoint.read_all("frozen").expect("it reads"), bits);
}

fn fault(path: &Path) -> Error {
    match open(path, &OpenOptions::default()) {
        Ok(_) => panic!("{}: opened", path.display()),
        Err(fault) => fault,
    }
}

/// The fault of the checkpoint, if it is one of DeepSpeed's.
fn zero_fault(path: &Path) -> ZeroFault {
    match fault(path) {
        Error::Trainer(fault) => match *fault {
            TrainerFault::Zero(fault) => fault,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

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
