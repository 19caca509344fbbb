//! Layers that follow each other, and which hidden unit between them is which of another model's.

use std::sync::Arc;

use ndarray::Array2;

use super::assignment::assign;
use super::{Arrangement, Piece};
use crate::linear_algebra::spectral::product;
use crate::recipe::{AlignLayers, VisitOrder};
use crate::{Checkpoint, MergeFault, Result, decode_f64};

/// Passes over the layers, as published.
const MAX_PASSES: usize = 100;

/// A gain that counts.
const LEAST_GAIN: f64 = 1e-12;

/// Layers, each of whose outputs are the next one's inputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sequence {
    layers: Vec<Layer>,
    order: VisitOrder,
}

/// A linear layer or a convolution, with what else has a number for each of its outputs.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    name: String,
    weight: String,
    shape: Vec<usize>,
    vectors: Vec<String>,
}

impl Layer {
    fn n_out(&self) -> usize {
        self.shape[0]
    }

    /// Elements of a row of outputs.
    fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

impl Sequence {
    /// The layers of a model that a recipe lists.
    ///
    /// # Errors
    /// [`MergeFault::NotASequence`] for a layer that the model lacks, or that does not follow the one before it.
    pub(crate) fn of(model: &Checkpoint, wanted: &AlignLayers) -> Result<Self> {
        let fault = |layer: &str, why| MergeFault::NotASequence {
            layer: layer.to_owned(),
            model: model.path().into(),
            why,
        };
        let mut layers: Vec<Layer> = Vec::new();
        for name in &wanted.layers {
            let weight = format!("{name}.weight");
            let info = model.get(&weight);
            let info = info.ok_or_else(|| fault(name, "has no weight of that name"))?;
            let prefix = format!("{name}.");
            let of_size = |n: usize| {
                let own = model.tensors().filter(|(key, info)| {
                    key.starts_with(&prefix) && info.shape == [n] && info.dtype.is_float()
                });
                own.map(|(key, _)| key.to_owned()).collect::<Vec<_>>()
            };
            if let [n] = *info.shape.as_slice() {
                // A norm behind a layer.
                match layers.last_mut() {
                    Some(before) if before.n_out() == n => before.vectors.extend(of_size(n)),
                    _ => {
                        return Err(fault(
                            name,
                            "has a number for each output of no layer before it",
                        )
                        .into());
                    }
                }
                continue;
            }
            if info.shape.len() < 2 || info.n_elements() == 0 {
                return Err(fault(name, "is neither a matrix nor a norm").into());
            }
            let layer = Layer {
                name: name.clone(),
                vectors: of_size(info.shape[0]),
                shape: info.shape.clone(),
                weight,
            };
            if let Some(before) = layers.last()
                && (!layer.width().is_multiple_of(before.n_out())
                    || (layer.shape.len() > 2 && layer.shape[1] != before.n_out()))
            {
                return Err(fault(name, "does not take the outputs of the layer before it").into());
            }
            layers.push(layer);
        }
        if layers.len() < 2 {
            let name = wanted.layers.first().map_or("", String::as_str);
            return Err(fault(
                name,
                "is alone: there are no hidden units between two layers",
            )
            .into());
        }
        Ok(Self {
            layers,
            order: wanted.order,
        })
    }

    /// Whether another has layers of the same sizes.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let sizes = |layer: &Layer| (layer.shape.clone(), layer.vectors.len());
        let own = self.layers.iter().map(sizes);
        own.eq(other.layers.iter().map(sizes))
    }

    /// Every tensor.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        let layers = self.layers.iter();
        layers.flat_map(|layer| layer.vectors.iter().chain([&layer.weight]))
    }

    /// Names and numbers of hidden units, layer by layer.
    pub(crate) fn hidden(&self) -> impl Iterator<Item = (&str, usize)> {
        let hidden = self
            .layers
            .split_last()
            .map_or(&[][..], |(_, hidden)| hidden);
        hidden
            .iter()
            .map(|layer| (layer.name.as_str(), layer.n_out()))
    }

    /// The sources of each tensor when the hidden units stand in these orders.
    pub(crate) fn arranged(&self, orders: &[Vec<u32>]) -> Vec<(String, Arc<Arrangement>)> {
        let mut all = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let out: Vec<u32> = match orders.get(index) {
                Some(order) => order.clone(),
                None => (0..layer.n_out() as u32).collect(),
            };
            let columns = inputs(
                layer,
                index.checked_sub(1).and_then(|before| orders.get(before)),
            );
            let mut piece;
            if layer.shape.len() == 2 {
                piece = Piece::of(layer.weight.clone(), 0, layer.n_out());
                piece.columns = Some(columns.into());
                piece.rows = Some(out.clone().into());
            } else {
                // Rows run along the last axis, which holds no units.
                let last = layer.shape.last().copied().unwrap_or(1).max(1);
                let per_out = layer.width() / last;
                let rows = out.iter().flat_map(|&from| {
                    let starts = columns.iter().step_by(last);
                    starts.map(move |&start| from * per_out as u32 + start / last as u32)
                });
                piece = Piece::of(layer.weight.clone(), 0, layer.n_out() * per_out);
                piece.rows = Some(rows.collect());
            }
            let of = |piece| {
                Arc::new(Arrangement {
                    pieces: vec![piece],
                })
            };
            all.push((layer.weight.clone(), of(piece)));
            for key in &layer.vectors {
                let mut piece = Piece::of(key.clone(), 0, 1);
                piece.columns = Some(out.clone().into());
                all.push((key.clone(), of(piece)));
            }
        }
        all
    }
}

/// The places of a layer's inputs when the units before it stand in this order.
fn inputs(layer: &Layer, order: Option<&Vec<u32>>) -> Vec<u32> {
    let width = layer.width();
    let Some(order) = order else {
        return (0..width as u32).collect();
    };
    let per_unit = (width / order.len().max(1)) as u32;
    let places = order
        .iter()
        .flat_map(|&unit| unit * per_unit..(unit + 1) * per_unit);
    places.collect()
}

/// The numbers of a layer: `(out, width)`, and its vectors.
struct Read {
    weight: Array2<f64>,
    vectors: Vec<Vec<f64>>,
}

fn read(model: &Checkpoint, layer: &Layer) -> Result<Read> {
    let values = |key: &str| -> Result<Vec<f64>> {
        let info = model.require(key)?;
        let mut values = vec![0.0; info.n_elements()];
        decode_f64(key, info.dtype, &model.read_all(key)?, &mut values)?;
        Ok(values)
    };
    let size = (layer.n_out(), layer.width());
    Ok(Read {
        // As many as its shape says.
        weight: Array2::from_shape_vec(size, values(&layer.weight)?).unwrap_or_default(),
        vectors: layer
            .vectors
            .iter()
            .map(|key| values(key))
            .collect::<Result<_>>()?,
    })
}

/// For each hidden layer and each unit of `one` the unit of `other` that stands for it: layer by layer the best with
/// the other layers as they stand, until none gains (Ainsworth et al. 2022, "Git Re-Basin",
/// <https://arxiv.org/abs/2209.04836>, algorithm 1). The result depends on the order of the layers, which the
/// published program draws. Holds both models' layers in `f64`.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn match_sequences(
    (reference, one): (&Checkpoint, &Sequence),
    (source, other): (&Checkpoint, &Sequence),
) -> Result<Vec<Vec<u32>>> {
    let read_all = |model: &Checkpoint, sequence: &Sequence| -> Result<Vec<Read>> {
        sequence
            .layers
            .iter()
            .map(|layer| read(model, layer))
            .collect()
    };
    let (own, theirs) = (read_all(reference, one)?, read_all(source, other)?);
    let mut orders: Vec<Vec<u32>> = one.hidden().map(|(_, n)| (0..n as u32).collect()).collect();
    let mut visited: Vec<usize> = (0..orders.len()).collect();
    if one.order == VisitOrder::Descending {
        visited.reverse();
    }
    for _ in 0..MAX_PASSES {
        let mut gains = false;
        for &index in &visited {
            let gain = similarity(one, &own, &theirs, &orders, index);
            let sum = |order: &[u32]| -> f64 {
                let pairs = order.iter().enumerate();
                pairs.map(|(unit, &of)| gain[(unit, of as usize)]).sum()
            };
            let before = sum(&orders[index]);
            let best = assign(gain.nrows(), |unit, of| gain[(unit, of)]);
            orders[index] = best.into_iter().map(|unit| unit as u32).collect();
            gains |= sum(&orders[index]) > before + LEAST_GAIN;
        }
        if !gains {
            break;
        }
    }
    Ok(orders)
}

/// The likeness of each unit of one model's layer with each of the other's, while the other layers stand in these
/// orders.
fn similarity(
    sequence: &Sequence,
    own: &[Read],
    theirs: &[Read],
    orders: &[Vec<u32>],
    index: usize,
) -> Array2<f64> {
    let n = sequence.layers[index].n_out();
    let before = index.checked_sub(1).and_then(|before| orders.get(before));
    let columns = inputs(&sequence.layers[index], before);
    let theirs_in = Array2::from_shape_fn(own[index].weight.dim(), |(row, column)| {
        theirs[index].weight[(row, columns[column] as usize)]
    });
    let mut all = product(own[index].weight.view(), theirs_in.t());
    for (one, other) in own[index].vectors.iter().zip(&theirs[index].vectors) {
        for ((row, column), sum) in all.indexed_iter_mut() {
            *sum += one[row] * other[column];
        }
    }
    // The layer out of the units: `(units, outputs and numbers per unit)`.
    let (next, after) = (&own[index + 1].weight, orders.get(index + 1));
    let per_unit = next.ncols() / n;
    let spread = |weight: &Array2<f64>, order: Option<&Vec<u32>>| {
        Array2::from_shape_fn((n, next.nrows() * per_unit), |(unit, at)| {
            let row = at / per_unit;
            let row = order.map_or(row, |order| order[row] as usize);
            weight[(row, unit * per_unit + at % per_unit)]
        })
    };
    let (one, other) = (spread(next, None), spread(&theirs[index + 1].weight, after));
    all += &product(one.view(), other.t());
    all
}
