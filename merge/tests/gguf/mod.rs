//! GGUF files: headers that lie, names and order of rows, and models written and read again. `tests/gguf_reference.py`
//! holds numbers against gguf-py.

use std::collections::BTreeMap;

use merge::io::{Container, OpenOptions, PlainValue, open_in_memory};
use merge::{Checkpoint, Error, GgufFault};

mod folders;
mod written;

const F32: u32 = 0;
const Q4_K: u32 = 12;
const IQ2_XXS: u32 = 16;

/// A file under construction, of which every number may be a lie.
#[derive(Clone)]
struct File {
    version: u32,
    n_tensors: Option<u64>,
    n_entries: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn string(key: &str, value: &str) -> Vec<u8> {
    entry(key, 8, &text(value))
}

fn number(key: &str, value: u32) -> Vec<u8> {
    entry(key, 4, &value.to_le_bytes())
}

fn tensor(name: &str, sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((sizes.len() as u32).to_le_bytes());
    bytes.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl File {
    fn new(entries: Vec<Vec<u8>>, tensors: Vec<Vec<u8>>, n_data: usize) -> Self {
        Self {
            version: 3,
            n_tensors: None,
            n_entries: None,
            entries,
            tensors,
            data: vec![0; n_data],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let n_tensors = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        let n_entries = self.n_entries.unwrap_or(self.entries.len() as u64);
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_entries.to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn open(&self) -> merge::Result<Checkpoint> {
        open_in_memory(&self.bytes(), &OpenOptions::default())
    }

    fn fault(&self) -> GgufFault {
        match self.open() {
            Ok(_) => panic!("it was opened"),
            Err(Error::Gguf(fault)) => *fault,
            Err(other) => panic!("another fault: {other}"),
        }
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn a_header_that_lies_is_refused_by_name() {
    let one = |sizes: &[u64], kind, offset, n_data| {
        File::new(vec![], vec![tensor("w", sizes, kind, offset)], n_data)
    };
    assert!(one(&[4], F32, 0, 16).open().is_ok());
    let fault = one(&[4], F32, 0, 15).fault();
    assert!(matches!(fault, GgufFault::Outside { key, .. } if key == "w"));
    let fault = one(&[4], F32, u64::MAX - 31, 16).fault();
    assert!(matches!(fault, GgufFault::Outside { .. }));
    let fault = one(&[4], F32, 8, 64).fault();
    assert!(matches!(fault, GgufFault::Unaligned { offset: 8, .. }));
    for sizes in [
        [1 << 33, 1 << 33],
        [u64::MAX, 2],
        [0, u64::MAX],
        [1 << 62, 1],
    ] {
        let fault = one(&sizes, F32, 0, 16).fault();
        assert!(
            matches!(fault, GgufFault::Overflow { .. }),
            "{sizes:?}: {fault}"
        );
    }
    assert!(matches!(
        one(&[], F32, 0, 16).fault(),
        GgufFault::Axes { n_axes: 0, .. }
    ));
    assert!(matches!(
        one(&[1; 5], F32, 0, 16).fault(),
        GgufFault::Axes { n_axes: 5, .. }
    ));
    assert!(matches!(
        one(&[4], 4, 0, 16).fault(),
        GgufFault::Type { type_id: 4, .. }
    ));
    assert!(matches!(
        one(&[4], 9999, 0, 16).fault(),
        GgufFault::Type { .. }
    ));
    let fault = one(&[128, 2], Q4_K, 0, 144).fault();
    assert!(matches!(
        fault,
        GgufFault::Rows {
            width: 128,
            block: 256,
            ..
        }
    ));

    let two = |offset, n_data| {
        let tensors = vec![tensor("a", &[16], F32, 0), tensor("b", &[4], F32, offset)];
        File::new(vec![], tensors, n_data)
    };
    assert!(two(64, 80).open().is_ok());
    let fault = two(32, 80).fault();
    assert!(matches!(fault, GgufFault::Overlap { key, other, .. } if key == "b" && other == "a"));
    let same = vec![tensor("a", &[4], F32, 0), tensor("a", &[4], F32, 32)];
    let fault = File::new(vec![], same, 64).open();
    assert!(matches!(fault, Err(Error::DuplicateKey { key, .. }) if key == "a"));
}

#[test]
fn counts_and_lengths_are_held_against_the_file() {
    let plain = File::new(vec![string("a", "b")], vec![tensor("w", &[4], F32, 0)], 16);
    assert!(plain.open().is_ok());
    for n in [1 << 20, 1 << 40, u64::MAX] {
        let lies = File {
            n_tensors: Some(n),
            ..plain.clone()
        };
        assert!(matches!(lies.fault(), GgufFault::Count { .. }));
        let lies = File {
            n_entries: Some(n),
            ..plain.clone()
        };
        assert!(matches!(lies.fault(), GgufFault::Count { .. }));
        let array = [8u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
        let lies = File::new(vec![entry("a", 9, &array)], vec![], 0);
        assert!(matches!(lies.fault(), GgufFault::Count { .. }));
        let lies = File::new(vec![entry("a", 8, &n.to_le_bytes())], vec![], 0);
        assert!(matches!(lies.fault(), GgufFault::HeaderCut { .. }));
    }
    let twice = File::new(vec![string("a", "b"), string("a", "c")], vec![], 0);
    assert!(matches!(twice.fault(), GgufFault::RepeatedEntry { key, .. } if key == "a"));
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    let nested = File::new(vec![entry("a", 9, &nested)], vec![], 0);
    assert!(matches!(nested.fault(), GgufFault::EntryType { .. }));
    assert!(matches!(
        File::new(vec![entry("a", 13, &[])], vec![], 0).fault(),
        GgufFault::EntryType { .. }
    ));
    for alignment in [0, 1, 24, u32::MAX] {
        let file = File::new(vec![number("general.alignment", alignment)], vec![], 0);
        assert!(
            matches!(file.fault(), GgufFault::Alignment { .. }),
            "{alignment}"
        );
    }
    let version = |version| {
        File {
            version,
            ..plain.clone()
        }
        .fault()
    };
    assert!(matches!(version(1), GgufFault::Version { version: 1, .. }));
    assert!(matches!(
        version(3u32.swap_bytes()),
        GgufFault::BigEndian { .. }
    ));
    let whole = plain.bytes();
    for cut in 4..whole.len() {
        assert!(
            open_in_memory(&whole[..cut], &OpenOptions::default()).is_err(),
            "{cut}"
        );
    }
}

#[test]
fn no_change_of_a_byte_makes_the_reader_panic() {
    let entries = vec![
        string("general.architecture", "llama"),
        number("llama.attention.head_count", 2),
        number("llama.attention.head_count_kv", 1),
    ];
    let tensors = vec![
        tensor("blk.0.attn_q.weight", &[4, 8], F32, 0),
        tensor("blk.0.ffn_gate_exps.weight", &[256, 2, 2], Q4_K, 128),
    ];
    let bytes = File::new(entries, tensors, 128 + 4 * 144).bytes();
    let mut n_opened = 0;
    for at in 0..bytes.len().min(400) {
        for change in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            let Ok(found) = open_in_memory(&changed, &OpenOptions::default()) else {
                continue;
            };
            n_opened += 1;
            for (name, info) in found.tensors().filter(|(_, info)| info.n_bytes() < 1 << 20) {
                let mut out = vec![0; info.n_bytes() as usize];
                let _ = found.read(name, 0, &mut out);
            }
        }
    }
    assert!(n_opened > 100);
}

#[test]
fn a_quantization_that_is_not_read_is_listed_and_refused_by_name() {
    let mut file = File::new(
        vec![],
        vec![tensor("w", &[256], IQ2_XXS, 0), tensor("x", &[2], F32, 96)],
        104,
    );
    file.data[96..].copy_from_slice(&floats([1.0, 2.0]));
    let found = file.open().expect("listed");
    assert_eq!(found.source().stored_as(0), Some("IQ2_XXS"));
    assert_eq!(found.read_all("x").expect("numbers"), floats([1.0, 2.0]));
    let fault = found.read_all("w").expect_err("no numbers").to_string();
    assert!(
        fault.contains("`w`") && fault.contains("IQ2_XXS"),
        "{fault}"
    );
    // Before any work, too.
    let fault = merge::quantized::check_readable(&found).expect_err("no numbers");
    assert!(matches!(
        &fault,
        Error::Gguf(fault) if matches!(&**fault, GgufFault::Unreadable { key, .. } if key == "w")
    ));
    assert!(
        fault
            .hint()
            .is_some_and(|hint| hint.contains("llama-quantize"))
    );
    let plain = File::new(vec![], vec![tensor("x", &[2], F32, 0)], 8);
    merge::quantized::check_readable(&plain.open().expect("read")).expect("numbers");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("q.gguf");
    std::fs::write(&path, file.bytes()).expect("written");
    // A comparison refuses it unless it compares headers alone.
    for raw in [false, true] {
        let options = OpenOptions { root: None, raw };
        let compared = |headers_only| merge::diff::opened(&path, &options, headers_only);
        let fault = compared(false).err().expect("refused").to_string();
        assert!(fault.contains("IQ2_XXS"), "{fault}");
        assert!(compared(true).is_ok());
    }
    let recipe = merge::MergeRecipe {
        merge_method: "passthrough".into(),
        models: vec![merge::recipe::ModelRef::new(&path)],
        ..merge::MergeRecipe::default()
    };
    let fault = merge::MergePlan::resolve(&recipe).err().expect("refused");
    assert!(fault.to_string().contains("IQ2_XXS"), "{fault}");
}

#[test]
fn any_part_of_a_quantized_tensor_reads_like_the_whole() {
    let mut file = File::new(vec![], vec![tensor("w", &[512, 3], Q4_K, 0)], 6 * 144);
    for (at, byte) in file.data.iter_mut().enumerate() {
        *byte = match at % 144 {
            0..4 => [0x12, 0x2c, 0x07, 0x28][at % 144],
            _ => (at * 37 % 251) as u8,
        };
    }
    let found = file.open().expect("read");
    let whole = found.read_all("w").expect("numbers");
    for (first, n) in [
        (0, 1),
        (255, 2),
        (256, 256),
        (300, 700),
        (1535, 1),
        (1, 1535),
    ] {
        let mut part = vec![0; 4 * n];
        found.read("w", first, &mut part).expect("numbers");
        assert_eq!(part, whole[4 * first..4 * (first + n)], "{first} {n}");
        // Not aligned for f32.
        let mut shifted = vec![0; 4 * n + 1];
        found.read("w", first, &mut shifted[1..]).expect("numbers");
        assert_eq!(&shifted[1..], part);
    }
}

#[test]
fn metadata_are_values_and_long_arrays_are_cut() {
    let numbers: Vec<u8> = (0..200u32).flat_map(u32::to_le_bytes).collect();
    let array = [
        4u32.to_le_bytes().to_vec(),
        200u64.to_le_bytes().to_vec(),
        numbers,
    ]
    .concat();
    let epsilon = entry("e", 6, &1e-5f32.to_le_bytes());
    let file = File::new(
        vec![
            string("general.architecture", "x"),
            epsilon,
            entry("a", 9, &array),
        ],
        vec![],
        0,
    );
    let found = file.open().expect("read");
    assert_eq!(found.info().container, Container::Gguf);
    let values: BTreeMap<String, PlainValue> = (found.info().values.iter())
        .map(|(path, value)| (path.to_string(), value.clone()))
        .collect();
    assert_eq!(values["e"], PlainValue::Float(1e-5), "as it is meant");
    assert_eq!(
        values["a"],
        PlainValue::Text("200 numbers: [0, 1, 2, 3, …]".into())
    );
    assert!(found.notes()[0].contains("architecture `x`"));
}

#[test]
fn rows_of_queries_come_back_into_halves_and_experts_apart() {
    let entries = vec![
        string("general.architecture", "llama"),
        number("llama.attention.head_count", 2),
        number("llama.attention.head_count_kv", 1),
        number("llama.expert_count", 2),
    ];
    let tensors = vec![
        tensor("blk.3.attn_q.weight", &[1, 8], F32, 0),
        tensor("blk.3.ffn_up_exps.weight", &[2, 1, 2], F32, 32),
        tensor("rope_freqs.weight", &[2], F32, 64),
    ];
    let mut file = File::new(entries, tensors, 72);
    file.data[..32].copy_from_slice(&floats((0..8).map(|row| row as f32)));
    file.data[32..48].copy_from_slice(&floats([1.0, 2.0, 3.0, 4.0]));
    let found = file.open().expect("read");
    let queries = found.read_all("model.layers.3.self_attn.q_proj.weight");
    // Heads of four rows, neighbors of which are a pair.
    assert_eq!(
        queries.expect("numbers"),
        floats([0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0])
    );
    let expert = "model.layers.3.block_sparse_moe.experts.1.w3.weight";
    assert_eq!(found.get(expert).expect("there").shape, [1, 2]);
    assert_eq!(found.read_all(expert).expect("numbers"), floats([3.0, 4.0]));
    assert_eq!(
        found.tensors().count(),
        3,
        "frequencies are computed by loaders"
    );
    let raw = OpenOptions {
        raw: true,
        ..OpenOptions::default()
    };
    let own = open_in_memory(&file.bytes(), &raw).expect("read");
    assert!(own.get("blk.3.attn_q.weight").is_some() && own.get("rope_freqs.weight").is_some());
    // Without heads nobody knows the order of rows.
    file.entries.remove(1);
    let fault = file.fault();
    assert!(matches!(fault, GgufFault::Fact { key, .. } if key == "llama.attention.head_count"));
}
