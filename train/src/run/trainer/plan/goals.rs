//! Objectives with their weights, and the settings of the optimizer that follow from them.

use std::sync::Arc;

use evaluate::models::{Dvae, Module};

use super::parts::at_once;
use crate::objectives::{self, BALANCE_WEIGHT, Needs, Objective, Opening};
use crate::optim::OptimSettings;
use crate::recipe::{ObjectiveSettings, TrainRecipe};
use crate::run::Start;
use crate::{Error, Result};

/// The inputs that the objectives of a recipe need, all together.
pub(super) fn needs(recipe: &TrainRecipe) -> Result<Needs> {
    let mut all = Needs::NOTHING;
    for objective in &recipe.objectives {
        all = all.and(objectives::spec(&objective.name)?.needs);
    }
    Ok(all)
}

/// The objectives of a recipe with their weights, in the order in which they are computed.
pub(super) fn objectives(
    recipe: &TrainRecipe,
    image_tokenizer: Option<&Arc<Dvae>>,
    n_ranks: usize,
) -> Result<Vec<(Box<dyn Objective>, f64)>> {
    let share = (recipe.batch_size / n_ranks.max(1)).max(1);
    let open = |settings: &ObjectiveSettings| {
        let opening = Opening {
            image_tokenizer,
            contrast: settings.contrast,
            language: settings.language,
            pairs: settings.pairs,
            signal: settings.signal,
            part: at_once(recipe, share),
        };
        let objective = (objectives::spec(&settings.name)?.open)(&opening)?;
        Ok((objective, settings.weight))
    };
    let mut objectives: Vec<_> = recipe.objectives.iter().map(open).collect::<Result<_>>()?;
    objectives::in_order(&mut objectives);
    Ok(objectives)
}

/// Checks that the model reads texts in a way that an objective trains: the model's file is going to say it.
pub(super) fn check_reading(objectives: &[(Box<dyn Objective>, f64)], start: &Start) -> Result<()> {
    let Ok(model) = start.model.free_language() else {
        return Ok(());
    };
    let way = model.streams();
    let trained = objectives
        .iter()
        .map(|(o, _)| (o.name(), o.ways_of_reading()));
    let trained: Vec<_> = trained.collect();
    if (trained.iter()).any(|(_, ways)| ways.is_empty() || ways.contains(&way)) {
        return Ok(());
    }
    let said = trained.iter().map(|(name, ways)| {
        let ways: Vec<&str> = ways.iter().map(|way| way.name()).collect();
        format!("`{name}` trains {}", ways.join(" and "))
    });
    let said: Vec<String> = said.collect();
    let reason = format!(
        "the model reads texts in the way `{}`, which no objective trains: {}; set the way that is trained, or begin from a \
         model without a record of another",
        way.name(),
        said.join(", ")
    );
    Err(Error::BadSetting {
        key: "model.streams".into(),
        reason,
    })
}

/// Checks that settings of the optimizer for heads have heads to learn: CLIP's contrast has none.
pub(super) fn check_heads(optim: &OptimSettings, start: &Start) -> Result<()> {
    let family = start.blueprint.grouping();
    let usual = OptimSettings::default();
    let is_head = |name: &String| family.membership(name).module == Module::Head;
    let has_heads = optim.heads.is_some()
        || !optim.raised.is_empty()
        || family.raises_missing
        || start.variables.keys().any(is_head);
    let settings = [
        ("lr_mult", optim.lr_mult != usual.lr_mult),
        (
            "head_weight_decay",
            optim.head_weight_decay != usual.head_weight_decay,
        ),
    ];
    match settings.iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) if !has_heads => Err(Error::BadSetting {
            key: format!("optim.{key}"),
            reason: "the model has no head that learns at another rate; leave it out, or name variables in `optim.heads`"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// The optimizer's settings. Where objectives train their heads alone, all else is frozen, so that nobody
/// keeps moments of it.
pub(super) fn optim(
    recipe: &TrainRecipe,
    objectives: &[(Box<dyn Objective>, f64)],
    start: &Start,
) -> OptimSettings {
    let mut settings = recipe.optim.clone();
    let trains_heads_alone =
        |(objective, _): &(Box<dyn Objective>, f64)| objective.trains_heads_alone();
    if settings.trainable.is_empty() && objectives.iter().all(trains_heads_alone) {
        let heads = objectives
            .iter()
            .flat_map(|(objective, _)| objective.spec().heads);
        let names = heads.flat_map(|&head| start.blueprint.prefixes(head));
        settings.trainable = names.map(|&name| name.to_owned()).collect();
    }
    settings
}

/// Variables that the checkpoint lacks, where the family gives them a rate of their own.
pub(super) fn missing(start: &Start) -> Option<Vec<String>> {
    let goes_by_them = start.blueprint.grouping().raises_missing;
    goes_by_them.then(|| start.weights.report().fresh)
}

/// The factor of the loss that balances routers. The published program of EVE leaves it out of question answering.
pub(super) fn balance(recipe: &TrainRecipe) -> f64 {
    let answers = recipe.objectives.iter().all(|of| of.name == "vqa");
    let left_out = recipe.model.as_published == Some(true) && answers;
    let usual = if left_out { 0.0 } else { BALANCE_WEIGHT };
    recipe.balance.unwrap_or(usual)
}
