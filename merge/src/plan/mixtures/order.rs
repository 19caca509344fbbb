//! Whether the experts that a plan combines by their numbers are the same ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::{Entry, TensorRef};
use super::Experts;
use super::aligned::on_threads;
use crate::mixtures::{Mixture, Order, order_of};
use crate::{Checkpoint, MergeFault, MergeRecipe, Result};

impl Experts {
    /// The mixtures that entries combine, each with the one that it is compared with, by source and name.
    pub(in crate::plan) fn checks(
        &self,
        recipe: &MergeRecipe,
        entries: &[&Entry],
    ) -> Vec<OrderCheck> {
        if recipe.align_experts.is_some() {
            return Vec::new();
        }
        let hosts: Vec<BTreeMap<String, &Mixture>> = (self.surveys.iter())
            .map(|mixtures| {
                let keys = mixtures
                    .values()
                    .flat_map(|own| own.keys().map(move |key| (key, own)));
                keys.collect()
            })
            .collect();
        let mixture = |tensor: &TensorRef| {
            let of = hosts.get(tensor.source)?.get(&tensor.key)?;
            Some((tensor.source, of.host.as_str()))
        };
        let mut pairs = BTreeSet::new();
        for entry in entries {
            let mut tensors = entry.action.tensors();
            let Some(first) = tensors.next().and_then(mixture) else {
                continue;
            };
            pairs.extend(
                tensors
                    .filter_map(mixture)
                    .filter(|of| *of != first)
                    .map(|of| (first, of)),
            );
        }
        let at =
            |(source, host): (usize, &str)| Some((source, self.surveys[source].get(host)?.clone()));
        let checks = pairs.into_iter().filter_map(|(one, other)| {
            Some(OrderCheck {
                one: at(one)?,
                other: at(other)?,
            })
        });
        checks.collect()
    }
}

/// Two mixtures whose experts are merged number by number: source and mixture of each.
pub(in crate::plan) struct OrderCheck {
    one: (usize, Mixture),
    other: (usize, Mixture),
}

/// Refuses experts that are plainly in another order.
pub(in crate::plan) fn check_order(
    checks: &[OrderCheck],
    sources: &[Arc<Checkpoint>],
) -> Result<()> {
    let found = on_threads(checks, rayon::current_num_threads(), |check| {
        let (one, other) = (&check.one, &check.other);
        order_of((&sources[one.0], &one.1), (&sources[other.0], &other.1))
    })?;
    for (check, order) in checks.iter().zip(found) {
        if let Order::Shuffled {
            n_moved,
            in_place,
            matched,
        } = order
        {
            let path = |(source, _): &(usize, Mixture)| sources[*source].path().to_path_buf();
            return Err(MergeFault::ShuffledExperts {
                mixture: check.other.1.host.clone(),
                path: path(&check.other),
                first: path(&check.one),
                n_moved,
                n_experts: check.other.1.n_experts,
                in_place,
                matched,
            }
            .into());
        }
    }
    Ok(())
}
