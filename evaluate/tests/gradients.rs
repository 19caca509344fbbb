//! Losses and gradients against the published program, as recorded in the fixture.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use evaluate::models::Multiway;
use evaluate::nn::Pass;

use crate::fixture::{json, number, path};
use crate::forward::{ARCHITECTURES, Inputs, itm_logits, tensors, trainable, values};

/// Of losses, relative.
const LOSS_TOLERANCE: f64 = 1e-5;

/// Of gradients, relative L2 per tensor.
const GRADIENT_TOLERANCE: f64 = 1e-3;

/// Gradients below this share of the largest are compared absolutely.
const GRADIENT_FLOOR: f64 = 1e-6;

/// Mean cross entropy of `logits: (n, classes)`.
fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = Tensor::new(targets, &Device::Cpu)?.unsqueeze(1)?;
    (log_sum - shifted.gather(&targets, D::Minus1)?)?.mean_all()
}

fn contrastive(text: &Tensor, image: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let logits = image.matmul(&text.t()?)?.broadcast_mul(scale)?;
    let targets: Vec<u32> = (0..logits.dim(0)? as u32).collect();
    let (rows, columns) = (
        cross_entropy(&logits, &targets)?,
        cross_entropy(&logits.t()?, &targets)?,
    );
    (rows + columns)? * 0.5
}

/// One of the fixture's losses.
fn loss(name: &str, model: &Multiway, inputs: &Inputs) -> evaluate::Result<Tensor> {
    let (pass, heads) = (Pass::new(), model.heads());
    let (ids, mask, image) = (
        inputs.ids("text_ids"),
        inputs.mask("text_masks"),
        inputs.get("image"),
    );
    let labels = |name: &str| -> Vec<u32> {
        values(inputs.get(name))
            .into_iter()
            .map(|label| label as u32)
            .collect()
    };
    let masked_words = |logits: Tensor| {
        let labels = values(inputs.get("text_labels_mlm"));
        let kept = labels
            .iter()
            .enumerate()
            .filter(|(_, label)| **label >= 0.0);
        let (rows, labels): (Vec<u32>, Vec<u32>) = kept.map(|(i, l)| (i as u32, *l as u32)).unzip();
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let logits = logits.flatten_to(1)?.index_select(&rows, 0)?;
        cross_entropy(&logits, &labels)
    };
    let irtr = (
        inputs.ids("irtr_text_ids"),
        inputs.mask("irtr_text_masks"),
        inputs.get("irtr_image"),
    );
    Ok(match name {
        "vqa" => {
            let logits = model.answer(&ids, &mask, image, &pass)?;
            let targets = inputs.get("vqa_targets");
            // max(x, 0) − x t + ln(1 + e^−|x|)
            let soft = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
            let terms = ((logits.relu()? - (&logits * targets)?)? + soft)?;
            (terms.mean_all()? * targets.dim(1)? as f64)?
        }
        "nlvr2" => {
            let images = [image, inputs.get("image_1")];
            cross_entropy(
                &model.judge(&ids, &mask, images, &pass)?,
                &labels("nlvr2_labels"),
            )?
        }
        "irtr" => {
            let text = model.text_features(&irtr.0, &irtr.1, &pass)?;
            let image = model.image_features(irtr.2, &pass)?;
            contrastive(&text, &image, &heads.contrastive()?.scale()?)?
        }
        "ifm" => {
            let text = model.text_features(&irtr.0, &irtr.1, &pass)?;
            let image = model.image_features(irtr.2, &pass)?;
            let alone = contrastive(&text, &image, &heads.contrastive()?.scale()?)?;
            let text = model.fused_text_features(&irtr.0, &irtr.1, &pass)?;
            let image = model.fused_image_features(irtr.2, &pass)?;
            let fused = contrastive(&text, &image, &heads.fused_contrastive()?.scale()?)?;
            ((alone + fused)? * 0.5)?
        }
        "mlm" => {
            let joint = model.joint(&inputs.ids("text_ids_mlm"), &mask, image, None, 0, &pass)?;
            masked_words(heads.masked_language()?.forward(&joint.text)?)?
        }
        "text_only_mlm" => {
            let text = model.text(&inputs.ids("text_ids_mlm"), &mask, &pass)?;
            masked_words(heads.masked_language()?.forward(&model.normed(&text)?)?)?
        }
        "img_cls" => {
            let features = model.normed(&model.image(image, None, &pass)?)?.mean(1)?;
            cross_entropy(
                &heads.image_classes()?.forward(&features)?,
                &labels("cls_labels"),
            )?
        }
        "itm" => cross_entropy(&itm_logits(model, inputs)?, &[1, 1, 0, 0, 0, 0])?,
        other => panic!("no loss {other}"),
    })
}

#[test]
fn losses_and_the_gradient_of_every_variable_are_those_of_the_published_program() {
    let inputs = Inputs::read();
    let losses = json("forward/losses.json");
    for name in ARCHITECTURES {
        let (model, weights) = trainable(name);
        let norms = json(&format!("forward/{name}_grad_norms.json"));
        for (loss_name, norms) in norms.as_object().expect("norms by loss") {
            let value = loss(loss_name, &model, &inputs).expect("the loss is computed");
            let expected = number(&losses["losses"][name][loss_name]);
            let found = values(&value)[0];
            let error = (found - expected).abs() / expected.abs();
            assert!(
                error <= LOSS_TOLERANCE,
                "{name} {loss_name}: {found}, expected {expected}"
            );
            let gradients = value.backward().expect("a gradient");
            let gradient = |variable: &Var| gradients.get(variable.as_tensor()).map(values);
            let norms = norms.as_object().expect("norms by parameter");
            let largest = norms
                .values()
                .filter_map(|v| v.as_f64())
                .fold(0.0, f64::max);
            let floor = GRADIENT_FLOOR * largest;
            let variables = weights.variables();
            for (key, norm) in norms {
                let found = variables.get(key).and_then(gradient);
                let found_norm = found.as_ref().map_or(0.0, |g| l2(g.iter().copied()));
                let expected = norm.as_f64().unwrap_or(0.0);
                let tolerance = (GRADIENT_TOLERANCE * expected).max(floor);
                assert!(
                    (found_norm - expected).abs() <= tolerance,
                    "{name} {loss_name} {key}: norm {found_norm}, expected {expected}"
                );
            }
            let file = format!("forward/{name}_grad_{loss_name}.safetensors");
            if !path(&file).exists() {
                continue;
            }
            for (key, expected) in tensors(&file) {
                let found = variables.get(&key).and_then(gradient).expect("a gradient");
                let expected = values(&expected);
                let norm = l2(expected.iter().copied());
                let error = l2(found.iter().zip(&expected).map(|(a, b)| a - b));
                let tolerance = (GRADIENT_TOLERANCE * norm).max(floor);
                assert!(
                    error <= tolerance,
                    "{name} {loss_name} {key}: {error} of {norm}"
                );
            }
        }
    }
}

fn l2(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn every_variable_gets_a_gradient_from_some_loss() {
    let inputs = Inputs::read();
    for name in ["ufo", "all_moe"] {
        let (model, weights) = trainable(name);
        let mut reached: BTreeMap<String, bool> = BTreeMap::new();
        for loss_name in ["vqa", "nlvr2", "ifm", "mlm", "img_cls", "itm"] {
            let value = loss(loss_name, &model, &inputs).expect("the loss is computed");
            let gradients = value.backward().expect("a gradient");
            for (key, variable) in weights.variables() {
                let is_reached = gradients.get(variable.as_tensor()).is_some();
                *reached.entry(key).or_default() |= is_reached;
            }
        }
        let missed: Vec<_> = reached.iter().filter(|(_, reached)| !**reached).collect();
        // The mask token and the visual token head belong to masked image modeling alone.
        let known = [
            "transformer.mask_token",
            "mim_score.weight",
            "mim_score.bias",
        ];
        let unknown: Vec<_> = missed
            .iter()
            .filter(|(key, _)| !known.contains(&key.as_str()))
            .collect();
        assert!(
            unknown.is_empty(),
            "{name}: no gradient reaches {unknown:?}"
        );
    }
}
