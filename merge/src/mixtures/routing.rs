//! The routing of tokens to experts, as `vlmerge gram` records it.

use ndarray::Array2;

use crate::gram::GramStore;
use crate::layouts;
use crate::{Checkpoint, MergeFault, Result, Role};

use super::Mixture;

/// The routing of tokens to the experts of a mixture. A gram file has the products of rows, one for each token: 1, then
/// 1 for each expert that the token goes to, then for each of those its weight times the length of its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Tokens.
    pub n_tokens: f64,
    /// Tokens that went to each expert.
    pub counts: Vec<f64>,
    /// Of each expert the mean, over the tokens that went to it, of its weight times the length of its answer: what
    /// pruning would take away (REAP, <https://arxiv.org/abs/2510.13999>, §4). 0 for an expert without tokens.
    pub saliency: Vec<f64>,
    /// The likeness of two experts' scores over all tokens: the cosine of the router's outputs (M-SMoE,
    /// <https://arxiv.org/abs/2310.01334>, §3.1). `None` where the router's inputs are not in the file.
    pub alike: Option<Array2<f64>>,
}

impl Routing {
    /// Reads what a gram file says of a mixture of a model.
    ///
    /// # Errors
    /// [`MergeFault::NoRouting`] where the file says nothing of it or it has no router, and when the file cannot be
    /// read.
    pub fn read(store: &GramStore, model: &Checkpoint, mixture: &Mixture) -> Result<Self> {
        let layout = layouts::detect(model)?;
        let missing = |reason: String| MergeFault::NoRouting {
            path: store.checkpoint().path().into(),
            mixture: mixture.host.clone(),
            reason,
        };
        let of_weight = |key: &str| {
            let info = model.get(key)?;
            let is_weight = info.shape.len() == 2 && info.shape[0] == mixture.n_experts;
            match layout.role(key).ok().filter(|_| is_weight)? {
                Role::Routing(slot) => Some((layout.routing_key(&slot)?, slot)),
                // Of families that this program does not run other programs may say it.
                Role::Shared(slot) => Some((format!("{}.routing", mixture.host), slot)),
                _ => None,
            }
        };
        let mut router = mixture.router.iter();
        let found = router.find_map(|tensor| Some((tensor.key.as_str(), of_weight(&tensor.key)?)));
        let no_router = || "the mixture has no router's weight".to_owned();
        let (key, (name, slot)) = found.ok_or_else(|| missing(no_router()))?;
        let n = mixture.n_experts;
        let width = 1 + 2 * n;
        match store.width(&name) {
            Some(found) if found == width => {}
            Some(found) => {
                let reason = format!("`{name}` is {found} wide, and {n} experts make it {width}");
                return Err(missing(reason).into());
            }
            None => return Err(missing(format!("there is no `{name}`, {width} wide")).into()),
        }
        let sums = store.read(&name)?;
        let counts: Vec<f64> = (0..n).map(|expert| sums[(0, 1 + expert)]).collect();
        let n_tokens = sums[(0, 0)];
        if counts.iter().sum::<f64>() <= 0.0 {
            return Err(missing(format!("by `{name}` no token went to any expert")).into());
        }
        let is_count = |count: &f64| (0.0..=n_tokens).contains(count);
        if let Some(expert) = counts.iter().position(|count| !is_count(count)) {
            let reason = format!(
                "by `{name}` {} of {n_tokens} tokens went to expert {expert}",
                counts[expert]
            );
            return Err(missing(reason).into());
        }
        let saliency = counts
            .iter()
            .enumerate()
            .map(|(expert, &count)| match count > 0.0 {
                true => sums[(0, 1 + n + expert)] / count,
                false => 0.0,
            });
        Ok(Self {
            n_tokens,
            saliency: saliency.collect(),
            counts,
            alike: match layout.gram_key(&slot, None) {
                Some(inputs) => alike((store, &inputs), (model, key))?,
                None => None,
            },
        })
    }
}

/// Cosines of the scores that a router gives, by the gram matrix of its inputs; `None` where there is none.
fn alike(
    (store, inputs): (&GramStore, &str),
    (model, router): (&Checkpoint, &str),
) -> Result<Option<Array2<f64>>> {
    let info = model.require(router)?;
    let &[rows, columns] = info.shape.as_slice() else {
        return Ok(None);
    };
    if store.width(inputs) != Some(columns) {
        return Ok(None);
    }
    let mut weight = Array2::zeros((rows, columns));
    let values = weight.as_slice_mut().unwrap_or_default();
    crate::decode_f64(router, info.dtype, &model.read_all(router)?, values)?;
    let products = weight.dot(&store.read(inputs)?).dot(&weight.t());
    Ok(Some(Array2::from_shape_fn(
        (rows, rows),
        |(row, column)| {
            let norm = (products[(row, row)] * products[(column, column)]).sqrt();
            match norm > 0.0 {
                true => products[(row, column)] / norm,
                false => 0.0,
            }
        },
    )))
}
