//! Values that a reader takes out of a pickle as soon as they are whole, so that a long pickle needs little memory.
//!
//! Values lie in the order in which they are made. What is made for an entry of the stack lies behind the place that the
//! arena had as the entry began, so all of it can be forgotten at once when the entry is taken, unless something older
//! refers to it: a number of the memo that is recalled, or a container that was recalled and changed since.

use super::fault::PickleFault;
use super::typed::View;
use super::value::{Arena, Id, Value};

/// Who takes values out of a pickle.
pub(crate) trait Taker {
    /// Looks at an object whose attributes were set just now. A number stands for it from here on if it is taken.
    ///
    /// # Errors
    /// A fault ends the reading.
    fn object(&mut self, object: View<'_>) -> Result<Option<u32>, PickleFault>;

    /// Looks at an item that is to enter a dictionary; whether it is taken.
    ///
    /// # Errors
    /// A fault ends the reading.
    fn item(&mut self, key: View<'_>, value: View<'_>) -> Result<bool, PickleFault>;
}

/// What there was as an entry of the stack began.
#[derive(Clone, Copy)]
struct Born {
    n_values: usize,
    n_bytes: u64,
    n_records: usize,
}

impl Born {
    fn now(arena: &Arena) -> Self {
        Self {
            n_values: arena.len(),
            n_bytes: arena.value_bytes(),
            n_records: arena.n_records(),
        }
    }
}

/// How far the taking is.
pub(super) struct Taking<'t> {
    taker: &'t mut dyn Taker,
    /// One for each entry of the stack.
    born: Vec<Born>,
    /// Of the lowest entry that the current opcode has popped.
    lowest: Option<Born>,
    /// Something older than the values before this one may refer to them.
    floor: usize,
}

impl<'t> Taking<'t> {
    pub(super) fn new(taker: &'t mut dyn Taker) -> Self {
        Self {
            taker,
            born: Vec::new(),
            lowest: None,
            floor: 0,
        }
    }

    /// An opcode begins.
    pub(super) fn begin(&mut self) {
        self.lowest = None;
    }

    /// An entry is pushed. It stands for all that the opcode has popped.
    pub(super) fn pushed(&mut self, arena: &Arena) {
        let born = self.lowest.take().unwrap_or_else(|| Born::now(arena));
        self.born.push(born);
    }

    /// Entries are popped until there are `n`.
    pub(super) fn popped_to(&mut self, n: usize) {
        if let Some(born) = self.born.get(n) {
            self.lowest = Some(*born);
            self.born.truncate(n);
        }
    }

    /// Something refers to the value and to all that is made for it.
    pub(super) fn keep(&mut self, id: Id) {
        self.floor = self.floor.max(id.index() + 1);
    }

    /// The value on top of the stack is changed.
    pub(super) fn changes(&mut self, top: Id, arena: &Arena) {
        let born = self.born.last();
        if born.is_some_and(|born| top.index() < born.n_values) {
            self.keep_all(arena);
        }
    }

    /// Something that is not on the stack refers to values.
    pub(super) fn keep_all(&mut self, arena: &Arena) {
        self.floor = arena.len();
    }

    /// Offers an object, which is on top of the stack. Gives the value that stands for it where all that was made for it is
    /// forgotten.
    pub(super) fn object(
        &mut self,
        arena: &mut Arena,
        object: Id,
    ) -> Result<Option<Value>, PickleFault> {
        let Some(number) = self.taker.object(View::new(arena, object))? else {
            return Ok(None);
        };
        *arena.get_mut(object) = Value::Taken(number);
        let born = self.born.last().copied();
        let is_forgotten = born.is_some_and(|born| self.forget(arena, born));
        Ok(is_forgotten.then_some(Value::Taken(number)))
    }

    /// Offers items that were popped just now; gives those that are not taken.
    pub(super) fn items(
        &mut self,
        arena: &mut Arena,
        mut items: Vec<(Id, Id)>,
    ) -> Result<Vec<(Id, Id)>, PickleFault> {
        let mut fault = None;
        items.retain(|(key, value)| {
            let views = (View::new(arena, *key), View::new(arena, *value));
            match fault {
                Some(_) => true,
                None => match self.taker.item(views.0, views.1) {
                    Ok(is_taken) => !is_taken,
                    Err(met) => {
                        fault = Some(met);
                        true
                    }
                },
            }
        });
        match (fault, self.lowest) {
            (Some(fault), _) => return Err(fault),
            (None, Some(born)) if items.is_empty() => {
                self.forget(arena, born);
            }
            _ => {}
        }
        Ok(items)
    }

    /// Forgets what was made since, if nothing refers to it.
    fn forget(&self, arena: &mut Arena, born: Born) -> bool {
        let is_free = self.floor <= born.n_values && arena.n_records() == born.n_records;
        if is_free {
            arena.forget(born.n_values, born.n_bytes);
        }
        is_free
    }
}
