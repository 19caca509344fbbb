//! A name of a tensor in GGUF, in Hugging Face, and the other way round.

use super::architectures::{Architecture, Row};

/// A tensor's module as a row of the table, with its number of a block and what follows the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'n> {
    pub(super) row: Row,
    pub(super) block: Option<usize>,
    pub(super) expert: Option<usize>,
    /// `.weight`, `.bias`, or nothing.
    pub(super) ending: &'n str,
}

impl Parsed<'_> {
    /// The name in Hugging Face, of expert `expert` if there are several.
    pub(super) fn hugging_face(&self, expert: usize) -> String {
        let name = filled(self.row.1, self.block).replace("{e}", &expert.to_string());
        name + self.ending
    }

    /// The name in GGUF.
    pub(super) fn gguf(&self) -> String {
        filled(self.row.0, self.block) + self.ending
    }

    /// Whether it picks experts: such matrices are small, and stay in f32.
    pub(super) fn is_of_router(&self) -> bool {
        self.row.0.contains(".ffn_gate_inp")
    }

    /// Whether the tensor of GGUF has the matrices of all experts.
    pub(super) fn is_of_experts(&self) -> bool {
        self.row.1.contains("{e}")
    }
}

/// A pattern with the number of a block in place of `{n}`.
pub(crate) fn filled(pattern: &str, block: Option<usize>) -> String {
    match block {
        Some(block) => pattern.replace("{n}", &block.to_string()),
        None => pattern.to_owned(),
    }
}

/// The meaning of a name of GGUF.
pub(super) fn of_gguf<'n>(architecture: &Architecture, name: &'n str) -> Option<Parsed<'n>> {
    parse(architecture, name, |row| row.0)
}

/// The meaning of a name of Hugging Face.
pub(super) fn of_hugging_face<'n>(
    architecture: &Architecture,
    name: &'n str,
) -> Option<Parsed<'n>> {
    parse(architecture, name, |row| row.1)
}

fn parse<'n>(
    architecture: &Architecture,
    name: &'n str,
    side: impl Fn(&Row) -> &'static str,
) -> Option<Parsed<'n>> {
    let rows = architecture.rows.iter().copied().flatten();
    let (module, ending) = split(name);
    rows.filter_map(|row| {
        let (block, expert) = numbers_in(module, side(row))?;
        Some(Parsed {
            row: *row,
            block,
            expert,
            ending,
        })
    })
    .next()
}

/// The module and what follows it.
pub(crate) fn split(name: &str) -> (&str, &str) {
    for ending in [".weight", ".bias"] {
        if let Some(module) = name.strip_suffix(ending) {
            return (module, &name[module.len()..]);
        }
    }
    (name, "")
}

/// The numbers in the places of `{n}` and `{e}`, if the pattern has them; `None` if the module is not of the pattern.
pub(crate) fn numbers_in(module: &str, pattern: &str) -> Option<(Option<usize>, Option<usize>)> {
    let (mut block, mut expert) = (None, None);
    let mut parts = module.split('.');
    for wanted in pattern.split('.') {
        let part = parts.next()?;
        match wanted {
            "{n}" => block = Some(number(part)?),
            "{e}" => expert = Some(number(part)?),
            _ if part == wanted => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some((block, expert))
}

/// A number as names spell it: no sign, no zero before it.
fn number(text: &str) -> Option<usize> {
    let n: usize = text.parse().ok()?;
    (n.to_string() == text).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_there_and_back() {
        let llama = Architecture::of_model_type("llama").expect("known");
        for (gguf, hugging_face) in [
            (
                "blk.12.attn_q.weight",
                "model.layers.12.self_attn.q_proj.weight",
            ),
            ("blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
        ] {
            let parsed = of_gguf(llama, gguf).expect("a row");
            assert_eq!(parsed.hugging_face(0), hugging_face);
            let parsed = of_hugging_face(llama, hugging_face).expect("a row");
            assert_eq!(parsed.gguf(), gguf);
        }
        for name in [
            "blk.01.attn_q.weight",
            "blk.x.attn_q.weight",
            "blk.1.attn_qkv.weight",
        ] {
            assert_eq!(of_gguf(llama, name), None, "{name}");
        }
    }
}
