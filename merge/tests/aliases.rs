//! Tied tensors: several names of one tensor, through files of every kind and through merges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merge::convert::{Conversion, Wrapper};
use merge::diff::{DiffOptions, diff};
use merge::execute::{RunOptions, compare, execute, in_memory};
use merge::io::{ALIASES_KEY, Aliases, Contents, OpenOptions, WriteOptions, Writer, open};
use merge::lora::{ExtractOptions, ExtractTarget, extract};
use merge::low_rank::Truncation;
use merge::progress::Silent;
use merge::{
    Checkpoint, DType, Error, MergePlan, MergeRecipe, Role, SafetensorsFault, TensorInfo, layouts,
};

const WORDS: &str = "model.embed_tokens.weight";
/// Another name of [`WORDS`]; it sorts before it.
const HEAD: &str = "lm_head.weight";
const LAYERS: [&str; 2] = ["model.layers.0.mlp.weight", "model.layers.1.mlp.weight"];

/// A folder of small models.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A model whose words and head are one tensor, or two equal ones.
    fn model(&self, name: &str, first: f32, is_tied: bool) -> PathBuf {
        let path = self.path(name);
        let info = TensorInfo {
            dtype: DType::F32,
            shape: vec![4, 4],
        };
        let mut names = vec![WORDS, LAYERS[0], LAYERS[1]];
        let mut aliases = Aliases::new();
        match is_tied {
            true => drop(aliases.insert(HEAD.to_owned(), WORDS.to_owned())),
            false => names.push(HEAD),
        }
        names.sort_unstable();
        let tensors: Vec<_> = (names.iter())
            .map(|name| ((*name).to_owned(), info.clone()))
            .collect();
        let contents = Contents {
            tensors: &tensors,
            aliases: &aliases,
        };
        let none = BTreeMap::new();
        let writer = Writer::create_tied(contents, &none, &WriteOptions::new(&path));
        let writer = writer.expect("created");
        let values = (0..16).map(|index| first + (index as f32 * 0.7).sin());
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        for index in 0..tensors.len() {
            writer.write(index, 0, &bytes).expect("written");
        }
        writer.finish(&none).expect("in place");
        path
    }

    /// Base, first and second model, all tied.
    fn three(&self) -> [String; 3] {
        [("base", 0.0), ("a", 1.0), ("b", -2.0)].map(|(name, first)| {
            let path = self.model(&format!("{name}.safetensors"), first, true);
            path.display().to_string()
        })
    }

    fn plan(&self, recipe: &str) -> MergePlan {
        let recipe = MergeRecipe::parse(recipe, Path::new("test")).expect("valid");
        MergePlan::resolve(&recipe).expect("a plan").0
    }

    fn run(&self, plan: &MergePlan, name: &str) -> Checkpoint {
        self.run_into(plan, WriteOptions::new(self.path(name)));
        opened(&self.path(name))
    }

    fn run_into(&self, plan: &MergePlan, write: WriteOptions) {
        let write = WriteOptions {
            force: true,
            ..write
        };
        execute(plan, &write, &RunOptions::default(), &Silent).expect("it runs");
    }

    /// A safetensors file of the tensor `x` with the metadata.
    fn odd(&self, metadata: &[(&str, &str)]) -> PathBuf {
        let path = self.path("odd.safetensors");
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        let header = serde_json::json!({
            "__metadata__": metadata,
            "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        })
        .to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 8]);
        std::fs::write(&path, bytes).expect("written");
        path
    }
}

fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default()).expect("it opens")
}

/// The tensors, of which the head is another name of the words.
fn assert_tied(checkpoint: &Checkpoint) {
    let tie = (HEAD.to_owned(), WORDS.to_owned());
    assert_eq!(*checkpoint.aliases(), Aliases::from([tie]));
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, [WORDS, LAYERS[0], LAYERS[1]]);
    let read = |key| checkpoint.read_all(key).expect("it reads");
    assert_eq!(read(HEAD), read(WORDS));
}

fn converted(source: &Arc<Checkpoint>, conversion: &Conversion) -> MergePlan {
    let layout = layouts::detect(source).expect("a layout");
    let plan = conversion.plan(Arc::clone(source), layout.as_ref());
    plan.expect("a plan")
}

#[test]
fn tied_tensors_stay_one_tensor_from_safetensors_to_torch_and_back() {
    let folder = Folder::new();
    let source = Arc::new(opened(&folder.model("tied.safetensors", 1.0, true)));
    assert_tied(&source);
    let plan = converted(&source, &Conversion::default());
    assert_eq!(plan.entries().len(), 3);
    for name in ["model.ckpt", "model.pth", "again.safetensors"] {
        assert_tied(&folder.run(&plan, name));
    }
    // Back from a shared storage, and the data once.
    let torch = Arc::new(opened(&folder.path("model.ckpt")));
    let plan = converted(&torch, &Conversion::default());
    assert_tied(&folder.run(&plan, "back.safetensors"));
    let names = fixtures::tensors(&folder.path("back.safetensors"));
    assert_eq!(
        names.keys().collect::<Vec<_>>(),
        [WORDS, LAYERS[0], LAYERS[1]]
    );
}

#[test]
fn split_models_record_other_names_beside_the_tensors_that_they_are_names_of() {
    let folder = Folder::new();
    let source = Arc::new(opened(&folder.model("tied.safetensors", 1.0, true)));
    let plan = converted(&source, &Conversion::default());
    for name in ["split.safetensors", "split.pth"] {
        let write = WriteOptions {
            max_shard_bytes: Some(64),
            ..WriteOptions::new(folder.path(name))
        };
        folder.run_into(&plan, write);
        assert_tied(&opened(&folder.path(&format!("{name}.index.json"))));
    }
    // Each file alone has the names of its own tensors.
    let [first, second] = [1, 2].map(|part| {
        let path = folder.path(&format!("split-0000{part}-of-00003.safetensors"));
        opened(&path).aliases().len()
    });
    assert_eq!([first, second], [1, 0]);
}

#[test]
fn a_prefix_goes_before_every_name_of_a_tied_tensor() {
    let folder = Folder::new();
    let source = Arc::new(opened(&folder.model("tied.safetensors", 1.0, true)));
    let change = |source: &Arc<Checkpoint>, wrapper| {
        let conversion = Conversion {
            wrapper: Some(wrapper),
            ..Conversion::default()
        };
        let plan = converted(source, &conversion);
        in_memory(&plan, &RunOptions::default(), &Silent).expect("made")
    };
    let wrapped = Arc::new(change(&source, Wrapper::Add));
    let tie = [HEAD, WORDS].map(|name| format!("module.{name}"));
    assert_eq!(*wrapped.aliases(), Aliases::from([tie.into()]));
    assert_tied(&change(&wrapped, Wrapper::Remove));
}

#[test]
fn every_method_gives_tied_names_the_same_values_and_writes_them_once() {
    let folder = Folder::new();
    let [base, a, b] = folder.three();
    for (method, parameters) in [
        ("linear", "weight: 1"),
        ("slerp", "t: 0.3"),
        ("task_arithmetic", "weight: 1"),
        ("ties", "weight: 1, density: 0.5"),
        ("dare_linear", "weight: 1, density: 0.5"),
        ("dare_ties", "weight: 1, density: 0.5"),
        ("della", "weight: 1, density: 0.5, epsilon: 0.2"),
        ("breadcrumbs", "weight: 1, density: 0.5, gamma: 0.1"),
        ("model_stock", "filter_wise: false"),
    ] {
        for rng in ["", "rng: mergekit"] {
            if !rng.is_empty() && !["dare_linear", "dare_ties", "della"].contains(&method) {
                continue;
            }
            let (base_line, models) = match method {
                "linear" => (String::new(), format!("[{a}, {b}]")),
                "slerp" => (format!("base_model: {a}\n"), format!("[{a}, {b}]")),
                _ => (format!("base_model: {base}\n"), format!("[{a}, {b}]")),
            };
            let plan = folder.plan(&format!(
                "merge_method: {method}\n{base_line}models: {models}\nparameters: {{ {parameters} }}\nseed: 5\n{rng}"
            ));
            assert_eq!(plan.entries().len(), 3, "{method}");
            for name in ["merged.safetensors", "merged.ckpt"] {
                let merged = folder.run(&plan, name);
                assert_tied(&merged);
                let found = compare(&plan, &merged, true, &Silent).expect("compares");
                assert!(
                    found.unfit.is_empty() && found.unexpected.is_empty(),
                    "{found:?}"
                );
            }
            assert_tied(&in_memory(&plan, &RunOptions::default(), &Silent).expect("merged"));
        }
    }
}

#[test]
fn a_document_that_builds_on_another_keeps_its_ties() {
    let folder = Folder::new();
    let [base, a, b] = folder.three();
    let plan = folder.plan(&format!(
        "name: first\nmerge_method: linear\nmodels: [{a}, {b}]\nparameters: {{ weight: 1 }}\n---\n\
         merge_method: linear\nmodels: [first, {base}]\nparameters: {{ weight: 1 }}\n"
    ));
    assert_tied(&folder.run(&plan, "merged.safetensors"));
}

#[test]
fn slices_and_renamed_models_keep_their_ties() {
    let folder = Folder::new();
    let [_, a, b] = folder.three();
    let plan = folder.plan(&format!(
        "merge_method: passthrough\nslices:\n- sources: [{{ model: {a}, layer_range: [0, 2] }}]\n\
         - sources: [{{ model: {b}, layer_range: [1, 2] }}]"
    ));
    let merged = folder.run(&plan, "sliced.safetensors");
    assert_eq!(merged.name_of(HEAD), WORDS);
    assert_eq!(merged.tensors().count(), 4);
    let plan = folder.plan(&format!(
        "merge_method: passthrough\nmodels:\n- model: {a}\n  rename: [{{ from: '^', to: 'text.' }}]"
    ));
    let merged = folder.run(&plan, "renamed.safetensors");
    assert_eq!(
        merged.name_of("text.lm_head.weight"),
        "text.model.embed_tokens.weight"
    );
}

#[test]
fn parameters_for_the_other_name_alone_are_said_to_have_no_effect() {
    let folder = Folder::new();
    let [_, a, b] = folder.three();
    let plan = |pattern: &str| {
        folder.plan(&format!(
            "merge_method: linear\nmodels:\n- {{ model: {a}, parameters: {{ weight: [{{ filter: {pattern}, value: 0 }}, \
             {{ value: 1 }}] }} }}\n- {{ model: {b}, parameters: {{ weight: 1 }} }}\n"
        ))
    };
    let notes = |plan: &MergePlan| plan.beside().notes.join("\n");
    let apart = plan("lm_head");
    assert!(notes(&apart).contains("`lm_head.weight` is `model.embed_tokens.weight`"));
    assert_tied(&folder.run(&apart, "apart.safetensors"));
    assert_eq!(notes(&plan("embed_tokens")).matches("no effect").count(), 1);
    assert_eq!(notes(&plan("mlp")).matches("no effect").count(), 0);
}

#[test]
fn names_that_only_one_model_ties_are_two_tensors() {
    let folder = Folder::new();
    let tied = folder.model("tied.safetensors", 1.0, true);
    let apart = folder.model("apart.safetensors", 3.0, false);
    for models in [[&tied, &apart], [&apart, &tied]] {
        let [first, second] = models.map(|path| path.display().to_string());
        let plan = folder.plan(&format!(
            "merge_method: linear\nmodels: [{first}, {second}]\nparameters: {{ weight: 1 }}"
        ));
        assert_eq!(plan.entries().len(), 4);
        assert!(plan.aliases().is_empty());
        let merged = folder.run(&plan, "merged.safetensors");
        assert!(merged.aliases().is_empty());
        assert_eq!(merged.tensors().count(), 4);
    }
}

#[test]
fn a_difference_shows_names_that_are_missing_and_values_of_names_that_are_apart() {
    let folder = Folder::new();
    let tied = opened(&folder.model("tied.safetensors", 1.0, true));
    let apart = opened(&folder.model("apart.safetensors", 1.0, false));
    let other = opened(&folder.model("other.safetensors", 2.0, false));
    let report = |left: &Checkpoint, right: &Checkpoint| {
        diff(left, right, &DiffOptions::default(), &Silent).expect("compares")
    };
    assert!(report(&tied, &apart).is_equal() && report(&apart, &tied).is_equal());
    assert_eq!(report(&tied, &other).values.len(), 4);
    assert_eq!(report(&other, &tied).values.len(), 4);
}

#[test]
fn an_adapter_of_tied_models_changes_the_head_as_the_embeddings() {
    let folder = Folder::new();
    let [base, tuned] = [("base", 1.0), ("tuned", 4.0)]
        .map(|(name, first)| folder.model(&format!("{name}.safetensors"), first, true));
    let options = ExtractOptions {
        truncation: Truncation::Rank(2),
        dtype: DType::F32,
        include: Vec::new(),
        exclude: Vec::new(),
        embeddings: true,
        save_whole: false,
        fan_in_fan_out: false,
        seed: 0,
    };
    let target = ExtractTarget {
        folder: folder.path("adapter"),
        force: false,
        command: "test".into(),
        base: base.clone(),
    };
    let of_tuned = Arc::new(opened(&tuned));
    let found = extract(&opened(&base), &of_tuned, &options, &target, &Silent).expect("extracts");
    let names: Vec<&str> = found
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert!(names.contains(&HEAD) && names.contains(&WORDS), "{names:?}");
    let plan = folder.plan(&format!(
        "merge_method: passthrough\nmodels: ['{}+{}']",
        base.display(),
        target.folder.display()
    ));
    let merged = folder.run(&plan, "merged.safetensors");
    let value = |bytes: Vec<u8>| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let wanted = value(of_tuned.read_all(WORDS).expect("it reads"));
    for name in [WORDS, HEAD] {
        let found = value(merged.read_all(name).expect("it reads"));
        assert!(
            (found - wanted).abs() < 1e-5,
            "{name}: {found}, not {wanted}"
        );
    }
}

#[test]
fn the_generic_layout_says_what_is_another_name() {
    let folder = Folder::new();
    let tied = opened(&folder.model("tied.safetensors", 1.0, true));
    let layout = layouts::detect(&tied).expect("a layout");
    let role = layout.role(HEAD).expect("a role");
    assert_eq!(role, Role::Alias { of: WORDS.into() });
    let counts = layouts::count(&tied, layout.as_ref());
    assert_eq!(counts.parameters().n_elements, 48);
}

#[test]
fn no_entry_of_the_metadata_but_one_names_a_tensor() {
    let folder = Folder::new();
    let path = folder.odd(&[
        ("format", "pt"),
        ("a", "x"),
        ("x", "y"),
        ("lm_head.weight", "x"),
    ]);
    let checkpoint = opened(&path);
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["x", "y"]);
    assert!(checkpoint.aliases().is_empty());
    assert!(checkpoint.get("a").is_none());
    let recorded = folder.odd(&[("a", "x"), (ALIASES_KEY, r#"{"b": "x", "c": "x"}"#)]);
    let checkpoint = opened(&recorded);
    assert_eq!(checkpoint.aliases().len(), 2);
    assert_eq!(checkpoint.name_of("c"), "x");
}

#[test]
fn records_of_other_names_that_contradict_the_file_are_refused() {
    let folder = Folder::new();
    let fault = |text: &str| {
        let path = folder.odd(&[(ALIASES_KEY, text)]);
        match open(&path, &OpenOptions::default()) {
            Err(fault) => fault,
            Ok(_) => panic!("{text} was taken"),
        }
    };
    for text in [
        "",
        "[]",
        "{\"a\": 1}",
        "{\"a\": {\"b\": \"x\"}}",
        "null",
        "{\"a\": \"x\"",
    ] {
        let found = fault(text);
        let is_it = matches!(
            &found,
            Error::Safetensors(SafetensorsFault::AliasesJson { .. })
        );
        assert!(is_it, "{found}");
    }
    let twice = fault(r#"{"a": "x", "a": "y"}"#);
    assert!(matches!(twice, Error::DuplicateKey { .. }), "{twice}");
    let tensor = fault(r#"{"x": "y"}"#).to_string();
    assert!(tensor.contains("`x` is a tensor of its own"), "{tensor}");
    let nothing = fault(r#"{"a": "z"}"#).to_string();
    assert!(
        nothing.contains("`z`, which is no tensor of the file"),
        "{nothing}"
    );
    let chain = fault(r#"{"a": "x", "b": "a"}"#).to_string();
    assert!(
        chain.contains("`a`, which is no tensor but an alias itself"),
        "{chain}"
    );
    let itself = fault(r#"{"a": "a"}"#).to_string();
    assert!(itself.contains("alias itself"), "{itself}");
}

#[test]
fn the_writer_refuses_other_names_of_nothing_and_names_that_are_taken() {
    let folder = Folder::new();
    let info = TensorInfo {
        dtype: DType::F32,
        shape: vec![1],
    };
    let tensors = [("x".to_owned(), info.clone()), ("y".to_owned(), info)];
    for (name, of) in [("x", "y"), ("a", "z"), ("__metadata__", "x")] {
        for file in ["no.safetensors", "no.ckpt"] {
            let aliases = Aliases::from([(name.to_owned(), of.to_owned())]);
            let contents = Contents {
                tensors: &tensors,
                aliases: &aliases,
            };
            let write = WriteOptions::new(folder.path(file));
            let fault = Writer::create_tied(contents, &BTreeMap::new(), &write);
            let fault = fault.err().expect("refused").to_string();
            assert!(
                fault.contains(&format!("`{name}` cannot be written")),
                "{fault}"
            );
            assert!(!folder.path(file).exists());
        }
    }
}

#[test]
fn a_view_of_other_elements_of_a_storage_is_a_tensor_of_its_own() {
    // `rank_output` is a row of `itm_score.fc`, written by torch as a view of its storage.
    let checkpoint = opened(&fixtures::path("flm/ckpt/irtr_view.ckpt"));
    assert!(checkpoint.aliases().is_empty());
    let bytes = |name: &str| checkpoint.read_all(name).expect("it reads");
    let (whole, row) = (bytes("itm_score.fc.weight"), bytes("rank_output.weight"));
    assert_eq!(row, whole[row.len()..]);
}
