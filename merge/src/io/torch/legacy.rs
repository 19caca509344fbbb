//! The stream that `torch.save` wrote before 1.6: five pickles (a magic number, a protocol
//! number, facts of the machine, the object, the keys of the storages), then each storage as its
//! number of elements and their bytes.

use std::collections::HashMap;

use super::byte_stream::ByteStream;
use super::fault::PickleFault;
use super::pickle::{self, Failure, PICKLE_LIMIT_BYTES};
use super::value::{Arena, Id, Value};
use crate::io::read_at::ReadAt;

/// `0x1950a86a20f9469cfc6c`, the magic number of `torch.save`.
const MAGIC: &str = "119547037146038801333356";

/// The stream as it was read, up to the first fault.
pub(crate) struct Legacy {
    pub(crate) arena: Arena,
    pub(crate) root: Id,
    /// Where each storage lies, by key: position and bytes.
    pub(crate) storages: HashMap<String, (u64, u64)>,
}

/// The fault, and the part of the file that has it.
pub(crate) struct LegacyError {
    pub(crate) part: &'static str,
    pub(crate) failure: Failure,
}

/// Reads the five pickles and finds the storages.
pub(crate) fn read(source: &dyn ReadAt) -> Result<Legacy, LegacyError> {
    let mut at = 0;
    let (arena, magic) = part(source, &mut at, "magic number")?;
    let is_torch = matches!(arena.get(magic), Value::BigInteger(number) if &**number == MAGIC);
    if !is_torch {
        return Err(fault("magic number", 0, PickleFault::NotTorch));
    }
    let (arena, protocol) = part(source, &mut at, "protocol number")?;
    if !matches!(arena.get(protocol), Value::Integer(1001)) {
        return Err(fault("protocol number", 0, PickleFault::OtherProtocol));
    }
    let (arena, facts) = part(source, &mut at, "system information")?;
    if is_big_endian(&arena, facts) {
        return Err(fault("system information", 0, PickleFault::BigEndian));
    }
    let (arena, root) = part(source, &mut at, "object")?;
    let (keys_arena, keys) = part(source, &mut at, "list of storages")?;
    let storages = storages(source, at, &arena, &keys_arena, keys)
        .map_err(|(offset, why)| fault("storages", offset, why))?;
    Ok(Legacy {
        arena,
        root,
        storages,
    })
}

fn part(source: &dyn ReadAt, at: &mut u64, part: &'static str) -> Result<(Arena, Id), LegacyError> {
    let mut stream = ByteStream::new(source, *at, source.n_bytes(), PICKLE_LIMIT_BYTES);
    let result = pickle::read(&mut stream);
    *at = stream.position();
    result.map_err(|failure| LegacyError { part, failure })
}

fn fault(part: &'static str, offset: u64, fault: PickleFault) -> LegacyError {
    LegacyError {
        part,
        failure: Failure::Fault(offset, fault),
    }
}

fn is_big_endian(arena: &Arena, facts: Id) -> bool {
    let Value::Dict(items) = arena.get(facts) else {
        return false;
    };
    items.iter().any(|&(key, value)| {
        matches!(arena.get(key), Value::Text(key) if &**key == "little_endian")
            && matches!(arena.get(value), Value::Bool(false))
    })
}

/// Follows the storages from position `at` on.
fn storages(
    source: &dyn ReadAt,
    mut at: u64,
    arena: &Arena,
    keys_arena: &Arena,
    keys: Id,
) -> Result<HashMap<String, (u64, u64)>, (u64, PickleFault)> {
    let known: HashMap<&str, (usize, u64)> = (arena.storages.iter())
        .map(|storage| {
            let size = (storage.element.size_bytes(), storage.n_elements);
            (&*storage.key, size)
        })
        .collect();
    let keys = match keys_arena.get(keys) {
        Value::List(keys) => keys,
        other => return Err((at, super::value::wrong_type("a list of keys", other))),
    };
    let mut found = HashMap::new();
    for &key in keys {
        let key = match keys_arena.get(key) {
            Value::Text(key) => &**key,
            other => return Err((at, super::value::wrong_type("the key of a storage", other))),
        };
        let stray = || PickleFault::StrayStorage(key.to_owned());
        let &(element_bytes, expected) = known.get(key).ok_or_else(|| (at, stray()))?;
        let mut stream = ByteStream::new(source, at, source.n_bytes(), 8);
        let n_elements = i64::from_le_bytes(stream.array().map_err(|fault| (at, fault))?);
        if u64::try_from(n_elements) != Ok(expected) {
            let size = PickleFault::StorageSize {
                key: key.to_owned(),
                found: n_elements,
                expected,
            };
            return Err((at, size));
        }
        let start = at + 8;
        let left = source.n_bytes() - start;
        let n_bytes = expected.saturating_mul(element_bytes as u64);
        if n_bytes > left {
            let wanted = n_bytes;
            return Err((start, PickleFault::Truncated { wanted, left }));
        }
        if found.insert(key.to_owned(), (start, n_bytes)).is_some() {
            return Err((at, stray()));
        }
        at = start + n_bytes;
    }
    Ok(found)
}
