//! Another model's tokenizer in a model: [`Transplant`] says what, [`Transplant::plan`] makes it a [`MergePlan`].
//!
//! The output is the model with a row for each of the donor's tokens in its embeddings and its head. Rows of tokens that
//! both have are copied bit for bit; the others are made by an [`Approximation`]. All other tensors are copied.
//!
//! Reference: mergekit 0.1.5, `mergekit-tokensurgeon`; `docs/transplant.md` says where it differs.

mod dense;
mod files;
mod magikarp;
mod nearest;
mod omp;
mod options;
mod report;
mod sparse;
mod table;
mod tokens;
mod view;
mod work;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use options::{
    AllowMatch, Approximation, DEFAULT_GRAM_BYTES, DEFAULT_HELD_OUT, DEFAULT_K, SubwordMethod,
    TransplantOptions, WeightScheme,
};
pub use report::{Copied, HeldOut, ListedToken, Spread, TableReport, TransplantReport};
use serde_json::Value;
pub use table::TableKind;

use crate::beside::config::{self, Changes};
use crate::beside::{Beside, Companion, Companions, Content, Share};
use crate::plan::{
    Action, Entry, PlanBuilder, TensorRef, ingredient, main_dtype, opened_with_files,
};
use crate::provenance::short_names;
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, MergePlan, Result, TransplantFault};
use files::Ids;
use options::MAX_MULTIPLE;
use sparse::Combination;
use table::DonorTables;
use tokens::{Found, Token, Tokens};
use view::Transplanted;
pub(crate) use work::Work;
use work::{Origin, TableWork};

/// The ids of the tokens into which the model's tokenizer splits a text, or why it cannot.
pub type Split<'a> = dyn Fn(&str) -> Result<Vec<u32>, String> + 'a;

/// A model that gets another model's tokenizer.
pub struct Transplant<'a> {
    /// The model.
    pub model: &'a Path,
    /// The model whose tokenizer it gets.
    pub donor: &'a Path,
    /// The way of making rows.
    pub options: &'a TransplantOptions,
    /// Element type of the output.
    pub dtype: OutputDType,
    /// Splits texts by the model's tokenizer, for [`Approximation::Subword`].
    pub split: Option<&'a Split<'a>>,
    /// Whether the output is a model folder.
    pub is_folder: bool,
}

/// A model, open, with its tokens and the files beside it.
struct Model {
    path: PathBuf,
    checkpoint: Arc<Checkpoint>,
    companions: Companions,
    tokens: Arc<Tokens>,
    config: Option<Value>,
}

impl Transplant<'_> {
    /// Says what happens to every tensor. Headers and the tokenizers are read, with `magikarp` also the tables; rows are
    /// made when the plan is carried out.
    ///
    /// # Errors
    /// [`TransplantFault`]; [`ConversionFault::Config`] for a configuration that cannot be true of the output; and when
    /// a file cannot be read.
    ///
    /// # Example
    /// ```no_run
    /// use merge::transplant::{Transplant, TransplantOptions};
    /// let plan = Transplant {
    ///     model: "model".as_ref(),
    ///     donor: "donor".as_ref(),
    ///     options: &TransplantOptions::default(),
    ///     dtype: merge::recipe::OutputDType::Keep,
    ///     split: None,
    ///     is_folder: true,
    /// }
    /// .plan()?;
    /// let report = plan.transplant().expect("a transplantation has one");
    /// println!("{} rows are copied", report.tables[0].copied.sum());
    /// # Ok::<(), merge::Error>(())
    /// ```
    pub fn plan(&self) -> Result<MergePlan> {
        self.check()?;
        let mut notes = Vec::new();
        let mut seen = Vec::new();
        let mut open = |path: &Path| -> Result<Model> {
            let (checkpoint, companions, own) = opened_with_files(path, &mut seen)?;
            notes.extend(own);
            let tokens = Arc::new(Tokens::of(path, &companions)?);
            let config = companions.settings("config.json")?;
            Ok(Model {
                path: path.to_owned(),
                checkpoint,
                companions,
                tokens,
                config,
            })
        };
        let (model, donor) = (open(self.model)?, open(self.donor)?);
        let tables = self.tables(&model, &donor, &mut notes)?;
        let before = tables.first().map_or(0, |table| table.model.rows);
        let n_rows = tables.first().map_or(0, |table| table.origins.len());
        let tokens = Arc::clone(&donor.tokens);
        let work = Arc::new(Work::new(self.options.clone(), tokens, tables));
        let view = Transplanted::view(&model.checkpoint, &work);
        let names = short_names(&[self.model, self.donor]);
        let mut builder = PlanBuilder::new(format!(
            "vlmerge transplant {} {} {}",
            names[0], names[1], self.options
        ));
        let source = builder.source(Arc::clone(&view));
        builder.side_source(Arc::clone(&donor.checkpoint));
        for (name, info) in view.tensors() {
            let is_table = work.tables().iter().any(|table| table.model.key == name);
            let mut info = info.clone();
            if !is_table {
                let stored = view.stored_dtype(name).unwrap_or(info.dtype);
                info.dtype = self.dtype.apply(stored);
            }
            let why = match is_table {
                true => "a row for each token of the donor",
                false => "of the model",
            };
            builder.add(Entry {
                name: name.to_owned(),
                info,
                action: Action::Copy(TensorRef {
                    source,
                    key: name.to_owned(),
                }),
                why: why.to_owned(),
            })?;
        }
        let mut beside = Beside {
            notes,
            seen,
            ..Beside::default()
        };
        if self.is_folder {
            let dtype = main_dtype(&builder.entries());
            let changes = Changes {
                dtype,
                vocabulary: Some((before, n_rows)),
                ..Changes::default()
            };
            beside.files = companions(&model, &donor, &changes, n_rows, &mut beside.notes)?;
            for (path, share, name) in [
                (&model.path, Share::Converted, &names[0]),
                (&donor.path, Share::Tokens, &names[1]),
            ] {
                let own = ingredient(path, share)?;
                beside.ingredients.push(crate::beside::Ingredient {
                    name: name.clone(),
                    ..own
                });
            }
        } else {
            let note = "the tokenizer and config.json are not written beside a file; a folder as output gets them";
            beside.notes.push(note.to_owned());
        }
        builder
            .transplant(Arc::clone(&work))
            .beside(beside)
            .finish()
    }

    fn check(&self) -> Result<()> {
        let options = self.options;
        let refuse = |setting, value: String, range| {
            Err(TransplantFault::OutOfRange {
                setting,
                value,
                range,
            }
            .into())
        };
        match options.method {
            Approximation::Omp { k: 0, .. } | Approximation::CommonInterpolation { k: 0, .. } => {
                return refuse("k", "0".to_owned(), "1 or more");
            }
            Approximation::Subword(_) if self.split.is_none() => {
                return Err(TransplantFault::NoSplitter.into());
            }
            _ => {}
        }
        let noise = options.new_vocab_noise;
        if let Some(noise) = noise.filter(|noise| !(noise.is_finite() && *noise > 0.0)) {
            return refuse("new_vocab_noise", noise.to_string(), "a number above 0");
        }
        let scale = options.new_vocab_scale;
        if let Some(scale) = scale.filter(|scale| !scale.is_finite()) {
            return refuse("new_vocab_scale", scale.to_string(), "any finite number");
        }
        match options.pad_to_multiple_of {
            1..=MAX_MULTIPLE => Ok(()),
            other => refuse("pad_to_multiple_of", other.to_string(), "1 to 1048576"),
        }
    }

    /// The tables of the model, with an origin for each row of the output's.
    fn tables(
        &self,
        model: &Model,
        donor: &Model,
        notes: &mut Vec<String>,
    ) -> Result<Vec<TableWork>> {
        let own = table::of_model(&model.checkpoint)?;
        let theirs = DonorTables::of(&donor.checkpoint)?;
        // The embeddings come first: config.json counts their rows.
        let mut own: Vec<_> = own.into_iter().collect();
        own.sort_by_key(|(kind, _)| *kind != TableKind::Embeddings);
        let trained = self.trained(model, donor, &own, &theirs)?;
        let mut tables = Vec::new();
        for (kind, table) in own {
            let head = || {
                theirs.head.clone().ok_or_else(|| TransplantFault::NoHead {
                    path: donor.path.clone(),
                    key: table.key.clone(),
                })
            };
            let donor_table = match kind {
                TableKind::Embeddings => Some(theirs.embeddings.clone()),
                TableKind::Head => Some(head()?),
                TableKind::Numbers => None,
            };
            let beyond = model
                .tokens
                .all
                .iter()
                .filter(|(id, _)| *id >= table.rows)
                .count();
            if beyond > 0 {
                notes.push(format!(
                    "{}: {beyond} tokens of the model's tokenizer are beyond the {} rows of `{}`, so no row is copied for them",
                    model.path.display(),
                    table.rows,
                    table.key
                ));
            }
            let assigned = Assigning {
                transplant: self,
                model: &model.tokens,
                donor: &donor.tokens,
                kind,
                trained: trained.as_ref(),
            };
            tables.push(assigned.table(table, donor_table)?);
        }
        Ok(tables)
    }

    /// The tokens that training saw, if that is asked for.
    fn trained(
        &self,
        model: &Model,
        donor: &Model,
        own: &[(TableKind, table::Table)],
        theirs: &DonorTables,
    ) -> Result<Option<Trained>> {
        if !self.options.magikarp {
            return Ok(None);
        }
        let of = |wanted| {
            own.iter()
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, table)| table)
        };
        let Some(embeddings) = of(TableKind::Embeddings) else {
            return Ok(None);
        };
        let head = of(TableKind::Head);
        Ok(Some(Trained {
            model: magikarp::well_trained(&model.tokens, embeddings, head)?,
            donor: magikarp::well_trained(&donor.tokens, &theirs.embeddings, theirs.head.as_ref())?,
        }))
    }
}

/// Ids of tokens that training saw, by model.
struct Trained {
    model: BTreeSet<usize>,
    donor: BTreeSet<usize>,
}

/// Finds the origins of a table's rows.
struct Assigning<'a> {
    transplant: &'a Transplant<'a>,
    model: &'a Tokens,
    donor: &'a Tokens,
    kind: TableKind,
    trained: Option<&'a Trained>,
}

impl Assigning<'_> {
    fn table(&self, model: table::Table, donor: Option<table::Table>) -> Result<TableWork> {
        let options = self.transplant.options;
        let method = options.method;
        let n_rows = self
            .donor
            .n_rows
            .next_multiple_of(options.pad_to_multiple_of);
        let mut work = TableWork {
            kind: self.kind,
            dtype: self.transplant.dtype.apply(model.dtype),
            origins: vec![Origin::Mean; n_rows],
            shared: Vec::new(),
            made: Vec::new(),
            pieces: Vec::new(),
            copied: Copied::default(),
            n_padding: n_rows - self.donor.all.len(),
            n_junk: 0,
            unknown: Vec::new(),
            model,
            donor,
        };
        let rows_of_donor = work.donor.as_ref().map_or(0, |donor| donor.rows);
        for (id, token) in &self.donor.all {
            let (id, found) = (*id, self.found(token, *id, work.model.rows));
            if self.is_junk(token, id) {
                work.origins[id] = Origin::Zero;
                work.n_junk += 1;
                continue;
            }
            if let Some((place, how)) = found {
                work.origins[id] = Origin::Copy(place);
                match how {
                    Found::Bytes => work.copied.same_bytes += 1,
                    Found::Special => work.copied.special += 1,
                    Found::Byte => work.copied.byte_match += 1,
                    Found::Prefix => work.copied.prefix_match += 1,
                }
                let is_shared = matches!(how, Found::Bytes | Found::Special);
                if is_shared && id < rows_of_donor {
                    work.shared.push((id, place));
                }
                continue;
            }
            if work.donor.is_none() || (method.reads_donor() && id >= rows_of_donor) {
                work.unknown.push(id);
                continue;
            }
            if let Approximation::Subword(subword) = method {
                let pieces = self.pieces(token, &work.model)?;
                work.pieces.push(combined(&pieces, subword, self.kind));
            }
            work.origins[id] = Origin::Made(work.made.len());
            work.made.push(id);
        }
        if !work.made.is_empty() && work.shared.len() < method.n_shared() {
            return Err(TransplantFault::FewShared {
                key: work.model.key,
                shared: work.shared.len(),
                method: method.name(),
                needed: method.n_shared(),
            }
            .into());
        }
        Ok(work)
    }

    /// The row of the model for a token of the donor.
    fn found(&self, token: &Token, id: usize, rows: usize) -> Option<(usize, Found)> {
        let options = self.transplant.options;
        let is_head = self.kind == TableKind::Head;
        let is_trained = |own: usize| {
            self.trained
                .is_none_or(|trained| trained.model.contains(&own))
        };
        let is_known = |own: usize| own < rows && is_trained(own);
        // A shared token counts if training saw it in both.
        let of_donor = self
            .trained
            .is_none_or(|trained| trained.donor.contains(&id));
        let same = || {
            self.model
                .same(token, self.donor, &is_known)
                .filter(|_| of_donor)
        };
        let byte = || {
            let allowed = options.byte_match.in_table(is_head);
            self.model.same_byte(token, &is_known).filter(|_| allowed)
        };
        let prefix = || match options.prefix_match.in_table(is_head) {
            true => self.model.longest_prefix(token, &is_known),
            false => None,
        };
        same().or_else(byte).or_else(prefix)
    }

    /// Whether training saw a token in neither model.
    fn is_junk(&self, token: &Token, id: usize) -> bool {
        let Some(trained) = self.trained else {
            return false;
        };
        let own = self.model.same(token, self.donor, &|_| true);
        !trained.donor.contains(&id) && own.is_none_or(|(own, _)| !trained.model.contains(&own))
    }

    /// The model's rows of the pieces of a token.
    fn pieces(&self, token: &Token, model: &table::Table) -> Result<Vec<u32>> {
        let Some(text) = token.text() else {
            return Ok(self.bytes(token));
        };
        let fault = |reason| TransplantFault::Split {
            text: text.to_owned(),
            reason,
        };
        let Some(split) = self.transplant.split else {
            return Err(TransplantFault::NoSplitter.into());
        };
        let mut pieces = split(text).map_err(fault)?;
        // Some tokenizers put a space before every text, which is a piece of its own where a word does not follow.
        let space = pieces
            .first()
            .and_then(|first| self.model.token(*first as usize));
        if space.and_then(Token::text) == Some(" ") && !text.starts_with(' ') && pieces.len() > 1 {
            pieces.remove(0);
        }
        let unknown = self.model.id_of_role("unk_token");
        pieces.retain(|piece| Some(*piece as usize) != unknown);
        match pieces.iter().find(|piece| **piece as usize >= model.rows) {
            None => Ok(pieces),
            Some(piece) => Err(TransplantFault::PieceBeyond {
                text: text.to_owned(),
                piece: *piece,
                key: model.key.clone(),
                rows: model.rows,
            }
            .into()),
        }
    }

    /// The tokens of the bytes of one that is no text by itself; none unless all bytes have one.
    fn bytes(&self, token: &Token) -> Vec<u32> {
        let bytes: &[u8] = match token {
            Token::Text(bytes) => bytes,
            Token::Byte(byte) => std::slice::from_ref(byte),
            Token::Special(_) => &[],
        };
        let id = |byte: &u8| {
            let text = self.model.id(&Token::Text(vec![*byte]));
            text.or_else(|| self.model.id(&Token::Byte(*byte)))
                .map(|id| id as u32)
        };
        let all: Option<Vec<u32>> = bytes.iter().map(id).collect();
        all.unwrap_or_default()
    }
}

/// The combination of a token's pieces.
fn combined(pieces: &[u32], method: SubwordMethod, kind: TableKind) -> Combination {
    let n = pieces.len();
    let is_head = kind == TableKind::Head;
    let factors: Vec<f64> = match method {
        SubwordMethod::Mean => vec![1.0 / n as f64; n],
        SubwordMethod::Sum => vec![1.0; n],
        SubwordMethod::WeightedMean => {
            let sum = (n * (n + 1) / 2) as f64;
            let place = |at: usize| if is_head { n - at } else { at + 1 };
            (0..n).map(|at| place(at) as f64 / sum).collect()
        }
        SubwordMethod::FirstLast => {
            let one = if is_head { 0 } else { n.saturating_sub(1) };
            (0..n).map(|at| f64::from(u8::from(at == one))).collect()
        }
    };
    Combination {
        atoms: pieces.to_vec(),
        factors,
        error: 0.0,
    }
}

/// The files beside the output: the model's, with the donor's tokenizer and ids.
fn companions(
    model: &Model,
    donor: &Model,
    changes: &Changes,
    n_rows: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<Companion>> {
    let empty = Value::Null;
    let generation = donor.companions.settings("generation_config.json")?;
    let ids = Ids {
        model: &model.tokens,
        donor: &donor.tokens,
        config: donor.config.as_ref().unwrap_or(&empty),
        generation: generation.as_ref().unwrap_or(&empty),
        n_rows,
    };
    notes.extend(files::contradiction(ids.config, &donor.tokens));
    let mut all = model.companions.clone().with_tokens_of(&donor.companions);
    let mut whys = std::collections::BTreeMap::new();
    let bad = |path: &Path, reason| ConversionFault::Config {
        path: path.to_owned(),
        reason,
    };
    match model.companions.text("config.json")? {
        None => notes.push(format!(
            "{}: there is no config.json beside it, so none is written",
            model.path.display()
        )),
        Some((path, text)) => {
            let mut config = config::parsed(&text, &path)?;
            let said = ids
                .configure(&mut config)
                .map_err(|reason| bad(&path, reason))?;
            let text = format!("{config:#}\n");
            let changed = config::changed(&text, &path, changes)?;
            if let Some((before, after)) = changes.vocabulary
                && before != after
                && !changed.keys.iter().any(|key| key.ends_with("vocab_size"))
            {
                let reason = format!(
                    "no `vocab_size` in it is {before}, which is the number of rows of the embeddings"
                );
                return Err(bad(&path, reason).into());
            }
            let keys = [said.keys, changed.keys].concat().join(", ");
            whys.insert(
                "config.json",
                format!("that of the model, with {keys} changed"),
            );
            let text = changed.text.unwrap_or(text);
            all.0.insert("config.json".to_owned(), Content::Text(text));
        }
    }
    let own = model.companions.settings("generation_config.json")?;
    let path = model.path.join("generation_config.json");
    let made = ids.generation(own).map_err(|reason| bad(&path, reason))?;
    if let Some((config, lost)) = made {
        notes.extend(lost);
        let name = "generation_config.json";
        whys.insert(name, "that of the model, with the donor's ids".to_owned());
        all.0.insert(name.to_owned(), Content::json(&config));
    }
    let files = all.0.into_iter().map(|(name, content)| {
        let why = whys.remove(name.as_str()).unwrap_or_else(|| {
            let whose = match crate::beside::is_about_tokens(&name) {
                true => "donor",
                false => "model",
            };
            format!("that of the {whose}")
        });
        Companion { name, content, why }
    });
    Ok(files.collect())
}
