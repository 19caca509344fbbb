//! Files of torch out of values, for tests of what trainers leave in them.

use std::rc::Rc;

use crate::torch_reader::archive;

/// A value as Python pickles it.
#[derive(Clone)]
pub enum Py {
    None,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Py>),
    Tuple(Vec<Py>),
    Dict(Vec<(String, Py)>),
    /// `argparse.Namespace`.
    Namespace(Vec<(String, Py)>),
    /// A member of an enumeration of a project.
    Member(i64),
    /// `io.BytesIO`.
    Buffer,
    Tensor(Tensor),
    /// Opcodes that leave one value.
    Raw(Vec<u8>),
}

/// A tensor over a storage, which others may share.
#[derive(Clone)]
pub struct Tensor {
    /// `Float`, `BFloat16`, `Half`, `Long`.
    pub kind: &'static str,
    pub bytes: Rc<Vec<u8>>,
    pub shape: Vec<usize>,
}

/// A tensor of f32.
pub fn floats(values: &[f32], shape: &[usize]) -> Py {
    Py::Tensor(Tensor {
        kind: "Float",
        bytes: Rc::new(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        ),
        shape: shape.to_vec(),
    })
}

/// A tensor of bf16, whose values must be such.
pub fn brain_floats(values: &[f32], shape: &[usize]) -> Py {
    let upper = |value: &f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
    Py::Tensor(Tensor {
        kind: "BFloat16",
        bytes: Rc::new(values.iter().flat_map(upper).collect()),
        shape: shape.to_vec(),
    })
}

/// A tensor of i64.
pub fn longs(values: &[i64], shape: &[usize]) -> Py {
    Py::Tensor(Tensor {
        kind: "Long",
        bytes: Rc::new(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        ),
        shape: shape.to_vec(),
    })
}

/// A string.
pub fn text(text: &str) -> Py {
    Py::Text(text.into())
}

/// `torch.Size`, which pickles as a call with a tuple.
pub fn size(shape: &[usize]) -> Py {
    Py::Tuple(shape.iter().map(|&size| Py::Integer(size as i64)).collect())
}

/// A dictionary.
pub fn dict<const N: usize>(items: [(&str, Py); N]) -> Py {
    Py::Dict(items.map(|(key, value)| (key.to_owned(), value)).to_vec())
}

/// The bytes of a file of `torch.save`.
pub fn torch_file(root: &Py) -> Vec<u8> {
    let (mut pickle, mut storages) = (Vec::new(), Vec::new());
    write(root, &mut pickle, &mut storages);
    pickle.push(b'.');
    let names: Vec<String> = (0..storages.len())
        .map(|key| format!("a/data/{key}"))
        .collect();
    let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", &pickle)];
    entries.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(storages.iter().map(|bytes| &bytes[..])),
    );
    archive(&entries)
}

fn write_text(text: &str, into: &mut Vec<u8>) {
    into.push(b'X');
    into.extend((text.len() as u32).to_le_bytes());
    into.extend(text.as_bytes());
}

fn write_all<'a>(
    values: impl IntoIterator<Item = &'a Py>,
    into: &mut Vec<u8>,
    storages: &mut Vec<Rc<Vec<u8>>>,
) {
    into.push(b'(');
    for value in values {
        write(value, into, storages);
    }
}

fn write_items(items: &[(String, Py)], into: &mut Vec<u8>, storages: &mut Vec<Rc<Vec<u8>>>) {
    into.extend(b"}(");
    for (key, value) in items {
        write_text(key, into);
        write(value, into, storages);
    }
    into.push(b'u');
}

fn write(value: &Py, into: &mut Vec<u8>, storages: &mut Vec<Rc<Vec<u8>>>) {
    match value {
        Py::None => into.push(b'N'),
        Py::Bool(true) => into.push(0x88),
        Py::Bool(false) => into.push(0x89),
        Py::Integer(number) => {
            into.extend(b"\x8a\x08");
            into.extend(number.to_le_bytes());
        }
        Py::Float(number) => {
            into.push(b'G');
            into.extend(number.to_be_bytes());
        }
        Py::Text(text) => write_text(text, into),
        Py::List(values) => {
            into.push(b']');
            write_all(values, into, storages);
            into.push(b'e');
        }
        Py::Tuple(values) => {
            write_all(values, into, storages);
            into.push(b't');
        }
        Py::Dict(items) => write_items(items, into, storages),
        Py::Namespace(items) => {
            into.extend(b"cargparse\nNamespace\n)\x81");
            write_items(items, into, storages);
            into.push(b'b');
        }
        Py::Member(number) => {
            into.extend(b"cproject.config\nMode\n(");
            write(&Py::Integer(*number), into, storages);
            into.extend(b"tR");
        }
        Py::Buffer => into.extend(b"c_io\nBytesIO\n)\x81(C\x03abcK\0Ntb"),
        Py::Tensor(tensor) => write_tensor(tensor, into, storages),
        Py::Raw(opcodes) => into.extend(opcodes),
    }
}

fn write_tensor(tensor: &Tensor, into: &mut Vec<u8>, storages: &mut Vec<Rc<Vec<u8>>>) {
    let known = storages
        .iter()
        .position(|other| Rc::ptr_eq(other, &tensor.bytes));
    let key = known.unwrap_or_else(|| {
        storages.push(tensor.bytes.clone());
        storages.len() - 1
    });
    let n: usize = tensor.shape.iter().product();
    let mut strides = vec![1; tensor.shape.len()];
    for axis in (1..tensor.shape.len()).rev() {
        strides[axis - 1] = strides[axis] * tensor.shape[axis];
    }
    into.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    write_text("storage", into);
    into.extend(format!("ctorch\n{}Storage\n", tensor.kind).bytes());
    write_text(&key.to_string(), into);
    write_text("cpu", into);
    write(&Py::Integer(n as i64), into, storages);
    into.extend(b"tQ");
    write(&Py::Integer(0), into, storages);
    write(&size(&tensor.shape), into, storages);
    write(&size(&strides), into, storages);
    into.extend(b"\x89NtR");
}
