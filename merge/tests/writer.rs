//! Files are read back as they were written, and appear whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use merge::io::{OpenOptions, OutputContainer, WriteOptions, Writer, open};
use merge::{DType, Error, SplitFault, TensorInfo, WriteFault};
use proptest::prelude::*;
use tempfile::TempDir;

type Tensors = Vec<(String, TensorInfo)>;
type Metadata = BTreeMap<String, String>;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn info(dtype: DType, shape: &[usize]) -> TensorInfo {
    TensorInfo {
        dtype,
        shape: shape.to_vec(),
    }
}

fn metadata(recipe: &str) -> Metadata {
    BTreeMap::from([("recipe".to_owned(), recipe.to_owned())])
}

/// Two tensors of 8 bytes each.
fn two() -> Tensors {
    vec![
        ("b".to_owned(), info(DType::U8, &[8])),
        ("a".to_owned(), info(DType::U16, &[2, 2])),
    ]
}

fn data_of(index: usize, info: &TensorInfo) -> Vec<u8> {
    (0..info.n_bytes())
        .map(|at| match info.dtype {
            DType::Bool => (at % 2) as u8,
            _ => (at as u8).wrapping_mul(7).wrapping_add(index as u8),
        })
        .collect()
}

fn write_all(writer: &Writer, tensors: &Tensors) {
    for (index, (_, info)) in tensors.iter().enumerate() {
        let data = data_of(index, info);
        writer.write(index, 0, &data).expect("written");
    }
}

fn write_file(tensors: &Tensors, options: &WriteOptions) -> Vec<PathBuf> {
    let writer = Writer::create(tensors, &metadata("x"), options).expect("a writer");
    write_all(&writer, tensors);
    writer.finish(&metadata("x")).expect("finished")
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .map(|name| name.expect("a plain name"))
        .collect();
    names.sort();
    names
}

fn refusal(tensors: &Tensors, options: &WriteOptions) -> Error {
    match Writer::create(tensors, &metadata("x"), options) {
        Ok(_) => panic!("{} was created", options.path.display()),
        Err(fault) => fault,
    }
}

#[test]
fn chunks_in_any_order_from_several_threads_make_the_same_file() {
    let folder = folder();
    let tensors: Tensors = (0..5)
        .map(|index| (format!("t{index}"), info(DType::U8, &[1000 + index])))
        .collect();
    for name in ["a.safetensors", "a.pt", "a.ckpt"] {
        let straight = WriteOptions::new(folder.path().join(name));
        write_file(&tensors, &straight);
        let shuffled = WriteOptions {
            path: folder.path().join(format!("shuffled.{name}")),
            ..straight.clone()
        };
        let writer = Writer::create(&tensors, &metadata("x"), &shuffled).expect("a writer");
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (writer, tensors) = (&writer, &tensors);
                scope.spawn(move || {
                    for (index, (_, info)) in tensors.iter().enumerate().rev() {
                        let data = data_of(index, info);
                        let chunks = data.chunks(33).enumerate();
                        for (chunk, bytes) in chunks.filter(|(chunk, _)| chunk % 3 == thread) {
                            let first = chunk as u64 * 33;
                            writer.write(index, first, bytes).expect("written");
                        }
                    }
                });
            }
        });
        writer.finish(&metadata("x")).expect("finished");
        let bytes = |options: &WriteOptions| fs::read(&options.path).expect("the file");
        assert_eq!(bytes(&straight), bytes(&shuffled), "{name}");
    }
}

#[test]
fn the_safetensors_crate_reads_what_is_written_and_data_are_aligned() {
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.safetensors"));
    write_file(&two(), &options);
    let bytes = fs::read(&options.path).expect("the file");
    let (n_header_bytes, header) =
        ::safetensors::SafeTensors::read_metadata(&bytes).expect("a sound header");
    assert_eq!(n_header_bytes % 8, 0);
    assert_eq!(header.offset_keys(), ["b", "a"], "in the order given");
}

#[test]
fn final_metadata_replace_placeholders_and_must_not_be_longer() {
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.safetensors"));
    let writer = Writer::create(&two(), &metadata("placeholder"), &options).expect("a writer");
    write_all(&writer, &two());
    writer.finish(&metadata("short")).expect("finished");
    let checkpoint = open(&options.path, &OpenOptions::default()).expect("it opens");
    assert_eq!(checkpoint.info().metadata, metadata("short"));

    for name in ["b.safetensors", "b.pt"] {
        let options = WriteOptions::new(folder.path().join(name));
        let writer = Writer::create(&two(), &metadata("short"), &options).expect("a writer");
        write_all(&writer, &two());
        let fault = writer
            .finish(&metadata(&"longer".repeat(4)))
            .expect_err("no room");
        assert!(
            matches!(fault, Error::Write(WriteFault::MetadataGrew { .. })),
            "{fault}"
        );
    }
    assert_eq!(names_in(folder.path()), ["a.safetensors"]);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing_and_the_old_target_as_it_was() {
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    fs::write(&path, "old").expect("an old target");
    for max_shard_bytes in [None, Some(8)] {
        let options = WriteOptions {
            force: true,
            max_shard_bytes,
            ..WriteOptions::new(&path)
        };
        let writer = Writer::create(&two(), &metadata("x"), &options).expect("a writer");
        writer.write(0, 0, &[1]).expect("written");
        assert!(names_in(folder.path()).len() > 1, "it is under way");
        drop(writer);
        assert_eq!(names_in(folder.path()), ["a.safetensors"]);
        assert_eq!(fs::read(&path).expect("the old target"), b"old");
    }
}

#[test]
fn a_file_under_way_is_hidden_and_the_target_appears_only_at_the_end() {
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.safetensors"));
    let writer = Writer::create(&two(), &metadata("x"), &options).expect("a writer");
    write_all(&writer, &two());
    // The files that a kill would leave behind.
    let names = names_in(folder.path());
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with(".a.safetensors.") && names[0].ends_with(".partial"));
    writer.finish(&metadata("x")).expect("finished");
    assert_eq!(names_in(folder.path()), ["a.safetensors"]);
}

#[test]
fn missing_data_are_an_error_that_names_the_tensor() {
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.pt"));
    let writer = Writer::create(&two(), &metadata("x"), &options).expect("a writer");
    writer.write(0, 0, &[0; 8]).expect("written");
    writer.write(1, 0, &[0; 6]).expect("written");
    let fault = writer
        .finish(&metadata("x"))
        .expect_err("two bytes are missing");
    assert!(
        fault
            .to_string()
            .ends_with("6 of 8 bytes of `a` were written"),
        "{fault}"
    );
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn an_existing_target_is_replaced_only_by_force() {
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    fs::write(&path, "old").expect("an old target");
    let mut options = WriteOptions::new(&path);
    assert!(matches!(
        refusal(&two(), &options),
        Error::TargetExists { .. }
    ));
    options.force = true;
    write_file(&two(), &options);
    assert!(open(&path, &OpenOptions::default()).is_ok());
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.safetensors"));
    let writer = Writer::create(&two(), &metadata("x"), &options).expect("a writer");
    write_all(&writer, &two());
    fs::write(&options.path, "another's").expect("another program's file");
    let fault = writer
        .finish(&metadata("x"))
        .expect_err("the target exists");
    assert!(matches!(fault, Error::TargetExists { .. }), "{fault}");
    assert_eq!(fs::read(&options.path).expect("the file"), b"another's");
    assert_eq!(names_in(folder.path()), ["a.safetensors"]);
}

#[test]
fn a_shard_that_appears_meanwhile_leaves_no_half_of_a_model() {
    let folder = folder();
    let options = WriteOptions {
        max_shard_bytes: Some(8),
        ..WriteOptions::new(folder.path().join("a.safetensors"))
    };
    let writer = Writer::create(&two(), &metadata("x"), &options).expect("a writer");
    write_all(&writer, &two());
    let second = "a-00002-of-00002.safetensors";
    fs::write(folder.path().join(second), "another's").expect("another program's file");
    let fault = writer.finish(&metadata("x")).expect_err("a shard exists");
    assert!(matches!(fault, Error::TargetExists { .. }), "{fault}");
    assert_eq!(names_in(folder.path()), [second]);
}

#[test]
fn a_split_model_replaces_the_single_file_and_the_index_of_its_name() {
    let folder = folder();
    let single = WriteOptions::new(folder.path().join("a.safetensors"));
    write_file(&two(), &single);
    let split = WriteOptions {
        max_shard_bytes: Some(8),
        ..single
    };
    assert!(matches!(
        refusal(&two(), &split),
        Error::TargetExists { .. }
    ));
    let split = WriteOptions {
        force: true,
        ..split
    };
    let index = folder.path().join("a.safetensors.index.json");
    for _ in 0..2 {
        let files = write_file(&two(), &split);
        assert_eq!(files.last(), Some(&index), "the index comes last");
        assert_eq!(
            names_in(folder.path()),
            [
                "a-00001-of-00002.safetensors",
                "a-00002-of-00002.safetensors",
                "a.safetensors.index.json"
            ]
        );
    }
    let whole = open(folder.path(), &OpenOptions::default()).expect("the folder opens");
    assert_eq!(whole.path(), index);
    assert_eq!(whole.info().metadata["recipe"], "x");
    assert_eq!(whole.info().metadata["total_size"], "16");
    let data = whole.read_all("a").expect("read");
    assert_eq!(data, data_of(1, &two()[1].1));
    // A kill between the renames leaves shards without an index: no model, rather than half.
    fs::remove_file(&index).expect("the index");
    let Err(fault) = open(folder.path(), &OpenOptions::default()) else {
        panic!("shards without an index were opened");
    };
    assert!(
        matches!(fault, Error::Split(SplitFault::LoneShard { .. })),
        "{fault}"
    );
}

#[test]
fn faulty_targets_are_refused_before_any_work() {
    let folder = folder();
    let at = |name: &str| WriteOptions::new(folder.path().join(name));
    let fault = refusal(&two(), &at("missing/a.pt"));
    assert!(
        matches!(fault, Error::Write(WriteFault::MissingFolder { .. })),
        "{fault}"
    );
    assert!(fault.hint().is_some());
    let options = WriteOptions {
        container: Some(OutputContainer::Torch),
        ..at("")
    };
    let fault = refusal(&two(), &options);
    assert!(
        matches!(fault, Error::Write(WriteFault::TargetIsFolder { .. })),
        "{fault}"
    );
    let fault = refusal(&two(), &at("a.onnx"));
    assert!(fault.is_usage() && fault.hint().is_some(), "{fault}");
    let options = WriteOptions {
        max_shard_bytes: Some(8),
        ..at("a.ckpt")
    };
    assert!(refusal(&two(), &options).is_usage());
    let twice = [two(), two()].concat();
    let fault = refusal(&twice, &at("a.pt"));
    assert!(matches!(fault, Error::DuplicateKey { .. }), "{fault}");
    let reserved = vec![("__metadata__".to_owned(), info(DType::U8, &[]))];
    let fault = refusal(&reserved, &at("a.safetensors"));
    assert!(
        matches!(fault, Error::Write(WriteFault::ReservedName { .. })),
        "{fault}"
    );
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn an_output_larger_than_the_disk_is_refused_with_both_numbers() {
    let folder = folder();
    let huge = vec![("a".to_owned(), info(DType::U8, &[1 << 55]))];
    for name in ["a.safetensors", "a.pt"] {
        let fault = refusal(&huge, &WriteOptions::new(folder.path().join(name)));
        let Error::Write(WriteFault::DiskSpace {
            needed, available, ..
        }) = fault
        else {
            panic!("{fault}");
        };
        assert!(needed > 1 << 55 && available < needed);
    }
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn a_full_disk_comes_with_a_hint() {
    let fault = Error::Io {
        action: "write",
        path: "a.safetensors".into(),
        source: std::io::ErrorKind::StorageFull.into(),
    };
    assert!(
        fault
            .hint()
            .is_some_and(|hint| hint.contains("disk is full"))
    );
}

#[cfg(unix)]
#[test]
fn new_files_have_the_permissions_of_any_other_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let options = WriteOptions::new(folder.path().join("a.safetensors"));
    write_file(&two(), &options);
    let other = folder.path().join("other");
    fs::write(&other, "").expect("another file");
    let mode = |path: &Path| fs::metadata(path).expect("it").permissions().mode();
    assert_eq!(mode(&options.path), mode(&other));
}

/// Names of all scripts and with all that JSON and pickles must escape.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,8}(\\.[0-9]{1,2}\\.[a-z_]{1,8}){0,3}",
        "\\PC{0,12}",
        any::<String>()
    ]
}

/// Elements of less than a byte are none of torch's.
fn is_of_torch(dtype: DType) -> bool {
    dtype.bits() >= 8
}

/// Tensors of dtypes that a file of some kind has, whole bytes each.
fn tensors_of(is_in: fn(DType) -> bool) -> impl Strategy<Value = Tensors> {
    let shape = prop::collection::vec(0_usize..5, 0..4);
    let dtypes: Vec<DType> = DType::ALL
        .into_iter()
        .filter(|&dtype| is_in(dtype))
        .collect();
    let info = (prop::sample::select(dtypes), shape).prop_map(|(dtype, mut shape)| {
        if dtype.bits() < 8 {
            shape.push(4);
        }
        (dtype, shape)
    });
    prop::collection::btree_map(names(), info, 0..12).prop_map(|map| {
        map.into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, (dtype, shape))| (name, TensorInfo { dtype, shape }))
            .collect()
    })
}

fn check_round_trip(tensors: &Tensors, name: &str, max_shard_bytes: Option<u64>) {
    let folder = folder();
    let options = WriteOptions {
        max_shard_bytes,
        sync: false,
        ..WriteOptions::new(folder.path().join(name))
    };
    let files = write_file(tensors, &options);
    let path = files.last().expect("at least one file");
    let checkpoint = open(path, &OpenOptions::default()).expect("it opens");
    assert_eq!(checkpoint.tensors().count(), tensors.len());
    assert_eq!(checkpoint.info().metadata["recipe"], "x");
    for (index, (name, info)) in tensors.iter().enumerate() {
        assert_eq!(checkpoint.get(name), Some(info), "{name}");
        let data = checkpoint.read_all(name).expect("read");
        assert_eq!(data, data_of(index, info), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tensors_survive_a_safetensors_file(tensors in tensors_of(|_| true)) {
        check_round_trip(&tensors, "a.safetensors", None);
    }

    #[test]
    fn any_tensors_survive_split_safetensors_files(tensors in tensors_of(|_| true)) {
        check_round_trip(&tensors, "a.safetensors", Some(64));
    }

    #[test]
    fn any_tensors_survive_a_torch_file(tensors in tensors_of(is_of_torch)) {
        prop_assume!(!tensors.is_empty());
        check_round_trip(&tensors, "a.pt", None);
    }

    #[test]
    fn any_tensors_survive_a_lightning_file(tensors in tensors_of(is_of_torch)) {
        prop_assume!(!tensors.is_empty());
        check_round_trip(&tensors, "a.ckpt", None);
    }

    #[test]
    fn any_tensors_survive_split_torch_files(tensors in tensors_of(is_of_torch)) {
        prop_assume!(!tensors.is_empty());
        check_round_trip(&tensors, "a.bin", Some(64));
    }
}

#[test]
fn an_independent_zip_reader_finds_the_records_and_their_checksums() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("model.pt");
    let info = TensorInfo {
        dtype: DType::F32,
        shape: vec![3],
    };
    let tensors = [("w".to_owned(), info)];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let options = WriteOptions::new(&target);
    let writer = Writer::create(&tensors, &metadata, &options).expect("created");
    let data = [1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat();
    writer.write(0, 4, &data[4..]).expect("written");
    writer.write(0, 0, &data[..4]).expect("written");
    writer.finish(&metadata).expect("finished");

    let file = std::fs::File::open(&target).expect("there");
    let mut archive = zip::ZipArchive::new(file).expect("a zip archive");
    let names: Vec<String> = (archive.file_names())
        .map(|name| name.expect("readable").into_owned())
        .collect();
    for record in ["archive/data.pkl", "archive/version", "archive/data/0"] {
        assert!(names.iter().any(|name| name == record), "{names:?}");
    }
    for name in names {
        let mut content = Vec::new();
        // Reading to the end compares the CRC-32.
        let mut record = archive.by_name(&name).expect("listed");
        std::io::Read::read_to_end(&mut record, &mut content).expect("checksum holds");
        if name == "archive/data/0" {
            assert_eq!(content, data);
        }
    }
}
