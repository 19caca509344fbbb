//! The one pickle that is written here: a dictionary of tensors, protocol 2.
//!
//! Objects are written in full wherever they occur, without the memo, so that the stream of a
//! tensor depends on nothing before it.

use std::collections::HashMap;

use super::Contents;
use crate::{DType, TensorInfo};

const PROTO: u8 = 0x80;
const GLOBAL: u8 = b'c';
const MARK: u8 = b'(';
const TUPLE: u8 = b't';
const EMPTY_TUPLE: u8 = b')';
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';
const REDUCE: u8 = b'R';
const BINPERSID: u8 = b'Q';
const NEWFALSE: u8 = 0x89;
const BINUNICODE: u8 = b'X';
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const STOP: u8 = b'.';

/// The pickle of `{name: tensor, ...}`, or of `{key: {name: tensor, ...}}` if `nested` gives a
/// key. Storage `i` of the archive belongs to tensor `i` and to its other names, which come last.
pub(super) fn dictionary(contents: Contents<'_>, nested: Option<&str>) -> Vec<u8> {
    let tensors = contents.tensors;
    let mut pickle = Pickle(vec![PROTO, 2, EMPTY_DICT]);
    if let Some(key) = nested {
        pickle.op(MARK);
        pickle.text(key);
        pickle.op(EMPTY_DICT);
    }
    pickle.op(MARK);
    for (index, (name, info)) in tensors.iter().enumerate() {
        pickle.text(name);
        pickle.tensor(index, info);
    }
    let places = (tensors.iter().enumerate()).map(|(index, (name, _))| (name.as_str(), index));
    let places: HashMap<&str, usize> = places.collect();
    for (name, of) in contents.aliases {
        if let Some(&index) = places.get(of.as_str()) {
            pickle.text(name);
            pickle.tensor(index, &tensors[index].1);
        }
    }
    pickle.op(SETITEMS);
    if nested.is_some() {
        pickle.op(SETITEMS);
    }
    pickle.op(STOP);
    pickle.0
}

struct Pickle(Vec<u8>);

impl Pickle {
    fn op(&mut self, code: u8) {
        self.0.push(code);
    }

    fn text(&mut self, text: &str) {
        self.op(BINUNICODE);
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn integer(&mut self, value: u64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.op(BININT);
                self.0.extend(value.to_le_bytes());
            }
            Err(_) => {
                // Nine bytes, for the sign bit must not be taken from the value.
                self.0.extend([LONG1, 9]);
                self.0.extend(value.to_le_bytes());
                self.op(0);
            }
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        self.op(GLOBAL);
        self.0.extend(format!("{module}\n{name}\n").as_bytes());
    }

    fn integers(&mut self, values: impl IntoIterator<Item = usize>) {
        self.op(MARK);
        for value in values {
            self.integer(value as u64);
        }
        self.op(TUPLE);
    }

    /// A call of the function with which torch rebuilds a tensor from its storage.
    fn tensor(&mut self, index: usize, info: &TensorInfo) {
        let (class, untyped) = torch_names(info.dtype);
        let rebuild = if untyped {
            "_rebuild_tensor_v3"
        } else {
            "_rebuild_tensor_v2"
        };
        self.global("torch._utils", rebuild);
        self.op(MARK);
        self.storage(index, info);
        self.integer(0);
        self.integers(info.shape.iter().copied());
        self.integers(strides(&info.shape));
        self.op(NEWFALSE);
        // No backward hooks.
        self.global("collections", "OrderedDict");
        self.op(EMPTY_TUPLE);
        self.op(REDUCE);
        if untyped {
            self.global("torch", class);
        }
        self.op(TUPLE);
        self.op(REDUCE);
    }

    /// A reference to a record of the archive.
    fn storage(&mut self, index: usize, info: &TensorInfo) {
        self.op(MARK);
        self.text("storage");
        match torch_names(info.dtype) {
            (_, true) => self.global("torch.storage", "UntypedStorage"),
            (class, false) => self.global("torch", class),
        }
        self.text(&index.to_string());
        self.text("cpu");
        self.integer(match torch_names(info.dtype) {
            (_, true) => info.n_bytes(),
            (_, false) => info.n_elements() as u64,
        });
        self.op(TUPLE);
        self.op(BINPERSID);
    }
}

/// The name that torch gives to the storage of a dtype. Newer dtypes have no class: their storages are
/// untyped and the dtype itself is named, which is then the second value.
fn torch_names(dtype: DType) -> (&'static str, bool) {
    match dtype {
        DType::Bool => ("BoolStorage", false),
        DType::U8 => ("ByteStorage", false),
        DType::I8 => ("CharStorage", false),
        DType::I16 => ("ShortStorage", false),
        DType::I32 => ("IntStorage", false),
        DType::I64 => ("LongStorage", false),
        DType::F16 => ("HalfStorage", false),
        DType::BF16 => ("BFloat16Storage", false),
        DType::F32 => ("FloatStorage", false),
        DType::F64 => ("DoubleStorage", false),
        DType::U16 => ("uint16", true),
        DType::U32 => ("uint32", true),
        DType::U64 => ("uint64", true),
        DType::F8E4M3 => ("float8_e4m3fn", true),
        DType::F8E5M2 => ("float8_e5m2", true),
        DType::F8E8M0 => ("float8_e8m0fnu", true),
        DType::F8E4M3Fnuz => ("float8_e4m3fnuz", true),
        DType::F8E5M2Fnuz => ("float8_e5m2fnuz", true),
        DType::C64 => ("ComplexFloatStorage", false),
        // torch has no such types: the writer refuses them before.
        DType::F4 | DType::F6E2M3 | DType::F6E3M2 => ("uint8", true),
    }
}

/// Elements between neighbors along each axis, row-major; empty axes count as one, as in torch.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_those_of_torch() {
        assert_eq!(strides(&[2, 3, 4]), [12, 4, 1]);
        // torch.empty(2, 0, 3).stride()
        assert_eq!(strides(&[2, 0, 3]), [3, 3, 1]);
        assert_eq!(strides(&[]), [0; 0]);
    }
}
