//! Reading torch files made here, byte by byte.

use std::collections::BTreeMap;

use merge::io::{
    ObjectPath, OpenOptions, PathSegment, PlainValue, TensorSource, ZipFault, open_torch_bytes,
    walk_pickle,
};
use merge::{DType, Error, Result, TorchFault};
use proptest::prelude::*;

// ---- files made by hand -----------------------------------------------------------------------

/// A zip archive that stores these entries.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (data, directory) = archive_around(entries, 0);
    [data, directory].concat()
}

/// The same in two parts: the last entry goes on for `n_between` bytes between them.
fn archive_around(entries: &[(&str, &[u8])], n_between: u32) -> (Vec<u8>, Vec<u8>) {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (index, (name, bytes)) in entries.iter().enumerate() {
        let size = match index + 1 == entries.len() {
            true => bytes.len() as u32 + n_between,
            false => bytes.len() as u32,
        };
        let sizes = [crc32fast::hash(bytes), size, size];
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let name_length = (name.len() as u16).to_le_bytes();
        let at = (file.len() as u32).to_le_bytes();
        file.extend(b"PK\x03\x04\x0a\0\0\0\0\0\0\0\0\0");
        file.extend(&sizes);
        file.extend(name_length);
        file.extend([0; 2]);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\x0a\0\x0a\0\0\0\0\0\0\0\0\0");
        directory.extend(&sizes);
        directory.extend(name_length);
        directory.extend([0; 12]);
        directory.extend(at);
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32 + n_between;
    let n_bytes = directory.len() as u32;
    directory.extend(b"PK\x05\x06\0\0\0\0");
    directory.extend([(entries.len() as u16).to_le_bytes(); 2].concat());
    directory.extend(n_bytes.to_le_bytes());
    directory.extend(start.to_le_bytes());
    directory.extend([0; 2]);
    (file, directory)
}

/// Pickle opcodes, written one after the other.
#[derive(Default)]
pub struct Pickle(Vec<u8>);

impl Pickle {
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        let length = (text.len() as u32).to_le_bytes();
        self.raw(b"X").raw(&length).raw(text.as_bytes())
    }

    pub fn integer(self, value: i64) -> Self {
        self.raw(b"\x8a\x08").raw(&value.to_le_bytes())
    }

    fn integers(self, values: &[i64]) -> Self {
        let marked = self.raw(b"(");
        (values
            .iter()
            .fold(marked, |pickle, &value| pickle.integer(value)))
        .raw(b"t")
    }

    /// A float tensor in storage `0` of `n` elements.
    pub fn tensor(self, n: i64, offset: i64, sizes: &[i64], strides: &[i64]) -> Self {
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(b"ctorch\nFloatStorage\n")
            .text("0")
            .text("cpu")
            .integer(n)
            .raw(b"tQ")
            .integer(offset)
            .integers(sizes)
            .integers(strides)
            .raw(b"\x89NtR")
    }

    pub fn finish(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

pub fn open(bytes: Vec<u8>) -> Result<Box<dyn TensorSource>> {
    open_torch_bytes(bytes, &OpenOptions::default())
}

pub fn open_pickle(pickle: Pickle, storage: &[u8]) -> Result<Box<dyn TensorSource>> {
    let pickle = pickle.finish();
    open(archive(&[("a/data.pkl", &pickle), ("a/data/0", storage)]))
}

/// The value of the only item of a dictionary whose value these opcodes make.
fn value_of(opcodes: &[u8]) -> Option<PlainValue> {
    let pickle = Pickle::default().raw(b"}").text("x").raw(opcodes).raw(b"s");
    let source = open_pickle(pickle, &[]).expect("a valid pickle");
    let path = ObjectPath(vec![PathSegment::Key("x".into())]);
    let values: BTreeMap<_, _> = source.info().values.iter().cloned().collect();
    values.get(&path).cloned()
}

pub fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

// ---- values -----------------------------------------------------------------------------------

#[test]
fn numbers_of_every_opcode_have_their_value() {
    use PlainValue::{Bool, Float, Integer, Text};
    // The bytes are those of Python's pickle.dumps for the value, by protocol.
    for (opcodes, value) in [
        (&b"K\xff"[..], Integer(255)),
        (b"M\x00\x01", Integer(256)),
        (b"J\xff\xff\xff\xff", Integer(-1)),
        (b"I-12\n", Integer(-12)),
        (b"I01\n", Bool(true)),
        (b"L42L\n", Integer(42)),
        (b"\x8a\x00", Integer(0)),
        (b"\x8a\x01\x80", Integer(-128)),
        (b"\x8a\x02\x80\x00", Integer(128)),
        (b"\x8b\x01\x00\x00\x00\x7f", Integer(127)),
        // 2**64, -2**64 and the magic number of torch.save.
        (
            b"\x8a\x09\0\0\0\0\0\0\0\0\x01",
            Text("18446744073709551616".into()),
        ),
        (
            b"\x8a\x09\0\0\0\0\0\0\0\0\xff",
            Text("-18446744073709551616".into()),
        ),
        (
            b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
            Text("119547037146038801333356".into()),
        ),
        // A long way to write 1.
        (b"\x8a\x09\x01\0\0\0\0\0\0\0\0", Integer(1)),
        (b"G\x3f\xf8\0\0\0\0\0\0", Float(1.5)),
        (b"F1e-3\n", Float(1e-3)),
        (b"\x88", Bool(true)),
        (b"N", PlainValue::None),
        (b"\x8c\x02\xc3\xa9", Text("é".into())),
        (b"V\\u00e9\\x\n", Text("é\\x".into())),
        (b"U\x02hi", Text("hi".into())),
        (b"S'hi'\n", Text("hi".into())),
    ] {
        assert_eq!(value_of(opcodes), Some(value), "{opcodes:?}");
    }
}

#[test]
fn attributes_and_items_of_unknown_objects_are_listed() {
    // project.Config() with items {"a": 1} and attributes {"b": 2}.
    let pickle = Pickle::default()
        .raw(b"}")
        .text("c")
        .raw(b"cproject\nConfig\n)\x81")
        .text("a")
        .raw(b"K\x01s}")
        .text("b")
        .raw(b"K\x02sbs");
    let source = open_pickle(pickle, &[]).expect("valid");
    let values: Vec<(String, PlainValue)> = (source.info().values.iter())
        .map(|(path, value)| (path.to_string(), value.clone()))
        .collect();
    let expected = [
        ("c.a".to_owned(), PlainValue::Integer(1)),
        ("c.b".to_owned(), PlainValue::Integer(2)),
    ];
    assert_eq!(values, expected);
    assert_eq!(source.info().opaque[0].callable, "project.Config");
}

#[test]
fn every_refused_call_of_a_pickle_is_named_with_its_byte() {
    let pickle = Pickle::default()
        .raw(b"(cposix\nsystem\n(")
        .text("true")
        .raw(b"tRcbuiltins\neval\n(tR(I1\niruntime\nstart\nt");
    let error = open_pickle(pickle, &[]).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "(memory): a/data.pkl: refused, because loading it would call `posix.system` (byte 26), \
         `builtins.eval` (byte 44), `runtime.start` (byte 49)"
    );
    assert!(error.hint().is_some());
}

// ---- archives ---------------------------------------------------------------------------------

#[test]
fn a_changed_byte_of_a_storage_is_found_when_it_is_read() {
    let pickle = Pickle::default()
        .raw(b"}")
        .text("w")
        .tensor(4, 0, &[2], &[1]);
    let pickle = pickle.raw(b"s").finish();
    let mut file = archive(&[("a/data.pkl", &pickle), ("a/data/0", &floats(4))]);
    let at = file
        .windows(16)
        .position(|bytes| bytes == floats(4))
        .expect("stored");
    // Not among the bytes that the tensor uses.
    file[at + 15] ^= 1;
    let source = open(file).expect("the headers are whole");
    let error = source.read(0, 0, &mut [0; 4]).expect_err("damaged");
    assert!(
        matches!(&error, Error::Torch(TorchFault::Checksum { entry, .. }) if entry == "a/data/0"),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn opening_two_gigabytes_reads_less_than_one_mebibyte() {
    use std::os::unix::fs::FileExt;

    let n_bytes: u32 = 2 << 30;
    let n = i64::from(n_bytes / 4);
    let pickle = Pickle::default()
        .raw(b"}")
        .text("w")
        .tensor(n, 0, &[n], &[1]);
    let pickle = pickle.raw(b"s").finish();
    let entries = [("a/data.pkl", &pickle[..]), ("a/data/0", &[])];
    let (data, directory) = archive_around(&entries, n_bytes);
    let file = tempfile::NamedTempFile::new().expect("a temporary folder");
    let write = |bytes: &[u8], at: u64| file.as_file().write_all_at(bytes, at).expect("written");
    write(&data, 0);
    write(&directory, data.len() as u64 + u64::from(n_bytes));

    let before = n_read_bytes();
    let checkpoint = merge::io::open(file.path(), &OpenOptions::default()).expect("valid");
    let n_read = n_read_bytes() - before;
    assert_eq!(
        checkpoint.get("w").expect("there").n_bytes(),
        u64::from(n_bytes)
    );
    assert!(n_read < 1 << 20, "{n_read} bytes were read");
}

/// Bytes that this thread has asked the system for so far.
#[cfg(target_os = "linux")]
fn n_read_bytes() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/io").expect("Linux has it");
    let line = counters
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "));
    line.expect("the first counter").parse().expect("a number")
}

#[test]
fn the_provenance_record_becomes_metadata() {
    let pickle = Pickle::default().raw(b"}").finish();
    let json = br#"{"program": "vlmerge 0.1.0"}"#;
    let source = open(archive(&[
        ("a/data.pkl", &pickle),
        ("a/vlmerge.json", json),
    ]));
    let source = source.expect("valid");
    assert_eq!(source.info().metadata["program"], "vlmerge 0.1.0");
    let error = open(archive(&[
        ("a/data.pkl", &pickle),
        ("a/vlmerge.json", b"[1]"),
    ]));
    assert!(matches!(
        error.err(),
        Some(Error::Torch(TorchFault::Zip {
            fault: ZipFault::BadMetadata(_),
            ..
        }))
    ));
}

#[test]
fn a_big_endian_file_is_refused() {
    let pickle = Pickle::default().raw(b"}").finish();
    let error = open(archive(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]));
    assert_eq!(
        error.err().expect("refused").to_string(),
        "(memory): a/byteorder: the byte order is `big`, of which only `little` is supported"
    );
}

// ---- roots ------------------------------------------------------------------------------------

#[test]
fn the_weights_are_found_by_rule() {
    // Nested dictionaries that lead to tensors, in file order; then the expected root.
    for (paths, root) in [
        (&["w", "b"][..], ""),
        (&["state_dict/w", "optimizer/w"], "state_dict"),
        (&["optimizer/a", "optimizer/b", "generator/a"], "generator"),
        (&["model/state_dict/w", "step"], "model.state_dict"),
        (&["model/module/w", "model/b"], "model"),
        (&["w", "ema/w"], "ema"),
        (&["small/a", "large/a", "large/b"], "large"),
        (&["model/encoder/a", "model/decoder/a"], "model"),
    ] {
        let tree = paths
            .iter()
            .fold(Pickle::default().raw(b"}"), |pickle, path| {
                nested(pickle, path)
            });
        let source = open_pickle(tree, &floats(4)).expect("valid");
        assert_eq!(source.info().root, root, "{paths:?}");
        assert_eq!(source.info().roots[0].name, root, "{paths:?}");
    }
}

/// Adds a tensor under `path` to the dictionary on top; their memo tells dictionaries apart.
fn nested(pickle: Pickle, path: &str) -> Pickle {
    // Merging dictionaries of the same name needs SETITEM on the memoized one: written as a
    // memo slot per name, which the first use fills.
    let mut pickle = pickle;
    let parts: Vec<&str> = path.split('/').collect();
    let (last, folders) = parts.split_last().expect("not empty");
    let mut prefix = String::new();
    for folder in folders {
        prefix = format!("{prefix}/{folder}");
        let slot = prefix.bytes().fold(7u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        });
        let put = [b"r".as_slice(), &slot.to_le_bytes()].concat();
        let get = [b"j".as_slice(), &slot.to_le_bytes()].concat();
        let is_known = pickle.0.windows(put.len()).any(|bytes| bytes == put);
        pickle = match is_known {
            true => pickle.raw(&get),
            false => pickle.text(folder).raw(b"}").raw(&put).raw(b"s").raw(&get),
        };
    }
    pickle = pickle.text(last).tensor(4, 0, &[4], &[1]).raw(b"s");
    (folders.iter()).fold(pickle, |pickle, _| pickle.raw(b"0"))
}

// ---- tensors ----------------------------------------------------------------------------------

#[test]
fn a_large_transposed_matrix_reads_like_its_elements() {
    // 600 × 700, larger than one window, seen transposed: element (i, j) is 600 j + i.
    let (rows, columns) = (600, 700);
    let n = rows * columns;
    let pickle = Pickle::default().raw(b"}").text("t");
    let pickle = pickle.tensor(n, 0, &[rows, columns], &[1, rows]).raw(b"s");
    let source = open_pickle(pickle, &floats(n as usize)).expect("valid");
    let mut out = vec![0; 4 * n as usize];
    source.read(0, 0, &mut out).expect("whole");
    for (position, bytes) in out.as_chunks::<4>().0.iter().enumerate() {
        let (i, j) = (position as i64 / columns, position as i64 % columns);
        assert_eq!(f32::from_le_bytes(*bytes), (rows * j + i) as f32);
    }
}

#[derive(Clone, Debug)]
struct View {
    offset: i64,
    sizes: Vec<i64>,
    strides: Vec<i64>,
    /// Range to read, as fractions of the elements.
    range: (f64, f64),
}

fn view() -> impl Strategy<Value = View> {
    let axis = (0..5i64, 0..7i64);
    (
        0..9i64,
        prop::collection::vec(axis, 0..5),
        0.0..1.0,
        0.0..=1.0,
    )
        .prop_map(|(offset, axes, from, length)| {
            let (sizes, strides) = axes.into_iter().unzip();
            View {
                offset,
                sizes,
                strides,
                range: (from, length),
            }
        })
}

proptest! {
    #[test]
    fn any_strided_view_reads_like_its_elements(view in view()) {
        let n_storage = 200;
        let pickle = Pickle::default().raw(b"}").text("v");
        let pickle = pickle.tensor(n_storage, view.offset, &view.sizes, &view.strides).raw(b"s");
        let source = open_pickle(pickle, &floats(n_storage as usize)).expect("valid");
        prop_assert_eq!(source.tensors()[0].info.dtype, DType::F32);
        let n: i64 = view.sizes.iter().product();
        let first = (view.range.0 * n as f64) as i64;
        let count = (view.range.1 * (n - first) as f64) as i64;
        let mut out = vec![0; 4 * count as usize];
        source.read(0, first as usize, &mut out).expect("whole");
        for (position, bytes) in (first..).zip(out.as_chunks::<4>().0) {
            let (mut rest, mut at) = (position, view.offset);
            for (size, stride) in view.sizes.iter().zip(&view.strides).rev() {
                at += rest % size * stride;
                rest /= size;
            }
            prop_assert_eq!(f32::from_le_bytes(*bytes), at as f32);
        }
    }

    #[test]
    fn no_bytes_make_the_pickle_machine_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = walk_pickle(bytes);
    }

    #[test]
    fn opcodes_in_any_order_do_not_panic(
        opcodes in prop::collection::vec(
            prop::sample::select(&b"(.0125NRQbcdeghijlopqrstu}])\x81\x85\x86\x87\x88\x8f\x90\x91\x93\x94"[..]),
            0..200,
        ),
    ) {
        let _ = walk_pickle(opcodes);
    }

    #[test]
    fn a_damaged_archive_does_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let pickle = Pickle::default().raw(b"}").text("v").tensor(6, 0, &[2, 3], &[1, 2]);
        let pickle = pickle.raw(b"s").finish();
        let mut file = archive(&[("a/data.pkl", &pickle), ("a/data/0", &floats(6))]);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for bytes in [file.clone(), file[..length.index(file.len())].to_vec()] {
            if let Ok(source) = open(bytes) {
                for (index, entry) in source.tensors().iter().enumerate() {
                    if entry.info.n_bytes() < 1 << 16 {
                        let mut out = vec![0; entry.info.n_bytes() as usize];
                        let _ = source.read(index, 0, &mut out);
                    }
                }
            }
        }
    }
}
