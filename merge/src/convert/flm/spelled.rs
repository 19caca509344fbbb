//! Spellings of the towers that an FLM starts from: CLIP as OpenAI, open_clip and Hugging Face write it, and RoBERTa as
//! Hugging Face does.

use crate::{Checkpoint, ConversionFault, Error, Result};

/// A file with a tower, found by its spelling.
pub(super) struct Spelled<'a> {
    pub(super) file: &'a Checkpoint,
    /// Its index among the plan's sources.
    pub(super) source: usize,
    /// Whether a CLIP has its text part.
    pub(super) has_text: bool,
    spelling: Spelling,
}

/// The spelling of the keys.
enum Spelling {
    /// As in an FLM: a prefix of every key, and one of the keys of the text part alone.
    Own {
        wrapper: &'static str,
        text: &'static str,
    },
    /// CLIP as Hugging Face spells it: prefixes of the image part and of the text part.
    HuggingFace {
        image: &'static str,
        text: &'static str,
    },
}

/// Blocks of the image tower as FLM spells them.
const BLOCKS: &str = "visual.transformer.resblocks.";
/// The same within Hugging Face's image part.
const LAYERS: &str = "encoder.layers.";

/// FLM's and Hugging Face's names of tensors outside of blocks.
const OUTSIDE: [(&str, &str); 4] = [
    ("visual.class_embedding", "embeddings.class_embedding"),
    ("visual.conv1.", "embeddings.patch_embedding."),
    ("visual.ln_pre.", "pre_layrnorm."),
    ("visual.ln_post.", "post_layernorm."),
];

/// The same within a block.
const WITHIN: [(&str, &str); 5] = [
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

impl Spelled<'_> {
    /// The file's key for one of FLM's, without FLM's prefix.
    pub(super) fn key(&self, rest: &str) -> String {
        match self.spelling {
            Spelling::Own { wrapper, text } => {
                let text = match rest.starts_with("visual.") {
                    true => "",
                    false => text,
                };
                format!("{wrapper}{text}{rest}")
            }
            Spelling::HuggingFace { image, text } => hugging_face(image, text, rest),
        }
    }

    /// The three keys for a tensor of FLM that holds the projections to queries, keys and values, if the file has
    /// one for each.
    pub(super) fn parts(&self, rest: &str) -> Option<[String; 3]> {
        let Spelling::HuggingFace { image, .. } = self.spelling else {
            return None;
        };
        let (block, name) = rest.strip_prefix(BLOCKS)?.split_once('.')?;
        let end = name.strip_prefix("attn.in_proj_")?;
        Some(
            ["q", "k", "v"]
                .map(|part| format!("{image}{LAYERS}{block}.self_attn.{part}_proj.{end}")),
        )
    }

    pub(super) fn axis(&self, rest: &str, axis: usize) -> Result<usize> {
        let key = self.key(rest);
        let info = self.file.require(&key)?;
        info.shape
            .get(axis)
            .copied()
            .ok_or_else(|| Error::ShapeMismatch {
                slot: self.file.path().display().to_string(),
                key,
                found: info.shape.clone(),
                expected: vec![0; axis + 1],
            })
    }

    /// Blocks that are numbered between `before` and what follows.
    pub(super) fn n_blocks(&self, before: &str) -> usize {
        let start = self.key(before);
        let numbers = self.file.tensors().filter_map(|(key, _)| {
            let (index, _) = key.strip_prefix(&start)?.split_once('.')?;
            index.parse::<u16>().ok()
        });
        numbers.max().map_or(0, |last| usize::from(last) + 1)
    }
}

/// Hugging Face's key for one of FLM's.
fn hugging_face(image: &str, text: &str, rest: &str) -> String {
    if let Some(within) = rest.strip_prefix(BLOCKS) {
        let Some((block, name)) = within.split_once('.') else {
            return format!("{image}{LAYERS}{within}");
        };
        let name = named(&WITHIN, name).unwrap_or_else(|| name.to_owned());
        return format!("{image}{LAYERS}{block}.{name}");
    }
    if rest == "visual.positional_embedding" {
        return format!("{image}embeddings.position_embedding.weight");
    }
    if rest == "positional_embedding" {
        return format!("{text}embeddings.position_embedding.weight");
    }
    match (named(&OUTSIDE, rest), rest.strip_prefix("ln_final.")) {
        (Some(name), _) => format!("{image}{name}"),
        (None, Some(end)) => format!("{text}final_layer_norm.{end}"),
        (None, None) => format!("{image}{rest}"),
    }
}

/// A name whose beginning is spelled otherwise.
fn named(names: &[(&str, &str)], rest: &str) -> Option<String> {
    names.iter().find_map(|(own, other)| {
        let end = rest.strip_prefix(own)?;
        Some(format!("{other}{end}"))
    })
}

/// The CLIP: OpenAI's spelling, open_clip's, whose text part may be below `text.`, or Hugging Face's.
pub(super) fn clip(file: &Checkpoint) -> Result<Spelled<'_>> {
    let telling = "visual.transformer.resblocks.0.attn.in_proj_weight";
    let has = |key: &str| file.get(key).is_some();
    let wrappers = ["", "module.", "model.", "clip."];
    let wrapper = wrappers
        .into_iter()
        .find(|wrapper| has(&format!("{wrapper}{telling}")));
    if let Some(wrapper) = wrapper {
        let below_text = has(&format!("{wrapper}text.positional_embedding"));
        let text = if below_text { "text." } else { "" };
        return Ok(Spelled {
            file,
            source: 0,
            has_text: has(&format!("{wrapper}{text}positional_embedding")),
            spelling: Spelling::Own { wrapper, text },
        });
    }
    // A vision model alone has its keys with and without their prefix, by the version of transformers.
    let prefixes = [
        ("vision_model.", "text_model."),
        ("clip.vision_model.", "clip.text_model."),
        ("model.vision_model.", "model.text_model."),
        ("module.vision_model.", "module.text_model."),
        ("", "text_model."),
    ];
    let found = prefixes.into_iter().find(|(image, _)| {
        has(&format!("{image}encoder.layers.0.self_attn.q_proj.weight"))
            && has(&format!("{image}embeddings.patch_embedding.weight"))
    });
    match found {
        Some((image, text)) => Ok(Spelled {
            file,
            source: 0,
            has_text: has(&format!("{text}embeddings.position_embedding.weight")),
            spelling: Spelling::HuggingFace { image, text },
        }),
        None => Err(file
            .require(telling)
            .err()
            .unwrap_or_else(|| not_a_tower(file, "CLIP"))),
    }
}

/// The RoBERTa: Hugging Face's spelling, of the encoder alone or of a model around it.
pub(super) fn roberta(file: &Checkpoint) -> Result<Spelled<'_>> {
    let telling = "encoder.layer.0.attention.self.query.weight";
    let has = |key: &str| file.get(key).is_some();
    let wrappers = ["", "roberta.", "module.", "module.roberta."];
    let wrapper = wrappers
        .into_iter()
        .find(|wrapper| has(&format!("{wrapper}{telling}")));
    match wrapper {
        Some(wrapper) => Ok(Spelled {
            file,
            source: 1,
            has_text: true,
            spelling: Spelling::Own { wrapper, text: "" },
        }),
        None => Err(file
            .require(telling)
            .err()
            .unwrap_or_else(|| not_a_tower(file, "RoBERTa"))),
    }
}

fn not_a_tower(file: &Checkpoint, what: &'static str) -> Error {
    ConversionFault::NoSuchConversion {
        path: file.path().into(),
        layout: what,
        wanted: "read",
    }
    .into()
}
