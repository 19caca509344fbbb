//! Conversions: the same weights under other keys, in other containers, for other sizes, or in
//! several copies. Each becomes a [`MergePlan`], so that one program writes them all.
//!
//! [`Conversion`] changes a checkpoint, [`Expansion`] starts a model from one.

pub(crate) mod buffers;
pub(crate) mod clip;
mod dense;
mod draft;
mod eve;
mod eve_of_beit;
mod experts;
mod fewer_experts;
mod flm;
mod foreign;
mod keys;
mod megatron;
pub mod positions;
mod resample;
mod tables;
mod upcycle;
mod wrapper;

use std::fmt;
use std::sync::Arc;

pub use clip::ClipTarget;
pub use dense::DenseOfExperts;
pub use eve::EveStart;
pub use eve_of_beit::BeitStart;
pub use experts::{Expansion, Start};
pub use fewer_experts::{ExpertsKept, FewerExperts, Keep, Others, Worth};
pub use flm::{FlmStart, FlmTowers, LoadReport};
pub use keys::Spelling;
pub use megatron::RunArguments;
pub use positions::Resize;
pub use tables::sizes_with_text;
pub use upcycle::Upcycling;
pub use wrapper::Wrapper;

use crate::execute::{RunOptions, in_memory};
use crate::layouts::{self, Dimensions, ModelRecord, RecordFamily, Window};
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, Layout, MergePlan, Progress, Result};
use draft::Draft;
use tables::Windows;

/// Changes of a checkpoint. Without any change it is copied tensor by tensor, whatever its family.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// The spelling of the keys; the input's unless given.
    pub spelling: Option<Spelling>,
    /// Whether keys have the `module.` of data-parallel wrappers before them, if not as they are.
    pub wrapper: Option<Wrapper>,
    /// Side of the image in pixels, if it changes.
    pub image_size: Option<usize>,
    /// The way of resizing position tables; that of the family's own program unless given.
    pub resize: Option<Resize>,
    /// Text positions, if they are cut.
    pub text_len: Option<usize>,
    /// Text positions that the bias table has room for, where the checkpoint does not tell.
    pub text_table_len: Option<usize>,
    /// Add the token type of NLVR2's second image.
    pub third_token_type: bool,
    /// Rebuild the index buffers for the new sizes instead of leaving them out.
    pub with_buffers: bool,
    /// Element type of the output.
    pub dtype: OutputDType,
    /// Facts about the model that its tensors do not hold, for the output's record.
    pub facts: ModelRecord,
    /// Arguments of the run of Megatron that its files lack, for transformers' names.
    pub run_arguments: RunArguments,
    /// Whether the output is a model folder, which gets a configuration.
    pub is_folder: bool,
}

impl Conversion {
    /// Says what happens to every key of `source`.
    ///
    /// # Errors
    /// [`crate::Error::DuplicateKey`], and, where more than container and
    /// dtype change, [`ConversionFault::NoSuchConversion`],
    /// [`crate::Error::UnknownKey`],
    /// [`ConversionFault::NoCounterpart`] and those of the position tables.
    pub fn plan(&self, source: Arc<Checkpoint>, layout: &dyn Layout) -> Result<MergePlan> {
        // Spellings are of names, each of which has a place in the other.
        let source = match self.spelling {
            Some(Spelling::Mixture(to)) => keys::respell_mixtures(source, layout, to)?,
            Some(Spelling::Clip(to)) => match foreign::respelled(&source)? {
                None => clip::respelled(source, layout, to)?,
                Some(named) => of_names(named, to)?,
            },
            Some(Spelling::LanguageModel) => megatron::respelled(source, &self.run_arguments)?,
            _ => source,
        };
        // Tables are called otherwise then.
        let of_view = match self.spelling {
            Some(Spelling::Clip(_) | Spelling::LanguageModel) => Some(layouts::detect(&source)?),
            _ => None,
        };
        let layout = of_view.as_deref().unwrap_or(layout);
        let mut draft = match self.spelling {
            Some(Spelling::VlMerging | Spelling::Vlmo) => Draft::untied(Arc::clone(&source))?,
            _ => Draft::copy_of(Arc::clone(&source))?,
        };
        let is_resized = self.image_size.is_some() || self.text_len.is_some();
        if layout.name() == "generic" && (is_resized || self.third_token_type) {
            return Err(draft.refused(layout, "brought to other sizes"));
        }
        let mut facts = self.facts;
        if facts.family == Some(RecordFamily::Zerovl) && layout.name() != "zerovl" {
            let family = match layout.name().split('/').next() {
                Some("flm") => RecordFamily::Flm,
                Some("clip") => RecordFamily::Clip,
                _ => return Err(draft.refused(layout, "given facts about two towers")),
            };
            if facts.temperature.is_some() {
                return Err(draft.refused(layout, "given a temperature"));
            }
            facts.family = Some(family);
        }
        if self.image_size.is_some() {
            let windows = Windows::new(&self.sizes(&source, layout)?, self.image_size)?;
            let resize = self.resize.unwrap_or_else(|| layout.default_resize());
            tables::change_window(&mut draft, layout, windows, resize)?;
        }
        if let Some(text_len) = self.text_len {
            tables::cut_text(&mut draft, layout, text_len)?;
        }
        if is_resized && draft.is_changed() {
            let window = match self.with_buffers && tables::has_indices(&draft, layout)? {
                true => Some(self.window(&self.sizes(&source, layout)?)?),
                false => None,
            };
            let side = match self.with_buffers && tables::has_indices_by_side(&draft, layout)? {
                true => Some(Windows::new(&self.sizes(&source, layout)?, self.image_size)?.to),
                false => None,
            };
            tables::replace_indices(&mut draft, layout, side, window)?;
        }
        if self.third_token_type {
            tables::add_third_token_type(&mut draft)?;
        }
        if let Some(spelling) = self.spelling {
            keys::respell(&mut draft, layout, spelling)?;
        }
        if let Some(wrapper) = self.wrapper {
            wrapper::change(&mut draft, wrapper)?;
        }
        let model = ModelRecord {
            text_table_len: self.text_table_len,
            ..facts
        };
        if let Some(Spelling::Clip(to)) = self.spelling {
            let mut sizes = layout.dimensions().clone();
            sizes.image_size = self.image_size.or(sizes.image_size);
            sizes.text_len = self.text_len.or(sizes.text_len);
            draft.set_beside(clip::beside(&source, &sizes, &model, to)?);
        }
        if self.spelling == Some(Spelling::LanguageModel) && self.is_folder {
            let dtype = |dtype| self.dtype.apply(dtype);
            draft.set_beside(megatron::beside(&source, &self.run_arguments, dtype)?);
        }
        draft.finish(layout, self.to_string(), self.dtype, model)
    }

    /// The checkpoint brought to the sizes and the token types of this conversion, in memory; the same
    /// one if it has them already.
    ///
    /// # Errors
    /// As [`Conversion::plan`], and when a tensor cannot be read or the user stops it.
    pub fn in_memory(
        &self,
        source: Arc<Checkpoint>,
        run: &RunOptions,
        progress: &dyn Progress,
    ) -> Result<Arc<Checkpoint>> {
        let layout = layouts::detect(&source)?;
        let found = layout.dimensions();
        let needed = Self {
            image_size: self
                .image_size
                .filter(|&size| found.image_size != Some(size)),
            text_len: self.text_len.filter(|&len| found.text_len != Some(len)),
            third_token_type: self.third_token_type && found.n_token_types == Some(2),
            ..self.clone()
        };
        if !needed.needs_family() {
            return Ok(source);
        }
        let plan = needed.plan(source, layout.as_ref())?;
        Ok(Arc::new(in_memory(&plan, run, progress)?))
    }

    /// Whether keys must be understood, not just copied.
    #[must_use]
    pub fn needs_family(&self) -> bool {
        self.spelling.is_some()
            || self.image_size.is_some()
            || self.text_len.is_some()
            || self.third_token_type
            || self.facts != ModelRecord::default()
    }

    fn sizes(&self, source: &Checkpoint, layout: &dyn Layout) -> Result<Dimensions> {
        tables::sizes_with_text(source, layout, self.text_table_len)
    }

    /// The window that index buffers are rebuilt for.
    fn window(&self, sizes: &Dimensions) -> Result<Window> {
        let unknown = |what| ConversionFault::UnknownSize { what };
        let text_len = self.text_len.or(sizes.text_len);
        let text_len = text_len.ok_or(unknown("text length"))?;
        Ok(Window {
            side: Windows::new(sizes, self.image_size)?.to,
            text_len,
            // Published pre-training sets the same length for fused passes.
            fused_text_len: Some(text_len),
            text_table_len: sizes
                .text_table_len
                .ok_or(unknown("text length of the bias table"))?,
        })
    }
}

/// A checkpoint that has the names of Hugging Face now, under those of `to`. Any model but a CLIP keeps them.
fn of_names(named: Arc<Checkpoint>, to: ClipTarget) -> Result<Arc<Checkpoint>> {
    let layout = layouts::detect(&named)?;
    match (layout.name(), to) {
        ("generic", ClipTarget::HuggingFace) => Ok(named),
        _ => clip::respelled(named, layout.as_ref(), to),
    }
}

impl fmt::Display for Conversion {
    /// Writes the command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        if let Some(spelling) = self.spelling {
            said.push(format!("to: {spelling}"));
        }
        match self.wrapper {
            Some(Wrapper::Add) => said.push("module: add".to_owned()),
            Some(Wrapper::Remove) => said.push("module: remove".to_owned()),
            None => {}
        }
        if let Some(image_size) = self.image_size {
            said.push(format!("image_size: {image_size}"));
        }
        if let Some(resize) = self.resize {
            said.push(format!("resize: {resize}"));
        }
        if let Some(text_len) = self.text_len {
            said.push(format!("text_len: {text_len}"));
        }
        if let Some(text_table_len) = self.text_table_len {
            said.push(format!("text_table_len: {text_table_len}"));
        }
        if self.third_token_type {
            said.push("nlvr2: true".to_owned());
        }
        let facts = [
            ("image_heads", self.facts.image_heads.map(|n| n.to_string())),
            ("text_heads", self.facts.text_heads.map(|n| n.to_string())),
            ("temperature", self.facts.temperature.map(|n| n.to_string())),
            (
                "image_mean",
                self.facts.image_mean.map(|mean| format!("{mean:?}")),
            ),
            (
                "image_deviation",
                self.facts.image_deviation.map(|of| format!("{of:?}")),
            ),
        ];
        let given = facts
            .into_iter()
            .filter_map(|(name, fact)| Some((name, fact?)));
        said.extend(given.map(|(name, fact)| format!("{name}: {fact}")));
        if self.with_buffers {
            said.push("with_buffers: true".to_owned());
        }
        if !self.run_arguments.is_empty() {
            said.push(format!("run_arguments: {}", self.run_arguments));
        }
        write!(f, "convert: {{ {} }}", said.join(", "))
    }
}
