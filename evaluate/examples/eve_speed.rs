//! Times EVE and prints a JSON line, for `benches/eve_model.py`: the same weights, inputs, batch and threads as PyTorch
//! there.
//!
//! `RAYON_NUM_THREADS=2 eve_speed CHECKPOINT moe|forward|step|checkpointed|pairs|products BATCH ROUNDS TEXTS`
//!
//! `moe` is the mixture of experts of the last block alone. `forward` reads a batch of images with texts of 40 tokens.
//! `step` is the gradient of every variable from pairs that match, balance of the routers included, without the update;
//! `checkpointed` is the same with the inside of blocks computed again. `pairs` judges TEXTS texts with one image by the
//! matching head, each pair a pass. `products` is twenty products of 512 rows with a weight of the published FFN each, the
//! speed that the processor allows.

#[path = "speed/products.rs"]
mod products;
mod speed;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::batch::{Images, Pair, Texts};
use evaluate::models::eve::{Ask, Mixture, Modality};
use evaluate::models::{FusionEncoder, Head, ModelInput, Overrides, RouterWay, blueprint};
use evaluate::nn::{Buffers, Capacity, Gradients, Pass, Routing, SideLosses, Tape, cross_entropy};
use evaluate::{Result, Weights};
use merge::io::OpenOptions;

/// Texts of a batch of pairs.
const TEXTS_PER_BATCH: usize = 16;

/// The factor of the routers' balance.
const BALANCE: f64 = 0.001;

/// Numbers between -2 and 2 that depend on their place only, as the reference makes them.
fn scattered(n: usize) -> Vec<f32> {
    let at = |n: i64| (n * n * 7919 + n * 104_729) % 1_000_003;
    (0..n as i64)
        .map(|n| (at(n) as f64 / 1_000_003.0 * 4.0 - 2.0) as f32)
        .collect()
}

fn images(input: &ModelInput, batch: usize) -> Result<Images> {
    let side = input.image.side;
    let pixels = scattered(batch * 3 * side * side);
    Images::of_values(pixels, batch, side, &Device::Cpu, DType::F32)
}

fn texts(input: &ModelInput, batch: usize) -> Result<Texts> {
    let (t, vocabulary) = (input.text.len, input.text.vocabulary);
    let n_tokens: Vec<usize> = (0..batch).map(|text| 8 + text * 5 % (t - 7)).collect();
    let id = |at: usize| match at % t < n_tokens[at / t] {
        true => (at * 7919 % vocabulary) as u32,
        false => 0,
    };
    Texts::new((0..batch * t).map(id).collect(), &n_tokens, &Device::Cpu)
}

/// The published room for tokens, without noise.
fn routing() -> Routing {
    Routing {
        capacity: Capacity::PUBLISHED,
        ..Routing::default()
    }
}

/// The mixture of the last block, and what it is given: `(b, n, d)`.
fn mixture(
    weights: &Weights,
    input: &ModelInput,
    batch: usize,
) -> Result<(Mixture, Tensor, usize)> {
    let names = weights.checkpoint().tensors().map(|(name, _)| name);
    let block = names.filter_map(|name| {
        let (block, part) = name
            .strip_prefix("backbone.encoder.layers.")?
            .split_once('.')?;
        part.starts_with("norm2_vl.").then(|| block.parse().ok())?
    });
    let block: usize = block.max().unwrap_or_default();
    let name = format!("backbone.encoder.layers.{block}.mlp_moe.moe");
    let shape = |part: &str| weights.shape(&format!("{name}.{part}")).unwrap_or(&[0, 0]);
    let (router, inner) = (
        shape("gate.wg.weight"),
        shape("experts.experts.0.fc1.weight"),
    );
    let mixture = Mixture::load(weights, &name, [router[1], inner[0], router[0]])?;
    let n_image = weights
        .shape("backbone.pos_embed_vision")
        .map_or(1, |shape| shape[0]);
    let n = n_image + input.text.len;
    let x = Tensor::from_vec(
        scattered(batch * n * router[1]),
        (batch, n, router[1]),
        &Device::Cpu,
    )?;
    Ok((mixture, x, n_image))
}

/// How well texts and images match, `(b, 2)`.
fn matching(model: &dyn FusionEncoder, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
    model.score(Head::Matching, &model.matched(pair, pass)?)
}

fn step(model: &dyn FusionEncoder, pair: &Pair<'_>, tape: &Tape) -> Result<Tensor> {
    let (routing, losses) = (routing(), SideLosses::new());
    let pass = Pass::new().routed(&routing).recorded(tape);
    let logits = matching(model, pair, &pass.collecting(&losses))?;
    let matched = vec![1; logits.dim(0)?];
    let found: Vec<Tensor> = losses.take().into_iter().map(|(_, loss)| loss).collect();
    let balance = Tensor::stack(&found, 0)?.mean_all()?;
    Ok((cross_entropy(&logits, &matched)? + (balance * BALANCE)?)?)
}

/// Logits of texts that match one image.
fn pairs(
    model: &dyn FusionEncoder,
    images: &Images,
    input: &ModelInput,
    n: usize,
) -> Result<Tensor> {
    let (texts, image) = (texts(input, n)?, images.narrow(0, 1)?);
    let mut scores = Vec::new();
    for from in (0..n).step_by(TEXTS_PER_BATCH) {
        let rows: Vec<u32> = (from..n.min(from + TEXTS_PER_BATCH))
            .map(|row| row as u32)
            .collect();
        let some = texts.select(&Tensor::new(rows.as_slice(), &Device::Cpu)?)?;
        let looked = model.look_at(&image)?;
        scores.push(model.rank(&[&some], &looked.images, &[Pass::new()])?);
    }
    Ok(Tensor::cat(&scores, 0)?)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, which, batch, rounds, n_texts] = &arguments[..] else {
        return speed::say(
            "eve_speed CHECKPOINT moe|forward|step|checkpointed|pairs|products BATCH ROUNDS TEXTS",
        );
    };
    let number = |text: &String, otherwise| text.parse().unwrap_or(otherwise);
    let (batch, rounds, n_texts) = (number(batch, 8), number(rounds, 3), number(n_texts, 64));
    let options = OpenOptions::default();
    let file = Arc::new(merge::io::open(checkpoint.as_ref(), &options)?);
    let layout = merge::layouts::detect(&file)?;
    let overrides = Overrides {
        routing: Some(RouterWay::Capacity),
        ..Overrides::default()
    };
    let blueprint = blueprint(&file, layout.as_ref(), &overrides)?;
    let name = |key: &str| blueprint.name_of(key);
    let weights = Weights::new(file, layout.as_ref(), name, &Device::Cpu, DType::F32)?;
    let is_step = which == "step" || which == "checkpointed";
    let weights = if is_step {
        weights.trainable()
    } else {
        weights
    };
    let input = *blueprint.input();
    let images = images(&input, batch)?;
    if which == "moe" {
        let (mixture, x, n_image) = mixture(&weights, &input, batch)?;
        let routing = routing();
        return speed::time(which, batch, rounds, || {
            let ask = Ask {
                routing: &routing,
                modality: Modality::Both(n_image),
                mask: None,
                block: 0,
            };
            Ok(mixture.forward(&x, &ask, &Pass::new())?)
        });
    }
    let model = blueprint.build(&weights)?;
    let (model, texts) = (model.fusion()?, texts(&input, batch)?);
    let pair = Pair::new(&texts, &images);
    let (buffers, variables) = (Buffers::default(), weights.variables());
    let mut gradients = Gradients::of(variables.values());
    speed::time(which, batch, rounds, || {
        Ok(match which.as_str() {
            "forward" => model.fuse(&pair, &Pass::new())?.image,
            "pairs" => pairs(model, &images, &input, n_texts)?,
            "products" => products::products()?,
            _ => {
                gradients.clear();
                let tape = match which.as_str() {
                    "checkpointed" => Tape::checkpointing(),
                    _ => Tape::new(),
                };
                let tape = tape.reusing(&buffers);
                let loss = step(model, &pair, &tape)?;
                tape.backward(&loss, &mut gradients)?;
                loss.detach()
            }
        })
    })
}
