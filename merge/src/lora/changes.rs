//! What an adapter does to each tensor of its base, all of it checked before anything is read.

use std::collections::{BTreeMap, BTreeSet};

use super::Renames;
use super::config::Config;
use super::factors::Pair;
use super::modules::Modules;
use super::part::Part;
use super::updates::{Delta, Experts, Hadamard, Kronecker, Named, Side};
use crate::recipe::Place;
use crate::ties::{self, TiedHead};
use crate::{AdapterFault, Checkpoint, DType, Error, Result, TensorInfo, decode_f32};

/// What an adapter does to one tensor.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The adapter's tensor that stands in place of the base's.
    pub(super) replaced: Option<Named>,
    /// What is added.
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
                if base.get(&target).is_none()
                    && let Some(embedding) = ties::stand_in(base, &target)?
                {
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

/// What a tensor of an adapter is judged by.
struct Reader<'a> {
    base: &'a Checkpoint,
    adapter: &'a Checkpoint,
    config: &'a Config,
    modules: Modules,
    place: Place,
    /// Whether square weights are kept as `(in, out)`; `None` if nobody knows.
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

    /// What the tensor `key` does, and to which tensor; nothing for one that goes with another.
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

    /// An α that is stored beside the factors of a module.
    fn alpha(&self, key: &str) -> Result<Option<f64>> {
        let ends = [".lora", ".hada_", ".lokr_", "_lora."];
        let start = ends
            .iter()
            .find_map(|end| key.rfind(end))
            .unwrap_or(key.len());
        let alpha = format!("{}.alpha", &key[..start]);
        let Some(info) = self
            .adapter
            .get(&alpha)
            .filter(|info| info.n_elements() == 1)
        else {
            return Ok(None);
        };
        let mut value = [0.0];
        decode_f32(
            &alpha,
            info.dtype,
            &self.adapter.read_all(&alpha)?,
            &mut value,
        )?;
        Ok(Some(f64::from(value[0])))
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
        let target = self.target(module, "weight");
        let shape = self.shape_of(&target)?;
        let is_transposed = match (a.shape.as_slice(), b.shape.as_slice()) {
            _ if is_embedding => true,
            (&[_, inner], &[outer, _]) if inner != outer => {
                shape.as_deref() == Some(&[inner, outer][..])
            }
            (&[_, _], &[_, _]) => self.is_stored_transposed.ok_or_else(|| AdapterFault::Setting {
                path: self.path(),
                setting: format!(
                    "`fan_in_fan_out: {}`, which other weights contradict, and the square `{target}`",
                    self.config.fan_in_fan_out
                ),
                place: self.place,
            })?,
            // Kernels of convolutions are always kept one way round.
            _ => false,
        };
        let found = a.shape.first().copied().unwrap_or(1);
        let rank = self.config.rank(module, found);
        let delta = Delta::Product(Pair {
            a: (first.to_owned(), a.clone()),
            b: Some((second.to_owned(), b.clone())),
            rank,
            scale: self.config.scale(module, found, self.alpha(first)?),
            is_transposed,
        });
        self.fit(first, &target, Some(&delta))?;
        Ok((target, added(delta)))
    }

    /// The parameters of a module that the adapter changes without modules of their own.
    fn expert_parameters(&self, module: &str) -> Vec<String> {
        let module = module.replace(".base_layer", "");
        let parameters = self.config.parameters.iter().filter_map(|parameter| {
            let (owner, last) = parameter.rsplit_once('.')?;
            let start = module.strip_suffix(owner)?;
            let is_whole = start.is_empty() || start.ends_with('.');
            is_whole.then(|| self.modules.renamed(format!("{module}.{last}")))
        });
        let there = parameters.filter(|name| self.base.get(name).is_some());
        there.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The products of fused experts, and the parameter among those of the module that has their shape.
    fn experts(
        &self,
        first: &str,
        module: &str,
        second: &str,
        parameters: &[String],
    ) -> Result<(String, Change)> {
        let Some(b) = self.adapter.get(second) else {
            return Err(self.half(first, second.to_owned()));
        };
        let (a, b) = (self.named(first)?, (second.to_owned(), b.clone()));
        let mut fitting = Vec::new();
        for target in parameters {
            let shape = &self.base.require(target)?.shape;
            let n_experts = match shape.as_slice() {
                &[n_experts, _, _] => n_experts,
                _ => 1,
            };
            let rank = a.1.shape.first().copied().unwrap_or(0) / n_experts.max(1);
            let scale = self
                .config
                .scale(&module.replace(".base_layer", ""), rank, None);
            if n_experts == 1 {
                let pair = Pair {
                    a: a.clone(),
                    b: Some(b.clone()),
                    rank,
                    scale,
                    is_transposed: false,
                };
                let delta = Delta::Product(pair);
                if delta.fits(shape) {
                    fitting.push((target, delta));
                }
                continue;
            }
            for has_outputs_first in [false, true] {
                let delta = Delta::Experts(Experts {
                    a: a.clone(),
                    b: b.clone(),
                    n_experts,
                    scale,
                    has_outputs_first,
                });
                let is_whole = a.1.shape.first() == Some(&(rank * n_experts))
                    && b.1.shape.get(1) == Some(&(rank * n_experts));
                if delta.fits(shape) && is_whole && rank > 0 {
                    fitting.push((target, delta));
                }
            }
        }
        // PEFT wraps a module once for each parameter, the first innermost.
        let depth = module.matches(".base_layer").count();
        let all: BTreeSet<&String> = fitting.iter().map(|(target, _)| *target).collect();
        if all.len() > 1 || fitting.len() > 1 {
            return Err(AdapterFault::Setting {
                path: self.path(),
                setting: format!(
                    "`target_parameters` whose shapes do not tell which is meant by `{first}` ({} wrappers deep): \
                     {}",
                    depth,
                    all.into_iter().cloned().collect::<Vec<_>>().join(", ")
                ),
                place: self.place,
            }
            .into());
        }
        match fitting.pop() {
            Some((target, delta)) => {
                self.fit(first, target, Some(&delta))?;
                Ok((target.clone(), added(delta)))
            }
            None => {
                let target = &parameters[0];
                let info = self.base.require(target)?;
                Err(AdapterFault::Shape {
                    path: self.path(),
                    key: first.to_owned(),
                    found: format!("A {:?} and B {:?}", a.1.shape, b.1.shape),
                    target: target.clone(),
                    expected: info.shape.clone(),
                    dtype: info.dtype,
                    place: self.place,
                }
                .into())
            }
        }
    }

    /// A tensor of the same update.
    fn sibling(&self, key: &str, name: &str, other: &str) -> Option<Named> {
        let start = key.strip_suffix(name)?;
        self.named(&format!("{start}{other}")).ok()
    }

    fn needed(&self, key: &str, name: &str, other: &str) -> Result<Named> {
        self.sibling(key, name, other).ok_or_else(|| {
            let start = key.strip_suffix(name).unwrap_or(key);
            self.half(key, format!("{start}{other}"))
        })
    }

    fn hadamard(&self, key: &str, module: &str, name: &str) -> Result<Option<(String, Change)>> {
        if name != "hada_w1_a" {
            // Goes with the first, which must be there.
            return self.needed(key, name, "hada_w1_a").map(|_| None);
        }
        let part = |other: &str| self.needed(key, name, other);
        let core = |other: &str| self.sibling(key, name, other);
        let b = part("hada_w1_b")?;
        let rank = b.1.shape.first().copied().unwrap_or(1);
        let delta = Delta::Hadamard(Hadamard {
            scale: self.config.scale(module, rank, self.alpha(key)?),
            pairs: [
                (part(name)?, b, core("hada_t1")),
                (part("hada_w2_a")?, part("hada_w2_b")?, core("hada_t2")),
            ],
        });
        let target = self.target(module, "weight");
        self.fit(key, &target, Some(&delta))?;
        Ok(Some((target, added(delta))))
    }

    fn kronecker(&self, key: &str, module: &str, name: &str) -> Result<Option<(String, Change)>> {
        let has = |other: &str| self.sibling(key, name, other);
        let start = if has("lokr_w1").is_some() {
            "lokr_w1"
        } else {
            "lokr_w1_a"
        };
        if name != start {
            return self.needed(key, name, start).map(|_| None);
        }
        let part = |other: &str| self.needed(key, name, other);
        let first = match has("lokr_w1") {
            Some(whole) => Side::Whole(whole),
            None => Side::Product(part("lokr_w1_a")?, part("lokr_w1_b")?),
        };
        let second = match (has("lokr_w2"), has("lokr_t2")) {
            (Some(whole), _) => Side::Whole(whole),
            (None, Some(core)) => Side::Core {
                core,
                a: part("lokr_w2_a")?,
                b: part("lokr_w2_b")?,
            },
            (None, None) => Side::Product(part("lokr_w2_a")?, part("lokr_w2_b")?),
        };
        let rank_of = |side: &Side| match side {
            Side::Whole(_) => None,
            Side::Product(_, b) | Side::Core { b, .. } => b.1.shape.first().copied(),
        };
        let rank = rank_of(&second).or(rank_of(&first));
        let scale = match rank {
            // LyCORIS scales nothing where both sides are whole.
            None if self.config.is_without_settings() => 1.0,
            rank => self
                .config
                .scale(module, rank.unwrap_or(1), self.alpha(key)?),
        };
        let delta = Delta::Kronecker(Kronecker {
            first,
            second,
            scale,
        });
        let target = self.target(module, "weight");
        self.fit(key, &target, Some(&delta))?;
        Ok(Some((target, added(delta))))
    }

    /// Weights that lack the lengths which the settings promise (DoRA).
    fn without_magnitudes(&self, found: &Changes) -> Vec<Error> {
        if !self.config.has_magnitudes {
            return Vec::new();
        }
        let lacks = |(target, change): (&String, &Change)| {
            let is_bias = target.ends_with(".bias");
            let lacks = change.added.is_some() && change.magnitude.is_none() && !is_bias;
            lacks.then(|| {
                Error::from(AdapterFault::Half {
                    path: self.path(),
                    key: target.clone(),
                    other: "lora_magnitude_vector".into(),
                    place: self.place,
                })
            })
        };
        found.by_target.iter().filter_map(lacks).collect()
    }

    /// The lengths of a module's outputs.
    fn magnitude(&self, key: &str, module: &str) -> Result<(String, Change)> {
        let target = self.target(module, "weight");
        let Some(shape) = self.shape_of(&target)? else {
            return Err(self.no_target(key, &target));
        };
        let lengths = self.named(key)?;
        let n = lengths.1.n_elements();
        let (rows, columns) = (
            shape.first().copied().unwrap_or(0),
            shape.iter().skip(1).product(),
        );
        let is_embedding = self.adapter.tensors().any(|(other, _)| {
            matches!(Part::of(other), Part::First { module: own, is_embedding: true, .. } if own == module)
        });
        // LyCORIS keeps a length per input as (1, inputs).
        let is_by_input =
            key.ends_with(".dora_scale") && lengths.1.shape.first() == Some(&1) && rows != 1;
        let is_by_column = is_embedding
            || is_by_input
            || shape.len() == 2 && self.is_stored_transposed == Some(true);
        let expected: usize = if is_by_column { columns } else { rows };
        if n != expected || shape.len() > 2 && is_by_column {
            return Err(AdapterFault::Shape {
                path: self.path(),
                key: key.to_owned(),
                found: format!("{:?}", lengths.1.shape),
                target: target.clone(),
                expected: shape,
                dtype: lengths.1.dtype,
                place: self.place,
            }
            .into());
        }
        let change = Change {
            magnitude: Some(Magnitude {
                lengths,
                is_by_column,
            }),
            ..Change::default()
        };
        Ok((target, change))
    }

    /// Rows of embeddings.
    fn tokens(&self, key: &str, module: &str) -> Result<(String, Change)> {
        let target = self.target(module, "weight");
        let Some(shape) = self.shape_of(&target)? else {
            return Err(self.no_target(key, &target));
        };
        let rows = self.named(key)?;
        let tokens = self.config.tokens(module).unwrap_or_default();
        let width: usize = shape.iter().skip(1).product();
        let fits = tokens.iter().all(|&token| Some(&token) < shape.first())
            && rows.1.shape == [tokens.len(), width];
        if !fits {
            return Err(AdapterFault::Shape {
                path: self.path(),
                key: key.to_owned(),
                found: format!("{:?} for {} tokens", rows.1.shape, tokens.len()),
                target,
                expected: shape,
                dtype: rows.1.dtype,
                place: self.place,
            }
            .into());
        }
        let change = Change {
            rows: Some((rows, tokens.to_vec())),
            ..Change::default()
        };
        Ok((target, change))
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

    fn no_target(&self, key: &str, target: &str) -> Error {
        AdapterFault::Target {
            path: self.path(),
            key: key.to_owned(),
            target: target.to_owned(),
            base: self.base.path().to_owned(),
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
        Err(AdapterFault::Shape {
            path: self.path(),
            key: key.to_owned(),
            found,
            target: target.to_owned(),
            expected: info.shape.clone(),
            dtype: info.dtype,
            place: self.place,
        }
        .into())
    }

    /// What becomes of a head that shares embeddings which the adapter changes: it keeps the base's weights,
    /// as PEFT computes it, unless the adapter changes both alike.
    fn untie(&self, found: &mut Changes) -> Result<()> {
        let embeddings: Vec<String> = (found.by_target.keys())
            .filter(|target| ties::is_embedding(target) || target.ends_with("shared.weight"))
            .cloned()
            .collect();
        for embedding in embeddings {
            match ties::head_of(self.base, &embedding)? {
                TiedHead::None => {}
                TiedHead::Unknown if self.stays_tied(&found.by_target[&embedding]) => {}
                TiedHead::Unknown => {
                    return Err(AdapterFault::Tied {
                        path: self.path(),
                        embedding,
                        base: self.base.path().to_owned(),
                        place: self.place,
                    }
                    .into());
                }
                TiedHead::Named(head) => self.untie_head(&embedding, head, found)?,
            }
        }
        Ok(())
    }

    fn untie_head(&self, embedding: &str, head: String, found: &mut Changes) -> Result<()> {
        let change = &found.by_target[embedding];
        match found.by_target.get(&head) {
            Some(of_head) if self.are_alike(change, of_head)? => {
                // Both stay one.
                found.by_target.remove(&head);
                found.heads.remove(&head);
            }
            Some(_) => {}
            None if self.stays_tied(change) => {}
            None => {
                found.heads.insert(head, embedding.to_owned());
            }
        }
        Ok(())
    }

    /// Whether PEFT does to the head what it does to the embeddings.
    fn stays_tied(&self, change: &Change) -> bool {
        let is_rows_alone =
            change.rows.is_some() && change.added.is_none() && change.replaced.is_none();
        self.config.keeps_ties || is_rows_alone
    }

    /// Whether whole tensors hold the same values.
    fn are_alike(&self, one: &Change, other: &Change) -> Result<bool> {
        let (Some((first, one_info)), Some((second, other_info))) =
            (&one.replaced, &other.replaced)
        else {
            return Ok(false);
        };
        let are_whole = one.added.is_none() && other.added.is_none();
        Ok(are_whole
            && one_info == other_info
            && self.adapter.read_all(first)? == self.adapter.read_all(second)?)
    }

    /// Checks that embeddings and head have the same rows, where an adapter brings more.
    fn check_rows(&self, found: &Changes) -> Result<()> {
        let is_one = |name: &str| ties::is_embedding(name) || ties::is_head(name);
        let of_base = self.base.tensors().map(|(name, info)| (name, &info.shape));
        let of_heads = found.heads.iter().filter_map(|(head, embedding)| {
            Some((head.as_str(), &self.base.get(embedding)?.shape))
        });
        let mut rows: Vec<(&str, usize)> = Vec::new();
        for (name, shape) in of_base.chain(of_heads).filter(|(name, _)| is_one(name)) {
            let shape = self.wholes.get(name).unwrap_or(shape);
            rows.extend(shape.first().map(|&n| (name, n)));
        }
        let adds = |(name, n): &&(&str, usize)| {
            self.wholes.contains_key(*name)
                && self.base.get(name).is_some_and(|info| info.shape[0] < *n)
        };
        let Some(&(changed, n_rows)) = rows.iter().find(adds) else {
            return Ok(());
        };
        match rows.iter().find(|(_, n)| *n != n_rows) {
            None => Ok(()),
            Some(&(other, n_others)) => Err(AdapterFault::Rows {
                path: self.path(),
                changed: changed.to_owned(),
                n_rows,
                other: other.to_owned(),
                n_others,
                place: self.place,
            }
            .into()),
        }
    }
}

/// Whether a whole tensor is the base's with rows for more tokens.
fn adds_rows(target: &str, whole: &[usize], base: &[usize]) -> bool {
    let (Some((n_rows, width)), Some((n_before, width_before))) =
        (whole.split_first(), base.split_first())
    else {
        return false;
    };
    let is_by_token = ties::is_embedding(target)
        || ties::is_head(target)
        || target.ends_with("shared.weight")
        || target.ends_with("lm_head.bias");
    is_by_token && width == width_before && n_rows > n_before
}

fn added(delta: Delta) -> Change {
    Change {
        added: Some(delta),
        ..Change::default()
    }
}
