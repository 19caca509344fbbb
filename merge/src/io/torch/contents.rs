//! Walking the objects of a pickle: which tensors, values and opaque objects stand where.

use std::collections::HashSet;

use super::fault::{PickleFault, ScriptFault};
use super::script;
use super::value::{Arena, Global, Id, Value};
use crate::io::{ObjectPath, OpaqueObject, PathSegment, PlainValue};

/// Containers that are entered, each as often as it is referred to.
const CONTAINER_LIMIT: u64 = 2_000_000;
/// Children that are looked at.
const CHILD_LIMIT: u64 = 16_000_000;
/// Memory for the paths of tensors.
const PATH_LIMIT_BYTES: usize = 128 << 20;
/// Levels at which a tensor may stand.
const TENSOR_DEPTH_LIMIT: usize = 512;
/// Levels down to which values and opaque objects are listed.
const LISTED_DEPTH: usize = 64;
/// How many values, and how many opaque objects, are listed.
const LISTED: usize = 65_536;
/// Memory for values and opaque objects that are listed, with their paths. Values that do not fit are not listed.
const LISTED_LIMIT_BYTES: usize = 16 << 20;
/// Bytes of keys that are followed, each as often as it is met.
const KEY_LIMIT_BYTES: usize = 1 << 30;

/// The contents of a file, in file order.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Tensors reached through dictionaries, lists and tuples: path, and index into
    /// [`Arena::tensors`].
    pub(crate) tensors: Vec<(ObjectPath, u32)>,
    /// Tensors of which the file holds a part: path, and the [`Value::Distributed`].
    pub(crate) distributed: Vec<(ObjectPath, Id)>,
    pub(crate) values: Vec<(ObjectPath, PlainValue)>,
    pub(crate) opaque: Vec<OpaqueObject>,
    /// The kind of the root object, if it is no container.
    pub(crate) root_class: Option<String>,
    /// Whether the root object is a TorchScript model, whose attributes are its weights.
    pub(crate) is_script: bool,
}

/// Why the walk ended early.
#[derive(Debug)]
pub(crate) enum WalkError {
    Fault(PickleFault),
    /// The tensor is of a kind that is not supported.
    Unsupported(ObjectPath, &'static str),
    /// A dictionary has this key twice.
    DuplicateKey(ObjectPath),
    /// An object of this class in a TorchScript model is not read as attributes.
    Script(ObjectPath, String, ScriptFault),
}

/// Children of a container that are still to be visited.
struct Frame {
    id: Id,
    part: Part,
    next: usize,
    /// Whether the container hangs on a segment of the path.
    has_segment: bool,
    /// Whether it belongs to the attributes of an object.
    is_hidden: bool,
}

/// Which children of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Those of a list, tuple or dictionary.
    Content,
    /// Items, then elements of an object.
    Items,
    Elements,
    /// The attributes of an object, under the object's own path.
    State,
}

/// Walks all that `root` holds. Objects that are shared are met once for each path to them,
/// cycles are not followed.
pub(crate) fn walk(arena: &Arena, root: Id) -> Result<Contents, WalkError> {
    let mut walker = Walker {
        arena,
        contents: Contents::default(),
        path: Vec::new(),
        frames: Vec::new(),
        is_active: vec![false; arena.len()],
        is_checked: vec![false; arena.len()],
        n_containers: 0,
        n_children: 0,
        path_bytes: 0,
        listed_bytes: 0,
        key_bytes: 0,
    };
    if let Value::Object(object) = arena.get(root) {
        let class = arena.global(object.callable);
        walker.contents.root_class = class.map(Global::full_name);
        walker.contents.is_script = class.is_some_and(script::is_class);
    }
    walker.visit(root, false, false)?;
    while let Some(frame) = walker.frames.last_mut() {
        let index = frame.next;
        frame.next += 1;
        let (id, part, is_hidden) = (frame.id, frame.part, frame.is_hidden);
        walker.child(id, part, index, is_hidden)?;
    }
    Ok(walker.contents)
}

struct Walker<'a> {
    arena: &'a Arena,
    contents: Contents,
    path: Vec<PathSegment>,
    frames: Vec<Frame>,
    /// Containers that are on the way from the root to here.
    is_active: Vec<bool>,
    /// Dictionaries whose keys are known to differ.
    is_checked: Vec<bool>,
    n_containers: u64,
    n_children: u64,
    path_bytes: usize,
    listed_bytes: usize,
    key_bytes: usize,
}

impl Walker<'_> {
    /// Visits child `index` of a container, or leaves the container after the last.
    fn child(
        &mut self,
        id: Id,
        part: Part,
        index: usize,
        is_hidden: bool,
    ) -> Result<(), WalkError> {
        self.n_children += 1;
        if self.n_children > CHILD_LIMIT {
            return Err(too_many(CHILD_LIMIT));
        }
        let pair = match (self.arena.get(id), part) {
            (Value::Dict(items), Part::Content) => items.get(index).copied().map(Ok),
            (Value::List(ids) | Value::Tuple(ids), Part::Content) => {
                ids.get(index).map(|&id| Err(id))
            }
            (Value::Object(object), Part::Items) => object.items.get(index).copied().map(Ok),
            (Value::Object(object), Part::Elements) => {
                object.elements.get(index).map(|&id| Err(id))
            }
            (Value::Object(object), Part::State) if index == 0 => {
                // The attributes hang on the path of their object.
                if let Some(state) = object.state {
                    self.attributes(state, is_hidden)?;
                }
                return Ok(());
            }
            _ => None,
        };
        match pair {
            None => self.leave(),
            Some(Err(child)) => {
                self.path.push(PathSegment::Index(index as i64));
                self.visit(child, true, is_hidden)?;
            }
            Some(Ok((key, child))) => match self.arena.get(key) {
                Value::Text(key) => {
                    self.key_bytes += key.len();
                    if self.key_bytes > KEY_LIMIT_BYTES {
                        return Err(WalkError::Fault(PickleFault::TooMuchMemory {
                            limit: KEY_LIMIT_BYTES as u64,
                        }));
                    }
                    self.path.push(PathSegment::Key(key.to_string()));
                    self.visit(child, true, is_hidden)?;
                }
                &Value::Integer(key) => {
                    self.path.push(PathSegment::Index(key));
                    self.visit(child, true, is_hidden)?;
                }
                // A value under another key has no path; the key is listed.
                other => {
                    let name = match other {
                        Value::Global(class) => class.full_name(),
                        other => format!("(under a key that is {})", other.kind()),
                    };
                    self.list_opaque(name);
                }
            },
        }
        Ok(())
    }

    /// Visits the attributes of an object: a dictionary, or a pair of it and the slots.
    fn attributes(&mut self, state: Id, is_hidden: bool) -> Result<(), WalkError> {
        match self.arena.get(state) {
            Value::Dict(_) => self.visit(state, false, is_hidden),
            Value::Tuple(parts) => {
                for &part in parts.iter().take(2) {
                    if matches!(self.arena.get(part), Value::Dict(_)) {
                        self.visit(part, false, is_hidden)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Visits a value at the current path.
    fn visit(&mut self, id: Id, has_segment: bool, is_hidden: bool) -> Result<(), WalkError> {
        let parts: &[Part] = match self.arena.get(id) {
            Value::List(_) | Value::Tuple(_) => &[Part::Content],
            Value::Dict(items) => {
                self.check_keys(id, items)?;
                &[Part::Content]
            }
            Value::Object(object) => {
                if let Some(class) = self.arena.global(object.callable) {
                    match self.is_script_object(id) {
                        true => self.check_script(id, class)?,
                        false => self.list_opaque(class.full_name()),
                    }
                }
                self.check_keys(id, &object.items)?;
                &[Part::Items, Part::Elements, Part::State]
            }
            leaf => {
                self.leaf(id, leaf, is_hidden)?;
                &[]
            }
        };
        if parts.is_empty() || self.is_active[id.index()] {
            if has_segment {
                self.path.pop();
            }
            return Ok(());
        }
        self.n_containers += 1;
        if self.n_containers > CONTAINER_LIMIT {
            return Err(too_many(CONTAINER_LIMIT));
        }
        self.is_active[id.index()] = true;
        // The part on top comes first; the one at the bottom takes the segment away.
        for (position, &part) in parts.iter().enumerate().rev() {
            self.frames.push(Frame {
                id,
                part,
                next: 0,
                has_segment: has_segment && position + 1 == parts.len(),
                is_hidden: is_hidden || (part == Part::State && !self.is_script_object(id)),
            });
        }
        Ok(())
    }

    /// Whether the attributes of an object are weights.
    fn is_script_object(&self, id: Id) -> bool {
        self.contents.is_script && script::is_object(self.arena, id)
    }

    fn check_script(&self, id: Id, class: &Global) -> Result<(), WalkError> {
        let fault = match self.is_active[id.index()] {
            true => Some(ScriptFault::HoldsItself),
            false => script::fault(self.arena, id),
        };
        match fault {
            None => Ok(()),
            Some(fault) => {
                let path = ObjectPath(self.path.clone());
                Err(WalkError::Script(path, class.full_name(), fault))
            }
        }
    }

    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        if frame.has_segment {
            self.path.pop();
        }
        if matches!(frame.part, Part::Content | Part::State) {
            self.is_active[frame.id.index()] = false;
        }
    }

    fn leaf(&mut self, id: Id, leaf: &Value, is_hidden: bool) -> Result<(), WalkError> {
        let value = match leaf {
            // Tensors among the attributes of objects belong to code rather than to data.
            Value::Tensor(_) | Value::UnsupportedTensor(_) | Value::Distributed(_) if is_hidden => {
                return Ok(());
            }
            &Value::Tensor(index) => {
                let path = self.tensor_path()?;
                self.contents.tensors.push((path, index));
                return Ok(());
            }
            Value::Distributed(_) => {
                let path = self.tensor_path()?;
                self.contents.distributed.push((path, id));
                return Ok(());
            }
            Value::UnsupportedTensor(kind) => {
                return Err(WalkError::Unsupported(ObjectPath(self.path.clone()), kind));
            }
            Value::None => PlainValue::None,
            &Value::Bool(value) => PlainValue::Bool(value),
            &Value::Integer(value) => PlainValue::Integer(value),
            &Value::Float(value) => PlainValue::Float(value),
            Value::Text(text) | Value::BigInteger(text) => {
                // Copied only if it will be listed.
                if !self.has_room(self.contents.values.len(), text.len()) {
                    return Ok(());
                }
                self.list_value(PlainValue::Text(text.to_string()));
                return Ok(());
            }
            Value::Global(class) => {
                self.list_opaque(class.full_name());
                return Ok(());
            }
            Value::Storage(_) => {
                self.list_opaque("torch.storage".into());
                return Ok(());
            }
            _ => return Ok(()),
        };
        if self.has_room(self.contents.values.len(), 0) {
            self.list_value(value);
        }
        Ok(())
    }

    fn list_value(&mut self, value: PlainValue) {
        let path = ObjectPath(self.path.clone());
        self.contents.values.push((path, value));
    }

    /// Memory of the current path.
    fn path_size(&self) -> usize {
        let sizes = self.path.iter().map(|segment| match segment {
            PathSegment::Key(key) => 48 + key.len(),
            PathSegment::Index(_) => 32,
        });
        96 + sizes.sum::<usize>()
    }

    /// The current path, for a tensor.
    fn tensor_path(&mut self) -> Result<ObjectPath, WalkError> {
        if self.path.len() > TENSOR_DEPTH_LIMIT {
            return Err(WalkError::Fault(PickleFault::TooDeep {
                limit: TENSOR_DEPTH_LIMIT,
            }));
        }
        self.path_bytes += self.path_size();
        if self.path_bytes > PATH_LIMIT_BYTES {
            return Err(WalkError::Fault(PickleFault::TooMuchMemory {
                limit: PATH_LIMIT_BYTES as u64,
            }));
        }
        Ok(ObjectPath(self.path.clone()))
    }

    fn list_opaque(&mut self, callable: String) {
        if self.has_room(self.contents.opaque.len(), callable.len()) {
            let path = ObjectPath(self.path.clone());
            self.contents.opaque.push(OpaqueObject { path, callable });
        }
    }

    /// Whether one more can be listed with `n_bytes` of its own; if so, they are counted.
    fn has_room(&mut self, n_listed: usize, n_bytes: usize) -> bool {
        if n_listed >= LISTED || self.path.len() > LISTED_DEPTH {
            return false;
        }
        let wanted = self.listed_bytes + self.path_size() + n_bytes;
        let has_room = wanted <= LISTED_LIMIT_BYTES;
        if has_room {
            self.listed_bytes = wanted;
        }
        has_room
    }

    /// Python would keep the last of two equal keys; no writer makes such a dictionary.
    fn check_keys(&mut self, id: Id, items: &[(Id, Id)]) -> Result<(), WalkError> {
        if std::mem::replace(&mut self.is_checked[id.index()], true) {
            return Ok(());
        }
        let (mut texts, mut integers) = (HashSet::new(), HashSet::new());
        for &(key, _) in items {
            let segment = match self.arena.get(key) {
                Value::Text(key) if !texts.insert(key) => PathSegment::Key(key.to_string()),
                &Value::Integer(key) if !integers.insert(key) => PathSegment::Index(key),
                _ => continue,
            };
            let mut path = self.path.clone();
            path.push(segment);
            return Err(WalkError::DuplicateKey(ObjectPath(path)));
        }
        Ok(())
    }
}

fn too_many(limit: u64) -> WalkError {
    WalkError::Fault(PickleFault::TooManyObjects { limit })
}
