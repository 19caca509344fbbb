//! The spellings of CLIP's keys, and the place of each parameter in each spelling.

use std::fmt;

use crate::layouts::{BlockId, WRAPPER, keys::split_block};
use crate::{Checkpoint, Slot};

use super::table::{GROUPS, Group, Name, Parameter, Presence, Tower};

/// The library whose names the keys of a CLIP are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipNames {
    /// Hugging Face's, with queries, keys and values apart everywhere: what merges see.
    Apart,
    /// Hugging Face's: `vision_model.`, `text_model.`.
    HuggingFace,
    /// open_clip's own towers: `visual.`, `transformer.`.
    OpenClip,
    /// open_clip's with the image tower of timm: `visual.trunk.`.
    OpenClipTimm,
}

/// The spelling of a CLIP's keys in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSpelling {
    /// The library of the names.
    pub names: ClipNames,
    /// Whether the keys of the text tower begin with `text.`.
    pub is_custom_text: bool,
    /// Whether all keys begin with `module.`.
    pub is_wrapped: bool,
    /// Whether the projection of texts is a linear layer, `text_projection.weight`, where open_clip's own tower has the
    /// transposed matrix `text_projection`.
    pub has_linear_projection: bool,
}

impl fmt::Display for ClipSpelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.names {
            ClipNames::Apart => "Hugging Face, with queries, keys and values apart",
            ClipNames::HuggingFace => "Hugging Face",
            ClipNames::OpenClip => "open_clip",
            ClipNames::OpenClipTimm => "open_clip, the image tower as timm",
        })?;
        if self.is_custom_text {
            f.write_str(", the text tower under `text.`")?;
        }
        if self.is_wrapped {
            f.write_str(", all under `module.`")?;
        }
        Ok(())
    }
}

/// The first block of either tower, by whose names they are: what tells a CLIP.
const TELLING: [(ClipNames, &str, [&str; 2]); 3] = [
    (
        ClipNames::HuggingFace,
        "vision_model.encoder.layers.0.self_attn.q_proj.weight",
        ["text_model.encoder.layers.0.self_attn.q_proj.weight"; 2],
    ),
    (
        ClipNames::OpenClip,
        "visual.transformer.resblocks.0.attn.in_proj_weight",
        [
            "transformer.resblocks.0.attn.in_proj_weight",
            "text.transformer.resblocks.0.attn.in_proj_weight",
        ],
    ),
    (
        ClipNames::OpenClipTimm,
        "visual.trunk.blocks.0.attn.qkv.weight",
        [
            "transformer.resblocks.0.attn.in_proj_weight",
            "text.transformer.resblocks.0.attn.in_proj_weight",
        ],
    ),
];

impl ClipSpelling {
    /// Hugging Face's.
    pub const HUGGING_FACE: Self = Self::of_names(ClipNames::HuggingFace);
    /// The spelling that merges see.
    pub const APART: Self = Self::of_names(ClipNames::Apart);

    const fn of_names(names: ClipNames) -> Self {
        Self {
            names,
            is_custom_text: false,
            is_wrapped: false,
            has_linear_projection: false,
        }
    }

    /// As open_clip writes a CLIP or a SigLIP.
    #[must_use]
    pub const fn open_clip(is_siglip: bool) -> Self {
        match is_siglip {
            false => Self::of_names(ClipNames::OpenClip),
            true => Self {
                is_custom_text: true,
                ..Self::of_names(ClipNames::OpenClipTimm)
            },
        }
    }

    /// The spelling of a checkpoint, with a key that tells it; `None` if it is no CLIP.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Option<(Self, String)> {
        let wrappers = [("", false), (WRAPPER, true)];
        wrappers.into_iter().find_map(|(wrapper, is_wrapped)| {
            let has = |key: &str| checkpoint.get(&format!("{wrapper}{key}")).is_some();
            let (names, image, [_, custom]) = TELLING
                .into_iter()
                .find(|(_, image, text)| has(image) && text.iter().any(|key| has(key)))?;
            let is_custom_text = names != ClipNames::HuggingFace && has(custom);
            let names = match names {
                ClipNames::HuggingFace if has("vision_model.head.attention.q_proj.weight") => {
                    ClipNames::Apart
                }
                names => names,
            };
            let text = if is_custom_text { "text." } else { "" };
            let spelling = Self {
                names,
                is_custom_text,
                is_wrapped,
                has_linear_projection: names == ClipNames::OpenClip
                    && has(&format!("{text}text_projection.weight")),
            };
            Some((spelling, format!("{wrapper}{image}")))
        })
    }

    /// Whether the names are open_clip's, with its own image tower or with timm's.
    pub(super) fn is_open_clip(self) -> bool {
        matches!(self.names, ClipNames::OpenClip | ClipNames::OpenClipTimm)
    }

    /// The prefix of every key.
    pub(super) fn wrapper(self) -> &'static str {
        if self.is_wrapped { WRAPPER } else { "" }
    }

    /// The prefix of the keys of a group.
    fn prefix(self, group: &Group) -> String {
        let text = match (group.tower, self.is_custom_text) {
            (Tower::Text, true) => "text.",
            _ => "",
        };
        let own = match self.names {
            ClipNames::Apart | ClipNames::HuggingFace => group.hugging_face,
            ClipNames::OpenClip => group.open_clip,
            ClipNames::OpenClipTimm => group.timm,
        };
        format!("{}{text}{own}", self.wrapper())
    }

    /// The name of a parameter.
    fn name(self, group: &Group, parameter: &Parameter) -> Name {
        match self.names {
            ClipNames::Apart => Name::Is(parameter.key),
            ClipNames::HuggingFace => parameter.hugging_face,
            ClipNames::OpenClip => match parameter.open_clip {
                Name::Turned("text_projection") if self.has_linear_projection => {
                    Name::Is("text_projection.weight")
                }
                name => name,
            },
            // Its text tower is open_clip's own.
            ClipNames::OpenClipTimm if group.is_of_blocks && group.tower == Tower::Text => {
                parameter.open_clip
            }
            ClipNames::OpenClipTimm => parameter.timm,
        }
    }

    /// The places of all parameters that a key holds: several where they are packed, none for a key that is not in the
    /// family's grammar.
    pub(super) fn places(self, key: &str) -> Vec<Place> {
        let mut places = Vec::new();
        for group in GROUPS {
            let Some(rest) = key.strip_prefix(&self.prefix(group)) else {
                continue;
            };
            let (block, rest) = match (group.is_of_blocks, split_block(rest)) {
                (true, Some((block, rest))) => (Some(block), rest),
                (false, _) => (None, rest),
                (true, None) => continue,
            };
            for parameter in group.parameters {
                let is_it = match self.name(group, parameter) {
                    Name::None => false,
                    Name::Is(name) | Name::Turned(name) | Name::Part(name, ..) => name == rest,
                };
                if is_it {
                    places.push(Place {
                        group,
                        block,
                        parameter,
                    });
                }
            }
        }
        places
    }

    /// The names that merges have for what a key holds: several where parameters are packed.
    #[must_use]
    pub fn apart_names(self, key: &str) -> Vec<String> {
        self.places(key).iter().map(Place::name).collect()
    }

    /// Every key of the grammar within the blocks of the same number as `key`, for advice.
    pub(super) fn all_keys(self, key: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for group in GROUPS {
            let of_key = key.strip_prefix(&self.prefix(group)).and_then(split_block);
            let block = group
                .is_of_blocks
                .then(|| of_key.map_or(0, |(block, _)| block));
            keys.extend(group.parameters.iter().filter_map(|parameter| {
                let place = Place {
                    group,
                    block,
                    parameter,
                };
                Some(place.held(self)?.key)
            }));
        }
        keys
    }
}

/// The place of a parameter in the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub group: &'static Group,
    pub block: Option<usize>,
    pub parameter: &'static Parameter,
}

/// The tensor that holds a parameter in a spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The key.
    pub key: String,
    /// Whether it is the transpose.
    pub is_turned: bool,
    /// The number of the part among equal parts of its rows, and the number of parts.
    pub part: (usize, usize),
}

impl Place {
    /// The tensor that holds the parameter in a spelling; `None` if nothing does.
    pub(super) fn held(&self, spelling: ClipSpelling) -> Option<Held> {
        let (name, is_turned, part) = match spelling.name(self.group, self.parameter) {
            Name::None => return None,
            Name::Is(name) => (name, false, (0, 1)),
            Name::Turned(name) => (name, true, (0, 1)),
            Name::Part(name, nth, of) => (name, false, (nth, of)),
        };
        let prefix = spelling.prefix(self.group);
        let key = match self.block {
            Some(block) => format!("{prefix}{block}.{name}"),
            None => format!("{prefix}{name}"),
        };
        Some(Held {
            key,
            is_turned,
            part,
        })
    }

    /// The name that merges have for it.
    pub(super) fn name(&self) -> String {
        let prefix = self.group.hugging_face;
        match self.block {
            Some(block) => format!("{prefix}{block}.{}", self.parameter.key),
            None => format!("{prefix}{}", self.parameter.key),
        }
    }

    /// The slot of a key that holds it.
    pub(super) fn slot(&self, key: &str) -> Slot {
        let name = match self.block {
            Some(_) => self.parameter.key.to_owned(),
            None => self.name(),
        };
        let module = name.rsplit_once('.').map_or(name.as_str(), |(m, _)| m);
        Slot {
            key: key.to_owned(),
            block: self.block.map(|index| BlockId {
                stack: self.group.tower.stack(),
                index,
            }),
            module: module.to_owned(),
            kind: self.parameter.kind,
        }
    }

    /// Whether models of a kind have the parameter.
    pub(super) fn is_of(&self, is_siglip: bool) -> bool {
        match self.parameter.presence {
            Presence::Always => true,
            Presence::Clip => !is_siglip,
            Presence::Siglip => is_siglip,
            Presence::Classifying => false,
        }
    }
}
