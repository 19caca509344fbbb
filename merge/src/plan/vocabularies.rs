//! Embeddings whose rows stand for tokens, brought into the order of one vocabulary.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::checkpoints::Models;
use super::opener::Opener;
use crate::beside::Companions;
use crate::beside::tokenizer::Union;
use crate::beside::vocabulary::{self, Tokenizer, Vocabulary};
use crate::io::{SourceInfo, TensorEntry};
use crate::recipe::{
    ModelName, ModelRef, TokenKind, TokenSource, TokenizerSettings, TokenizerSource,
};
use crate::{Checkpoint, DType, Error, MergeFault, MergeRecipe, Result, TensorInfo, TensorSource};
use crate::{decode_f64, encode_f64};

/// How the names of tensors end that have a row for every token.
const ROW_PER_TOKEN: [&str; 20] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embed_out.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "lm_head.weight",
    "lm_head.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "output_layer.weight",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
    "predictions.bias",
    "mlm_score.decoder.weight",
    "mlm_score.decoder.bias",
    "mlm_score.bias",
    "vocab_projector.weight",
    "vocab_projector.bias",
];

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
    opener: &Opener,
) -> Result<Option<Alignment>> {
    let companions = (models.refs().iter())
        .map(|model| opener.companions(model))
        .collect::<Result<Vec<_>>>()?;
    match &recipe.token_source() {
        None => {
            check_equal(models.refs(), &companions)?;
            pad_alike(recipe, models, &companions)
        }
        Some(source) => bring_to(source, recipe, models, &companions, opener).map(Some),
    }
}

/// Refuses models of which one has another vocabulary than the first that has any.
fn check_equal(models: &[ModelRef], companions: &[Companions]) -> Result<()> {
    for (index, (model, own)) in models.iter().zip(companions).enumerate() {
        for (first, theirs) in models.iter().zip(companions).take(index) {
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
    let sizes = |name: &str| -> Vec<(usize, usize)> {
        (originals.iter().enumerate())
            .filter_map(|(index, source)| Some((index, *source.get(name)?.shape.first()?)))
            .collect()
    };
    let differs = |sizes: &[(usize, usize)]| sizes.iter().any(|(_, n)| *n != sizes[0].1);
    if !names.iter().any(|name| differs(&sizes(name))) {
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
        let sizes = sizes(name);
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

/// Puts views in place of the sources of which some tensors have other rows.
fn view_rows(
    models: &mut Models,
    originals: &[Arc<Checkpoint>],
    rows: Vec<BTreeMap<String, Arc<[Row]>>>,
) {
    for (index, rows) in rows.into_iter().enumerate() {
        if !rows.is_empty() {
            let view = ByToken::new(index, originals, rows);
            models.sources[index] = Arc::new(Checkpoint::new(Box::new(view)));
        }
    }
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
    let (vocabulary, tokenizer) = match source {
        TokenizerSource::Base => (
            tokenizers[first].vocabulary.clone(),
            companions[first].clone(),
        ),
        TokenizerSource::Union => {
            let others = (tokenizers.iter().enumerate()).filter(|(index, _)| *index != first);
            let others: Vec<&Tokenizer> = others.map(|(_, tokenizer)| tokenizer).collect();
            let union = Union::of(&tokenizers[first], &others);
            let mut files = companions[first].clone();
            union.extend(&tokenizers[first], &mut files)?;
            (union.vocabulary, files)
        }
        TokenizerSource::Model(path) => {
            let model = ModelRef::new(path);
            let files = opener.companions(&model)?;
            (tokenizer_of(&model, &files)?.vocabulary, files)
        }
    };
    let of_models: Vec<&Vocabulary> = tokenizers.iter().map(|found| &found.vocabulary).collect();
    let settings = recipe.tokenizer.clone().unwrap_or_default();
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

/// What the recipe says of single tokens, by their new numbers.
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
        let &id =
            (wanted.0.get(token)).ok_or_else(|| bad("the output has no such token".into()))?;
        let source_of = |name: &ModelName| {
            let found = models.find(&ModelRef::new(&name.path));
            found.ok_or_else(|| bad(format!("`{}` is none of the models", name.path.display())))
        };
        let row_of = |source: usize, token: &str| {
            let row = vocabularies[source].0.get(token).copied();
            row.ok_or_else(|| bad(format!("{} has no token `{token}`", models.name(source))))
        };
        let row = match &rule.source {
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

/// What the recipe says of a token.
struct Rule {
    /// The row that models without the token get.
    row: Option<Row>,
    /// Whether models with the token get it, too.
    force: bool,
}

/// Where a row of a rearranged tensor comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Row {
    /// A row of a source.
    Of { source: usize, row: usize },
    /// The mean of rows of several sources.
    Mean(Vec<(usize, usize)>),
    /// No model has the token.
    Zero,
}

/// The rows of each source that has a tensor.
type RowsOfEach = Vec<Arc<[Row]>>;

/// Decides where rows come from.
struct Rows<'a> {
    wanted: &'a Vocabulary,
    /// What the number of rows is to be a multiple of.
    multiple: Option<usize>,
    /// What the recipe says of single tokens.
    rules: BTreeMap<usize, Rule>,
    models: Vec<&'a Vocabulary>,
    base: Option<usize>,
}

impl Rows<'_> {
    /// Puts views in place of the sources whose tensors have a row per token. Returns how many rows
    /// those had, and how many all have now.
    fn rearrange(&self, models: &mut Models) -> Result<(Vec<Option<usize>>, usize)> {
        let originals = models.sources.clone();
        let names = names_with_rows(&originals);
        if names.is_empty() {
            return Err(MergeFault::NoEmbeddings {
                known: ROW_PER_TOKEN.join(", "),
            }
            .into());
        }
        // Embeddings and heads mostly have the same rows.
        let mut known: BTreeMap<Vec<(usize, usize)>, RowsOfEach> = BTreeMap::new();
        let mut rows: Vec<BTreeMap<String, Arc<[Row]>>> = vec![BTreeMap::new(); originals.len()];
        let mut n_before = vec![None; originals.len()];
        let mut n_rows = 0;
        for name in names {
            let sizes: Vec<(usize, usize)> = (originals.iter().enumerate())
                .filter_map(|(index, source)| Some((index, *source.get(&name)?.shape.first()?)))
                .collect();
            let each = known
                .entry(sizes.clone())
                .or_insert_with(|| self.of(&sizes));
            for (&(source, own_rows), rows_of) in sizes.iter().zip(each.iter()) {
                n_rows = n_rows.max(rows_of.len());
                rows[source].insert(name.clone(), Arc::clone(rows_of));
                n_before[source].get_or_insert(own_rows);
            }
        }
        view_rows(models, &originals, rows);
        Ok((n_before, n_rows))
    }

    /// The rows of each of the sources that have a tensor, given how many rows it has there.
    fn of(&self, sizes: &[(usize, usize)]) -> RowsOfEach {
        let donor = self.base.unwrap_or(0);
        let of_donor = sizes.iter().find(|(source, _)| *source == donor);
        // Rows that only fill up stay: those of the base or the first model, if it has any.
        // mergekit's `pad_to_multiple_of` counts from the tokens.
        let filled = of_donor
            .filter(|_| self.multiple.is_none())
            .filter(|(source, n)| *n > self.models[*source].n_rows());
        let n_rows = filled.map_or(0, |(_, n)| *n).max(self.wanted.n_rows());
        let n_rows = n_rows.next_multiple_of(self.multiple.unwrap_or(1));
        let taken: BTreeSet<usize> = self.wanted.0.values().copied().collect();
        let ids: Vec<BTreeSet<usize>> = (self.models.iter())
            .map(|vocabulary| vocabulary.0.values().copied().collect())
            .collect();
        let is_filling = |source: usize, row: usize| !ids[source].contains(&row);
        let mut rows = vec![vec![Row::Zero; n_rows]; sizes.len()];
        for row in (0..n_rows).filter(|row| !taken.contains(row)) {
            let fills = |&&(source, n): &&(usize, usize)| row < n && is_filling(source, row);
            let common = of_donor.filter(fills);
            for (own, rows) in sizes.iter().zip(&mut rows) {
                if let Some(&(source, _)) = Some(own).filter(fills).or(common) {
                    rows[row] = Row::Of { source, row };
                }
            }
        }
        for (token, &id) in &self.wanted.0 {
            let found: Vec<(usize, usize)> = (sizes.iter())
                .filter_map(|&(source, n_rows)| {
                    let row = *self.models[source].0.get(token)?;
                    (row < n_rows).then_some((source, row))
                })
                .collect();
            let of_base = found.iter().find(|(source, _)| Some(*source) == self.base);
            let instead = match (found.as_slice(), of_base) {
                ([], _) => Row::Zero,
                (&[(source, row)], _) | (_, Some(&(source, row))) => Row::Of { source, row },
                (several, None) => Row::Mean(several.to_vec()),
            };
            let rule = self.rules.get(&id);
            // A row that the model does not have is nobody's.
            let has_row = |row: &Row| match row {
                &Row::Of { source, row } => sizes
                    .iter()
                    .any(|&(of, n_rows)| of == source && row < n_rows),
                _ => true,
            };
            let ruled = rule.and_then(|rule| rule.row.clone()).filter(has_row);
            let instead = ruled.unwrap_or(instead);
            let is_forced = rule.is_some_and(|rule| rule.force);
            for (&(source, _), rows) in sizes.iter().zip(&mut rows) {
                let own = found
                    .iter()
                    .find(|(of, _)| *of == source)
                    .filter(|_| !is_forced);
                rows[id] = match own {
                    Some(&(source, row)) => Row::Of { source, row },
                    None => instead.clone(),
                };
            }
        }
        rows.into_iter().map(Arc::from).collect()
    }
}

/// The names under which any of the models has a row for every token.
fn names_with_rows(models: &[Arc<Checkpoint>]) -> BTreeSet<String> {
    (models.iter())
        .flat_map(|model| model.tensors().map(|(name, _)| name))
        .filter(|name| has_row_per_token(name))
        .map(str::to_owned)
        .collect()
}

fn has_row_per_token(name: &str) -> bool {
    let ends = |suffix: &str| {
        let start = name.strip_suffix(suffix);
        start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
    };
    name == "output.weight" || ROW_PER_TOKEN.iter().any(|suffix| ends(suffix))
}

/// A checkpoint with some of its tensors rearranged row by row.
struct ByToken {
    own: usize,
    /// All models, any of which may give a row.
    all: Vec<Arc<Checkpoint>>,
    tensors: Vec<TensorEntry>,
    names: Vec<String>,
    rows: Vec<Option<Arc<[Row]>>>,
}

impl ByToken {
    fn new(own: usize, all: &[Arc<Checkpoint>], of: BTreeMap<String, Arc<[Row]>>) -> Self {
        let mut view = Self {
            own,
            all: all.to_vec(),
            tensors: Vec::new(),
            names: Vec::new(),
            rows: Vec::new(),
        };
        for (name, info) in all[own].tensors() {
            let rows = of.get(name).cloned();
            let mut info = info.clone();
            if let (Some(rows), Some(size)) = (&rows, info.shape.first_mut()) {
                *size = rows.len();
            }
            view.tensors.push(TensorEntry {
                path: crate::ObjectPath(vec![crate::PathSegment::Key(name.to_owned())]),
                name: Some(name.to_owned()),
                info,
            });
            view.names.push(name.to_owned());
            view.rows.push(rows);
        }
        view
    }

    /// Elements `first..` of a source's tensor, in the dtype of `info`.
    fn copy(
        &self,
        (source, name): (usize, &str),
        first: usize,
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let source = &self.all[source];
        let stored = source.require(name)?.dtype;
        if stored == info.dtype {
            return source.read(name, first, out);
        }
        let mut values = vec![0.0; out.len() / info.dtype.size_bytes()];
        let mut bytes = vec![0; values.len() * stored.size_bytes()];
        source.read(name, first, &mut bytes)?;
        decode_f64(name, stored, &bytes, &mut values)?;
        encode_f64(name, info.dtype, &values, out)
    }

    /// The mean of elements of rows.
    fn mean(
        &self,
        name: &str,
        of: &[(usize, usize)],
        within: usize,
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let width = row_elements(info);
        let mut sum = vec![0.0; out.len() / info.dtype.size_bytes()];
        let mut values = sum.clone();
        for &(source, row) in of {
            let source = &self.all[source];
            let stored = source.require(name)?.dtype;
            let mut bytes = vec![0; values.len() * stored.size_bytes()];
            source.read(name, row * width + within, &mut bytes)?;
            decode_f64(name, stored, &bytes, &mut values)?;
            for (sum, value) in sum.iter_mut().zip(&values) {
                *sum += value;
            }
        }
        for sum in &mut sum {
            *sum /= of.len() as f64;
        }
        encode_f64(name, info.dtype, &sum, out)
    }
}

fn row_elements(info: &TensorInfo) -> usize {
    info.shape.iter().skip(1).product()
}

impl TensorSource for ByToken {
    fn info(&self) -> &SourceInfo {
        self.all[self.own].info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.all[self.own].stored_dtype(&self.names[index]);
        stored.unwrap_or(self.tensors[index].info.dtype)
    }

    fn held_bytes(&self) -> u64 {
        self.all[self.own].source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let name = self.names[index].as_str();
        let Some(rows) = &self.rows[index] else {
            return self.all[self.own].read(name, first, out);
        };
        let info = &self.tensors[index].info;
        let (width, size) = (row_elements(info), info.dtype.size_bytes());
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, within) = (at / width, at % width);
            let n_left = rest.len() / size;
            // Rows that follow each other there as here are read at once.
            let mut n_rows = 1;
            if let Row::Of { source, row: from } = rows[row] {
                let follows = |n: usize| {
                    let row = from + n;
                    rows.get(at / width + n) == Some(&Row::Of { source, row })
                };
                while n_rows * width - within < n_left && follows(n_rows) {
                    n_rows += 1;
                }
            }
            let n = n_left.min(n_rows * width - within);
            let (part, after) = rest.split_at_mut(n * size);
            match &rows[row] {
                Row::Of { source, row } => {
                    self.copy((*source, name), row * width + within, info, part)?;
                }
                Row::Mean(of) => self.mean(name, of, within, info, part)?,
                Row::Zero => part.fill(0),
            }
            (at, rest) = (at + n, after);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_and_heads_are_known_by_the_end_of_their_names() {
        assert!(has_row_per_token(
            "model.language_model.embed_tokens.weight"
        ));
        assert!(has_row_per_token("lm_head.weight"));
        assert!(has_row_per_token("output.weight"));
        assert!(!has_row_per_token("layers.0.output.weight"));
        assert!(!has_row_per_token("my_lm_head.weight"));
        assert!(!has_row_per_token("embed_positions.weight"));
    }

    #[test]
    fn a_token_that_a_model_lacks_comes_from_the_one_the_base_or_the_mean() {
        let vocabulary = |tokens: &[&str]| {
            let pairs = tokens.iter().enumerate();
            Vocabulary(pairs.map(|(id, token)| ((*token).to_owned(), id)).collect())
        };
        let wanted = vocabulary(&["all", "base and b", "a alone", "a and b", "nobody"]);
        let of_models = [
            vocabulary(&["base and b", "all"]),
            vocabulary(&["a alone", "all", "a and b"]),
            vocabulary(&["all", "base and b", "a and b"]),
        ];
        let rows = Rows {
            wanted: &wanted,
            multiple: None,
            rules: BTreeMap::new(),
            models: of_models.iter().collect(),
            base: Some(0),
        };
        let found = rows.of(&[(0, 2), (1, 3), (2, 3)]);
        let of = |source, row| Row::Of { source, row };
        let mean = Row::Mean(vec![(1, 2), (2, 2)]);
        assert_eq!(
            found[0].to_vec(),
            [of(0, 1), of(0, 0), of(1, 0), mean, Row::Zero]
        );
        assert_eq!(found[1][1], of(0, 0));
        assert_eq!(found[2][1], of(2, 1));
        // A tokenizer may have more tokens than its embeddings have rows.
        assert_eq!(rows.of(&[(0, 2), (1, 3), (2, 2)])[2][3], of(1, 2));
    }
}
