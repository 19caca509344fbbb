//! The tensors of an EVE checkpoint, from its task and its sizes alone.

use crate::layouts::{Buffer, ModelRecord, RecordFamily, TowerSizes};
use crate::synth::{Distribution, Fresh, FreshTensor, Spread};
use crate::{DType, Error, ParamKind, Result, TensorInfo};

use super::image_position_ids;
use super::place::{Place, Stem, Whose, of_block};
use super::table::{Axis, IMAGE_POSITION_IDS, Presence};

/// Temperature of a fresh model, as published.
const FRESH_TEMPERATURE: f32 = 0.07;

/// The task of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EveTask {
    /// Nothing: the transformer alone.
    Backbone,
    /// Pre-training by masked signals.
    Pretrain,
    /// Retrieval, with matching.
    Retrieval,
    /// Answering questions.
    Vqa,
    /// Reasoning over two images that are read apart.
    Nlvr2,
    /// Reasoning over two images that attend to each other.
    Nlvr2Biattn,
}

impl EveTask {
    /// All tasks, with the names that the layout gives their checkpoints behind `eve/`.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Backbone, "backbone"),
        (Self::Pretrain, "pretrain"),
        (Self::Retrieval, "retrieval"),
        (Self::Vqa, "vqa"),
        (Self::Nlvr2, "nlvr2"),
        (Self::Nlvr2Biattn, "nlvr2_biattn"),
    ];

    /// The name, such as `retrieval`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(task, _)| *task == self);
        found.map_or("", |(_, name)| name)
    }
}

/// Sizes of an EVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EveSizes {
    /// Its blocks.
    pub blocks: TowerSizes,
    /// The number of the last blocks with a mixture of experts.
    pub n_mixtures: usize,
    /// Experts of each mixture.
    pub n_experts: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Rows of the table of text positions.
    pub text_positions: usize,
    /// Tokens of a text that is read together with an image.
    pub pair_len: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Answers of the VQA classifier.
    pub n_answers: usize,
}

impl EveSizes {
    /// The published base size at 384 px, as for retrieval and NLVR2.
    pub const BASE: Self = Self {
        blocks: TowerSizes::BASE,
        n_mixtures: 2,
        n_experts: 32,
        patch_size: 16,
        image_size: 384,
        text_positions: 196,
        pair_len: 40,
        vocabulary: 64_000,
        n_answers: 3128,
    };

    /// The published large size at 384 px.
    pub const LARGE: Self = Self {
        blocks: TowerSizes {
            n_blocks: 24,
            width: 1024,
            n_heads: 16,
            ffn_width: 4096,
        },
        n_mixtures: 3,
        ..Self::BASE
    };

    /// The side of the images of published models of a task, in pixels; that of pre-training is not sure.
    #[must_use]
    pub const fn published_side(task: EveTask) -> usize {
        match task {
            EveTask::Pretrain => 224,
            EveTask::Backbone | EveTask::Retrieval | EveTask::Nlvr2 | EveTask::Nlvr2Biattn => 384,
            EveTask::Vqa => 480,
        }
    }

    fn check(&self) -> Result<()> {
        let others = [
            (self.n_experts, 1 << 15),
            (self.text_positions, 1 << 20),
            (self.pair_len, 1 << 20),
            (self.vocabulary, 1 << 24),
            (self.n_answers, 1 << 24),
        ];
        TowerSizes::check(&[self.blocks], self.image_size, self.patch_size, &others)?;
        let reason = if self.n_mixtures > self.blocks.n_blocks {
            "there are more mixtures of experts than blocks"
        } else if self.n_mixtures > 0 && self.n_experts < 2 {
            "a token takes two experts of a mixture, which has fewer"
        } else if self.pair_len > self.text_positions {
            "texts read with an image are longer than the table of text positions"
        } else {
            return Ok(());
        };
        Err(Error::UnfitSizes { reason })
    }

    fn length(&self, axis: Axis, task: EveTask) -> usize {
        let side = self.image_size / self.patch_size;
        match axis {
            Axis::Fixed(length) => length,
            Axis::Width(times) => times * self.blocks.width,
            Axis::Ffn => self.blocks.ffn_width,
            Axis::Patch => self.patch_size,
            Axis::Pixels => 3 * self.patch_size.pow(2),
            Axis::ImageTokens => side * side + 1,
            Axis::Vocabulary => self.vocabulary,
            Axis::TextPositions => self.text_positions,
            Axis::Experts => self.n_experts,
            Axis::Read if task == EveTask::Nlvr2 => 2 * self.blocks.width,
            Axis::Read => self.blocks.width,
            Axis::Classes if task == EveTask::Nlvr2 => 2,
            Axis::Classes => self.n_answers,
            Axis::TableRows => (2 * side - 1).pow(2) + 2 * self.text_positions + 5,
            Axis::TableColumns => self.blocks.n_heads * self.blocks.n_blocks,
        }
    }
}

/// An EVE to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EveSpec {
    /// The task.
    pub task: EveTask,
    /// Its sizes.
    pub sizes: EveSizes,
    /// Whether to write the buffers of positions, as published checkpoints hold them.
    pub with_buffers: bool,
}

impl EveSpec {
    fn holds(&self, presence: Presence) -> bool {
        match presence {
            Presence::Always => true,
            Presence::Pretrained => self.task == EveTask::Pretrain,
            Presence::Retrieval => self.task == EveTask::Retrieval,
            Presence::Classifier => matches!(self.task, EveTask::Vqa | EveTask::Nlvr2),
            Presence::Pairs => self.task == EveTask::Nlvr2Biattn,
            Presence::Unreleased => false,
        }
    }

    /// Every place of the model.
    fn places(&self) -> Vec<Place> {
        let EveSizes {
            blocks,
            n_mixtures,
            n_experts,
            ..
        } = self.sizes;
        let first_mixture = blocks.n_blocks.saturating_sub(n_mixtures);
        let networks = [
            Stem::Shared,
            Stem::Ffn(Whose::Image),
            Stem::Norm(Whose::Image),
            Stem::Ffn(Whose::Text),
            Stem::Norm(Whose::Text),
        ];
        let routed = (0..n_experts).map(|index| Stem::Routed(index as u16));
        let mixture: Vec<Stem> = [Stem::Shared, Stem::Norm(Whose::Joint), Stem::Mixture]
            .into_iter()
            .chain(routed)
            .collect();
        let mut places: Vec<Place> = of_block(0, &[Stem::Head, Stem::Outer]).collect();
        for block in 0..blocks.n_blocks {
            let stems = match block < first_mixture {
                true => networks.as_slice(),
                false => &mixture,
            };
            places.extend(of_block(block, stems));
        }
        places.retain(|place| {
            self.holds(place.parameter.presence) && (self.with_buffers || !place.is_buffer())
        });
        places
    }

    fn tensor(&self, place: Place, spread: Spread) -> FreshTensor {
        let name = place.key();
        let kind = place.parameter.kind;
        if place.is_buffer() {
            let is_of_image = place.parameter.key == IMAGE_POSITION_IDS;
            let buffer = match is_of_image {
                true => image_position_ids(self.sizes.image_size / self.sizes.patch_size),
                false => text_position_ids(self.sizes.text_positions),
            };
            return FreshTensor::buffer(name, buffer);
        }
        let lengths = place.parameter.shape.iter();
        let lengths = lengths.map(|axis| self.sizes.length(*axis, self.task));
        let (mean, deviation) = match kind {
            ParamKind::Norm if name.ends_with("weight") => (1.0, spread.deviation),
            ParamKind::Scale if place.stem == Stem::Head => (FRESH_TEMPERATURE, 0.0),
            ParamKind::Scale => (spread.layer_scale, spread.layer_scale / 10.0),
            _ => (0.0, spread.deviation),
        };
        // Networks of the two modalities are relatives, routed experts are not.
        let is_of_modality = matches!(
            place.stem,
            Stem::Ffn(Whose::Image | Whose::Text) | Stem::Norm(Whose::Image | Whose::Text)
        );
        FreshTensor {
            info: TensorInfo {
                dtype: DType::F32,
                shape: lengths.collect(),
            },
            kind,
            mean,
            deviation,
            distribution: Distribution::Normal,
            draw: name.clone(),
            seed: is_of_modality.then(|| {
                let seed = place.slot(super::table::BACKBONE, true).key;
                format!("{seed}: of both modalities")
            }),
            buffer: None,
            name,
        }
    }
}

fn text_position_ids(n: usize) -> Buffer {
    Buffer {
        info: TensorInfo {
            dtype: DType::I64,
            shape: vec![n],
        },
        values: (0..n as i64).collect(),
    }
}

impl Fresh for EveSpec {
    fn check(&self) -> Result<()> {
        self.sizes.check()
    }

    fn tensors(&self, spread: Spread) -> Vec<FreshTensor> {
        let places = self.places().into_iter();
        places.map(|place| self.tensor(place, spread)).collect()
    }

    fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Eve),
            heads: Some(self.sizes.blocks.n_heads),
            pair_len: Some(self.sizes.pair_len),
            ..ModelRecord::default()
        }
    }

    fn describe(&self) -> String {
        format!(
            "family: eve, task: {}, sizes: {:?}",
            self.task.name(),
            self.sizes
        )
    }
}
