//! The place of a key in the model.

use crate::layouts::{BlockId, split_block};
use crate::{ParamKind, Slot};

use super::table::{
    BACKBONE, BLOCKS, DECODER, DECODER_BLOCK, FFN, HEADS, IMAGE_POSITION_IDS, MIXTURE, MOE, NORM,
    OUTER, Parameter, ROUTED, ROUTER, SHARED,
};

/// The tokens that a network of a block without a router takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whose {
    /// Image tokens; in a model with one network for all, everybody's.
    Image,
    /// Text tokens.
    Text,
    /// Those of both, in passes that have both; in a block with a mixture of experts, everybody's.
    Joint,
}

impl Whose {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Image, "imag"),
        (Self::Text, "text"),
        (Self::Joint, "vl"),
    ];

    fn ending(self) -> &'static str {
        let found = Self::ALL.iter().find(|(whose, _)| *whose == self);
        found.map_or("", |(_, ending)| ending)
    }
}

/// The part of the model that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stem {
    /// The backbone outside the blocks.
    Outer,
    /// A part beside the backbone.
    Head,
    /// A block between the encoder and the head of hidden patches.
    Decoder(u16),
    /// A block, for all modalities.
    Shared,
    /// A feed-forward network.
    Ffn(Whose),
    /// The norm before it.
    Norm(Whose),
    /// The mixture of experts of a block: its router and its tags of modalities.
    Mixture,
    /// An expert of it.
    Routed(u16),
}

/// The place of a key in the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The index of the block, for keys of blocks.
    pub block: Option<usize>,
    /// The part of the model.
    pub stem: Stem,
    /// The parameter.
    pub parameter: &'static Parameter,
}

fn find(parameters: &'static [Parameter], key: &str) -> Option<&'static Parameter> {
    parameters.iter().find(|row| row.key == key)
}

impl Place {
    /// Of a key without `module.`, with `backbone.` or without.
    pub(super) fn of(key: &str) -> Option<Self> {
        let inner = key.strip_prefix(BACKBONE);
        if inner.is_none()
            && let Some(parameter) = find(HEADS, key)
        {
            return Some(Self {
                block: None,
                stem: Stem::Head,
                parameter,
            });
        }
        if inner.is_none()
            && let Some(rest) = key.strip_prefix(DECODER)
        {
            let (index, rest) = split_block(rest)?;
            let parameter = find(SHARED, rest).or_else(|| find(DECODER_BLOCK, rest))?;
            return Some(Self {
                block: None,
                stem: Stem::Decoder(u16::try_from(index).ok()?),
                parameter,
            });
        }
        let key = inner.unwrap_or(key);
        if let Some(parameter) = find(OUTER, key) {
            return Some(Self {
                block: None,
                stem: Stem::Outer,
                parameter,
            });
        }
        let (index, rest) = split_block(key.strip_prefix(BLOCKS)?)?;
        let (stem, parameter) = in_block(rest)?;
        Some(Self {
            block: Some(index),
            stem,
            parameter,
        })
    }

    /// The key with `backbone.`, where its part has it.
    pub(super) fn key(self) -> String {
        let key = self.parameter.key;
        let stem = match self.stem {
            Stem::Head => return key.to_owned(),
            Stem::Decoder(index) => return format!("{DECODER}{index}.{key}"),
            Stem::Outer => return format!("{BACKBONE}{key}"),
            Stem::Shared => String::new(),
            Stem::Ffn(whose) => format!("mlp_{}.", whose.ending()),
            Stem::Norm(whose) => format!("norm2_{}.", whose.ending()),
            Stem::Mixture => MOE.to_owned(),
            Stem::Routed(index) => format!("{MOE}{ROUTED}{index}."),
        };
        let block = self.block.unwrap_or(0);
        format!("{BACKBONE}{BLOCKS}{block}.{stem}{key}")
    }

    /// Whether a loader rebuilds the tensor.
    pub(super) fn is_buffer(self) -> bool {
        matches!(self.stem, Stem::Outer)
            && [IMAGE_POSITION_IDS, "position_ids_text"].contains(&self.parameter.key)
    }

    /// Whether it is the router of a mixture of experts.
    pub(super) fn is_router(self) -> bool {
        self.stem == Stem::Mixture && self.parameter.key == ROUTER
    }

    /// The slot that the tensor is merged into: networks of modalities into the one of models that have one for
    /// all. `prefix` is what the file's keys of the backbone begin with.
    pub(super) fn slot(self, prefix: &str, is_expert: bool) -> Slot {
        let merged = match self.stem {
            Stem::Ffn(_) if is_expert => Stem::Ffn(Whose::Image),
            Stem::Norm(_) if is_expert => Stem::Norm(Whose::Image),
            stem => stem,
        };
        let key = Self {
            stem: merged,
            ..self
        }
        .key();
        let key = match self.stem {
            // Routed experts have one place, which no file has a key for.
            Stem::Routed(index) => key.replacen(&format!("{ROUTED}{index}."), ROUTED, 1),
            _ => key,
        };
        let key = match key.strip_prefix(BACKBONE) {
            Some(rest) => format!("{prefix}{rest}"),
            None => key,
        };
        let layer = |key: &'static str| key.rsplit_once('.').map_or(key, |(layer, _)| layer);
        let of_parameter = layer(self.parameter.key);
        let module = match self.stem {
            Stem::Outer | Stem::Head | Stem::Decoder(_) => match key.rsplit_once('.') {
                Some((module, _)) => module.to_owned(),
                None => key.clone(),
            },
            Stem::Shared | Stem::Mixture => of_parameter.to_owned(),
            Stem::Ffn(_) => format!("mlp.{of_parameter}"),
            Stem::Norm(_) => "norm2".to_owned(),
            Stem::Routed(_) => format!("experts.{of_parameter}"),
        };
        Slot {
            key,
            block: self.block.map(BlockId::only),
            module,
            kind: self.parameter.kind,
        }
    }

    /// The linear layer that the tensor is the weight of, if a pass of the backbone runs it. The attention module
    /// itself stands for its `qkv`.
    pub(super) fn layer(self) -> Option<String> {
        let is_recorded = self.parameter.kind == ParamKind::LinearWeight && self.block.is_some();
        let key = Some(self.key()).filter(|_| is_recorded)?;
        let layer = key.strip_suffix(".weight")?;
        Some(layer.strip_suffix(".qkv").unwrap_or(layer).to_owned())
    }
}

fn in_block(rest: &str) -> Option<(Stem, &'static Parameter)> {
    if let Some(parameter) = find(SHARED, rest) {
        return Some((Stem::Shared, parameter));
    }
    if let Some(rest) = rest.strip_prefix(MOE) {
        let Some(rest) = rest.strip_prefix(ROUTED) else {
            return Some((Stem::Mixture, find(MIXTURE, rest)?));
        };
        let (index, rest) = split_block(rest)?;
        let index = u16::try_from(index).ok()?;
        return Some((Stem::Routed(index), find(FFN, rest)?));
    }
    let (stem, rest) = rest.split_once('.')?;
    Whose::ALL
        .iter()
        .find_map(|&(whose, ending)| match stem.strip_suffix(ending)? {
            "mlp_" => Some((Stem::Ffn(whose), find(FFN, rest)?)),
            "norm2_" => Some((Stem::Norm(whose), find(NORM, rest)?)),
            _ => None,
        })
}

/// Every place of a block with mixtures of `n_experts` experts, and with networks of modalities.
pub(super) fn of_block(block: usize, stems: &[Stem]) -> impl Iterator<Item = Place> {
    stems.iter().flat_map(move |&stem| {
        let parameters = match stem {
            Stem::Outer => OUTER,
            Stem::Head => HEADS,
            Stem::Shared => SHARED,
            Stem::Ffn(_) | Stem::Routed(_) => FFN,
            Stem::Norm(_) => NORM,
            Stem::Mixture => MIXTURE,
            Stem::Decoder(_) => DECODER_BLOCK,
        };
        parameters.iter().map(move |parameter| Place {
            block: (!matches!(stem, Stem::Outer | Stem::Head | Stem::Decoder(_))).then_some(block),
            stem,
            parameter,
        })
    })
}

/// The key of the family that is most like `key`, which is without `module.`.
pub(super) fn nearest(key: &str) -> Option<String> {
    let inner = key.strip_prefix(BACKBONE).unwrap_or(key);
    let in_block = inner.strip_prefix(BLOCKS).and_then(split_block);
    let block = in_block.map_or(0, |(block, _)| block);
    let expert = in_block.and_then(|(_, rest)| {
        let rest = rest.strip_prefix(MOE)?.strip_prefix(ROUTED)?;
        u16::try_from(split_block(rest)?.0).ok()
    });
    let stems = [
        Stem::Outer,
        Stem::Head,
        Stem::Decoder(0),
        Stem::Shared,
        Stem::Ffn(Whose::Image),
        Stem::Ffn(Whose::Text),
        Stem::Ffn(Whose::Joint),
        Stem::Norm(Whose::Image),
        Stem::Norm(Whose::Text),
        Stem::Norm(Whose::Joint),
        Stem::Mixture,
        Stem::Routed(expert.unwrap_or(0)),
    ];
    let names: Vec<String> = of_block(block, &stems).map(Place::key).collect();
    crate::layouts::nearest(names.into_iter(), key)
}
