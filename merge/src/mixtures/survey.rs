//! Finding the mixtures of a checkpoint.

use std::collections::BTreeMap;

use super::keys::{fused, host, router_hosts, single};
use super::{ExpertName, ExpertTensor, Mixture, RouterTensor};
use crate::{Checkpoint, MergeFault, Result, TensorInfo};

/// The mixtures of a checkpoint, by the name that their tensors begin with.
pub type Mixtures = BTreeMap<String, Mixture>;

/// Tensors of experts one by one: by the name behind the number, by number.
type Singles<'a> = BTreeMap<(&'a str, &'a str), BTreeMap<usize, &'a TensorInfo>>;

/// The tensors under one name.
#[derive(Default)]
struct Found<'a> {
    single: Singles<'a>,
    fused: Vec<(&'a str, &'a TensorInfo)>,
}

/// Tensors that may be a router's, by the name of the mixture.
type Routers<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a TensorInfo)>>;

/// The most experts of a mixture: those of Switch-C. The numbers computed of pairs of them stay small.
pub(crate) const MAX_EXPERTS: usize = 2048;

/// The longest name that is looked at.
const MAX_NAME_BYTES: usize = 4096;

/// Everything that names call a mixture.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// Mixtures whose experts are alike, with a row of the router for each.
    pub mixtures: Mixtures,
    /// The faults of others, as clauses, by the name that their tensors begin with.
    pub broken: BTreeMap<String, String>,
}

/// Finds every mixture of experts by names and shapes. A checkpoint without any has none.
///
/// # Errors
/// [`MergeFault::BrokenMixture`] where experts are missing or differ from each other, or the router has rows for
/// another number of experts.
pub fn survey(checkpoint: &Checkpoint) -> Result<Mixtures> {
    let found = Survey::of(checkpoint);
    found.require_whole(checkpoint)?;
    Ok(found.mixtures)
}

impl Survey {
    /// Refuses a checkpoint with a broken mixture.
    ///
    /// # Errors
    /// [`MergeFault::BrokenMixture`].
    pub(crate) fn require_whole(&self, checkpoint: &Checkpoint) -> Result<()> {
        let first = self.broken.keys().next();
        first.map_or(Ok(()), |host| Err(self.fault(host, checkpoint).into()))
    }

    /// The fault of a mixture.
    pub(crate) fn fault(&self, host: &str, checkpoint: &Checkpoint) -> MergeFault {
        MergeFault::BrokenMixture {
            path: checkpoint.path().into(),
            host: host.to_owned(),
            reason: self.broken.get(host).cloned().unwrap_or_default(),
        }
    }

    /// Finds every mixture, and tensors that only look like one by their names.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let mut found: BTreeMap<&str, Found<'_>> = BTreeMap::new();
        let mut routers = Routers::new();
        // Longer names are no model's, and not worth taking apart.
        let tensors = checkpoint.tensors();
        for (key, info) in tensors.filter(|(key, _)| key.len() <= MAX_NAME_BYTES) {
            for host in router_hosts(key) {
                routers.entry(host).or_default().push((key, info));
            }
            if let Some((before, expert, after)) = single(key) {
                let of = found.entry(host(before)).or_default();
                let tensors = of.single.entry((before, after)).or_default();
                tensors.insert(expert, info);
            } else if let Some((host, part)) = fused(key)
                && (info.shape.len() == 3 || (part.ends_with("bias") && info.shape.len() == 2))
            {
                found.entry(host).or_default().fused.push((key, info));
            }
        }
        let mut survey = Self::default();
        for (host, found) in found {
            let tensors = routers.get(host).map_or(&[][..], Vec::as_slice);
            match mixture(host, &found, tensors) {
                Ok(mixture) => {
                    survey.mixtures.insert(host.to_owned(), mixture);
                }
                Err(reason) => {
                    survey.broken.insert(host.to_owned(), reason);
                }
            }
        }
        survey
    }
}

/// A mixture out of the tensors of its experts and those that may be its router's.
fn mixture(
    host: &str,
    found: &Found<'_>,
    routers: &[(&str, &TensorInfo)],
) -> std::result::Result<Mixture, String> {
    let mut mixture = match (found.single.is_empty(), found.fused.as_slice()) {
        (false, []) => of_singles(host, &found.single)?,
        (true, fused) => of_fused(host, fused)?,
        (false, [(key, _), ..]) => {
            return Err(format!("has experts one by one and all of them in `{key}`"));
        }
    };
    if mixture.n_experts > MAX_EXPERTS {
        let n = mixture.n_experts;
        return Err(format!(
            "has {n} experts, more than {MAX_EXPERTS}, the most there are"
        ));
    }
    mixture.router = router(mixture.n_experts, routers)?;
    Ok(mixture)
}

/// Experts that each have their tensors.
fn of_singles(host: &str, found: &Singles<'_>) -> std::result::Result<Mixture, String> {
    let last = found.values().filter_map(|of| of.keys().next_back()).max();
    let n_experts = last.map_or(0, |last| last + 1);
    let mut tensors = Vec::with_capacity(found.len());
    for ((before, after), of) in found {
        let missing = (0..n_experts).find(|expert| !of.contains_key(expert));
        if let Some(expert) = missing {
            return Err(format!(
                "has {n_experts} experts, and `{before}{expert}{after}` is missing"
            ));
        }
        let Some(first) = of.get(&0) else {
            continue;
        };
        if let Some((expert, info)) = of.iter().find(|(_, info)| *info != first) {
            return Err(format!(
                "has experts that differ: `{before}{expert}{after}` is {} {:?}, and that of expert 0 {} {:?}",
                info.dtype, info.shape, first.dtype, first.shape
            ));
        }
        tensors.push(ExpertTensor {
            name: ExpertName::Single {
                before: (*before).to_owned(),
                after: (*after).to_owned(),
            },
            info: (*first).clone(),
        });
    }
    Ok(Mixture {
        host: host.to_owned(),
        n_experts,
        tensors,
        router: Vec::new(),
    })
}

/// Experts that are together in each tensor.
fn of_fused(host: &str, found: &[(&str, &TensorInfo)]) -> std::result::Result<Mixture, String> {
    let mut tensors: Vec<ExpertTensor> = Vec::with_capacity(found.len());
    let mut n_experts = 0;
    for (index, (key, info)) in found.iter().enumerate() {
        let (n, shape) = info.shape.split_first().unwrap_or((&0, &[]));
        if index > 0 && *n != n_experts {
            return Err(format!(
                "has {n_experts} experts in `{}` and {n} in `{key}`",
                found[0].0
            ));
        }
        n_experts = *n;
        tensors.push(ExpertTensor {
            name: ExpertName::Fused((*key).to_owned()),
            info: TensorInfo {
                dtype: info.dtype,
                shape: shape.to_vec(),
            },
        });
    }
    Ok(Mixture {
        host: host.to_owned(),
        n_experts,
        tensors,
        router: Vec::new(),
    })
}

/// The tensors beside `n` experts that have an entry for each.
fn router(
    n: usize,
    tensors: &[(&str, &TensorInfo)],
) -> std::result::Result<Vec<RouterTensor>, String> {
    let (mut router, mut misfit) = (Vec::new(), None);
    let mut has_weight = false;
    for &(key, info) in tensors {
        let axis = match info.shape.as_slice() {
            [first, ..] if *first == n => 0,
            [1, second] if *second == n => 1,
            [first, _] => {
                misfit.get_or_insert((key, *first));
                continue;
            }
            _ => continue,
        };
        has_weight |= info.shape.len() == 2 && axis == 0;
        router.push(RouterTensor {
            key: key.to_owned(),
            axis,
        });
    }
    match misfit {
        Some((key, rows)) if !has_weight => Err(format!(
            "has {n} experts, and its router `{key}` has rows for {rows}"
        )),
        _ => Ok(router),
    }
}
