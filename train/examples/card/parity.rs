//! Every family on a device against the processor in f32, and against what published programs printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::forward::{self, Given};
use evaluate::models::{self, Opened, Overrides};
use evaluate::nn::Tape;
use merge::io::OpenOptions;
use serde_json::{Value, json};
use train::losses::{self, LossOptions};

use crate::Result;

/// Bounds of errors in relative L2 norm: of each tensor in f32 and f64, of all tensors as one in 16 bits, where the gradients of a
/// single bias may be all but cancelled.
struct Bounds {
    outputs: f64,
    gradients: f64,
}

/// A gradient whose norm is below this share of the largest is compared with that share instead of itself.
const FLOOR: f64 = 1e-3;

impl Bounds {
    /// Sums in another order in f32 and f64, as the sets of the published programs allow. Numbers of 16 bits round at 2⁻¹¹ (f16) and
    /// 2⁻⁸ (bf16) after each operation: the processor shows up to 0.005 of outputs in f16; the bounds of bf16 are eight times those of f16,
    /// as its step is.
    fn of(dtype: DType) -> Self {
        let (outputs, gradients) = match dtype {
            DType::F16 => (0.02, 0.04),
            DType::BF16 => (0.16, 0.32),
            _ => (1e-4, 1e-3),
        };
        Self { outputs, gradients }
    }
}

/// A checkpoint of a family with tensors to run it on, all of `fixtures`.
struct Row {
    family: &'static str,
    weights: &'static str,
    overrides: Overrides,
    inputs: &'static str,
    /// A file whose tensors with names that begin with the prefix are inputs, too, without it.
    extra: Option<(&'static str, &'static str)>,
    batch: Option<&'static str>,
    passes: &'static [&'static str],
    /// Outputs that a published program printed.
    outputs: Option<&'static str>,
    /// Gradients that it printed, by the name of the loss.
    gradients: &'static [(&'static str, &'static str)],
}

fn rows() -> Vec<Row> {
    let plain = Row {
        family: "",
        weights: "",
        overrides: Overrides::default(),
        inputs: "",
        extra: None,
        batch: None,
        passes: &[],
        outputs: None,
        gradients: &[],
    };
    // The sizes of `fixtures/config.json` and of those of the sets, where tensors do not tell.
    let multiway = Overrides {
        n_heads: Some(3),
        fusion_start: Some(10),
        text_table_len: Some(16),
        ..Overrides::default()
    };
    let eve = Overrides {
        n_heads: Some(3),
        pair_len: Some(12),
        ..Overrides::default()
    };
    let flm = Overrides {
        n_heads: Some(2),
        image_heads: Some(2),
        text_heads: Some(2),
        ..Overrides::default()
    };
    vec![
        Row {
            family: "multiway, one of each part",
            weights: "ckpt/ufo.safetensors",
            overrides: multiway,
            inputs: "forward/inputs.safetensors",
            outputs: Some("forward/ufo.safetensors"),
            gradients: &[
                ("vqa", "forward/ufo_grad_vqa.safetensors"),
                ("irtr", "forward/ufo_grad_irtr.safetensors"),
            ],
            ..plain
        },
        Row {
            family: "multiway, parts of each modality",
            weights: "ckpt/all_moe.safetensors",
            overrides: multiway,
            inputs: "forward/inputs.safetensors",
            outputs: Some("forward/all_moe.safetensors"),
            gradients: &[
                ("vqa", "forward/all_moe_grad_vqa.safetensors"),
                ("irtr", "forward/all_moe_grad_irtr.safetensors"),
            ],
            ..plain
        },
        Row {
            family: "two towers",
            weights: "zerovl/ckpt/model.safetensors",
            overrides: Overrides {
                image_heads: Some(4),
                text_heads: Some(3),
                ..Overrides::default()
            },
            inputs: "zerovl/forward/inputs.safetensors",
            outputs: Some("zerovl/forward/eval.safetensors"),
            gradients: &[("nce", "zerovl/grad/nce_learned.safetensors")],
            ..plain
        },
        Row {
            family: "flm",
            weights: "flm/ckpt/flm_pretrain.safetensors",
            overrides: flm,
            inputs: "flm/forward/inputs.safetensors",
            batch: Some("cap"),
            gradients: &[("flm", "flm/losses/flm_grads.safetensors")],
            ..plain
        },
        Row {
            family: "flm, questions",
            weights: "flm/ckpt/vqa.safetensors",
            overrides: flm,
            inputs: "flm/forward/inputs.safetensors",
            batch: Some("vqa"),
            ..plain
        },
        Row {
            family: "eve, retrieval",
            weights: "eve/ckpt/retrieval.safetensors",
            overrides: eve,
            inputs: "eve/forward/inputs.safetensors",
            extra: Some(("eve/grad/extra.safetensors", "neg.")),
            gradients: &[("retrieval", "eve/grad/plain_retrieval.safetensors")],
            ..plain
        },
        Row {
            family: "eve, questions",
            weights: "eve/ckpt/vqa.safetensors",
            overrides: eve,
            inputs: "eve/forward/inputs.safetensors",
            gradients: &[("vqa", "eve/grad/plain_vqa.safetensors")],
            ..plain
        },
        Row {
            family: "clip",
            weights: "clip/hf_clip",
            inputs: "clip/forward/clip_inputs.safetensors",
            passes: &["pad0"],
            outputs: Some("clip/forward/hf_clip_pad0.safetensors"),
            gradients: &[("clip", "clip/grad/hf_clip.safetensors")],
            ..plain
        },
        Row {
            family: "siglip",
            weights: "clip/hf_siglip",
            inputs: "clip/forward/siglip_inputs.safetensors",
            passes: &["unmasked"],
            outputs: Some("clip/forward/hf_siglip_unmasked.safetensors"),
            gradients: &[("sigmoid", "clip/grad/hf_siglip.safetensors")],
            ..plain
        },
        Row {
            family: "vit",
            weights: "vit/token",
            inputs: "vit/inputs/inputs.safetensors",
            ..plain
        },
        Row {
            family: "resnet",
            weights: "resnet/bottleneck.safetensors",
            inputs: "resnet/inputs.safetensors",
            outputs: Some("resnet/forward/bottleneck.safetensors"),
            ..plain
        },
    ]
}

type Named = BTreeMap<String, Vec<f64>>;

/// The results of a row on a device.
struct Found {
    outputs: Named,
    /// By the name of the loss: the loss, and gradients.
    losses: BTreeMap<&'static str, (f64, Named)>,
}

fn open(path: &Path) -> Result<merge::Checkpoint> {
    Ok(merge::io::open(path, &OpenOptions::default())?)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Every tensor of a file in f64.
fn read(path: &Path) -> Result<Named> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), values(tensor)?)));
    tensors.collect()
}

/// The inputs of a row as one file.
fn inputs(row: &Row, fixtures: &Path, folder: &Path) -> Result<PathBuf> {
    let own = fixtures.join(row.inputs);
    let Some((file, prefix)) = row.extra else {
        return Ok(own);
    };
    let mut tensors = candle_core::safetensors::load(own, &Device::Cpu)?;
    for (name, tensor) in candle_core::safetensors::load(fixtures.join(file), &Device::Cpu)? {
        if let Some(name) = name.strip_prefix(prefix) {
            tensors.insert(name.to_owned(), tensor);
        }
    }
    let path = folder.join("inputs.safetensors");
    candle_core::safetensors::save(&tensors, &path)?;
    Ok(path)
}

fn compute(
    row: &Row,
    (fixtures, inputs): (&Path, &Path),
    (device, dtype): (&Device, DType),
    tape: &dyn Fn() -> Option<Tape>,
) -> Result<Found> {
    let weights = Arc::new(open(&fixtures.join(row.weights))?);
    let (blueprint, weights) = models::prepare(weights, &row.overrides, device, dtype)?;
    let learns = losses::of_family(blueprint.family()).next().is_some();
    let weights = match learns {
        true => weights.trainable(),
        false => weights,
    };
    let Opened {
        model,
        weights,
        blueprint,
    } = Opened::build(blueprint, weights)?;
    let names = model.named_passes()?.inputs();
    let given = Given::open_batch(&open(inputs)?, row.batch, names, device, dtype)?;
    let passes: Vec<String> = row.passes.iter().map(|&pass| pass.to_owned()).collect();
    let outcome = forward::run(model.as_ref(), &given, &passes, false)?;
    let outputs = outcome.tensors.iter();
    let outputs = outputs.map(|(name, tensor)| Ok((name.clone(), values(tensor)?)));
    let mut found = Found {
        outputs: outputs.collect::<Result<_>>()?,
        losses: BTreeMap::new(),
    };
    for loss in losses::of_family(blueprint.family()) {
        // The balance alone is a thousandth of a loss, and its gradients fall out of the range of f16.
        if dtype == DType::F16 && loss.name.ends_with(".aux") {
            continue;
        }
        if given.check(loss.name, loss.inputs).is_err() {
            continue;
        }
        let options = LossOptions::default();
        let computed = loss.compute_by(model.as_ref(), &weights, &given, &options, tape);
        // A head that the checkpoint lacks, or a setting that a loss needs.
        let Ok(computed) = computed else { continue };
        let gradients = computed.gradients.iter().map(|(name, gradient)| {
            let key = weights.key_of(name).unwrap_or(name);
            Ok((key.to_owned(), values(gradient)?))
        });
        let gradients = gradients.collect::<Result<_>>()?;
        found.losses.insert(loss.name, (computed.loss, gradients));
    }
    Ok(found)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    // A sum of nothing is −0.
    (values.map(|value| value * value).sum::<f64>() + 0.0).sqrt()
}

/// Errors of tensors in relative L2 norm.
struct Apart {
    n: usize,
    /// The tensor that is farthest off, and how far.
    tensor: String,
    error: f64,
    /// The error of all tensors as one.
    of_all: f64,
}

impl Apart {
    fn told(&self) -> Value {
        json!({ "tensors": self.n, "worst": self.tensor, "relative_l2": self.error, "of_all": self.of_all })
    }
}

/// How far tensors are from the expected ones, by name.
fn apart(found: &Named, expected: &Named, floor: f64) -> Result<Apart> {
    let of = |values: &Vec<f64>| norm(values.iter().copied().filter(|value| value.is_finite()));
    let largest = expected.values().map(of).fold(0.0, f64::max);
    let mut worst = Apart {
        n: 0,
        tensor: String::new(),
        error: 0.0,
        of_all: 0.0,
    };
    let (mut off_of_all, mut norm_of_all) = (0.0, 0.0);
    for (name, expected) in expected {
        let missing = || format!("there is no `{name}`");
        let found = found.get(name).ok_or_else(missing)?;
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(format!("`{name}` has {found} values, not {expected}").into());
        }
        let pairs = found.iter().zip(expected);
        // Hidden numbers are −∞ in both.
        let off = norm(pairs.filter(|(a, b)| a != b).map(|(a, b)| a - b));
        off_of_all += off * off;
        norm_of_all += of(expected).powi(2);
        let error = off / of(expected).max(floor * largest).max(f64::MIN_POSITIVE);
        worst.n += 1;
        if worst.tensor.is_empty() || error > worst.error || error.is_nan() {
            (worst.tensor, worst.error) = (name.clone(), error);
        }
    }
    worst.of_all = (off_of_all / norm_of_all.max(f64::MIN_POSITIVE)).sqrt();
    Ok(worst)
}

/// Compares a device with the processor in f32 and with published programs, row by row.
pub fn parity(device: &Device, dtype: DType, fixtures: &Path) -> Result<Value> {
    let bounds = Bounds::of(dtype);
    let is_wide = matches!(dtype, DType::F32 | DType::F64);
    let folder = tempfile::tempdir()?;
    let mut said = Vec::new();
    let mut all_well = true;
    for row in rows() {
        let mut note = |what: String, against: &str, bound: f64, apart: Result<Apart>| {
            let (is_well, told) = match apart {
                Ok(apart) => {
                    let judged = if is_wide { apart.error } else { apart.of_all };
                    (judged <= bound, apart.told())
                }
                Err(error) => (false, json!({ "failed": error.to_string() })),
            };
            all_well &= is_well;
            let family = row.family;
            let mut line = json!({ "family": family, "what": what, "against": against, "bound": bound, "ok": is_well });
            if let (Some(line), Value::Object(told)) = (line.as_object_mut(), told) {
                line.extend(told);
            }
            said.push(line);
        };
        let places = inputs(&row, fixtures, folder.path());
        let at = |place: &str| fixtures.join(place);
        let run = |(device, dtype): (&Device, DType), tape: &dyn Fn() -> Option<Tape>| match &places
        {
            Ok(inputs) => compute(&row, (fixtures, inputs), (device, dtype), tape),
            Err(error) => Err(error.to_string().into()),
        };
        let exact = run((&Device::Cpu, DType::F32), &|| Some(Tape::new()));
        for (way, tape) in [
            ("", Tape::new as fn() -> Tape),
            (", checkpointed", Tape::checkpointing),
        ] {
            let (found, exact) = match (run((device, dtype), &|| Some(tape())), &exact) {
                (Ok(found), Ok(exact)) => (found, exact),
                (Ok(_), Err(error)) => {
                    let error = error.to_string().into();
                    note(format!("the processor{way}"), "", 0.0, Err(error));
                    continue;
                }
                (Err(error), _) => {
                    note(format!("the device{way}"), "", 0.0, Err(error));
                    continue;
                }
            };
            if way.is_empty() {
                let outputs = apart(&found.outputs, &exact.outputs, FLOOR);
                note(
                    "outputs".into(),
                    "the processor in f32",
                    bounds.outputs,
                    outputs,
                );
                if let (Some(file), true) = (row.outputs, is_wide) {
                    let outputs = read(&at(file)).and_then(|file| {
                        // Hidden states are in the files, too.
                        let file = file.into_iter();
                        let file = file.filter(|(name, _)| found.outputs.contains_key(name));
                        apart(&found.outputs, &file.collect(), FLOOR)
                    });
                    note(
                        "outputs".into(),
                        "the published program",
                        bounds.outputs,
                        outputs,
                    );
                }
            }
            for (name, (loss, gradients)) in &exact.losses {
                let what = format!("gradients of {name}{way}");
                if dtype == DType::F16 && name.ends_with(".aux") {
                    continue;
                }
                let Some((found_loss, found)) = found.losses.get(name) else {
                    note(
                        what,
                        "the processor in f32",
                        0.0,
                        Err("no such loss".into()),
                    );
                    continue;
                };
                let (a, b) = (vec![*found_loss], vec![*loss]);
                let of = |values| Named::from([("the loss".to_owned(), values)]);
                note(
                    format!("loss {name}{way}"),
                    "the processor in f32",
                    bounds.outputs,
                    apart(&of(a), &of(b), 0.0),
                );
                note(
                    what,
                    "the processor in f32",
                    bounds.gradients,
                    apart(found, gradients, FLOOR),
                );
            }
            for (name, file) in row.gradients.iter().filter(|_| is_wide) {
                let compared = || -> Result<Apart> {
                    let (_, found) = found.losses.get(name).ok_or("no such loss")?;
                    apart(found, &read(&at(file))?, FLOOR)
                };
                let what = format!("gradients of {name}{way}");
                note(what, "the published program", bounds.gradients, compared());
            }
        }
    }
    Ok(json!({ "ok": all_well, "floor": FLOOR, "rows": said }))
}

/// How far two files of tensors are apart, in relative L2 norm.
pub fn compare_files(one: &Path, other: &Path) -> Result<Value> {
    let mut said = apart(&read(one)?, &read(other)?, 1e-6)?.told();
    said["same_bytes"] = json!(std::fs::read(one)? == std::fs::read(other)?);
    Ok(said)
}
