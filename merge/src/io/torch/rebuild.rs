//! The values that the calls of a pickle are taken to build. Nothing is called: known constructors become
//! data, the others objects that remember what they are, or the refusal of the file.

use super::callables::{Meaning, Use, is_class, meaning};
use super::fault::PickleFault;
use super::tensor;
use super::value::{Arena, Distributed, DistributedKind, Global, Id, Object, Value, wrong_type};

/// The result of a call.
pub(crate) enum Built {
    /// A value of the arena.
    Value(Id),
    /// Nothing: this callable is not known to be harmless.
    Refused(String),
}

/// Takes `callable(*arguments)` as data.
pub(crate) fn call(
    arena: &mut Arena,
    callable: Id,
    arguments: Id,
    usage: Use,
) -> Result<Built, PickleFault> {
    let (mut callable, mut arguments, mut usage) = (callable, arguments, usage);
    // Wrapped calls lead to tuples that were made before, so this ends.
    loop {
        let Some(global) = arena.global(callable) else {
            let kind = arena.get(callable).kind();
            return Ok(Built::Refused(format!("({kind} that was computed)")));
        };
        if let Some(class) = nested_class(arena, global, arguments) {
            return arena.add(Value::Global(Box::new(class))).map(Built::Value);
        }
        let meaning = meaning(global, usage);
        let Value::Tuple(parts) = arena.get(arguments) else {
            return Err(wrong_type("a tuple of arguments", arena.get(arguments)));
        };
        let value = match meaning {
            Meaning::Refused => return Ok(Built::Refused(global.full_name())),
            Meaning::Tensor(rebuild) => {
                // At most the first seven are looked at.
                let parts: Vec<Id> = parts.iter().copied().take(8).collect();
                tensor::tensor(arena, rebuild, &parts)?
            }
            Meaning::FirstArgument(callable) => {
                let &[first, ..] = &parts[..] else {
                    return Err(few(callable, 1, 0));
                };
                return Ok(Built::Value(first));
            }
            Meaning::TensorSubclass => {
                let &[function, class, inner, ref state @ ..] = &parts[..] else {
                    return Err(few("torch._tensor._rebuild_from_type_v2", 3, parts.len()));
                };
                if let (Some(kind), [state, ..]) = (distributed(arena, function, class), state) {
                    let state = *state;
                    let value = Value::Distributed(Box::new(Distributed { kind, state }));
                    return arena.add(value).map(Built::Value);
                }
                (callable, arguments, usage) = (function, inner, Use::Call);
                continue;
            }
            Meaning::UnsupportedTensor(kind) => Value::UnsupportedTensor(kind),
            Meaning::Dict(position) => match parts.get(position) {
                Some(&from) => Value::Dict(pairs(arena, from)?),
                None => Value::Dict(Vec::new()),
            },
            Meaning::List => Value::List(elements(arena, parts.first().copied())?),
            // One tuple is as good as the other, and some pickles have very many.
            Meaning::Tuple if parts.first().is_some_and(|&part| is_tuple(arena, part)) => {
                return Ok(Built::Value(parts[0]));
            }
            Meaning::Tuple => Value::Tuple(elements(arena, parts.first().copied())?),
            Meaning::Set => Value::Set(elements(arena, parts.first().copied())?),
            Meaning::Arguments => Value::Tuple(parts.clone()),
            Meaning::InstanceOfArgument => {
                let &[class, ..] = &parts[..] else {
                    return Err(few("copyreg._reconstructor", 1, 0));
                };
                (callable, usage) = (class, Use::New);
                arguments = arena.add(Value::Tuple(Vec::new()))?;
                continue;
            }
            Meaning::Opaque => Value::Object(Box::new(Object {
                callable,
                arguments,
                items: Vec::new(),
                elements: Vec::new(),
                state: None,
            })),
        };
        return arena.add(value).map(Built::Value);
    }
}

/// The kind of tensor if a wrapper around tensors is built that lies on several devices.
fn distributed(arena: &Arena, function: Id, class: Id) -> Option<DistributedKind> {
    let function = arena.global(function)?;
    let is_wrapper =
        &*function.module == "torch._utils" && &*function.name == "_rebuild_wrapper_subclass";
    match is_wrapper {
        true => DistributedKind::of(arena.global(class)?),
        false => None,
    }
}

/// The class that protocols below 4 spell `getattr(Outer, "Inner")`, which later ones name `Outer.Inner`.
fn nested_class(arena: &Arena, callable: &Global, arguments: Id) -> Option<Global> {
    let is_getattr =
        matches!(&*callable.module, "__builtin__" | "builtins") && &*callable.name == "getattr";
    let Value::Tuple(parts) = arena.get(arguments) else {
        return None;
    };
    let &[outer, inner] = &parts[..] else {
        return None;
    };
    let (outer, Value::Text(inner)) = (arena.global(outer)?, arena.get(inner)) else {
        return None;
    };
    let class = Global {
        module: outer.module.clone(),
        name: format!("{}.{inner}", outer.name).into(),
    };
    (is_getattr && is_class(&class)).then_some(class)
}

fn is_tuple(arena: &Arena, id: Id) -> bool {
    matches!(arena.get(id), Value::Tuple(_))
}

fn few(callable: &'static str, wanted: usize, found: usize) -> PickleFault {
    PickleFault::FewArguments {
        callable,
        wanted,
        found,
    }
}

/// A copy of the elements of a sequence; none without one.
fn elements(arena: &Arena, from: Option<Id>) -> Result<Vec<Id>, PickleFault> {
    match from.map(|from| arena.get(from)) {
        None => Ok(Vec::new()),
        Some(Value::List(ids) | Value::Tuple(ids) | Value::Set(ids)) => Ok(ids.clone()),
        Some(other) => Err(wrong_type("a sequence", other)),
    }
}

/// A copy of the items of a dictionary or of a sequence of pairs.
fn pairs(arena: &Arena, from: Id) -> Result<Vec<(Id, Id)>, PickleFault> {
    match arena.get(from) {
        Value::Dict(items) => Ok(items.clone()),
        Value::List(ids) | Value::Tuple(ids) => ids
            .iter()
            .map(|&pair| match arena.get(pair) {
                Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                other => Err(wrong_type("a pair", other)),
            })
            .collect(),
        other => Err(wrong_type("a dictionary or pairs", other)),
    }
}

/// Sets attributes: `object.__setstate__(state)` or `object.__dict__.update(state)`.
pub(crate) fn set_state(arena: &mut Arena, object: Id, state: Id) -> Result<(), PickleFault> {
    match arena.get_mut(object) {
        Value::Object(object) => {
            object.state = Some(state);
            Ok(())
        }
        // Attributes of dictionaries with a class (such as a state dict's `_metadata`) and of tensors are
        // no part of their content.
        Value::Tensor(_) | Value::UnsupportedTensor(_) | Value::Distributed(_) => Ok(()),
        Value::Dict(_) | Value::List(_) | Value::Set(_) | Value::Tuple(_) => {
            match arena.has_attributes(object) || state == Id::NONE {
                true => Ok(()),
                false => Err(PickleFault::NoAttributes {
                    kind: arena.get(object).kind(),
                }),
            }
        }
        other => Err(wrong_type("an object with attributes", other)),
    }
}
