//! Tensors and storages as a pickle describes them.

use super::fault::PickleFault;
use super::value::{Arena, Global, Id, Value, wrong_type};
use crate::DType;

/// Axes that a tensor may have, which is what torch's own operators take.
pub(super) const AXIS_LIMIT: usize = 64;

/// The type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElementType {
    Plain(DType),
    /// Bytes whose meaning the tensor says.
    Untyped,
    /// A type without counterpart here: its name, and the bytes of one element.
    Unsupported(&'static str, usize),
}

impl ElementType {
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size_bytes(),
            Self::Untyped => 1,
            Self::Unsupported(_, n_bytes) => n_bytes,
        }
    }

    fn of_storage(class: &Global) -> Option<Self> {
        if !matches!(&*class.module, "torch" | "torch.cuda" | "torch.storage") {
            return None;
        }
        Some(match &*class.name {
            "DoubleStorage" => Self::Plain(DType::F64),
            "FloatStorage" => Self::Plain(DType::F32),
            "HalfStorage" => Self::Plain(DType::F16),
            "BFloat16Storage" => Self::Plain(DType::BF16),
            "LongStorage" => Self::Plain(DType::I64),
            "IntStorage" => Self::Plain(DType::I32),
            "ShortStorage" => Self::Plain(DType::I16),
            "CharStorage" => Self::Plain(DType::I8),
            "ByteStorage" => Self::Plain(DType::U8),
            "BoolStorage" => Self::Plain(DType::Bool),
            "ComplexFloatStorage" => Self::Plain(DType::C64),
            "ComplexDoubleStorage" => Self::Unsupported("complex128", 16),
            "QInt8Storage" => Self::Unsupported("qint8", 1),
            "QUInt8Storage" => Self::Unsupported("quint8", 1),
            "QUInt4x2Storage" => Self::Unsupported("quint4x2", 1),
            "QUInt2x4Storage" => Self::Unsupported("quint2x4", 1),
            "QInt32Storage" => Self::Unsupported("qint32", 4),
            "UntypedStorage" | "_UntypedStorage" => Self::Untyped,
            _ => return None,
        })
    }

    pub(crate) fn of_dtype(dtype: &Global) -> Option<Self> {
        if &*dtype.module != "torch" {
            return None;
        }
        Some(match &*dtype.name {
            "float64" | "double" => Self::Plain(DType::F64),
            "float32" | "float" => Self::Plain(DType::F32),
            "float16" | "half" => Self::Plain(DType::F16),
            "bfloat16" => Self::Plain(DType::BF16),
            "float8_e4m3fn" => Self::Plain(DType::F8E4M3),
            "float8_e5m2" => Self::Plain(DType::F8E5M2),
            "int64" | "long" => Self::Plain(DType::I64),
            "int32" | "int" => Self::Plain(DType::I32),
            "int16" | "short" => Self::Plain(DType::I16),
            "int8" => Self::Plain(DType::I8),
            "uint64" => Self::Plain(DType::U64),
            "uint32" => Self::Plain(DType::U32),
            "uint16" => Self::Plain(DType::U16),
            "uint8" => Self::Plain(DType::U8),
            "bool" => Self::Plain(DType::Bool),
            "float8_e4m3fnuz" => Self::Plain(DType::F8E4M3Fnuz),
            "float8_e5m2fnuz" => Self::Plain(DType::F8E5M2Fnuz),
            "float8_e8m0fnu" => Self::Plain(DType::F8E8M0),
            "float4_e2m1fn_x2" => Self::Unsupported("float4_e2m1fn_x2", 1),
            "complex32" => Self::Unsupported("complex32", 4),
            "complex64" | "cfloat" => Self::Plain(DType::C64),
            "complex128" | "cdouble" => Self::Unsupported("complex128", 16),
            _ => return None,
        })
    }
}

/// A storage that the pickle refers to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StorageRef {
    /// Its key: the name of its record, or of its place in the list of a legacy file.
    pub(crate) key: Box<str>,
    /// The type of its elements.
    pub(crate) element: ElementType,
    /// How many elements the pickle says it has.
    pub(crate) n_elements: u64,
    /// First element, for the views into another storage that very old files have.
    pub(crate) first: u64,
}

/// A tensor as the pickle describes it: consistent in itself, not yet compared with the file.
#[derive(Debug)]
pub(crate) struct TensorRecord {
    /// Index into [`Arena::storages`].
    pub(crate) storage: u32,
    pub(crate) element: ElementType,
    /// First element within the storage.
    pub(crate) offset: u64,
    pub(crate) sizes: Vec<usize>,
    pub(crate) strides: Vec<u64>,
}

/// Reads a persistent id: `("storage", class, key, location, n_elements[, view])`.
pub(crate) fn storage(arena: &mut Arena, pid: Id) -> Result<Value, PickleFault> {
    use PickleFault::NotAStorage;
    let Value::Tuple(parts) = arena.get(pid) else {
        return Err(NotAStorage("it is not a tuple"));
    };
    let &[tag, class, key, _location, n_elements, ref view @ ..] = &parts[..] else {
        return Err(NotAStorage("it has fewer than five parts"));
    };
    if !matches!(arena.get(tag), Value::Text(tag) if &**tag == "storage") {
        return Err(NotAStorage("it is not tagged `storage`"));
    }
    let Some(class) = arena.global(class) else {
        return Err(NotAStorage("its second part is no class"));
    };
    let element = ElementType::of_storage(class)
        .ok_or_else(|| PickleFault::UnknownStorageClass(class.full_name()))?;
    let mut first = 0;
    let n_elements = match arena.get(n_elements) {
        &Value::Integer(n) => {
            u64::try_from(n).map_err(|_| NotAStorage("its number of elements is negative"))?
        }
        _ => return Err(NotAStorage("its number of elements is no integer")),
    };
    // Before torch 0.4 a storage could be a view: (key of the view, offset, size), all of it in
    // the storage named before. The view's own key is only an identity.
    if let Some(Value::Tuple(view)) = view.first().map(|&view| arena.get(view)) {
        let &[view_key, offset, _size] = &view[..] else {
            return Err(NotAStorage("its view has not three parts"));
        };
        if !matches!(arena.get(view_key), Value::Text(_)) {
            return Err(NotAStorage("the key of its view is no string"));
        }
        first = index(arena, offset, "offset")?;
    }
    // Often the last storage is referred to once more.
    let Value::Text(key) = arena.get(key) else {
        return Err(NotAStorage("its key is no string"));
    };
    let reference = StorageRef {
        key: key.clone(),
        element,
        n_elements,
        first,
    };
    if arena.storages.last() != Some(&reference) {
        arena.charge(size_of::<StorageRef>() + reference.key.len())?;
        arena.storages.push(reference);
    }
    Ok(Value::Storage(arena.storages.len() as u32 - 1))
}

/// Which arguments describe a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rebuild {
    /// `_rebuild_tensor(storage, offset, sizes, strides)`.
    V1,
    /// `_rebuild_tensor_v2`: the same, and what gradients need.
    V2,
    /// `_rebuild_tensor_v3`: the same over untyped bytes, with the dtype as seventh argument.
    V3,
}

impl Rebuild {
    const fn signature(self) -> (&'static str, usize) {
        match self {
            Self::V1 => ("torch._utils._rebuild_tensor", 4),
            Self::V2 => ("torch._utils._rebuild_tensor_v2", 6),
            Self::V3 => ("torch._utils._rebuild_tensor_v3", 7),
        }
    }
}

/// Reads the arguments of a `_rebuild_tensor` call.
pub(crate) fn tensor(
    arena: &mut Arena,
    rebuild: Rebuild,
    arguments: &[Id],
) -> Result<Value, PickleFault> {
    let (callable, wanted) = rebuild.signature();
    if arguments.len() < wanted {
        return Err(PickleFault::FewArguments {
            callable,
            wanted,
            found: arguments.len(),
        });
    }
    let &Value::Storage(storage) = arena.get(arguments[0]) else {
        return Err(wrong_type("a storage", arena.get(arguments[0])));
    };
    let element = match rebuild {
        Rebuild::V1 | Rebuild::V2 => arena.storages[storage as usize].element,
        Rebuild::V3 => {
            let dtype = arena
                .global(arguments[6])
                .ok_or_else(|| wrong_type("a dtype", arena.get(arguments[6])))?;
            ElementType::of_dtype(dtype)
                .ok_or_else(|| PickleFault::UnknownDtype(dtype.full_name()))?
        }
    };
    let offset = index(arena, arguments[1], "offset")?;
    let n_axes = sequence(arena, arguments[2])?.len();
    if n_axes > AXIS_LIMIT {
        return Err(PickleFault::TooManyAxes {
            found: n_axes,
            limit: AXIS_LIMIT,
        });
    }
    // Sizes and strides, before they are copied.
    arena.charge(size_of::<TensorRecord>() + 16 * n_axes)?;
    let sizes = indices(arena, arguments[2], "size")?;
    let strides = indices(arena, arguments[3], "stride")?;
    if sizes.len() != strides.len() {
        return Err(PickleFault::StrideCount {
            sizes: sizes.len(),
            strides: strides.len(),
        });
    }
    // Zero sizes are left out, so that the product of any of the axes fits as well.
    sizes
        .iter()
        .filter(|&&size| size > 0)
        .try_fold(element.size_bytes() as u64, |product, &size| {
            product.checked_mul(size).filter(|&n| n <= i64::MAX as u64)
        })
        .ok_or(PickleFault::SizeOverflow)?;
    arena.tensors.push(TensorRecord {
        storage,
        element,
        offset,
        sizes: sizes.into_iter().map(|size| size as usize).collect(),
        strides,
    });
    Ok(Value::Tensor(arena.tensors.len() as u32 - 1))
}

fn sequence(arena: &Arena, id: Id) -> Result<&[Id], PickleFault> {
    match arena.get(id) {
        Value::Tuple(ids) | Value::List(ids) => Ok(ids),
        other => Err(wrong_type("a tuple", other)),
    }
}

fn index(arena: &Arena, id: Id, what: &'static str) -> Result<u64, PickleFault> {
    match arena.get(id) {
        &Value::Integer(value) => {
            u64::try_from(value).map_err(|_| PickleFault::Negative { what, value })
        }
        Value::BigInteger(_) => Err(PickleFault::SizeOverflow),
        other => Err(wrong_type("an integer", other)),
    }
}

fn indices(arena: &Arena, id: Id, what: &'static str) -> Result<Vec<u64>, PickleFault> {
    let ids = sequence(arena, id)?;
    // Whatever does not match in number is refused; it need not be read in full.
    let ids = &ids[..ids.len().min(AXIS_LIMIT + 1)];
    ids.iter().map(|&id| index(arena, id, what)).collect()
}
