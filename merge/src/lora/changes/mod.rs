//! The changes that an adapter makes to each tensor of its base. All of them are checked before any data is read.

mod causes;
mod heads;
mod products;
mod rows;

use std::collections::BTreeMap;

use heads::adds_rows;

use super::Renames;
use super::config::Config;
use super::factors::{Named, Pair};
use super::modules::Modules;
use super::part::Part;
use super::updates::Delta;
use crate::recipe::Place;
use crate::ties;
use crate::{AdapterFault, Checkpoint, DType, Error, Result, TensorInfo};

/// The change of one tensor by an adapter.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The adapter's tensor that stands in place of the base's.
    pub(super) replaced: Option<Named>,
    /// The added update.
    pub(super) added: Option<Delta>,
    /// Lengths that rows, or columns, are brought to after the sum (DoRA).
    pub(super) magnitude: Option<Magnitude>,
    /// Rows that are replaced, in order, and what by.
    pub(super) rows: Option<(Named, Vec<usize>)>,
}

/// Lengths of the outputs' weights.
#[derive(Debug)]
pub(super) struct Magnitude {
    pub(super) lengths: Named,
    /// Whether outputs are columns.
    pub(super) is_by_column: bool,
}

impl Magnitude {
    /// The index of the length that element `at` of a tensor with rows of `width` goes by.
    pub(super) const fn index_of(&self, at: usize, width: usize) -> usize {
        match self.is_by_column {
            true => at % width,
            false => at / width,
        }
    }
}

/// All that an adapter does.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By the tensor that is changed.
    pub(super) by_target: BTreeMap<String, Change>,
    /// Heads that the base has tied to embeddings, and that are on their own from here on.
    pub(super) heads: BTreeMap<String, String>,
    /// Tensors for other parts of a pipeline.
    pub(super) others: Vec<String>,
}

/// Every change of an adapter by the tensor it changes. All misfits are found before any is reported.
pub(super) fn of(
    base: &Checkpoint,
    adapter: &Checkpoint,
    config: &Config,
    renames: &Renames,
    place: Place,
) -> Result<Changes> {
    check_tensors(adapter, place)?;
    let mut reader = Reader {
        base,
        adapter,
        config,
        modules: Modules::new(base, renames),
        place,
        is_stored_transposed: Some(config.fan_in_fan_out),
        wholes: BTreeMap::new(),
    };
    reader.is_stored_transposed = reader.stored_transposed();
    reader.wholes = reader.whole_shapes();
    let mut found = Changes {
        others: reader.other_components(),
        ..Changes::default()
    };
    let mut faults: Vec<Error> = Vec::new();
    for (key, _) in adapter
        .tensors()
        .filter(|(key, _)| !found.others.iter().any(|other| other == key))
    {
        let step = reader.step(key).and_then(|step| match step {
            None => Ok(()),
            Some((target, change)) => {
                // An alias is its tensor; only heads part from the embeddings.
                let target = match ties::is_head(&target) {
                    true => target,
                    false => base.name_of(&target).to_owned(),
                };
                if let Some(embedding) = ties::stand_in(base, &target)? {
                    found.heads.insert(target.clone(), embedding);
                }
                add(&reader, found.by_target.entry(target), key, change)
            }
        });
        if let Err(fault) = step {
            faults.push(fault);
        }
    }
    faults.extend(reader.without_magnitudes(&found));
    if faults.is_empty()
        && let Err(fault) = reader
            .untie(&mut found)
            .and_then(|()| reader.check_rows(&found))
    {
        faults.push(fault);
    }
    match faults.len() {
        0 => Ok(found),
        1 => Err(faults.remove(0)),
        _ => Err(Error::Several(faults)),
    }
}

/// Refuses an adapter without tensors, and one whose tensors are empty.
pub(super) fn check_tensors(adapter: &Checkpoint, place: Place) -> Result<()> {
    let n_tensors = adapter.tensors().count();
    if n_tensors == 0 {
        return Err(AdapterFault::NoTensors {
            path: adapter.path().into(),
            place,
        }
        .into());
    }
    let mut empty = adapter.tensors().filter(|(_, info)| info.n_elements() == 0);
    match empty.next() {
        None => Ok(()),
        Some((key, info)) => Err(AdapterFault::EmptyTensors {
            path: adapter.path().into(),
            key: key.to_owned(),
            shape: info.shape.clone(),
            n_empty: 1 + empty.count(),
            n_tensors,
            place,
        }
        .into()),
    }
}

/// Adds a change to those of a tensor. Each kind may come once.
fn add(
    reader: &Reader<'_>,
    entry: std::collections::btree_map::Entry<'_, String, Change>,
    key: &str,
    change: Change,
) -> Result<()> {
    let target = entry.key().clone();
    let known = entry.or_default();
    let is_second = known.replaced.is_some() && change.replaced.is_some()
        || known.added.is_some() && change.added.is_some()
        || known.magnitude.is_some() && change.magnitude.is_some()
        || known.rows.is_some() && change.rows.is_some();
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
    known.magnitude = known.magnitude.take().or(change.magnitude);
    known.rows = known.rows.take().or(change.rows);
    Ok(())
}

/// The facts by which a tensor of an adapter is judged.
struct Reader<'a> {
    base: &'a Checkpoint,
    adapter: &'a Checkpoint,
    config: &'a Config,
    modules: Modules,
    place: Place,
    /// Whether square weights are kept as `(in, out)`; `None` if it is not known.
    is_stored_transposed: Option<bool>,
    /// Shapes of whole tensors, by the tensors that they stand in place of.
    wholes: BTreeMap<String, Vec<usize>>,
}

impl Reader<'_> {
    fn path(&self) -> std::path::PathBuf {
        self.adapter.path().into()
    }

    /// The tensor of the base that `end` of a module is.
    fn target(&self, module: &str, end: &str) -> String {
        self.modules.tensor(self.base, module, end)
    }

    fn named(&self, key: &str) -> Result<Named> {
        Ok((key.to_owned(), self.adapter.require(key)?.clone()))
    }

    /// PEFT goes by the kind of a module and sets the adapter's `fan_in_fan_out` by the last one it saw;
    /// other shapes show which way round weights are, and where they contradict the setting or each other,
    /// nobody knows: `None`.
    fn stored_transposed(&self) -> Option<bool> {
        let mut shown = self.adapter.tensors().filter_map(|(key, a)| {
            let Part::First {
                module,
                second,
                is_embedding: false,
            } = Part::of(key)
            else {
                return None;
            };
            let b = self.adapter.get(&second)?;
            let weight = self.base.get(&self.target(module, "weight"))?;
            let (&[_, inner], &[outer, _]) = (a.shape.as_slice(), b.shape.as_slice()) else {
                return None;
            };
            match inner == outer {
                true => None,
                false => Some(weight.shape == [inner, outer]),
            }
        });
        let is_contradicted =
            shown.any(|is_transposed| is_transposed != self.config.fan_in_fan_out);
        (!is_contradicted).then_some(self.config.fan_in_fan_out)
    }

    /// Shapes that whole tensors bring along.
    fn whole_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let wholes = self
            .adapter
            .tensors()
            .filter_map(|(key, info)| match Part::of(key) {
                Part::Whole(name) => Some((self.modules.renamed(name), info.shape.clone())),
                _ => None,
            });
        wholes.collect()
    }

    /// Tensors of parts of a pipeline that the base is not: those of which no module is there, beside a part
    /// of which some are.
    fn other_components(&self) -> Vec<String> {
        if !self.config.is_without_settings() {
            return Vec::new();
        }
        let mut is_there: BTreeMap<&str, bool> = BTreeMap::new();
        let component = |key: &str| Modules::component(key);
        for (key, _) in self.adapter.tensors() {
            let module = match Part::of(key) {
                Part::First { module, .. }
                | Part::Hadamard { module, .. }
                | Part::Kronecker { module, .. } => module,
                _ => continue,
            };
            if let Some(component) = component(key) {
                let found = self.base.get(&self.target(module, "weight")).is_some();
                *is_there.entry(component).or_default() |= found;
            }
        }
        if !is_there.values().any(|is_there| *is_there) {
            return Vec::new();
        }
        let others = self.adapter.tensors().map(|(key, _)| key).filter(|key| {
            component(key).is_some_and(|component| is_there.get(component) == Some(&false))
        });
        others.map(str::to_owned).collect()
    }

    /// The change that the tensor `key` makes, and the tensor that it changes; nothing for one that goes with another.
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
            } => match self.expert_parameters(module).as_slice() {
                [] => self.product(key, module, &second, is_embedding).map(Some),
                parameters => self.experts(key, module, &second, parameters).map(Some),
            },
            Part::Bias { module } => {
                let target = self.target(module, "bias");
                let info = self.adapter.require(key)?;
                let rank = self.config.rank(module, 1);
                let pair = Pair::bias(key, info, self.config.scale(module, rank, None));
                let delta = Delta::Product(pair);
                self.fit(key, &target, Some(&delta))?;
                Ok(Some((target, added(delta))))
            }
            Part::Hadamard { module, name } => self.hadamard(key, module, name),
            Part::Kronecker { module, name } => self.kronecker(key, module, name),
            Part::Alpha => Ok(None),
            Part::Difference { module, is_bias } => {
                let target = self.target(module, if is_bias { "bias" } else { "weight" });
                let delta = Delta::Whole(self.named(key)?, 1.0);
                self.fit(key, &target, Some(&delta))?;
                Ok(Some((target, added(delta))))
            }
            Part::Magnitude { module } => self.magnitude(key, module).map(Some),
            Part::Tokens { module } => self.tokens(key, module).map(Some),
            Part::Unknown(kind) => Err(AdapterFault::Kind {
                path: self.path(),
                kind: kind.to_owned(),
                place: self.place,
            }
            .into()),
            Part::Whole(name) => {
                let target = self.modules.renamed(name);
                self.fit(key, &target, None)?;
                let change = Change {
                    replaced: Some(self.named(key)?),
                    ..Change::default()
                };
                Ok(Some((target, change)))
            }
        }
    }

    /// Shape of a tensor once whole tensors are in place; of the embeddings for a head that shares them.
    fn shape_of(&self, target: &str) -> Result<Option<Vec<usize>>> {
        if let Some(shape) = self.wholes.get(target) {
            return Ok(Some(shape.clone()));
        }
        Ok(self.info(target)?.map(|info| info.shape.clone()))
    }

    /// The base's tensor, or the embeddings that stand for it.
    fn info(&self, target: &str) -> Result<Option<&TensorInfo>> {
        if let Some(info) = self.base.get(target) {
            return Ok(Some(info));
        }
        let embedding = ties::stand_in(self.base, target)?;
        Ok(embedding.and_then(|embedding| self.base.get(&embedding)))
    }

    fn half(&self, key: &str, other: String) -> Error {
        AdapterFault::Half {
            path: self.path(),
            key: key.to_owned(),
            other,
            place: self.place,
        }
        .into()
    }

    /// The fault of a change that does not fit `target`, which should be as `expected`.
    fn misfit(&self, key: &str, found: String, target: &str, expected: TensorInfo) -> Error {
        AdapterFault::Shape {
            path: self.path(),
            key: key.to_owned(),
            found,
            target: target.to_owned(),
            advice: causes::of_misfit(target, &expected),
            expected: expected.shape,
            dtype: expected.dtype,
            place: self.place,
        }
        .into()
    }

    fn no_target(&self, key: &str, target: &str) -> Error {
        AdapterFault::Target {
            path: self.path(),
            key: key.to_owned(),
            target: target.to_owned(),
            base: self.base.path().to_owned(),
            advice: causes::of_missing(self.base, target),
            place: self.place,
        }
        .into()
    }

    /// Checks that a change fits the base's tensor.
    fn fit(&self, key: &str, target: &str, delta: Option<&Delta>) -> Result<()> {
        let Some(info) = self.info(target)? else {
            return Err(self.no_target(key, target));
        };
        let whole = self.adapter.require(key)?;
        let fits = match delta {
            Some(delta) => {
                let shape = self.wholes.get(target).unwrap_or(&info.shape);
                delta.fits(shape)
            }
            None => whole.shape == info.shape || adds_rows(target, &whole.shape, &info.shape),
        };
        let is_plain = matches!(
            info.dtype,
            DType::F64 | DType::F32 | DType::F16 | DType::BF16
        ) && whole.dtype.is_float();
        // Counters of a module that is kept whole.
        let is_same = delta.is_none() && whole.dtype == info.dtype;
        if fits && (is_plain || is_same) {
            return Ok(());
        }
        let found = match delta {
            Some(delta) => delta.in_words(),
            None => format!("{} {:?}", whole.dtype, whole.shape),
        };
        Err(self.misfit(key, found, target, info.clone()))
    }
}

fn added(delta: Delta) -> Change {
    Change {
        added: Some(delta),
        ..Change::default()
    }
}
