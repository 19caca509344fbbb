//! The tensors of an FLM checkpoint, from its task and its sizes alone.

use crate::io::Aliases;
use crate::layouts::{Buffer, ModelRecord, OneStream, RecordFamily, TowerSizes};
use crate::synth::{Distribution, Fresh, FreshTensor, Spread};
use crate::{DType, Error, ParamKind, Result, TensorInfo};

use super::place::Place;
use super::table::{
    Axis, BOTTOM, CROSS, GROUPS, Group, HEAD, IMAGE, Parameter, Presence, TEXT, TOP,
};

/// The task of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlmTask {
    /// Pre-training by free language modeling.
    Pretrain,
    /// The same with image-text matching.
    Itm,
    /// Pre-training by masked language modeling, with one stream.
    Mlm,
    /// Pre-training from left to right, with one stream.
    Ar,
    /// Answering questions.
    Vqa,
    /// Reasoning over two images.
    Nlvr2,
    /// Retrieval by ranking.
    Retrieval,
    /// Writing captions.
    Caption,
}

impl FlmTask {
    /// All tasks, with the names that the layout gives their checkpoints behind `flm/`.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Pretrain, "pretrain"),
        (Self::Itm, "itm"),
        (Self::Mlm, "mlm"),
        (Self::Ar, "ar"),
        (Self::Vqa, "vqa"),
        (Self::Nlvr2, "nlvr2"),
        (Self::Retrieval, "retrieval"),
        (Self::Caption, "caption"),
    ];

    /// The name, such as `pretrain`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(task, _)| *task == self);
        found.map_or("", |(_, name)| name)
    }

    /// The task with a name, such as `pretrain`. The published program and older versions call retrieval `irtr`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = match name {
            "irtr" => "retrieval",
            name => name,
        };
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found.map(|(task, _)| *task)
    }

    /// Whether the published program builds the model with a reconstructor.
    #[must_use]
    pub const fn is_three_stream(self) -> bool {
        !matches!(self, Self::Mlm | Self::Ar)
    }

    /// The way of reading of a task's models, if they have one stream by nature.
    #[must_use]
    pub const fn reading(self) -> Option<OneStream> {
        match self {
            Self::Mlm => Some(OneStream::Bidirectional),
            Self::Ar => Some(OneStream::Causal),
            _ => None,
        }
    }
}

/// Sizes of an FLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlmSizes {
    /// CLIP's image tower.
    pub image: TowerSizes,
    /// RoBERTa's lower layers.
    pub text: TowerSizes,
    /// The cross-modal layers, whose width is the reconstructor's, too.
    pub cross: TowerSizes,
    /// Layers of the reconstructor beside those of the text.
    pub n_bottom: usize,
    /// Layers of the reconstructor beside the cross-modal ones.
    pub n_top: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Rows of the text position table.
    pub text_positions: usize,
    /// Rows of the outer token type table.
    pub n_token_types: usize,
    /// Answers of the VQA classifier.
    pub n_answers: usize,
    /// Text positions of CLIP's own text tower.
    pub clip_text_positions: usize,
    /// Width of CLIP's own text tower.
    pub clip_text_width: usize,
}

impl FlmSizes {
    /// The published size: ViT-B/32 except for its last block, at 288 px, and the lower half of roberta-base.
    pub const BASE: Self = Self {
        image: TowerSizes {
            n_blocks: 11,
            ..TowerSizes::BASE
        },
        text: TowerSizes {
            n_blocks: 6,
            ..TowerSizes::BASE
        },
        cross: TowerSizes {
            n_blocks: 6,
            ..TowerSizes::BASE
        },
        n_bottom: 6,
        n_top: 6,
        patch_size: 32,
        image_size: 288,
        vocabulary: 50265,
        text_positions: 514,
        n_token_types: 2,
        n_answers: 3129,
        clip_text_positions: 77,
        clip_text_width: 512,
    };

    /// The sizes of the published models of a task: image size, vocabulary, token types.
    #[must_use]
    pub fn published(task: FlmTask) -> Self {
        let (image_size, vocabulary, n_token_types) = match task {
            FlmTask::Pretrain => (288, 50265, 2),
            FlmTask::Itm | FlmTask::Mlm | FlmTask::Ar => (224, 50265, 2),
            FlmTask::Vqa => (576, 50265, 2),
            FlmTask::Nlvr2 => (288, 50265, 3),
            FlmTask::Retrieval => (384, 50265, 2),
            FlmTask::Caption => (384, 50267, 2),
        };
        Self {
            image_size,
            vocabulary,
            n_token_types,
            ..Self::BASE
        }
    }

    fn check(&self) -> Result<()> {
        let towers = [self.image, self.text, self.cross];
        let others = [
            (self.vocabulary, 1 << 24),
            (self.text_positions, 1 << 20),
            (self.n_token_types, 1 << 10),
            (self.n_answers, 1 << 24),
            (self.clip_text_positions, 1 << 20),
            (self.clip_text_width, 1 << 18),
            // The reconstructor may have no layers.
            (self.n_bottom.saturating_add(1), (1 << 12) + 1),
            (self.n_top.saturating_add(1), (1 << 12) + 1),
        ];
        TowerSizes::check(&towers, self.image_size, self.patch_size, &others)
    }

    fn length(&self, axis: Axis) -> usize {
        match axis {
            Axis::Fixed(length) => length,
            Axis::Image(times) => times * self.image.width,
            Axis::ImageFfn => self.image.ffn_width,
            Axis::Patch => self.patch_size,
            Axis::ImageTokens => (self.image_size / self.patch_size).pow(2) + 1,
            Axis::ClipTextPositions => self.clip_text_positions,
            Axis::ClipText => self.clip_text_width,
            Axis::Text => self.text.width,
            Axis::TextFfn => self.text.ffn_width,
            Axis::Hidden(times) => times * self.cross.width,
            Axis::HiddenFfn => self.cross.ffn_width,
            Axis::Vocabulary => self.vocabulary,
            Axis::TextPositions => self.text_positions,
            Axis::TokenTypes => self.n_token_types,
            Axis::Answers => self.n_answers,
        }
    }

    fn n_blocks(&self, stack: u8) -> usize {
        match stack {
            IMAGE => self.image.n_blocks,
            TEXT => self.text.n_blocks,
            CROSS => self.cross.n_blocks,
            BOTTOM => self.n_bottom,
            _ => self.n_top,
        }
    }
}

/// An FLM to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlmSpec {
    /// The task.
    pub task: FlmTask,
    /// Whether it has a reconstructor; published models of [`FlmTask::Mlm`] and [`FlmTask::Ar`] have none.
    pub is_three_stream: bool,
    /// Whether the streams share one language head, as published models do.
    pub shares_heads: bool,
    /// The way of reading texts, if it was trained to read them in one stream and that is known.
    pub reading: Option<OneStream>,
    /// Its sizes.
    pub sizes: FlmSizes,
}

impl FlmSpec {
    /// As published for a task.
    #[must_use]
    pub fn published(task: FlmTask) -> Self {
        Self {
            task,
            is_three_stream: task.is_three_stream(),
            shares_heads: true,
            reading: task.reading(),
            sizes: FlmSizes::published(task),
        }
    }

    fn holds(&self, presence: Presence) -> bool {
        use FlmTask::{Ar, Caption, Itm, Mlm, Nlvr2, Pretrain, Retrieval, Vqa};
        match presence {
            Presence::Always => true,
            Presence::ThreeStream => self.is_three_stream,
            Presence::Masked => self.task == Mlm,
            Presence::Causal => matches!(self.task, Ar | Caption),
            Presence::Free => matches!(self.task, Pretrain | Itm),
            Presence::Matching => matches!(self.task, Itm | Retrieval),
            Presence::Vqa => self.task == Vqa,
            Presence::Nlvr2 => self.task == Nlvr2,
            Presence::Ranking => self.task == Retrieval,
        }
    }

    fn is_alias(&self, group: &Group) -> bool {
        let of_head = group.alias_of == Some(HEAD);
        group.alias_of.is_some() && (self.shares_heads || !of_head)
    }

    /// Every place of the model, in the order in which the published program registers it.
    fn places(&self) -> impl Iterator<Item = Place> {
        let groups = GROUPS.iter().filter(|group| self.holds(group.presence));
        groups.flat_map(|group| {
            let blocks = match group.stack {
                None => vec![None],
                Some(stack) => (0..self.sizes.n_blocks(stack)).map(Some).collect(),
            };
            blocks.into_iter().flat_map(move |block| {
                (group.parameters.iter()).map(move |parameter| Place {
                    group,
                    block,
                    parameter,
                })
            })
        })
    }

    /// All names of the model, in the order in which the published program registers them. An alias has the name
    /// that its tensor goes by beside it.
    #[must_use]
    pub fn names(&self) -> Vec<(String, Option<String>)> {
        let names = self.places().map(|place| {
            let is_alias = self.is_alias(place.group);
            (place.key(), place.canonical().filter(|_| is_alias))
        });
        names.collect()
    }

    fn tensor(&self, place: Place, spread: Spread) -> FreshTensor {
        let Parameter { kind, shape, .. } = place.parameter;
        let name = place.key();
        let lengths = shape.iter().map(|axis| self.sizes.length(*axis));
        let shape: Vec<usize> = lengths.collect();
        if place.is_buffer() {
            let n = self.sizes.text_positions;
            let info = TensorInfo {
                dtype: DType::I64,
                shape,
            };
            let values = (0..n as i64).collect();
            return FreshTensor::buffer(name, Buffer { info, values });
        }
        let is_fusion = matches!(place.group.stack, Some(BOTTOM | TOP));
        let (mean, deviation) = match kind {
            ParamKind::Norm if name.ends_with("weight") => (1.0, spread.deviation),
            // Nothing reads it, and nothing but the framework's default fills it.
            _ if name.starts_with("lm_type_embeddings.") => (0.0, 1.0),
            _ => (0.0, spread.deviation),
        };
        FreshTensor {
            distribution: match (is_fusion, kind) {
                (true, ParamKind::LinearWeight | ParamKind::Bias) => {
                    Distribution::Uniform(1.0 / (self.fan_in(place) as f32).sqrt())
                }
                _ => Distribution::Normal,
            },
            info: TensorInfo {
                dtype: DType::F32,
                shape,
            },
            kind: *kind,
            mean,
            deviation,
            draw: name.clone(),
            seed: None,
            buffer: None,
            name,
        }
    }

    /// Inputs of the linear layer that a weight or a bias of the reconstructor belongs to.
    fn fan_in(&self, place: Place) -> usize {
        let of_ffn = place.parameter.key.starts_with("output.dense.");
        match of_ffn {
            true => self.sizes.cross.ffn_width,
            false => self.sizes.cross.width,
        }
    }
}

impl Fresh for FlmSpec {
    fn check(&self) -> Result<()> {
        let is_one_width = self.sizes.text.width == self.sizes.cross.width;
        if self.is_three_stream && !is_one_width {
            return Err(Error::UnfitSizes {
                reason: "the reconstructor needs text and cross-modal layers of one width",
            });
        }
        self.sizes.check()
    }

    fn tensors(&self, spread: Spread) -> Vec<FreshTensor> {
        let own = self.places().filter(|place| !self.is_alias(place.group));
        own.map(|place| self.tensor(place, spread)).collect()
    }

    fn aliases(&self) -> Aliases {
        let names = self.names().into_iter();
        names.filter_map(|(name, of)| Some((name, of?))).collect()
    }

    fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Flm),
            heads: Some(self.sizes.cross.n_heads),
            image_heads: Some(self.sizes.image.n_heads),
            text_heads: Some(self.sizes.text.n_heads),
            streams: self.reading,
            ..ModelRecord::default()
        }
    }

    fn describe(&self) -> String {
        format!(
            "family: flm, task: {}, three_stream: {}, shared_heads: {}, sizes: {:?}",
            self.task.name(),
            self.is_three_stream,
            self.shares_heads,
            self.sizes
        )
    }
}
