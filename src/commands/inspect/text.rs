//! An inspection for people.

use anyhow::Result;
use merge::inspection::{Inspection, called};
use merge::io::{Container, PlainValue};
use merge::layouts::{self, Count, Dimensions, Layout, PartCounts, Stack};
use merge::{Expert, Role, grouped};

use crate::key_tree;
use crate::output::{Output, bytes};
use crate::table::{Align, Table, significant};

/// Values and Python objects that are listed before the rest is only counted.
const MAX_LISTED: usize = 20;
/// Characters of a value that are shown.
const MAX_VALUE: usize = 60;

/// The experts of routers, all together.
struct Routed {
    /// The number of experts in a block.
    n_experts: usize,
    count: Count,
}

impl Routed {
    fn of(counts: &PartCounts) -> Option<Self> {
        let routed = (counts.by_expert.iter())
            .filter(|(expert, _)| matches!(expert, Expert::Routed(_)))
            .map(|(_, count)| *count);
        let n_experts = routed.clone().count();
        (n_experts > 0).then(|| Self {
            n_experts,
            count: routed.sum(),
        })
    }
}

/// An inspection as a person reads it.
pub(super) struct Printed<'a>(pub(super) &'a Inspection);

impl Printed<'_> {
    pub(super) fn print(&self, output: &Output) -> Result<()> {
        self.print_file(output)?;
        match &self.0.layout {
            Ok(layout) => self.print_layout(layout.as_ref(), output)?,
            Err(error) => output.line(format!("layout      none: {error}"))?,
        }
        self.print_quantization(output)?;
        self.print_dtypes(output)?;
        self.print_beside(output)?;
        self.print_provenance(output)?;
        if self.0.statistics.is_some() || self.0.hashes.is_some() {
            self.print_tensors(output)
        } else {
            self.print_tree(output)
        }
    }

    fn print_file(&self, output: &Output) -> Result<()> {
        let info = self.0.info();
        let container = match info.container {
            Container::Safetensors => "safetensors",
            Container::TorchZip => "torch zip archive",
            Container::TorchLegacy => "torch file of before 1.6",
            Container::Gguf => "GGUF",
            Container::Flax => "msgpack of Flax",
            Container::Numpy => "NumPy",
            Container::Hdf5 => "HDF5",
            Container::Onnx => "ONNX",
            Container::Sharded => "sharded",
            Container::Distributed => "torch distributed checkpoint",
            Container::Shards => "shards of safetensors, one or several per rank",
            Container::Ranks => "one torch file per rank",
            Container::DeepSpeed => "DeepSpeed checkpoint",
            Container::Megatron => "Megatron-LM checkpoint",
            Container::Memory => "memory",
            _ => "other",
        };
        let n_bytes = info.files.iter().map(|file| file.n_bytes).sum();
        output.line(info.path.display().to_string())?;
        output.line(format!("container   {container}, {}", bytes(n_bytes)))?;
        if info.files.len() > 1 {
            for file in &info.files {
                output.line(format!(
                    "  {}  {}",
                    file.path.display(),
                    bytes(file.n_bytes)
                ))?;
            }
        }
        for root in &info.roots {
            let name = match root.name.as_str() {
                "" => "(the file itself)",
                name => name,
            };
            let chosen = if root.name == info.root {
                "  <- chosen"
            } else {
                ""
            };
            output.line(format!(
                "root        {name}: {} tensors, {}{chosen}",
                root.n_tensors,
                bytes(root.n_bytes)
            ))?;
        }
        Ok(())
    }

    fn print_layout(&self, layout: &dyn Layout, output: &Output) -> Result<()> {
        output.line(format!("layout      {}", layout.name()))?;
        for evidence in layout.evidence() {
            output.line(format!("  {evidence}"))?;
        }
        output.line(format!("sizes       {}", sizes(layout.dimensions())))?;
        let counts = layouts::count(&self.0.checkpoint, layout);
        let mut table = counts_table("part");
        for (part, count) in &counts.by_part {
            table.row(counts_row(snake(part), count.n_tensors, count.n_elements));
        }
        let total = counts.parameters();
        let name = "all but buffers".to_owned();
        table.row(counts_row(name, total.n_tensors, total.n_elements));
        output.line("")?;
        output.text(&table.to_string())?;
        if !counts.by_expert.is_empty() {
            let mut table = counts_table("expert");
            let of_routers = Routed::of(&counts);
            if let Some(routed) = &of_routers {
                let shared = counts.shared_in_blocks();
                let name = "all tokens".to_owned();
                table.row(counts_row(name, shared.n_tensors, shared.n_elements));
                let name = format!("routed, {} of them", routed.n_experts);
                table.row(counts_row(
                    name,
                    routed.count.n_tensors,
                    routed.count.n_elements,
                ));
                let of = counts.routers;
                table.row(counts_row(
                    "routers".to_owned(),
                    of.n_tensors,
                    of.n_elements,
                ));
            }
            let apart = (counts.by_expert.iter())
                .filter(|(expert, _)| !matches!(expert, Expert::Routed(_)));
            for (expert, count) in apart {
                table.row(counts_row(
                    expert.to_string(),
                    count.n_tensors,
                    count.n_elements,
                ));
            }
            output.line("")?;
            output.text(&table.to_string())?;
        }
        Ok(())
    }

    /// Prints the codes in which weights are stored, and the number of values that they stand for.
    fn print_quantization(&self, output: &Output) -> Result<()> {
        match &self.0.quantization {
            Ok(None) => Ok(()),
            Ok(Some(found)) => {
                let n_parameters = grouped(found.n_parameters(&self.0.checkpoint));
                output.line(format!(
                    "quantized   {n_parameters} parameters once dequantized"
                ))?;
                for count in found.schemes() {
                    output.line(format!(
                        "  {}: {} weights, {} elements",
                        count.scheme,
                        count.n_weights,
                        grouped(count.n_elements)
                    ))?;
                }
                Ok(())
            }
            Err(error) => output.line(format!("quantized   {error}")),
        }
    }

    fn print_dtypes(&self, output: &Output) -> Result<()> {
        let mut table = counts_table("dtype");
        for ((dtype, stored), (n_tensors, n_elements)) in self.0.dtypes() {
            let name = match stored {
                Some(stored) => format!("{stored}, read as {dtype}"),
                None => dtype.to_string(),
            };
            table.row(counts_row(name, n_tensors, n_elements));
        }
        output.line("")?;
        output.text(&table.to_string())
    }

    /// Plain values and Python objects beside the tensors.
    fn print_beside(&self, output: &Output) -> Result<()> {
        let info = self.0.info();
        let values = info
            .values
            .iter()
            .map(|(path, value)| format!("{path} = {}", shown(value)));
        list("plain values", values.collect(), output)?;
        let objects = info.opaque.iter().map(|object| {
            format!(
                "{}: loading it in Python would call {}",
                object.path, object.callable
            )
        });
        list("Python objects, not built", objects.collect(), output)
    }

    fn print_provenance(&self, output: &Output) -> Result<()> {
        if let Some(provenance) = &self.0.provenance {
            output.line("\nmade by vlmerge")?;
            for line in provenance.recipe.lines() {
                output.line(format!("  {line}"))?;
            }
            for input in &provenance.inputs {
                let known = input.hash().map(|hash| hash.to_string());
                let known = known.or_else(|| input.etag.clone());
                let hash = known.unwrap_or_else(|| "not hashed".to_owned());
                output.line(format!(
                    "  from {}, {}, {hash}",
                    input.name,
                    bytes(input.n_bytes)
                ))?;
            }
            return Ok(());
        }
        let metadata = self.0.info().metadata.iter();
        let lines = metadata.map(|(key, value)| format!("{key} = {}", clipped(value)));
        list("metadata", lines.collect(), output)
    }

    /// Keys of the chosen root collapsed over blocks and experts, and the tensors outside it.
    fn print_tree(&self, output: &Output) -> Result<()> {
        let layout = self.0.layout.as_ref().ok();
        let role = |key: &str| -> Option<Role> { layout?.role(key).ok() };
        let named = self
            .0
            .listed()
            .filter_map(|entry| Some((entry.name.as_deref()?, &entry.info)));
        let mut table = Table::new(vec![
            ("tensors".to_owned(), Align::Left),
            ("dtype".to_owned(), Align::Left),
            ("shape".to_owned(), Align::Left),
            ("n".to_owned(), Align::Right),
        ]);
        for branch in key_tree::collapse(named, role) {
            table.row(vec![
                branch.pattern,
                branch.info.dtype.to_string(),
                format!("{:?}", branch.info.shape),
                branch.n_tensors.to_string(),
            ]);
        }
        output.line("")?;
        output.text(&table.to_string())?;
        let aliases = self.0.checkpoint.aliases().iter();
        let aliases = aliases.map(|(name, of)| format!("{name}  is {of}"));
        list("other names of tensors", aliases.collect(), output)?;
        let outside = self.0.listed().filter(|entry| entry.name.is_none());
        let lines = outside.map(|entry| {
            format!(
                "{}  {} {:?}",
                entry.path, entry.info.dtype, entry.info.shape
            )
        });
        list("tensors outside the chosen root", lines.collect(), output)
    }

    /// Each tensor with its statistics and hash.
    fn print_tensors(&self, output: &Output) -> Result<()> {
        let mut columns = vec![
            ("tensor".to_owned(), Align::Left),
            ("dtype".to_owned(), Align::Left),
            ("shape".to_owned(), Align::Left),
        ];
        if self.0.statistics.is_some() {
            let names = ["min", "max", "mean", "std", "zeros", "non-finite"];
            columns.extend(names.map(|name| (name.to_owned(), Align::Right)));
        }
        if self.0.hashes.is_some() {
            columns.push(("sha256".to_owned(), Align::Left));
        }
        let mut table = Table::new(columns);
        for (position, entry) in self.0.listed().enumerate() {
            let mut row = vec![
                called(entry),
                (self.0.stored_as(position)).map_or(entry.info.dtype.to_string(), str::to_owned),
                format!("{:?}", entry.info.shape),
            ];
            if let Some(statistics) = &self.0.statistics {
                let of = &statistics[position];
                let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
                row.extend([of.min, of.max, of.mean, of.std].map(number));
                row.extend([of.n_zero.to_string(), of.n_non_finite.to_string()]);
            }
            if let Some(hashes) = &self.0.hashes {
                row.push(hashes[position].clone());
            }
            table.row(row);
        }
        output.line("")?;
        output.text(&table.to_string())
    }
}

fn counts_table(what: &str) -> Table {
    Table::new(vec![
        (what.to_owned(), Align::Left),
        ("tensors".to_owned(), Align::Right),
        ("elements".to_owned(), Align::Right),
    ])
}

fn counts_row(name: String, n_tensors: usize, n_elements: u64) -> Vec<String> {
    vec![name, n_tensors.to_string(), grouped(n_elements)]
}

/// The name of a unit variant as it is serialized, in words.
fn snake(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(name)) => name.replace('_', " "),
        _ => "other".to_owned(),
    }
}

/// Sizes of a stack, after its name if the model has several.
fn stack_sizes(stack: &Stack, is_only: bool) -> String {
    let name = match is_only {
        true => String::new(),
        false => format!("{} ", stack.name),
    };
    let mut sizes = vec![format!("{name}{} blocks", stack.n_blocks)];
    // A generic layout knows of no width.
    if stack.width > 0 {
        sizes.push(format!("width {}", stack.width));
    }
    sizes.extend(stack.n_heads.map(|heads| format!("{heads} heads")));
    sizes.extend(stack.ffn_width.map(|width| format!("{width} wide FFN")));
    sizes.join(", ")
}

fn sizes(dimensions: &Dimensions) -> String {
    let optional = [
        (dimensions.patch_size, "pixel patches"),
        (dimensions.image_size, "pixel images"),
        (dimensions.text_len, "text tokens"),
        (
            dimensions.text_table_len,
            "text tokens in the position table",
        ),
        (dimensions.vocabulary, "word pieces"),
        (dimensions.n_token_types, "token types"),
        (dimensions.joint_width, "wide joint space"),
    ];
    let is_only = dimensions.stacks.len() == 1;
    let stacks = dimensions.stacks.iter();
    let mut sizes: Vec<String> = stacks.map(|stack| stack_sizes(stack, is_only)).collect();
    sizes.extend(
        optional
            .into_iter()
            .filter_map(|(size, what)| Some(format!("{} {what}", size?))),
    );
    sizes.extend(
        dimensions
            .fusion_start
            .map(|block| format!("fusion from block {block}")),
    );
    sizes.join(", ")
}

/// A heading and lines, the first of them only if they are many; nothing if there are none.
fn list(heading: &str, lines: Vec<String>, output: &Output) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    output.line(format!("\n{heading}: {}", lines.len()))?;
    for line in lines.iter().take(MAX_LISTED) {
        output.line(format!("  {line}"))?;
    }
    if lines.len() > MAX_LISTED {
        output.line(format!(
            "  and {} more (--json lists all)",
            lines.len() - MAX_LISTED
        ))?;
    }
    Ok(())
}

fn shown(value: &PlainValue) -> String {
    match value {
        PlainValue::None => "None".to_owned(),
        PlainValue::Bool(value) => value.to_string(),
        PlainValue::Integer(value) => value.to_string(),
        PlainValue::Float(value) => value.to_string(),
        PlainValue::Text(value) => format!("\"{}\"", clipped(value)),
        _ => "?".to_owned(),
    }
}

fn clipped(text: &str) -> String {
    let line = text.replace('\n', " ");
    match line.char_indices().nth(MAX_VALUE) {
        None => line,
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}
