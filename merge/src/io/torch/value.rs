//! The values of a pickle in one arena: objects refer to each other by number, so cycles, shared
//! objects and any depth of nesting are built, walked and dropped without recursion.

use std::collections::HashSet;

use super::fault::PickleFault;
use super::tensor::{StorageRef, TensorRecord};

/// The number of a value in its [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u32);

impl Id {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const FALSE: Self = Self(1);
    pub(crate) const TRUE: Self = Self(2);

    /// The bit in the numbers of values that are kept apart from the others.
    const APART: u32 = 1 << 31;

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    /// The place among the values that are kept apart.
    fn apart(self) -> Option<usize> {
        (self.0 & Self::APART != 0).then_some((self.0 & !Self::APART) as usize)
    }
}

/// A class or function that the pickle names.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) module: Box<str>,
    pub(crate) name: Box<str>,
}

impl Global {
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}

/// An instance of a class that is not understood: never built, but what it would be built from
/// is at hand.
#[derive(Debug)]
pub(crate) struct Object {
    /// The [`Value::Global`] that would have been called.
    pub(crate) callable: Id,
    /// The tuple of arguments that it would have been called with.
    pub(crate) arguments: Id,
    /// Items, if it is a kind of dictionary.
    pub(crate) items: Vec<(Id, Id)>,
    /// Elements, if it is a kind of list.
    pub(crate) elements: Vec<Id>,
    /// Its attributes, if they were set.
    pub(crate) state: Option<Id>,
}

/// A tensor of which this file holds a part.
#[derive(Debug)]
pub(crate) struct Distributed {
    /// Its class.
    pub(crate) kind: DistributedKind,
    /// Its attributes, which say what part.
    pub(crate) state: Id,
}

/// The classes of torch for tensors that lie on several devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DistributedKind {
    /// Placements on a mesh of devices: `torch.distributed.tensor.DTensor`.
    DTensor,
    /// Boxes, each with its place: `torch.distributed._shard.sharded_tensor.ShardedTensor`.
    ShardedTensor,
}

impl DistributedKind {
    /// The kind of a class.
    pub(crate) fn of(class: &Global) -> Option<Self> {
        if !class.module.starts_with("torch.distributed.") {
            return None;
        }
        match &*class.name {
            "DTensor" => Some(Self::DTensor),
            "ShardedTensor" => Some(Self::ShardedTensor),
            _ => None,
        }
    }
}

/// A value of a pickle.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Integer(i64),
    /// An integer beyond 64 bits, in decimal.
    BigInteger(Box<str>),
    Float(f64),
    Text(Box<str>),
    /// Raw bytes. Nothing here needs their content.
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    /// Index into [`Arena::storages`].
    Storage(u32),
    /// Index into [`Arena::tensors`].
    Tensor(u32),
    /// A tensor of a kind that is not supported, by its name.
    UnsupportedTensor(&'static str),
    /// A tensor of which this file holds a part.
    Distributed(Box<Distributed>),
    Object(Box<Object>),
    /// An object that the reader has taken, by the reader's number.
    Taken(u32),
}

impl Value {
    /// A copy, if it refers to no other value.
    fn plain(&self) -> Option<Self> {
        Some(match self {
            Self::None => Self::None,
            Self::Bool(flag) => Self::Bool(*flag),
            Self::Integer(number) => Self::Integer(*number),
            Self::BigInteger(digits) => Self::BigInteger(digits.clone()),
            Self::Float(number) => Self::Float(*number),
            Self::Text(text) => Self::Text(text.clone()),
            Self::Bytes => Self::Bytes,
            Self::Global(global) => Self::Global(Box::new(Global {
                module: global.module.clone(),
                name: global.name.clone(),
            })),
            _ => return None,
        })
    }

    /// Bytes that its content takes beside the value itself.
    fn content_bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::BigInteger(text) => text.len(),
            Self::Tuple(ids) | Self::List(ids) | Self::Set(ids) => size_of_val(&ids[..]),
            Self::Dict(items) => size_of_val(&items[..]),
            Self::Global(global) => size_of::<Global>() + global.module.len() + global.name.len(),
            Self::Distributed(_) => size_of::<Distributed>(),
            Self::Object(object) => {
                size_of::<Object>()
                    + size_of_val(&object.items[..])
                    + size_of_val(&object.elements[..])
            }
            _ => 0,
        }
    }

    /// The kind of value, for error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::BigInteger(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a string",
            Self::Bytes => "a byte string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Set(_) => "a set",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) | Self::UnsupportedTensor(_) | Self::Distributed(_) => "a tensor",
            Self::Object(_) | Self::Taken(_) => "an object",
        }
    }
}

/// Memory granted to the values of one file.
pub(crate) const MEMORY_LIMIT_BYTES: u64 = 128 << 20;

/// The memory of a value beside its content: the enum and the allocator's own data.
const VALUE_BYTES: u64 = 48;

/// All values of a pickle, with the memory they take.
#[derive(Debug)]
pub(crate) struct Arena {
    values: Vec<Value>,
    /// Values that stay when others are forgotten.
    apart: Vec<Value>,
    pub(crate) tensors: Vec<TensorRecord>,
    pub(crate) storages: Vec<StorageRef>,
    n_bytes: u64,
    /// Of these, bytes of what refers to values.
    reference_bytes: u64,
    limit_bytes: u64,
    /// Containers of classes whose instances have attributes.
    attributed: HashSet<Id>,
}

impl Arena {
    /// An empty one that may take so much memory.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            values: vec![Value::None, Value::Bool(false), Value::Bool(true)],
            apart: Vec::new(),
            tensors: Vec::new(),
            storages: Vec::new(),
            n_bytes: 0,
            reference_bytes: 0,
            attributed: HashSet::new(),
        }
    }

    /// Notes that a container is of a class whose instances have attributes.
    pub(crate) fn note_attributes(&mut self, id: Id) -> Result<(), PickleFault> {
        self.attributed.insert(id);
        self.charge(16)
    }

    /// Whether a container is of a class whose instances have attributes.
    pub(crate) fn has_attributes(&self, id: Id) -> bool {
        self.attributed.contains(&id)
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Accounts for memory before it is taken.
    pub(crate) fn charge(&mut self, n_bytes: usize) -> Result<(), PickleFault> {
        self.n_bytes = self.n_bytes.saturating_add(n_bytes as u64);
        if self.n_bytes > self.limit_bytes {
            return Err(PickleFault::TooMuchMemory {
                limit: self.limit_bytes,
            });
        }
        Ok(())
    }

    /// Accounts for memory of what refers to values, which stays when values are forgotten.
    pub(super) fn charge_references(&mut self, n_bytes: usize) -> Result<(), PickleFault> {
        self.reference_bytes = self.reference_bytes.saturating_add(n_bytes as u64);
        self.charge(n_bytes)
    }

    /// Bytes of the values themselves.
    pub(super) fn value_bytes(&self) -> u64 {
        self.n_bytes.saturating_sub(self.reference_bytes)
    }

    /// How many tensors and storages there are.
    pub(super) fn n_records(&self) -> usize {
        self.tensors.len() + self.storages.len()
    }

    /// Forgets all values but the first, which took this number of bytes. Nothing may refer to them.
    pub(super) fn forget(&mut self, n_values: usize, value_bytes: u64) {
        self.values.truncate(n_values);
        self.n_bytes = value_bytes.saturating_add(self.reference_bytes);
    }

    /// Bytes that values may take.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes that values may still take.
    pub(super) fn n_left(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.n_bytes)
    }

    /// Adds a value.
    pub(crate) fn add(&mut self, value: Value) -> Result<Id, PickleFault> {
        self.charge(VALUE_BYTES as usize + value.content_bytes())?;
        // The memory limit keeps the count far below 2³¹.
        let id = Id(self.values.len() as u32);
        self.values.push(value);
        Ok(id)
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        match id.apart() {
            None => &self.values[id.index()],
            Some(place) => &self.apart[place],
        }
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Value {
        match id.apart() {
            None => &mut self.values[id.index()],
            Some(place) => &mut self.apart[place],
        }
    }

    /// A copy of a plain value, or of a tuple of such, that stays when others are forgotten; `None` of any other value.
    pub(super) fn keep_apart(&mut self, id: Id) -> Result<Option<Id>, PickleFault> {
        let Value::Tuple(ids) = self.get(id) else {
            return self.plain_apart(id);
        };
        if id.apart().is_some() {
            return Ok(Some(id));
        }
        let mut copies = Vec::with_capacity(ids.len());
        for id in ids.clone() {
            match self.plain_apart(id)? {
                Some(copy) => copies.push(copy),
                None => return Ok(None),
            }
        }
        self.add_apart(Value::Tuple(copies)).map(Some)
    }

    /// A copy of a plain value.
    fn plain_apart(&mut self, id: Id) -> Result<Option<Id>, PickleFault> {
        // The first three have fixed numbers.
        if id.apart().is_some() || id.index() <= Id::TRUE.index() {
            return Ok(Some(id));
        }
        let copy = self.get(id).plain();
        copy.map(|copy| self.add_apart(copy)).transpose()
    }

    fn add_apart(&mut self, value: Value) -> Result<Id, PickleFault> {
        self.charge_references(VALUE_BYTES as usize + value.content_bytes())?;
        // The memory limit keeps the count far below 2³¹.
        let id = Id(Id::APART | self.apart.len() as u32);
        self.apart.push(value);
        Ok(id)
    }

    /// The name of a class or function.
    pub(crate) fn global(&self, id: Id) -> Option<&Global> {
        match self.get(id) {
            Value::Global(global) => Some(global),
            _ => None,
        }
    }
}

/// The fault of a value of another type than the expected one.
pub(crate) fn wrong_type(wanted: &'static str, found: &Value) -> PickleFault {
    PickleFault::WrongType {
        wanted,
        found: found.kind(),
    }
}
