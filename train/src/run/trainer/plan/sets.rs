//! The examples of all data sets, and the order in which they come.

use std::sync::Arc;

use evaluate::text::TextRule;

use crate::Result;
use crate::data::{self, Order, Sampling};
use crate::objectives::Needs;
use crate::recipe::{DataFormat, TrainRecipe};

/// The name of each data set and the number of its examples.
type Sets = Vec<(String, usize)>;

/// The examples of all data sets, and the data sets. Two captions are one if the rule turns them into the same text.
pub(super) fn examples_of(
    recipe: &TrainRecipe,
    needs: Needs,
    rule: TextRule,
) -> Result<(Arc<dyn data::Examples>, Sets)> {
    let data = &recipe.data;
    let repeats = data.without_repeats.then_some(rule);
    let parts = data.train.iter().map(|split| {
        let (dataset, split) = (&split.dataset, &split.split);
        match data.format {
            DataFormat::Folders => data::open_classes(&data.folder, dataset, split),
            DataFormat::Csv => data::open_annotations(&data.folder, dataset, split),
            DataFormat::Arrow => data::open(&data.folder, dataset, split, repeats, needs.text),
            DataFormat::Packed => {
                data::open_packed(&data.folder, dataset, split, repeats, needs.text)
            }
        }
    });
    let joined = data::Joined::new(parts.collect::<Result<_>>()?)?;
    if needs.image {
        data::Examples::check_pictures(&joined)?;
    }
    let names = data.train.iter();
    let names = names.map(|of| format!("the split `{}` of {}", of.split, of.dataset));
    let named = names.zip(joined.lengths()).collect();
    Ok((Arc::new(joined), named))
}

/// The order in which examples come.
pub(super) fn order(
    recipe: &TrainRecipe,
    named: &[(String, usize)],
    n_ranks: usize,
) -> Result<Order> {
    let (data, batch, seed) = (&recipe.data, recipe.batch_size, recipe.seed);
    match (data.format, data.sampling) {
        (DataFormat::Arrow | DataFormat::Folders | DataFormat::Packed, Sampling::Shuffle) => {
            let n = named.iter().map(|(_, n)| n).sum();
            Ok(Order::new(n, batch, seed))
        }
        (_, sampling) => Order::of_sets(named, sampling, batch, n_ranks, seed),
    }
}
