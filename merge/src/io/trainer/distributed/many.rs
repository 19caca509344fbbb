//! Tests of checkpoints in very many pieces.

use std::path::Path;

use super::metadata::{read, read_within};
use crate::{Error, TrainerFault};

const MODULE: &str = "torch.distributed.checkpoint.metadata";

fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_le_bytes();
    [b"X", &length[..], text.as_bytes(), b"\x94"].concat()
}

fn number(number: usize) -> Vec<u8> {
    [&b"J"[..], &(number as u32).to_le_bytes()].concat()
}

/// Sizes of two axes.
fn sizes(rows: usize, columns: usize) -> Vec<u8> {
    let (rows, columns) = (number(rows), number(columns));
    [
        b"ctorch\nSize\n\x94",
        &rows[..],
        &columns,
        b"\x86\x94\x85\x94R\x94",
    ]
    .concat()
}

fn object(class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items = attributes.iter();
    let items: Vec<u8> = items
        .flat_map(|(key, value)| [text(key), value.clone()].concat())
        .collect();
    let class = format!("c{MODULE}\n{class}\n");
    [class.as_bytes(), b"\x94)\x81\x94}\x94(", &items, b"ub"].concat()
}

/// A value that was numbered, by its number.
fn recalled(slot: usize) -> Vec<u8> {
    [&b"j"[..], &(slot as u32).to_le_bytes()].concat()
}

/// Items as Python's pickler writes them, a thousand at a time.
fn dictionary(items: &[Vec<u8>]) -> Vec<u8> {
    let batches = items.chunks(1000);
    let batches = batches.map(|batch| [&b"("[..], &batch.concat(), b"u"].concat());
    [&b"}\x94"[..], &batches.collect::<Vec<_>>().concat()].concat()
}

/// The metadata of tensors of which each rank has two rows of three, in a file called `file_name(rank)`, as protocol 4
/// writes them: each value is numbered, and names of tensors are recalled.
fn metadata(n_tensors: usize, n_ranks: usize, file_name: &dyn Fn(usize) -> String) -> Vec<u8> {
    let mut bytes = b"\x80\x04](".to_vec();
    for tensor in 0..n_tensors {
        bytes.extend(text(&format!("layers.{tensor}.weight")));
    }
    bytes.extend(b"e0");
    let (mut tensors, mut places) = (Vec::new(), Vec::new());
    for tensor in 0..n_tensors {
        let chunks = (0..n_ranks).map(|rank| {
            let (offsets, sizes) = (sizes(2 * rank, 0), sizes(2, 3));
            object(
                "ChunkStorageMetadata",
                &[("offsets", offsets), ("sizes", sizes)],
            )
        });
        let chunks = [&b"]\x94("[..], &chunks.collect::<Vec<_>>().concat(), b"e"].concat();
        let dtype = b"ctorch\nfloat32\n\x94".to_vec();
        let attributes = [
            (
                "properties",
                object("TensorProperties", &[("dtype", dtype)]),
            ),
            ("size", sizes(2 * n_ranks, 3)),
            ("chunks", chunks),
        ];
        let described = object("TensorStorageMetadata", &attributes);
        tensors.push([recalled(tensor), described].concat());
        for rank in 0..n_ranks {
            let index = [
                ("fqn", recalled(tensor)),
                ("offset", sizes(2 * rank, 0)),
                ("index", b"N".to_vec()),
            ];
            let place = [
                ("relative_path", text(&file_name(rank))),
                ("offset", number(tensor * 24)),
                ("length", number(24)),
            ];
            let pair = [
                object("MetadataIndex", &index),
                object("_StorageInfo", &place),
            ];
            places.push(pair.concat());
        }
    }
    let attributes = [
        ("state_dict_metadata", dictionary(&tensors)),
        ("planner_data", b"N".to_vec()),
        ("storage_data", dictionary(&places)),
    ];
    bytes.extend(object("Metadata", &attributes));
    bytes.push(b'.');
    bytes
}

#[test]
fn a_piece_takes_few_bytes_from_the_pickle_on() {
    let (n_tensors, n_ranks) = (1200, 64);
    // As values they would take more memory than a pickle is granted.
    let bytes = metadata(n_tensors, n_ranks, &|rank| format!("__{rank}_0.distcp"));
    let found = read(Path::new(".metadata"), &bytes).expect("it is read");
    assert_eq!(found.tensors.len(), n_tensors);
    assert_eq!(found.places.len(), n_tensors * n_ranks);
    assert_eq!(found.files.iter().len(), n_ranks);
    let chunks = found.tensors[7].chunks.iter();
    let wanted = (0..n_ranks).map(|rank| (vec![2 * rank, 0], vec![2, 3]));
    assert!(chunks.eq(wanted));
    let per_place = found.places.n_bytes() / found.places.len();
    assert!(per_place <= 24, "{per_place}");
}

#[test]
fn more_than_the_granted_memory_is_refused_by_its_limit() {
    let bytes = metadata(3, 64, &|rank| format!("__{rank}_0.distcp"));
    let path = Path::new(".metadata");
    assert!(read_within(path, &bytes, 1 << 20).is_ok());
    match read_within(path, &bytes, 1 << 12) {
        Err(Error::Trainer(fault)) => {
            let is_it = matches!(*fault, TrainerFault::ManyPieces { limit: 4096, .. });
            assert!(is_it, "{fault}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was read"),
    }
}
