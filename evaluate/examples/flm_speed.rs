//! Times FLM and prints a JSON line, for `benches/flm_model.py`: the same weights, inputs, batch and
//! threads as PyTorch there.
//!
//! `RAYON_NUM_THREADS=2 flm_speed CHECKPOINT forward|step|checkpointed|caption|pairs|products BATCH ROUNDS TOKENS`
//!
//! `forward` reads a batch of texts with their images in three streams. `step` is a step of free language
//! modeling without the update: the loss of three parts and the gradient of every variable. `checkpointed` is
//! the same with the inside of layers computed again in the backward pass. `caption` writes
//! TOKENS tokens for each image, the likeliest each time. `pairs` ranks TOKENS texts of 9 to 19 tokens, as
//! captions are, for each of BATCH images, by a head that starts fresh if the checkpoint has none. `products` is twenty
//! products of 512 rows with a weight of the published FFN each, the speed that the processor allows.

#[path = "speed/products.rs"]
mod products;
mod speed;

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use evaluate::batch::{Images, Pair, Texts};
use evaluate::models::{
    Completed, Head, Model, ModelInput, Overrides, Queries, ReadText, Stream, blueprint,
};
use evaluate::nn::{Buffers, Gradients, Pass, Tape};
use evaluate::streams::query_ids;
use evaluate::{Result, Weights};
use merge::io::OpenOptions;

// Tokens of RoBERTa.
const FIRST: u32 = 0;
const PADDING: u32 = 1;
const LAST: u32 = 2;

/// Inputs that depend on their place only, as the reference makes them.
struct Inputs {
    images: Images,
    texts: Texts,
    queries: Tensor,
    ids: Vec<u32>,
    n_tokens: Vec<usize>,
    t: usize,
}

impl Inputs {
    fn new(input: &ModelInput, batch: usize) -> Result<Self> {
        let (side, t) = (input.image.side, input.text.len);
        let (turn, vocabulary) = (std::f64::consts::TAU, input.text.vocabulary);
        let pixels = (0..batch * 3 * side * side).map(|n| (n as f64 * 0.05 % turn).sin() as f32);
        let n_tokens: Vec<usize> = (0..batch).map(|text| 8 + text * 5 % (t - 7)).collect();
        let id = |at: usize| match (at % t, n_tokens[at / t]) {
            (0, _) => FIRST,
            (place, n) if place >= n => PADDING,
            (place, n) if place + 1 == n => LAST,
            _ => (2 + at * 7919 % (vocabulary - 2)) as u32,
        };
        let ids: Vec<u32> = (0..batch * t).map(id).collect();
        let mask = vocabulary as u32 - 1;
        let queries = ids.chunks(t).zip(&n_tokens);
        let queries = queries.flat_map(|(ids, &n)| query_ids(ids, n, mask));
        let (device, dtype) = (Device::Cpu, DType::F32);
        Ok(Self {
            images: Images::of_values(pixels.collect(), batch, side, &device, dtype)?,
            texts: Texts::new(ids.clone(), &n_tokens, &device)?,
            queries: Tensor::from_vec(queries.collect(), (batch, t), &device)?,
            ids,
            n_tokens,
            t,
        })
    }

    fn complete(&self, model: &dyn Model, pass: &Pass<'_>) -> Result<Completed> {
        let queries = Queries {
            ids: &self.queries,
            spans: None,
        };
        let pair = Pair::new(&self.texts, &self.images);
        model.free_language()?.complete(&pair, queries, pass)
    }

    /// The mean over the tokens that a stream guesses: at `places`, the token `ahead` of each.
    fn part(&self, model: &dyn Model, of: Part<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (text, &n) in self.n_tokens.iter().enumerate() {
            for place in of.places.clone() {
                let target = place.wrapping_add_signed(of.ahead);
                if target < n {
                    rows.push((text * self.t + place) as u32);
                    targets.push(self.ids[text * self.t + target]);
                }
            }
        }
        let rows = Tensor::from_vec(rows, targets.len(), &Device::Cpu)?;
        let states = of.states.flatten(0, 1)?.index_select(&rows, 0)?;
        let guessed = model.free_language()?;
        Ok(guessed.guess(of.stream, &states, &targets, pass)?.mean)
    }

    fn loss(&self, model: &dyn Model, pass: &Pass<'_>) -> Result<Tensor> {
        let states = self.complete(model, pass)?;
        let part = |stream, states, ahead, places| {
            let of = Part {
                stream,
                states,
                ahead,
                places,
            };
            self.part(model, of, pass)
        };
        let sum = (part(Stream::Queries, &states.queries, 0, 1..self.t)?
            + part(Stream::Forward, &states.forward, 1, 1..self.t - 1)?)?;
        let sum = (sum + part(Stream::Reverse, &states.reverse, -1, 2..self.t)?)?;
        Ok((sum / 3.0)?)
    }
}

/// The guesses of one stream.
struct Part<'a> {
    stream: Stream,
    states: &'a Tensor,
    ahead: isize,
    places: std::ops::Range<usize>,
}

/// Texts of a batch that are ranked together.
const TEXTS_PER_BATCH: usize = 64;

/// The scores of `n_texts` texts with each image.
fn pairs(model: &dyn Model, images: &Images, n_texts: usize) -> Result<Tensor> {
    let (fusion, input) = (model.fusion()?, model.input());
    let mut n_tokens: Vec<usize> = (0..n_texts).map(|text| 9 + text * 5 % 11).collect();
    n_tokens.sort_unstable();
    let mut batches = Vec::new();
    for n_tokens in n_tokens.chunks(TEXTS_PER_BATCH) {
        let t = n_tokens.iter().copied().max().unwrap_or(1);
        let id = |at: usize| match (at % t, n_tokens[at / t]) {
            (0, _) => FIRST,
            (place, n) if place >= n => PADDING,
            (place, n) if place + 1 == n => LAST,
            _ => (3 + at * 7919 % (input.text.vocabulary - 3)) as u32,
        };
        let ids = (0..n_tokens.len() * t).map(id).collect();
        let texts = Texts::new(ids, n_tokens, &Device::Cpu)?;
        let read = fusion.read_text(&texts)?;
        batches.push((texts, read));
    }
    let mut scores = Vec::new();
    for image in 0..images.pixels.dim(0)? {
        let looked = fusion.look_at(&images.narrow(image, 1)?)?;
        for (texts, read) in &batches {
            let read: Vec<&ReadText> = read.iter().collect();
            scores.push(fusion.rank_read(texts, &read, &looked)?);
        }
    }
    Ok(Tensor::cat(&scores, 0)?)
}

/// The last token of each caption.
fn captions(model: &dyn Model, images: &Images, n_tokens: usize) -> Result<Tensor> {
    let captioner = model.captioner()?;
    let mut seen = captioner.see(images, &Pass::new())?;
    let n = images.pixels.dim(0)?;
    let mut ids = Tensor::from_vec(vec![LAST; n], n, &Device::Cpu)?;
    for _ in 0..n_tokens {
        ids = captioner.next(&mut seen, &ids)?.argmax(D::Minus1)?;
    }
    Ok(ids.to_dtype(DType::F32)?)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, which, batch, rounds, n_tokens] = &arguments[..] else {
        return speed::say(
            "flm_speed CHECKPOINT forward|step|checkpointed|caption|pairs|products BATCH ROUNDS TOKENS",
        );
    };
    let number = |text: &String, otherwise| text.parse().unwrap_or(otherwise);
    let (batch, rounds, n_tokens) = (number(batch, 8), number(rounds, 3), number(n_tokens, 20));
    let file = Arc::new(merge::io::open(
        checkpoint.as_ref(),
        &OpenOptions::default(),
    )?);
    let layout = merge::layouts::detect(&file)?;
    let blueprint = blueprint(&file, layout.as_ref(), &Overrides::default())?;
    let name = |key: &str| blueprint.name_of(key);
    let weights = Weights::new(file, layout.as_ref(), name, &Device::Cpu, DType::F32)?;
    let heads = [Head::Ranking]
        .map(|head| blueprint.prefixes(head))
        .concat();
    let weights = match which.as_str() {
        "step" | "checkpointed" => weights.trainable(),
        "pairs" => weights.with_fresh(&heads, 1),
        _ => weights,
    };
    let model = blueprint.build(&weights)?;
    let inputs = Inputs::new(model.input(), batch)?;
    let (buffers, variables) = (Buffers::default(), weights.variables());
    let mut gradients = Gradients::of(variables.values());
    speed::time(which, batch, rounds, || {
        Ok(match which.as_str() {
            "forward" => inputs.complete(model.as_ref(), &Pass::new())?.queries,
            "pairs" => pairs(model.as_ref(), &inputs.images, n_tokens)?,
            "products" => products::products()?,
            "caption" => captions(model.as_ref(), &inputs.images, n_tokens)?,
            _ => {
                gradients.clear();
                let tape = match which.as_str() {
                    "checkpointed" => Tape::checkpointing(),
                    _ => Tape::new(),
                };
                let tape = tape.reusing(&buffers);
                let loss = inputs.loss(model.as_ref(), &Pass::new().recorded(&tape))?;
                tape.backward(&loss, &mut gradients)?;
                loss.detach()
            }
        })
    })
}
