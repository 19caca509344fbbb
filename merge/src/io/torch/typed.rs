//! Values of a pickle as the types that a reader expects: plain data, and attributes of objects that were not built.

use super::fault::PickleFault;
use super::tensor::AXIS_LIMIT;
use super::value::{Arena, Distributed, Global, Id, Object, Value, wrong_type};

/// A value of a pickle, and the arena that holds what it refers to.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    arena: &'a Arena,
    id: Id,
}

/// The most attributes of an object that are looked at.
const ATTRIBUTES: usize = 256;

type Result<T> = std::result::Result<T, PickleFault>;

impl<'a> View<'a> {
    pub(super) fn new(arena: &'a Arena, id: Id) -> Self {
        Self { arena, id }
    }

    fn at(self, id: Id) -> Self {
        Self { id, ..self }
    }

    fn value(self) -> &'a Value {
        self.arena.get(self.id)
    }

    /// The key that tells whether two views are of the same value.
    pub(crate) fn identity(self) -> usize {
        self.id.index()
    }

    /// The fault of a value of another type than the expected one.
    pub(crate) fn wrong(self, wanted: &'static str) -> PickleFault {
        wrong_type(wanted, self.value())
    }

    /// The kind of value, for messages.
    pub(crate) fn kind(self) -> &'static str {
        self.value().kind()
    }

    /// The value of a dictionary under a string, or the attribute of an object, unless it is `None`. Looks at all of them.
    pub(crate) fn get(self, key: &str) -> Option<Self> {
        let dictionary = match self.value() {
            Value::Object(object) => self.at(object.state?),
            _ => self,
        };
        let mut items = dictionary.items().ok()?;
        let (_, value) = items.find(|(name, _)| name.text() == Ok(key))?;
        (!value.is_none()).then_some(value)
    }

    /// A number, whole or not.
    pub(crate) fn number(self) -> Result<f64> {
        match self.value() {
            Value::Integer(number) => Ok(*number as f64),
            Value::Float(number) => Ok(*number),
            _ => Err(self.wrong("a number")),
        }
    }

    /// A truth value.
    pub(crate) fn flag(self) -> Result<bool> {
        match self.value() {
            Value::Bool(flag) => Ok(*flag),
            _ => Err(self.wrong("a truth value")),
        }
    }

    /// The sizes of a tensor, whose bytes can be counted in any dtype.
    pub(crate) fn shape(self) -> Result<Vec<usize>> {
        let shape = self.sizes()?;
        // Zero sizes are left out, so that the product of any of the axes fits as well.
        let mut axes = shape.iter().copied().filter(|&size| size > 0);
        let n_elements = axes.try_fold(1usize, usize::checked_mul);
        match n_elements.filter(|n| *n <= isize::MAX as usize / 16) {
            Some(_) => Ok(shape),
            None => Err(PickleFault::SizeOverflow),
        }
    }

    /// Whether it is `None`.
    pub(crate) fn is_none(self) -> bool {
        self.id == Id::NONE
    }

    /// A string.
    pub(crate) fn text(self) -> Result<&'a str> {
        match self.value() {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }

    /// An integer.
    pub(crate) fn integer(self) -> Result<i64> {
        match self.value() {
            Value::Integer(value) => Ok(*value),
            _ => Err(self.wrong("an integer")),
        }
    }

    /// A number that counts something.
    pub(crate) fn count(self) -> Result<u64> {
        let value = self.integer()?;
        let what = "number";
        u64::try_from(value).map_err(|_| PickleFault::Negative { what, value })
    }

    /// Elements of a list, a tuple or a set.
    pub(crate) fn elements(self) -> Result<impl ExactSizeIterator<Item = Self>> {
        match self.value() {
            Value::List(ids) | Value::Tuple(ids) | Value::Set(ids) => {
                Ok(ids.iter().map(move |id| self.at(*id)))
            }
            _ => Err(self.wrong("a sequence")),
        }
    }

    /// Numbers that count something.
    pub(crate) fn counts(self) -> Result<Vec<usize>> {
        let elements = self.elements()?;
        elements.map(|size| Ok(size.count()? as usize)).collect()
    }

    /// Sizes or the like, one per axis.
    pub(crate) fn sizes(self) -> Result<Vec<usize>> {
        match self.elements()?.len() {
            found if found > AXIS_LIMIT => Err(PickleFault::TooManyAxes {
                found,
                limit: AXIS_LIMIT,
            }),
            _ => self.counts(),
        }
    }

    /// Items of a dictionary.
    pub(crate) fn items(self) -> Result<impl ExactSizeIterator<Item = (Self, Self)>> {
        match self.value() {
            Value::Dict(items) => {
                Ok((items.iter()).map(move |(key, value)| (self.at(*key), self.at(*value))))
            }
            _ => Err(self.wrong("a dictionary")),
        }
    }

    /// A class or a dtype.
    pub(crate) fn global(self) -> Result<&'a Global> {
        match self.value() {
            Value::Global(global) => Ok(global),
            _ => Err(self.wrong("a class")),
        }
    }

    fn object(self) -> Result<&'a Object> {
        match self.value() {
            Value::Object(object) => Ok(object),
            _ => Err(self.wrong("an object")),
        }
    }

    /// The class of an object.
    pub(crate) fn class(self) -> Result<&'a Global> {
        self.at(self.object()?.callable).global()
    }

    /// The number of an object that the reader has taken.
    pub(crate) fn taken(self) -> Option<u32> {
        match self.value() {
            Value::Taken(number) => Some(*number),
            _ => None,
        }
    }

    /// An argument that an object would have been built with.
    pub(crate) fn argument(self, position: usize) -> Result<Self> {
        let object = self.object()?;
        let found = self.at(object.arguments).elements()?.len();
        let mut arguments = self.at(object.arguments).elements()?;
        arguments
            .nth(position)
            .ok_or_else(|| PickleFault::FewArguments {
                callable: "(class)",
                wanted: position + 1,
                found,
            })
    }

    /// The attributes of an object as they were given, which its class may spell in its own way.
    pub(crate) fn state(self) -> Result<Self> {
        let state = self.object()?.state;
        let state = state.map(|state| self.at(state));
        state.ok_or_else(|| self.wrong("an object with attributes"))
    }

    /// An attribute of an object, or a key of its attributes; `None` without it.
    pub(crate) fn find(self, name: &str) -> Option<Self> {
        match self.value() {
            Value::Object(object) => self.at(object.state?).among(name),
            Value::Distributed(tensor) => self.at(tensor.state).among(name),
            _ => self.among(name),
        }
    }

    /// A key of a dictionary, or of a pair of one and that of the slots.
    fn among(self, name: &str) -> Option<Self> {
        let key_of = |dictionary: Self| {
            // No object has more attributes: a file must not make looking for them take long.
            let mut items = dictionary.items().ok()?.take(ATTRIBUTES);
            items.find_map(|(key, value)| (key.text() == Ok(name)).then_some(value))
        };
        match self.value() {
            Value::Tuple(parts) => parts.iter().take(2).find_map(|part| key_of(self.at(*part))),
            _ => key_of(self),
        }
    }

    /// An attribute that must be there.
    pub(crate) fn attribute(self, name: &'static str) -> Result<Self> {
        let fault = || PickleFault::NoAttribute { name };
        self.find(name).ok_or_else(fault)
    }

    /// The index of a tensor that is whole.
    pub(super) fn tensor(self) -> Result<u32> {
        match self.value() {
            Value::Tensor(index) => Ok(*index),
            _ => Err(self.wrong("a tensor")),
        }
    }

    /// A tensor of which the file holds a part.
    pub(super) fn distributed(self) -> Result<&'a Distributed> {
        match self.value() {
            Value::Distributed(tensor) => Ok(tensor),
            _ => Err(self.wrong("a tensor in parts")),
        }
    }

    /// The sizes of a tensor that is whole.
    pub(super) fn tensor_sizes(self) -> Result<&'a [usize]> {
        Ok(&self.arena.tensors[self.tensor()? as usize].sizes)
    }

    /// The state of a tensor in parts.
    pub(super) fn state_of_tensor(self) -> Result<Self> {
        Ok(self.at(self.distributed()?.state))
    }
}
