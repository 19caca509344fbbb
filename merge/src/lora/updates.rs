//! The update that an adapter adds to a weight: `s B A`, or one of its relatives.
//!
//! | update | `ΔW` |
//! |---|---|
//! | LoRA | `s B A` |
//! | LoRA of fused experts | `s B_e A_e` for each expert; A has the experts' rows one after the other, B each rank's columns |
//! | LoHa | `s (w1a w1b) ⊙ (w2a w2b)` |
//! | LoKr | `s w1 ⊗ w2` |
//!
//! References: PEFT's `ParamWrapper.get_delta_weight`, and its `loha` and `lokr` layers; LyCORIS; Hyeon-Woo et al.
//! 2021, <https://arxiv.org/abs/2108.06098>; Yeh et al. 2023, <https://arxiv.org/abs/2309.14859>.

use super::adapted::Number;
use super::factors::{Factors, Named, Pair, values};
use crate::{Checkpoint, Result, TensorInfo};

/// The tensors of an update, without their data.
#[derive(Clone, Debug)]
pub(super) enum Delta {
    /// A product.
    Product(Pair),
    /// A product for each of several experts.
    Experts(Experts),
    /// A product element by element of two products.
    Hadamard(Hadamard),
    /// A Kronecker product.
    Kronecker(Kronecker),
    /// The difference itself.
    Whole(Named, f64),
}

/// `A` of `(experts · rank, in)` and `B` of `(out, rank · experts)`.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    pub(super) a: Named,
    pub(super) b: Named,
    pub(super) n_experts: usize,
    pub(super) scale: f64,
    /// Whether the weight is `(experts, out, in)`, not `(experts, in, out)`.
    pub(super) has_outputs_first: bool,
}

/// Two pairs, each of `a` and `b`; with a core where the weight is a kernel.
#[derive(Clone, Debug)]
pub(super) struct Hadamard {
    pub(super) pairs: [(Named, Named, Option<Named>); 2],
    pub(super) scale: f64,
}

/// The two sides, each whole or as a product; the second with a core where the weight is a kernel.
#[derive(Clone, Debug)]
pub(super) struct Kronecker {
    pub(super) first: Side,
    pub(super) second: Side,
    pub(super) scale: f64,
}

/// A side of a Kronecker product.
#[derive(Clone, Debug)]
pub(super) enum Side {
    Whole(Named),
    Product(Named, Named),
    Core { core: Named, a: Named, b: Named },
}

impl Side {
    /// Its sizes.
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Whole((_, info)) => info.shape.clone(),
            Self::Product((_, a), (_, b)) => {
                let mut shape = vec![a.shape.first().copied().unwrap_or(0)];
                shape.extend(b.shape.iter().skip(1));
                shape
            }
            Self::Core { core, a, b } => {
                let width = |info: &TensorInfo| info.shape.get(1).copied().unwrap_or(0);
                let mut shape = vec![width(&a.1), width(&b.1)];
                shape.extend(core.1.shape.iter().skip(2));
                shape
            }
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Whole((_, info)) => info.shape.len() >= 2,
            Self::Product((_, a), (_, b)) => {
                a.shape.len() == 2 && b.shape.len() >= 2 && a.shape.get(1) == b.shape.first()
            }
            Self::Core { core, a, b } => is_core(core, a, b),
        }
    }

    fn read(&self, adapter: &Checkpoint) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Whole(whole) => values(adapter, whole)?,
            Self::Product(a, b) => product(adapter, a, b, 1.0)?.product(),
            Self::Core { core, a, b } => through_core(adapter, core, a, b, 1.0)?.product(),
        })
    }
}

fn is_core(core: &Named, a: &Named, b: &Named) -> bool {
    let (&[r, s, ..], &[p, _], &[q, _]) = (
        core.1.shape.as_slice(),
        a.1.shape.as_slice(),
        b.1.shape.as_slice(),
    ) else {
        return false;
    };
    r == p && s == q
}

/// `a` of `(rows, rank)` times `b` of `(rank, …)`.
fn product(adapter: &Checkpoint, a: &Named, b: &Named, scale: f64) -> Result<Factors> {
    let rank = b.1.shape.first().copied().unwrap_or(1);
    Ok(Factors::new(
        rank,
        values(adapter, a)?,
        values(adapter, b)?,
        scale,
    ))
}

/// A kernel `(out, in, …)` from a core `(r, s, …)`, `a` of `(r, out)` and `b` of `(s, in)`.
fn through_core(
    adapter: &Checkpoint,
    core: &Named,
    a: &Named,
    b: &Named,
    scale: f64,
) -> Result<Factors> {
    let (n_outer, n_inner) = (a.1.shape[0], b.1.shape[0]);
    let (n_out, n_in) = (a.1.shape[1], b.1.shape[1]);
    let n_places = core.1.n_elements() / (n_outer * n_inner).max(1);
    let (core, a, b) = (
        values(adapter, core)?,
        values(adapter, a)?,
        values(adapter, b)?,
    );
    let mut right = vec![0.0; n_outer * n_in * n_places];
    for outer in 0..n_outer {
        for inner in 0..n_inner {
            let places = &core[(outer * n_inner + inner) * n_places..][..n_places];
            for input in 0..n_in {
                let line = &mut right[(outer * n_in + input) * n_places..][..n_places];
                let factor = b[inner * n_in + input];
                for (out, place) in line.iter_mut().zip(places) {
                    *out += factor * place;
                }
            }
        }
    }
    let left = (0..n_out).flat_map(|out| (0..n_outer).map(move |outer| (outer, out)));
    let left = left.map(|(outer, out)| a[outer * n_out + out]).collect();
    Ok(Factors::new(n_outer, left, right, scale))
}

impl Delta {
    /// Whether it adds nothing, for a factor of it is 0 everywhere.
    pub(super) fn is_zero(&self, adapter: &Checkpoint) -> Result<bool> {
        let is_null = |named: &Named| -> Result<bool> {
            Ok(values(adapter, named)?.iter().all(|&value| value == 0.0))
        };
        // The second factor begins at 0, so that it is the likely one.
        let either = |a: &Named, b: &Named| Ok::<_, crate::Error>(is_null(b)? || is_null(a)?);
        Ok(match self {
            Self::Product(pair) => {
                pair.scale == 0.0
                    || match &pair.b {
                        Some(b) => either(&pair.a, b)?,
                        None => is_null(&pair.a)?,
                    }
            }
            Self::Experts(of) => of.scale == 0.0 || either(&of.a, &of.b)?,
            Self::Hadamard(of) => {
                let [(a1, b1, _), (a2, b2, _)] = &of.pairs;
                of.scale == 0.0 || either(a1, b1)? || either(a2, b2)?
            }
            Self::Kronecker(of) => {
                let is_null = |side: &Side| -> Result<bool> {
                    Ok(side.read(adapter)?.iter().all(|&value| value == 0.0))
                };
                of.scale == 0.0 || is_null(&of.first)? || is_null(&of.second)?
            }
            Self::Whole(named, scale) => *scale == 0.0 || is_null(named)?,
        })
    }

    /// Whether it has the shape of the tensor, kernels of convolutions flattened.
    pub(super) fn fits(&self, shape: &[usize]) -> bool {
        let n_elements: usize = shape.iter().product();
        match self {
            Self::Product(pair) => pair.fits(shape),
            Self::Experts(experts) => {
                let (Some(&inner), Some(&outer)) =
                    (experts.a.1.shape.get(1), experts.b.1.shape.first())
                else {
                    return false;
                };
                match experts.has_outputs_first {
                    true => shape == [experts.n_experts, outer, inner],
                    false => shape == [experts.n_experts, inner, outer],
                }
            }
            Self::Hadamard(hadamard) => hadamard.pairs.iter().all(|(a, b, core)| {
                let (&[p, q], &[r, _]) = (a.1.shape.as_slice(), b.1.shape.as_slice()) else {
                    return false;
                };
                match core {
                    Some(core) => {
                        let n_places: usize = core.1.shape.iter().skip(2).product();
                        is_core(core, a, b)
                            && shape.first() == Some(&q)
                            && q * b.1.shape[1] * n_places == n_elements
                    }
                    None => q == r && shape.first() == Some(&p) && p * b.1.shape[1] == n_elements,
                }
            }),
            Self::Kronecker(kronecker) => {
                let (first, second) = (kronecker.first.shape(), kronecker.second.shape());
                let is_sound = kronecker.first.is_sound() && kronecker.second.is_sound();
                let (&[a, b], [c, ..]) = (first.as_slice(), second.as_slice()) else {
                    return false;
                };
                let n_second: usize = second.iter().product();
                is_sound && shape.first() == Some(&(a * c)) && a * b * n_second == n_elements
            }
            Self::Whole((_, info), _) => info.n_elements() == n_elements,
        }
    }

    /// Its shapes, for messages.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Product(pair) => pair.in_words(),
            Self::Experts(Experts {
                a, b, n_experts, ..
            }) => format!(
                "A {:?} and B {:?} of {n_experts} experts",
                a.1.shape, b.1.shape
            ),
            Self::Hadamard(hadamard) => {
                let [(a, b, _), _] = &hadamard.pairs;
                format!("LoHa of {:?} and {:?}", a.1.shape, b.1.shape)
            }
            Self::Kronecker(kronecker) => format!(
                "LoKr of {:?} and {:?}",
                kronecker.first.shape(),
                kronecker.second.shape()
            ),
            Self::Whole((_, info), _) => format!("{} {:?}", info.dtype, info.shape),
        }
    }

    /// Bytes of it once it is read.
    pub(super) fn n_bytes(&self) -> u64 {
        let of = |named: &Named| 4 * named.1.n_elements() as u64;
        let side = |side: &Side| 4 * side.shape().iter().product::<usize>() as u64;
        match self {
            Self::Product(pair) => pair.n_bytes(),
            Self::Experts(experts) => of(&experts.a) + of(&experts.b),
            Self::Hadamard(hadamard) => {
                let pairs = hadamard.pairs.iter();
                pairs
                    .map(|(a, b, core)| of(a) + of(b) + core.as_ref().map_or(0, of))
                    .sum()
            }
            Self::Kronecker(kronecker) => side(&kronecker.first) + side(&kronecker.second),
            Self::Whole(whole, _) => of(whole),
        }
    }

    /// Reads it.
    pub(super) fn read(&self, adapter: &Checkpoint) -> Result<Update> {
        Ok(match self {
            Self::Product(pair) => Update::Product(pair.read(adapter)?),
            Self::Experts(experts) => Update::Experts(experts.read(adapter)?),
            Self::Hadamard(hadamard) => {
                let read = |(a, b, core): &(Named, Named, Option<Named>), scale| match core {
                    Some(core) => through_core(adapter, core, a, b, scale),
                    None => product(adapter, a, b, scale),
                };
                let [first, second] = &hadamard.pairs;
                Update::Hadamard(read(first, hadamard.scale)?, read(second, 1.0)?)
            }
            Self::Kronecker(kronecker) => {
                let (first, second) = (&kronecker.first, &kronecker.second);
                let shapes = (first.shape(), second.shape());
                Update::Kronecker {
                    across: shapes.0.get(1).copied().unwrap_or(1),
                    down: shapes.1.first().copied().unwrap_or(1),
                    width: shapes.1.iter().skip(1).product(),
                    first: first.read(adapter)?,
                    second: second.read(adapter)?,
                    scale: kronecker.scale as f32,
                }
            }
            Self::Whole(whole, scale) => Update::Whole(values(adapter, whole)?, *scale as f32),
        })
    }
}

impl Experts {
    fn read(&self, adapter: &Checkpoint) -> Result<Vec<Factors>> {
        let (a, b) = (values(adapter, &self.a)?, values(adapter, &self.b)?);
        let (inner, outer) = (self.a.1.shape[1], self.b.1.shape[0]);
        let columns = self.b.1.shape[1];
        let rank = columns / self.n_experts.max(1);
        let experts = (0..self.n_experts).map(|expert| {
            let down = &a[expert * rank * inner..(expert + 1) * rank * inner];
            let up = |out: usize, r: usize| b[out * columns + r * self.n_experts + expert];
            let (left, right) = match self.has_outputs_first {
                true => {
                    let places = (0..outer).flat_map(|out| (0..rank).map(move |r| (out, r)));
                    (places.map(|(out, r)| up(out, r)).collect(), down.to_vec())
                }
                false => {
                    let places = (0..inner).flat_map(|input| (0..rank).map(move |r| (input, r)));
                    let left = places.map(|(input, r)| down[r * inner + input]).collect();
                    let places = (0..rank).flat_map(|r| (0..outer).map(move |out| (out, r)));
                    (left, places.map(|(out, r)| up(out, r)).collect())
                }
            };
            Factors::new(rank, left, right, self.scale)
        });
        Ok(experts.collect())
    }
}

/// An update that can be written element by element.
#[derive(Debug)]
pub(super) enum Update {
    Product(Factors),
    Experts(Vec<Factors>),
    Hadamard(Factors, Factors),
    Kronecker {
        first: Vec<f32>,
        second: Vec<f32>,
        /// Columns of the first.
        across: usize,
        /// Rows of the second, and elements of one.
        down: usize,
        width: usize,
        scale: f32,
    },
    Whole(Vec<f32>, f32),
}

impl Update {
    /// Writes elements `first..` to `out`, which holds zeros.
    pub(super) fn fill<T: Number>(&self, first: usize, out: &mut [T]) {
        match self {
            Self::Product(factors) => factors.fill(first, out),
            Self::Experts(experts) => {
                let per_expert = experts.first().map_or(1, Factors::n_elements).max(1);
                let (mut at, mut rest) = (first, out);
                while !rest.is_empty() {
                    let expert = at / per_expert;
                    let n = ((expert + 1) * per_expert - at).min(rest.len());
                    let (part, after) = rest.split_at_mut(n);
                    experts[expert].fill(at % per_expert, part);
                    at += n;
                    rest = after;
                }
            }
            Self::Hadamard(one, other) => {
                let mut factor = vec![T::default(); out.len()];
                one.fill(first, out);
                other.fill(first, &mut factor);
                for (out, factor) in out.iter_mut().zip(factor) {
                    *out = *out * factor;
                }
            }
            Self::Kronecker {
                first: left,
                second,
                across,
                down,
                width,
                scale,
            } => {
                let row_width = across * width;
                for (index, out) in out.iter_mut().enumerate() {
                    let (row, column) = ((first + index) / row_width, (first + index) % row_width);
                    let left = left[row / down * across + column / width];
                    let right = second[row % down * width + column % width];
                    *out = T::from(left) * T::from(right) * T::from(*scale);
                }
            }
            Self::Whole(values, scale) => {
                for (out, &value) in out.iter_mut().zip(&values[first..]) {
                    *out = T::from(value) * T::from(*scale);
                }
            }
        }
    }
}
