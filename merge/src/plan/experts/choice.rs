//! The experts that take part in each block.

use std::collections::BTreeSet;

use crate::layouts::Layout;
use crate::methods::MergeMethod;
use crate::recipe::{ExpertChoice, MergeRecipe};
use crate::{BlockId, Error, Expert, Result};

/// The recipe with its layout and the experts of each block written out.
pub(super) fn resolved_recipe(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    layout: &dyn Layout,
) -> Result<MergeRecipe> {
    let n_blocks = layout.dimensions().n_blocks();
    let experts = match (&recipe.experts, recipe.task) {
        (Some(_), Some(_)) => {
            return Err(Error::MethodHasNoUse {
                method: "a recipe with `experts`",
                what: "`for`",
            });
        }
        (Some(choice), None) => choice.clone(),
        (None, Some(task)) => {
            let all = present_experts(layout);
            let takes_all = method.takes_unused_experts(task);
            let choice = ExpertChoice::from_blocks(n_blocks, |block| match takes_all {
                true => all(block),
                false => layout.used_experts(task, BlockId::only(block)),
            });
            if choice.0.values().all(Vec::is_empty) {
                return Err(Error::NoPublishedChoice {
                    layout: layout.name().to_owned(),
                });
            }
            choice
        }
        (None, None) => ExpertChoice::from_blocks(n_blocks, present_experts(layout)),
    };
    let owns_some = |block: &usize| is_chosen_in(layout, *block);
    let of_router = (0..n_blocks).filter(|block| !owns_some(block));
    let mut chosen = of_router.filter(|&block| {
        let experts = experts.of_block(block);
        experts.is_some_and(|experts| !experts.is_empty())
    });
    if let Some(block) = chosen.next() {
        return Err(Error::BadExpertChoice {
            block,
            n_blocks,
            flaw: "is served by a router, whose experts stay as they are",
        });
    }
    if let Some((block, flaw)) = experts.flaw((0..n_blocks).filter(owns_some))
        && recipe.experts.is_some()
    {
        return Err(Error::BadExpertChoice {
            block,
            n_blocks,
            flaw,
        });
    }
    Ok(MergeRecipe {
        layout: Some(layout.name().to_owned()),
        task: None,
        experts: Some(experts),
        ..recipe.clone()
    })
}

/// Whether an expert is one of a router's. Such experts have no common order with others, and stay as they are.
pub(super) fn is_routed(expert: Expert) -> bool {
    matches!(expert, Expert::Routed(_))
}

/// Whether experts can be chosen in a block: not in one that a router serves.
fn is_chosen_in(layout: &dyn Layout, block: usize) -> bool {
    let experts = layout.block_experts(BlockId::only(block));
    !experts.into_iter().any(is_routed)
}

/// Every expert that blocks on the same side of the fusion start own, so that a block that lacks
/// one is noticed. Blocks that a router serves have none to choose from.
fn present_experts(layout: &dyn Layout) -> impl Fn(usize) -> Vec<Expert> + use<> {
    let dimensions = layout.dimensions();
    let n_blocks = dimensions.n_blocks();
    let start = dimensions.fusion_start.unwrap_or(n_blocks);
    let union = |blocks: std::ops::Range<usize>| -> Vec<Expert> {
        let all: BTreeSet<Expert> = blocks
            .filter(|block| is_chosen_in(layout, *block))
            .flat_map(|block| layout.block_experts(BlockId::only(block)))
            .collect();
        all.into_iter().collect()
    };
    let (shallow, deep) = (union(0..start), union(start..n_blocks));
    let of_routers: BTreeSet<usize> = (0..n_blocks)
        .filter(|block| !is_chosen_in(layout, *block))
        .collect();
    move |block| {
        if of_routers.contains(&block) {
            Vec::new()
        } else if block < start {
            shallow.clone()
        } else {
            deep.clone()
        }
    }
}
