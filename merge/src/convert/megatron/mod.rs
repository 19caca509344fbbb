//! Language models of Megatron Core under the names of transformers, with its `config.json`.
//!
//! | form | in transformers |
//! |---|---|
//! | rotary positions, gated networks with SiLU, RMSNorm | Llama |
//! | the same with biases of queries, keys and values alone | Qwen2 |
//! | the same with norms of queries and keys | Qwen3 |
//!
//! Queries, keys and values of a group of heads stand together in `linear_qkv`; `linear_fc1` has the rows of the gate, then
//! those that are gated.
//!
//! Source: `megatron/core/{models/gpt/gpt_model,transformer/attention,transformer/mlp}.py` of Megatron Core 0.12.

mod arguments;
mod config;

use std::sync::Arc;

pub use arguments::RunArguments;

use arguments::Arguments;

use super::fewer_experts::Made;
use crate::beside::Beside;
use crate::gguf::names::{filled, numbers_in, split};
use crate::mixtures::Piece;
use crate::{Checkpoint, ConversionFault, DType, Error, Result, TensorInfo, ties};

/// The treatment of a tensor's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// They stay.
    Same,
    /// Those that fill up the vocabulary go.
    Tokens,
    /// Groups of queries, keys and values come apart.
    Groups,
    /// Both halves come apart.
    Halves,
}

/// Modules of Megatron, `{n}` being the number of the layer; what they are in transformers; and what becomes of their rows.
const ROWS: [(&str, &[&str], Rows); 13] = [
    (
        "embedding.word_embeddings",
        &["model.embed_tokens"],
        Rows::Tokens,
    ),
    ("output_layer", &["lm_head"], Rows::Tokens),
    ("decoder.final_layernorm", &["model.norm"], Rows::Same),
    (
        "decoder.layers.{n}.input_layernorm",
        &["model.layers.{n}.input_layernorm"],
        Rows::Same,
    ),
    // The form of TransformerEngine has the norm in the layer behind it.
    (
        "decoder.layers.{n}.self_attention.linear_qkv.layer_norm_weight",
        &["model.layers.{n}.input_layernorm.weight"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.self_attention.linear_qkv",
        &[
            "model.layers.{n}.self_attn.q_proj",
            "model.layers.{n}.self_attn.k_proj",
            "model.layers.{n}.self_attn.v_proj",
        ],
        Rows::Groups,
    ),
    (
        "decoder.layers.{n}.self_attention.linear_proj",
        &["model.layers.{n}.self_attn.o_proj"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.self_attention.q_layernorm",
        &["model.layers.{n}.self_attn.q_norm"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.self_attention.k_layernorm",
        &["model.layers.{n}.self_attn.k_norm"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.pre_mlp_layernorm",
        &["model.layers.{n}.post_attention_layernorm"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.mlp.linear_fc1.layer_norm_weight",
        &["model.layers.{n}.post_attention_layernorm.weight"],
        Rows::Same,
    ),
    (
        "decoder.layers.{n}.mlp.linear_fc1",
        &[
            "model.layers.{n}.mlp.gate_proj",
            "model.layers.{n}.mlp.up_proj",
        ],
        Rows::Halves,
    ),
    (
        "decoder.layers.{n}.mlp.linear_fc2",
        &["model.layers.{n}.mlp.down_proj"],
        Rows::Same,
    ),
];

/// The sizes that Megatron computes from the arguments.
const COMPUTED: &str = "rotary_pos_emb.inv_freq";

/// The library that names are those of.
const TARGET: &str = "transformers' Llama, Qwen2 and Qwen3";

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    queries: usize,
    /// Heads of keys, and as many of values.
    groups: usize,
    width: usize,
}

impl Heads {
    fn of(arguments: &Arguments<'_>, hidden: usize) -> Result<Self> {
        let queries = arguments.count("num_attention_heads")?;
        let queries = arguments.required("num_attention_heads", queries)?;
        let groups = match arguments.is_set("group_query_attention") {
            true => {
                let groups = arguments.count("num_query_groups")?;
                arguments.required("num_query_groups", groups)?
            }
            false => queries,
        };
        let width = arguments.count("kv_channels")?.unwrap_or(hidden / queries);
        match queries.is_multiple_of(groups) && width > 0 {
            true => Ok(Self {
                queries,
                groups,
                width,
            }),
            false => Err(arguments.unfit("num_query_groups", "a divisor of the number of heads")),
        }
    }

    /// For queries, keys and values: where the first row of each group is, and how many it has.
    fn parts(self) -> [(usize, usize); 3] {
        let queries = self.queries / self.groups * self.width;
        [
            (0, queries),
            (queries, self.width),
            (queries + self.width, self.width),
        ]
    }

    /// Rows of a group; `None` if there are too many to count.
    fn group_rows(self) -> Option<usize> {
        (self.queries / self.groups)
            .checked_add(2)?
            .checked_mul(self.width)
    }
}

/// The checkpoint under the names of transformers.
///
/// # Errors
/// [`ConversionFault::NoCounterpart`] for a tensor that transformers has no place for, [`ConversionFault::Parts`] for sizes
/// that contradict the arguments of the run, and [`ConversionFault::MissingArgument`] and
/// [`ConversionFault::UnfitArgument`].
pub(super) fn respelled(source: Arc<Checkpoint>, given: &RunArguments) -> Result<Arc<Checkpoint>> {
    let source = match source.aliases().clone() {
        aliases if aliases.is_empty() => source,
        aliases => ties::with_apart(&source, aliases)?,
    };
    let arguments = Arguments::of(&source, given)?;
    config::require_form(&arguments)?;
    let embeddings = source.require("embedding.word_embeddings.weight")?;
    let [n_rows, hidden] = embeddings.shape[..] else {
        return Err(parts(
            &source,
            "embedding.word_embeddings.weight",
            "is no matrix",
        ));
    };
    let heads = Heads::of(&arguments, hidden)?;
    let n_tokens = arguments.count("vocab_size")?.unwrap_or(n_rows);
    let mut made = Made::default();
    for (key, info) in source.tensors() {
        made.leave_out(key.to_owned());
        if key.ends_with(COMPUTED) {
            continue;
        }
        let (module, ending) = split(key);
        let mut rows = ROWS.iter();
        let found = rows.find_map(|(of, to, rows)| {
            let (layer, _) = numbers_in(module, of)?;
            Some((layer, *to, *rows))
        });
        let (layer, to, rows) =
            found.ok_or_else(|| no_counterpart(&source, key, "it has no such parameter"))?;
        let is_of_norm = to[0].ends_with("norm");
        if is_of_norm && ending == ".bias" {
            let why = "its norms are RMSNorm, which has no bias";
            return Err(no_counterpart(&source, key, why));
        }
        let pieces = match rows {
            Rows::Same => vec![(info.clone(), vec![whole(key, info)])],
            Rows::Tokens => vec![tokens(&source, key, info, n_tokens)?],
            Rows::Groups => groups(&source, key, info, heads)?,
            Rows::Halves => halves(&source, key, info)?,
        };
        for (to, (info, pieces)) in to.iter().zip(pieces) {
            made.add(filled(to, layer) + ending, info, pieces);
        }
    }
    Ok(made.view(Arc::clone(&source)))
}

/// `config.json` beside the weights in a folder. `source` is under the names of transformers.
///
/// # Errors
/// As [`respelled`], where an argument that the configuration needs is missing.
pub(super) fn beside(
    source: &Checkpoint,
    given: &RunArguments,
    dtype: impl Fn(DType) -> DType,
) -> Result<Beside> {
    let arguments = Arguments::of(source, given)?;
    let mut beside = Beside {
        weights: Some("model"),
        ..Beside::default()
    };
    beside.files.push(config::of(source, &arguments, dtype)?);
    let path = source.path().display();
    beside.notes.push(format!(
        "{path}: config.json names no token that begins or ends a text, and the tokenizer is not there: copy it from where the run had it"
    ));
    if arguments.count("vocab_size")?.is_none() {
        beside.notes.push(format!(
            "{path}: the vocabulary keeps the rows that fill it up; --run-arg vocab_size=N cuts it to N tokens"
        ));
    }
    Ok(beside)
}

fn width_of(info: &TensorInfo) -> usize {
    info.shape.last().copied().unwrap_or(1).max(1)
}

fn whole(key: &str, info: &TensorInfo) -> Piece {
    Piece::of(key.to_owned(), 0, info.n_elements() / width_of(info))
}

/// The first rows of a table of tokens.
fn tokens(
    source: &Checkpoint,
    key: &str,
    info: &TensorInfo,
    n_tokens: usize,
) -> Result<(TensorInfo, Vec<Piece>)> {
    match info.shape[..] {
        [rows, width] if (1..=rows).contains(&n_tokens) => {
            let info = TensorInfo {
                dtype: info.dtype,
                shape: vec![n_tokens, width],
            };
            Ok((info, vec![Piece::of(key.to_owned(), 0, n_tokens)]))
        }
        _ => Err(parts(
            source,
            key,
            &format!(
                "has the shape {:?}, which has no {n_tokens} tokens",
                info.shape
            ),
        )),
    }
}

/// Queries, keys and values of a tensor in which each group of heads has its own in a row.
fn groups(
    source: &Checkpoint,
    key: &str,
    info: &TensorInfo,
    heads: Heads,
) -> Result<Vec<(TensorInfo, Vec<Piece>)>> {
    let rows = info.shape.first().copied().unwrap_or(0);
    let group = heads.group_rows();
    if group.and_then(|group| group.checked_mul(heads.groups)) != Some(rows) {
        let Heads {
            queries,
            groups,
            width,
        } = heads;
        return Err(parts(
            source,
            key,
            &format!(
                "has {rows} rows, which are not those of {queries} heads of queries and {groups} of keys and of values, each {width} wide"
            ),
        ));
    }
    let group = rows / heads.groups;
    let of = |(first, n): (usize, usize)| {
        let starts = (0..heads.groups).map(move |number| number * group + first);
        match info.shape[..] {
            // Elements of a single row.
            [_] => {
                let columns = starts.flat_map(|start| start..start + n);
                vec![Piece {
                    columns: Some(columns.map(|column| column as u32).collect()),
                    row_elements: Some(rows),
                    ..Piece::of(key.to_owned(), 0, 1)
                }]
            }
            _ => starts
                .map(|start| Piece::of(key.to_owned(), start * width_of(info), n))
                .collect(),
        }
    };
    let made = heads.parts().map(|(first, n)| {
        let mut shape = info.shape.clone();
        shape[0] = n * heads.groups;
        let info = TensorInfo {
            dtype: info.dtype,
            shape,
        };
        (info, of((first, n)))
    });
    Ok(made.into())
}

/// Both halves of the rows of a tensor.
fn halves(
    source: &Checkpoint,
    key: &str,
    info: &TensorInfo,
) -> Result<Vec<(TensorInfo, Vec<Piece>)>> {
    let rows = info.shape.first().copied().unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(2) || info.shape.len() > 2 {
        let reason = format!("has {rows} rows, which are no gate and as many gated rows");
        return Err(parts(source, key, &reason));
    }
    let mut shape = info.shape.clone();
    shape[0] = rows / 2;
    let half = TensorInfo {
        dtype: info.dtype,
        shape,
    };
    let n_rows = half.n_elements() / width_of(&half);
    let of = |first| (half.clone(), vec![Piece::of(key.to_owned(), first, n_rows)]);
    Ok(vec![of(0), of(half.n_elements())])
}

fn parts(source: &Checkpoint, key: &str, reason: &str) -> Error {
    ConversionFault::Parts {
        path: source.path().into(),
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
    .into()
}

fn no_counterpart(source: &Checkpoint, key: &str, why: &'static str) -> Error {
    ConversionFault::NoCounterpart {
        path: source.path().into(),
        key: key.to_owned(),
        target: TARGET,
        why,
    }
    .into()
}
