//! Heads that share their weights with the embeddings, and so are in no file.
//!
//! A model with `tie_word_embeddings` has one tensor for both. It says nothing of the head where another
//! model, or an adapter, has one of its own: then the embeddings stand for it.

use std::sync::Arc;

use serde_json::Value;

use crate::io::{Aliases, Renamed, TensorEntry};
use crate::{Checkpoint, Result, TensorInfo, model_config};

/// The endings of heads' names.
const HEADS: [&str; 6] = [
    "lm_head.weight",
    "embed_out.weight",
    "output_layer.weight",
    "lm_head.decoder.weight",
    "predictions.decoder.weight",
    "generator_lm_head.weight",
];

/// The endings of the names of embeddings that heads share.
const EMBEDDINGS: [&str; 5] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
];

/// Whether a tensor is the weight of a head that gives each token a score.
pub(crate) fn is_head(name: &str) -> bool {
    name == "output.weight" || HEADS.iter().any(|end| ends_with(name, end))
}

/// Whether a tensor is embeddings of tokens that a head may share.
pub(crate) fn is_embedding(name: &str) -> bool {
    EMBEDDINGS.iter().any(|end| ends_with(name, end))
}

/// Whether a tensor is embeddings that a head may share: also those of an encoder and a decoder at once.
pub(crate) fn may_be_shared(name: &str) -> bool {
    is_embedding(name) || ends_with(name, "shared.weight")
}

fn ends_with(name: &str, end: &str) -> bool {
    let start = name.strip_suffix(end);
    start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

/// The head by a model's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It shares its weights with the embeddings.
    Tied,
    /// It has weights of its own.
    Apart,
    /// Nothing.
    Nothing,
}

/// The head by the configuration beside a checkpoint.
pub(crate) fn said(checkpoint: &Checkpoint) -> Result<Said> {
    let config = model_config::of(checkpoint)?;
    Ok(config.as_ref().map_or(Said::Nothing, said_by))
}

fn said_by(config: &Value) -> Said {
    match model_config::setting(config, "tie_word_embeddings") {
        Some(Value::Bool(true)) => Said::Tied,
        Some(Value::Bool(false)) => Said::Apart,
        _ => Said::Nothing,
    }
}

/// The embeddings that a head is another name of, or that stand for a head which the checkpoint does not have; `None` if its configuration
/// says that the head is apart, or several tensors could be meant.
pub(crate) fn stand_in(checkpoint: &Checkpoint, head: &str) -> Result<Option<String>> {
    if let Some(embedding) = checkpoint.aliases().get(head).filter(|_| is_head(head)) {
        return Ok(Some(embedding.clone()));
    }
    if !is_head(head) || checkpoint.get(head).is_some() || said(checkpoint)? == Said::Apart {
        return Ok(None);
    }
    Ok(shared_embeddings(checkpoint))
}

/// The embeddings of a model that has one such tensor outside of other towers.
pub(crate) fn shared_embeddings(checkpoint: &Checkpoint) -> Option<String> {
    let of_text = |name: &&str| {
        let towers = ["vision", "visual", "audio", "encoder.embed"];
        is_embedding(name) && !towers.iter().any(|tower| name.contains(tower))
    };
    let mut found = checkpoint.tensors().map(|(name, _)| name).filter(of_text);
    let first = found.next()?;
    found.next().is_none().then(|| first.to_owned())
}

/// The effect on the head of a change of tied embeddings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TiedHead {
    /// The model has no head that shares them, or has it stored.
    None,
    /// The head is called so, and is not stored.
    Named(String),
    /// There is one, whose name is not known.
    Unknown,
}

/// The head that shares `embedding` with a model and is not in its file.
pub(crate) fn head_of(checkpoint: &Checkpoint, embedding: &str) -> Result<TiedHead> {
    let mut aliases = checkpoint.aliases().iter();
    if let Some((head, _)) = aliases.find(|(name, of)| *of == embedding && is_head(name)) {
        return Ok(TiedHead::Named(head.clone()));
    }
    let is_stored = checkpoint.tensors().any(|(name, _)| is_head(name));
    if is_stored || !may_be_shared(embedding) {
        return Ok(TiedHead::None);
    }
    let Some(config) = model_config::of(checkpoint)? else {
        return Ok(TiedHead::None);
    };
    let architecture = (config.get("architectures"))
        .and_then(|all| all.get(0)?.as_str())
        .unwrap_or_default();
    let makes_text = [
        "ForCausalLM",
        "LMHeadModel",
        "ForConditionalGeneration",
        "ForMaskedLM",
    ];
    if said_by(&config) == Said::Apart || !makes_text.iter().any(|end| architecture.ends_with(end))
    {
        return Ok(TiedHead::None);
    }
    let is_decoder = !architecture.ends_with("ForMaskedLM");
    let is_only = shared_embeddings(checkpoint).as_deref() == Some(embedding);
    Ok(match is_only && is_decoder {
        true if ends_with(embedding, "embed_in.weight") => {
            TiedHead::Named("embed_out.weight".into())
        }
        true if ends_with(embedding, "tok_embeddings.weight") => {
            TiedHead::Named("output.weight".into())
        }
        true => TiedHead::Named("lm_head.weight".into()),
        false => TiedHead::Unknown,
    })
}

/// Gives every model the heads that another one has, where its embeddings stand for them.
///
/// # Errors
/// When a configuration cannot be read.
pub(crate) fn complete(sources: &mut [Arc<Checkpoint>]) -> Result<()> {
    let names = sources.iter().flat_map(|source| source.tensors());
    let heads: std::collections::BTreeSet<String> = names
        .map(|(name, _)| name)
        .filter(|name| is_head(name))
        .map(str::to_owned)
        .collect();
    for source in sources {
        for head in &heads {
            if let Some(embedding) = stand_in(source, head)? {
                let apart = Aliases::from([(head.clone(), embedding)]);
                *source = with_apart(source, apart)?;
            }
        }
    }
    Ok(())
}

/// Makes names that several models do not tie alike tensors of their own, in those that tie them: models
/// are merged name by name.
///
/// # Errors
/// When an alias stands for nothing, which readers refuse.
pub(crate) fn untie(sources: &mut [Arc<Checkpoint>]) -> Result<()> {
    let is_tied_otherwise = |(name, of): &(&String, &String), other: &Checkpoint| {
        let known = other.aliases().get(*name);
        known.is_some_and(|known| known != *of) || (known.is_none() && other.get(name).is_some())
    };
    let apart: Vec<Aliases> = (sources.iter())
        .map(|source| {
            let aliases = source.aliases().iter();
            let apart =
                aliases.filter(|tie| sources.iter().any(|other| is_tied_otherwise(tie, other)));
            apart.map(|(name, of)| (name.clone(), of.clone())).collect()
        })
        .collect();
    for (source, apart) in sources.iter_mut().zip(apart) {
        if !apart.is_empty() {
            *source = with_apart(source, apart)?;
        }
    }
    Ok(())
}

/// The checkpoint in which the names `apart` are tensors of their own, with the values of those that they stood for.
pub(crate) fn with_apart(source: &Arc<Checkpoint>, apart: Aliases) -> Result<Arc<Checkpoint>> {
    let own = source.tensors().map(|(name, info)| (name, name, info));
    let mut all: Vec<(&str, &str, &TensorInfo)> = own.collect();
    for (name, key) in &apart {
        all.push((name, key, source.require(key)?));
    }
    let tensors = all.into_iter().map(|(name, key, info)| {
        let entry = TensorEntry::named(name.to_owned(), info.clone());
        (key.to_owned(), entry)
    });
    let mut aliases = source.aliases().clone();
    aliases.retain(|name, _| !apart.contains_key(name));
    Ok(Renamed::view(
        Arc::clone(source),
        tensors.collect(),
        aliases,
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn heads_and_embeddings_are_known_by_the_ends_of_their_names() {
        assert!(is_head("lm_head.weight") && is_head("language_model.lm_head.weight"));
        assert!(is_head("output.weight") && !is_head("layers.0.output.weight"));
        assert!(!is_head("my_lm_head.weight"));
        assert!(is_embedding("model.embed_tokens.weight") && !is_embedding("lm_head.weight"));
    }

    #[test]
    fn a_configuration_says_whether_a_head_is_tied_at_its_top_or_for_its_text() {
        assert_eq!(said_by(&json!({"tie_word_embeddings": true})), Said::Tied);
        let part = json!({"text_config": {"tie_word_embeddings": false}});
        assert_eq!(said_by(&part), Said::Apart);
        assert_eq!(said_by(&json!({})), Said::Nothing);
    }
}
