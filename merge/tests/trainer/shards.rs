//! Shards of safetensors, as the storage writer of torch for Hugging Face leaves them.

use std::fs;
use std::path::Path;

use merge::io::{Container, OpenOptions, open};
use merge::{AssemblyFault, Error, TrainerFault};
use tempfile::TempDir;

use super::{fault, opened, refused};
use crate::torch_reader::floats;

/// A box of a tensor of floats: its name, size, where it begins, and its elements.
type Held<'a> = (&'a str, &'a [usize], &'a [usize], Vec<u8>);

/// Bytes of a file of safetensors with these boxes and this metadata.
fn file(boxes: &[Held<'_>], info: Option<&str>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, size, _, bytes) in boxes {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": "F32", "shape": size, "data_offsets": offsets});
        header.insert((*name).to_owned(), entry);
        data.extend_from_slice(bytes);
    }
    let mut metadata = serde_json::json!({"format": "pt", "DCP_VERSION": "1.0"});
    if let Some(info) = info {
        metadata["DCP_SHARDING_INFO"] = info.into();
    }
    header.insert("__metadata__".into(), metadata);
    let header = serde_json::to_vec(&header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

fn saved(boxes: &[Held<'_>]) -> String {
    let starts = boxes.iter().map(|(name, _, start, _)| {
        (
            (*name).to_owned(),
            serde_json::json!({ "saved_offsets": start }),
        )
    });
    serde_json::Value::Object(starts.collect()).to_string()
}

fn name(shard: usize, part: usize) -> String {
    format!("shard-{shard:05}-model-{part:05}-of-00002.safetensors")
}

fn write(folder: &Path, shard: usize, part: usize, boxes: &[Held<'_>]) {
    let bytes = file(boxes, Some(&saved(boxes)));
    fs::write(folder.join(name(shard, part)), bytes).expect("written");
}

/// A tensor of 4 x 3 in rows, 0..12, and one of 2 x 2 in columns, 0..4; the first shard in two files.
fn written() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, square) = (floats(12), floats(4));
    let of = |numbers: &[usize]| -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| square[4 * number..4 * (number + 1)].to_vec())
            .collect()
    };
    write(
        folder.path(),
        1,
        1,
        &[("rows", &[3, 3], &[0, 0], rows[..36].to_vec())],
    );
    write(
        folder.path(),
        1,
        2,
        &[("square", &[2, 1], &[0, 0], of(&[0, 2]))],
    );
    let second = [
        ("square", &[2, 1][..], &[0, 1][..], of(&[1, 3])),
        ("rows", &[1, 3], &[3, 0], rows[36..].to_vec()),
    ];
    write(folder.path(), 2, 1, &second);
    folder
}

#[test]
fn boxes_of_all_shards_are_whole_tensors() {
    let folder = written();
    let found = opened(folder.path());
    assert_eq!(found.info().container, Container::Shards);
    assert_eq!(found.get("rows").expect("there").shape, [4, 3]);
    assert_eq!(found.read_all("rows").expect("read"), floats(12));
    assert_eq!(found.read_all("square").expect("read"), floats(4));
    let notes = found.notes().join("\n");
    assert!(notes.contains("2 shards"), "{notes}");
}

#[test]
fn a_shard_is_not_the_model() {
    let folder = written();
    let path = folder.path().join(name(2, 1));
    assert!(matches!(
        fault(refused(&path)),
        TrainerFault::OnePart { .. }
    ));
}

#[test]
fn a_shard_that_is_not_there_leaves_a_hole_or_is_noted() {
    let folder = written();
    fs::remove_file(folder.path().join(name(1, 1))).expect("removed");
    match refused(folder.path()) {
        Error::Assembly(said) => {
            assert!(
                matches!(*said, AssemblyFault::Incomplete { n_given: 3, .. }),
                "{said}"
            );
        }
        other => panic!("{other}"),
    }
    // A process that has nothing of its own writes no shard.
    let folder = written();
    fs::rename(
        folder.path().join(name(2, 1)),
        folder.path().join(name(4, 1)),
    )
    .expect("moved");
    let notes = opened(folder.path()).notes().join("\n");
    assert!(notes.contains("not there: 2, 3"), "{notes}");
}

#[test]
fn shards_that_lie_are_refused() {
    let changed = |boxes: &[Held<'_>], info: Option<&str>| {
        let folder = written();
        fs::write(folder.path().join(name(2, 1)), file(boxes, info)).expect("written");
        refused(folder.path())
    };
    let part = |start: &'static [usize], size: &'static [usize]| -> Vec<Held<'static>> {
        let n = size.iter().product::<usize>();
        vec![("rows", size, start, floats(n))]
    };
    let row = part(&[3, 0], &[1, 3]);
    assert!(matches!(
        fault(changed(&row, None)),
        TrainerFault::NoShardingInfo { .. }
    ));
    for json in [
        "[]",
        "{",
        r#"{"rows": {}}"#,
        r#"{"rows": {"saved_offsets": [-1, 0]}}"#,
    ] {
        let said = fault(changed(&row, Some(json)));
        assert!(
            matches!(said, TrainerFault::BadShardingInfo { .. }),
            "{json}: {said}"
        );
    }
    for json in ["{}", r#"{"rows": {"saved_offsets": [3]}}"#] {
        let said = fault(changed(&row, Some(json)));
        assert!(
            matches!(&said, TrainerFault::NoOffsets { key, .. } if key == "rows"),
            "{json}: {said}"
        );
    }
    let huge = r#"{"rows": {"saved_offsets": [18446744073709551615, 0]}}"#;
    assert!(matches!(
        fault(changed(&row, Some(huge))),
        TrainerFault::TooLarge { .. }
    ));
    let far = r#"{"rows": {"saved_offsets": [1000000000, 0]}}"#;
    assert!(matches!(changed(&row, Some(far)), Error::Assembly(_)));
    let twice = part(&[2, 0], &[2, 3]);
    match changed(&twice, Some(&saved(&twice))) {
        Error::Assembly(said) => assert!(matches!(*said, AssemblyFault::Overlap { .. }), "{said}"),
        other => panic!("{other}"),
    }
    let flat = part(&[9], &[3]);
    let said = fault(changed(&flat, Some(&saved(&flat))));
    assert!(matches!(said, TrainerFault::RanksDisagree { .. }), "{said}");
}

#[test]
fn another_root_is_refused() {
    let options = OpenOptions {
        root: Some("model".into()),
        ..OpenOptions::default()
    };
    let said = open(written().path(), &options).err().expect("refused");
    assert!(matches!(said, Error::UnknownRoot { .. }), "{said}");
}
