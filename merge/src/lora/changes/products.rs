//! Updates of several tensors: products and their relatives.

use std::collections::BTreeSet;

use super::{Change, Reader, added};
use crate::lora::factors::{Named, Pair, values};
use crate::lora::updates::{Delta, Experts, Hadamard, Kronecker, Side};
use crate::{AdapterFault, Result};

impl Reader<'_> {
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
        let alpha = values(self.adapter, &(alpha, info.clone()))?;
        Ok(alpha.first().copied().map(f64::from))
    }

    /// `A` and `B` of a module.
    fn factors(&self, first: &str, second: &str) -> Result<(Named, Named)> {
        match self.adapter.get(second) {
            Some(b) => Ok((self.named(first)?, (second.to_owned(), b.clone()))),
            None => Err(self.half(first, second.to_owned())),
        }
    }

    /// The product of `A` and `B` of a module, and the tensor that it is added to.
    pub(super) fn product(
        &self,
        first: &str,
        module: &str,
        second: &str,
        is_embedding: bool,
    ) -> Result<(String, Change)> {
        let (a, b) = self.factors(first, second)?;
        let target = self.target(module, "weight");
        let shape = self.shape_of(&target)?;
        let is_transposed = match (a.1.shape.as_slice(), b.1.shape.as_slice()) {
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
        let found = a.1.shape.first().copied().unwrap_or(1);
        let rank = self.config.rank(module, found);
        let delta = Delta::Product(Pair {
            a,
            b: Some(b),
            rank,
            scale: self.config.scale(module, found, self.alpha(first)?),
            is_transposed,
        });
        self.fit(first, &target, Some(&delta))?;
        Ok((target, added(delta)))
    }

    /// The parameters of a module that the adapter changes without modules of their own.
    pub(super) fn expert_parameters(&self, module: &str) -> Vec<String> {
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
    pub(super) fn experts(
        &self,
        first: &str,
        module: &str,
        second: &str,
        parameters: &[String],
    ) -> Result<(String, Change)> {
        let (a, b) = self.factors(first, second)?;
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
                let found = format!("A {:?} and B {:?}", a.1.shape, b.1.shape);
                Err(self.misfit(first, found, target, info.clone()))
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

    pub(super) fn hadamard(
        &self,
        key: &str,
        module: &str,
        name: &str,
    ) -> Result<Option<(String, Change)>> {
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

    pub(super) fn kronecker(
        &self,
        key: &str,
        module: &str,
        name: &str,
    ) -> Result<Option<(String, Change)>> {
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
}
