//! Embeddings whose rows stand for tokens, brought into the order of one vocabulary.

pub(crate) mod names;
mod rows;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checkpoints::{Models, Modules};
use super::opener::Opener;
use crate::beside::Companions;
use crate::beside::tokenizer::Union;
use crate::beside::vocabulary::{self, Tokenizer, Vocabulary};
use crate::recipe::{
    ModelName, ModelRef, TokenKind, TokenSource, TokenizerSettings, TokenizerSource,
};
use crate::{Error, MergeFault, MergeRecipe, Result};
use names::names_with_rows;
use rows::{Rows, Rule, sizes_of};
use view::{Row, view_rows};

/// A vocabulary that all models were brought to.
pub(super) struct Alignment {
    /// The files that hold it.
    pub(super) tokenizer: Companions,
    /// Rows of the embeddings of each source before.
    pub(super) n_rows_before: Vec<Option<usize>>,
    /// Rows of all embeddings now.
    pub(super) n_rows: usize,
}

/// Checks that all models have the same tokens, or brings their embeddings to the tokens that the
/// recipe asks for.
pub(super) fn align(
    recipe: &MergeRecipe,
    models: &mut Models,
    modules: Option<&Modules>,
    opener: &Opener,
) -> Result<Option<Alignment>> {
    let companions = (models.refs().iter())
        .map(|model| opener.companions(model))
        .collect::<Result<Vec<_>>>()?;
    match &recipe.token_source() {
        None => {
            let of_tokens = of_tokens(recipe, models, modules);
            let pairs = models.refs().iter().zip(&companions);
            let pairs = pairs.enumerate().filter(|(index, _)| of_tokens[*index]);
            check_equal(&pairs.map(|(_, pair)| pair).collect::<Vec<_>>())?;
            pad_alike(recipe, models, &companions)
        }
        Some(source) => bring_to(source, recipe, models, &companions, opener).map(Some),
    }
}

/// The models that give rows of tokens: all, except for those of which a recipe takes other modules alone.
fn of_tokens(recipe: &MergeRecipe, models: &Models, modules: Option<&Modules>) -> Vec<bool> {
    let Some(modules) = modules else {
        return vec![true; models.refs().len()];
    };
    let names = names_with_rows(&models.sources);
    let base = recipe.base_model.as_ref();
    let mut found = vec![false; models.refs().len()];
    for part in recipe.parts() {
        if names.iter().any(|name| modules.has(part, name)) {
            let all = part.merged().chain(part.bases().cloned());
            let given = all.chain(base.cloned());
            given
                .filter_map(|model| models.find(&model))
                .for_each(|index| found[index] = true);
        }
    }
    found
}

/// Refuses models of which one has another vocabulary than the first that has any.
fn check_equal(models: &[(&ModelRef, &Companions)]) -> Result<()> {
    for (index, (model, own)) in models.iter().enumerate() {
        for (first, theirs) in models.iter().take(index) {
            if let Some(difference) = vocabulary::difference(theirs, own)? {
                return Err(MergeFault::Vocabularies {
                    first: first.name(),
                    second: model.name(),
                    difference,
                    place: model.place,
                }
                .into());
            }
        }
    }
    Ok(())
}

/// Gives models of one vocabulary the same number of rows. Some have more rows than tokens, which fill the
/// table up to a size that suits a machine: models are merged over their tokens, and the rows that fill up
/// are those of the base or the first model.
fn pad_alike(
    recipe: &MergeRecipe,
    models: &mut Models,
    companions: &[Companions],
) -> Result<Option<Alignment>> {
    let originals = models.sources.clone();
    let names = names_with_rows(&originals);
    let differs = |sizes: Vec<(usize, usize)>| sizes.iter().any(|(_, n)| *n != sizes[0].1);
    if !(names.iter()).any(|name| differs(sizes_of(&originals, name))) {
        return Ok(None);
    }
    let mut n_tokens = None;
    for own in companions {
        if let Some(tokenizer) = Tokenizer::of(own)? {
            n_tokens = n_tokens.max(Some(tokenizer.vocabulary.n_rows()));
        }
    }
    // Without a vocabulary nobody knows which rows are tokens: the shapes are refused later.
    let Some(n_tokens) = n_tokens else {
        return Ok(None);
    };
    let base = (recipe.base_model.as_ref()).and_then(|base| models.find(base));
    let donor = base.unwrap_or(0);
    let mut rows: Vec<BTreeMap<String, Arc<[Row]>>> = vec![BTreeMap::new(); originals.len()];
    let mut n_before = vec![None; originals.len()];
    let mut n_rows = 0;
    for name in &names {
        let sizes = sizes_of(&originals, name);
        for &(source, n) in &sizes {
            n_before[source].get_or_insert(n);
        }
        let of_donor = sizes.iter().find(|(source, _)| *source == donor);
        let most = sizes.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let n = match of_donor {
            Some(&(_, n)) if n >= n_tokens => n,
            _ => most,
        };
        n_rows = n_rows.max(n);
        let filled = |row: usize| {
            let has = |&&(_, n): &&(usize, usize)| row < n;
            let found = of_donor.filter(has).or_else(|| sizes.iter().find(has));
            found.map_or(Row::Zero, |&(source, _)| Row::Of { source, row })
        };
        for &(source, own) in sizes.iter().filter(|(_, own)| *own != n) {
            let all = (0..n).map(|row| match row < own {
                true => Row::Of { source, row },
                false => filled(row),
            });
            rows[source].insert(name.clone(), all.collect());
        }
    }
    view_rows(models, &originals, rows);
    let is_changed = n_before[donor].is_some_and(|before| before != n_rows);
    Ok(is_changed.then(|| Alignment {
        tokenizer: companions[donor].clone(),
        n_rows_before: n_before,
        n_rows,
    }))
}

fn bring_to(
    source: &TokenizerSource,
    recipe: &MergeRecipe,
    models: &mut Models,
    companions: &[Companions],
    opener: &Opener,
) -> Result<Alignment> {
    let tokenizer_of = |model: &ModelRef, companions: &Companions| {
        let found = Tokenizer::of(companions)?;
        found.ok_or_else(|| {
            crate::Error::from(MergeFault::NoTokenizer {
                model: model.name(),
                place: model.place,
            })
        })
    };
    let tokenizers = (models.refs().iter().zip(companions))
        .map(|(model, companions)| tokenizer_of(model, companions))
        .collect::<Result<Vec<_>>>()?;
    let base = recipe
        .base_model
        .as_ref()
        .and_then(|base| models.find(base));
    let first = base.unwrap_or(0);
    let mut others: Vec<&Tokenizer> = Vec::new();
    let (own, mut tokenizer) = match source {
        TokenizerSource::Base => (tokenizers[first].clone(), companions[first].clone()),
        TokenizerSource::Union => {
            let all = tokenizers.iter().enumerate();
            let all = all.filter(|(index, _)| *index != first);
            others.extend(all.map(|(_, tokenizer)| tokenizer));
            (tokenizers[first].clone(), companions[first].clone())
        }
        TokenizerSource::Model(path) => {
            let model = ModelRef::new(path);
            let files = opener.companions(&model)?;
            (tokenizer_of(&model, &files)?, files)
        }
    };
    let settings = recipe.tokenizer.clone().unwrap_or_default();
    let union = Union::of(&own, &others, settings.tokens.keys().map(String::as_str));
    union.extend(&own, &mut tokenizer)?;
    let vocabulary = union.vocabulary;
    let of_models: Vec<&Vocabulary> = tokenizers.iter().map(|found| &found.vocabulary).collect();
    let multiple = settings.pad_to_multiple_of.filter(|multiple| *multiple > 0);
    if let Some(multiple) = multiple
        && vocabulary
            .n_rows()
            .checked_next_multiple_of(multiple)
            .is_none_or(|n| n > MAX_ROWS)
    {
        return Err(MergeFault::TokenRule {
            token: String::new(),
            reason: format!(
                "`pad_to_multiple_of: {multiple}` makes more rows than any vocabulary has"
            ),
        }
        .into());
    }
    let rows = Rows {
        wanted: &vocabulary,
        multiple,
        rules: rules(&settings, &vocabulary, models, &of_models)?,
        models: of_models,
        base,
    };
    let (n_rows_before, n_rows) = rows.rearrange(models)?;
    Ok(Alignment {
        tokenizer,
        n_rows_before,
        n_rows,
    })
}

/// No vocabulary has more tokens.
const MAX_ROWS: usize = 1 << 24;

/// The recipe's rules for single tokens, by their new numbers.
fn rules(
    settings: &TokenizerSettings,
    wanted: &Vocabulary,
    models: &Models,
    vocabularies: &[&Vocabulary],
) -> Result<BTreeMap<usize, Rule>> {
    let mut rules = BTreeMap::new();
    for (token, rule) in &settings.tokens {
        let bad = |reason: String| {
            Error::from(MergeFault::TokenRule {
                token: token.clone(),
                reason,
            })
        };
        let Some(&id) = wanted.0.get(token) else {
            continue;
        };
        let source_of = |name: &ModelName| {
            let found = models.find(&ModelRef::new(&name.path));
            found.ok_or_else(|| bad(format!("`{}` is none of the models", name.path.display())))
        };
        let row_of = |source: usize, token: &str| {
            let row = vocabularies[source].0.get(token).copied();
            row.ok_or_else(|| bad(format!("{} has no token `{token}`", models.name(source))))
        };
        let row = match &rule.source {
            None if vocabularies
                .iter()
                .all(|known| !known.0.contains_key(token)) =>
            {
                return Err(bad("no model has this token, so it needs a `source`".into()));
            }
            None => None,
            Some(TokenSource::Kind(TokenKind::Zero {})) => Some(Row::Zero),
            Some(TokenSource::Model(name)) => {
                let source = source_of(name)?;
                let row = row_of(source, token)?;
                Some(Row::Of { source, row })
            }
            Some(TokenSource::Kind(TokenKind::ModelToken {
                model,
                token: other,
                token_id,
            })) => {
                let source = source_of(model)?;
                let row = match (other, token_id) {
                    (Some(other), _) => row_of(source, other)?,
                    (None, Some(id)) => *id,
                    (None, None) => {
                        return Err(bad("a `model_token` needs `token` or `token_id`".into()));
                    }
                };
                Some(Row::Of { source, row })
            }
        };
        rules.insert(
            id,
            Rule {
                row,
                force: rule.force,
            },
        );
    }
    Ok(rules)
}
