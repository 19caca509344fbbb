//! Files of arrays of Flax, NumPy, ONNX and HDF5: what they hold, and files that lie. `tests/containers.py` holds them against
//! their libraries.

use merge::io::{Container, OpenOptions, open_in_memory};
use merge::{Checkpoint, ContainerFault, DType, Error};

fn open(bytes: &[u8]) -> merge::Result<Checkpoint> {
    open_in_memory(bytes, &OpenOptions::default())
}

fn fault(bytes: &[u8]) -> String {
    match open(bytes) {
        Ok(_) => panic!("it was opened"),
        Err(Error::Container(fault)) => fault.to_string(),
        Err(other) => panic!("another fault: {other}"),
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A string of msgpack of up to 31 bytes.
fn text(text: &str) -> Vec<u8> {
    [&[0xa0 | text.len() as u8][..], text.as_bytes()].concat()
}

/// An array of Flax, with data of up to 255 bytes.
fn array(shape: &[u8], dtype: &str, data: &[u8]) -> Vec<u8> {
    let mut inner = vec![0x93, 0x90 | shape.len() as u8];
    inner.extend(shape);
    inner.extend(text(dtype));
    inner.extend([0xc4, data.len() as u8]);
    inner.extend(data);
    [&[0xc7, inner.len() as u8, 1][..], &inner].concat()
}

fn flax() -> Vec<u8> {
    let kernel = array(&[2, 3], "float32", &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let dense = [vec![0x81], text("kernel"), kernel].concat();
    [vec![0x81], text("fc"), dense].concat()
}

#[test]
fn a_kernel_of_flax_is_a_weight_with_its_axes_reversed() {
    let found = open(&flax()).expect("read");
    assert_eq!(found.info().container, Container::Flax);
    assert_eq!(found.get("fc.weight").expect("there").shape, [3, 2]);
    let expected = floats(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(found.read_all("fc.weight").expect("numbers"), expected);
    let raw = OpenOptions {
        raw: true,
        ..OpenOptions::default()
    };
    let own = open_in_memory(&flax(), &raw).expect("read");
    assert_eq!(own.get("fc.kernel").expect("there").shape, [2, 3]);
}

/// An array of NumPy.
fn numpy(dtype: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}")
            .into_bytes();
    header.resize((header.len() + 11).next_multiple_of(64) - 11, b' ');
    header.push(b'\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], &header, data].concat()
}

#[test]
fn arrays_of_numpy_are_read_in_either_order() {
    let data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let by_rows = open(&numpy("<f4", "False", "(2, 3)", &data)).expect("read");
    assert_eq!(by_rows.read_all("(memory)").expect("numbers"), data);
    let by_columns = open(&numpy("<f4", "True", "(2, 3)", &data)).expect("read");
    let expected = floats(&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    assert_eq!(by_columns.read_all("(memory)").expect("numbers"), expected);
    assert!(fault(&numpy(">f4", "False", "(2, 3)", &data)).contains(">f4"));
    assert!(fault(&numpy("|O", "False", "(1,)", &data)).contains("|O"));
    for shape in [
        "(2, 4)",
        "(9999999999, 9999999999)",
        "(0, 18446744073709551615)",
    ] {
        let fault = fault(&numpy("<f4", "False", shape, &data));
        assert!(fault.contains("do not fit"), "{fault}");
    }
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
}

/// A model of ONNX with one initializer of up to 100 bytes.
fn onnx(initializer: &[Vec<u8>]) -> Vec<u8> {
    let graph = field(5, &initializer.concat());
    [vec![0x08, 9], field(7, &graph)].concat()
}

#[test]
fn initializers_of_onnx_are_read() {
    let data = floats(&[1.0, 2.0]);
    let (name, raw) = (field(8, b"w"), field(9, &data));
    let tensor = [vec![0x08, 2], vec![0x10, 1], name.clone(), raw.clone()];
    let found = open(&onnx(&tensor)).expect("read");
    assert_eq!(found.info().container, Container::Onnx);
    assert_eq!(found.read_all("w").expect("numbers"), data);
    // Of int64, packed with seven bits a byte.
    let packed = [
        vec![0x08, 2],
        vec![0x10, 7],
        name.clone(),
        field(7, &[0xac, 2, 1]),
    ];
    let found = open(&onnx(&packed)).expect("read");
    let numbers: Vec<u8> = [300i64, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(found.read_all("w").expect("numbers"), numbers);

    let long = [vec![0x08, 3], vec![0x10, 1], name.clone(), raw];
    assert!(fault(&onnx(&long)).contains("do not fit"));
    let text = [vec![0x08, 1], vec![0x10, 8], name.clone(), field(6, b"a")];
    assert!(fault(&onnx(&text)).contains("string"));
    for location in ["../w", "/w", "", "a/../../w"] {
        let pair = [field(1, b"location"), field(2, location.as_bytes())].concat();
        let external = [
            vec![0x08, 2],
            vec![0x10, 1],
            name.clone(),
            field(13, &pair),
            vec![0x70, 1],
        ];
        let refused = open(&onnx(&external));
        let is_refused = matches!(
            refused,
            Err(Error::Container(fault)) if matches!(*fault, ContainerFault::External { .. })
        );
        assert!(is_refused, "{location}");
    }
}

/// A file that h5py wrote (`tests/containers.py --write`).
fn hdf5(name: &str) -> Vec<u8> {
    std::fs::read(fixtures::path("containers").join(name)).expect("a fixture")
}

#[test]
fn datasets_of_hdf5_are_read_under_their_paths() {
    let count = |n: u8| floats(&(0..n).map(f32::from).collect::<Vec<_>>());
    let keras = open(&hdf5("keras.weights.h5")).expect("read");
    assert_eq!(keras.info().container, Container::Hdf5);
    let names: Vec<&str> = keras.tensors().map(|(name, _)| name).collect();
    let expected = [
        "layers/dense/vars/0",
        "layers/dense/vars/1",
        "layers/half/vars/0",
    ];
    assert_eq!(names, expected);
    assert_eq!(keras.get(expected[0]).expect("there").shape, [4, 3]);
    assert_eq!(keras.read_all(expected[0]).expect("numbers"), count(12));
    let half = keras.get(expected[2]).expect("there");
    assert_eq!(
        (half.dtype, half.shape.as_slice()),
        (DType::BF16, &[2, 2][..])
    );
    // 0, 1, 2 and 3: the upper halves of these numbers in f32.
    let upper: Vec<u8> = (count(4).chunks_exact(4))
        .flat_map(|bytes| [bytes[2], bytes[3]])
        .collect();
    assert_eq!(keras.read_all(expected[2]).expect("numbers"), upper);

    let pieces = open(&hdf5("pieces.h5")).expect("read");
    assert_eq!(pieces.read_all("a/pieces").expect("numbers"), count(77));
    for first in 0..77 {
        for n in [1, 5, 20] {
            let n = n.min(77 - first);
            let mut part = vec![0; 4 * n];
            pieces.read("a/pieces", first, &mut part).expect("numbers");
            assert_eq!(part, count(77)[4 * first..][..4 * n], "{first} {n}");
        }
    }
    assert_eq!(pieces.get("a/half").expect("there").dtype, DType::F16);
}

#[test]
fn damaged_files_of_hdf5_are_refused_or_read_within_bounds() {
    // The multiplier and increment of Knuth's MMIX.
    let mut state = 7u64;
    let mut draw = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut n_refused = 0;
    for name in ["keras.weights.h5", "pieces.h5"] {
        let whole = hdf5(name);
        for _ in 0..1500 {
            let mut changed = whole.clone();
            for _ in 0..1 + draw(6) {
                let at = draw(changed.len());
                match draw(4) {
                    0 => changed[at] ^= 1 << draw(8),
                    1 => changed[at] = 0xff,
                    2 => {
                        let n = 8.min(changed.len() - at);
                        let far = [u64::MAX, 1 << 40, changed.len() as u64, 1][draw(4)];
                        changed[at..at + n].copy_from_slice(&far.to_le_bytes()[..n]);
                    }
                    _ => changed[at] = draw(256) as u8,
                }
            }
            if draw(10) == 0 {
                changed.truncate(draw(changed.len()));
            }
            let Ok(found) = open(&changed) else {
                n_refused += 1;
                continue;
            };
            for (name, info) in found.tensors().filter(|(_, info)| info.n_bytes() < 1 << 16) {
                let mut out = vec![0; info.n_bytes() as usize];
                let _ = found.read(name, 0, &mut out);
            }
        }
    }
    assert!(n_refused > 300, "{n_refused}");
}

#[test]
fn no_change_of_a_byte_and_no_cut_makes_a_reader_panic() {
    let tensor = [
        vec![0x08, 2],
        vec![0x10, 1],
        field(8, b"w"),
        field(9, &floats(&[1.0, 2.0])),
    ];
    let array = numpy("<f4", "True", "(2, 3)", &floats(&[1.0; 6]));
    for bytes in [flax(), array, onnx(&tensor)] {
        assert!(open(&bytes).is_ok());
        for cut in 0..bytes.len() {
            assert!(open(&bytes[..cut]).is_err(), "{cut} of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            for change in [1, 2, 0x10, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                let Ok(found) = open(&changed) else {
                    continue;
                };
                for (name, info) in found.tensors().filter(|(_, info)| info.n_bytes() < 1 << 16) {
                    let mut out = vec![0; info.n_bytes() as usize];
                    let _ = found.read(name, 0, &mut out);
                }
            }
        }
    }
}
