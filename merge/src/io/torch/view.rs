//! What a pickle holds beside its tensors, as values of the kinds that a reader expects.

use super::tensor::AXIS_LIMIT;
use super::value::{Arena, Id, Value};

/// The values of a pickle that was read.
pub(crate) struct Objects {
    arena: Arena,
    root: Id,
}

impl Objects {
    pub(super) fn new(arena: Arena, root: Id) -> Self {
        Self { arena, root }
    }

    /// The object that was pickled.
    pub(crate) fn root(&self) -> View<'_> {
        View {
            arena: &self.arena,
            id: self.root,
        }
    }
}

/// A value of a pickle.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    arena: &'a Arena,
    id: Id,
}

impl<'a> View<'a> {
    fn at(self, id: Id) -> Self {
        Self {
            arena: self.arena,
            id,
        }
    }

    fn value(self) -> &'a Value {
        self.arena.get(self.id)
    }

    /// The kind of value, for messages.
    pub(crate) fn kind(self) -> &'static str {
        self.value().kind()
    }

    /// Whether it is Python's `None`.
    pub(crate) fn is_none(self) -> bool {
        matches!(self.value(), Value::None)
    }

    /// What a dictionary holds under a string, or the attribute of an object. `None` stands for Python's `None`, too.
    pub(crate) fn get(self, key: &str) -> Option<Self> {
        let is_wanted = |(name, _): &&(Id, Id)| matches!(self.arena.get(*name), Value::Text(name) if &**name == key);
        let items = match self.value() {
            Value::Object(object) => self.at(object.state?).items()?,
            _ => self.items()?,
        };
        let (_, value) = items.iter().find(is_wanted)?;
        let value = self.at(*value);
        (!value.is_none()).then_some(value)
    }

    fn items(self) -> Option<&'a [(Id, Id)]> {
        match self.value() {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// Keys and values of a dictionary whose keys are strings.
    pub(crate) fn entries(self) -> Option<impl ExactSizeIterator<Item = (Option<&'a str>, Self)>> {
        let items = self.items()?.iter();
        Some(items.map(move |(key, value)| (self.at(*key).text(), self.at(*value))))
    }

    /// The elements of a list or tuple.
    pub(crate) fn elements(self) -> Option<impl ExactSizeIterator<Item = Self>> {
        match self.value() {
            Value::List(ids) | Value::Tuple(ids) => Some(ids.iter().map(move |&id| self.at(id))),
            _ => None,
        }
    }

    /// A string.
    pub(crate) fn text(self) -> Option<&'a str> {
        match self.value() {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number.
    pub(crate) fn integer(self) -> Option<i64> {
        match self.value() {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// A number of things: a whole number from zero.
    pub(crate) fn count(self) -> Option<usize> {
        self.integer()
            .and_then(|number| usize::try_from(number).ok())
    }

    /// A number, whole or not.
    pub(crate) fn number(self) -> Option<f64> {
        match self.value() {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A truth value.
    pub(crate) fn flag(self) -> Option<bool> {
        match self.value() {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The sizes of a tensor, a list or tuple of no more whole numbers than a tensor has axes, whose product is a
    /// number of elements.
    pub(crate) fn shape(self) -> Option<Vec<usize>> {
        let sizes = self.elements()?;
        if sizes.len() > AXIS_LIMIT {
            return None;
        }
        let shape: Vec<usize> = sizes.map(Self::count).collect::<Option<_>>()?;
        // Zero sizes are left out, so that the product of any of the axes fits as well.
        let axes = shape.iter().filter(|&&size| size > 0);
        let n_elements = axes.copied().try_fold(1usize, usize::checked_mul)?;
        // Eight bytes an element, the widest there are, fit as well.
        (n_elements <= isize::MAX as usize / 16).then_some(shape)
    }
}
