//! What an adapter does to each tensor of its base, all of it checked before anything is read.

use std::collections::BTreeMap;

use super::Renames;
use super::config::Config;
use super::factors::Pair;
use super::part::Part;
use crate::recipe::Place;
use crate::{AdapterFault, Checkpoint, DType, Error, Result};

/// What an adapter does to one tensor.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The adapter's tensor that stands in place of the base's.
    pub(super) replaced: Option<String>,
    /// What is added.
    pub(super) added: Option<Pair>,
}

/// Every change of an adapter by the tensor it changes. All misfits are found before any is reported.
pub(super) fn of(
    base: &Checkpoint,
    adapter: &Checkpoint,
    config: &Config,
    renames: &Renames,
    place: Place,
) -> Result<BTreeMap<String, Change>> {
    let reader = Reader {
        base,
        adapter,
        config,
        renames,
        place,
        is_stored_transposed: is_stored_transposed(base, adapter, config, renames),
    };
    let mut found: BTreeMap<String, Change> = BTreeMap::new();
    let mut faults: Vec<Error> = Vec::new();
    for (key, _) in adapter.tensors() {
        let step = reader.step(key).and_then(|step| match step {
            None => Ok(()),
            Some((target, change)) => add(&reader, found.entry(target), key, change),
        });
        if let Err(fault) = step {
            faults.push(fault);
        }
    }
    match faults.len() {
        0 => Ok(found),
        1 => Err(faults.remove(0)),
        _ => Err(Error::Several(faults)),
    }
}

/// Adds a change to what is known of a tensor; each kind may come once.
fn add(
    reader: &Reader<'_>,
    entry: std::collections::btree_map::Entry<'_, String, Change>,
    key: &str,
    change: Change,
) -> Result<()> {
    let target = entry.key().clone();
    let known = entry.or_default();
    let is_second = known.replaced.is_some() && change.replaced.is_some()
        || known.added.is_some() && change.added.is_some();
    if is_second {
        return Err(AdapterFault::Twice {
            path: reader.adapter.path().into(),
            key: key.to_owned(),
            target,
            place: reader.place,
        }
        .into());
    }
    known.replaced = known.replaced.take().or(change.replaced);
    known.added = known.added.take().or(change.added);
    Ok(())
}

/// The name of a base's tensor that a name in the adapter means.
fn renamed(name: String, renames: &Renames) -> String {
    let change = |name: String, (from, to): &(regex::Regex, String)| {
        from.replace(&name, to.as_str()).into_owned()
    };
    renames.iter().fold(name, change)
}

/// Whether square weights are kept as `(in, out)`. PEFT goes by the kind of a module and sets the
/// adapter's `fan_in_fan_out` by the last one it saw; other shapes show which way round weights are, and
/// where they contradict the setting or each other, nobody knows: `None`.
fn is_stored_transposed(
    base: &Checkpoint,
    adapter: &Checkpoint,
    config: &Config,
    renames: &Renames,
) -> Option<bool> {
    let mut shown = adapter.tensors().filter_map(|(key, a)| {
        let Part::First {
            module,
            second,
            is_embedding: false,
        } = Part::of(key)
        else {
            return None;
        };
        let b = adapter.get(&second)?;
        let weight = base.get(&renamed(format!("{module}.weight"), renames))?;
        let (&[_, inner], &[outer, _]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return None;
        };
        match inner == outer {
            true => None,
            false => Some(weight.shape == [inner, outer]),
        }
    });
    let is_contradicted = shown.any(|is_transposed| is_transposed != config.fan_in_fan_out);
    (!is_contradicted).then_some(config.fan_in_fan_out)
}

/// What a tensor of an adapter is judged by.
struct Reader<'a> {
    base: &'a Checkpoint,
    adapter: &'a Checkpoint,
    config: &'a Config,
    renames: &'a Renames,
    place: Place,
    /// As [`is_stored_transposed`] says.
    is_stored_transposed: Option<bool>,
}

impl Reader<'_> {
    /// What the tensor `key` does, and to which tensor; nothing for a `B`, which goes with its `A`.
    fn step(&self, key: &str) -> Result<Option<(String, Change)>> {
        match Part::of(key) {
            Part::Second { first } => match self.adapter.get(&first) {
                Some(_) => Ok(None),
                None => Err(self.half(key, first)),
            },
            Part::First {
                module,
                second,
                is_embedding,
            } => self.product(key, module, &second, is_embedding).map(Some),
            Part::Bias { module } => {
                let target = renamed(format!("{module}.bias"), self.renames);
                let info = self.adapter.require(key)?;
                let pair = Pair::bias(key, info, self.config.scale(module));
                self.fit(key, &target, Some(&pair))?;
                Ok(Some((target, added(pair))))
            }
            Part::Magnitude => Err(AdapterFault::Kind {
                path: self.adapter.path().into(),
                kind: "DoRA".into(),
                place: self.place,
            }
            .into()),
            Part::Whole(name) => {
                let target = renamed(name, self.renames);
                self.fit(key, &target, None)?;
                let change = Change {
                    replaced: Some(key.to_owned()),
                    added: None,
                };
                Ok(Some((target, change)))
            }
        }
    }

    /// The product of `A` and `B` of a module, and the tensor that it is added to.
    fn product(
        &self,
        first: &str,
        module: &str,
        second: &str,
        is_embedding: bool,
    ) -> Result<(String, Change)> {
        let a = self.adapter.require(first)?;
        let Some(b) = self.adapter.get(second) else {
            return Err(self.half(first, second.to_owned()));
        };
        let target = renamed(format!("{module}.weight"), self.renames);
        let is_transposed = match (a.shape.as_slice(), b.shape.as_slice()) {
            _ if is_embedding => true,
            (&[_, inner], &[outer, _]) if inner != outer => (self.base.get(&target))
                .is_some_and(|weight| weight.shape == [inner, outer]),
            (&[_, _], &[_, _]) => self.is_stored_transposed.ok_or_else(|| AdapterFault::Setting {
                path: self.adapter.path().into(),
                setting: format!(
                    "`fan_in_fan_out: {}`, which other weights contradict, and the square `{target}`",
                    self.config.fan_in_fan_out
                ),
                place: self.place,
            })?,
            // Kernels of convolutions are always kept one way round.
            _ => false,
        };
        let pair = Pair {
            a: (first.to_owned(), a.clone()),
            b: Some((second.to_owned(), b.clone())),
            rank: self.config.rank(module),
            scale: self.config.scale(module),
            is_transposed,
        };
        self.fit(first, &target, Some(&pair))?;
        Ok((target, added(pair)))
    }

    fn half(&self, key: &str, other: String) -> Error {
        AdapterFault::Half {
            path: self.adapter.path().into(),
            key: key.to_owned(),
            other,
            place: self.place,
        }
        .into()
    }

    /// Checks that a change fits the base's tensor. Eight-bit floats go with scales of their own, which
    /// a sum would ignore.
    fn fit(&self, key: &str, target: &str, pair: Option<&Pair>) -> Result<()> {
        let path = || self.adapter.path().to_owned();
        let Some(info) = self.base.get(target) else {
            return Err(AdapterFault::Target {
                path: path(),
                key: key.to_owned(),
                target: target.to_owned(),
                base: self.base.path().to_owned(),
                place: self.place,
            }
            .into());
        };
        let whole = self.adapter.require(key)?;
        let fits = match pair {
            Some(pair) => pair.fits(&info.shape),
            None => whole.shape == info.shape,
        };
        let is_plain = matches!(
            info.dtype,
            DType::F64 | DType::F32 | DType::F16 | DType::BF16
        ) && whole.dtype.is_float();
        // Counters of a module that is kept whole.
        let is_same = pair.is_none() && whole.dtype == info.dtype;
        if fits && (is_plain || is_same) {
            return Ok(());
        }
        let found = match pair {
            Some(pair) => pair.in_words(),
            None => format!("{} {:?}", whole.dtype, whole.shape),
        };
        Err(AdapterFault::Shape {
            path: path(),
            key: key.to_owned(),
            found,
            target: target.to_owned(),
            expected: info.shape.clone(),
            dtype: info.dtype,
            place: self.place,
        }
        .into())
    }
}

fn added(pair: Pair) -> Change {
    Change {
        replaced: None,
        added: Some(pair),
    }
}
