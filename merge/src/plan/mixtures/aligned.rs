//! A model brought into the order of another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::mixtures::{
    Arrangement, Arranger, By, ExpertName, Ffn, Matching, Mixture, Observed, Origin, Piece,
    Rearranged, Sequence, UnitMatching, ViewedTensor, match_experts, match_sequences, match_units,
};
use crate::permutations::{Activations, Network, match_activations, match_networks};
use crate::plan::grams;
use crate::{Checkpoint, Result};

/// The experts and units of the models that moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AlignmentReport {
    /// Mixtures whose experts were matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<Matching>,
    /// Networks whose hidden units were matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitMatching>,
}

impl AlignmentReport {
    fn of_units(units: Vec<UnitMatching>) -> Self {
        Self {
            units,
            ..Self::default()
        }
    }
}

/// The things that move.
pub(super) enum Move {
    /// Experts of mixtures, with those that they are matched with first.
    Experts {
        pairs: Vec<(Mixture, Mixture)>,
        /// Groups of experts that the routers of each pair pick among.
        n_groups: Vec<usize>,
        any_units: bool,
        /// The outputs of both on data, where that counts.
        observed: Option<[Observed; 2]>,
    },
    /// Hidden units of networks, likewise.
    Units { pairs: Vec<(Ffn, Ffn)> },
    /// Hidden units between layers that follow each other, likewise.
    Layers { own: Sequence, theirs: Sequence },
    /// Hidden units, heads and residual streams of a transformer, which both models have alike.
    Network {
        own: Network,
        /// The statistics of their activations, where those count.
        observed: Option<Observation>,
    },
}

impl Move {
    pub(super) fn keys(&self) -> BTreeSet<String> {
        match self {
            Self::Experts { pairs, .. } => pairs.iter().flat_map(|(_, own)| own.keys()).collect(),
            Self::Layers { theirs, .. } => theirs.keys().cloned().collect(),
            Self::Network { own, .. } => own.keys().cloned().collect(),
            Self::Units { pairs } => (pairs.iter())
                .flat_map(|(_, own)| own.strands.iter().map(|strand| strand.key.clone()))
                .collect(),
        }
    }
}

/// Activations of the model whose order counts, and of the one that is moved.
pub(super) struct Observation {
    pub own: Arc<Activations>,
    pub theirs: Arc<Activations>,
    /// Whether they must be of the very files that are merged.
    pub is_checked: bool,
}

/// A model whose experts, or units, stand as those of another.
pub(in crate::plan) struct Aligned {
    model: String,
    reference: Arc<Checkpoint>,
    source: Arc<Checkpoint>,
    moved: Move,
    /// The matching, once it was asked for.
    found: Mutex<Option<Arc<Found>>>,
}

#[derive(Default)]
struct Found {
    report: AlignmentReport,
    arrangements: BTreeMap<String, Arc<Arrangement>>,
}

impl Aligned {
    /// A model that is to stand as `reference` does.
    pub(super) fn new(
        model: &str,
        reference: &Arc<Checkpoint>,
        source: &Arc<Checkpoint>,
        moved: Move,
    ) -> Self {
        Self {
            model: model.to_owned(),
            reference: Arc::clone(reference),
            source: Arc::clone(source),
            moved,
            found: Mutex::default(),
        }
    }

    /// The model as it then stands.
    pub(super) fn view(self: &Arc<Self>) -> Arc<Checkpoint> {
        let keys = self.moved.keys();
        let viewed = self.source.tensors().map(|(name, info)| ViewedTensor {
            name: name.to_owned(),
            info: info.clone(),
            origin: match keys.contains(name) {
                true => Origin::Made(name.to_owned()),
                false => Origin::Same(name.to_owned()),
            },
        });
        let viewed = viewed.collect();
        let aliases = self.source.aliases().clone();
        let arranger = Box::new(Arc::clone(self));
        Rearranged::view(Arc::clone(&self.source), viewed, aliases, arranger)
    }

    /// The new places of experts or units.
    pub(in crate::plan) fn report(&self) -> Result<AlignmentReport> {
        Ok(self.found()?.report.clone())
    }

    fn found(&self) -> Result<Arc<Found>> {
        let mut known = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*known {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(match &self.moved {
            Move::Experts {
                pairs,
                n_groups,
                any_units,
                observed,
            } => {
                let by = match (observed, any_units) {
                    (Some([own, others]), _) => By::Outputs([own, others]),
                    (None, true) => By::WeightsOfAnyUnits,
                    (None, false) => By::Weights,
                };
                self.experts(pairs, n_groups, by)?
            }
            Move::Units { pairs } => self.units(pairs)?,
            Move::Layers { own, theirs } => self.layers(own, theirs)?,
            Move::Network { own, observed } => self.network(own, observed.as_ref())?,
        });
        *known = Some(Arc::clone(&found));
        Ok(found)
    }

    fn experts(
        &self,
        pairs: &[(Mixture, Mixture)],
        n_groups: &[usize],
        by: By<'_>,
    ) -> Result<Found> {
        let each: Vec<_> = pairs.iter().zip(n_groups).collect();
        let n_threads = rayon::current_num_threads();
        let matchings = on_threads(&each, n_threads, |((own, theirs), n_groups)| {
            match_experts(
                self.model.clone(),
                **n_groups,
                (&self.reference, own),
                (&self.source, theirs),
                by,
            )
        })?;
        let mut found = Found::default();
        for ((_, mixture), matching) in pairs.iter().zip(matchings) {
            if matching.n_moved() > 0 {
                self.arrange(mixture, &matching.experts, &mut found.arrangements)?;
            }
            found.report.experts.push(matching);
        }
        Ok(found)
    }

    /// The tensors of a mixture with its experts in another order.
    fn arrange(
        &self,
        mixture: &Mixture,
        experts: &[usize],
        arrangements: &mut BTreeMap<String, Arc<Arrangement>>,
    ) -> Result<()> {
        for tensor in &mixture.tensors {
            let width = tensor.info.shape.last().copied().unwrap_or(1).max(1);
            let n_rows = tensor.info.n_elements() / width;
            let piece = |&from: &usize| {
                let (key, first) = tensor.place(from);
                Piece::of(key, first, n_rows)
            };
            match &tensor.name {
                ExpertName::Single { .. } => {
                    for (to, from) in experts.iter().enumerate() {
                        let pieces = vec![piece(from)];
                        let (key, _) = tensor.place(to);
                        arrangements.insert(key, Arc::new(Arrangement { pieces }));
                    }
                }
                ExpertName::Fused(key) => {
                    let pieces = experts.iter().map(piece).collect();
                    arrangements.insert(key.clone(), Arc::new(Arrangement { pieces }));
                }
            }
        }
        let order: Arc<[u32]> = experts.iter().map(|&expert| expert as u32).collect();
        for tensor in &mixture.router {
            let info = self.source.require(&tensor.key)?;
            // Experts along the last axis are columns of a row of their own.
            let is_last = tensor.axis + 1 == info.shape.len();
            let width = info.shape.last().copied().unwrap_or(1).max(1);
            let rows = info.n_elements() / width;
            let mut piece = Piece::of(tensor.key.clone(), 0, rows);
            match is_last {
                true => piece.columns = Some(Arc::clone(&order)),
                false => {
                    let each = rows / mixture.n_experts.max(1);
                    let rows = experts
                        .iter()
                        .flat_map(|&expert| expert * each..(expert + 1) * each);
                    piece.rows = Some(rows.map(|row| row as u32).collect());
                }
            }
            let pieces = vec![piece];
            arrangements.insert(tensor.key.clone(), Arc::new(Arrangement { pieces }));
        }
        Ok(())
    }

    fn units(&self, pairs: &[(Ffn, Ffn)]) -> Result<Found> {
        let largest = pairs.iter().map(|(own, _)| own.n_units as u64).max();
        let bytes = largest.unwrap_or(0).pow(2).max(1) * size_of::<f32>() as u64;
        let n_threads = (MAX_UNIT_BYTES / bytes).clamp(1, rayon::current_num_threads() as u64);
        let orders = on_threads(pairs, n_threads as usize, |(own, theirs)| {
            match_units((&self.reference, own), (&self.source, theirs))
        })?;
        let mut found = Found::default();
        let mut pieces: BTreeMap<String, BTreeMap<usize, Piece>> = BTreeMap::new();
        for ((_, network), units) in pairs.iter().zip(orders) {
            let matching = self.matched(&network.name, network.n_units, &units);
            for strand in &network.strands {
                let order = (matching.n_moved > 0).then(|| strand.order(&units));
                let mut piece = Piece::of(strand.key.clone(), strand.first, strand.n_rows);
                match strand.along_columns {
                    true => piece.columns = order,
                    false => piece.rows = order,
                }
                let of = pieces.entry(strand.key.clone()).or_default();
                of.insert(strand.first, piece);
            }
            found.report.units.push(matching);
        }
        let arrangements = pieces.into_iter().map(|(key, pieces)| {
            let pieces = pieces.into_values().collect();
            (key, Arc::new(Arrangement { pieces }))
        });
        found.arrangements = arrangements.collect();
        Ok(found)
    }
}

impl Aligned {
    fn layers(&self, own: &Sequence, theirs: &Sequence) -> Result<Found> {
        let orders = match_sequences((&self.reference, own), (&self.source, theirs))?;
        let units = theirs
            .hidden()
            .zip(&orders)
            .map(|((name, n_units), order)| self.matched(name, n_units, order));
        Ok(Found {
            report: AlignmentReport::of_units(units.collect()),
            arrangements: theirs.arranged(&orders).into_iter().collect(),
        })
    }

    /// The report on a network whose units go by `order`: for each place, the unit that comes there.
    fn matched(&self, network: &str, n_units: usize, order: &[u32]) -> UnitMatching {
        let places = order.iter().enumerate();
        UnitMatching {
            model: self.model.clone(),
            network: network.to_owned(),
            n_units,
            n_moved: places.filter(|(to, from)| *to != **from as usize).count(),
        }
    }
}

impl Aligned {
    /// The activations by which the units of a network are matched.
    fn observed(&self) -> Option<&Observation> {
        match &self.moved {
            Move::Network { observed, .. } => observed.as_ref(),
            _ => None,
        }
    }

    /// The files of activations that are read.
    pub(in crate::plan) fn activations(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let both = self
            .observed()
            .into_iter()
            .flat_map(|of| [&of.own, &of.theirs]);
        both.flat_map(|of| of.stores().iter().map(|store| store.checkpoint()))
    }

    /// Whether activations are of the files that are merged, by the hashes of the whole plan's files.
    ///
    /// # Errors
    /// [`crate::MergeFault::ForeignGrams`].
    pub(in crate::plan) fn check_hashes(&self, known: &grams::Known<'_>) -> Result<()> {
        let Some(of) = self.observed().filter(|of| of.is_checked) else {
            return Ok(());
        };
        let both = [(&of.own, &self.reference), (&of.theirs, &self.source)];
        both.into_iter().try_for_each(|(of, model)| {
            let mut stores = of.stores().iter();
            stores.try_for_each(|store| grams::check_activation_hashes(store, model, known))
        })
    }

    fn network(&self, own: &Network, observed: Option<&Observation>) -> Result<Found> {
        let orders = match observed {
            Some(of) => match_activations(own, &of.own, &of.theirs)?,
            None => match_networks(own, &self.reference, &self.source)?,
        };
        let groups = own.groups().iter().zip(&orders);
        let units = groups.map(|(group, order)| self.matched(&group.name, group.n, order));
        Ok(Found {
            report: AlignmentReport::of_units(units.collect()),
            arrangements: own.arranged(&orders).into_iter().collect(),
        })
    }
}

/// Most bytes of inner products between units that are held at once.
const MAX_UNIT_BYTES: u64 = 1 << 30;

impl Arranger for Arc<Aligned> {
    fn arrangement(&self, name: &str) -> Result<Option<Arc<Arrangement>>> {
        Ok(self.found()?.arrangements.get(name).map(Arc::clone))
    }
}

/// Asks for each item, on threads of their own: a thread of a pool may wait for the results of this one.
pub(super) fn on_threads<I: Sync, T: Send>(
    items: &[I],
    n_threads: usize,
    each: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return done;
            };
            done.push((index, each(item)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let n_threads = n_threads.clamp(1, items.len().max(1));
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().flat_map(|thread| {
            // A panic of a thread is a bug and goes on as one.
            let done = thread.join();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.collect::<Vec<_>>()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

impl AlignmentReport {
    pub(in crate::plan) fn of(aligned: &[Arc<Aligned>]) -> Result<Option<Self>> {
        if aligned.is_empty() {
            return Ok(None);
        }
        let mut report = Self::default();
        for aligned in aligned {
            let own = aligned.report()?;
            report.experts.extend(own.experts);
            report.units.extend(own.units);
        }
        Ok(Some(report))
    }
}
