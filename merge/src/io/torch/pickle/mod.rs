//! The pickle machine: protocols 0 to 5, read as data.
//!
//! Opcodes and their effect are those of Python's `pickletools`. Memory is bounded by the
//! [`Arena`]'s limit, time by the length of the stream, and nothing recurses.

mod literals;

use super::byte_stream::ByteStream;
use super::callables::Use;
use super::fault::{PickleCall, PickleFault};
use super::memo::{Memo, Recalled};
use super::rebuild::{Built, call, set_state};
use super::taking::{Taker, Taking};
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
    let machine = Machine::new(stream, Arena::new(MEMORY_LIMIT_BYTES), Memo::default());
    machine.finish()
}

/// The same of a pickle that `recalled` was looked up in, granting so much memory to the values that `taker` leaves.
pub(crate) fn read_taking(
    stream: &mut ByteStream<'_>,
    memory_bytes: u64,
    recalled: Recalled,
    taker: &mut dyn Taker,
) -> Result<(Arena, Id), Failure> {
    let arena = Arena::new(memory_bytes);
    let mut machine = Machine::new(stream, arena, Memo::of_recalled(recalled));
    // Made before all others, so that they are never forgotten.
    for small in 0..machine.small.len() {
        let value = machine.arena.add(Value::Integer(small as i64));
        machine.small[small] = Some(value.map_err(|fault| Failure::Fault(0, fault))?);
    }
    machine.taking = Some(Taking::new(taker, &machine.arena));
    machine.finish()
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
    taking: Option<Taking<'s>>,
}

type Step = Result<(), PickleFault>;

impl<'s, 'a> Machine<'s, 'a> {
    fn new(stream: &'s mut ByteStream<'a>, arena: Arena, memo: Memo) -> Self {
        Self {
            stream,
            arena,
            stack: Vec::new(),
            marks: Vec::new(),
            peak: 0,
            memo,
            small: [None; 256],
            refused: Vec::new(),
            at: 0,
            taking: None,
        }
    }

    /// Runs, and gives the values with the root among them.
    fn finish(mut self) -> Result<(Arena, Id), Failure> {
        let result = self.run();
        if !self.refused.is_empty() {
            return Err(Failure::Refused(self.refused));
        }
        match result {
            Ok(root) => Ok((self.arena, root)),
            Err(fault) => Err(Failure::Fault(self.at, fault)),
        }
    }

    /// Runs to STOP and returns the value on top.
    fn run(&mut self) -> Result<Id, PickleFault> {
        loop {
            self.at = self.stream.offset();
            if let Some(taking) = &mut self.taking {
                taking.begin(&self.arena);
            }
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
                // As in Python: a mark on top is popped itself.
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
                self.stream.skip(length)?;
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
                self.changes(object);
                set_state(&mut self.arena, object, state)?;
                self.offer(object)
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
                    if let Some(taking) = &mut self.taking {
                        taking.keep_all(&self.arena);
                    }
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
        self.changes(top);
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
        let items = match (&mut self.taking, self.arena.get(top)) {
            (Some(taking), Value::Dict(_)) => taking.items(&mut self.arena, items)?,
            _ => items,
        };
        if items.is_empty() {
            return Ok(());
        }
        self.changes(top);
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

    // ---- stack and memo ---------------------------------------------------------------------

    fn push(&mut self, value: Value) -> Step {
        let id = self.arena.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Step {
        self.stack.push(id);
        if let Some(taking) = &mut self.taking {
            taking.pushed();
        }
        self.charge_peak()
    }

    fn charge_peak(&mut self) -> Step {
        let height = self.stack.len() + self.marks.len();
        if height > self.peak {
            self.peak = height;
            let n_bytes = match self.taking {
                None => 2 * size_of::<usize>(),
                Some(_) => size_of::<[usize; 8]>(),
            };
            self.arena.charge_references(n_bytes)?;
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
        if let Some(taking) = &mut self.taking {
            taking.popped_to(self.stack.len());
        }
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleFault> {
        let mark = self.marks.pop().ok_or(PickleFault::NoMark)?;
        if let Some(taking) = &mut self.taking {
            taking.popped_to(mark);
        }
        Ok(self.stack.split_off(mark))
    }

    fn recall(&mut self, slot: u64) -> Step {
        let id = self.memo.get(slot).ok_or(PickleFault::EmptyMemo(slot))?;
        self.push_id(id)
    }

    fn memorize(&mut self, slot: u64) -> Step {
        let top = self.top()?;
        let Some(n_bytes) = self.memo.set(slot, top) else {
            return Ok(());
        };
        self.arena.charge_references(n_bytes)?;
        let Some(taking) = &mut self.taking else {
            return Ok(());
        };
        match self.arena.keep_apart(top)? {
            None => taking.keep(top),
            Some(kept) => {
                self.memo.set(slot, kept);
                if let Some(last) = self.stack.last_mut() {
                    *last = kept;
                }
            }
        }
        Ok(())
    }

    /// Notes that the value on top is changed.
    fn changes(&mut self, top: Id) {
        if let Some(taking) = &mut self.taking {
            taking.changes(top, &self.arena);
        }
    }

    /// Offers the object on top to who takes values out of the pickle.
    fn offer(&mut self, object: Id) -> Step {
        let Some(taking) = &mut self.taking else {
            return Ok(());
        };
        match taking.object(&mut self.arena, object)? {
            None => Ok(()),
            Some(value) => {
                self.pop()?;
                self.push(value)
            }
        }
    }
}

fn pair_up(ids: &[Id]) -> Result<Vec<(Id, Id)>, PickleFault> {
    let (pairs, rest) = ids.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(PickleFault::EmptyStack),
    }
}
