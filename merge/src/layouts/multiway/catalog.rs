//! The tensors of a published checkpoint: every key with shape and dtype, from sizes alone.

use crate::{DType, Expert, ParamKind, TensorInfo};

use super::grammar::{self, Axis, BEIT_BLOCK_TABLE, BLOCK, BlockParameter, Holder, OUTER};
use super::relative_position::Window;
use super::{Sizes, vlmo};

/// Family and form of a checkpoint to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// vl-merging, one set of weights for everybody.
    Agnostic,
    /// vl-merging, experts own everything but LayerScale.
    AllSpecific,
    /// vl-merging, experts own attention and the norm before it.
    AttnSpecific,
    /// vl-merging, experts own the FFN and the norm before it.
    FfnSpecific,
    /// vl-merging, experts own the norms.
    LnSpecific,
    /// VLMo base and large.
    Vlmo,
    /// VLMo base_plus: absolute positions, no LayerScale, no bias table.
    VlmoAbsolute,
    /// BEiT self-supervised: one bias table, a head of visual tokens.
    BeitSharedTable,
    /// BEiT fine-tuned: a bias table in each block, a head of image classes.
    BeitPerBlockTables,
}

impl Form {
    /// Parts of a block that experts own: `attn`, `mlp`, `norm1`, `norm2`.
    #[must_use]
    pub fn specific(self) -> &'static [&'static str] {
        match self {
            Self::AllSpecific => &["attn", "mlp", "norm1", "norm2"],
            Self::AttnSpecific => &["attn", "norm1"],
            Self::FfnSpecific | Self::Vlmo | Self::VlmoAbsolute => &["mlp", "norm2"],
            Self::LnSpecific => &["norm1", "norm2"],
            Self::Agnostic | Self::BeitSharedTable | Self::BeitPerBlockTables => &[],
        }
    }

    /// Whether it is one of BEiT's.
    #[must_use]
    pub fn is_beit(self) -> bool {
        matches!(self, Self::BeitSharedTable | Self::BeitPerBlockTables)
    }

    fn is_vlmo(self) -> bool {
        matches!(self, Self::Vlmo | Self::VlmoAbsolute)
    }
}

/// Heads that a checkpoint has beside the pooler. BEiT has its own whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// None.
    None,
    /// Matching, contrastive and masked language modeling.
    Pretrain,
    /// Image-text retrieval.
    Retrieval,
    /// Visual question answering.
    Vqa,
    /// Reasoning over two images; brings a third token type.
    Nlvr2,
}

/// The model whose tensors [`catalog`] lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogSpec {
    /// Family and form.
    pub form: Form,
    /// Sizes; see [`Sizes::check`].
    pub sizes: Sizes,
    /// Heads.
    pub heads: Heads,
    /// Whether buffers that a loader rebuilds are listed too, as published checkpoints hold them.
    pub with_buffers: bool,
    /// Whether BEiT's keys go without `transformer.`, as in its own release. Other families have
    /// one spelling only.
    pub original_spelling: bool,
}

/// Every tensor of a published checkpoint, sorted by name. Parameters are `F32`, buffers `I64` or
/// `F32` and of kind [`ParamKind::Other`]; their values come from [`Window::buffer`] of
/// [`CatalogSpec::window`].
#[must_use]
pub fn catalog(spec: &CatalogSpec) -> Vec<(String, TensorInfo, ParamKind)> {
    let mut list = Vec::new();
    for block in 0..spec.sizes.n_blocks {
        for row in BLOCK.iter().filter(|row| spec.has_block_parameter(row)) {
            for expert in spec.owners(block, row.stem) {
                let key = grammar::block_key(block, row, expert);
                list.push((key, spec.parameter(row.shape), row.kind));
            }
        }
        if spec.form == Form::BeitPerBlockTables {
            let row = &BEIT_BLOCK_TABLE;
            let key = grammar::block_key(block, row, None);
            list.push((key, spec.parameter(row.shape), row.kind));
        }
    }
    for row in OUTER.iter().filter(|row| spec.holds(row.holder)) {
        list.push((row.key.to_owned(), spec.parameter(row.shape), row.kind));
    }
    if spec.with_buffers {
        let window = spec.window();
        for name in spec.buffer_names() {
            if let Some(info) = window.buffer_info(&name) {
                list.push((name, info, ParamKind::Other));
            }
        }
    }
    for (key, _, _) in &mut list {
        *key = spec.spell(key);
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

impl CatalogSpec {
    /// The window that gives the buffers their values. Pre-training sets a text length for fused
    /// passes, the same as for the others.
    #[must_use]
    pub fn window(&self) -> Window {
        let mut window = self.sizes.window();
        if self.heads == Heads::Pretrain && !self.form.is_vlmo() {
            window.fused_text_len = Some(self.sizes.text_len);
        }
        window
    }

    fn has_block_parameter(&self, row: &BlockParameter) -> bool {
        self.form != Form::VlmoAbsolute || row.kind != ParamKind::Scale
    }

    /// The experts whose copies of a stem a block holds.
    fn owners(&self, block: usize, stem: &str) -> Vec<Option<Expert>> {
        if !self.form.specific().contains(&stem) {
            return vec![None];
        }
        let is_deep = block >= self.sizes.fusion_start;
        grammar::EXPERTS
            .iter()
            .map(|(expert, _)| *expert)
            .filter(|expert| is_deep || *expert != Expert::VisionLanguage)
            .map(Some)
            .collect()
    }

    fn holds(&self, holder: Holder) -> bool {
        let (form, heads) = (self.form, self.heads);
        match holder {
            Holder::Always => true,
            Holder::Text => !form.is_beit(),
            Holder::MaskToken => !form.is_vlmo() && form != Form::BeitPerBlockTables,
            Holder::FinalNorm => form != Form::BeitPerBlockTables,
            Holder::Table => !form.is_beit() && form != Form::VlmoAbsolute,
            Holder::VlMerging => !form.is_beit() && !form.is_vlmo(),
            Holder::Absolute => form == Form::VlmoAbsolute,
            Holder::Mlm | Holder::Itm | Holder::ContrastivePretrain => {
                !form.is_beit() && heads == Heads::Pretrain
            }
            Holder::Contrastive => {
                !form.is_beit() && matches!(heads, Heads::Pretrain | Heads::Retrieval)
            }
            Holder::Vqa => !form.is_beit() && heads == Heads::Vqa,
            Holder::Nlvr2 => !form.is_beit() && heads == Heads::Nlvr2,
            Holder::Classification | Holder::Mim => false,
            Holder::BeitShared => form == Form::BeitSharedTable,
            Holder::BeitPerBlock => form == Form::BeitPerBlockTables,
        }
    }

    fn parameter(&self, shape: &[Axis]) -> TensorInfo {
        TensorInfo {
            dtype: DType::F32,
            shape: shape.iter().map(|axis| self.length(*axis)).collect(),
        }
    }

    fn length(&self, axis: Axis) -> usize {
        let sizes = &self.sizes;
        let window = sizes.window();
        match axis {
            Axis::Fixed(length) => length,
            Axis::Width(times) => times * sizes.width,
            Axis::Ffn => sizes.ffn_width,
            Axis::Vocabulary => sizes.vocabulary,
            Axis::Text => sizes.text_len,
            Axis::TokenTypes if self.heads == Heads::Nlvr2 => 3,
            Axis::TokenTypes => 2,
            Axis::Patch => sizes.patch_size,
            Axis::ImageTokens => window.image_tokens(),
            Axis::TableRows => window.table_rows(),
            Axis::TableColumns => sizes.n_heads * sizes.n_blocks,
            Axis::ImageTableRows => window.image_rows(),
            Axis::Heads => sizes.n_heads,
            Axis::Answers => sizes.n_answers,
            Axis::Classes => sizes.n_classes,
        }
    }

    fn buffer_names(&self) -> Vec<String> {
        let index = "relative_position_index";
        match self.form {
            Form::Vlmo | Form::VlmoAbsolute => vec!["text_embeddings.position_ids".to_owned()],
            Form::BeitSharedTable => vec![format!("transformer.rel_pos_bias.{index}")],
            Form::BeitPerBlockTables => (0..self.sizes.n_blocks)
                .map(|block| format!("{}{block}.attn.{index}", grammar::BLOCKS))
                .collect(),
            _ => {
                let kinds = ["", "text_", "text_imag_", "vl_text_imag_"];
                let frames = ["video_", "text_video_", "temporal_", "vl_text_video_"];
                [
                    "text_embeddings.position_ids",
                    "mask_for_combining_temporal",
                ]
                .map(str::to_owned)
                .into_iter()
                .chain(
                    kinds
                        .iter()
                        .chain(&frames)
                        .map(|kind| format!("{kind}{index}")),
                )
                .collect()
            }
        }
    }

    /// The key as the family spells it.
    fn spell(&self, key: &str) -> String {
        match self.form {
            Form::Vlmo | Form::VlmoAbsolute => vlmo::from_vl_merging(key),
            Form::BeitSharedTable | Form::BeitPerBlockTables if self.original_spelling => {
                key.strip_prefix("transformer.").unwrap_or(key).to_owned()
            }
            _ => key.to_owned(),
        }
    }
}
