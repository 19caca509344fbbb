//! Checkpoints of Megatron-LM. The tests write their files from a whole model, as Megatron splits it.

mod refused;
mod whole;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merge::io::{OpenOptions, open};
use merge::{Checkpoint, Error, MegatronFault, TrainerFault};
use tempfile::TempDir;

use crate::pickled::{Py, dict, floats, longs, text, torch_file};

/// A whole tensor.
#[derive(Clone, PartialEq, Debug)]
struct Whole {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Whole {
    fn rows(&self, ranges: &[std::ops::Range<usize>]) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let rows = ranges
            .iter()
            .flat_map(|range| &self.values[range.start * width..range.end * width]);
        let values: Vec<f32> = rows.copied().collect();
        let mut shape = self.shape.clone();
        shape[0] = values.len() / width;
        Self { shape, values }
    }

    fn columns(&self, range: std::ops::Range<usize>) -> Self {
        let rows = self.values.chunks(self.shape[1]);
        Self {
            shape: vec![self.shape[0], range.len()],
            values: rows.flat_map(|row| &row[range.clone()]).copied().collect(),
        }
    }

    fn pickled(&self) -> Py {
        floats(&self.values, &self.shape)
    }
}

/// How a run splits its model.
#[derive(Clone, Copy)]
struct Run {
    tensors: usize,
    stages: usize,
    /// Parts of a stage.
    turns: usize,
    is_gated: bool,
    is_tied: bool,
    is_legacy: bool,
    version: f64,
}

const RUN: Run = Run {
    tensors: 2,
    stages: 2,
    turns: 1,
    is_gated: true,
    is_tied: true,
    is_legacy: false,
    version: 3.0,
};

const HIDDEN: usize = 8;
const NETWORK: usize = 12;
const TOKENS: usize = 16;
const LAYERS: usize = 4;
/// 4 heads in 2 groups, of 2 channels each.
const QKV: usize = (4 + 2 * 2) * 2;

/// How a tensor is split.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Rows,
    /// Rows of each of a number of bands.
    Bands(usize),
    Columns,
    Same,
}

/// Names, shapes and cuts of a layer, without the prefix.
fn layer(run: Run) -> Vec<(&'static str, Vec<usize>, Cut)> {
    let (bands, halves) = match run.is_gated {
        true => (Cut::Bands(2), 2),
        false => (Cut::Rows, 1),
    };
    let qkv = if run.version < 1.0 {
        Cut::Bands(3)
    } else {
        Cut::Rows
    };
    let qkv_rows = if run.version < 1.0 { 3 * HIDDEN } else { QKV };
    let names = match run.is_legacy {
        true => [
            "input_layernorm.weight",
            "self_attention.query_key_value.weight",
            "self_attention.query_key_value.bias",
            "self_attention.dense.weight",
            "self_attention.dense.bias",
            "mlp.dense_h_to_4h.weight",
            "mlp.dense_4h_to_h.weight",
            "mlp.dense_4h_to_h.bias",
        ],
        false => [
            "self_attention.linear_qkv.layer_norm_weight",
            "self_attention.linear_qkv.weight",
            "self_attention.linear_qkv.bias",
            "self_attention.linear_proj.weight",
            "self_attention.linear_proj.bias",
            "mlp.linear_fc1.weight",
            "mlp.linear_fc2.weight",
            "mlp.linear_fc2.bias",
        ],
    };
    let kinds = [
        (vec![HIDDEN], Cut::Same),
        (vec![qkv_rows, HIDDEN], qkv),
        (vec![qkv_rows], qkv),
        (vec![HIDDEN, HIDDEN], Cut::Columns),
        (vec![HIDDEN], Cut::Same),
        (vec![halves * NETWORK, HIDDEN], bands),
        (vec![HIDDEN, NETWORK], Cut::Columns),
        (vec![HIDDEN], Cut::Same),
    ];
    let rows = names.into_iter().zip(kinds);
    rows.map(|(name, (shape, cut))| (name, shape, cut))
        .collect()
}

fn prefix(run: Run) -> &'static str {
    match run.is_legacy {
        true => "language_model.encoder.layers",
        false => "decoder.layers",
    }
}

fn name_of(run: Run, name: &'static str) -> String {
    match run.is_legacy {
        true => format!("language_model.{name}"),
        false => name.to_owned(),
    }
}

/// The whole model with the cut of each tensor, as a run on one rank has it.
fn model(run: Run) -> BTreeMap<String, (Whole, Cut)> {
    let mut first = 0.0;
    let mut tensor = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        first += 1000.0;
        Whole {
            shape: shape.to_vec(),
            values: (0..n).map(|place| first + place as f32).collect(),
        }
    };
    let mut model = BTreeMap::new();
    for number in 0..LAYERS {
        for (name, shape, cut) in layer(run) {
            let name = format!("{}.{number}.{name}", prefix(run));
            model.insert(name, (tensor(&shape), cut));
        }
    }
    let mut add = |name: String, shape: &[usize], cut| {
        model.insert(name, (tensor(shape), cut));
    };
    add(
        name_of(run, "embedding.word_embeddings.weight"),
        &[TOKENS, HIDDEN],
        Cut::Rows,
    );
    add(
        name_of(run, "embedding.position_embeddings.weight"),
        &[5, HIDDEN],
        Cut::Same,
    );
    let last = match run.is_legacy {
        true => "language_model.encoder.final_layernorm.weight",
        false => "decoder.final_layernorm.weight",
    };
    add(last.to_owned(), &[HIDDEN], Cut::Same);
    if !run.is_tied {
        add(
            name_of(run, "output_layer.weight"),
            &[TOKENS, HIDDEN],
            Cut::Rows,
        );
    }
    model
}

/// The part of a rank.
fn part(whole: &Whole, cut: Cut, rank: usize, ranks: usize) -> Whole {
    let share = |n: usize| n / ranks * rank..n / ranks * (rank + 1);
    match cut {
        Cut::Same => whole.clone(),
        Cut::Columns => whole.columns(share(whole.shape[1])),
        Cut::Rows => whole.rows(&[share(whole.shape[0])]),
        Cut::Bands(n) => {
            let band = whole.shape[0] / n;
            let of_band = share(band);
            let ranges: Vec<_> = (0..n)
                .map(|number| number * band + of_band.start..number * band + of_band.end)
                .collect();
            whole.rows(&ranges)
        }
    }
}

fn arguments(run: Run) -> Vec<(String, Py)> {
    let items = [
        (
            "tensor_model_parallel_size",
            Py::Integer(run.tensors as i64),
        ),
        (
            "pipeline_model_parallel_size",
            Py::Integer(run.stages as i64),
        ),
        ("num_layers", Py::Integer(LAYERS as i64)),
        ("padded_vocab_size", Py::Integer(TOKENS as i64)),
        ("ffn_hidden_size", Py::Integer(NETWORK as i64)),
        ("num_experts", Py::None),
        ("swiglu", Py::Bool(run.is_gated)),
        (
            "untie_embeddings_and_output_weights",
            Py::Bool(!run.is_tied),
        ),
        ("model_type", Py::Member(1)),
        ("params_dtype", Py::Raw(b"ctorch\nbfloat16\n".to_vec())),
    ];
    items.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The files of a rank, as its `change` makes them.
type Change<'a> = &'a dyn Fn((usize, usize), &mut Vec<(String, Py)>, &mut Vec<(String, Py)>);

/// Writes an iteration; `change` may change the arguments and the tensors of each rank's first part.
fn write(folder: &Path, run: Run, change: Change<'_>) {
    let model = model(run);
    let n_chunks = run.stages * run.turns;
    let of_chunk = LAYERS / n_chunks;
    for stage in 0..run.stages {
        for rank in 0..run.tensors {
            let mut arguments = arguments(run);
            let mut root = Vec::new();
            for turn in 0..run.turns {
                let chunk = turn * run.stages + stage;
                let mut tensors = Vec::new();
                for (name, (whole, cut)) in &model {
                    let piece = part(whole, *cut, rank, run.tensors);
                    let shown = match name.strip_prefix(prefix(run)) {
                        Some(rest) => {
                            let (number, rest) = rest[1..].split_once('.').expect("a number");
                            let number: usize = number.parse().expect("a number");
                            if number / of_chunk != chunk {
                                continue;
                            }
                            format!("{}.{}.{rest}", prefix(run), number % of_chunk)
                        }
                        None => {
                            let is_here = match name.contains("embeddings") {
                                true => chunk == 0,
                                false => chunk + 1 == n_chunks,
                            };
                            if name.contains("word_embeddings")
                                && run.is_tied
                                && chunk + 1 == n_chunks
                                && chunk > 0
                            {
                                let copy = match run.is_legacy {
                                    true => "word_embeddings_for_head.weight",
                                    false => "output_layer.weight",
                                };
                                tensors.push((copy.to_owned(), piece.pickled()));
                            }
                            if !is_here {
                                continue;
                            }
                            name.clone()
                        }
                    };
                    tensors.push((shown, piece.pickled()));
                }
                // The state that TransformerEngine keeps.
                tensors.push((
                    "decoder.layers.0.mlp.linear_fc1._extra_state".into(),
                    Py::Buffer,
                ));
                tensors.push((
                    "decoder.layers.0.mlp.linear_fc2._extra_state".into(),
                    longs(&[rank as i64], &[1]),
                ));
                if turn == 0 {
                    change((rank, stage), &mut arguments, &mut tensors);
                }
                let key = match run.turns {
                    1 => "model".to_owned(),
                    _ => format!("model{turn}"),
                };
                root.push((key, Py::Dict(tensors)));
            }
            root.push(("args".into(), Py::Namespace(arguments)));
            root.push(("checkpoint_version".into(), Py::Float(run.version)));
            root.push(("iteration".into(), Py::Integer(5)));
            root.push((
                "optimizer".into(),
                dict([("moments", floats(&[1.0; 3], &[3]))]),
            ));
            let name = match run.stages {
                1 => format!("mp_rank_{rank:02}"),
                _ => format!("mp_rank_{rank:02}_{stage:03}"),
            };
            let folder = folder.join(name);
            fs::create_dir_all(&folder).expect("made");
            fs::write(
                folder.join("model_optim_rng.pt"),
                torch_file(&Py::Dict(root)),
            )
            .expect("written");
        }
    }
}

fn unchanged(_: (usize, usize), _: &mut Vec<(String, Py)>, _: &mut Vec<(String, Py)>) {}

/// A folder with one iteration.
fn written(run: Run, change: Change<'_>) -> TempDir {
    let home = tempfile::tempdir().expect("a folder");
    write(&home.path().join("iter_0000005"), run, change);
    fs::write(home.path().join("latest_checkpointed_iteration.txt"), "5").expect("written");
    home
}

fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default())
        .unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

fn is_the_model(checkpoint: &Checkpoint, run: Run) {
    let model = model(run);
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, model.keys().collect::<Vec<_>>());
    for (name, (whole, _)) in &model {
        let info = checkpoint.get(name).expect("it is there");
        assert_eq!(info.shape, whole.shape, "{name}");
        let bytes = checkpoint.read_all(name).expect("it reads");
        let wanted: Vec<u8> = whole
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(bytes, wanted, "{name}");
    }
}

fn fault(path: &Path) -> Error {
    match open(path, &OpenOptions::default()) {
        Ok(_) => panic!("{}: opened", path.display()),
        Err(fault) => fault,
    }
}

fn megatron_fault(path: &Path) -> MegatronFault {
    match fault(path) {
        Error::Trainer(fault) => match *fault {
            TrainerFault::Megatron(fault) => fault,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}
