//! Makes a checked run, which has not begun, of a recipe.

mod begin;
mod goals;
mod hiding;
mod labels;
mod parts;
mod same;
mod sets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::DType;
use evaluate::datasets::classes::CLASSES;
use evaluate::datasets::vqa::ANSWERS;
use evaluate::models::Head;
use evaluate::ranks::ExpertShare;
use evaluate::text::{TextRule, Tokenizer};

use self::goals::{balance, check_heads, check_reading, missing, needs, objectives, optim};
use self::hiding::{image_tokenizer, patches, signals};
use self::labels::{answer_list, check_classes, class_list, n_answers};
use self::parts::n_parts;
use self::same::{fingerprint, require_same_run};
use self::sets::{examples_of, order};
use crate::data::{self, Loader, Order};
use crate::objectives::Objective;
use crate::optim::LossScale;
use crate::recipe::{CheckedRecipe, Init, TrainRecipe};
use crate::run::memory::Outline;
use crate::run::trainer::Where;
use crate::run::update::Updater;
use crate::run::{KeptState, Memory, RunFolder, Start, TrainState, Validation, Wanted, origin};
use crate::{Error, Result};

/// A run that is checked and has not begun: data and weights are open, the newest state of its folder
/// is read, and nothing is written. [`TrainPlan::of`] and [`TrainPlan::fresh`] are the only ways to
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
    /// The objectives, with weights.
    pub objectives: Vec<(Box<dyn Objective>, f64)>,
    /// The model, whose weights are variables.
    pub start: Start,
    /// The examples.
    pub loader: Arc<Loader>,
    /// Facts about the data and its tokenizers ([`data::identity`], [`data::tokenizers`]); a state of a run on other data is refused by them.
    pub data: BTreeMap<String, String>,
    /// Notes for users on the way in which the files of the weights were found and read.
    pub notes: Vec<String>,
    /// The dtype in which the model computes.
    pub dtype: DType,
}

impl TrainPlan {
    /// Opens data and weights of a recipe, and reads the newest state of the folder if there
    /// is one.
    ///
    /// # Errors
    /// When the recipe, a file or the weights are wrong, or the folder holds another run.
    pub fn of(recipe: CheckedRecipe, place: &Where<'_>) -> Result<Self> {
        recipe.check_routing()?;
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

    /// The memory that the run takes.
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

    /// Notes for users on the way in which the files of the weights were found and read, and on what a state does not tell.
    #[must_use]
    pub fn notes_of_weights(&self) -> &[String] {
        &self.notes_of_weights
    }

    /// The parts that losses on data need, without the rest of a run.
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
        let (image_tokenizer, image_tokenizer_files) = image_tokenizer(&recipe, needs, place)?;
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
        check_reading(&objectives, &start)?;
        check_heads(&recipe.optim, &start)?;
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
        let mut facts = data::identity(&recipe.data, examples.as_ref())?;
        facts.extend(data::tokenizers(
            tokenizer.as_deref(),
            &image_tokenizer_files,
        )?);
        let mut notes_of_weights = initial.notes;
        let mut state = TrainState {
            recipe: fingerprint(&recipe)?,
            data: facts,
            inputs,
            missing: optim.missing.clone(),
            loss_scale: (dtype == DType::F16).then(|| LossScale::new(recipe.optim.loss_scale)),
            ..TrainState::default()
        };
        if let Some(found) = taken_up {
            notes_of_weights.extend(require_same_run(&found, &state)?);
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
            notes_of_weights,
            memory,
        })
    }
}

/// Whether the task that is measured on the way reads texts.
fn validates_texts(recipe: &TrainRecipe) -> Result<bool> {
    match &recipe.validation {
        Some(settings) => Ok(Validation::spec(settings)?.reads_texts),
        None => Ok(false),
    }
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
