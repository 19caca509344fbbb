//! Feed-forward networks by the names of their layers: which rows and columns belong to one hidden unit.

use std::collections::{BTreeMap, BTreeSet};

use super::{ExpertName, Mixture};
use crate::{Checkpoint, TensorInfo};

/// A feed-forward network, dense or an expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ffn {
    /// Its name in reports, e.g. `model.layers.3.mlp`, or with the number of the expert.
    pub name: String,
    /// The number of its hidden units.
    pub n_units: usize,
    /// The places of each unit's numbers; the layer out of the units is the last.
    pub strands: Vec<Strand>,
}

impl Ffn {
    /// Whether another network has as many units and layers of the same sizes.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let sizes = |strand: &Strand| (strand.n_rows, strand.n_columns, strand.along_columns);
        let own = self.strands.iter().map(sizes);
        self.n_units == other.n_units && own.eq(other.strands.iter().map(sizes))
    }

    /// Whether it has more hidden units than any published network of its width: numbers computed of pairs of them are
    /// to stay in proportion to the file.
    pub(crate) fn is_out_of_proportion(&self) -> bool {
        let width = self
            .strands
            .last()
            .map_or(0, |out| match out.along_columns {
                true => out.n_rows,
                false => out.n_columns,
            });
        self.n_units > MOST_UNITS_PER_INPUT.saturating_mul(width)
    }
}

/// Published networks have up to 16.
const MOST_UNITS_PER_INPUT: usize = 64;

/// A matrix of which each hidden unit has some rows or some columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strand {
    /// The tensor.
    pub key: String,
    /// The element that the matrix begins with.
    pub first: usize,
    /// Rows of the matrix.
    pub n_rows: usize,
    /// Columns of the matrix.
    pub n_columns: usize,
    /// Whether units are along the columns, not the rows.
    pub along_columns: bool,
    /// The number of hidden units.
    pub n_units: usize,
    /// The row or column of unit `u`, for each that it has: `start + step * u`.
    pub steps: Vec<(usize, usize)>,
}

/// Names of the layers of a feed-forward network: into the hidden units, and out of them.
struct Form {
    into: &'static [&'static str],
    out_of: &'static str,
    /// The order in which rows of the layer into the units stand for them.
    order: UnitOrder,
}

/// The order of units in the layer into them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnitOrder {
    /// A row for each unit.
    Once,
    /// The gates of all units, then their values.
    Halves,
}

const fn form(into: &'static [&'static str], out_of: &'static str) -> Form {
    let order = UnitOrder::Once;
    Form {
        into,
        out_of,
        order,
    }
}

const fn halves(into: &'static [&'static str], out_of: &'static str) -> Form {
    Form {
        into,
        out_of,
        order: UnitOrder::Halves,
    }
}

/// The forms that published models have; a network is of the first that fits.
const FORMS: &[Form] = &[
    form(&["gate_proj", "up_proj"], "down_proj"),
    halves(&["gate_up_proj"], "down_proj"),
    form(&["w1", "w3"], "w2"),
    form(&["fc1"], "fc2"),
    form(&["lin1"], "lin2"),
    form(&["linear1"], "linear2"),
    form(&["fc_in"], "fc_out"),
    form(&["c_fc"], "c_proj"),
    form(&["wi_0", "wi_1"], "wo"),
    form(&["wi"], "wo"),
    form(&["dense_h_to_4h"], "dense_4h_to_h"),
    form(&["intermediate.dense"], "output.dense"),
    halves(&["Wi"], "Wo"),
    halves(&["input_linear"], "output_linear"),
];

/// Dense networks of a checkpoint, and each expert of its mixtures.
pub(crate) fn ffns(checkpoint: &Checkpoint, mixtures: &BTreeMap<String, Mixture>) -> Vec<Ffn> {
    let of_experts: BTreeSet<String> = mixtures.values().flat_map(Mixture::keys).collect();
    let dense = |key: &str| checkpoint.get(key).filter(|_| !of_experts.contains(key));
    let mut found: Vec<Ffn> = Vec::new();
    for (key, _) in checkpoint
        .tensors()
        .filter(|(key, _)| !of_experts.contains(*key))
    {
        let Some((prefix, form)) = prefix_of(key, |prefix, form| {
            let mut layers = form.into.iter();
            layers.all(|layer| dense(&format!("{prefix}{layer}.weight")).is_some())
        }) else {
            continue;
        };
        let tensor = |name: &str| {
            let key = format!("{prefix}{name}");
            let info = dense(&key)?.clone();
            Some((key, 0, info))
        };
        let name = prefix.trim_end_matches('.').to_owned();
        found.extend(network(name, form, &tensor));
    }
    found.extend(mixtures.values().flat_map(ffns_of));
    found
}

/// The experts of a mixture as networks, in their order; none if their tensors are of no known form.
pub(crate) fn ffns_of(mixture: &Mixture) -> Vec<Ffn> {
    (0..mixture.n_experts)
        .filter_map(|expert| of_expert(mixture, expert))
        .collect()
}

/// The network that a layer out of hidden units ends.
fn prefix_of(key: &str, is_whole: impl Fn(&str, &Form) -> bool) -> Option<(&str, &'static Form)> {
    let layer = key.strip_suffix(".weight")?;
    FORMS.iter().find_map(|form| {
        let prefix = layer.strip_suffix(form.out_of)?;
        let is_part = prefix.is_empty() || prefix.ends_with('.');
        (is_part && is_whole(prefix, form)).then_some((prefix, form))
    })
}

/// The network of an expert.
fn of_expert(mixture: &Mixture, expert: usize) -> Option<Ffn> {
    // A fused tensor may go by the layer's name alone.
    let tensor = |name: &str| {
        let bare = name.strip_suffix(".weight").unwrap_or(name);
        let with_bias = name
            .strip_suffix(".bias")
            .map(|layer| format!("{layer}_bias"));
        let of = mixture.tensors.iter().find(|tensor| {
            let part = tensor.part();
            let is_fused = matches!(tensor.name, ExpertName::Fused(_));
            part == name || (is_fused && (part == bare || with_bias.as_deref() == Some(part)))
        })?;
        let (key, first) = of.place(expert);
        Some((key, first, of.info.clone()))
    };
    let name = format!("{}, expert {expert}", mixture.host);
    FORMS.iter().find_map(|form| {
        let is_whole = form
            .into
            .iter()
            .chain([&form.out_of])
            .all(|layer| tensor(&format!("{layer}.weight")).is_some());
        is_whole
            .then(|| network(name.clone(), form, &tensor))
            .flatten()
    })
}

/// The place of a network's tensor: its key, its first row there, and the info of that key.
type Placed = (String, usize, TensorInfo);

/// A network out of its tensors by name within it; `None` if their sizes do not tell the hidden units.
fn network(name: String, form: &Form, tensor: &dyn Fn(&str) -> Option<Placed>) -> Option<Ffn> {
    let (out_key, out_first, out_info) = tensor(&format!("{}.weight", form.out_of))?;
    let (_, _, in_info) = tensor(&format!("{}.weight", form.into.first()?))?;
    let (&[out_rows, out_columns], &[in_rows, in_columns]) =
        (out_info.shape.as_slice(), in_info.shape.as_slice())
    else {
        return None;
    };
    let bias = tensor(&format!("{}.bias", form.into.first()?));
    let n_bias = bias
        .as_ref()
        .and_then(|(_, _, info)| info.shape.first().copied());
    let times = match form.order {
        UnitOrder::Once => 1,
        UnitOrder::Halves => 2,
    };
    // `(out, in)` as torch's linear layers have it, or `(in, out)`.
    let is_linear = in_rows == times * out_columns && in_columns == out_rows;
    let is_transposed = in_columns == times * out_rows && in_rows == out_columns;
    let is_linear = match (is_linear, is_transposed) {
        (true, false) => true,
        (false, true) => false,
        // Squares: the bias has a number for each unit only where sizes differ, so torch's order is meant.
        (true, true) => n_bias.is_none_or(|n| n == in_rows),
        (false, false) => return None,
    };
    let n_units = if is_linear { out_columns } else { out_rows };
    // Gates and values of the one published form with biases on both stand in turn.
    let steps = match form.order {
        UnitOrder::Once => vec![(0, 1)],
        UnitOrder::Halves if bias.is_some() => vec![(0, 2), (1, 2)],
        UnitOrder::Halves => vec![(0, 1), (n_units, 1)],
    };
    let mut strands = Vec::new();
    for layer in form.into {
        let (key, first, info) = tensor(&format!("{layer}.weight"))?;
        if info.shape != in_info.shape {
            return None;
        }
        strands.push(Strand {
            key,
            first,
            n_rows: in_rows,
            n_columns: in_columns,
            along_columns: !is_linear,
            n_units,
            steps: steps.clone(),
        });
        if let Some((key, first, info)) = tensor(&format!("{layer}.bias")) {
            if info.shape != [times * n_units] {
                return None;
            }
            strands.push(row_of_units(key, first, n_units, steps.clone()));
        }
    }
    // A norm over the hidden units.
    for norm in ["ffn_layernorm", "ffn_ln", "norm"] {
        for part in ["weight", "bias"] {
            if let Some((key, first, info)) = tensor(&format!("{norm}.{part}"))
                && info.shape == [n_units]
                && form.into == ["fc1"]
            {
                strands.push(row_of_units(key, first, n_units, vec![(0, 1)]));
            }
        }
    }
    strands.push(Strand {
        key: out_key,
        first: out_first,
        n_rows: out_rows,
        n_columns: out_columns,
        along_columns: is_linear,
        n_units,
        steps: vec![(0, 1)],
    });
    Some(Ffn {
        name,
        n_units,
        strands,
    })
}

/// A vector with a number for each unit, or several, as a matrix of one row.
fn row_of_units(key: String, first: usize, n_units: usize, steps: Vec<(usize, usize)>) -> Strand {
    Strand {
        key,
        first,
        n_rows: 1,
        n_columns: n_units * steps.len(),
        along_columns: true,
        n_units,
        steps,
    }
}
