//! Changes of single rows: the lengths that DoRA gives them, and rows of trained tokens.

use super::{Change, Changes, Magnitude, Reader};
use crate::lora::part::PREFIX;
use crate::{AdapterFault, Error, Result, TensorInfo};

impl Reader<'_> {
    /// Weights that lack the lengths which the settings promise (DoRA).
    pub(super) fn without_magnitudes(&self, found: &Changes) -> Vec<Error> {
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
    pub(super) fn magnitude(&self, key: &str, module: &str) -> Result<(String, Change)> {
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
        let is_embedding = [PREFIX, ""].iter().any(|start| {
            let factor = format!("{start}{module}.lora_embedding_A");
            self.adapter.get(&factor).is_some()
        });
        // LyCORIS keeps a length per input as (1, inputs).
        let is_by_input =
            key.ends_with(".dora_scale") && lengths.1.shape.first() == Some(&1) && rows != 1;
        let is_by_column = is_embedding
            || is_by_input
            || shape.len() == 2 && self.is_stored_transposed == Some(true);
        let expected: usize = if is_by_column { columns } else { rows };
        if n != expected || shape.len() > 2 && is_by_column {
            let found = format!("{:?}", lengths.1.shape);
            let dtype = lengths.1.dtype;
            return Err(self.misfit(key, found, &target, TensorInfo { dtype, shape }));
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
    pub(super) fn tokens(&self, key: &str, module: &str) -> Result<(String, Change)> {
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
            let found = format!("{:?} for {} tokens", rows.1.shape, tokens.len());
            let dtype = rows.1.dtype;
            return Err(self.misfit(key, found, &target, TensorInfo { dtype, shape }));
        }
        let change = Change {
            rows: Some((rows, tokens.to_vec())),
            ..Change::default()
        };
        Ok((target, change))
    }
}
