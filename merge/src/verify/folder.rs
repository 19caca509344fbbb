//! Whether the files beside the weights fit them and each other.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{Check, Outcome};
use crate::beside::vocabulary::Tokenizer;
use crate::beside::{Companions, chat, layers};
use crate::io::model_folder;
use crate::plan::PIECE_ELEMENTS;
use crate::{Checkpoint, Result, quantized, ties};

/// Files beside weights that say how they are quantized, where config.json does not.
const SETTINGS_OF_QUANTIZATION: [&str; 3] = [
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
];

/// The checks of a folder; one that is skipped for a file alone.
pub(super) fn checks(path: &Path, found: &Checkpoint) -> Result<Vec<Check>> {
    let files = Companions::of_model(path)?;
    let config = files.settings("config.json")?;
    let quantization = quantization(config.as_ref(), path, found);
    let Some(config) = config else {
        let skipped = Check::said(
            "config",
            Outcome::Skipped,
            "no config.json beside the weights",
        );
        return Ok(vec![skipped, quantization]);
    };
    let mut checks = vec![
        Check::failing("config", contradictions(&config, found)),
        quantization,
    ];
    let Some(tokenizer) = Tokenizer::of(&files)? else {
        checks.push(Check::said(
            "tokenizer",
            Outcome::Skipped,
            "no tokenizer.json beside the weights",
        ));
        return Ok(checks);
    };
    let mut findings = Vec::new();
    let n_tokens = tokenizer.vocabulary.n_rows();
    if let Some((name, rows)) = embeddings(found).filter(|(_, rows)| *rows < n_tokens) {
        findings.push(format!(
            "the tokenizer has ids up to {}, `{name}` has {rows} rows",
            n_tokens - 1
        ));
    }
    let tokens = tokenizer.vocabulary.by_id();
    let token_of = |id: u64| {
        let at = tokens
            .binary_search_by_key(&(id as usize), |(id, _)| *id)
            .ok()?;
        Some(tokens[at].1)
    };
    let generation = (files.settings("generation_config.json")?).unwrap_or_default();
    let settings = (files.settings("tokenizer_config.json")?).unwrap_or_default();
    let ends = ids(&config, "eos_token_id")
        .into_iter()
        .chain(ids(&generation, "eos_token_id"));
    let ends: BTreeSet<u64> = ends.collect();
    for id in &ends {
        if token_of(*id).is_none() {
            findings.push(format!("`eos_token_id` {id} is the id of no token"));
        }
    }
    let eos = settings
        .get("eos_token")
        .map(|token| token.get("content").unwrap_or(token));
    if let Some(eos) = eos.and_then(Value::as_str)
        && let Some(&id) = tokenizer.vocabulary.0.get(eos)
        && !ends.is_empty()
        && !ends.contains(&(id as u64))
    {
        findings.push(format!(
            "the tokenizer ends texts with `{eos}` ({id}), the model with {ends:?}"
        ));
    }
    checks.push(Check::failing("tokenizer", findings));
    let template = chat::of(&files)?.unwrap_or_default();
    let unknown: BTreeSet<&str> = (marks(&template).into_iter())
        .filter(|mark| !tokenizer.vocabulary.0.contains_key(*mark))
        .collect();
    let unknown = unknown
        .into_iter()
        .map(|mark| format!("the tokenizer has no token `{mark}`"));
    checks.push(Check::new(
        "chat template",
        Outcome::Note,
        unknown.collect(),
    ));
    Ok(checks)
}

/// One id or a list of them.
fn ids(config: &Value, key: &str) -> Vec<u64> {
    match config.get(key) {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(id) => id.as_u64().into_iter().collect(),
        None => Vec::new(),
    }
}

/// The input embeddings and their rows, where there are such of one name.
fn embeddings(found: &Checkpoint) -> Option<(&str, usize)> {
    let mut all =
        (found.tensors()).filter(|(name, info)| info.shape.len() == 2 && ties::is_embedding(name));
    let (name, info) = all.next()?;
    // Of models with several vocabularies nothing is known.
    all.next().is_none().then_some((name, info.shape[0]))
}

/// The contradictions between the configuration and the weights.
fn contradictions(config: &Value, found: &Checkpoint) -> Vec<String> {
    let mut findings = Vec::new();
    findings.extend(layers::of_stacks(
        config,
        found.tensors().map(|(name, _)| name),
    ));
    let text = config.get("text_config").unwrap_or(config);
    let says = |key: &str| text.get(key).or_else(|| config.get(key));
    let embeddings = embeddings(found);
    let size = says("vocab_size").and_then(Value::as_u64);
    if let (Some((name, rows)), Some(size)) = (embeddings, size)
        && size != rows as u64
    {
        findings.push(format!("`vocab_size` is {size}, `{name}` has {rows} rows"));
    }
    let pad = says("pad_token_id").and_then(Value::as_u64);
    if let (Some((name, rows)), Some(pad)) = (embeddings, pad)
        && pad >= rows as u64
    {
        findings.push(format!("`pad_token_id` is {pad}, `{name}` has {rows} rows"));
    }
    let head = found.tensors().find(|(name, _)| ties::is_head(name));
    let is_tied = says("tie_word_embeddings").and_then(Value::as_bool);
    if let (Some(false), None, Some(_), Some(class)) =
        (is_tied, head, embeddings, class_with_head(config))
    {
        findings.push(format!(
            "`tie_word_embeddings` is false and no tensor is a head: loaders of {class} draw a new one"
        ));
    }
    if let (Some(true), Some((head, info)), Some((embeddings, _))) = (is_tied, head, embeddings)
        && found.get(embeddings) == Some(info)
        && differ(found, head, embeddings)
    {
        findings.push(format!(
            "`tie_word_embeddings` is true, but `{head}` is not `{embeddings}`"
        ));
    }
    findings
}

/// The class of the model, where it has a head that gives each token a score.
fn class_with_head(config: &Value) -> Option<&str> {
    let class = config.get("architectures")?.get(0)?.as_str()?;
    let ends = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];
    ends.iter().any(|end| class.ends_with(end)).then_some(class)
}

/// Whether two tensors of one shape differ; another check reports tensors that cannot be read.
fn differ(found: &Checkpoint, one: &str, other: &str) -> bool {
    let Some(info) = found.get(one) else {
        return false;
    };
    let (n, size) = (info.n_elements(), info.dtype.size_bytes());
    (0..n).step_by(PIECE_ELEMENTS).any(|first| {
        let n = PIECE_ELEMENTS.min(n - first);
        let read = |name: &str| {
            let mut bytes = vec![0; n * size];
            found.read(name, first, &mut bytes).map(|()| bytes)
        };
        matches!((read(one), read(other)), (Ok(one), Ok(other)) if one != other)
    })
}

/// Whether weights are codes that the configuration does not tell of, or the other way round.
fn quantization(config: Option<&Value>, path: &Path, found: &Checkpoint) -> Check {
    let says = config.is_some_and(quantized::is_said);
    let schemes = match quantized::recognize(found) {
        Ok(found) => found.map(|found| found.schemes()).unwrap_or_default(),
        Err(fault) => return Check::said("quantization", Outcome::Failed, fault.to_string()),
    };
    let schemes: Vec<String> = (schemes.into_iter())
        .map(|count| format!("{} weights are {}", count.n_weights, count.scheme))
        .collect();
    let folder = model_folder(path);
    let is_beside = (folder.iter())
        .flat_map(|folder| SETTINGS_OF_QUANTIZATION.map(|name| folder.join(name)))
        .any(|path| path.is_file());
    let (outcome, why) = match (says, schemes.is_empty()) {
        (true, true) => (
            Outcome::Failed,
            "config.json has a `quantization_config`, but no tensor is quantized",
        ),
        (false, false) if config.is_some() && !is_beside => (
            Outcome::Failed,
            "config.json has no `quantization_config`: loaders take the codes for weights",
        ),
        (false, false) => (Outcome::Note, "there is no config.json that says so"),
        (true, false) | (false, true) => return Check::failing("quantization", Vec::new()),
    };
    Check::said(
        "quantization",
        outcome,
        [schemes, vec![why.to_owned()]].concat().join("; "),
    )
}

/// Marks of chat templates: `<|im_start|>`.
fn marks(template: &str) -> Vec<&str> {
    let starts = template.match_indices("<|").map(|(at, _)| at);
    starts
        .filter_map(|at| {
            let mark = &template[at..];
            let end = mark.find("|>")? + 2;
            let is_plain =
                !mark[..end].contains(|c: char| c.is_whitespace() || c == '\'' || c == '"');
            is_plain.then_some(&mark[..end])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_templates_are_found() {
        let template = "{{ '<|im_start|>' + role + '<|' }} {{ '<|im_end|>' }}";
        assert_eq!(marks(template), ["<|im_start|>", "<|im_end|>"]);
    }
}
