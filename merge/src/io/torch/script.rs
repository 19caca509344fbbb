//! Archives of TorchScript (`torch.jit.save`): their `data.pkl` holds the model as nested objects, of classes that
//! stand as code beside it. The code is not looked at: a module's attributes are its weights and its parts.

use super::fault::ScriptFault;
use super::value::{Arena, Global, Id, Value};

/// Module of all classes that TorchScript makes.
pub(crate) const MODULE: &str = "__torch__";

/// Whether a class is one of TorchScript's.
pub(crate) fn is_class(class: &Global) -> bool {
    let below = class.module.strip_prefix(MODULE);
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a value is an object of such a class.
pub(crate) fn is_object(arena: &Arena, id: Id) -> bool {
    match arena.get(id) {
        Value::Object(object) => arena.global(object.callable).is_some_and(is_class),
        _ => false,
    }
}

/// Why the attributes of such an object are not to be had.
pub(crate) fn fault(arena: &Arena, id: Id) -> Option<ScriptFault> {
    let Value::Object(object) = arena.get(id) else {
        return None;
    };
    match object.state.map(|state| arena.get(state)) {
        Some(Value::Dict(_)) => None,
        Some(_) => Some(ScriptFault::OwnState),
        None => Some(ScriptFault::NoState),
    }
}
