//! From a recipe to a checked run that has not begun.

mod begin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::DType;
use evaluate::datasets::classes::CLASSES;
use evaluate::datasets::vqa::ANSWERS;
use evaluate::models::{Dvae, Head};
use evaluate::ranks::ExpertShare;
use evaluate::text::{TextRule, Tokenizer};
use merge::io::OpenOptions;

use crate::augment::{PatchMasking, TokenKinds};
use crate::data::{self, Loader, Order, Patches, Sampling, SignalMasking};
use crate::objectives::{self, BALANCE_WEIGHT, Needs, Objective, Opening};
use crate::optim::{LossScale, OptimSettings};
use crate::recipe::{CheckedRecipe, DataFormat, ImageMasking, Init, TrainRecipe, differences};
use crate::run::memory::Outline;
use crate::run::trainer::Where;
use crate::run::update::Updater;
use crate::run::{KeptState, Memory, RunFolder, Start, TrainState, Validation, Wanted, origin};
use crate::{Error, Result};

/// A run that is checked and has not begun: data and weights are open, the newest state of its folder
/// is taken up, and nothing is written. [`TrainPlan::of`] and [`TrainPlan::fresh`] are the only ways to
/// one; [`Trainer::begin`](super::Trainer::begin) begins it.
pub struct TrainPlan {
    recipe: CheckedRecipe,
    objectives: Vec<(Box<dyn Objective>, f64)>,
    start: Start,
    updater: Updater,
    loader: Loader,
    order: Order,
    n_parts: usize,
    n_steps: u64,
    balance: f64,
    validation: Option<Validation>,
    state: TrainState,
    resumed_at: Option<u64>,
    /// Names of classes, JSON lists by the key of a file's metadata, where the model's file does not have
    /// them yet.
    notes: Vec<(&'static str, String)>,
    dtype: DType,
    resized_from: Option<usize>,
    notes_of_weights: Vec<String>,
    memory: Memory,
}

/// A model, objectives and data that fit together.
pub struct Prepared {
    /// What is learned, with weights.
    pub objectives: Vec<(Box<dyn Objective>, f64)>,
    /// The model, whose weights are variables.
    pub start: Start,
    /// The examples.
    pub loader: Arc<Loader>,
    /// What the data are, so that others are told from them.
    pub data: BTreeMap<String, String>,
    /// What users should know of how the files of the weights were found and read.
    pub notes: Vec<String>,
    /// What the model computes in.
    pub dtype: DType,
}

impl TrainPlan {
    /// Opens data and weights of a recipe, and takes up the newest state of the folder if there
    /// is one.
    ///
    /// # Errors
    /// When the recipe, a file or the weights are wrong, or the folder holds another run.
    pub fn of(recipe: CheckedRecipe, place: &Where<'_>) -> Result<Self> {
        let kept = RunFolder::newest_in(place.folder)?;
        Self::from(recipe, place, kept)
    }

    /// The same, whatever states the folder has.
    ///
    /// # Errors
    /// As [`TrainPlan::of`].
    pub fn fresh(recipe: CheckedRecipe, place: &Where<'_>) -> Result<Self> {
        Self::from(recipe, place, None)
    }

    /// What the run takes in memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Steps of the whole run.
    #[must_use]
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Side of the image in pixels: that of the checkpoint which the run starts from, and that of the
    /// run, where they differ.
    #[must_use]
    pub fn resized_images(&self) -> Option<[usize; 2]> {
        let side = self.start.model.input().image.side;
        let from = self.resized_from.filter(|&from| from != side);
        from.map(|from| [from, side])
    }

    /// What users should know of how the files of the weights were found and read.
    #[must_use]
    pub fn notes_of_weights(&self) -> &[String] {
        &self.notes_of_weights
    }

    /// What losses on data are computed with, without the rest of a run.
    #[must_use]
    pub fn prepared(self) -> Prepared {
        Prepared {
            objectives: self.objectives,
            start: self.start,
            loader: Arc::new(self.loader),
            data: self.state.data,
            notes: self.notes_of_weights,
            dtype: self.dtype,
        }
    }

    fn from(recipe: CheckedRecipe, place: &Where<'_>, kept: Option<PathBuf>) -> Result<Self> {
        let collective = place.collective;
        let dtype = dtype(&recipe.precision)?;
        let needs = needs(&recipe)?;
        let image_tokenizer = image_tokenizer(&recipe, needs, place)?;
        let objectives = objectives(&recipe, image_tokenizer.as_ref(), collective.size())?;
        let (mut examples, mut sets) = examples_of(&recipe, needs, TextRule::Verbatim)?;
        check_classes(&recipe, examples.as_ref())?;
        let tokenizer = match needs.text || validates_texts(&recipe)? {
            true => Some(Tokenizer::open(&recipe.data.tokenizer)?),
            false => None,
        };

        if let Some(state) = &kept {
            RunFolder::check(place.folder, state)?;
        }
        let init = match &kept {
            Some(state) => Init::from_checkpoint(state.join("model.safetensors")),
            None => recipe.init.clone(),
        };
        let initial = init.open(&recipe.model, needs.second_image, place.progress)?;
        let answers = examples.n_answers().map(|n| (Head::Vqa, n));
        let tokens = (image_tokenizer.as_ref()).map(|dvae| (Head::MaskedImage, dvae.vocabulary()));
        let named = examples.classes();
        let named = named.map(|classes| (Head::ImageClasses, classes.len()));
        let classes = answers.into_iter().chain(tokens).chain(named).collect();
        let wanted = Wanted {
            overrides: recipe.model.overrides(),
            settings: recipe.model_settings(),
            objectives: objectives.iter().map(|(o, _)| o.spec()).collect(),
            classes,
            seed: recipe.seed,
            experts: match place.sharing(&recipe)? {
                Some(ranks) => ExpertShare::of(ranks.as_ref()),
                None => ExpertShare::ALL,
            },
        };
        let taken_up = match &kept {
            Some(state) => Some(KeptState::open(&state.join("state.safetensors"))?),
            None => None,
        };
        let inputs = match &taken_up {
            Some(found) => found.state.inputs.clone(),
            None => origin::of(&initial.checkpoint),
        };
        let checkpoint = origin::with(initial.checkpoint, &inputs);
        let start = Start::load(checkpoint, &wanted, &place.device, dtype)?;
        let rule = start.model.input().text.rule;
        if recipe.data.without_repeats && rule != TextRule::Verbatim {
            (examples, sets) = examples_of(&recipe, needs, rule)?;
        }
        let tokenizer = match &tokenizer {
            Some(tokenizer) => {
                let fitting = tokenizer.for_input(&start.model.input().text)?;
                Some(Arc::new(fitting.into_owned()))
            }
            None => None,
        };
        let n_answers = n_answers(examples.as_ref(), &start)?;
        let notes = [
            (ANSWERS, answer_list(examples.as_ref(), &start)?),
            (CLASSES, class_list(examples.as_ref(), &start)?),
        ];
        let notes = notes
            .into_iter()
            .filter_map(|(key, list)| Some((key, list?)));
        let notes: Vec<(&'static str, String)> = notes.collect();
        let patches = match (&image_tokenizer, &recipe.image_masking) {
            (Some(tokenizer), Some(masking)) => Some(patches(tokenizer, masking, &start)?),
            _ => None,
        };
        let signals = signals(&recipe, needs, &start, tokenizer.as_deref())?;
        let order = order(&recipe, &sets, collective.size())?;
        let n_parts = n_parts(&recipe, &order, collective.size())?;
        let n_steps = recipe.length.steps(order.n_batches());
        let mut optim = optim(&recipe, &objectives, &start);
        optim.missing = match &taken_up {
            Some(found) => found.state.missing.clone(),
            None => missing(&start),
        };
        let mut updater = Updater::sharing(
            &optim,
            n_steps,
            (&start.variables, &start.experts),
            start.blueprint.grouping(),
            collective,
        )?;
        let mut state = TrainState {
            recipe: fingerprint(&recipe)?,
            data: data::identity(&recipe.data, examples.as_ref())?,
            inputs,
            missing: optim.missing.clone(),
            loss_scale: (dtype == DType::F16).then(|| LossScale::new(recipe.optim.loss_scale)),
            ..TrainState::default()
        };
        if let Some(found) = taken_up {
            require_same_run(&found, &state)?;
            updater.resume(&found, &recipe.optim, &start.variables)?;
            state = TrainState {
                data: state.data,
                ..found.state
            };
        }
        let resumed_at = kept.is_some().then_some(state.step);
        let names = examples.classes().map(<[String]>::to_vec);
        let validation =
            (recipe.validation.as_ref()).map(|v| Validation::open(v, &recipe.data, names));
        let loader = Loader::new(
            examples,
            tokenizer,
            *start.model.input(),
            needs,
            recipe.seed,
        )
        .answering(n_answers)
        .masking_patches(patches)
        .masking_signals(signals)
        .ranking(recipe.other_texts)
        .augmented(&recipe.augmentation, recipe.masking)?
        .corrupting(recipe.data.caption_corruption)?;
        let memory = Memory::of(&Outline {
            recipe: &recipe,
            start: &start,
            updater: &updater,
            objectives: &objectives,
            loader: &loader,
            collective,
            n_examples: order.batch_size() / collective.size() / n_parts,
            n_parts,
        });
        let balance = balance(&recipe);
        Ok(Self {
            loader,
            validation: validation.transpose()?,
            recipe,
            objectives,
            start,
            updater,
            order,
            n_parts,
            n_steps,
            balance,
            state,
            resumed_at,
            notes,
            dtype,
            resized_from: initial.image_side,
            notes_of_weights: initial.notes,
            memory,
        })
    }
}

/// What the objectives of a recipe learn from, all together.
fn needs(recipe: &TrainRecipe) -> Result<Needs> {
    let mut all = Needs::NOTHING;
    for objective in &recipe.objectives {
        all = all.and(objectives::spec(&objective.name)?.needs);
    }
    Ok(all)
}

/// The tokenizer of images, where an objective guesses their tokens.
fn image_tokenizer(
    recipe: &TrainRecipe,
    needs: Needs,
    place: &Where<'_>,
) -> Result<Option<Arc<Dvae>>> {
    let Some(masking) = (recipe.image_masking.as_ref()).filter(|_| needs.masked_patches) else {
        return Ok(None);
    };
    let checkpoint = merge::io::open(&masking.tokenizer, &OpenOptions::default())?;
    let weights = Dvae::weights(Arc::new(checkpoint), &place.device, DType::F32)?;
    Ok(Some(Arc::new(Dvae::load(&weights)?)))
}

fn objectives(
    recipe: &TrainRecipe,
    image_tokenizer: Option<&Arc<Dvae>>,
    n_ranks: usize,
) -> Result<Vec<(Box<dyn Objective>, f64)>> {
    let share = (recipe.batch_size / n_ranks.max(1)).max(1);
    let open = |settings: &crate::recipe::ObjectiveSettings| {
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

/// Data sets by what they are called, with how many examples each has.
type Sets = Vec<(String, usize)>;

/// The examples of all data sets, and the data sets. Two captions are one if the rule turns them into the same text.
fn examples_of(
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

/// In which order examples come.
fn order(recipe: &TrainRecipe, named: &[(String, usize)], n_ranks: usize) -> Result<Order> {
    let (data, batch, seed) = (&recipe.data, recipe.batch_size, recipe.seed);
    match (data.format, data.sampling) {
        (DataFormat::Arrow | DataFormat::Folders | DataFormat::Packed, Sampling::Shuffle) => {
            let n = named.iter().map(|(_, n)| n).sum();
            Ok(Order::new(n, batch, seed))
        }
        (_, sampling) => Order::of_sets(named, sampling, batch, n_ranks, seed),
    }
}

/// Answers that the model tells apart, for questions.
fn n_answers(examples: &dyn data::Examples, start: &Start) -> Result<Option<usize>> {
    let Some(known) = examples.n_answers() else {
        return Ok(None);
    };
    let n_classes = start.model.n_classes(Head::Vqa)?;
    if known > n_classes {
        return Err(Error::TooManyAnswers { known, n_classes });
    }
    Ok(Some(n_classes))
}

/// The answers by class, for the model's file. A model that keeps a list was trained on its answers: data
/// that call a class otherwise would teach it another.
fn answer_list(examples: &dyn data::Examples, start: &Start) -> Result<Option<String>> {
    let known = evaluate::tasks::answers_of(start.weights.checkpoint())?;
    let Some(answers) = examples.answers() else {
        return Ok(None);
    };
    for (label, (model, data)) in known.iter().flatten().zip(answers).enumerate() {
        if model != data {
            return Err(evaluate::Error::AnswersDiffer {
                label: label as i64,
                model: model.clone(),
                data: data.clone(),
            }
            .into());
        }
    }
    let is_whole = start.model.n_classes(Head::Vqa)? == answers.len();
    // Strings always have a JSON form.
    Ok((known.is_none() && is_whole).then(|| serde_json::json!(answers).to_string()))
}

/// The names of the classes of images, for the model's file. A model that keeps a list was trained on its
/// classes: data that number them otherwise would teach it others.
fn class_list(examples: &dyn data::Examples, start: &Start) -> Result<Option<String>> {
    let Some(classes) = examples.classes() else {
        return Ok(None);
    };
    let differs = |reason: String| Error::BadSetting {
        key: "data.train".into(),
        reason,
    };
    let n_classes = start.model.n_classes(Head::ImageClasses)?;
    if n_classes != classes.len() {
        let reason = format!(
            "it has {} classes, but the checkpoint's head tells {n_classes} apart",
            classes.len()
        );
        return Err(differs(reason));
    }
    let known = evaluate::tasks::classes_of(start.weights.checkpoint())?;
    let mut pairs = known.iter().flatten().zip(classes).enumerate();
    if let Some((number, (model, data))) = pairs.find(|(_, (model, data))| model != data) {
        let reason =
            format!("class {number} is {data:?}, but the checkpoint's head calls it {model:?}");
        return Err(differs(reason));
    }
    // Strings always have a JSON form.
    Ok(known
        .is_none()
        .then(|| serde_json::json!(classes).to_string()))
}

/// Refuses objectives that learn classes of images from data without, and texts from folders of classes.
fn check_classes(recipe: &TrainRecipe, examples: &dyn data::Examples) -> Result<()> {
    let has_classes = examples.classes().is_some();
    for objective in &recipe.objectives {
        let spec = objectives::spec(&objective.name)?;
        let reason = match (has_classes, spec.needs.text) {
            (false, _) if spec.heads.contains(&Head::ImageClasses) => {
                format!(
                    "`{}` learns classes of images; `format: folders` has them",
                    spec.name
                )
            }
            (true, true) => format!(
                "`{}` learns from texts, which folders of classes lack",
                spec.name
            ),
            _ => continue,
        };
        return Err(Error::BadSetting {
            key: "data.format".into(),
            reason,
        });
    }
    Ok(())
}

/// Whether the task that is measured on the way reads texts.
fn validates_texts(recipe: &TrainRecipe) -> Result<bool> {
    match &recipe.validation {
        Some(settings) => Ok(Validation::spec(settings)?.reads_texts),
        None => Ok(false),
    }
}

/// The optimizer's settings. Where objectives train their heads alone, all else is frozen, so that nobody
/// keeps moments of it.
fn optim(
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

/// What masked signal modeling hides.
fn signals(
    recipe: &TrainRecipe,
    needs: Needs,
    start: &Start,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<SignalMasking>> {
    let Some(tokenizer) = tokenizer.filter(|_| needs.masked_signals) else {
        return Ok(None);
    };
    let side = start.blueprint.patch_side();
    let mut settings = recipe.objectives.iter().filter_map(|of| of.signal);
    let masking = SignalMasking {
        settings: settings.next().unwrap_or_default(),
        side: side.ok_or_else(|| start.model.cannot("guess hidden patches"))?,
        kinds: TokenKinds::read(tokenizer, false)?,
    };
    match masking.n_hidden() {
        0 => Err(Error::BadSetting {
            key: "objectives.signal.image_ratio".into(),
            reason: "it hides no patch of so few".into(),
        }),
        _ => Ok(Some(masking)),
    }
}

/// Variables that the checkpoint lacks, where the family gives them a rate of their own.
fn missing(start: &Start) -> Option<Vec<String>> {
    let goes_by_them = start.blueprint.grouping().raises_missing;
    goes_by_them.then(|| start.weights.report().fresh)
}

/// What the balance of routers is multiplied with. The published program of EVE leaves it out of question answering.
fn balance(recipe: &TrainRecipe) -> f64 {
    let answers = recipe.objectives.iter().all(|of| of.name == "vqa");
    let left_out = recipe.model.as_published == Some(true) && answers;
    let usual = if left_out { 0.0 } else { BALANCE_WEIGHT };
    recipe.balance.unwrap_or(usual)
}

/// How patches are masked, and how large the view is that gives a token for each.
fn patches(tokenizer: &Dvae, masking: &ImageMasking, start: &Start) -> Result<Patches> {
    let n_classes = start.model.n_classes(Head::MaskedImage)?;
    if n_classes != tokenizer.vocabulary() {
        let known = tokenizer.vocabulary();
        return Err(Error::OtherImageTokens { known, n_classes });
    }
    let side = start.blueprint.patch_side();
    let side = side.ok_or_else(|| start.model.cannot("guess hidden patches"))?;
    let mut drawn = PatchMasking::new(side);
    if let Some(share) = masking.share {
        drawn = drawn.with_share(share);
    }
    if let Some(least) = masking.least_block {
        drawn.least = least;
    }
    Ok(Patches {
        masking: drawn,
        target_side: side * tokenizer.stride(),
    })
}

fn dtype(precision: &str) -> Result<DType> {
    match precision {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        other => Err(Error::BadSetting {
            key: "precision".into(),
            reason: format!("`{other}` is none of f32, bf16 and f16"),
        }),
    }
}

/// Examples of a rank's share of a batch that it computes at once.
fn at_once(recipe: &TrainRecipe, share: usize) -> usize {
    recipe.per_device_batch.unwrap_or(share).min(share)
}

/// How many parts a rank's share of a batch is computed in.
fn n_parts(recipe: &TrainRecipe, order: &Order, n_ranks: usize) -> Result<usize> {
    let bad = |reason: String| Error::BadSetting {
        key: "batch_size".into(),
        reason,
    };
    let batch = order.batch_size();
    if !batch.is_multiple_of(n_ranks) {
        return Err(bad(format!(
            "{batch} examples cannot be shared by {n_ranks} ranks"
        )));
    }
    let share = batch / n_ranks;
    let per_part = at_once(recipe, share);
    if !share.is_multiple_of(per_part) {
        return Err(bad(format!(
            "{share} examples of a rank are no multiple of {per_part}"
        )));
    }
    Ok(share / per_part)
}

/// Checks that a kept state is one of the run that begins with `state`.
fn require_same_run(kept: &KeptState, state: &TrainState) -> Result<()> {
    let found = &kept.state;
    if found.recipe != state.recipe {
        let differences = differences(&found.recipe, &state.recipe).join("; ");
        return Err(kept.refused(format!(
            "it is the state of another recipe ({differences}); give another --out"
        )));
    }
    // States of older versions do not say what the data were.
    let other = data::difference(&found.data, &state.data);
    match other.filter(|_| !found.data.is_empty()) {
        Some(other) => Err(kept.refused(format!(
            "it is the state of a run on other data ({other}); give another --out"
        ))),
        None => Ok(()),
    }
}

/// What two recipes must have in common for one to go on with the state of the other.
fn fingerprint(recipe: &TrainRecipe) -> Result<String> {
    let mut recipe = recipe.clone();
    recipe.save.every = None;
    recipe.save.keep = 1;
    // Like the number of ranks, it is how a run is computed.
    recipe.share_experts = false;
    recipe.to_yaml()
}
