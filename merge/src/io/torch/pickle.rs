//! The pickle machine: protocols 0 to 5, read as data.
//!
//! Opcodes and their effect are those of Python's `pickletools`. Memory is bounded by the
//! [`Arena`]'s limit, time by the length of the stream, and nothing recurses.

use std::collections::HashMap;

use super::byte_stream::ByteStream;
use super::callables::Use;
use super::fault::{PickleCall, PickleFault};
use super::literal::{integer_from_bytes, integer_from_text, unescape_unicode};
use super::rebuild::{Built, call, set_state};
use super::tensor;
use super::value::{Arena, Global, Id, MEMORY_LIMIT_BYTES, Object, Value, wrong_type};

/// Longest pickle that is read.
pub(crate) const PICKLE_LIMIT_BYTES: u64 = 64 << 20;

/// Longest line of the text opcodes.
const LINE_LIMIT_BYTES: u64 = 1 << 20;

/// Refused calls that are listed; a hostile file could make millions.
const LISTED_CALLS: usize = 64;

/// Why the values of a pickle are not to be had.
pub(crate) enum Failure {
    /// It makes calls that are not known to be harmless: all of them up to the end, or up to the
    /// first fault after them.
    Refused(Vec<PickleCall>),
    /// The opcode at this byte has a fault.
    Fault(u64, PickleFault),
}

/// Reads one pickle up to its STOP: the values, and the root object among them.
pub(crate) fn read(stream: &mut ByteStream<'_>) -> Result<(Arena, Id), Failure> {
    read_within(stream, MEMORY_LIMIT_BYTES)
}

/// The same, granting so much memory to the values.
pub(crate) fn read_within(
    stream: &mut ByteStream<'_>,
    memory_bytes: u64,
) -> Result<(Arena, Id), Failure> {
    let mut machine = Machine {
        stream,
        arena: Arena::new(memory_bytes),
        stack: Vec::new(),
        marks: Vec::new(),
        peak: 0,
        memo: Memo::default(),
        small: [None; 256],
        refused: Vec::new(),
        at: 0,
    };
    let result = machine.run();
    if !machine.refused.is_empty() {
        return Err(Failure::Refused(machine.refused));
    }
    match result {
        Ok(root) => Ok((machine.arena, root)),
        Err(fault) => Err(Failure::Fault(machine.at, fault)),
    }
}

struct Machine<'s, 'a> {
    stream: &'s mut ByteStream<'a>,
    arena: Arena,
    stack: Vec<Id>,
    /// Stack heights at which marks were set.
    marks: Vec<usize>,
    /// The most entries that stack and marks ever had, which is what they are charged for.
    peak: usize,
    memo: Memo,
    /// The values of small integers, of which a pickle may have very many.
    small: [Option<Id>; 256],
    refused: Vec<PickleCall>,
    /// Offset of the current opcode.
    at: u64,
}

/// Values by number: those that are numbered in a row, as all but odd pickles have them, and others.
#[derive(Default)]
struct Memo {
    in_a_row: Vec<Id>,
    others: HashMap<u64, Id>,
}

impl Memo {
    fn len(&self) -> u64 {
        (self.in_a_row.len() + self.others.len()) as u64
    }

    fn get(&self, slot: u64) -> Option<Id> {
        let in_a_row = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.in_a_row.get(slot));
        in_a_row.or_else(|| self.others.get(&slot)).copied()
    }

    /// Sets a slot and gives the bytes that it takes.
    fn set(&mut self, slot: u64, id: Id) -> usize {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        if let Some(known) = self.in_a_row.get_mut(at) {
            *known = id;
            return 0;
        }
        if at == self.in_a_row.len() && !self.others.contains_key(&slot) {
            self.in_a_row.push(id);
            return 2 * size_of::<Id>();
        }
        match self.others.insert(slot, id) {
            Some(_) => 0,
            // A hash map of 16-byte entries, at worst half full.
            None => 40,
        }
    }
}

type Step = Result<(), PickleFault>;

impl Machine<'_, '_> {
    /// Runs to STOP and returns the value on top.
    fn run(&mut self) -> Result<Id, PickleFault> {
        loop {
            self.at = self.stream.offset();
            let opcode = self.stream.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            // Framing.
            0x80 => match self.stream.byte()? {
                0..=5 => Ok(()),
                protocol => Err(PickleFault::Protocol(protocol)),
            },
            0x95 => {
                let wanted = u64::from_le_bytes(self.stream.array()?);
                let left = self.stream.n_left();
                match wanted <= left {
                    true => Ok(()),
                    false => Err(PickleFault::Truncated { wanted, left }),
                }
            }
            // The stack.
            b'(' => {
                self.marks.push(self.stack.len());
                self.charge_peak()
            }
            b'0' => match self.marks.last() {
                // As Python has it: a mark on top is what is popped.
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)
            }
            // The memo.
            b'g' => {
                let slot = self.decimal()?;
                self.recall(slot)
            }
            b'h' => {
                let slot = u64::from(self.stream.byte()?);
                self.recall(slot)
            }
            b'j' => {
                let slot = u64::from(u32::from_le_bytes(self.stream.array()?));
                self.recall(slot)
            }
            b'p' => {
                let slot = self.decimal()?;
                self.memorize(slot)
            }
            b'q' => {
                let slot = u64::from(self.stream.byte()?);
                self.memorize(slot)
            }
            b'r' => {
                let slot = u64::from(u32::from_le_bytes(self.stream.array()?));
                self.memorize(slot)
            }
            0x94 => self.memorize(self.memo.len()),
            // Plain values.
            b'N' => self.push_id(Id::NONE),
            0x88 => self.push_id(Id::TRUE),
            0x89 => self.push_id(Id::FALSE),
            b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b => self.integer(opcode),
            b'F' => {
                let line = self.stream.line(LINE_LIMIT_BYTES)?;
                let text = str::from_utf8(line).map_err(|_| PickleFault::BadNumber)?;
                let value = text.trim().parse().map_err(|_| PickleFault::BadNumber)?;
                self.push(Value::Float(value))
            }
            b'G' => {
                let value = f64::from_be_bytes(self.stream.array()?);
                self.push(Value::Float(value))
            }
            b'S' | b'T' | b'U' => self.byte_or_text_string(opcode),
            b'V' | b'X' | 0x8c | 0x8d => self.text(opcode),
            b'B' | b'C' | 0x8e | 0x96 => {
                let length = self.length(opcode)?;
                self.stream.take(length)?;
                self.push(Value::Bytes)
            }
            // Containers.
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b't' => {
                let ids = self.pop_mark()?;
                self.push(Value::Tuple(ids))
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let ids = self.pop_mark()?;
                self.push(Value::List(ids))
            }
            b'a' => {
                let id = self.pop()?;
                self.extend(vec![id])
            }
            b'e' | 0x90 => {
                let ids = self.pop_mark()?;
                self.extend(ids)
            }
            0x8f => self.push(Value::Set(Vec::new())),
            0x91 => {
                let ids = self.pop_mark()?;
                self.push(Value::Set(ids))
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let ids = self.pop_mark()?;
                let items = pair_up(&ids)?;
                self.require_hashable(items.iter().map(|(key, _)| *key))?;
                self.push(Value::Dict(items))
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![(key, value)])
            }
            b'u' => {
                let ids = self.pop_mark()?;
                let items = pair_up(&ids)?;
                self.insert(items)
            }
            // Classes, functions and what they would be called for.
            b'c' | 0x93 | b'i' | b'o' | b'R' | 0x81 | 0x92 | b'b' => self.object(opcode),
            // Data outside of the pickle.
            b'Q' => {
                let pid = self.pop()?;
                let storage = tensor::storage(&mut self.arena, pid)?;
                self.push(storage)
            }
            b'P' => Err(PickleFault::NotAStorage("it is a line of text")),
            other => Err(PickleFault::UnknownOpcode(other)),
        }
    }

    // ---- classes, functions and calls -------------------------------------------------------

    fn object(&mut self, opcode: u8) -> Step {
        match opcode {
            b'c' => {
                let global = self.global_line()?;
                self.push_id(global)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = match (self.arena.get(module), self.arena.get(name)) {
                    (Value::Text(module), Value::Text(name)) => Global {
                        module: module.clone(),
                        name: name.clone(),
                    },
                    (_, other) => return Err(wrong_type("the name of a class", other)),
                };
                self.push(Value::Global(Box::new(global)))
            }
            b'i' => {
                let class = self.global_line()?;
                let ids = self.pop_mark()?;
                let arguments = self.arena.add(Value::Tuple(ids))?;
                self.call(class, arguments, Use::Call)
            }
            b'o' => {
                let ids = self.pop_mark()?;
                let (&class, rest) = ids.split_first().ok_or(PickleFault::EmptyStack)?;
                let arguments = self.arena.add(Value::Tuple(rest.to_vec()))?;
                self.call(class, arguments, Use::Call)
            }
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments, Use::Call)
            }
            0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.call(class, arguments, Use::New)
            }
            0x92 => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, arguments, Use::New)
            }
            // BUILD
            _ => {
                let state = self.pop()?;
                let object = self.top()?;
                set_state(&mut self.arena, object, state)
            }
        }
    }

    fn call(&mut self, callable: Id, arguments: Id, usage: Use) -> Step {
        match call(&mut self.arena, callable, arguments, usage)? {
            Built::Value(id) => {
                let is_class_of_dictionaries = self.arena.global(callable).is_some_and(|class| {
                    &*class.module == "collections"
                        && matches!(&*class.name, "OrderedDict" | "Counter")
                });
                if is_class_of_dictionaries {
                    self.arena.note_attributes(id)?;
                }
                self.push_id(id)
            }
            // The rest is read all the same, so that the error can name every such call.
            Built::Refused(name) => {
                if self.refused.len() < LISTED_CALLS {
                    self.refused.push(PickleCall {
                        callable: name,
                        offset: self.at,
                    });
                }
                self.push(Value::Object(Box::new(Object {
                    callable,
                    arguments,
                    items: Vec::new(),
                    elements: Vec::new(),
                    state: None,
                })))
            }
        }
    }

    fn global_line(&mut self) -> Result<Id, PickleFault> {
        let module = self.text_line()?;
        let name = self.text_line()?;
        self.arena
            .add(Value::Global(Box::new(Global { module, name })))
    }

    fn text_line(&mut self) -> Result<Box<str>, PickleFault> {
        let line = self.stream.line(LINE_LIMIT_BYTES)?;
        str::from_utf8(line)
            .map(Into::into)
            .map_err(|_| PickleFault::NotUtf8)
    }

    // ---- containers -------------------------------------------------------------------------

    fn tuple(&mut self, n: usize) -> Step {
        let mut ids = vec![Id::NONE; n];
        for id in ids.iter_mut().rev() {
            *id = self.pop()?;
        }
        self.push(Value::Tuple(ids))
    }

    /// Adds elements to the list, set or list-like object on top.
    fn extend(&mut self, ids: Vec<Id>) -> Step {
        let top = self.top()?;
        // Twice, because vectors grow ahead.
        self.arena.charge(2 * size_of_val(&ids[..]))?;
        match self.arena.get_mut(top) {
            Value::List(elements) | Value::Set(elements) => elements.extend(ids),
            Value::Object(object) => object.elements.extend(ids),
            other => return Err(wrong_type("a list", other)),
        }
        Ok(())
    }

    /// Adds items to the dictionary or dictionary-like object on top.
    fn insert(&mut self, items: Vec<(Id, Id)>) -> Step {
        let top = self.top()?;
        self.require_hashable(items.iter().map(|(key, _)| *key))?;
        self.arena.charge(2 * size_of_val(&items[..]))?;
        match self.arena.get_mut(top) {
            Value::Dict(known) => known.extend(items),
            Value::Object(object) => object.items.extend(items),
            other => return Err(wrong_type("a dictionary", other)),
        }
        Ok(())
    }

    /// Refuses keys that Python cannot look up: what it would not load is not read here either.
    fn require_hashable(&self, keys: impl Iterator<Item = Id>) -> Step {
        for key in keys {
            let within = match self.arena.get(key) {
                Value::Tuple(ids) => ids.as_slice(),
                _ => &[],
            };
            for &id in std::iter::once(&key).chain(within) {
                if let Value::List(_) | Value::Dict(_) = self.arena.get(id) {
                    return Err(PickleFault::Unhashable {
                        kind: match self.arena.get(id) {
                            Value::List(_) => "list",
                            _ => "dictionary",
                        },
                    });
                }
            }
        }
        Ok(())
    }

    // ---- numbers and strings ----------------------------------------------------------------

    fn integer(&mut self, opcode: u8) -> Step {
        let value = match opcode {
            b'J' => Value::Integer(i32::from_le_bytes(self.stream.array()?).into()),
            b'K' => Value::Integer(self.stream.byte()?.into()),
            b'M' => Value::Integer(u16::from_le_bytes(self.stream.array()?).into()),
            b'I' | b'L' => {
                let line = self.stream.line(LINE_LIMIT_BYTES)?;
                let text = str::from_utf8(line).map_err(|_| PickleFault::BadNumber)?;
                match text {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    text => integer_from_text(text.trim().trim_end_matches('L'))?,
                }
            }
            _ => {
                let length = self.length(opcode)?;
                integer_from_bytes(self.stream.take(length)?)
            }
        };
        let small = match value {
            Value::Integer(value) => usize::try_from(value).ok().filter(|value| *value < 256),
            _ => None,
        };
        match small {
            None => self.push(value),
            Some(small) => {
                let id = match self.small[small] {
                    Some(id) => id,
                    None => self.arena.add(value)?,
                };
                self.small[small] = Some(id);
                self.push_id(id)
            }
        }
    }

    /// A decimal number on a line, as memo slots have it in protocol 0.
    fn decimal(&mut self) -> Result<u64, PickleFault> {
        let line = self.stream.line(LINE_LIMIT_BYTES)?;
        let text = str::from_utf8(line).map_err(|_| PickleFault::BadNumber)?;
        text.trim().parse().map_err(|_| PickleFault::BadNumber)
    }

    /// The length that precedes the bytes of an item, 1, 4 or 8 bytes of it.
    fn length(&mut self, opcode: u8) -> Result<u64, PickleFault> {
        match opcode {
            b'C' | b'U' | 0x8c | 0x8a => self.stream.byte().map(u64::from),
            b'B' | b'X' => Ok(u32::from_le_bytes(self.stream.array()?).into()),
            // These two are signed.
            b'T' | 0x8b => u64::try_from(i32::from_le_bytes(self.stream.array()?))
                .map_err(|_| PickleFault::NegativeLength),
            _ => Ok(u64::from_le_bytes(self.stream.array()?)),
        }
    }

    fn text(&mut self, opcode: u8) -> Step {
        let bytes = if opcode == b'V' {
            self.stream.line(LINE_LIMIT_BYTES)?
        } else {
            let length = self.length(opcode)?;
            self.stream.take(length)?
        };
        let text = str::from_utf8(bytes).map_err(|_| PickleFault::NotUtf8)?;
        let text = match opcode {
            b'V' => unescape_unicode(text),
            _ => text.into(),
        };
        self.push(Value::Text(text))
    }

    /// Python 2's `str`: text if it is UTF-8, as torch takes it, else bytes.
    fn byte_or_text_string(&mut self, opcode: u8) -> Step {
        let bytes = if opcode == b'S' {
            let line = self.stream.line(LINE_LIMIT_BYTES)?.trim_ascii();
            match line {
                [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
                _ => return Err(PickleFault::BadNumber),
            }
        } else {
            let length = self.length(opcode)?;
            self.stream.take(length)?
        };
        let value = match str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.into()),
            Err(_) => Value::Bytes,
        };
        self.push(value)
    }

    // ---- stack and memo ---------------------------------------------------------------------

    fn push(&mut self, value: Value) -> Step {
        let id = self.arena.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Step {
        self.stack.push(id);
        self.charge_peak()
    }

    fn charge_peak(&mut self) -> Step {
        let height = self.stack.len() + self.marks.len();
        if height > self.peak {
            self.peak = height;
            self.arena.charge(2 * size_of::<usize>())?;
        }
        Ok(())
    }

    fn top(&self) -> Result<Id, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(PickleFault::EmptyStack),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleFault> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleFault> {
        let mark = self.marks.pop().ok_or(PickleFault::NoMark)?;
        Ok(self.stack.split_off(mark))
    }

    fn recall(&mut self, slot: u64) -> Step {
        let id = self.memo.get(slot).ok_or(PickleFault::EmptyMemo(slot))?;
        self.push_id(id)
    }

    fn memorize(&mut self, slot: u64) -> Step {
        let top = self.top()?;
        let n_bytes = self.memo.set(slot, top);
        self.arena.charge(n_bytes)
    }
}

fn pair_up(ids: &[Id]) -> Result<Vec<(Id, Id)>, PickleFault> {
    let (pairs, rest) = ids.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(PickleFault::EmptyStack),
    }
}
