//! The key table of the multiway family. vl-merging, VLMo and BEiT spell one model in three ways:
//! every key is translated to the agnostic vl-merging spelling and looked up here, and the
//! catalog writes checkpoints from the same rows.

use crate::{Expert, ParamKind, Slot};

use super::Part;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// The same in every model.
    Fixed(usize),
    /// So many times the hidden size.
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
pub(super) struct BlockParameter {
    /// First segment of the key in the block; experts own whole stems.
    pub stem: &'static str,
    /// The rest of the key; empty if there is none.
    pub rest: &'static str,
    /// What it does.
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

/// Whether experts may own copies of this stem. LayerScale serves everybody in every form.
pub(super) fn is_owned(stem: &str) -> bool {
    ["attn", "mlp", "norm1", "norm2"].contains(&stem)
}

/// Every parameter of a block.
pub(super) const BLOCK: &[BlockParameter] = &[
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
pub(super) const BEIT_BLOCK_TABLE: BlockParameter = block(
    "attn",
    "relative_position_bias_table",
    ParamKind::PositionBias,
    &[Axis::ImageTableRows, Axis::Heads],
);

/// Which checkpoints hold a parameter outside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
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
pub(super) struct OuterParameter {
    /// The whole key in vl-merging spelling.
    pub key: &'static str,
    /// What it does.
    pub kind: ParamKind,
    /// What it is counted under.
    pub part: Part,
    /// Which checkpoints hold it.
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
pub(super) const OUTER: &[OuterParameter] = {
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

/// Experts in the order in which published code walks them, with their key segments.
pub(super) const EXPERTS: [(Expert, &str); 3] = [
    (Expert::Vision, "v"),
    (Expert::Language, "l"),
    (Expert::VisionLanguage, "vl"),
];

/// Where the blocks stand in every spelling but BEiT's own.
pub(super) const BLOCKS: &str = "transformer.blocks.";

/// The key segment of an expert of this family.
pub(super) fn segment(expert: Expert) -> Option<&'static str> {
    EXPERTS
        .iter()
        .find(|(known, _)| *known == expert)
        .map(|(_, segment)| *segment)
}

/// A key inside a block, taken apart.
pub(super) struct BlockKey {
    /// Index of the block.
    pub block: usize,
    /// Whose copy it is, if not everybody's.
    pub expert: Option<Expert>,
    /// Its row of the table.
    pub parameter: &'static BlockParameter,
}

impl BlockKey {
    /// Parses a key in vl-merging spelling, segment by segment: `attn.v_bias` is the value bias of
    /// everybody, `attn.v.v_bias` that of the vision expert.
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (block, rest) = split_block(key.strip_prefix(BLOCKS)?)?;
        let (stem, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let owned = EXPERTS.iter().find_map(|(expert, segment)| {
            let rest = rest.strip_prefix(segment)?.strip_prefix('.')?;
            Some((*expert, rest))
        });
        let (expert, rest) = match owned {
            Some((expert, rest)) => (Some(expert), rest),
            None => (None, rest),
        };
        let parameter = BLOCK
            .iter()
            .find(|row| row.stem == stem && row.rest == rest)?;
        if expert.is_some() && !is_owned(stem) {
            return None;
        }
        Some(Self {
            block,
            expert,
            parameter,
        })
    }

    /// The place in the merged model.
    pub(super) fn slot(&self) -> Slot {
        let row = self.parameter;
        let module = match row.rest.rsplit_once('.') {
            Some((layer, _)) => format!("{}.{layer}", row.stem),
            None => row.stem.to_owned(),
        };
        Slot {
            key: block_key(self.block, row, None),
            block: Some(self.block),
            module,
            kind: row.kind,
        }
    }
}

/// The key of a block parameter in vl-merging spelling.
pub(super) fn block_key(block: usize, row: &BlockParameter, expert: Option<Expert>) -> String {
    let mut key = format!("{BLOCKS}{block}.{}", row.stem);
    for part in [expert.and_then(segment).unwrap_or(""), row.rest] {
        if !part.is_empty() {
            key.push('.');
            key.push_str(part);
        }
    }
    key
}

/// Splits `12.attn.qkv.weight` into the block index and the rest. Indices are plain decimals below
/// 65,536, so that a hostile name cannot ask for a model of absurd depth.
pub(super) fn split_block(key: &str) -> Option<(usize, &str)> {
    let (index, rest) = key.split_once('.')?;
    let plain = index.bytes().all(|byte| byte.is_ascii_digit())
        && (index.len() == 1 || !index.starts_with('0'));
    let block: u16 = plain.then(|| index.parse().ok())??;
    Some((block.into(), rest))
}

/// The row of a parameter outside the blocks, by its key in vl-merging spelling.
pub(super) fn outer_parameter(key: &str) -> Option<&'static OuterParameter> {
    OUTER.iter().find(|row| row.key == key)
}

/// The place in the merged model of a parameter outside the blocks.
pub(super) fn outer_slot(key: &str, kind: ParamKind) -> Slot {
    Slot {
        key: key.to_owned(),
        block: None,
        module: key
            .rsplit_once('.')
            .map_or(key, |(module, _)| module)
            .to_owned(),
        kind,
    }
}

/// Whether a key is a buffer that a loader rebuilds from the sizes.
pub(super) fn is_buffer(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    last.ends_with("relative_position_index")
        || key == "text_embeddings.position_ids"
        || key == "mask_for_combining_temporal"
}

/// Whether a key belongs to the frozen image tokenizer.
pub(super) fn is_image_tokenizer(key: &str) -> bool {
    key.starts_with("d_vae.")
}

/// The key of the family that is most like `key`, in vl-merging spelling.
pub(super) fn nearest(key: &str) -> Option<String> {
    let block = key.strip_prefix(BLOCKS).and_then(split_block);
    let candidates: Vec<String> = match block {
        Some((index, _)) => BLOCK
            .iter()
            .flat_map(|row| {
                let experts = if is_owned(row.stem) {
                    &EXPERTS[..]
                } else {
                    &[]
                };
                std::iter::once(None)
                    .chain(experts.iter().map(|(expert, _)| Some(*expert)))
                    .map(move |expert| block_key(index, row, expert))
            })
            .collect(),
        None => OUTER.iter().map(|row| row.key.to_owned()).collect(),
    };
    candidates.into_iter().max_by(|a, b| {
        strsim::jaro(a, key)
            .total_cmp(&strsim::jaro(b, key))
            .then_with(|| b.cmp(a))
    })
}
