//! Renaming keys: VLMo and vl-merging spell one model in two ways, BEiT its vision part in a third.

use std::fmt;
use std::sync::Arc;

use super::clip::ClipTarget;
use super::draft::Draft;
use super::positions::{Resize, side};
use super::tables::{RelativeTable, Windows};
use crate::layouts::{beit, vlmo, without_module};
use crate::mixtures::{MixtureSpelling, respelled, survey};
use crate::{Checkpoint, ConversionFault, Error, Layout, ParamKind, Result, Role};

/// A way to spell keys: those of the multiway model with an FFN for each modality, or those of mixtures of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// vl-merging's, in its ffn-specific form: `mlp.v`, `norm2.l`, `ifm_text_proj`.
    VlMerging,
    /// That of the VLMo release: `mlp_imag`, `norm2_text`, `itc_text_proj`.
    Vlmo,
    /// Of mixtures of experts, in a model of any family.
    Mixture(MixtureSpelling),
    /// Of CLIPs and SigLIPs.
    Clip(ClipTarget),
    /// transformers', of a language model of Megatron.
    LanguageModel,
}

impl fmt::Display for Spelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VlMerging => f.write_str("vl-merging"),
            Self::Vlmo => f.write_str("vlmo"),
            Self::Mixture(spelling) => spelling.fmt(f),
            Self::Clip(ClipTarget::HuggingFace) | Self::LanguageModel => f.write_str("hf"),
            Self::Clip(ClipTarget::OpenClip) => f.write_str("open-clip"),
        }
    }
}

/// Keys of vl-merging that VLMo does without, and why nothing is lost.
const VLMO_HAS_NO: [(&str, &str); 4] = [
    (
        "transformer.mask_token",
        "VLMo has no masked image modeling, the only use of the mask token",
    ),
    (
        "temporal_relative_position_bias_table",
        "no forward pass reads the temporal table",
    ),
    (
        "mask_for_combining_temporal",
        "buffer of vl-merging, rebuilt by its loader",
    ),
    (
        "_relative_position_index",
        "buffer of vl-merging, rebuilt by its loader",
    ),
];

/// Index buffers that both have.
const VLMO_INDICES: [&str; 3] = [
    "relative_position_index",
    "text_relative_position_index",
    "text_imag_relative_position_index",
];

/// Heads of vl-merging that VLMo has no name for.
const VL_MERGING_HEADS: [&str; 3] = ["mim_score.", "d_vae.", "img_cls_classifier."];

/// Spells all keys as `to` does.
///
/// # Errors
/// [`ConversionFault::NoCounterpart`] for a key that holds something the other spelling cannot say,
/// [`ConversionFault::NoSuchConversion`] for other families.
pub(super) fn respell(draft: &mut Draft, layout: &dyn Layout, to: Spelling) -> Result<()> {
    let family = layout.name().split('/').next().unwrap_or_default();
    match (family, to) {
        ("vl_merging", Spelling::VlMerging) | ("vlmo", Spelling::Vlmo) => Ok(()),
        ("vlmo", Spelling::VlMerging) => to_vl_merging(draft, layout),
        ("vl_merging", Spelling::Vlmo) => to_vlmo(draft, layout),
        (_, Spelling::VlMerging) => Err(draft.refused(layout, "spelled as vl-merging does")),
        (_, Spelling::Vlmo) => Err(draft.refused(layout, "spelled as VLMo does")),
        // Done before, by a view of the source.
        (_, Spelling::Mixture(_) | Spelling::Clip(_) | Spelling::LanguageModel) => Ok(()),
    }
}

/// The source with its mixtures of experts spelled otherwise.
///
/// # Errors
/// [`ConversionFault::NoSuchConversion`] for a checkpoint without mixtures,
/// [`ConversionFault::OtherMixture`] for one of which the experts are of another kind, and as [`respelled`].
pub(super) fn respell_mixtures(
    source: Arc<Checkpoint>,
    layout: &dyn Layout,
    to: MixtureSpelling,
) -> Result<Arc<Checkpoint>> {
    let found = survey(&source)?;
    if found.is_empty() {
        return Err(ConversionFault::NoSuchConversion {
            path: source.path().into(),
            layout: layout.name(),
            wanted: "spelled so: it has no mixture of experts",
        }
        .into());
    }
    let mut mixtures = found.values();
    if let Some(mixture) = mixtures.find(|mixture| MixtureSpelling::of(mixture).is_none()) {
        return Err(ConversionFault::OtherMixture {
            path: source.path().into(),
            mixture: mixture.host.clone(),
        }
        .into());
    }
    respelled(source, to)
}

fn to_vl_merging(draft: &mut Draft, layout: &dyn Layout) -> Result<()> {
    for name in draft.names() {
        let key = vlmo::to_vl_merging(without_module(&name));
        if layout.role(&name)? != Role::Derived && key == "transformer.pos_embed" {
            return Err(ConversionFault::NoCounterpart {
                path: draft.source(0).path().into(),
                key: name,
                target: "vl-merging",
                why: "it has no absolute image positions, so base_plus models stay in VLMo spelling",
            }.into());
        }
        draft.rename(&name, &key)?;
    }
    Ok(())
}

fn to_vlmo(draft: &mut Draft, layout: &dyn Layout) -> Result<()> {
    for name in draft.names() {
        let key = without_module(&name);
        let refuse = |why| {
            ConversionFault::NoCounterpart {
                path: draft.source(0).path().into(),
                key: name.clone(),
                target: "VLMo",
                why,
            }
            .into()
        };
        if VL_MERGING_HEADS.iter().any(|head| key.starts_with(head)) {
            return Err(refuse("it has no such head"));
        }
        let missing = VLMO_HAS_NO
            .iter()
            .find(|(suffix, _)| key.ends_with(suffix) && !VLMO_INDICES.contains(&key));
        if let Some((_, why)) = missing {
            draft.drop_entry(&name, why);
            continue;
        }
        match layout.role(&name)? {
            Role::Shared(slot) if slot.block.is_some() && is_owned_in_vlmo(&slot.module) => {
                return Err(refuse(
                    "its blocks have an FFN and a second norm for each modality",
                ));
            }
            Role::Expert { slot, .. } if !is_owned_in_vlmo(&slot.module) => {
                return Err(refuse("its blocks share attention and the first norm"));
            }
            _ => draft.rename(&name, &vlmo::from_vl_merging(key))?,
        }
    }
    Ok(())
}

/// Whether VLMo's modalities own copies of a part of a block.
fn is_owned_in_vlmo(module: &str) -> bool {
    module == "norm2" || module.starts_with("mlp.")
}

/// Turns BEiT into an agnostic vl-merging model without text: the prefix, one bias table for all
/// blocks, the final norm. Classifiers are left out unless `keep_heads`.
///
/// # Errors
/// When tables are missing or differ, and those of [`Windows::new`].
pub(super) fn beit_to_seed(
    draft: &mut Draft,
    layout: &dyn Layout,
    table: &BeitTable,
    keep_heads: bool,
) -> Result<()> {
    let mut tables = Vec::new();
    for name in draft.names() {
        let key = beit::prefixed(without_module(&name));
        match layout.role(&name)? {
            Role::Derived => draft.drop_entry(&name, "index of BEiT; loaders rebuild it"),
            Role::Shared(slot) if slot.kind == ParamKind::PositionBias => {
                tables.push((slot.block.map(|block| block.index), name));
            }
            _ if is_beit_head(&key) && !keep_heads => {
                draft.drop_entry(&name, "head of BEiT's own task");
            }
            _ => match key.strip_prefix("transformer.fc_norm.") {
                Some(rest) => {
                    let norm = format!("transformer.norm.{rest}");
                    // The norm after pooling is the one that was trained last.
                    for replaced in [norm.clone(), format!("norm.{rest}")] {
                        draft.drop_entry(&replaced, "replaced by fc_norm");
                    }
                    draft.rename(&name, &norm)?;
                }
                None => draft.rename(&name, &key)?,
            },
        }
    }
    tables.sort();
    table.make(draft, layout, tables)
}

fn is_beit_head(key: &str) -> bool {
    key.starts_with("transformer.head.") || key.starts_with("transformer.lm_head.")
}

/// Makes the bias table of a seed from BEiT's.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeitTable {
    /// The windows.
    pub windows: Windows,
    /// The way of resizing image rows.
    pub resize: Resize,
    /// Text positions to have room for.
    pub text_table_len: usize,
}

impl BeitTable {
    fn make(
        &self,
        draft: &mut Draft,
        layout: &dyn Layout,
        tables: Vec<(Option<usize>, String)>,
    ) -> Result<()> {
        let n_blocks = layout.dimensions().n_blocks();
        let Windows { from, to } = self.windows;
        let names: Vec<String> = match tables.first() {
            Some((None, shared)) => vec![shared.clone()],
            Some((Some(_), _)) => (0..n_blocks)
                .map(|block| {
                    let own = tables.iter().find(|(owner, _)| *owner == Some(block));
                    own.map_or_else(
                        || format!("transformer.blocks.{block}.attn.relative_position_bias_table"),
                        |(_, name)| name.clone(),
                    )
                })
                .collect(),
            None => vec!["rel_pos_bias.relative_position_bias_table".to_owned()],
        };
        let n_tables = names.len();
        let shape = draft.shape(&names[0])?;
        let &[rows, heads] = shape.as_slice() else {
            return Err(ConversionFault::TableShape {
                key: names[0].clone(),
                shape,
                window: from,
            }
            .into());
        };
        if rows != side(from).pow(2) + 3 {
            return Err(ConversionFault::TableShape {
                key: names[0].clone(),
                shape,
                window: from,
            }
            .into());
        }
        for name in &names {
            let found = draft.shape(name)?;
            if found != shape {
                return Err(Error::ShapeMismatch {
                    slot: "relative_position_bias_table".to_owned(),
                    key: name.clone(),
                    found,
                    expected: shape,
                });
            }
        }
        self.resize.check(&names[0], from, to)?;
        let kernel = RelativeTable {
            n_tables,
            n_repeats: n_blocks / n_tables,
            from,
            to,
            resize: self.resize,
            n_new_rows: 2 * self.text_table_len + 2,
        };
        draft.compute(
            &names,
            "relative_position_bias_table",
            vec![side(to).pow(2) + 3 + kernel.n_new_rows, heads * n_blocks],
            Arc::new(kernel),
            kernel.to_string(),
        )
    }
}
