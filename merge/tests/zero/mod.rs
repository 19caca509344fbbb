//! Checkpoints of DeepSpeed. The tests write the files of each rank from a whole model, as DeepSpeed splits it.

mod refused;
mod whole;

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
