//! Quantized models are read as the numbers that they stand for: those that the libraries make of the codes
//! (`tests/quantized_reference.py` made the fixtures).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merge::execute::{RunOptions, execute};
use merge::io::{OpenOptions, WriteOptions};
use merge::quantized::{check_castable, dequantized, open, recognize};
use merge::{Checkpoint, DType, Error, MergePlan, MergeRecipe, decode_f32};
use safetensors::Dtype;

use crate::stored::Stored;
use fixtures::{self as fixture, Raw};

/// Of a tensor's largest value: the last bits of a product or two.
const TOLERANCE: f64 = 1e-6;

const CASES: [&str; 14] = [
    "fp8_blocks",
    "transformers_fp8",
    "fp8_scales",
    "int8_rows",
    "mxfp8",
    "mxfp4",
    "fours",
    "bitsandbytes",
    "packed",
    "gptq",
    "gptq_v2",
    "awq",
    "sparse",
    "sparse_24",
];

fn path(name: &str) -> PathBuf {
    fixture::path("quantized").join(name)
}

fn values(checkpoint: &Checkpoint, key: &str) -> Vec<f64> {
    let info = checkpoint.require(key).expect("is there");
    let mut values = vec![0.0; info.n_elements()];
    let bytes = checkpoint.read_all(key).expect("readable");
    decode_f32(key, info.dtype, &bytes, &mut values).expect("numbers");
    values.into_iter().map(f64::from).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[test]
fn codes_stand_for_the_numbers_that_their_own_libraries_make_of_them() {
    for case in CASES {
        let found = open(&path(case), &OpenOptions::default()).expect("read");
        let expected = fixture::tensors(&path(&format!("{case}.safetensors")));
        let names: Vec<&str> = found.tensors().map(|(name, _)| name).collect();
        let mut wanted: Vec<&str> = expected.keys().map(String::as_str).collect();
        wanted.push("norm.weight");
        wanted.sort_unstable();
        assert_eq!(names, wanted, "{case}");
        for (key, raw) in &expected {
            let info = found.require(key).expect("is there");
            assert_eq!(
                (info.dtype, &info.shape),
                (DType::F32, &raw.shape),
                "{case} {key}"
            );
            assert_eq!(found.stored_dtype(key), Some(DType::BF16));
            let expected = raw.values();
            let tolerance = TOLERANCE * largest(&expected);
            let difference =
                fixture::first_difference(&values(&found, key), &expected, 0.0, tolerance);
            assert_eq!(difference, None, "{case} {key}");
        }
    }
}

#[test]
fn any_part_of_a_weight_reads_like_the_whole() {
    for case in CASES {
        let found = open(&path(case), &OpenOptions::default()).expect("read");
        for (key, info) in found.tensors().filter(|(_, info)| info.dtype == DType::F32) {
            let whole = found.read_all(key).expect("readable");
            for step in [1, 7, 61, 100, info.n_elements() - 1] {
                for first in (0..info.n_elements()).step_by(step * 13 + 1) {
                    let n = step.min(info.n_elements() - first);
                    let mut part = vec![0; 4 * n];
                    found.read(key, first, &mut part).expect("readable");
                    assert_eq!(
                        part,
                        whole[4 * first..4 * (first + n)],
                        "{case} {key} {first} {n}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_inspection_names_the_scheme_and_counts_numbers_not_codes() {
    let checkpoint = merge::io::open(&path("fours"), &OpenOptions::default()).expect("opens");
    let found = recognize(&checkpoint).expect("known").expect("quantized");
    let schemes: Vec<(String, usize, u64)> = (found.schemes().into_iter())
        .map(|count| (count.scheme, count.n_weights, count.n_elements))
        .collect();
    let expected = [("MXFP4".to_owned(), 1, 1536), ("NVFP4".to_owned(), 2, 3072)];
    assert_eq!(schemes, expected);
    assert_eq!(found.n_parameters(&checkpoint), 3 * 24 * 64 + 8);
    let scheme = |case: &str| {
        let checkpoint = merge::io::open(&path(case), &OpenOptions::default()).expect("opens");
        let found = recognize(&checkpoint).expect("known").expect("quantized");
        found.schemes()[0].scheme.clone()
    };
    assert_eq!(scheme("fp8_blocks"), "FP8 in blocks of 128 x 128");
    assert_eq!(scheme("mxfp8"), "MXFP8");
    assert_eq!(scheme("awq"), "AWQ of 4 bits in groups of 16");
    assert_eq!(scheme("gptq"), "GPTQ of 2 bits in groups of 32");
    let plain = Stored::new("plain").with("a.weight", &[1.0]).open();
    assert!(recognize(&plain).expect("known").is_none());
}

fn merged(yaml: &str, target: &Path) -> Result<BTreeMap<String, Raw>, Error> {
    let yaml = yaml
        .replace('<', &format!("{}/", path("").display()))
        .replace('>', "");
    let recipe = MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))?;
    let (plan, _) = MergePlan::resolve(&recipe)?;
    let write = WriteOptions {
        force: true,
        sync: false,
        ..WriteOptions::in_folder(target, None)
    };
    execute(
        &plan,
        &write,
        &RunOptions::default(),
        &merge::progress::Silent,
    )?;
    Ok(fixture::tensors(&target.join("model.safetensors")))
}

#[test]
fn merged_weights_are_those_that_the_codes_stand_for_and_say_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("out");
    let expected = fixture::tensors(&path("fp8_mean.safetensors"));
    for dtype in ["", "dtype: bfloat16\n"] {
        let yaml = format!(
            "merge_method: linear\nparameters: {{weight: 1}}\n{dtype}models: [<fp8_a>, <fp8_b>]\n"
        );
        let found = merged(&yaml, &target).expect("merges");
        let config = std::fs::read_to_string(target.join("config.json")).expect("written");
        assert!(!config.contains("quantization"), "{config}");
        assert!(!found.keys().any(|key| key.contains("scale")));
        assert_eq!(found.len(), 21);
        for (key, expected) in &expected {
            let (found, expected) = (&found[key], expected.values());
            assert_eq!(found.dtype, Dtype::BF16, "{key}");
            let tolerance = 1e-2 * largest(&expected);
            let difference = fixture::first_difference(&found.values(), &expected, 0.0, tolerance);
            assert_eq!(difference, None, "{key}");
        }
        let up = largest(&found["model.layers.0.mlp.up_proj.weight"].values());
        assert!((up - 0.1786).abs() < 1e-3, "{up}");
    }
}

#[test]
fn quantized_bases_take_adapters_and_are_merged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("out");
    let key = "model.layers.1.mlp.up_proj.weight";
    for base in ["gptq_a", "fp8_f16"] {
        let plain = format!("merge_method: passthrough\nmodels: [<{base}>]\n");
        let with = format!(
            "merge_method: passthrough\nmodels: ['<{base}>+{}']\n",
            path("adapter").display()
        );
        let plain = merged(&plain, &target).expect("merges");
        let with = merged(&with, &target).expect("merges");
        assert_eq!(plain[key].shape, [12, 8]);
        assert_eq!(with[key].dtype, Dtype::BF16);
        // B of a fresh adapter is zero.
        assert_eq!(plain[key].values(), with[key].values());
        assert_eq!(plain["model.norm.weight"], with["model.norm.weight"]);
    }
    let mean = merged(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [<gptq_a>, <gptq_b>]\n",
        &target,
    );
    assert_eq!(mean.expect("merges")[key].shape, [12, 8]);
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let fault = |stored: Stored| match recognize(&stored.open()) {
        Ok(_) => panic!("refused"),
        Err(error) => error.to_string(),
    };
    let bytes = |n: usize| vec![0; n];
    let of = |key: &str, dtype, shape: &[usize]| {
        let n = shape.iter().product::<usize>() * dtype_bytes(dtype);
        Stored::new("model").with_bytes(key, dtype, shape, bytes(n))
    };
    assert_eq!(
        fault(of("a.qweight", DType::I32, &[4, 32])),
        "model: `a.qweight` is quantized, and `a.qzeros` is not there"
    );
    assert_eq!(
        fault(of("a.weight", DType::F8E4M3, &[300, 256]).with_bytes(
            "a.weight_scale_inv",
            DType::F32,
            &[7, 2],
            bytes(56)
        )),
        "model: `a.weight` (F8_E4M3 [300, 256]) is quantized, and `a.weight_scale_inv` (F32 [7, 2]) \
         beside it does not fit"
    );
    assert_eq!(
        fault(of("a.weight", DType::BF16, &[4, 4]).with("a.weight_scale_inv", &[1.0])),
        "model: `a.weight` is BF16, but `a.weight_scale_inv` says that it is quantized"
    );
    let unknown = fault(of("a.weight_qdata", DType::I8, &[4, 4]));
    assert!(
        unknown.contains("`a.weight_qdata`") && unknown.contains("quantized"),
        "{unknown}"
    );
    // Plain 8-bit floats, as some image models have them.
    let plain = of("a.weight", DType::F8E4M3, &[4, 4]).open();
    assert!(recognize(&plain).expect("known").is_none());
    let castable = merge::io::open(&path("fp8_a"), &OpenOptions::default()).expect("opens");
    let fault = check_castable(&castable).expect_err("refused").to_string();
    assert!(fault.contains("FP8 with one scale"), "{fault}");
}

fn integers(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A sparse weight of F32, (2, 8), of which a row keeps elements 1 and 6, and the next element 0; with other bytes for
/// one of its parts, or without that part.
fn sparse(part: &str, instead: Option<&[u8]>) -> Arc<Checkpoint> {
    let kept: Vec<u8> = [1.5f32, 2.5, 3.5]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let parts: [(&str, DType, &[usize], Vec<u8>); 4] = [
        ("a.bitmask", DType::U8, &[2, 1], vec![0b0100_0010, 1]),
        ("a.compressed", DType::F32, &[3], kept),
        ("a.row_offsets", DType::I64, &[2], integers(&[0, 2])),
        ("a.shape", DType::I64, &[2], integers(&[2, 8])),
    ];
    let mut stored = Stored::new("model");
    for (key, dtype, shape, bytes) in parts {
        match (key == part, instead) {
            (true, None) => {}
            (true, Some(other)) => stored = stored.with_bytes(key, dtype, shape, other.to_vec()),
            (false, _) => stored = stored.with_bytes(key, dtype, shape, bytes),
        }
    }
    Arc::new(stored.open())
}

#[test]
fn what_a_sparse_weight_keeps_stays_in_its_dtype() {
    let found = dequantized(sparse("", None)).expect("known");
    assert_eq!(found.stored_dtype("a.weight"), Some(DType::F32));
    let mut expected = [0.0; 16];
    (expected[1], expected[6], expected[8]) = (1.5, 2.5, 3.5);
    assert_eq!(values(&found, "a.weight"), expected);
    assert_eq!(found.tensors().count(), 1);
}

#[test]
fn a_sparse_weight_that_contradicts_itself_is_refused() {
    // Bits and offsets are compared as the rows are read.
    for (key, bytes) in [
        ("a.bitmask", vec![0b0100_0011, 1]),
        ("a.bitmask", vec![0b0100_0010, 3]),
        ("a.row_offsets", integers(&[0, 1])),
        ("a.row_offsets", integers(&[1, 3])),
        ("a.row_offsets", integers(&[0, i64::MAX])),
        ("a.row_offsets", integers(&[i64::MIN, 2])),
    ] {
        let found = dequantized(sparse(key, Some(&bytes))).expect("fits");
        let fault = found.read_all("a.weight").expect_err("refused").to_string();
        assert!(fault.contains("`a.bitmask` keeps"), "{fault}");
    }
    // Shapes are compared at once.
    for shape in [[2, 9], [3, 8], [-2, 8], [i64::MAX, 8], [0, 8]] {
        let fault = recognize(&sparse("a.shape", Some(&integers(&shape)))).err();
        let fault = fault.expect("refused").to_string();
        assert!(fault.contains("does not fit"), "{shape:?}: {fault}");
    }
    for key in ["a.bitmask", "a.compressed", "a.row_offsets", "a.shape"] {
        let fault = recognize(&sparse(key, None))
            .err()
            .expect("refused")
            .to_string();
        assert!(fault.contains(&format!("`{key}` is not there")), "{fault}");
    }
}

fn dtype_bytes(dtype: DType) -> usize {
    dtype.size_bytes()
}

#[test]
fn a_method_that_config_json_names_and_nobody_knows_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("model.safetensors");
    let raw = Raw {
        dtype: Dtype::F32,
        shape: vec![1],
        bytes: vec![0; 4],
    };
    fixture::write(&model, &BTreeMap::from([("a.weight".to_owned(), raw)]));
    let config = r#"{"quantization_config": {"quant_method": "torchao"}}"#;
    std::fs::write(folder.path().join("config.json"), config).expect("written");
    let Err(fault) = open(folder.path(), &OpenOptions::default()) else {
        panic!("refused");
    };
    assert!(fault.to_string().contains("quantized (torchao)"), "{fault}");
}
