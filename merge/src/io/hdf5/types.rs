//! The dtypes of HDF5's types, by their bits.

use hdf5_reader::error::Result;
use hdf5_reader::{ByteOrder, Dataset, Datatype};

use crate::DType;

/// Bytes of a type's message before what its class adds.
const HEAD: usize = 8;

/// The attribute by which Keras says what opaque elements are.
const OF_KERAS: &str = "dtype";

/// Place and size of the exponent, place and size of the mantissa, and the bias of the exponent, of floats that are
/// read.
const FLOATS: [(u8, [u8; 4], u32, DType); 4] = [
    (2, [10, 5, 0, 10], 15, DType::F16),
    (2, [7, 8, 0, 7], 127, DType::BF16),
    (4, [23, 8, 0, 23], 127, DType::F32),
    (8, [52, 11, 0, 52], 1023, DType::F64),
];

/// The dtype of a dataset; what it has instead, in words, if that is not read.
pub(super) fn dtype_of(dataset: &Dataset) -> Result<std::result::Result<DType, String>> {
    let stored = dataset.raw_datatype()?;
    let found = match dataset.dtype() {
        Datatype::FixedPoint {
            size,
            signed,
            byte_order,
        } if *byte_order == ByteOrder::LittleEndian || *size == 1 => {
            let is_whole = stored.get(HEAD..HEAD + 4) == Some(&[0, 0, size.wrapping_mul(8), 0][..]);
            integer(*size, *signed).filter(|_| is_whole)
        }
        Datatype::FloatingPoint {
            size,
            byte_order: ByteOrder::LittleEndian,
        } => float(&stored, *size),
        // The form in which h5py writes booleans.
        Datatype::Enum { base, members } => {
            let is_byte = matches!(**base, Datatype::FixedPoint { size: 1, .. });
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            (is_byte && names == ["FALSE", "TRUE"]).then_some(DType::Bool)
        }
        Datatype::Opaque { size: 2, .. } => {
            let said = dataset
                .attribute(OF_KERAS)
                .and_then(|said| said.read_string());
            (said.is_ok_and(|said| said == "bfloat16")).then_some(DType::BF16)
        }
        _ => None,
    };
    Ok(found.ok_or_else(|| in_words(dataset.dtype())))
}

/// A type that is not read.
fn in_words(stored: &Datatype) -> String {
    let order = |order: &ByteOrder| match order {
        ByteOrder::LittleEndian => "of unusual bits",
        ByteOrder::BigEndian => "big-endian",
    };
    match stored {
        Datatype::FixedPoint {
            size, byte_order, ..
        } => format!("integers of {size} bytes, {}", order(byte_order)),
        Datatype::FloatingPoint { size, byte_order } => {
            format!("floats of {size} bytes, {}", order(byte_order))
        }
        Datatype::String { .. } => "string".into(),
        Datatype::Compound { .. } => "compound".into(),
        Datatype::Array { .. } => "array".into(),
        Datatype::Enum { .. } => "enumeration".into(),
        Datatype::VarLen { .. } => "of variable length".into(),
        Datatype::Opaque { size, .. } => format!("opaque, of {size} bytes"),
        Datatype::Reference { .. } => "reference".into(),
        Datatype::Bitfield { .. } => "bits".into(),
    }
}

const fn integer(size: u8, is_signed: bool) -> Option<DType> {
    Some(match (size, is_signed) {
        (1, true) => DType::I8,
        (2, true) => DType::I16,
        (4, true) => DType::I32,
        (8, true) => DType::I64,
        (1, false) => DType::U8,
        (2, false) => DType::U16,
        (4, false) => DType::U32,
        (8, false) => DType::U64,
        _ => return None,
    })
}

/// The float whose bits a message describes: its sign first, and a mantissa whose highest bit is not stored.
fn float(stored: &[u8], size: u8) -> Option<DType> {
    let (flags, sign) = (*stored.get(1)?, *stored.get(2)?);
    let bits = size.checked_mul(8)?;
    let own = stored.get(HEAD..HEAD + 12)?;
    let is_usual = flags & 0x41 == 0 && flags >> 4 & 3 == 2 && sign == bits - 1;
    if !is_usual || own[..4] != [0, 0, bits, 0] {
        return None;
    }
    let bias = u32::from_le_bytes(own[8..12].try_into().ok()?);
    let mut floats = FLOATS.into_iter();
    let found = floats
        .find(|(n, places, added, _)| *n == size && own[4..8] == places[..] && *added == bias)?;
    Some(found.3)
}
