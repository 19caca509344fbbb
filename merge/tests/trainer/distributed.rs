//! Checkpoints of `torch.distributed.checkpoint`.

use std::fs;
use std::path::Path;

use merge::io::{Container, OpenOptions, open};
use merge::{AssemblyFault, DType, Error, TrainerFault};
use tempfile::TempDir;

use super::{copy, fault, fixture, opened, refused, require_equal};
use crate::torch_reader::{Pickle, archive, floats};

#[test]
fn the_pieces_of_two_ranks_are_the_model_that_torch_gathers() {
    let folder = fixture("distributed");
    let expected = opened(&fixture("distributed.pt"));
    for path in [folder.clone(), folder.join(".metadata")] {
        let found = opened(&path);
        assert_eq!(found.info().container, Container::Distributed);
        assert_eq!(found.info().root, "model");
        assert_eq!(found.info().files.len(), 3);
        // The optimizer is there, but without names.
        assert!(found.source().tensors().len() > found.tensors().count());
        require_equal(&found, &expected);
    }
}

#[test]
fn another_root_is_read_where_it_is_asked_for() {
    let options = OpenOptions {
        root: Some("optimizer.state".into()),
        ..OpenOptions::default()
    };
    let found = open(&fixture("distributed"), &options).expect("opened");
    assert!(found.get("embed.weight.exp_avg").is_some());
}

#[test]
fn a_file_of_pieces_is_not_the_model() {
    let file = fixture("distributed").join("__0_0.distcp");
    assert!(matches!(fault(refused(&file)), TrainerFault::OnePart { path, .. } if path == file));
}

#[test]
fn a_missing_file_is_named() {
    let folder = copy("distributed");
    fs::remove_file(folder.path().join("__1_0.distcp")).expect("removed");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::MissingFile { file, .. } if file == "__1_0.distcp"),
        "{said}"
    );
    // As a save that was interrupted leaves it.
    fs::remove_file(folder.path().join(".metadata")).expect("removed");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::MissingFile { file, .. } if file == ".metadata"),
        "{said}"
    );
}

#[test]
fn a_cut_file_is_refused_by_file_and_tensor() {
    let folder = copy("distributed");
    let path = folder.path().join("__0_0.distcp");
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::PlaceOutside { path: named, .. } if *named == path),
        "{said}"
    );
}

// ---- made by hand ---------------------------------------------------------------------------------------

/// A piece and where it is.
#[derive(Clone)]
struct Piece {
    start: Vec<i64>,
    size: Vec<i64>,
    file: String,
    offset: i64,
    length: i64,
    transforms: Vec<&'static str>,
}

/// A checkpoint of one tensor `w` of floats.
struct Made {
    shape: Vec<i64>,
    dtype: &'static str,
    layout: &'static str,
    pieces: Vec<Piece>,
    /// Pieces that have a second place.
    more_places: Vec<Piece>,
    folder: TempDir,
}

fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_le_bytes();
    [b"X", &length[..], text.as_bytes()].concat()
}

fn integer(value: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn sizes(sizes: &[i64]) -> Vec<u8> {
    let numbers: Vec<u8> = sizes.iter().flat_map(|size| integer(*size)).collect();
    [&b"ctorch\nSize\n(("[..], &numbers, b"ttR"].concat()
}

fn object(module: &str, class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items = attributes.iter();
    let items: Vec<u8> = items
        .flat_map(|(key, value)| [text(key), value.clone()].concat())
        .collect();
    [
        format!("c{module}\n{class}\n)").as_bytes(),
        b"\x81}(",
        &items,
        b"ub",
    ]
    .concat()
}

const METADATA: &str = "torch.distributed.checkpoint.metadata";

impl Made {
    /// A tensor of 4 x 3 in two pieces of rows, with the numbers 0..12.
    fn new() -> Self {
        let mut made = Self {
            shape: vec![4, 3],
            dtype: "float32",
            layout: "torch.strided",
            pieces: Vec::new(),
            more_places: Vec::new(),
            folder: tempfile::tempdir().expect("a folder"),
        };
        for (number, rows) in [0..2_i64, 2..4].into_iter().enumerate() {
            let pickle = Pickle::default().tensor(6, 0, &[2, 3], &[3, 1]).finish();
            let values = &floats(12)[rows.start as usize * 12..rows.end as usize * 12];
            let item = archive(&[("a/data.pkl", &pickle), ("a/data/0", values)]);
            let name = format!("__{number}_0.distcp");
            // Something else before it, as there is where a file has many pieces.
            let file = [&[7; 5][..], &item].concat();
            fs::write(made.path().join(&name), &file).expect("written");
            made.pieces.push(Piece {
                start: vec![rows.start, 0],
                size: vec![2, 3],
                file: name,
                offset: 5,
                length: item.len() as i64,
                transforms: Vec::new(),
            });
        }
        made
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn metadata(&self) -> Vec<u8> {
        let layout = [
            &b"ctorch.serialization\n_get_layout\n("[..],
            &text(self.layout),
            b"tR",
        ]
        .concat();
        let dtype = format!("ctorch\n{}\n", self.dtype).into_bytes();
        let properties = object(
            METADATA,
            "TensorProperties",
            &[("dtype", dtype), ("layout", layout)],
        );
        let chunks = self.pieces.iter().flat_map(|piece| {
            let (start, size) = (sizes(&piece.start), sizes(&piece.size));
            object(
                METADATA,
                "ChunkStorageMetadata",
                &[("offsets", start), ("sizes", size)],
            )
        });
        let chunks = [&b"]("[..], &chunks.collect::<Vec<u8>>(), b"e"].concat();
        let tensor = object(
            METADATA,
            "TensorStorageMetadata",
            &[
                ("properties", properties),
                ("size", sizes(&self.shape)),
                ("chunks", chunks),
            ],
        );
        let places = self
            .pieces
            .iter()
            .chain(&self.more_places)
            .flat_map(|piece| {
                let names: Vec<u8> = piece
                    .transforms
                    .iter()
                    .flat_map(|name| text(name))
                    .collect();
                let index = [
                    ("fqn", text("w")),
                    ("offset", sizes(&piece.start)),
                    ("index", b"N".to_vec()),
                ];
                let place = [
                    ("relative_path", text(&piece.file)),
                    ("offset", integer(piece.offset)),
                    ("length", integer(piece.length)),
                    ("transform_descriptors", [&b"]("[..], &names, b"e"].concat()),
                ];
                let index = object(METADATA, "MetadataIndex", &index);
                [
                    index,
                    object(
                        "torch.distributed.checkpoint.filesystem",
                        "_StorageInfo",
                        &place,
                    ),
                ]
                .concat()
            });
        let dictionary = |items: Vec<u8>| [&b"}("[..], &items, b"u"].concat();
        let attributes = [
            (
                "state_dict_metadata",
                dictionary([text("w"), tensor].concat()),
            ),
            ("planner_data", b"N".to_vec()),
            ("storage_data", dictionary(places.collect())),
        ];
        [
            &b"\x80\x02"[..],
            &object(METADATA, "Metadata", &attributes),
            b".",
        ]
        .concat()
    }

    fn write(&self) {
        fs::write(self.path().join(".metadata"), self.metadata()).expect("written");
    }

    /// The error of this checkpoint after a change.
    fn refused(change: impl FnOnce(&mut Self)) -> Error {
        let mut made = Self::new();
        change(&mut made);
        made.write();
        refused(made.path())
    }

    fn fault(change: impl FnOnce(&mut Self)) -> TrainerFault {
        fault(Self::refused(change))
    }
}

#[test]
fn pieces_stand_where_their_offsets_say() {
    let made = Made::new();
    made.write();
    let found = opened(made.path());
    assert_eq!(found.get("w").expect("there").dtype, DType::F32);
    assert_eq!(found.read_all("w").expect("read"), floats(12));
    // Two files in the other order.
    let mut made = Made::new();
    (made.pieces[0].start, made.pieces[1].start) = (vec![2, 0], vec![0, 0]);
    made.write();
    let turned = [&floats(12)[24..], &floats(12)[..24]].concat();
    assert_eq!(opened(made.path()).read_all("w").expect("read"), turned);
}

#[cfg(unix)]
#[test]
fn paths_that_leave_the_folder_are_refused() {
    for file in ["../__0_0.distcp", "/etc/passwd", "", "a/../../b"] {
        let said = Made::fault(|made| made.pieces[0].file = file.into());
        assert!(
            matches!(said, TrainerFault::OutsideFolder { .. }),
            "{file}: {said}"
        );
    }
    let other = Made::new();
    let said = Made::fault(|made| {
        let link = made.path().join("planted.distcp");
        std::os::unix::fs::symlink(other.path().join("__0_0.distcp"), link).expect("linked");
        made.pieces[0].file = "planted.distcp".into();
    });
    assert!(matches!(said, TrainerFault::OutsideFolder { .. }), "{said}");
}

#[test]
fn places_beyond_the_file_or_too_small_are_refused() {
    for (offset, length) in [
        (1 << 40, 100),
        (i64::MAX, i64::MAX),
        (5, 20),
        (6, 100_000),
        (0, 0),
    ] {
        let said = Made::fault(|made| {
            (made.pieces[1].offset, made.pieces[1].length) = (offset, length);
        });
        assert!(
            matches!(&said, TrainerFault::PlaceOutside { path, key, .. }
                if key == "w" && path.ends_with("__1_0.distcp")),
            "{offset}, {length}: {said}"
        );
    }
    let said = Made::fault(|made| made.pieces[0].offset = -1);
    assert!(
        matches!(&said, TrainerFault::Metadata { key: Some(key), .. } if key == "w"),
        "{said}"
    );
}

#[test]
fn a_place_with_something_else_is_refused_by_tensor() {
    // Not where the tensor begins.
    let said = Made::fault(|made| {
        made.pieces[0].offset = 3;
        made.pieces[0].length -= 3;
    });
    assert!(
        matches!(&said, TrainerFault::DamagedPiece { key, at: 3, .. } if key == "w"),
        "{said}"
    );
    // Another shape of as many bytes, and another dtype.
    let said = Made::fault(|made| {
        made.shape = vec![4, 3];
        made.pieces[0].size = vec![1, 6];
        made.pieces[1].size = vec![1, 6];
        made.shape = vec![2, 6];
        made.pieces[1].start = vec![1, 0];
    });
    assert!(
        matches!(&said, TrainerFault::OtherPiece { key, .. } if key == "w"),
        "{said}"
    );
    let said = Made::fault(|made| made.dtype = "int32");
    assert!(matches!(&said, TrainerFault::OtherPiece { .. }), "{said}");
}

#[test]
fn pieces_that_leave_holes_or_overlap_are_refused() {
    let fault = |change: fn(&mut Made)| match Made::refused(change) {
        Error::Assembly(fault) => *fault,
        other => panic!("{other}"),
    };
    let said = fault(|made| made.pieces.truncate(1));
    assert!(
        matches!(said, AssemblyFault::Incomplete { n_given: 6, .. }),
        "{said}"
    );
    let said = fault(|made| made.pieces[1].start = vec![1, 0]);
    assert!(matches!(said, AssemblyFault::Overlap { .. }), "{said}");
    let said = fault(|made| made.pieces[1].start = vec![3, 0]);
    assert!(matches!(said, AssemblyFault::Outside { .. }), "{said}");
    let said = fault(|made| made.pieces[1].start = vec![2]);
    assert!(matches!(said, AssemblyFault::Outside { .. }), "{said}");
}

#[test]
fn pieces_that_share_bytes_are_refused() {
    let said = Made::fault(|made| {
        made.pieces[1].file = made.pieces[0].file.clone();
        made.pieces[1].length = made.pieces[0].length;
    });
    assert!(
        matches!(&said, TrainerFault::SharedPlace { at: 5, .. }),
        "{said}"
    );
}

#[test]
fn a_piece_without_a_place_or_with_two_is_refused() {
    let said = Made::fault(|made| {
        let mut other = made.pieces[0].clone();
        other.offset = 0;
        made.more_places.push(other);
    });
    assert!(
        matches!(&said, TrainerFault::TwoPlaces { start, .. } if *start == [0, 0]),
        "{said}"
    );
    // The metadata give the piece another start than its place.
    let mut made = Made::new();
    let bytes = made.metadata();
    made.pieces[0].start = vec![0, 1];
    let other = made.metadata();
    let at = bytes
        .iter()
        .zip(&other)
        .rposition(|(a, b)| a != b)
        .expect("they differ");
    let mut mixed = bytes;
    mixed[at] = other[at];
    fs::write(made.path().join(".metadata"), mixed).expect("written");
    let said = fault(refused(made.path()));
    assert!(
        matches!(&said, TrainerFault::NoPlace { start, .. } if *start == [0, 0]),
        "{said}"
    );
}

#[test]
fn changed_bytes_and_other_kinds_are_refused_by_name() {
    let said = Made::fault(|made| made.pieces[0].transforms = vec!["zstd"]);
    assert!(
        matches!(&said, TrainerFault::Transformed { transforms, .. } if transforms == "zstd"),
        "{said}"
    );
    let said = Made::fault(|made| made.layout = "torch.sparse_coo");
    assert!(
        matches!(&said, TrainerFault::Kind { kind, .. } if kind == "torch.sparse_coo"),
        "{said}"
    );
    let said = Made::fault(|made| made.dtype = "complex128");
    assert!(
        matches!(&said, TrainerFault::Kind { kind, .. } if kind == "torch.complex128"),
        "{said}"
    );
}

#[test]
fn huge_sizes_take_no_memory() {
    let huge = i64::MAX / 2;
    for shape in [vec![huge, huge], vec![huge, 3], vec![-1, 3], vec![1; 100]] {
        let error = Made::refused(|made| made.shape = shape.clone());
        assert!(matches!(error, Error::Trainer(_)), "{shape:?}: {error}");
    }
    let error = Made::refused(|made| made.pieces[0].size = vec![huge, huge]);
    assert!(matches!(error, Error::Trainer(_)), "{error}");
}

#[test]
fn code_in_the_metadata_is_refused() {
    let made = Made::new();
    let pickle = b"\x80\x02cposix\nsystem\n(X\x04\0\0\0truetR.";
    fs::write(made.path().join(".metadata"), pickle).expect("written");
    assert!(matches!(refused(made.path()), Error::Torch(_)));
    // Cut anywhere, and with any byte changed, it is an error or the same checkpoint.
    let whole = made.metadata();
    for end in 0..whole.len() {
        fs::write(made.path().join(".metadata"), &whole[..end]).expect("written");
        refused(made.path());
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x15;
        fs::write(made.path().join(".metadata"), changed).expect("written");
        if let Ok(found) = open(made.path(), &OpenOptions::default()) {
            for (name, _) in found.tensors() {
                let _ = found.read_all(name);
            }
        }
    }
}
