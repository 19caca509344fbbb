//! Language models of Megatron under the names of transformers. The outputs of transformers for the folders are compared in
//! `tests/megatron_shards.py`.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use merge::beside::Content;
use merge::convert::{Conversion, RunArguments, Spelling};
use merge::execute::{RunOptions, in_memory};
use merge::io::{OpenOptions, open};
use merge::layouts::detect;
use merge::progress::Silent;
use merge::{Checkpoint, ConversionFault, Error, MergePlan};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pickled::{Py, dict, floats, text, torch_file};

/// Sizes: 4 heads in 2 groups, each 2 wide, of a hidden width of 8; a network 6 wide; 12 rows for 10 tokens.
const HIDDEN: usize = 8;

/// Tensors and arguments of a run.
struct Run {
    tensors: Vec<(String, Vec<usize>)>,
    arguments: Vec<(&'static str, Py)>,
}

impl Run {
    fn new() -> Self {
        let mut tensors = vec![
            (
                "embedding.word_embeddings.weight".to_owned(),
                vec![12, HIDDEN],
            ),
            ("decoder.final_layernorm.weight".to_owned(), vec![HIDDEN]),
            ("output_layer.weight".to_owned(), vec![12, HIDDEN]),
        ];
        for layer in 0..2 {
            let of_layer: [(&str, &[usize]); 7] = [
                ("input_layernorm.weight", &[HIDDEN]),
                ("self_attention.linear_qkv.weight", &[16, HIDDEN]),
                ("self_attention.linear_qkv.bias", &[16]),
                ("self_attention.linear_proj.weight", &[HIDDEN, 8]),
                ("mlp.linear_fc1.layer_norm_weight", &[HIDDEN]),
                ("mlp.linear_fc1.weight", &[12, HIDDEN]),
                ("mlp.linear_fc2.weight", &[HIDDEN, 6]),
            ];
            let of_layer = of_layer.iter();
            tensors.extend(
                of_layer.map(|(name, shape)| {
                    (format!("decoder.layers.{layer}.{name}"), shape.to_vec())
                }),
            );
        }
        let arguments = vec![
            ("num_attention_heads", Py::Integer(4)),
            ("group_query_attention", Py::Bool(true)),
            ("num_query_groups", Py::Integer(2)),
            ("swiglu", Py::Bool(true)),
            ("normalization", text("RMSNorm")),
            ("position_embedding_type", text("rope")),
            ("rotary_base", Py::Integer(500_000)),
            ("norm_epsilon", Py::Float(1e-6)),
            ("max_position_embeddings", Py::Integer(64)),
            ("vocab_size", Py::None),
        ];
        Self { tensors, arguments }
    }

    fn set(mut self, name: &'static str, value: Py) -> Self {
        self.arguments.retain(|(known, _)| *known != name);
        self.arguments.push((name, value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.arguments.retain(|(known, _)| *known != name);
        self
    }

    /// The folder of the only rank. Element `i` of each tensor is `i`.
    fn written(&self) -> TempDir {
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join("mp_rank_00");
        fs::create_dir(&folder).expect("made");
        let model = self.tensors.iter().map(|(name, shape)| {
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..n).map(|element| element as f32).collect();
            (name.clone(), floats(&values, shape))
        });
        let arguments = self.arguments.iter();
        let arguments = arguments.map(|(name, value)| ((*name).to_owned(), value.clone()));
        let root = dict([
            ("model", Py::Dict(model.collect())),
            ("args", Py::Namespace(arguments.collect())),
            ("checkpoint_version", Py::Float(3.0)),
        ]);
        fs::write(folder.join("model_optim_rng.pt"), torch_file(&root)).expect("written");
        home
    }

    fn plan(&self, given: &[&str]) -> Result<Planned, Error> {
        let home = self.written();
        let plan = plan(home.path(), given)?;
        Ok(Planned { plan, _home: home })
    }
}

/// A plan, with the files that it reads when it runs.
struct Planned {
    plan: MergePlan,
    _home: TempDir,
}

impl Deref for Planned {
    type Target = MergePlan;

    fn deref(&self) -> &MergePlan {
        &self.plan
    }
}

fn plan(folder: &Path, given: &[&str]) -> Result<MergePlan, Error> {
    let source = open(folder, &OpenOptions::default())?;
    let conversion = Conversion {
        spelling: Some(Spelling::LanguageModel),
        run_arguments: RunArguments::parse(given)?,
        is_folder: true,
        ..Conversion::default()
    };
    let layout = detect(&source)?;
    conversion.plan(Arc::new(source), layout.as_ref())
}

fn made(plan: &MergePlan) -> Checkpoint {
    in_memory(plan, &RunOptions::default(), &Silent).expect("it runs")
}

fn floats_of(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.read_all(name).expect(name);
    let floats = bytes.chunks_exact(4);
    floats
        .map(|four| f32::from_le_bytes(four.try_into().expect("four")))
        .collect()
}

/// The elements of some rows, each `width` wide.
fn rows(width: usize, rows: impl IntoIterator<Item = usize>) -> Vec<f32> {
    let of_row = |row: usize| (row * width..(row + 1) * width).map(|element| element as f32);
    rows.into_iter().flat_map(of_row).collect()
}

fn config(plan: &MergePlan) -> Value {
    let files = &plan.beside().files;
    let file = files
        .iter()
        .find(|file| file.name == "config.json")
        .expect("there");
    match &file.content {
        Content::Text(text) => serde_json::from_str(text).expect("JSON"),
        Content::Copy(path) => panic!("{}", path.display()),
    }
}

fn fault(result: Result<Planned, Error>) -> ConversionFault {
    match result {
        Ok(_) => panic!("it was converted"),
        Err(Error::Conversion(fault)) => fault,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn queries_keys_and_values_of_each_group_come_apart() {
    let model = made(&Run::new().plan(&[]).expect("planned"));
    let attention = |name: &str| format!("model.layers.1.self_attn.{name}");
    // A group has the rows of two heads of queries, of one of keys, and of one of values, each of two rows.
    for (name, wanted) in [
        ("q_proj", vec![0, 1, 2, 3, 8, 9, 10, 11]),
        ("k_proj", vec![4, 5, 12, 13]),
        ("v_proj", vec![6, 7, 14, 15]),
    ] {
        let weight = attention(&format!("{name}.weight"));
        assert_eq!(
            model.get(&weight).expect(name).shape,
            [wanted.len(), HIDDEN]
        );
        assert_eq!(
            floats_of(&model, &weight),
            rows(HIDDEN, wanted.clone()),
            "{name}"
        );
        let bias = attention(&format!("{name}.bias"));
        assert_eq!(floats_of(&model, &bias), rows(1, wanted), "{name}");
    }
    let network = |name: &str| floats_of(&model, &format!("model.layers.0.mlp.{name}.weight"));
    assert_eq!(network("gate_proj"), rows(HIDDEN, 0..6));
    assert_eq!(network("up_proj"), rows(HIDDEN, 6..12));
    assert_eq!(network("down_proj"), rows(6, 0..HIDDEN));
    let names: Vec<&str> = model.tensors().map(|(name, _)| name).collect();
    // Three of the model. Of each layer: three weights and three biases of attention, its output, three of the network, two norms.
    assert_eq!(names.len(), 3 + 2 * 12, "{names:?}");
    assert!(names.contains(&"model.layers.1.post_attention_layernorm.weight"));
}

#[test]
fn rows_that_fill_up_the_vocabulary_are_cut() {
    let plan = Run::new().plan(&["vocab_size=10"]).expect("planned");
    let model = made(&plan);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(model.get(name).expect(name).shape, [10, HIDDEN]);
        assert_eq!(floats_of(&model, name), rows(HIDDEN, 0..10));
    }
    assert_eq!(config(&plan)["vocab_size"], 10);
    // Without the size all rows stay, and a note says so.
    let plan = Run::new().plan(&[]).expect("planned");
    assert_eq!(config(&plan)["vocab_size"], 12);
    assert!(
        plan.beside()
            .notes
            .iter()
            .any(|note| note.contains("vocab_size=N"))
    );
    let said = fault(Run::new().plan(&["vocab_size=13"]));
    assert!(matches!(said, ConversionFault::Parts { .. }), "{said}");
}

#[test]
fn the_configuration_is_that_of_the_run() {
    let config = config(&Run::new().plan(&[]).expect("planned"));
    for (key, wanted) in [
        ("architectures", json!(["Qwen2ForCausalLM"])),
        ("model_type", json!("qwen2")),
        ("head_dim", json!(2)),
        ("hidden_size", json!(8)),
        ("intermediate_size", json!(6)),
        ("max_position_embeddings", json!(64)),
        ("num_attention_heads", json!(4)),
        ("num_hidden_layers", json!(2)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1e-6)),
        ("rope_theta", json!(500_000.0)),
        ("tie_word_embeddings", json!(false)),
        ("torch_dtype", json!("float32")),
    ] {
        assert_eq!(config[key], wanted, "{key}");
    }
    let mut llama = Run::new();
    llama
        .tensors
        .retain(|(name, _)| !name.ends_with(".bias") && name != "output_layer.weight");
    let config = self::config(&llama.plan(&[]).expect("planned"));
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["attention_bias"], false);
    assert_eq!(config["tie_word_embeddings"], true);
}

#[test]
fn a_missing_argument_is_named_with_the_flag_that_gives_it() {
    for name in [
        "num_attention_heads",
        "num_query_groups",
        "swiglu",
        "rotary_base",
        "norm_epsilon",
    ] {
        let said = fault(Run::new().without(name).plan(&[]));
        assert!(
            said.to_string()
                .contains(&format!("--run-arg {name}=VALUE")),
            "{said}"
        );
    }
    let run = Run::new().without("num_query_groups");
    assert!(run.plan(&["num_query_groups=2"]).is_ok());
    // The facts in the files stand.
    let said = fault(Run::new().plan(&["num_query_groups=4"]));
    assert!(
        matches!(&said, ConversionFault::OtherArgument { name, .. } if name == "num_query_groups"),
        "{said}"
    );
    assert!(Run::new().plan(&["num_query_groups=2"]).is_ok());
}

#[test]
fn models_that_transformers_lacks_are_refused_by_their_cause() {
    for (name, value, shown) in [
        ("swiglu", Py::Bool(false), "false"),
        ("normalization", text("LayerNorm"), "LayerNorm"),
        (
            "position_embedding_type",
            text("learned_absolute"),
            "learned_absolute",
        ),
        ("rotary_percent", Py::Float(0.5), "0.5"),
        ("rotary_interleaved", Py::Bool(true), "true"),
    ] {
        let said = fault(Run::new().set(name, value).plan(&[]));
        assert!(
            said.to_string().contains(&format!("{name}={shown}")),
            "{said}"
        );
    }
    assert!(
        Run::new()
            .set("rotary_percent", Py::Float(1.0))
            .plan(&[])
            .is_ok()
    );
    let mut other = Run::new();
    other
        .tensors
        .push(("decoder.layers.0.mlp.extra.weight".into(), vec![2, 2]));
    let said = fault(other.plan(&[]));
    assert!(
        matches!(&said, ConversionFault::NoCounterpart { key, .. } if key.ends_with("extra.weight")),
        "{said}"
    );
    let mut biased = Run::new();
    biased
        .tensors
        .push(("decoder.final_layernorm.bias".into(), vec![HIDDEN]));
    let said = fault(biased.plan(&[]));
    assert!(said.to_string().contains("RMSNorm"), "{said}");
    // Sizes that are not those of the heads.
    for (name, value) in [
        ("num_attention_heads", 8),
        ("num_query_groups", 3),
        ("kv_channels", 4),
    ] {
        let said = fault(Run::new().set(name, Py::Integer(value)).plan(&[]));
        assert!(
            matches!(
                said,
                ConversionFault::Parts { .. } | ConversionFault::UnfitArgument { .. }
            ),
            "{name}: {said}"
        );
    }
}
