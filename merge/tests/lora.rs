//! Low-rank adapters as inputs of merges: closed forms, and what is said of adapters that do not fit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::random::Draws;
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

/// A folder with a base and adapters.
struct Folder(tempfile::TempDir);

fn raw(shape: &[usize], values: &[f32]) -> Raw {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: bytemuck::cast_slice(values).to_vec(),
    }
}

fn halved(shape: &[usize], values: &[f32]) -> Raw {
    let bytes = (values.iter()).flat_map(|&value| bf16::from_f32(value).to_le_bytes());
    Raw {
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        bytes: bytes.collect(),
    }
}

/// Values that look random, from −1 to 1.
fn noise(seed: u64, shape: &[usize]) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(seed, "noise").fill_uniform(0, &mut values);
    values.iter().map(|value| 2.0 * value - 1.0).collect()
}

fn owned(tensors: Vec<(&str, Raw)>) -> BTreeMap<String, Raw> {
    (tensors.into_iter())
        .map(|(name, raw)| (name.to_owned(), raw))
        .collect()
}

impl Folder {
    fn new(base: Vec<(&str, Raw)>) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        fixture::write(&folder.path("base"), &owned(base));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    /// Writes an adapter whose names have PEFT's prefix, with settings beside its kind.
    fn adapter(&self, name: &str, settings: &str, tensors: Vec<(&str, Raw)>) {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).expect("made");
        let kind = match settings.contains("peft_type") {
            true => "",
            false => "\"peft_type\": \"LORA\", ",
        };
        let settings = format!("{{{kind}{settings}}}");
        std::fs::write(folder.join("adapter_config.json"), settings).expect("written");
        let tensors = (tensors.into_iter())
            .map(|(name, raw)| (format!("base_model.model.{name}"), raw))
            .collect();
        fixture::write(&folder.join("adapter_model.safetensors"), &tensors);
    }

    /// `<name>` stands for a file, `+name` for an adapter in this folder.
    fn recipe(&self, yaml: &str) -> Result<MergeRecipe, Error> {
        let mut yaml = yaml.to_owned();
        while let Some((start, rest)) = yaml.split_once('<') {
            let (name, end) = rest.split_once('>').expect("<name>");
            yaml = format!("{start}{}{end}", self.path(name).display());
        }
        let yaml = yaml.replace("+", &format!("+{}/", self.0.path().display()));
        MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))
    }

    fn plan(&self, yaml: &str) -> Result<MergePlan, Error> {
        MergePlan::resolve(&self.recipe(yaml)?).map(|(plan, _)| plan)
    }

    fn merge_to(&self, target: &str, yaml: &str) -> Result<BTreeMap<String, Raw>, Error> {
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(self.path(target))
        };
        let silent = &merge::progress::Silent;
        execute(&self.plan(yaml)?, &write, &RunOptions::default(), silent)?;
        Ok(fixture::tensors(&self.path(target)))
    }

    /// The base with an adapter.
    fn with(&self, adapter: &str) -> Result<BTreeMap<String, Raw>, Error> {
        let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{adapter}\n");
        self.merge_to("merged", &yaml)
    }

    fn fault(&self, adapter: &str) -> String {
        match self.with(adapter) {
            Ok(_) => panic!("{adapter} should be refused"),
            Err(error) => error.to_string(),
        }
    }
}

const R1: &str = r#""r": 1, "lora_alpha": 2"#;

#[test]
fn a_linear_weight_gets_the_product_times_alpha_by_the_rank() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("fc.bias", raw(&[2], &[1.0, 1.0])),
    ]);
    folder.adapter(
        "a",
        r#""r": 2, "lora_alpha": 6"#,
        vec![
            (
                "fc.lora_A.weight",
                raw(&[2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, 1.0]),
            ),
            ("fc.lora_B.weight", raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        ],
    );
    let merged = folder.with("a").expect("merges");
    // B A = [1 2 4; 3 4 10], times 3.
    let expected = [4.0, 8.0, 15.0, 13.0, 17.0, 36.0];
    assert_eq!(merged["fc.weight"].values(), expected);
    assert_eq!(merged["fc.bias"].values(), [1.0, 1.0]);
}

#[test]
fn ranks_and_alphas_may_differ_by_module_and_rslora_divides_by_the_root() {
    let ones = |n: usize| vec![1.0; n];
    let folder = Folder::new(vec![
        ("x.q.weight", raw(&[1, 2], &[0.0; 2])),
        ("x.k.weight", raw(&[1, 2], &[0.0; 2])),
        ("y.q.weight", raw(&[1, 2], &[0.0; 2])),
    ]);
    let tensors = || {
        vec![
            ("x.q.lora_A.weight", raw(&[4, 2], &ones(8))),
            ("x.q.lora_B.weight", raw(&[1, 4], &ones(4))),
            ("x.k.lora_A.weight", raw(&[1, 2], &ones(2))),
            ("x.k.lora_B.weight", raw(&[1, 1], &ones(1))),
            ("y.q.lora_A.weight", raw(&[4, 2], &ones(8))),
            ("y.q.lora_B.weight", raw(&[1, 4], &ones(4))),
        ]
    };
    let patterns =
        r#""r": 1, "lora_alpha": 3, "rank_pattern": {"q": 4}, "alpha_pattern": {"y.q": 8}"#;
    folder.adapter("plain", patterns, tensors());
    folder.adapter(
        "root",
        &format!("{patterns}, \"use_rslora\": true"),
        tensors(),
    );
    // The sum over the rank, times α/r, or α/√r.
    let expected = [
        ("plain", 4.0 * 3.0 / 4.0, 4.0 * 8.0 / 4.0),
        ("root", 6.0, 16.0),
    ];
    for (adapter, first, last) in expected {
        let merged = folder.with(adapter).expect("merges");
        assert_eq!(merged["x.q.weight"].values(), [first; 2], "{adapter}");
        assert_eq!(merged["x.k.weight"].values(), [3.0; 2], "{adapter}");
        assert_eq!(merged["y.q.weight"].values(), [last; 2], "{adapter}");
    }
}

/// A base of a square and an oblong weight, and an adapter of both for weights kept as `(in, out)`.
fn transposed(oblong: &[usize], settings: &str) -> Folder {
    let folder = Folder::new(vec![
        ("square.weight", raw(&[2, 2], &[0.0; 4])),
        ("oblong.weight", raw(oblong, &[0.0; 6])),
    ]);
    folder.adapter(
        "a",
        &format!("{R1}, {settings}"),
        vec![
            ("square.lora_A.weight", raw(&[1, 2], &[1.0, 2.0])),
            ("square.lora_B.weight", raw(&[2, 1], &[1.0, 3.0])),
            ("oblong.lora_A.weight", raw(&[1, 2], &[1.0, 2.0])),
            ("oblong.lora_B.weight", raw(&[3, 1], &[1.0, 3.0, 5.0])),
        ],
    );
    folder
}

#[test]
fn weights_kept_as_in_by_out_get_the_transpose() {
    let folder = transposed(&[2, 3], r#""fan_in_fan_out": true"#);
    let merged = folder.with("a").expect("merges");
    // (2 B A)ᵀ.
    assert_eq!(merged["square.weight"].values(), [2.0, 6.0, 4.0, 12.0]);
    let expected = [2.0, 6.0, 10.0, 4.0, 12.0, 20.0];
    assert_eq!(merged["oblong.weight"].values(), expected);
}

#[test]
fn a_setting_that_shapes_contradict_is_refused_where_a_square_weight_needs_it() {
    for (oblong, setting) in [([3, 2], "true"), ([2, 3], "false")] {
        let said = transposed(&oblong, &format!("\"fan_in_fan_out\": {setting}")).fault("a");
        assert!(said.contains("`fan_in_fan_out: "), "{said}");
        assert!(said.contains("square `square.weight`"), "{said}");
        assert!(said.contains("(line 3, column 3)"), "{said}");
    }
}

#[test]
fn embeddings_convolutions_biases_and_whole_modules_are_merged_each_in_its_way() {
    let folder = Folder::new(vec![
        ("embed.weight", raw(&[3, 2], &[0.0; 6])),
        ("conv.weight", raw(&[2, 1, 1, 2], &[1.0; 4])),
        ("fc.weight", raw(&[1, 1], &[1.0])),
        ("fc.bias", raw(&[1], &[1.0])),
        ("head.weight", raw(&[1, 2], &[1.0, 1.0])),
        (
            "norm.count",
            Raw {
                dtype: Dtype::I64,
                shape: vec![1],
                bytes: vec![1; 8],
            },
        ),
    ]);
    folder.adapter(
        "a",
        &format!("{R1}, \"lora_bias\": true, \"modules_to_save\": [\"head\", \"norm\"]"),
        vec![
            ("embed.lora_embedding_A", raw(&[1, 3], &[1.0, 2.0, 3.0])),
            ("embed.lora_embedding_B", raw(&[2, 1], &[1.0, 10.0])),
            ("conv.lora_A.weight", raw(&[1, 1, 1, 2], &[1.0, 2.0])),
            ("conv.lora_B.weight", raw(&[2, 1, 1, 1], &[1.0, 3.0])),
            ("fc.lora_A.weight", raw(&[1, 1], &[1.0])),
            ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
            ("fc.lora_B.bias", raw(&[1], &[3.0])),
            ("head.weight", raw(&[1, 2], &[7.0, 8.0])),
            (
                "norm.count",
                Raw {
                    dtype: Dtype::I64,
                    shape: vec![1],
                    bytes: vec![2; 8],
                },
            ),
        ],
    );
    let merged = folder.with("a").expect("merges");
    let embed = [2.0, 20.0, 4.0, 40.0, 6.0, 60.0];
    assert_eq!(merged["embed.weight"].values(), embed);
    assert_eq!(merged["conv.weight"].values(), [3.0, 5.0, 7.0, 13.0]);
    assert_eq!(merged["fc.weight"].values(), [3.0]);
    assert_eq!(merged["fc.bias"].values(), [7.0]);
    assert_eq!(merged["head.weight"].values(), [7.0, 8.0]);
    assert_eq!(merged["norm.count"].bytes, [2; 8]);
}

#[test]
fn in_bfloat16_the_sum_is_rounded_once_and_not_before_another_method_sees_it() {
    let folder = Folder::new(vec![("fc.weight", halved(&[1, 2], &[1.0, 3.0]))]);
    let small = 2f32.powi(-10);
    folder.adapter(
        "a",
        R1,
        vec![
            ("fc.lora_A.weight", halved(&[1, 2], &[small, 1.0])),
            ("fc.lora_B.weight", halved(&[1, 1], &[1.0])),
        ],
    );
    let merged = folder.with("a").expect("merges");
    // 1 + 2⁻⁹ is below half a step above 1.
    assert_eq!(merged["fc.weight"].dtype, Dtype::BF16);
    assert_eq!(merged["fc.weight"].values(), [1.0, 5.0]);
    let yaml = "merge_method: task_arithmetic\nbase_model: <base>\nmodels: [{model: <base>+a}]\nparameters: \
                {weight: 64.0}\n";
    let merged = folder.merge_to("merged", yaml).expect("merges");
    // 1 + 64 · 2⁻⁹: rounded in between nothing would have been left of it.
    assert_eq!(merged["fc.weight"].dtype, Dtype::BF16);
    assert_eq!(merged["fc.weight"].values(), [1.125, 131.0]);
}

/// Sizes that leave no part of a chunk even.
const ODD: [usize; 2] = [331, 401];

/// A base of an oblong weight of more than one chunk, a vector and a small square, and two adapters.
fn large() -> Folder {
    let names = ["m.layers.0.fc", "m.layers.1.fc"];
    let mut base: Vec<(String, Raw)> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let values = noise(index as u64, &ODD);
        base.push((format!("{name}.weight"), raw(&ODD, &values)));
    }
    base.push(("m.norm.weight".into(), raw(&[9], &noise(7, &[9]))));
    let base = base.iter().map(|(name, raw)| (name.as_str(), raw.clone()));
    let folder = Folder::new(base.collect());
    for (adapter, seed) in [("a", 10), ("b", 20)] {
        let mut tensors: Vec<(String, Raw)> = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let (a, b) = ([3, ODD[1]], [ODD[0], 3]);
            let seed = seed + 2 * index as u64;
            tensors.push((format!("{name}.lora_A.weight"), raw(&a, &noise(seed, &a))));
            tensors.push((
                format!("{name}.lora_B.weight"),
                raw(&b, &noise(seed + 1, &b)),
            ));
        }
        let tensors = tensors
            .iter()
            .map(|(name, raw)| (name.as_str(), raw.clone()));
        folder.adapter(adapter, r#""r": 3, "lora_alpha": 0.5"#, tensors.collect());
    }
    folder
}

#[test]
fn every_element_of_a_large_weight_is_the_exact_sum_rounded_a_few_times() {
    let folder = large();
    let merged = folder.with("a").expect("merges");
    let key = "m.layers.1.fc.weight";
    let (a, b) = (noise(12, &[3, ODD[1]]), noise(13, &[ODD[0], 3]));
    let base = noise(1, &ODD);
    for (index, found) in merged[key].values().into_iter().enumerate() {
        let (row, column) = (index / ODD[1], index % ODD[1]);
        let product = |k: usize| f64::from(b[row * 3 + k]) * f64::from(a[k * ODD[1] + column]);
        let expected = f64::from(base[index]) + (0..3).map(product).sum::<f64>() * 0.5 / 3.0;
        // Five roundings of numbers below 2.
        assert!(
            (found - expected).abs() < 5.0 * 2f64.powi(-24) * 2.0,
            "{index}"
        );
    }
}

#[test]
fn every_method_gives_the_bytes_that_merged_files_give() {
    let folder = large();
    for name in ["a", "b"] {
        let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{name}\n");
        folder
            .merge_to(&format!("merged_{name}"), &yaml)
            .expect("merges");
    }
    let (density, t) = ("density: 0.5", "t: 0.25");
    let (none, w75, w50) = ("", "weight: 0.75", "weight: 0.5");
    // The method, its base (`1` for the first model), what each model is given, and what both are.
    let methods = [
        ("task_arithmetic", "<base>", [w75, w50], none),
        ("ties", "<base>", [w75, w50], density),
        ("dare_linear", "<base>", [w75, w50], density),
        ("dare_ties", "<base>", [w75, w50], density),
        ("breadcrumbs", "<base>", [w75, w50], density),
        ("della", "<base>", [w75, w50], density),
        ("sce", "<base>", [none, none], none),
        ("model_stock", "<base>", [none, none], none),
        ("ram", "<base>", [none, none], none),
        ("linear", "", [w75, w50], none),
        ("karcher", "", [none, none], none),
        ("multislerp", "", [w75, w50], none),
        ("nuslerp", "", [w75, w50], none),
        ("slerp", "1", [none, none], t),
        ("nearswap", "1", [none, none], t),
        ("arcee_fusion", "1", [none, none], none),
    ];
    for (method, base, own, shared) in methods {
        let merge = |first: &str, second: &str| {
            let base = match base {
                "" => String::new(),
                "1" => format!("base_model: {first}\n"),
                base => format!("base_model: {base}\n"),
            };
            let yaml = format!(
                "merge_method: {method}\n{base}models:\n- {{model: {first}, parameters: {{{}}}}}\n- {{model: \
                 {second}, parameters: {{{}}}}}\nparameters: {{{shared}}}\nseed: 3\n",
                own[0], own[1]
            );
            let merged = folder.merge_to("merged", &yaml);
            merged.unwrap_or_else(|error| panic!("{method}: {error}"))
        };
        let from_adapters = merge("<base>+a", "<base>+b");
        assert!(
            from_adapters == merge("<merged_a>", "<merged_b>"),
            "{method}"
        );
        let name = "m.layers.0.fc.weight";
        assert!(
            from_adapters[name] != raw(&ODD, &noise(0, &ODD)),
            "{method}"
        );
    }
}

#[test]
fn a_plan_counts_the_factors_that_are_kept() {
    let folder = large();
    let peak = |model: &str| {
        let yaml = format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
        folder.plan(&yaml).expect("a plan").peak_bytes(2)
    };
    let factors = 2 * 4 * 3 * (ODD[0] + ODD[1]);
    assert_eq!(peak("<base>+a"), peak("<base>") + factors as u64);
}

#[test]
fn slices_and_documents_take_adapters_too() {
    let folder = large();
    let whole = folder.with("a").expect("merges");
    let yaml = "merge_method: passthrough\nslices:\n- sources: [{model: <base>+a, layer_range: [1, 2]}]\n- \
                sources: [{model: <base>, layer_range: [0, 1]}]\n";
    let sliced = folder.merge_to("sliced", yaml).expect("merges");
    let (first, second) = ("m.layers.0.fc.weight", "m.layers.1.fc.weight");
    assert!(sliced[first] == whole[second]);
    assert!(sliced[second] == fixture::tensors(&folder.path("base"))[first]);

    let yaml = "name: twin\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [<base>, <base>]\n---\n\
                merge_method: passthrough\nmodels: [{model: twin+a}]\n";
    let chained = folder.merge_to("chained", yaml).expect("merges");
    assert!(chained == whole);
}

#[test]
fn an_adapters_names_can_be_brought_to_the_bases() {
    let folder = Folder::new(vec![("model.fc.weight", raw(&[1, 1], &[1.0]))]);
    folder.adapter(
        "a",
        r#""r": 1, "lora_alpha": 1, "alpha_pattern": {"language_model.fc": 2}"#,
        vec![
            (
                "model.language_model.fc.lora_A.weight",
                raw(&[1, 1], &[1.0]),
            ),
            (
                "model.language_model.fc.lora_B.weight",
                raw(&[1, 1], &[1.0]),
            ),
        ],
    );
    let said = folder.fault("a");
    assert!(
        said.contains("changes `model.language_model.fc.weight`, which"),
        "{said}"
    );
    let yaml = "merge_method: passthrough\nmodels:\n- model: <base>+a\n  adapter_rename: [{from: \
                '^model.language_model', to: model}]\n";
    let merged = folder.merge_to("merged", yaml).expect("merges");
    // Patterns of the settings go by the adapter's own names.
    assert_eq!(merged["model.fc.weight"].values(), [3.0]);
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_line_and_tensor_all_at_once() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 3], &[0.0; 6])),
        ("head.weight", raw(&[1, 2], &[0.0; 2])),
        (
            "eight.weight",
            Raw {
                dtype: Dtype::F8_E4M3,
                shape: vec![1, 1],
                bytes: vec![0],
            },
        ),
    ]);
    let a = |shape: &[usize]| raw(shape, &vec![0.0; shape.iter().product()]);
    folder.adapter(
        "other",
        R1,
        vec![
            ("fc.lora_A.weight", a(&[1, 4])),
            ("fc.lora_B.weight", a(&[2, 1])),
            ("gone.lora_A.weight", a(&[1, 3])),
            ("gone.lora_B.weight", a(&[2, 1])),
            ("head.weight", a(&[3, 2])),
            ("eight.lora_A.weight", a(&[1, 1])),
            ("eight.lora_B.weight", a(&[1, 1])),
        ],
    );
    let said = folder.fault("other");
    for part in [
        "`base_model.model.fc.lora_A.weight` (A [1, 4] and B [2, 1] of rank 1) does not fit `fc.weight`, F32 [2, 3]",
        "`base_model.model.gone.lora_A.weight` changes `gone.weight`, which",
        "`base_model.model.head.weight` (F32 [3, 2]) does not fit `head.weight`, F32 [1, 2]",
        "does not fit `eight.weight`, F8_E4M3 [1, 1]",
        "(line 3, column 3)",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    type Case<'a> = (&'a str, Vec<(&'a str, Raw)>, &'a str);
    let cases: [Case<'_>; 5] = [
        (
            "rank",
            vec![
                ("fc.lora_A.weight", a(&[2, 3])),
                ("fc.lora_B.weight", a(&[2, 2])),
            ],
            "of rank 1) does not fit",
        ),
        (
            "half",
            vec![("fc.lora_A.weight", a(&[1, 3]))],
            "needs `base_model.model.fc.lora_B.weight`",
        ),
        (
            "other_half",
            vec![("fc.lora_B.weight", a(&[2, 1]))],
            "needs `base_model.model.fc.lora_A.weight`",
        ),
        (
            "dora",
            vec![("fc.lora_magnitude_vector", a(&[3]))],
            "fc.lora_magnitude_vector` ([3]) does not fit `fc.weight`",
        ),
        (
            "twice",
            vec![
                ("head.weight", a(&[1, 2])),
                ("head.base_layer.weight", a(&[1, 2])),
            ],
            "is a second change of `head.weight`",
        ),
    ];
    for (name, tensors, part) in cases {
        folder.adapter(name, R1, tensors);
        let said = folder.fault(name);
        assert!(said.contains(part), "no {part} in {said}");
        assert!(said.contains("(line 3, column 3)"), "{said}");
    }
    let said = folder.fault("nowhere");
    assert!(said.contains("nowhere/adapter_config.json"), "{said}");
}

#[test]
fn values_that_are_not_finite_are_found_in_the_sum() {
    let folder = Folder::new(vec![("fc.weight", halved(&[1, 1], &[1.0]))]);
    let tensors = vec![
        ("fc.lora_A.weight", raw(&[1, 1], &[f32::NAN])),
        ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
    ];
    folder.adapter("a", R1, tensors);
    assert!(folder.fault("a").contains("`fc.weight`"));
}

#[test]
fn adapters_are_stacked_in_their_order_each_with_its_weight() {
    let folder = Folder::new(vec![("fc.weight", raw(&[1, 2], &[1.0, 2.0]))]);
    for (name, value) in [("one", 1.0), ("two", 3.0)] {
        let product = vec![
            ("fc.lora_A.weight", raw(&[1, 2], &[value, 1.0])),
            ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
        ];
        folder.adapter(name, R1, product);
    }
    folder.adapter("whole", R1, vec![("fc.weight", raw(&[1, 2], &[9.0, 9.0]))]);
    // 2 B A of each: (2, 2) and (6, 2).
    let of = |adapters: &str| folder.with(adapters).expect("merges")["fc.weight"].values();
    assert_eq!(of("one+two"), [9.0, 6.0]);
    assert_eq!(of("one*0.5+two"), [8.0, 5.0]);
    assert_eq!(of("one*-1"), [-1.0, 0.0]);
    assert_eq!(of("one+whole"), [9.0, 9.0]);
    // Half the way from (3, 4) to (9, 9).
    assert_eq!(of("one+whole*0.5"), [6.0, 6.5]);
}

#[test]
fn dora_brings_the_rows_of_the_sum_to_its_lengths() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 2], &[3.0, 3.0, 0.0, 1.0])),
        ("embed.weight", raw(&[2, 1], &[3.0, 4.0])),
    ]);
    folder.adapter(
        "dora",
        r#""r": 1, "lora_alpha": 1, "use_dora": true"#,
        vec![
            ("fc.lora_A.weight", raw(&[1, 2], &[0.0, 1.0])),
            ("fc.lora_B.weight", raw(&[2, 1], &[1.0, 1.0])),
            ("fc.lora_magnitude_vector", raw(&[2], &[10.0, 3.0])),
            ("embed.lora_embedding_A", raw(&[1, 2], &[0.0, 0.0])),
            ("embed.lora_embedding_B", raw(&[1, 1], &[0.0])),
            ("embed.lora_magnitude_vector", raw(&[1], &[10.0])),
        ],
    );
    let merged = folder.with("dora").expect("merges");
    // (3, 4) of length 5 to 10, (0, 2) to 3; columns of embeddings.
    assert_eq!(merged["fc.weight"].values(), [6.0, 8.0, 0.0, 3.0]);
    assert_eq!(merged["embed.weight"].values(), [6.0, 8.0]);
}

#[test]
fn fused_experts_get_a_product_each_whichever_way_they_are_kept() {
    let settings =
        r#""r": 1, "lora_alpha": 1, "target_parameters": ["experts.up", "experts.down"]"#;
    // Two experts; A has a row for each, B a column.
    let inner = |module: &str| {
        vec![
            (
                format!("{module}.lora_A.weight"),
                raw(&[2, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]),
            ),
            (
                format!("{module}.lora_B.weight"),
                raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            ),
        ]
    };
    let folder = Folder::new(vec![
        ("experts.up", raw(&[2, 3, 2], &[0.0; 12])),
        ("experts.down", raw(&[2, 2, 3], &[0.0; 12])),
    ]);
    let outer = inner("experts.base_layer");
    let outer = outer
        .iter()
        .map(|(name, raw)| (name.as_str(), raw.clone()))
        .collect();
    // One adapter for two tensors that both fit is ambiguous.
    folder.adapter("both", settings, outer);
    assert!(folder.fault("both").contains("do not tell which is meant"));
    for (parameter, expected) in [
        (
            "up",
            vec![
                1.0, 3.0, 2.0, 6.0, 3.0, 9.0, 20.0, 40.0, 40.0, 80.0, 60.0, 120.0,
            ],
        ),
        (
            "down",
            vec![
                1.0, 2.0, 3.0, 3.0, 6.0, 9.0, 20.0, 40.0, 60.0, 40.0, 80.0, 120.0,
            ],
        ),
    ] {
        let own = inner("experts");
        let own = own
            .iter()
            .map(|(name, raw)| (name.as_str(), raw.clone()))
            .collect();
        let settings =
            format!(r#""r": 1, "lora_alpha": 1, "target_parameters": ["experts.{parameter}"]"#);
        folder.adapter(parameter, &settings, own);
        let merged = folder.with(parameter).expect("merges");
        assert_eq!(merged[&format!("experts.{parameter}")].values(), expected);
    }
}

#[test]
fn products_by_element_and_of_kronecker_are_added() {
    let folder = Folder::new(vec![("fc.weight", raw(&[2, 2], &[0.0; 4]))]);
    folder.adapter(
        "loha",
        r#""r": 1, "alpha": 2, "peft_type": "LOHA""#,
        vec![
            ("fc.hada_w1_a", raw(&[2, 1], &[1.0, 2.0])),
            ("fc.hada_w1_b", raw(&[1, 2], &[1.0, 3.0])),
            ("fc.hada_w2_a", raw(&[2, 1], &[1.0, 1.0])),
            ("fc.hada_w2_b", raw(&[1, 2], &[5.0, 7.0])),
        ],
    );
    folder.adapter(
        "lokr",
        r#""r": 1, "alpha": 1, "peft_type": "LOKR""#,
        vec![
            ("fc.lokr_w1", raw(&[1, 2], &[1.0, 10.0])),
            ("fc.lokr_w2_a", raw(&[2, 1], &[1.0, 2.0])),
            ("fc.lokr_w2_b", raw(&[1, 1], &[3.0])),
        ],
    );
    let of = |adapter: &str| folder.with(adapter).expect("merges")["fc.weight"].values();
    assert_eq!(of("loha"), [10.0, 42.0, 20.0, 84.0]);
    assert_eq!(of("lokr"), [3.0, 30.0, 6.0, 60.0]);
}

#[test]
fn names_of_kohya_and_diffusers_mean_the_modules_of_the_base() {
    let folder = Folder::new(vec![
        ("down.0.attn1.to_q.weight", raw(&[1, 2], &[0.0; 2])),
        ("down.0.attn1.to_out.0.weight", raw(&[1, 2], &[0.0; 2])),
    ]);
    let product = |down: &str, up: &str| {
        vec![
            (down.to_owned(), raw(&[1, 2], &[1.0, 2.0])),
            (up.to_owned(), raw(&[1, 1], &[1.0])),
        ]
    };
    let file = |name: &str, mut tensors: Vec<(String, Raw)>, more: Vec<(&str, Raw)>| {
        tensors.extend(more.into_iter().map(|(name, raw)| (name.to_owned(), raw)));
        let path = folder.path(name);
        fixture::write(&path, &tensors.into_iter().collect());
        format!("{name}.safetensors")
    };
    let q = "down.0.attn1.to_q.weight";
    let kohya = "lora_unet_down_0_attn1_to_q";
    let name = file(
        "kohya",
        product(
            &format!("{kohya}.lora_down.weight"),
            &format!("{kohya}.lora_up.weight"),
        ),
        vec![
            ("lora_unet_down_0_attn1_to_q.alpha", raw(&[], &[3.0])),
            // For a text encoder, which is another file.
            (
                "lora_te_layers_0_q.lora_down.weight",
                raw(&[1, 2], &[1.0, 2.0]),
            ),
            ("lora_te_layers_0_q.lora_up.weight", raw(&[1, 1], &[1.0])),
            ("lora_te_layers_0_q.alpha", raw(&[], &[3.0])),
        ],
    );
    assert_eq!(folder.with(&name).expect("merges")[q].values(), [3.0, 6.0]);
    let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{name}\n");
    let plan = folder.plan(&yaml).expect("resolves");
    let notes: Vec<&str> = (plan.beside().ingredients.iter())
        .filter_map(|ingredient| ingredient.note.as_deref())
        .collect();
    assert!(
        notes[0].contains("3 tensors are for other parts"),
        "{notes:?}"
    );
    for (name, down, up) in [
        (
            "new",
            "unet.down.0.attn1.to_q.lora_A.weight",
            "unet.down.0.attn1.to_q.lora_B.weight",
        ),
        (
            "old",
            "unet.down.0.attn1.to_q.lora.down.weight",
            "unet.down.0.attn1.to_q.lora.up.weight",
        ),
        (
            "older",
            "unet.down.0.attn1.processor.to_q_lora.down.weight",
            "unet.down.0.attn1.processor.to_q_lora.up.weight",
        ),
    ] {
        let name = file(name, product(down, up), Vec::new());
        assert_eq!(
            folder.with(&name).expect("merges")[q].values(),
            [1.0, 2.0],
            "{name}"
        );
    }
    let output = "unet.down.0.attn1.processor.to_out_lora";
    let tensors = product(
        &format!("{output}.down.weight"),
        &format!("{output}.up.weight"),
    );
    let name = file("output", tensors, Vec::new());
    let merged = folder.with(&name).expect("merges");
    assert_eq!(merged["down.0.attn1.to_out.0.weight"].values(), [1.0, 2.0]);
}

#[test]
fn several_adapters_become_one_side_by_side_or_cut_to_a_rank() {
    let folder = Folder::new(vec![("fc.weight", raw(&[3, 4], &noise(1, &[3, 4])))]);
    for (name, rank, seed) in [("one", 1, 2), ("two", 2, 3)] {
        let product = vec![
            (
                "fc.lora_A.weight",
                raw(&[rank, 4], &noise(seed, &[rank, 4])),
            ),
            (
                "fc.lora_B.weight",
                raw(&[3, rank], &noise(seed + 10, &[3, rank])),
            ),
        ];
        folder.adapter(name, &format!(r#""r": {rank}, "lora_alpha": 3"#), product);
    }
    let both = [
        (folder.0.path().join("one"), 0.5),
        (folder.0.path().join("two"), -1.0),
    ];
    let combine = |name: &str, rank| {
        let target = merge::lora::ExtractTarget {
            folder: folder.0.path().join(name),
            force: false,
            command: "test".into(),
            base: PathBuf::new(),
        };
        merge::lora::combine(&both, rank, &target, &merge::progress::Silent).expect("combines")
    };
    let found = combine("joined", None);
    assert_eq!(
        (found.n_modules, found.rank, found.relative_error),
        (1, 3, 0.0)
    );
    let stacked = folder.with("one*0.5+two*-1").expect("merges")["fc.weight"].values();
    let joined = folder.with("joined").expect("merges")["fc.weight"].values();
    assert_eq!(
        fixture::first_difference(&joined, &stacked, 0.0, 1e-6),
        None
    );
    let cut = combine("cut", Some(2));
    assert_eq!(cut.rank, 2);
    assert!(cut.relative_error > 0.0 && cut.relative_error < 1.0);
    let near = folder.with("cut").expect("merges")["fc.weight"].values();
    let base = noise(1, &[3, 4]);
    let squares = |of: &dyn Fn(usize) -> f64| (0..12).map(|at| of(at).powi(2)).sum::<f64>();
    let missed = squares(&|at| near[at] - stacked[at]);
    let whole = squares(&|at| stacked[at] - f64::from(base[at]));
    assert!(((missed / whole).sqrt() - cut.relative_error).abs() < 1e-5);
}
