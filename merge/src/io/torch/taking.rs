//! Values that a reader takes out of a pickle as soon as they are whole, so that a long pickle needs little memory.
//!
//! Values lie in the order in which they are made. The values made for an entry of the stack lie behind the place that the
//! arena had as the entry began, so all of it can be forgotten at once when the entry is taken, unless something older
//! refers to it: a number of the memo that is recalled, or a container that was recalled and changed since. Plain values that
//! are recalled, such as names of files, are kept apart, so that they hold nothing else.

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

/// The sizes at the moment when an entry of the stack began.
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
    /// As the current opcode began.
    start: Born,
    /// Of the lowest entry that the current opcode has popped.
    lowest: Option<Born>,
    /// Something older than the values before this one may refer to them.
    floor: usize,
}

impl<'t> Taking<'t> {
    pub(super) fn new(taker: &'t mut dyn Taker, arena: &Arena) -> Self {
        Self {
            taker,
            born: Vec::new(),
            start: Born::now(arena),
            lowest: None,
            floor: 0,
        }
    }

    /// An opcode begins.
    pub(super) fn begin(&mut self, arena: &Arena) {
        self.start = Born::now(arena);
        self.lowest = None;
    }

    /// An entry is pushed. It stands for all that the opcode has made and popped.
    pub(super) fn pushed(&mut self) {
        let born = self.lowest.take().unwrap_or(self.start);
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

    /// Offers an object, which is on top of the stack. Gives the value that stands for it where all values made for it are
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

    /// Forgets the values made since, if nothing refers to them.
    fn forget(&self, arena: &mut Arena, born: Born) -> bool {
        let is_free = self.floor <= born.n_values && arena.n_records() == born.n_records;
        if is_free {
            arena.forget(born.n_values, born.n_bytes);
        }
        is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::read_at::ReadAt;
    use crate::io::torch::byte_stream::ByteStream;
    use crate::io::torch::memo::Recalled;
    use crate::io::torch::pickle::read_taking;

    /// Takes objects of the class `Row`, and items whose value was taken.
    #[derive(Default)]
    struct Rows {
        numbers: Vec<i64>,
        items: Vec<(String, u32)>,
    }

    impl Taker for Rows {
        fn object(&mut self, object: View<'_>) -> Result<Option<u32>, PickleFault> {
            if &*object.class()?.name != "Row" {
                return Ok(None);
            }
            self.numbers.push(object.attribute("n")?.integer()?);
            Ok(Some(self.numbers.len() as u32 - 1))
        }

        fn item(&mut self, key: View<'_>, value: View<'_>) -> Result<bool, PickleFault> {
            let taken = value.taken();
            self.items
                .extend(taken.map(|number| (key.text().unwrap_or("?").to_owned(), number)));
            Ok(taken.is_some())
        }
    }

    fn read(bytes: &[u8]) -> (Arena, Id, Rows) {
        let bytes = bytes.to_vec();
        let stream = || ByteStream::new(&bytes, 0, bytes.n_bytes(), u64::MAX);
        let recalled = Recalled::of(&mut stream()).expect("looked through");
        let mut rows = Rows::default();
        let read = read_taking(&mut stream(), 1 << 20, recalled, &mut rows);
        let (arena, root) = read.unwrap_or_else(|_| panic!("it is read"));
        (arena, root, rows)
    }

    /// An object of the class `Row`, with its number.
    fn row(n: u8) -> Vec<u8> {
        [
            &b"cm\nRow\n\x94)\x81\x94}\x94X\x01\0\0\0n\x94K"[..],
            &[n],
            b"sb",
        ]
        .concat()
    }

    #[test]
    fn what_is_taken_leaves_nothing_behind() {
        let items = |n: u8| -> Vec<u8> {
            let items = (0..n).flat_map(|n| [b"X\x01\0\0\0k\x94".to_vec(), row(n)].concat());
            [&b"\x80\x04}\x94("[..], &items.collect::<Vec<_>>(), b"u."].concat()
        };
        let (few, ..) = read(&items(2));
        let (many, root, rows) = read(&items(200));
        assert_eq!(few.len(), many.len());
        assert_eq!(few.value_bytes(), many.value_bytes());
        assert_eq!(rows.numbers, (0..200).collect::<Vec<_>>());
        assert_eq!(rows.items.len(), 200);
        assert_eq!(
            View::new(&many, root).items().expect("a dictionary").len(),
            0
        );
    }

    #[test]
    fn a_name_that_is_recalled_later_holds_nothing_else() {
        // Each item has a key of its own, which is recalled behind all items: the dictionary is number 0, and an item has
        // five numbers, of which the key's is the first.
        let items = |n: u8| -> Vec<u8> {
            let items = (0..n).flat_map(|n| [b"X\x01\0\0\0k\x94".to_vec(), row(n)].concat());
            let recalled =
                (0..u32::from(n)).flat_map(|n| [&b"j"[..], &(1 + 5 * n).to_le_bytes()].concat());
            let recalled: Vec<u8> = recalled.collect();
            let items: Vec<u8> = items.collect();
            [&b"\x80\x04}\x94("[..], &items, b"u](", &recalled, b"e\x86."].concat()
        };
        let (few, ..) = read(&items(2));
        let (many, root, rows) = read(&items(200));
        assert_eq!(few.len(), many.len());
        assert_eq!(rows.items.len(), 200);
        let mut parts = View::new(&many, root).elements().expect("a pair");
        let list = parts.nth(1).expect("a list").elements().expect("a list");
        assert_eq!(list.map(View::text).collect::<Vec<_>>(), vec![Ok("k"); 200]);
    }

    #[test]
    fn what_is_recalled_later_stays() {
        // A list that holds a row and a string; the string is number 5, and a second list has it, too.
        let bytes = [
            &b"\x80\x04]\x94("[..],
            &row(7),
            b"X\x04\0\0\0kept\x94e]\x94h\x05ah\x00\x86.",
        ]
        .concat();
        let (arena, root, rows) = read(&bytes);
        assert_eq!(rows.numbers, [7]);
        let parts: Vec<View<'_>> = View::new(&arena, root)
            .elements()
            .expect("a pair")
            .collect();
        let first: Vec<View<'_>> = parts[1].elements().expect("a list").collect();
        assert_eq!(first[0].taken(), Some(0));
        assert_eq!(first[1].text(), Ok("kept"));
        let mut second = parts[0].elements().expect("a list");
        assert_eq!(second.next().map(View::text), Some(Ok("kept")));
    }

    #[test]
    fn an_older_list_keeps_what_is_put_into_it() {
        // List 0 is recalled within the attributes of a row, and gets a string there. The row is taken, the string stays.
        let bytes = [
            &b"\x80\x04]\x94cm\nRow\n)\x81}(X\x01\0\0\0nK\x05X\x01\0\0\0m"[..],
            b"h\x00X\x05\0\0\0inneraub\x86.",
        ]
        .concat();
        let (arena, root, rows) = read(&bytes);
        assert_eq!(rows.numbers, [5]);
        let mut parts = View::new(&arena, root).elements().expect("a pair");
        let mut list = parts.next().expect("a list").elements().expect("a list");
        assert_eq!(list.next().map(View::text), Some(Ok("inner")));
    }
}
