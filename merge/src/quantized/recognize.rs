//! Recognizes tensors of codes and scales by their names, dtypes and shapes.

use std::collections::{BTreeMap, BTreeSet};

use super::columns::Columns;
use super::config::Config;
use super::fours::{Fours, Global};
use super::lookup::{Lookup, Nested, State};
use super::packed::Packed;
use super::scaled::{Codes, Scaled};
use super::sparse::Sparse;
use super::stored::Stored;
use super::{Quantization, Weight};
use crate::{Checkpoint, DType, Error, QuantizationFault, Result};

/// Ways of quantizing whose tensors are known.
const KNOWN: [&str; 9] = [
    "fp8",
    "fbgemm_fp8",
    "finegrained_fp8",
    "compressed-tensors",
    "modelopt",
    "mxfp4",
    "gptq",
    "awq",
    "bitsandbytes",
];

/// Ends of names of tensors beside the codes, for activations and caches, which nothing needs once weights
/// are numbers.
const BESIDE: [&str; 15] = [
    ".input_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".input_zero_point",
    ".output_scale",
    ".output_zero_point",
    ".activation_scale",
    ".scale_input",
    ".qscale_act",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".prob_scale",
    ".weight_format",
    ".weight_shape",
];

/// Ends of names that only quantized tensors have.
const SIGNS: [&str; 14] = [
    ".qweight",
    ".qzeros",
    ".weight_packed",
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
    ".SCB",
    ".W_q",
    ".pre_quant_scale",
    ".bitmask",
    "_qdata",
    ".absmax",
    ".weight._data",
];

/// The most axes of a weight.
const MAX_AXES: usize = 8;

/// The quantized weights of a checkpoint; `None` if there are none. Besides headers, only small tensors are read that
/// say how others are stored.
///
/// # Errors
/// [`QuantizationFault`], all that are found at once.
pub fn recognize(checkpoint: &Checkpoint) -> Result<Option<Quantization>> {
    let mut reader = Reader {
        source: checkpoint,
        config: Config::of(checkpoint)?,
        weights: BTreeMap::new(),
        faults: Vec::new(),
    };
    let keys: Vec<&str> = checkpoint.tensors().map(|(key, _)| key).collect();
    for key in &keys {
        match reader.weight(key) {
            Ok(None) => {}
            Ok(Some((name, weight))) => {
                reader.add(name, weight);
            }
            Err(fault) => reader.faults.push(fault),
        }
    }
    reader.finish(&keys)
}

struct Reader<'a> {
    source: &'a Checkpoint,
    config: Config,
    weights: BTreeMap<String, Weight>,
    faults: Vec<Error>,
}

impl Reader<'_> {
    fn add(&mut self, name: String, weight: Weight) {
        if self.source.get(&name).is_some() && !weight.codes.keys().contains(&name.as_str()) {
            let key = weight
                .codes
                .keys()
                .first()
                .map_or(String::new(), |key| (*key).to_owned());
            let reason = format!("`{name}` is there, too");
            self.faults
                .push(self.unreadable(&weight.scheme, &key, reason));
        } else {
            self.weights.insert(name, weight);
        }
    }

    /// The weight whose codes `key` are, and its name.
    fn weight(&self, key: &str) -> Result<Option<(String, Weight)>> {
        if let Some(name) = key.strip_suffix("_blocks").or(key.strip_suffix(".blocks")) {
            return self.blocks(key, name);
        }
        if let Some(module) = key.strip_suffix(".qweight") {
            return self.columns(key, module).map(Some);
        }
        if let Some(module) = key.strip_suffix(".weight_packed") {
            return self.packed(key, module).map(Some);
        }
        if let Some((name, _)) = key.split_once(".quant_state.bitsandbytes__") {
            return self.lookup(key, name).map(Some);
        }
        if let Some(prefix) = key.strip_suffix(".bitmask") {
            return self.sparse(key, prefix).map(Some);
        }
        if let Some(prefix) = key.strip_suffix(".compressed") {
            let mask = format!("{prefix}.bitmask");
            let is_sparse = self.stored(&format!("{prefix}.shape")).is_some();
            return match is_sparse && self.stored(&mask).is_none() {
                true => Err(self.missing(key, mask)),
                false => Ok(None),
            };
        }
        self.scaled(key)
    }

    fn stored(&self, key: &str) -> Option<Stored> {
        Stored::of(self.source, key)
    }

    fn needed(&self, codes: &str, key: &str) -> Result<Stored> {
        (self.stored(key)).ok_or_else(|| self.missing(codes, key.to_owned()))
    }

    fn missing(&self, codes: &str, missing: String) -> Error {
        QuantizationFault::Missing {
            path: self.source.path().into(),
            key: codes.to_owned(),
            missing,
        }
        .into()
    }

    fn misfit(&self, codes: &Stored, scales: &Stored) -> Error {
        QuantizationFault::Misfit {
            path: self.source.path().into(),
            codes: codes.in_words(),
            scales: scales.in_words(),
        }
        .into()
    }

    fn unreadable(&self, scheme: &str, key: &str, reason: String) -> Error {
        QuantizationFault::Unreadable {
            path: self.source.path().into(),
            scheme: scheme.to_owned(),
            key: key.to_owned(),
            reason,
        }
        .into()
    }

    /// MXFP4 of gpt-oss.
    fn blocks(&self, key: &str, name: &str) -> Result<Option<(String, Weight)>> {
        let is_dotted = key.ends_with(".blocks");
        let end = if is_dotted { ".scales" } else { "_scales" };
        let Some(codes) = self
            .stored(key)
            .filter(|codes| codes.info.dtype == DType::U8)
        else {
            return Ok(None);
        };
        let Some(scales) = Stored::scales(self.source, &format!("{name}{end}")) else {
            // Other tensors are called blocks, too.
            return match codes.shape() {
                [_, _, _, 16] => Err(self.missing(key, format!("{name}{end}"))),
                _ => Ok(None),
            };
        };
        let misfit = self.misfit(&codes, &scales);
        let fours = Fours::in_blocks(codes, scales).ok_or(misfit)?;
        let weight = match is_dotted {
            true => fours.into_weight("MXFP4"),
            // transformers' model has inputs before outputs.
            false => match fours.turned() {
                Some(turned) => turned.into_weight("MXFP4"),
                None => {
                    let reason = "its blocks have not the four axes of gpt-oss's experts".into();
                    return Err(self.unreadable("MXFP4", key, reason));
                }
            },
        };
        Ok(Some((name.to_owned(), weight)))
    }

    /// GPTQ and AWQ.
    fn columns(&self, key: &str, module: &str) -> Result<(String, Weight)> {
        let codes = self.needed(key, key)?;
        let method = self
            .config
            .method
            .clone()
            .unwrap_or_else(|| "GPTQ or AWQ".into());
        if let Some(obstacle) = &self.config.obstacle {
            return Err(self.unreadable(&method, key, obstacle.clone()));
        }
        let zeros = self.needed(key, &format!("{module}.qzeros"))?;
        let scales = self.needed(key, &format!("{module}.scales"))?;
        let groups = self.stored(&format!("{module}.g_idx"));
        let misfit = self.misfit(&codes, &scales);
        let are_words = [&codes, &zeros]
            .iter()
            .all(|words| words.info.dtype == DType::I32)
            && groups
                .as_ref()
                .is_none_or(|groups| groups.info.dtype == DType::I32)
            && scales.info.dtype.is_float();
        let is_gptq = codes.shape().get(1) == scales.shape().get(1);
        let columns = match (are_words, is_gptq) {
            (false, _) => None,
            (true, true) => Columns::gptq(codes, zeros, scales, groups, self.config.zero_offset),
            (true, false) if groups.is_some() => None,
            (true, false) => Columns::awq(codes, zeros, scales),
        };
        let columns = columns.ok_or(misfit)?;
        Ok((format!("{module}.weight"), columns.into_weight()))
    }

    /// compressed-tensors' integers and 4-bit floats.
    fn packed(&self, key: &str, module: &str) -> Result<(String, Weight)> {
        let codes = self.needed(key, key)?;
        let name = format!("{module}.weight");
        let scale_key = format!("{module}.weight_scale");
        self.needed(key, &scale_key)?;
        if codes.info.dtype == DType::U8 {
            let global = self.stored(&format!("{module}.weight_global_scale"));
            return self.fours(codes, &scale_key, global.map(Global::Divisor), name);
        }
        if let Some(obstacle) = &self.config.obstacle {
            return Err(self.unreadable("packed integers", key, obstacle.clone()));
        }
        let scales = self.needed(key, &scale_key)?;
        let misfit = self.misfit(&codes, &scales);
        let shape_key = format!("{module}.weight_shape");
        let shape = self.needed(key, &shape_key)?;
        let numbers = shape.floats(self.source, 0, shape.info.n_elements())?;
        let (&[rows, width], DType::I32) = (numbers.as_slice(), codes.info.dtype) else {
            return Err(misfit);
        };
        let shape = [rows as usize, width as usize];
        let bits = [4, 8, 2]
            .into_iter()
            .find(|bits| codes.shape().last() == Some(&shape[1].div_ceil(32 / bits)));
        let zeros = self.stored(&format!("{module}.weight_zero_point"));
        let group_key = format!("{module}.weight_g_idx");
        let mut others = vec![shape_key];
        let groups = match self.stored(&group_key) {
            Some(groups) => {
                let numbers = groups.floats(self.source, 0, groups.info.n_elements())?;
                others.push(group_key);
                // All −1 means that there are none.
                let is_set = numbers.iter().all(|&group| group >= 0.0);
                is_set.then(|| numbers.iter().map(|&group| group as u32).collect())
            }
            None => None,
        };
        let packed =
            bits.and_then(|bits| Packed::new(codes, scales, zeros, groups, others, bits, shape));
        Ok((name, packed.ok_or(misfit)?.into_weight()))
    }

    /// 4-bit floats in rows.
    fn fours(
        &self,
        codes: Stored,
        scale_key: &str,
        global: Option<Global>,
        name: String,
    ) -> Result<(String, Weight)> {
        let scales = match global {
            Some(_) => self.stored(scale_key),
            None => Stored::scales(self.source, scale_key),
        };
        let Some(scales) = scales else {
            return Err(self.missing(&codes.key, scale_key.to_owned()));
        };
        let misfit = self.misfit(&codes, &scales);
        let scheme = if global.is_some() { "NVFP4" } else { "MXFP4" };
        if global.is_none() && !scales.is_exponent {
            return Err(misfit);
        }
        let fours = Fours::new(codes, scales, global).ok_or(misfit)?;
        Ok((name, fours.into_weight(scheme)))
    }

    /// bitsandbytes' four bits.
    fn lookup(&self, state_key: &str, name: &str) -> Result<(String, Weight)> {
        let codes = self.needed(state_key, name)?;
        let state = self.source.read_all(state_key)?;
        let state: State = serde_json::from_slice(&state).map_err(|error| {
            let reason = format!("its state is no JSON: {error}");
            self.unreadable("bitsandbytes", state_key, reason)
        })?;
        let part = |end: &str| self.needed(name, &format!("{name}.{end}"));
        let (largest, table) = (part("absmax")?, part("quant_map")?);
        let nested = match self.stored(&format!("{name}.nested_absmax")) {
            Some(outer) => Some(Nested {
                largest: outer,
                table: part("nested_quant_map")?,
            }),
            None => None,
        };
        let misfit = self.misfit(&codes, &largest);
        let lookup = Lookup::new(codes, largest, table, nested, state, state_key.to_owned());
        Ok((name.to_owned(), lookup.ok_or(misfit)?.into_weight()))
    }

    /// compressed-tensors' sparse weights, of numbers or of codes.
    fn sparse(&self, key: &str, prefix: &str) -> Result<(String, Weight)> {
        let mask = self.needed(key, key)?;
        // Early releases put the parts below the name of the weight, later ones below that of its layer.
        let name = match prefix.ends_with(".weight") {
            true => prefix.to_owned(),
            false => format!("{prefix}.weight"),
        };
        let values = self.needed(key, &format!("{prefix}.compressed"))?;
        let shape = self.needed(key, &format!("{prefix}.shape"))?;
        let offsets_key = format!("{prefix}.row_offsets");
        let offsets = match values.shape().len() {
            1 => Some(self.needed(key, &offsets_key)?),
            _ => self.stored(&offsets_key),
        };
        let misfit = self.misfit(&mask, &values);
        let n_axes = shape.info.n_elements();
        if shape.info.dtype != DType::I64 || !(1..=MAX_AXES).contains(&n_axes) {
            return Err(self.misfit(&mask, &shape));
        }
        let sizes = shape.integers(self.source, 0, n_axes)?;
        let sizes: Option<Vec<usize>> =
            (sizes.into_iter().map(|size| usize::try_from(size).ok())).collect();
        let sparse =
            sizes.and_then(|sizes| Sparse::new(mask, values, offsets, sizes, shape.key.clone()));
        let sparse = sparse.ok_or(misfit)?;
        match sparse.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => Ok((name, sparse.into_weight())),
            dtype if is_eight_bit_float(dtype) || dtype == DType::I8 => {
                let scales_key = format!("{name}_scale");
                let Some(scales) = Stored::scales(self.source, &scales_key) else {
                    return Err(self.missing(key, scales_key));
                };
                if let Some(obstacle) = &self.config.obstacle {
                    return Err(self.unreadable(sparse.kind(), key, obstacle.clone()));
                }
                let misfit = self.misfit(sparse.mask(), &scales);
                let kind = sparse.kind();
                let zeros = self.stored(&format!("{name}_zero_point"));
                let scaled = Scaled::new(Codes::Sparse(sparse), scales, &self.config.blocks)
                    .and_then(|scaled| scaled.with_zeros(zeros))
                    .ok_or(misfit)?;
                let codes = if dtype == DType::I8 {
                    "8-bit integers"
                } else {
                    "FP8"
                };
                let scheme = format!("{kind} {codes} {}", scaled.grain());
                Ok((name, scaled.into_weight(scheme)))
            }
            dtype => {
                let reason = format!("its kept elements are {dtype}");
                Err(self.unreadable(sparse.kind(), key, reason))
            }
        }
    }

    /// Elements of eight bits, and four-bit floats under the name of the weight itself.
    fn scaled(&self, key: &str) -> Result<Option<(String, Weight)>> {
        let Some(codes) = self.stored(key) else {
            return Ok(None);
        };
        let is_eight = is_eight_bit_float(codes.info.dtype);
        let is_code = is_eight || matches!(codes.info.dtype, DType::I8 | DType::U8 | DType::F4);
        if !is_code || is_scale(key) || codes.shape().is_empty() {
            return Ok(None);
        }
        let name = key.to_owned();
        let module = key.strip_suffix(".weight");
        if let (Some(module), DType::I8) = (module, codes.info.dtype)
            && let Some(scales) = self.stored(&format!("{module}.SCB"))
        {
            return self
                .by_rows(codes, scales, module)
                .map(|weight| Some((name, weight)));
        }
        let of_module = |end: &str| module.map(|module| format!("{module}.{end}"));
        let candidates = [
            Some(format!("{key}_scale_inv")),
            Some(format!("{key}_scale")),
            of_module("scale_weight"),
            of_module("qscale_weight"),
            of_module("scale"),
        ];
        let mut candidates = candidates.into_iter().flatten();
        let Some(scales) = candidates.find_map(|key| Stored::scales(self.source, &key)) else {
            return match is_eight && self.needs_scales() && codes.shape().len() > 1 {
                true => Err(self.missing(key, format!("{key}_scale_inv"))),
                false => Ok(None),
            };
        };
        if let Some(obstacle) = &self.config.obstacle {
            return Err(self.unreadable("scaled codes", key, obstacle.clone()));
        }
        if let Some(module) = module
            && self.stored(&format!("{module}.pre_quant_scale")).is_some()
        {
            let reason = "inputs are multiplied by `pre_quant_scale`".into();
            return Err(self.unreadable("ModelOpt AWQ", key, reason));
        }
        if !is_eight && codes.info.dtype != DType::I8 || is_fours(&codes, &scales) {
            let global = self.stored(&format!("{key}_scale_2"));
            let scale_key = scales.key.clone();
            return self
                .fours(codes, &scale_key, global.map(Global::Factor), name)
                .map(Some);
        }
        let misfit = self.misfit(&codes, &scales);
        let zeros = self.stored(&format!("{key}_zero_point"));
        let bits = codes.info.dtype;
        let scaled = Scaled::new(Codes::All(codes), scales, &self.config.blocks);
        let scaled = scaled
            .and_then(|scaled| scaled.with_zeros(zeros))
            .ok_or(misfit)?;
        let scheme = match (bits, scaled.is_microscaled()) {
            (DType::I8, _) => format!("8-bit integers {}", scaled.grain()),
            (_, true) => "MXFP8".to_owned(),
            (_, false) => format!("FP8 {}", scaled.grain()),
        };
        Ok(Some((name, scaled.into_weight(scheme))))
    }

    /// bitsandbytes' eight bits.
    fn by_rows(&self, codes: Stored, scales: Stored, module: &str) -> Result<Weight> {
        let format_key = format!("{module}.weight_format");
        let format = self.stored(&format_key);
        if let Some(format) = &format
            && format.number(self.source)? != 0.0
        {
            let reason = "its elements are not in rows".into();
            return Err(self.unreadable("bitsandbytes int8", &codes.key, reason));
        }
        let misfit = self.misfit(&codes, &scales);
        let is_row = codes.shape().len() == 2 && scales.shape() == [codes.shape()[0]];
        let scaled = is_row
            .then(|| Scaled::new(Codes::All(codes), scales, &[]))
            .flatten();
        let others = format.map(|format| format.key).into_iter().collect();
        let scaled = scaled.ok_or(misfit)?.by_largest(others);
        Ok(scaled.into_weight("bitsandbytes 8-bit integers".into()))
    }

    /// Whether 8-bit floats are codes for certain: plain ones are weights of some image models.
    fn needs_scales(&self) -> bool {
        self.config.method.is_some()
            || (self.source.tensors()).any(|(key, _)| {
                key.ends_with(".weight_scale_inv") || key.ends_with(".weight_scale")
            })
    }

    /// Looks at what no weight was made of.
    fn finish(mut self, keys: &[&str]) -> Result<Option<Quantization>> {
        let used: BTreeSet<String> = (self.weights.values())
            .flat_map(|weight| weight.codes.keys())
            .map(str::to_owned)
            .collect();
        let method = self.config.method.clone();
        let unknown = method.as_deref().filter(|method| {
            !KNOWN.contains(method) && (self.weights.is_empty() || !method.contains("auto-round"))
        });
        let mut beside = BTreeSet::new();
        if self.faults.is_empty() {
            for &key in keys.iter().filter(|key| !used.contains(**key)) {
                let is_beside = BESIDE.iter().any(|end| key.ends_with(end));
                if is_beside && !self.weights.is_empty() {
                    beside.insert(key.to_owned());
                } else if let Some(fault) = self.orphan(key) {
                    self.faults.push(fault);
                }
            }
        }
        if let (Some(method), true) = (unknown, self.faults.is_empty()) {
            let key = keys.first().copied().unwrap_or_default();
            let reason = "only its own library reads it".into();
            self.faults.push(self.unreadable(method, key, reason));
        }
        match self.faults.len() {
            0 if self.weights.is_empty() => Ok(None),
            0 => Ok(Some(Quantization {
                weights: self.weights,
                beside,
            })),
            1 => Err(self.faults.remove(0)),
            _ => Err(Error::Several(self.faults)),
        }
    }

    /// The fault of a tensor that looks quantized, and belongs to no weight.
    fn orphan(&self, key: &str) -> Option<Error> {
        let info = self.source.get(key)?;
        let weight = ["_scale_inv", "_scale"].iter().find_map(|end| {
            let weight = key.strip_suffix(end)?;
            let other = self.source.get(weight)?;
            (weight.ends_with(".weight") && other.dtype.is_float()).then_some((weight, other))
        });
        if let Some((weight, other)) = weight {
            return Some(
                QuantizationFault::Orphan {
                    path: self.source.path().into(),
                    scales: key.to_owned(),
                    key: weight.to_owned(),
                    dtype: other.dtype,
                }
                .into(),
            );
        }
        let is_sign = SIGNS.iter().any(|end| key.ends_with(end));
        let is_code = !info.dtype.is_float() && info.shape.len() > 1 && key.ends_with(".weight");
        let is_code = is_code && self.config.method.is_some();
        if !is_sign && !is_code {
            return None;
        }
        let method = self.config.method.clone();
        let scheme = method.unwrap_or_else(|| "in a way that config.json does not name".into());
        let reason = format!("{} {:?} is none of the known forms", info.dtype, info.shape);
        Some(self.unreadable(&scheme, key, reason))
    }
}

fn is_eight_bit_float(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::F8E4M3 | DType::F8E5M2 | DType::F8E4M3Fnuz | DType::F8E5M2Fnuz
    )
}

/// Whether a tensor is scales by its name.
fn is_scale(key: &str) -> bool {
    let ends = [
        "_scale",
        "_scale_inv",
        "_scales",
        ".scale",
        ".scales",
        ".absmax",
        "_zero_point",
    ];
    ends.iter().any(|end| key.ends_with(end))
}

/// Whether integers of eight bits are pairs of 4-bit floats: an exponent belongs to half as many bytes.
fn is_fours(codes: &Stored, scales: &Stored) -> bool {
    let (Some(width), Some(n)) = (codes.shape().last(), scales.shape().last()) else {
        return false;
    };
    codes.info.dtype == DType::I8 && scales.is_exponent && n * 16 == *width
}
