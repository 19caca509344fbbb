//! Weights under the names that other libraries than torch have for them, as views under those of Hugging Face.
//!
//! | module | weights |
//! |---|---|
//! | `bert` | Google's BERT of TensorFlow, that of transformers' TensorFlow classes, and Flax's |
//! | `clip` | CLIP of transformers' TensorFlow classes |
//! | `big_vision` | SigLIP of JAX |
//!
//! A naming is a table of [`Row`]s: a name there, the name here, and the change of axes between them. A tensor that no row has a name
//! for is an error, so that no weight is lost.

mod bert;
mod big_vision;
mod clip;
mod row;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::io::{ByAxes, Container, TensorEntry};
use crate::layouts::ModelRecord;
use crate::{Checkpoint, ConversionFault, Error, Result, TensorInfo};
use row::{Form, Row};

/// The most unknown names that an error lists.
const N_LISTED: usize = 20;

/// The most layers in one tensor.
const MAX_LAYERS: usize = 1 << 12;

/// The names of a library for the weights of a kind of models.
struct Naming {
    /// Whose.
    whose: &'static str,
    /// The name that the table has for a key of the file; `None` for a key without one.
    inner: fn(&str) -> Option<String>,
    /// The beginning of a model's names, and the beginning of Hugging Face's names for it.
    bases: &'static [(&'static str, &'static str)],
    /// A name behind the base that tells the naming.
    sign: &'static str,
    /// Names behind the base.
    rows: &'static [Row],
    /// Names of what stands beside the base.
    heads: &'static [Row],
    /// The container whose reader gives names and axes of torch already: names are those of Hugging Face then.
    read_as_torch: Option<Container>,
    /// Ends of names that are no weights.
    left_out: &'static [&'static str],
    /// Facts about the model that the axes tell.
    facts: fn(&[Placed<'_>]) -> Option<ModelRecord>,
}

const NAMINGS: [&Naming; 5] = [
    &bert::GOOGLE,
    &bert::KERAS,
    &bert::FLAX,
    &clip::KERAS,
    &big_vision::SIGLIP,
];

/// A tensor and where it goes.
struct Placed<'a> {
    key: &'a str,
    info: &'a TensorInfo,
    /// The name of Hugging Face; `{n}` for the number of a layer that is an axis of the tensor.
    to: String,
    /// Whether the first axis counts layers.
    is_stacked: bool,
    form: Form,
}

/// The checkpoint under the names of Hugging Face; `None` where its names belong to no naming.
///
/// # Errors
/// [`ConversionFault::UnknownNames`], [`ConversionFault::Parts`] for a tensor whose axes are others than those of its name,
/// [`ConversionFault::NameTaken`], [`Error::UnsupportedCast`] for elements that share bytes.
pub(super) fn respelled(source: &Arc<Checkpoint>) -> Result<Option<Arc<Checkpoint>>> {
    for naming in NAMINGS {
        if let Some(base) = naming.base_of(source) {
            return naming.view(source, base).map(Some);
        }
    }
    Ok(None)
}

/// A key as it is, without what TensorFlow puts behind the names of variables.
fn bare(key: &str) -> Option<String> {
    Some(key.strip_suffix(":0").unwrap_or(key).to_owned())
}

/// The name of a variable of transformers' TensorFlow classes. Keras keeps it below a group of its layer and the name of
/// its model. Layers have their numbers behind `_._`, and heads their names behind three dashes.
fn of_keras(key: &str) -> Option<String> {
    let mut parts = key.splitn(3, '/').skip(2);
    let name = bare(parts.next()?)?.replace("_._", "_");
    let (first, rest) = name.split_once('/').unwrap_or((&name, ""));
    match first.split_once("___") {
        Some((_, own)) => Some(format!("{own}/{rest}")),
        None => Some(name),
    }
}

impl Naming {
    /// The base under which the sign is there.
    fn base_of(&self, source: &Checkpoint) -> Option<(&'static str, &'static str)> {
        let container = source.info().container;
        if self.read_as_torch.is_some_and(|wanted| wanted != container) {
            return None;
        }
        let is_sign = |key: &str, base: &str| {
            let inner = (self.inner)(key);
            inner.is_some_and(|name| name.strip_prefix(base) == Some(self.sign))
        };
        let is_there = |base: &str| source.tensors().any(|(key, _)| is_sign(key, base));
        self.bases.iter().copied().find(|(base, _)| is_there(base))
    }

    /// Where a name goes.
    fn place<'a>(
        &self,
        key: &'a str,
        info: &'a TensorInfo,
        (base, to_base): (&str, &str),
    ) -> Option<Placed<'a>> {
        let name = (self.inner)(key)?;
        let is_torch = self.read_as_torch.is_some();
        let within = name
            .strip_prefix(base)
            .map(|rest| (rest, self.rows, to_base));
        let parts = within.into_iter().chain([(name.as_str(), self.heads, "")]);
        for (rest, rows, to_base) in parts {
            let mut found = rows.iter().filter_map(|row| row.place(rest, is_torch));
            if let Some((to, is_stacked, form)) = found.next() {
                return Some(Placed {
                    key,
                    info,
                    to: format!("{to_base}{to}"),
                    is_stacked,
                    form,
                });
            }
        }
        None
    }

    fn view(&self, source: &Arc<Checkpoint>, base: (&str, &str)) -> Result<Arc<Checkpoint>> {
        source.require_unique_names()?;
        let (mut placed, mut unknown, mut n_left_out) = (Vec::new(), Vec::new(), 0);
        for (key, info) in source.tensors() {
            if (self.left_out.iter()).any(|end| key.ends_with(end)) {
                n_left_out += 1;
                continue;
            }
            match self.place(key, info, base) {
                Some(found) => placed.push(found),
                None => unknown.push(key.to_owned()),
            }
        }
        if !unknown.is_empty() {
            let n = unknown.len();
            unknown.truncate(N_LISTED);
            return Err(ConversionFault::UnknownNames {
                path: source.path().into(),
                whose: self.whose,
                n,
                keys: unknown,
            }
            .into());
        }
        let mut tensors = Vec::new();
        let mut names = BTreeSet::new();
        for tensor in &placed {
            for (name, info, order) in tensor.orders(source)? {
                if !names.insert(name.clone()) {
                    return Err(ConversionFault::NameTaken {
                        path: source.path().into(),
                        key: name,
                    }
                    .into());
                }
                tensors.push((
                    TensorEntry::renamed(tensor.key.to_owned(), name, info),
                    order,
                ));
            }
        }
        let mut info = source.info().clone();
        if ModelRecord::of(source)? == ModelRecord::default()
            && let Some(record) = (self.facts)(&placed)
        {
            record.add_to(&mut info.metadata);
        }
        let note = (n_left_out > 0).then(|| {
            format!(
                "{}: left out {n_left_out} tensors of the optimizer, which are no weights",
                source.path().display()
            )
        });
        let view = ByAxes::new(Arc::clone(source), info, tensors);
        Ok(Arc::new(Checkpoint::new(Box::new(view)).with_note(note)))
    }
}

impl Placed<'_> {
    /// The names, shapes and orders of what the tensor is here: one tensor, or one for each layer.
    fn orders(&self, source: &Checkpoint) -> Result<Vec<(String, TensorInfo, crate::io::Order)>> {
        let dtype = self.info.dtype;
        if dtype.bits() < 8 {
            return Err(Error::UnsupportedCast {
                key: self.key.to_owned(),
                dtype,
                wanted: crate::DType::BF16,
            });
        }
        let layers = if self.is_stacked { "layers, then " } else { "" };
        let wrong = || ConversionFault::Parts {
            path: source.path().into(),
            key: self.key.to_owned(),
            reason: format!(
                "shape {:?} is not {layers}{}",
                self.info.shape,
                self.form.in_words()
            ),
        };
        let (n_layers, own) = match (self.is_stacked, self.info.shape.as_slice()) {
            (false, shape) => (1, shape),
            (true, [n_layers, rest @ ..]) if *n_layers <= MAX_LAYERS => (*n_layers, rest),
            (true, _) => return Err(wrong().into()),
        };
        let (shape, sizes, strides) = self.form.axes(own).ok_or_else(wrong)?;
        let per_layer: usize = own.iter().product();
        let orders = (0..n_layers).map(|layer| {
            let name = match self.is_stacked {
                true => self.to.replacen(row::NUMBER, &layer.to_string(), 1),
                false => self.to.clone(),
            };
            let info = TensorInfo {
                dtype,
                shape: shape.clone(),
            };
            let order = crate::io::Order::new(self.key, layer * per_layer, &sizes, &strides);
            (name, info, order)
        });
        Ok(orders.collect())
    }
}
