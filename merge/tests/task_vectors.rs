//! Methods of task vectors on small models: what they refuse, what they have in common, and masks of tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::{Raw, first_difference};
use merge::execute::{RunOptions, execute, in_memory, write_masks};
use merge::io::{OpenOptions, WriteOptions};
use merge::methods::{Base, METHODS, by_name};
use merge::progress::Silent;
use merge::provenance::HashKind;
use merge::random::Draws;
use merge::recipe::Parameters;
use merge::restore::Restore;
use merge::{Error, MaskFault, MergeFault, MergePlan, MergeRecipe};
use safetensors::Dtype;

/// A base and three models of two blocks with matrices of 6 x 4 and biases.
struct Models(tempfile::TempDir);

/// Names and shapes of the tensors.
const TENSORS: [(&str, &[usize]); 6] = [
    ("embed.weight", &[5, 6]),
    ("blocks.0.fc.weight", &[6, 4]),
    ("blocks.0.fc.bias", &[6]),
    ("blocks.1.fc.weight", &[6, 4]),
    ("blocks.1.fc.bias", &[6]),
    ("head.weight", &[3, 4]),
];

impl Models {
    fn new() -> Self {
        let models = Self(tempfile::tempdir().expect("a folder"));
        for name in ["base", "a", "b", "c"] {
            let tensors = TENSORS.map(|(key, shape)| {
                let n = shape.iter().product();
                let (mut base, mut change) = (vec![0.0f32; n], vec![0.0f32; n]);
                Draws::new(0, key).add_normal(1.0, 0, &mut base);
                if name != "base" {
                    Draws::new(1, &format!("{name} {key}")).add_normal(0.1, 0, &mut change);
                }
                let values = base.iter().zip(change).map(|(base, change)| base + change);
                (key.to_owned(), floats(shape, values))
            });
            fixtures::write(&models.path(name), &BTreeMap::from(tensors));
        }
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    fn values(&self, name: &str, key: &str) -> Vec<f64> {
        fixtures::tensors(&self.path(name))[key].values()
    }

    /// A recipe; `rest` are its parameters and other keys.
    fn recipe(&self, method: &str, models: &[&str], rest: &str) -> MergeRecipe {
        let list = models
            .iter()
            .map(|name| format!("- {:?}\n", self.path(name)));
        let list: String = list.collect();
        let yaml = format!("merge_method: {method}\nmodels:\n{list}{rest}\n");
        let recipe = MergeRecipe::parse(&yaml, Path::new("test"));
        recipe.unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }

    fn on_base(&self, method: &str, models: &[&str], parameters: &str) -> MergeRecipe {
        let rest = format!(
            "base_model: {:?}\nparameters: {{ {parameters} }}",
            self.path("base")
        );
        self.recipe(method, models, &rest)
    }

    fn merged(&self, recipe: &MergeRecipe) -> Result<BTreeMap<String, Vec<f64>>, Error> {
        let (plan, _) = MergePlan::resolve(recipe)?;
        let merged = in_memory(&plan, &RunOptions::default(), &Silent)?;
        let tensors = merged.tensors().map(|(key, _)| {
            let values = crate::zerovl::values(&merged, key);
            (key.to_owned(), values)
        });
        Ok(tensors.collect())
    }

    fn fault(&self, recipe: &MergeRecipe) -> Error {
        self.merged(recipe).expect_err("refused")
    }
}

fn floats(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Raw {
    Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
    }
}

/// Methods that refuse parameters of others, except for the one whose own are of another method.
fn methods() -> impl Iterator<Item = &'static str> {
    let rows = METHODS.iter().map(|row| row.name);
    rows.filter(|name| {
        let method = by_name(name, &Parameters::default(), false).expect("a method");
        method.refuses_foreign_parameters() && *name != "lines"
    })
}

#[test]
fn without_a_base_there_are_no_task_vectors() {
    let models = Models::new();
    assert!(methods().count() >= 13);
    for method in methods() {
        let fault = models.fault(&models.recipe(method, &["a", "b"], ""));
        assert!(
            fault.to_string().contains("base_model"),
            "{method}: {fault}"
        );
    }
}

#[test]
fn a_parameter_of_another_method_is_an_error() {
    let models = Models::new();
    for method in methods() {
        let fault = models.fault(&models.on_base(method, &["a", "b"], "epsilon: 0.1"));
        let is_unknown =
            matches!(&fault, Error::UnknownParameter { name, .. } if name == "epsilon");
        assert!(is_unknown, "{method}: {fault}");
    }
}

#[test]
fn ranks_above_those_of_a_matrix_are_refused_with_its_sizes() {
    let models = Models::new();
    for (method, parameters) in [("cart", "rank: 5"), ("tsv_m", "min_rank: 5")] {
        let fault = models
            .fault(&models.on_base(method, &["a", "b"], parameters))
            .to_string();
        assert!(
            fault.contains("blocks.0.fc.weight") && fault.contains("6 x 4"),
            "{fault}"
        );
    }
    // By names, other tensors may have it.
    let some = "rank: [{ filter: blocks, value: 4 }], matrix: [{ filter: blocks, value: true }, { value: false }]";
    models
        .merged(&models.on_base("cart", &["a", "b"], some))
        .expect("merges");
}

#[test]
fn methods_of_several_models_refuse_one_and_more_to_agree_than_there_are() {
    let models = Models::new();
    for method in ["consensus", "pcb"] {
        let fault = models.fault(&models.on_base(method, &["a"], ""));
        let is_count = matches!(&fault, Error::Merge(fault) if matches!(**fault, MergeFault::InputCount { .. }));
        assert!(is_count, "{method}: {fault}");
    }
    let fault = models.fault(&models.on_base("consensus", &["a", "b"], "min_models: 3"));
    assert!(fault.to_string().contains("at most 2"), "{fault}");
}

#[test]
fn settings_without_effect_are_refused() {
    let models = Models::new();
    for (method, parameters) in [
        ("wudi", "iterations: 3"),
        ("wudi", "solver: adam, ridge: 1"),
        ("aswudi", "energy: 0.5"),
        ("lines", "beta: 1"),
        ("lines", "method: linear, beta: 1"),
        ("lines", "method: ties"),
        ("localize_and_stitch", "sparsity: 0"),
        (
            "pcb",
            "ratio: [{ filter: head, value: 0.5 }, { value: 0.1 }]",
        ),
        ("ties", "weight: 1, trim: [{ filter: head, value: model }]"),
    ] {
        models.fault(&models.on_base(method, &["a", "b"], parameters));
    }
}

#[test]
fn tensors_are_matrices_by_what_they_do_and_by_name() {
    let models = Models::new();
    let is_mean = |merged: &BTreeMap<String, Vec<f64>>, key: &str| {
        let [a, b] = ["a", "b"].map(|name| models.values(name, key));
        let mean: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect();
        first_difference(&merged[key], &mean, 0.0, 1e-6).is_none()
    };
    let merged = models
        .merged(&models.on_base("iso_c", &["a", "b"], ""))
        .expect("merges");
    for (key, expected) in [
        ("embed.weight", true),
        ("head.weight", true),
        ("blocks.0.fc.bias", true),
        ("blocks.0.fc.weight", false),
    ] {
        assert_eq!(is_mean(&merged, key), expected, "{key}");
    }
    let by_name = "matrix: [{ glob: 'blocks.0.*', value: false }, { value: true }], vectors: base";
    let merged = models
        .merged(&models.on_base("iso_c", &["a", "b"], by_name))
        .expect("merges");
    assert_eq!(
        merged["blocks.0.fc.weight"],
        models.values("base", "blocks.0.fc.weight")
    );
    assert_ne!(merged["head.weight"], models.values("base", "head.weight"));
    assert!(!is_mean(&merged, "embed.weight"));
}

/// The change of the base by a merge, in the order of names.
fn change(models: &Models, merged: &BTreeMap<String, Vec<f64>>) -> BTreeMap<String, Vec<f64>> {
    let changes = merged.iter().map(|(key, values)| {
        let base = models.values("base", key);
        let change = values.iter().zip(base).map(|(value, base)| value - base);
        (key.clone(), change.collect())
    });
    changes.collect()
}

#[test]
fn lines_scale_what_any_method_adds_by_depth() {
    let models = Models::new();
    for (method, own) in [
        ("task_arithmetic", "weight: 1"),
        ("tsv_m", "lambda: 2"),
        ("ties", "weight: 1, density: 0.5"),
        ("pcb", "ratio: 0.5"),
        ("knots", "density: 0.5"),
    ] {
        let plain = models
            .merged(&models.on_base(method, &["a", "b"], own))
            .expect("merges");
        let plain = change(&models, &plain);
        let size = |changes: &BTreeMap<String, Vec<f64>>| -> f64 {
            changes.values().flatten().map(|value| value.abs()).sum()
        };
        let sum = models.merged(&models.on_base("task_arithmetic", &["a", "b"], "weight: 1"));
        let alpha = size(&change(&models, &sum.expect("merges"))) / (2.0 * size(&plain));
        let parameters = format!("method: {method}, beta: 0.5, {own}");
        let scaled = models.merged(&models.on_base("lines", &["a", "b"], &parameters));
        for (key, found) in change(&models, &scaled.expect("merges")) {
            let factor = match key.starts_with("blocks.1.") {
                true => alpha + 0.5,
                false => alpha,
            };
            let expected: Vec<f64> = plain[&key].iter().map(|value| factor * value).collect();
            let differs = first_difference(&found, &expected, 0.0, 2e-6);
            assert_eq!(differs, None, "{method} {key}");
        }
    }
}

#[test]
fn one_thread_and_three_give_the_same_numbers() {
    let models = Models::new();
    for (method, parameters) in [
        ("tsv_m", ""),
        ("iso_cts", ""),
        ("wudi", ""),
        ("pcb", "ratio: 0.5"),
        ("knots", ""),
        ("lines", "method: tsv_m, beta: 1"),
    ] {
        let recipe = models.on_base(method, &["a", "b", "c"], parameters);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads")
                .install(|| models.merged(&recipe).expect("merges"))
        };
        assert_eq!(with(1), with(3), "{method}");
    }
}

/// Writes a merge and its masks.
fn with_masks(models: &Models, method: &str, names: &[&str]) -> (PathBuf, PathBuf) {
    with_masks_by(models, method, names, RunOptions::default())
}

/// Writes a merge and its masks, with the hashes that `run` asks for.
fn with_masks_by(
    models: &Models,
    method: &str,
    names: &[&str],
    run: RunOptions,
) -> (PathBuf, PathBuf) {
    let (plan, _) = MergePlan::resolve(&models.on_base(method, names, "")).expect("resolves");
    let [merged, masks] = ["merged", "masks"].map(|name| models.path(&format!("{method}-{name}")));
    let write = |path: &Path| WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    execute(&plan, &write(&merged), &run, &Silent).expect("merges");
    write_masks(&plan, &write(&masks), &run, &Silent).expect("masks");
    (merged, masks)
}

fn restore(merged: &Path, masks: &Path, base: &Path, task: &str) -> Result<MergePlan, Error> {
    let open = |path| merge::io::open(path, &OpenOptions::default()).map(Arc::new);
    let restore = Restore {
        merged: open(merged)?,
        masks: open(masks)?,
        base: open(base)?,
        task: task.to_owned(),
    };
    restore.plan(|dtype| dtype, &Silent)
}

#[test]
fn a_lone_model_comes_back_from_its_masks() {
    let models = Models::new();
    for method in ["emr", "tall_masks"] {
        let (merged, masks) = with_masks(&models, method, &["a"]);
        let plan = restore(&merged, &masks, &models.path("base"), "a").expect("a plan");
        let again = in_memory(&plan, &RunOptions::default(), &Silent).expect("runs");
        for (key, _) in TENSORS {
            let found = crate::zerovl::values(&again, key);
            let differs = first_difference(&found, &models.values("a", key), 0.0, 1e-6);
            assert_eq!(differs, None, "{method} {key}");
        }
    }
}

#[test]
fn masks_of_another_merge_another_base_and_an_unknown_task_are_refused() {
    let models = Models::new();
    let (merged, masks) = with_masks(&models, "emr", &["a", "b"]);
    let (_, others) = with_masks(&models, "tall_masks", &["a", "b"]);
    let base = models.path("base");
    let smaller = models.path("smaller");
    fixtures::write(
        &smaller,
        &BTreeMap::from([("x".to_owned(), floats(&[1], [0.0]))]),
    );
    for (masks, base, task, wanted) in [
        (&others, &base, "a", "Foreign"),
        (&masks, &smaller, "a", "OtherBase"),
        (&masks, &base, "c", "UnknownTask"),
        (&merged, &base, "a", "NotMasks"),
    ] {
        let fault = restore(&merged, masks, base, task).err().expect("refused");
        let Error::Masks(fault) = fault else {
            panic!("{fault}");
        };
        assert!(format!("{fault:?}").starts_with(wanted), "{fault:?}");
    }
    let some = "rescale_by: [{ filter: head, value: elements }, { value: tensors }]";
    let (plan, _) = MergePlan::resolve(&models.on_base("emr", &["a"], some)).expect("resolves");
    let target = WriteOptions::new(models.path("none"));
    let fault = write_masks(&plan, &target, &RunOptions::default(), &Silent);
    assert!(matches!(
        fault,
        Err(Error::Masks(MaskFault::RulesDiffer { .. }))
    ));
    let (plan, _) = MergePlan::resolve(&models.on_base("iso_c", &["a"], "")).expect("resolves");
    let target = WriteOptions::new(models.path("none"));
    let fault = write_masks(&plan, &target, &RunOptions::default(), &Silent);
    assert!(matches!(fault, Err(Error::Masks(MaskFault::None))));
}

/// Takes the record of the base out of a file of masks, as earlier builds wrote it.
fn without_record_of_base(masks: &Path) {
    let mut bytes = std::fs::read(masks).expect("masks");
    let find = |bytes: &[u8], from: usize, wanted: &[u8]| {
        let mut places = bytes[from..].windows(wanted.len());
        from + places.position(|found| found == wanted).expect("recorded")
    };
    // A list of objects without further lists, in a JSON text within the header.
    let from = find(&bytes, 0, br#",\"base\":["#);
    let to = find(&bytes, from, b"]") + 1;
    bytes[from..to].fill(b' ');
    std::fs::write(masks, bytes).expect("written");
}

#[test]
fn a_file_of_the_size_of_the_base_is_not_taken_for_it() {
    let models = Models::new();
    let size = |name: &str| std::fs::metadata(models.path(name)).expect("a file").len();
    let by_hash = |hash| RunOptions {
        hash,
        ..RunOptions::default()
    };
    let notes = |masks: &(PathBuf, PathBuf), base: &str| {
        let plan = restore(&masks.0, &masks.1, &models.path(base), "a");
        plan.map(|plan| plan.beside().notes.clone())
    };
    for method in ["emr", "tall_masks"] {
        for kind in [HashKind::Blake3, HashKind::Sha256] {
            let files = with_masks_by(&models, method, &["a", "b"], by_hash(Some(kind)));
            // One of the merged models, and a file that the merge never read.
            for other in ["a", "c"] {
                assert_eq!(size(other), size("base"));
                let fault = notes(&files, other).expect_err("refused");
                let is_other = matches!(fault, Error::Masks(MaskFault::OtherBase { .. }));
                assert!(is_other, "{method} {other}: {fault}");
            }
            assert_eq!(notes(&files, "base").expect("a plan"), [""; 0]);
            without_record_of_base(&files.1);
            for other in ["a", "c"] {
                assert!(notes(&files, other).is_err(), "{method} {other}");
            }
            let said = notes(&files, "base").expect("a plan");
            assert!(said[0].contains("an earlier build"), "{said:?}");
        }
        // Without hashes there is only the size, which a note says.
        let files = with_masks_by(&models, method, &["a", "b"], by_hash(None));
        let said = notes(&files, "base").expect("a plan");
        assert!(said[0].contains("--no-hash"), "{said:?}");
    }
}

/// A convolution, a norm behind it, and two linear layers, with numbers of their own.
fn network(name: &str) -> BTreeMap<String, Raw> {
    let shapes: [(&str, &[usize]); 8] = [
        ("conv.weight", &[4, 3, 2, 2]),
        ("conv.bias", &[4]),
        ("bn.weight", &[4]),
        ("bn.running_mean", &[4]),
        ("fc.weight", &[5, 8]),
        ("fc.bias", &[5]),
        ("out.weight", &[2, 5]),
        ("out.bias", &[2]),
    ];
    let tensors = shapes.map(|(key, shape)| {
        let mut values = vec![0.0; shape.iter().product()];
        Draws::new(7, &format!("{name} {key}")).add_normal(1.0, 0, &mut values);
        (key.to_owned(), floats(shape, values))
    });
    BTreeMap::from(tensors)
}

/// Rows of a tensor in another order; each row is as long as its elements are divided.
fn rows(raw: &Raw, order: &[usize]) -> Raw {
    let row = raw.bytes.len() / order.len();
    let rows = order
        .iter()
        .flat_map(|&from| raw.bytes[from * row..(from + 1) * row].to_vec());
    Raw {
        bytes: rows.collect(),
        ..raw.clone()
    }
}

/// Parts of each of `n` rows in another order.
fn columns(raw: &Raw, n: usize, order: &[usize]) -> Raw {
    let row = raw.bytes.len() / n;
    let parts = raw.bytes.chunks(row).flat_map(|bytes| {
        let one = Raw {
            bytes: bytes.to_vec(),
            ..raw.clone()
        };
        rows(&one, order).bytes
    });
    Raw {
        bytes: parts.collect(),
        ..raw.clone()
    }
}

#[test]
fn a_copy_with_its_hidden_units_moved_merges_back_bit_for_bit() {
    let models = Models::new();
    let own = network("own");
    let (first, second) = ([2, 0, 3, 1], [4, 2, 0, 1, 3]);
    let mut moved = own.clone();
    for key in ["conv.weight", "conv.bias", "bn.weight", "bn.running_mean"] {
        moved.insert(key.to_owned(), rows(&own[key], &first));
    }
    let fc = rows(&columns(&own["fc.weight"], 5, &first), &second);
    moved.insert("fc.weight".to_owned(), fc);
    moved.insert("fc.bias".to_owned(), rows(&own["fc.bias"], &second));
    moved.insert(
        "out.weight".to_owned(),
        columns(&own["out.weight"], 2, &second),
    );
    fixtures::write(&models.path("own"), &own);
    fixtures::write(&models.path("moved"), &moved);
    for order in ["ascending", "descending"] {
        let rest = format!(
            "align_layers: {{ layers: [conv, bn, fc, out], order: {order} }}\nparameters: {{ weight: 0.5 }}"
        );
        let merged = models
            .merged(&models.recipe("linear", &["own", "moved"], &rest))
            .expect("merges");
        for (key, raw) in &own {
            assert_eq!(merged[key], raw.values(), "{key}");
        }
    }
    let rest = "parameters: { weight: 0.5 }";
    let apart = models
        .merged(&models.recipe("linear", &["own", "moved"], rest))
        .expect("merges");
    assert_ne!(apart["fc.weight"], own["fc.weight"].values());
    for layers in ["[fc]", "[conv, out]", "[bn, fc]", "[conv, none]"] {
        let rest = format!("align_layers: {{ layers: {layers} }}\nparameters: {{ weight: 0.5 }}");
        let fault = models.fault(&models.recipe("linear", &["own", "moved"], &rest));
        assert!(
            fault.to_string().contains("align_layers"),
            "{layers}: {fault}"
        );
    }
}

#[test]
fn regmean_of_task_vectors_merges_two_models_and_one() {
    let models = Models::new();
    let grams = "grams: task_vectors";
    let one = models
        .merged(&models.on_base("regmean", &["a"], grams))
        .expect("merges");
    for (key, _) in TENSORS {
        let differs = first_difference(&one[key], &models.values("a", key), 0.0, 1e-6);
        assert_eq!(differs, None, "{key}");
    }
    let described = by_name(
        "regmean",
        &models.on_base("regmean", &["a"], grams).parameters,
        false,
    );
    assert_eq!(described.expect("a method").needs().base, Base::Required);
}

#[test]
fn towers_of_different_depth_are_scaled_each_by_its_own() {
    let models = Models::new();
    let of = |shift: f32| {
        let names = [
            "vision.layers.0.fc",
            "vision.layers.1.fc",
            "vision.layers.2.fc",
            "text.layers.0.fc",
            "text.layers.1.fc",
            "norm",
        ];
        let tensors = names.map(|name| (format!("{name}.weight"), floats(&[2], [shift, shift])));
        BTreeMap::from(tensors)
    };
    fixtures::write(&models.path("towers"), &of(0.0));
    fixtures::write(&models.path("tuned"), &of(1.0));
    let rest = format!(
        "base_model: {:?}\nparameters: {{ method: task_arithmetic, weight: 1, alpha: 0.25, beta: 0.5 }}",
        models.path("towers")
    );
    let merged = models
        .merged(&models.recipe("lines", &["tuned"], &rest))
        .expect("merges");
    for (name, expected) in [
        ("vision.layers.0.fc", 0.25),
        ("vision.layers.1.fc", 0.5),
        ("vision.layers.2.fc", 0.75),
        ("text.layers.0.fc", 0.25),
        ("text.layers.1.fc", 0.75),
        ("norm", 0.25),
    ] {
        assert_eq!(merged[&format!("{name}.weight")], [expected; 2], "{name}");
    }
}
