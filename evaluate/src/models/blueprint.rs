//! A model that is not loaded yet.

use candle_core::{DType, Device};
use merge::layouts::ModelRecord;

use super::{Branch, Grouping, Head, Model, ModelInput};
use crate::{Result, Weights};

/// Settings that only some families know. One that a family ignores is an error, not a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// Attention heads, where the weights do not tell.
    Heads,
    /// First block in which text and image are one sequence.
    FusionStart,
    /// The attention between text and image before it.
    ShallowAttention,
    /// Text positions that the bias table has room for.
    TextTableLen,
    /// Attention heads of the image tower.
    ImageHeads,
    /// Attention heads of the text tower.
    TextHeads,
    /// The function between the two layers of an FFN.
    Activation,
    /// The divisor of similarities, of a model that does not learn it.
    Temperature,
    /// The numbers subtracted from the channels of a picture.
    ImageMean,
    /// The divisors of the channels of a picture.
    ImageDeviation,
    /// The way of reading texts: in three streams or in one.
    Streams,
    /// Tokens of a text that is read together with an image, where the family fixes them.
    PairLen,
    /// Slips of the published program.
    AsPublished,
    /// The choice of routers outside of training.
    Routing,
    /// Blocks before the head of hidden patches.
    DecoderDepth,
    /// Whether the head of masked words ends in the word embedding.
    TiedWords,
    /// Leaving out residual branches at random.
    DropPath,
    /// Leaving out numbers at random.
    Dropout,
    /// Computing the inside of blocks again in the backward pass.
    CheckpointActivations,
    /// The weight of the balance of routers' experts.
    Balance,
    /// Whether ranks share the experts of mixtures.
    ShareExperts,
}

impl Setting {
    /// Its key in recipes.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::FusionStart => "fusion_start",
            Self::ShallowAttention => "shallow_attention",
            Self::TextTableLen => "text_table_len",
            Self::ImageHeads => "image_heads",
            Self::TextHeads => "text_heads",
            Self::Activation => "activation",
            Self::Temperature => "temperature",
            Self::ImageMean => "image_mean",
            Self::ImageDeviation => "image_deviation",
            Self::Streams => "streams",
            Self::PairLen => "pair_len",
            Self::AsPublished => "as_published",
            Self::Routing => "routing",
            Self::DecoderDepth => "decoder_depth",
            Self::TiedWords => "tied_words",
            Self::DropPath => "drop_path",
            Self::Dropout => "dropout",
            Self::CheckpointActivations => "checkpoint_activations",
            Self::Balance => "balance",
            Self::ShareExperts => "share_experts",
        }
    }
}

/// The sizes of a step in training, for an estimate of its memory.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// Examples that are computed together.
    pub n_examples: usize,
    /// Whether the inside of blocks is computed again in the backward pass.
    pub are_recomputed: bool,
    /// Branches of features in one pass; empty where nothing is contrasted.
    pub branches: &'a [Branch],
    /// The dtype of blocks that are graphs of candle's operations; `None` where they run on slices.
    pub graphs: Option<DType>,
}

/// The dtype in which blocks are graphs: on every device but a processor in f32.
#[must_use]
pub fn dtype_of_graphs(device: &Device, dtype: DType) -> Option<DType> {
    let is_on_slices = device.is_cpu() && dtype == DType::F32;
    (!is_on_slices).then_some(dtype)
}

/// A block of a transformer, for an estimate of its memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSizes {
    pub(super) width: usize,
    pub(super) ffn_width: usize,
    pub(super) heads: usize,
    /// Tokens that a token attends to.
    pub(super) keys: usize,
}

impl BlockSizes {
    /// Bytes that the graph of a block keeps for each token: the outputs of all its operations. Norms, and scores with their
    /// softmax, are computed in f32 or wider.
    fn graph_bytes(self, dtype: DType) -> u64 {
        let Self {
            width,
            ffn_width,
            heads,
            keys,
        } = self;
        let bytes = dtype.size_in_bytes();
        let is_half = bytes < 4;
        // Centered, squared, divided, times weight, plus bias; of 16 bits also widened and narrowed.
        let norm = match is_half {
            true => 4 * 4 * width + 3 * bytes * width,
            false => 5 * bytes * width,
        };
        // Packed projections with and without bias (6), queries, keys and values by head, scaled and transposed (5), mixed (2),
        // the projection's product, sum, scale and residual (4), as many behind the FFN, input and output apart (2).
        let plain = bytes * (23 * width + 3 * ffn_width);
        // Product, with the position bias, less the largest, raised, divided; of 16 bits also widened and narrowed.
        let scores = match is_half {
            true => 2 * bytes + 4 * 5,
            false => 5 * bytes,
        };
        (2 * norm + plain + scores * heads * keys) as u64
    }
}

/// Blocks' worth of graphs that the block at work takes in its backward pass: gradients by what it has kept.
const GRAPHS_AT_WORK: u64 = 1;

/// The memory of a block's graph over that of the same block on slices, in numbers, where nothing is counted: as for blocks of the
/// multiway family of base size.
const GRAPH_OVER_SLICES: u64 = 3;

/// Blocks' worth of activations that the block at work takes in its backward pass, as measured.
pub(super) const AT_WORK: u64 = 3;

impl Activations<'_> {
    /// Bytes of blocks of `n_tokens` tokens each, of which a token keeps `whole` numbers, or its input of `width` where
    /// the inside is computed again. A tensor without a width is no input of a block, and is kept.
    pub(super) fn of_blocks(
        &self,
        n_blocks: usize,
        n_tokens: usize,
        width: usize,
        whole: usize,
    ) -> u64 {
        let per_number = match self.graphs {
            None => 4 * self.n_examples as u64 * n_tokens as u64,
            Some(dtype) => {
                let bytes = dtype.size_in_bytes() as u64 * GRAPH_OVER_SLICES;
                bytes * self.n_examples as u64 * n_tokens as u64
            }
        };
        let kept = match self.are_recomputed && width > 0 {
            true => width,
            false => whole,
        };
        per_number * (n_blocks as u64 * kept as u64 + AT_WORK * whole as u64)
    }

    /// Bytes of `n_blocks` blocks of `n_tokens` tokens a sequence that are graphs in `dtype`, and of the block at work.
    pub(super) fn of_graphs(
        &self,
        dtype: DType,
        n_blocks: usize,
        n_tokens: usize,
        sizes: BlockSizes,
    ) -> u64 {
        let n_tokens = self.n_examples as u64 * n_tokens as u64;
        let whole = sizes.graph_bytes(dtype);
        let kept = match self.are_recomputed {
            // Its input, twice: as it came and as the output of the block before.
            true => 2 * (dtype.size_in_bytes() * sizes.width) as u64,
            false => whole,
        };
        let at_work = GRAPHS_AT_WORK + u64::from(self.are_recomputed);
        n_tokens * (n_blocks as u64 * kept + at_work * whole)
    }
}

/// A checked description of a model that is not loaded yet: its sizes fit together, and its
/// [`settings`](Blueprint::takes) are those of its family.
pub trait Blueprint: Send + Sync {
    /// The family, such as `multiway`.
    fn family(&self) -> &'static str;

    /// Pixels and tokens that the model takes.
    fn input(&self) -> &ModelInput;

    /// Patches of an image in a row, and rows, where objectives may hide patches.
    fn patch_side(&self) -> Option<usize> {
        None
    }

    /// Numbers of a feature that images and texts are compared by, where the family has such features.
    fn feature_width(&self) -> Option<usize> {
        None
    }

    /// Whether the family knows a setting.
    fn takes(&self, setting: Setting) -> bool;

    /// Beginnings of the names of a head's weights, which may start fresh. The first one is that of
    /// the weights that have its classes. Empty where the family has no such head.
    fn prefixes(&self, head: Head) -> &'static [&'static str];

    /// The variables to which the family's program gives a rate of their own, and those that it does not decay.
    fn grouping(&self) -> &'static Grouping;

    /// The model's name of a key of the checkpoint, `module.` being gone already.
    fn name_of(&self, key: &str) -> String {
        key.to_owned()
    }

    /// The key of a name that the checkpoint lacks, in the spelling of its other keys.
    fn spell(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Whether the family's published program has a tensor of this name that it never uses, so that
    /// nobody need hear of it.
    fn leaves_out(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Whether a variable belongs to an expert of a mixture, which ranks may share out.
    fn is_of_expert(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Facts about the model that the weights do not tell, for the file that they go to.
    fn record(&self) -> ModelRecord;

    /// Builds the model of its weights.
    ///
    /// # Errors
    /// As [`Weights::get`].
    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>>;

    /// Bytes that training keeps for the backward pass, by estimate.
    fn activation_bytes(&self, of: &Activations<'_>) -> u64;
}
