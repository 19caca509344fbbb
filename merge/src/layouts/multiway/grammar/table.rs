//! The table of keys: one row a parameter, with its kind and its shape in a model's sizes.

use crate::ParamKind;
use crate::layouts::Part;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layouts::multiway) enum Axis {
    /// The same in every model.
    Fixed(usize),
    /// In multiples of the hidden size.
    Width(usize),
    /// Inner size of the feed-forward network.
    Ffn,
    /// Word pieces.
    Vocabulary,
    /// Text positions.
    Text,
    /// Rows of the outer token type table.
    TokenTypes,
    /// Side of a patch in pixels.
    Patch,
    /// Patches and the class token.
    ImageTokens,
    /// Rows of the relative position bias table.
    TableRows,
    /// Its columns: heads of all blocks side by side.
    TableColumns,
    /// Rows of a BEiT table, which knows images only.
    ImageTableRows,
    /// Heads of one block.
    Heads,
    /// Answers of the question answering head.
    Answers,
    /// Classes of an image classifier.
    Classes,
}

/// A parameter of a block.
#[derive(Debug)]
pub(in crate::layouts::multiway) struct BlockParameter {
    /// First segment of the key in the block; experts own whole stems.
    pub stem: &'static str,
    /// The rest of the key; empty if there is none.
    pub rest: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// Its shape.
    pub shape: &'static [Axis],
}

const fn block(
    stem: &'static str,
    rest: &'static str,
    kind: ParamKind,
    shape: &'static [Axis],
) -> BlockParameter {
    BlockParameter {
        stem,
        rest,
        kind,
        shape,
    }
}

const D: Axis = Axis::Width(1);

/// Every parameter of a block.
pub(in crate::layouts::multiway) const BLOCK: &[BlockParameter] = &[
    block("gamma_1", "", ParamKind::Scale, &[D]),
    block("gamma_2", "", ParamKind::Scale, &[D]),
    block("norm1", "weight", ParamKind::Norm, &[D]),
    block("norm1", "bias", ParamKind::Norm, &[D]),
    block(
        "attn",
        "qkv.weight",
        ParamKind::LinearWeight,
        &[Axis::Width(3), D],
    ),
    block("attn", "q_bias", ParamKind::Bias, &[D]),
    block("attn", "v_bias", ParamKind::Bias, &[D]),
    block("attn", "proj.weight", ParamKind::LinearWeight, &[D, D]),
    block("attn", "proj.bias", ParamKind::Bias, &[D]),
    block("norm2", "weight", ParamKind::Norm, &[D]),
    block("norm2", "bias", ParamKind::Norm, &[D]),
    block(
        "mlp",
        "fc1.weight",
        ParamKind::LinearWeight,
        &[Axis::Ffn, D],
    ),
    block("mlp", "fc1.bias", ParamKind::Bias, &[Axis::Ffn]),
    block(
        "mlp",
        "fc2.weight",
        ParamKind::LinearWeight,
        &[D, Axis::Ffn],
    ),
    block("mlp", "fc2.bias", ParamKind::Bias, &[D]),
];

/// The bias table that BEiT's fine-tuned checkpoints keep in each block.
pub(in crate::layouts::multiway) const BEIT_BLOCK_TABLE: BlockParameter = block(
    "attn",
    "relative_position_bias_table",
    ParamKind::PositionBias,
    &[Axis::ImageTableRows, Axis::Heads],
);

/// The checkpoints that hold a parameter outside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layouts::multiway) enum Holder {
    /// All of the family.
    Always,
    /// All with text, so not BEiT.
    Text,
    /// vl-merging and BEiT's self-supervised checkpoints, not VLMo.
    MaskToken,
    /// All whose final norm stands in the transformer, so not BEiT's classifiers.
    FinalNorm,
    /// Those with relative positions.
    Table,
    /// vl-merging alone.
    VlMerging,
    /// VLMo base_plus, with absolute positions.
    Absolute,
    /// With the masked language modeling loss.
    Mlm,
    /// With the image-text matching loss.
    Itm,
    /// With a contrastive loss, in pre-training and in retrieval.
    Contrastive,
    /// With the contrastive loss of pre-training, which has a second branch.
    ContrastivePretrain,
    /// Fine-tuned for question answering.
    Vqa,
    /// Fine-tuned for two images.
    Nlvr2,
    /// Fine-tuned for image classification.
    Classification,
    /// With a masked image modeling loss.
    Mim,
    /// BEiT with one table for all blocks.
    BeitShared,
    /// BEiT with a table in each block.
    BeitPerBlock,
}

/// A parameter outside the blocks.
#[derive(Debug)]
pub(in crate::layouts::multiway) struct OuterParameter {
    /// The whole key in vl-merging spelling.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// The part under which it is counted.
    pub part: Part,
    /// The checkpoints that hold it.
    pub holder: Holder,
    /// Its shape.
    pub shape: &'static [Axis],
}

const fn outer(
    key: &'static str,
    kind: ParamKind,
    part: Part,
    holder: Holder,
    shape: &'static [Axis],
) -> OuterParameter {
    OuterParameter {
        key,
        kind,
        part,
        holder,
        shape,
    }
}

const D2: Axis = Axis::Width(2);
const TWO: Axis = Axis::Fixed(2);

/// Every parameter outside the blocks but the frozen image tokenizer's (`d_vae.*`).
#[rustfmt::skip] // a table: one row a line
pub(in crate::layouts::multiway) const OUTER: &[OuterParameter] = {
    use Axis::{Answers, Classes, Fixed, Heads, ImageTableRows, ImageTokens, Patch, TableColumns, TableRows, Text, TokenTypes, Vocabulary};
    use Holder as H;
    use ParamKind::{Bias, Embedding, LinearWeight, Norm, PositionBias, Scale};
    &[
        outer("text_embeddings.word_embeddings.weight", Embedding, Part::Embeddings, H::Text, &[Vocabulary, D]),
        outer("text_embeddings.position_embeddings.weight", Embedding, Part::Embeddings, H::Text, &[Text, D]),
        outer("text_embeddings.token_type_embeddings.weight", Embedding, Part::Embeddings, H::Text, &[TWO, D]),
        outer("text_embeddings.LayerNorm.weight", Norm, Part::Embeddings, H::Text, &[D]),
        outer("text_embeddings.LayerNorm.bias", Norm, Part::Embeddings, H::Text, &[D]),
        outer("token_type_embeddings.weight", Embedding, Part::Embeddings, H::Text, &[TokenTypes, D]),
        outer("transformer.cls_token", Embedding, Part::Embeddings, H::Always, &[Fixed(1), Fixed(1), D]),
        outer("transformer.mask_token", Embedding, Part::Embeddings, H::MaskToken, &[Fixed(1), Fixed(1), D]),
        outer("transformer.patch_embed.proj.weight", Embedding, Part::Embeddings, H::Always, &[D, Fixed(3), Patch, Patch]),
        outer("transformer.patch_embed.proj.bias", Bias, Part::Embeddings, H::Always, &[D]),
        outer("transformer.pos_embed", Embedding, Part::PositionTables, H::Absolute, &[Fixed(1), ImageTokens, D]),
        outer("transformer.norm.weight", Norm, Part::FinalNorm, H::FinalNorm, &[D]),
        outer("transformer.norm.bias", Norm, Part::FinalNorm, H::FinalNorm, &[D]),
        outer("pooler.dense.weight", LinearWeight, Part::Pooler, H::Text, &[D, D]),
        outer("pooler.dense.bias", Bias, Part::Pooler, H::Text, &[D]),
        outer("relative_position_bias_table", PositionBias, Part::PositionTables, H::Table, &[TableRows, TableColumns]),
        outer("temporal_relative_position_bias_table", PositionBias, Part::PositionTables, H::VlMerging, &[TWO, TableColumns]),
        outer("mlm_score.transform.dense.weight", LinearWeight, Part::Heads, H::Mlm, &[D, D]),
        outer("mlm_score.transform.dense.bias", Bias, Part::Heads, H::Mlm, &[D]),
        outer("mlm_score.transform.LayerNorm.weight", Norm, Part::Heads, H::Mlm, &[D]),
        outer("mlm_score.transform.LayerNorm.bias", Norm, Part::Heads, H::Mlm, &[D]),
        outer("mlm_score.decoder.weight", LinearWeight, Part::Heads, H::Mlm, &[Vocabulary, D]),
        outer("mlm_score.bias", Bias, Part::Heads, H::Mlm, &[Vocabulary]),
        outer("itm_score.fc.weight", LinearWeight, Part::Heads, H::Itm, &[TWO, D]),
        outer("itm_score.fc.bias", Bias, Part::Heads, H::Itm, &[TWO]),
        outer("ifm_text_proj.fc.weight", LinearWeight, Part::Heads, H::Contrastive, &[D, D]),
        outer("ifm_image_proj.fc.weight", LinearWeight, Part::Heads, H::Contrastive, &[D, D]),
        outer("ifm_vl_text_proj.fc.weight", LinearWeight, Part::Heads, H::ContrastivePretrain, &[D, D]),
        outer("ifm_vl_image_proj.fc.weight", LinearWeight, Part::Heads, H::ContrastivePretrain, &[D, D]),
        outer("logit_scale", Scale, Part::LogitScales, H::Contrastive, &[]),
        outer("logit_vl_scale", Scale, Part::LogitScales, H::ContrastivePretrain, &[]),
        outer("vqa_classifier.0.weight", LinearWeight, Part::Heads, H::Vqa, &[D2, D]),
        outer("vqa_classifier.0.bias", Bias, Part::Heads, H::Vqa, &[D2]),
        outer("vqa_classifier.1.weight", Norm, Part::Heads, H::Vqa, &[D2]),
        outer("vqa_classifier.1.bias", Norm, Part::Heads, H::Vqa, &[D2]),
        outer("vqa_classifier.3.weight", LinearWeight, Part::Heads, H::Vqa, &[Answers, D2]),
        outer("vqa_classifier.3.bias", Bias, Part::Heads, H::Vqa, &[Answers]),
        outer("nlvr2_classifier.0.weight", LinearWeight, Part::Heads, H::Nlvr2, &[D2, D2]),
        outer("nlvr2_classifier.0.bias", Bias, Part::Heads, H::Nlvr2, &[D2]),
        outer("nlvr2_classifier.1.weight", Norm, Part::Heads, H::Nlvr2, &[D2]),
        outer("nlvr2_classifier.1.bias", Norm, Part::Heads, H::Nlvr2, &[D2]),
        outer("nlvr2_classifier.3.weight", LinearWeight, Part::Heads, H::Nlvr2, &[TWO, D2]),
        outer("nlvr2_classifier.3.bias", Bias, Part::Heads, H::Nlvr2, &[TWO]),
        outer("img_cls_classifier.weight", LinearWeight, Part::Heads, H::Classification, &[Classes, D]),
        outer("img_cls_classifier.bias", Bias, Part::Heads, H::Classification, &[Classes]),
        outer("mim_score.weight", LinearWeight, Part::Heads, H::Mim, &[Fixed(8192), D]),
        outer("mim_score.bias", Bias, Part::Heads, H::Mim, &[Fixed(8192)]),
        outer("transformer.rel_pos_bias.relative_position_bias_table", PositionBias, Part::PositionTables, H::BeitShared, &[ImageTableRows, Heads]),
        outer("transformer.lm_head.weight", LinearWeight, Part::Heads, H::BeitShared, &[Classes, D]),
        outer("transformer.lm_head.bias", Bias, Part::Heads, H::BeitShared, &[Classes]),
        outer("transformer.fc_norm.weight", Norm, Part::FinalNorm, H::BeitPerBlock, &[D]),
        outer("transformer.fc_norm.bias", Norm, Part::FinalNorm, H::BeitPerBlock, &[D]),
        outer("transformer.head.weight", LinearWeight, Part::Heads, H::BeitPerBlock, &[Classes, D]),
        outer("transformer.head.bias", Bias, Part::Heads, H::BeitPerBlock, &[Classes]),
    ]
};
