use std::sync::Arc;

use crate::methods::{
    Base, Chunk, Elementwise, GroupShape, MergeMethod, Needs, Operation, Real, Value, reals,
};
use crate::recipe::Parameters;
use crate::{Error, Expert, Result};

/// ## What it does
/// Averages experts by share: `W = Σ rₑ Wₑ`, `Σ rₑ = 1`.
///
/// With `ratio` r, vision and language get r and 1 − r. Where a vision-language expert takes part
/// as well, the three get ⅔·r, ⅔·(1 − r) and ⅓, as in the published program. A lone expert is kept
/// as it is. Any other set of experts needs `weights`.
/// ## Why
/// One number says how much each modality counts, and the merge needs no data.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `ratio` | 0.5 | `[0, 1]` | share of vision against language |
/// | `weights` | none | `≥ 0` | weight of each expert, instead of `ratio`; a share is a weight over the sum of the weights in the group |
/// ## As published
/// The same formula; f16 and bf16 are rounded after each product and sum instead of once.
/// ## References
/// Sung et al. 2023, "An Empirical Study of Multimodal Model Merging",
/// <https://arxiv.org/abs/2304.14933>, interpolation.
/// # Errors
/// [`Error::NoShare`] for a set of experts that `ratio` says nothing about, or whose `weights` are
/// missing or sum to zero.
#[derive(Clone, Debug)]
pub struct Interpolate {
    /// Share of vision against language.
    pub ratio: f64,
    /// Weight of each expert, instead of the ratio.
    pub weights: Option<Vec<(Expert, f64)>>,
}

impl Interpolate {
    /// Reads `ratio` or `weights`.
    ///
    /// # Errors
    /// When a parameter is unknown or out of range, or both are given.
    pub fn from_parameters(parameters: &Parameters) -> Result<Self> {
        parameters.allow_only("interpolate", &["ratio", "weights"])?;
        let weights = parameters.weights("weights")?;
        if weights.is_some() && parameters.0.contains_key("ratio") {
            return Err(Error::MethodHasNoUse {
                method: "interpolate with `weights`",
                what: "`ratio`",
            });
        }
        let is_share = |ratio| (0.0..=1.0).contains(&ratio);
        let ratio = parameters.number("ratio", 0.5, "a number from 0 to 1", is_share)?;
        Ok(Self { ratio, weights })
    }

    /// The share of each expert, unless the parameters say nothing about this set of them.
    fn shares(&self, experts: &[Expert]) -> Option<Vec<f64>> {
        match &self.weights {
            None => shares_of_ratio(self.ratio, experts),
            Some(weights) => shares_of_weights(weights, experts),
        }
    }
}

impl MergeMethod for Interpolate {
    fn name(&self) -> &'static str {
        "interpolate"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::None, 1, usize::MAX)
    }

    fn is_for_experts(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if group.experts.len() == 1 {
            return Ok(Operation::Take(0));
        }
        let shares = self.shares(group.experts).ok_or_else(|| Error::NoShare {
            slot: group.slot.key.clone(),
            experts: group.experts.to_vec(),
        })?;
        Ok(Operation::Elementwise(Arc::new(Shares(shares))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let shares = self.shares(group.experts).unwrap_or_default();
        let terms: Vec<String> = (shares.iter().zip(group.experts))
            .map(|(share, expert)| format!("{share:.4} {expert}"))
            .collect();
        terms.join(" + ")
    }
}

fn shares_of_ratio(ratio: f64, experts: &[Expert]) -> Option<Vec<f64>> {
    match experts {
        [_] => Some(vec![1.0]),
        [Expert::Vision, Expert::Language] => Some(vec![ratio, 1.0 - ratio]),
        [Expert::Vision, Expert::Language, Expert::VisionLanguage] => Some(vec![
            2.0 / 3.0 * ratio,
            2.0 / 3.0 * (1.0 - ratio),
            1.0 / 3.0,
        ]),
        _ => None,
    }
}

fn shares_of_weights(weights: &[(Expert, f64)], experts: &[Expert]) -> Option<Vec<f64>> {
    let weight_of = |expert: &Expert| {
        let found = weights.iter().find(|(candidate, _)| candidate == expert);
        found.map(|&(_, weight)| weight)
    };
    let chosen: Vec<f64> = experts.iter().map(weight_of).collect::<Option<_>>()?;
    let sum: f64 = chosen.iter().sum();
    (sum > 0.0).then(|| chosen.iter().map(|weight| weight / sum).collect())
}

/// `out = Σ shareₖ · memberₖ`, in the order of the members.
pub(super) struct Shares(pub(super) Vec<f64>);

impl Elementwise for Shares {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let shares: Vec<T> = self.0.iter().map(|&share| T::from_f64(share)).collect();
        // Two and three members, the usual cases, go through memory once.
        match (chunk.members, shares.as_slice()) {
            (&[a, b], &[p, q]) => {
                for ((out, a), b) in out.iter_mut().zip(reals(a)).zip(reals(b)) {
                    *out = step(step(p * a) + step(q * b));
                }
            }
            (&[a, b, c], &[p, q, r]) => {
                let inputs = reals(a).zip(reals(b)).zip(reals(c));
                for (out, ((a, b), c)) in out.iter_mut().zip(inputs) {
                    *out = step(step(step(p * a) + step(q * b)) + step(r * c));
                }
            }
            (members, shares) => {
                out.fill(T::from_f64(0.0));
                for (member, &share) in members.iter().zip(shares) {
                    for (out, value) in out.iter_mut().zip(reals(member)) {
                        *out = step(*out + step(share * value));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::ElementKernel;
    use crate::methods::StepRounding;

    #[test]
    fn three_experts_share_two_thirds_and_a_third() {
        // spec: v = 2, l = 4, vl = 8 at ratio 0.25 give 5.
        let shares = shares_of_ratio(
            0.25,
            &[Expert::Vision, Expert::Language, Expert::VisionLanguage],
        );
        let kernel = Shares(shares.expect("known set"));
        let mut out = [0.0f64];
        let chunk = Chunk {
            members: &[&[2.0], &[4.0], &[8.0]],
            base: None,
            paired: &[],
            first: 0,
        };
        kernel
            .combine_f64(&chunk, StepRounding::None, &mut out)
            .expect("it cannot fail");
        assert!((out[0] - 5.0).abs() < 1e-12);
    }

    #[test]
    fn weights_are_relative_within_the_group() {
        let weights = [(Expert::Vision, 1.0), (Expert::VisionLanguage, 3.0)];
        assert_eq!(
            shares_of_weights(&weights, &[Expert::Vision, Expert::VisionLanguage]),
            Some(vec![0.25, 0.75])
        );
        assert_eq!(shares_of_weights(&weights, &[Expert::Language]), None);
    }

    #[test]
    fn weights_whose_sum_is_no_number_are_refused() {
        // All shares would be 0.
        for (weight, is_fine) in [(1e308, false), (8e307, true)] {
            let weights = [Expert::Vision, Expert::Language].map(|expert| (expert, weight));
            let mut parameters = Parameters::default();
            parameters.set(
                "weights",
                crate::recipe::Parameter::PerExpert(weights.into()),
            );
            let found = Interpolate::from_parameters(&parameters);
            assert_eq!(found.is_ok(), is_fine, "{weight}");
        }
    }

    #[test]
    fn many_members_are_summed_like_few() {
        let members: [&[f32]; 4] = [&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0], &[7.0, 9.0]];
        let chunk = Chunk {
            members: &members,
            base: None,
            paired: &[],
            first: 0,
        };
        let mut out = [0.0f32; 2];
        Shares(vec![0.25; 4])
            .combine_f32(&chunk, StepRounding::None, &mut out)
            .expect("it cannot fail");
        assert_eq!(out, [4.0, 5.25]);
    }
}
