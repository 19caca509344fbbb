//! Times one pass of a model and prints a JSON line, beside `benches/reference_model.py`: the same
//! weights, inputs, batch and threads.
//!
//! `RAYON_NUM_THREADS=2 model_speed CHECKPOINT image|text|joint BATCH ROUNDS [grams]`
//!
//! With a file of `reference_model.py outputs` in place of BATCH, compares features with it.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use evaluate::Result;
use evaluate::capture::Capture;
use evaluate::models::{Multiway, Overrides};
use evaluate::nn::{Mask, Pass};
use merge::io::OpenOptions;
use merge::layouts::GramNames;

/// Inputs that depend on their place only, as the reference makes them.
struct Inputs {
    ids: Tensor,
    mask: Mask,
    image: Tensor,
}

impl Inputs {
    fn new(model: &Multiway, batch: usize) -> Result<Self> {
        let config = model.config();
        let (t, side) = (config.text_len, config.image_size);
        let length = |text: usize| 8 + text * 5 % (t - 7);
        let kept: Vec<u8> = (0..batch * t)
            .map(|at| u8::from(at % t < length(at / t)))
            .collect();
        let ids = (0..batch * t).map(|at| (at * 7919 % config.vocabulary) as u32);
        let ids: Vec<u32> = ids
            .zip(&kept)
            .map(|(id, &kept)| id * u32::from(kept))
            .collect();
        let turn = std::f64::consts::TAU;
        let image = (0..batch * 3 * side * side).map(|n| (n as f64 * 0.05 % turn).sin() as f32);
        Ok(Self {
            ids: Tensor::from_vec(ids, (batch, t), &Device::Cpu)?,
            mask: Mask::new(&Tensor::from_vec(kept, (batch, t), &Device::Cpu)?)?,
            image: Tensor::from_vec(
                image.collect::<Vec<_>>(),
                (batch, 3, side, side),
                &Device::Cpu,
            )?,
        })
    }

    fn run(&self, model: &Multiway, which: &str, pass: &Pass<'_>) -> Result<Tensor> {
        match which {
            "image" => model.image_features(&self.image, pass),
            "text" => model.text_features(&self.ids, &self.mask, pass),
            _ => model.pooled(&self.ids, &self.mask, &self.image, 0, pass),
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, which, batch, rest @ ..] = &arguments[..] else {
        eprint("model_speed CHECKPOINT image|text|joint BATCH ROUNDS [grams]");
        return Ok(());
    };
    let file = Arc::new(merge::io::open(
        checkpoint.as_ref(),
        &OpenOptions::default(),
    )?);
    let layout = merge::layouts::detect(&file)?;
    let names = GramNames::of(&file, layout.as_ref());
    let (model, _) = Multiway::open(file, &Overrides::default(), &Device::Cpu, DType::F32)?;
    let Ok(batch) = batch.parse::<usize>() else {
        return compare(&model, batch);
    };
    let rounds = rest.first().and_then(|text| text.parse().ok()).unwrap_or(5);
    let grams = rest.get(1).is_some_and(|word| word == "grams");
    let inputs = Inputs::new(&model, batch)?;
    let capture = Capture::new(names).with_shared(true);
    let tap = capture.times(1);
    let pass = if grams {
        Pass::tapped(&tap)
    } else {
        Pass::new()
    };
    let mut seconds = Vec::new();
    for _ in 0..=rounds {
        let started = Instant::now();
        inputs.run(&model, which, &pass)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let mut timed = seconds[1..].to_vec();
    timed.sort_by(f64::total_cmp);
    let median = timed[timed.len() / 2];
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok());
    out(&format!(
        "{{\"engine\": \"vlmerge\", \"pass\": \"{which}\", \"grams\": {grams}, \"batch\": {batch}, \
         \"image_size\": {}, \"threads\": {}, \"rounds\": {rounds}, \"seconds\": {median:.4}, \
         \"fastest_seconds\": {:.4}, \"per_second\": {:.3}, \"peak_rss_bytes\": {}}}",
        model.config().image_size,
        rayon::current_num_threads(),
        timed[0],
        batch as f64 / median,
        peak.unwrap_or(0) * 1024,
    ));
    Ok(())
}

/// Features of the inputs in `path`, against the reference's.
fn compare(model: &Multiway, path: &str) -> Result<()> {
    let file = merge::io::open(path.as_ref(), &OpenOptions::default())?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let info = file.require(name)?;
        let mut values = vec![0.0; info.n_elements()];
        merge::decode_f32(name, info.dtype, &file.read_all(name)?, &mut values)?;
        Ok(values)
    };
    let batch = file.require("image")?.shape[0];
    let inputs = Inputs::new(model, batch)?;
    let pass = Pass::new();
    for (name, found) in [
        ("text_ft.cls_feats", inputs.run(model, "text", &pass)?),
        ("image_ft.cls_feats", inputs.run(model, "image", &pass)?),
        ("vl.cls_feats", inputs.run(model, "joint", &pass)?),
    ] {
        let expected = read(name)?;
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        let pairs = found.iter().zip(&expected);
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        out(&format!(
            "{name}: largest difference {worst:.2e} over {} numbers",
            expected.len()
        ));
    }
    Ok(())
}

fn out(line: &str) {
    use std::io::Write;
    // A closed standard output is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn eprint(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
