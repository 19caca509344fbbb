//! Starting a modality-specific model: which expert begins as a copy of what.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::draft::Draft;
use super::keys::{self, BeitTable};
use super::positions::Resize;
use super::tables::{self, Windows};
use crate::layouts::vl_merging::{expert_key, owned_part, usual_fusion_start};
use crate::layouts::{Form, ModelRecord, without_module};
use crate::plan::{Action, Entry, TensorRef};
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, Error, Expert, Layout, MergePlan, Result};

/// Text positions that the published bias tables have room for.
const PUBLISHED_TEXT_TABLE_LEN: usize = 196;

/// The experts that begin as copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// All of them, of the same weights (published: `use_vision_weights_for_other_modalities`).
    #[default]
    Copy,
    /// Only vision; the others are left out, and a loader draws them.
    VisionOnly,
}

/// BEiT to a seed, and a seed to a modality-specific model.
#[derive(Clone)]
pub struct Expansion {
    /// The form of the result, one of vl-merging's.
    pub form: Form,
    /// The experts that begin as copies.
    pub start: Start,
    /// First block with a vision-language expert; that of the seed, or the usual one of this depth,
    /// unless given.
    pub fusion_start: Option<usize>,
    /// Seeds whose weights single experts begin with instead.
    pub seeds: BTreeMap<Expert, Arc<Checkpoint>>,
    /// Side of the image in pixels, if it changes.
    pub image_size: Option<usize>,
    /// The way of resizing position tables; bicubic unless given.
    pub resize: Option<Resize>,
    /// Text positions that a bias table gets, or has, room for; 196 unless given.
    pub text_table_len: Option<usize>,
    /// Keep what the published program carries along unused: BEiT's heads.
    pub as_published: bool,
    /// Element type of the output.
    pub dtype: OutputDType,
}

/// The forms that an expansion results in, as recipes call them.
const FORMS: [(Form, &str); 5] = [
    (Form::Agnostic, "agnostic"),
    (Form::AllSpecific, "all-specific"),
    (Form::AttnSpecific, "attn-specific"),
    (Form::FfnSpecific, "ffn-specific"),
    (Form::LnSpecific, "ln-specific"),
];

impl Expansion {
    /// All experts as copies, nothing else changed.
    #[must_use]
    pub fn to(form: Form) -> Self {
        Self {
            form,
            start: Start::Copy,
            fusion_start: None,
            seeds: BTreeMap::new(),
            image_size: None,
            resize: None,
            text_table_len: None,
            as_published: false,
            dtype: OutputDType::Keep,
        }
    }

    /// Says what happens to every key of `source`.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for anything but BEiT and agnostic vl-merging checkpoints,
    /// [`ConversionFault::FusionStartUnknown`], [`ConversionFault::FusionStartRange`]; [`Error::MissingKey`] and
    /// [`Error::ShapeMismatch`] when another seed does not fit; those of the position tables.
    pub fn plan(&self, source: Arc<Checkpoint>, layout: &dyn Layout) -> Result<MergePlan> {
        let mut draft = Draft::untied(Arc::clone(&source))?;
        if !FORMS.iter().any(|(form, _)| *form == self.form) {
            return Err(draft.refused(layout, "expanded into another family"));
        }
        let resize = self.resize.unwrap_or(Resize::Bicubic);
        let is_beit = layout.name().starts_with("beit/");
        if !is_beit && layout.name() != "vl_merging/agnostic" {
            return Err(draft.refused(layout, "expanded"));
        }
        if is_beit {
            let table = BeitTable {
                windows: Windows::new(layout.dimensions(), self.image_size)?,
                resize,
                text_table_len: self.text_table_len.unwrap_or(PUBLISHED_TEXT_TABLE_LEN),
            };
            keys::beit_to_seed(&mut draft, layout, &table, self.as_published)?;
        } else if self.image_size.is_some() {
            let sizes = tables::sizes_with_text(&source, layout, self.text_table_len)?;
            let windows = Windows::new(&sizes, self.image_size)?;
            tables::change_window(&mut draft, layout, windows, resize)?;
            if draft.is_changed() {
                tables::replace_indices(&mut draft, layout, None, None)?;
            }
        }
        let fusion_start = self.copy_experts(&mut draft, layout)?;
        let recipe = self.to_string();
        let model = ModelRecord {
            fusion_start: (fusion_start.filter(|_| self.start == Start::Copy))
                .or(self.fusion_start),
            text_table_len: self.text_table_len,
            ..ModelRecord::default()
        };
        draft.finish(layout, recipe, self.dtype, model)
    }

    /// Gives experts their copies; the fusion start, where it was needed.
    fn copy_experts(&self, draft: &mut Draft, layout: &dyn Layout) -> Result<Option<usize>> {
        let seeds: BTreeMap<Expert, usize> = (self.seeds.iter())
            .map(|(expert, seed)| (*expert, draft.add_source(Arc::clone(seed))))
            .collect();
        let mut fusion_start = None;
        for name in draft.names() {
            let Some((block, part)) = owned_part(without_module(&name)) else {
                continue;
            };
            if !self.form.specific().contains(&part) {
                continue;
            }
            let fusion_start = match fusion_start {
                Some(start) => start,
                None => *fusion_start.insert(self.find_fusion_start(draft, layout)?),
            };
            let Some(entry) = draft.take(&name) else {
                continue;
            };
            let mut is_used = false;
            for expert in self.experts(block >= fusion_start) {
                let Some(key) = expert_key(without_module(&name), expert) else {
                    continue;
                };
                let copy = match seeds.get(&expert) {
                    Some(&seed) => from_other_seed(draft, seed, &name, &entry)?,
                    None => entry.clone(),
                };
                is_used |= !seeds.contains_key(&expert);
                draft.put(Entry {
                    name: key,
                    why: format!("{expert} starts as {}", origin(draft, &copy)),
                    ..copy
                })?;
            }
            for tensor in entry.action.tensors().filter(|_| !is_used) {
                draft.drop_tensor(tensor.clone(), "every expert starts from another seed");
            }
        }
        Ok(fusion_start)
    }

    fn experts(&self, is_deep: bool) -> Vec<Expert> {
        match (self.start, is_deep) {
            (Start::VisionOnly, _) => vec![Expert::Vision],
            (Start::Copy, false) => vec![Expert::Vision, Expert::Language],
            (Start::Copy, true) => vec![Expert::Vision, Expert::Language, Expert::VisionLanguage],
        }
    }

    fn find_fusion_start(&self, draft: &Draft, layout: &dyn Layout) -> Result<usize> {
        let sizes = layout.dimensions();
        let n_blocks = sizes.n_blocks();
        let found = (self.fusion_start)
            .or(sizes.fusion_start)
            .or_else(|| usual_fusion_start(n_blocks));
        match found {
            Some(fusion_start) if fusion_start > n_blocks => {
                Err(ConversionFault::FusionStartRange {
                    fusion_start,
                    n_blocks,
                }
                .into())
            }
            Some(fusion_start) => Ok(fusion_start),
            // No vision-language expert is written, wherever fusion starts.
            None if self.start == Start::VisionOnly => Ok(n_blocks),
            None => Err(ConversionFault::FusionStartUnknown {
                path: draft.source(0).path().into(),
            }
            .into()),
        }
    }
}

impl fmt::Display for Expansion {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = FORMS.iter().find(|(form, _)| *form == self.form);
        write!(f, "expand: {{ to: {}", form.map_or("?", |(_, name)| name))?;
        match self.start {
            Start::Copy => f.write_str(", experts: copy")?,
            Start::VisionOnly => f.write_str(", experts: vision-only")?,
        }
        for (expert, seed) in &self.seeds {
            let file = seed.path().file_name().unwrap_or_default();
            write!(f, ", {expert}: {}", file.display())?;
        }
        for (name, value) in [
            ("fusion_start", self.fusion_start),
            ("image_size", self.image_size),
            ("text_table_len", self.text_table_len),
        ] {
            if let Some(value) = value {
                write!(f, ", {name}: {value}")?;
            }
        }
        if let Some(resize) = self.resize {
            write!(f, ", resize: {resize}")?;
        }
        if self.as_published {
            f.write_str(", as_published: true")?;
        }
        f.write_str(" }")
    }
}

/// The same key of another seed.
fn from_other_seed(draft: &Draft, seed: usize, name: &str, entry: &Entry) -> Result<Entry> {
    let key = without_module(name);
    let info = draft.source(seed).require(key)?;
    if info.shape != entry.info.shape {
        return Err(Error::ShapeMismatch {
            slot: key.to_owned(),
            key: key.to_owned(),
            found: info.shape.clone(),
            expected: entry.info.shape.clone(),
        });
    }
    Ok(Entry {
        info: info.clone(),
        action: Action::Copy(TensorRef {
            source: seed,
            key: key.to_owned(),
        }),
        ..entry.clone()
    })
}

fn origin(draft: &Draft, entry: &Entry) -> String {
    match &entry.action {
        Action::Copy(tensor) if tensor.source > 0 => {
            let path = draft.source(tensor.source).path();
            format!("`{}` of {}", tensor.key, path.display())
        }
        Action::Copy(tensor) => format!("`{}`", tensor.key),
        _ => entry.why.clone(),
    }
}
