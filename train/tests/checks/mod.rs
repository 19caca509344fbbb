//! Laws of ranks of any kind: run by threads in `ranks`, and by processes under `mpirun`
//! in `mpi_ranks`.

mod parts;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::nn::{Gradient, Gradients, Tape};
use merge::random::Draws;
use train::batch::{Batch, Images, MaskedPatches, MaskedWords, Texts};
use train::collective::{Alone, Collective, Parameters, Part, Shards};
use train::objectives::{self, Randomness, Shared, Step};

use crate::fixture::{image_tokenizer, target_images, tensors, trainable, values};

pub use parts::{Beyond, parts_learn_what_the_whole_learns};

/// Of losses, and of gradients by L2, relative.
const TOLERANCE: f64 = 1e-5;

/// Gradients below this share of the largest are zero except for rounding: compared absolutely.
const FLOOR: f64 = 1e-3;

/// Objectives that are run on one batch, one after the other.
const OBJECTIVES: [&[&str]; 12] = [
    &["mim"],
    &["image_mim"],
    &["itc"],
    &["itm"],
    &["mlm"],
    &["text_mlm"],
    &["image_classification"],
    &["linear_probe"],
    &["retrieval"],
    &["vqa"],
    &["nlvr2"],
    // The second reads the similarities of the first.
    &["itc", "itm", "mlm"],
];

/// Numbers of a rank; those of any rank can be made by every other.
fn numbers(rank: usize, n: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; n];
    Draws::new(rank as u64, "ranks").add_normal(1.0, 0, &mut numbers);
    numbers
}

/// Every operation gives what one process would compute.
pub fn operations_give_what_one_process_computes(ranks: &dyn Collective) {
    let (rank, n_ranks) = (ranks.rank(), ranks.size());
    // None, fewer than ranks, odd, and more than MPI's pieces hold.
    for n in [0, 1, 3, 1001, 600_011] {
        let all: Vec<Vec<f32>> = (0..n_ranks).map(|rank| numbers(rank, n)).collect();
        let own = &all[rank];
        let sums = |at: usize| all.iter().map(move |numbers| numbers[at]);

        let mut sum = own.clone();
        ranks.sum(&mut sum).expect("a sum");
        let expected: Vec<f32> = (0..n)
            .map(|at| sums(at).reduce(|sum, value| sum + value).expect("a rank"))
            .collect();
        assert_eq!(sum, expected, "sums of {n} in the order of the ranks");

        let mut sum: Vec<f64> = own.iter().map(|&value| f64::from(value).exp()).collect();
        ranks.sum_f64(&mut sum).expect("a sum");
        let exact = |at| sums(at).map(|value| f64::from(value).exp());
        let expected: Vec<f64> = (0..n)
            .map(|at| exact(at).reduce(|sum, value| sum + value).expect("a rank"))
            .collect();
        assert_eq!(sum, expected, "sums of {n} in f64");

        for (root, expected) in all.iter().enumerate() {
            let mut given = own.clone();
            ranks.broadcast(root, &mut given).expect("given");
            assert_eq!(&given, expected, "{n} numbers of rank {root}");
        }

        // Each gathers something of another length, the last nothing.
        let part = |rank: usize| &all[rank][..n - n * rank / (n_ranks - 1).max(1)];
        let gathered = ranks.gather(bytemuck::cast_slice(part(rank)));
        for (rank, bytes) in gathered.expect("gathered").iter().enumerate() {
            assert_eq!(
                bytes,
                bytemuck::cast_slice::<f32, u8>(part(rank)),
                "{n} of {rank}"
            );
        }
        // To each rank another part of the numbers, to itself nothing.
        let message = |from: usize, to: usize| match from == to {
            true => &all[from][..0],
            false => &all[from][..n - n * to / n_ranks],
        };
        let to: Vec<Vec<u8>> = (0..n_ranks)
            .map(|to| bytemuck::cast_slice(message(rank, to)).to_vec())
            .collect();
        let received = ranks.exchange(&to).expect("exchanged");
        assert_eq!(received.len(), n_ranks);
        for (from, bytes) in received.iter().enumerate() {
            let expected = bytemuck::cast_slice::<f32, u8>(message(from, rank));
            assert_eq!(bytes, expected, "{n} of {from}");
        }
        assert!(ranks.exchange(&vec![Vec::new(); n_ranks + 1]).is_err());
        ranks.barrier().expect("all are there");
    }
}

/// Sums of tensors keep shape and dtype.
pub fn tensors_are_summed_in_their_dtype(ranks: &dyn Collective) {
    let n_ranks = ranks.size() as f64;
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let own = Tensor::arange(0f32, 6.0, &Device::Cpu).expect("numbers");
        let own = own.reshape((2, 3)).and_then(|own| own.to_dtype(dtype));
        let sum = ranks.sum_tensor(&own.expect("numbers")).expect("a sum");
        assert_eq!((sum.dims(), sum.dtype()), (&[2, 3][..], dtype));
        let expected: Vec<f64> = (0..6).map(|at| f64::from(at) * n_ranks).collect();
        assert_eq!(values(&sum), expected);
    }
}

/// Four examples with everything that objectives need. `uneven` has words to be guessed in the first
/// three alone.
fn whole_batch(uneven: bool) -> Batch {
    let inputs = tensors("forward/inputs.safetensors");
    let get = |name: &str| inputs[name].clone();
    let ids = get("irtr_text_ids").to_dtype(DType::U32).expect("ids");
    // No text is as long as the model takes them.
    let kept = get("irtr_text_masks").narrow(1, 0, ids.dim(1).expect("a length") - 2);
    let kept = kept
        .and_then(|kept| kept.pad_with_zeros(1, 0, 2))
        .expect("a mask");
    let text = Texts::of_tensors(ids.clone(), kept).expect("words");
    let image = Images::new(get("irtr_image"));
    let last_first = Tensor::new(&[3u32, 2, 1, 0], &Device::Cpu).expect("numbers");
    let t = ids.dim(1).expect("a length") as u32;
    let mut ids: Vec<u32> = ids
        .flatten_all()
        .and_then(|ids| ids.to_vec1())
        .expect("ids");
    let mut places = vec![1, 2, t + 1, 2 * t + 2];
    if !uneven {
        places.push(3 * t + 1);
    }
    let labels = places.iter().map(|&at| ids[at as usize]).collect();
    places.iter().for_each(|&at| ids[at as usize] = 3);
    // As with words, the last example has nothing to be guessed where that is uneven.
    let masked: Vec<u8> = (0..36)
        .map(|at| u8::from((at % 3 == 0 || at == 1) && (!uneven || at < 27)))
        .collect();
    let answers = get("vqa_targets");
    let answers = Tensor::cat(&[&answers, &(&answers * 0.5).expect("scores")], 0);
    Batch {
        first: 0,
        n: 4,
        second_image: Some(image.select(&last_first).expect("images")),
        image: Some(image),
        masked_words: Some(MaskedWords {
            ids: Tensor::from_vec(ids, (4, t as usize), &Device::Cpu).expect("ids"),
            places,
            labels,
        }),
        text: Some(text),
        masked_patches: Some(MaskedPatches {
            masked: Tensor::from_vec(masked, (4, 9), &Device::Cpu).expect("a mask"),
            target_image: target_images(4),
        }),
        answers: Some(answers.expect("answers")),
        classes: Some(vec![1, 0, 0, 1]),
        ..Batch::default()
    }
}

/// A rank's examples of a batch.
fn part(whole: &Batch, rank: usize, n_ranks: usize) -> Batch {
    let n = whole.n / n_ranks;
    let first = rank * n;
    let rows = |tensor: &Tensor| tensor.narrow(0, first, n).expect("rows");
    let images = |images: &Images| images.narrow(first, n).expect("images");
    let words = whole.masked_words.as_ref().map(|words| {
        let t = words.ids.dim(1).expect("a length");
        let own = (first * t) as u32..((first + n) * t) as u32;
        let both = words.places.iter().zip(&words.labels);
        let both = both.filter(|(place, _)| own.contains(place));
        let (places, labels) = both
            .map(|(place, label)| (place - own.start, *label))
            .unzip();
        MaskedWords {
            ids: rows(&words.ids),
            places,
            labels,
        }
    });
    Batch {
        first: whole.first + first,
        n,
        image: whole.image.as_ref().map(images),
        second_image: whole.second_image.as_ref().map(images),
        text: whole
            .text
            .as_ref()
            .map(|text| Texts::of_tensors(rows(&text.ids), rows(&text.kept)).expect("words")),
        masked_words: words,
        masked_patches: whole.masked_patches.as_ref().map(|patches| MaskedPatches {
            masked: rows(&patches.masked),
            target_image: rows(&patches.target_image),
        }),
        answers: whole.answers.as_ref().map(rows),
        classes: (whole.classes.as_ref()).map(|classes| classes[first..first + n].to_vec()),
        ..Batch::default()
    }
}

/// Without what lies behind the longest text, as the loader gives batches: no token sees padding.
pub fn shortened(batch: Batch) -> Batch {
    let text = batch.text.as_ref().expect("texts");
    let kept: Vec<Vec<u8>> = text.kept.to_vec2().expect("a mask");
    let n_tokens = kept
        .iter()
        .map(|row| row.iter().filter(|&&kept| kept == 1).count());
    let (from, to) = (kept[0].len(), n_tokens.max().expect("a text"));
    let cut = |x: &Tensor| {
        x.narrow(1, 0, to)
            .and_then(|x| x.contiguous())
            .expect("cut")
    };
    let words = batch.masked_words.as_ref().map(|words| MaskedWords {
        ids: cut(&words.ids),
        places: (words.places.iter())
            .map(|&place| place / from as u32 * to as u32 + place % from as u32)
            .collect(),
        labels: words.labels.clone(),
    });
    Batch {
        text: Some(Texts::of_tensors(cut(&text.ids), cut(&text.kept)).expect("texts")),
        masked_words: words,
        ..batch
    }
}

/// Gradients by variable, averaged over the parts of a rank and over the ranks.
fn averaged(
    variables: BTreeMap<String, Var>,
    gradients: &Gradients,
    n_parts: usize,
    ranks: &dyn Collective,
) -> BTreeMap<String, Vec<f32>> {
    let share = 1.0 / (ranks.size() * n_parts) as f32;
    let of = |(name, variable): (String, Var)| {
        let mut values = match gradients.get(&variable) {
            Some(Gradient::Host(gradient)) => gradient.to_vec(),
            Some(Gradient::Device(_)) => panic!("a gradient on another device"),
            None => vec![0.0; variable.elem_count()],
        };
        ranks.sum(&mut values).expect("a sum");
        values.iter_mut().for_each(|value| *value *= share);
        (name, values)
    };
    variables.into_iter().map(of).collect()
}

/// Losses, and their gradients by variable.
struct Found {
    losses: Vec<f64>,
    measures: Vec<f64>,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn run(architecture: &str, names: &[&str], batch: &Batch, ranks: &dyn Collective) -> Found {
    let (model, weights) = trainable(architecture);
    let (tape, shared) = (Tape::new(), Shared::default());
    let step = Step {
        model: &model,
        batch,
        collective: ranks,
        randomness: Some(Randomness {
            seed: 5,
            step: 7,
            drop_path: 0.4,
            dropout: 0.1,
            mix: None,
        }),
        tape: Some(&tape),
        shared: &shared,
        drops: None,
        whole: None,
        routing: None,
        side_losses: None,
        experts: None,
    };
    let variables = weights.variables();
    let mut gradients = Gradients::of(variables.values());
    let (mut losses, mut measures) = (Vec::new(), Vec::new());
    let mut value: Option<Tensor> = None;
    for name in names {
        let objective = objectives::by_name(name, Some(&image_tokenizer())).expect("an objective");
        let loss = objective.loss(&step).expect("a loss");
        losses.push(loss.reported);
        measures.extend(loss.measures.iter().flat_map(|(_, sum, n)| [*sum, *n]));
        value = Some(match value {
            None => loss.value,
            Some(sum) => (sum + loss.value).expect("a sum"),
        });
    }
    let value = value.expect("an objective");
    tape.backward(&value, &mut gradients).expect("backward");
    let by_name = averaged(variables, &gradients, 1, ranks);
    ranks.sum_f64(&mut losses).expect("a sum");
    ranks.sum_f64(&mut measures).expect("a sum");
    let share = 1.0 / ranks.size() as f64;
    losses.iter_mut().for_each(|loss| *loss *= share);
    Found {
        losses,
        measures,
        gradients: by_name,
    }
}

fn l2(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|value| f64::from(value).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Ranks with a part of the batch each, padded to its own longest text, learn what one rank learns from all
/// of it, padded to the model's length, with random omissions and hard negatives. The largest relative error of the gradients of a variable.
pub fn objectives_learn_what_one_process_learns(ranks: &dyn Collective, architecture: &str) -> f64 {
    let mut largest_error = 0.0f64;
    for (names, uneven) in OBJECTIVES
        .iter()
        .flat_map(|names| [(names, false), (names, true)])
    {
        if uneven && !names.iter().any(|name| name.ends_with("mlm")) {
            continue;
        }
        let whole = whole_batch(uneven);
        let expected = run(architecture, names, &whole, &Alone);
        let own = shortened(part(&whole, ranks.rank(), ranks.size()));
        let found = run(architecture, names, &own, ranks);
        let shown = format!("{architecture} {names:?}");
        for (found, expected) in found.losses.iter().zip(&expected.losses) {
            let error = (found - expected).abs() / expected.abs();
            assert!(error <= TOLERANCE, "{shown}: {found}, expected {expected}");
        }
        assert_eq!(found.measures.len(), expected.measures.len());
        for (found, expected) in found.measures.iter().zip(&expected.measures) {
            // Counts, and sums of soft scores in f32.
            let is_same = (found - expected).abs() <= 1e-6 * expected.abs();
            assert!(is_same, "{shown}: {found}, expected {expected}");
        }
        let norms = expected.gradients.values().map(|g| l2(g.iter().copied()));
        let largest = norms.fold(0.0, f64::max);
        assert!(largest > 0.0, "{shown} learns something");
        for (name, expected) in &expected.gradients {
            let found = &found.gradients[name];
            let norm = l2(expected.iter().copied()).max(FLOOR * largest);
            let error = l2(found.iter().zip(expected).map(|(a, b)| a - b)) / norm;
            assert!(error <= TOLERANCE, "{shown} {name}: {error}");
            largest_error = largest_error.max(error);
        }
    }
    largest_error
}

/// The optimizer's state of a stretch of the parameters.
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// A step of AdamW with rate 0.1, betas 0.9 and 0.98, decay 0.01.
fn update(value: &mut f32, gradient: f32, moments: &mut Moments, at: usize, step: i32) {
    let (first, second) = (&mut moments.first[at], &mut moments.second[at]);
    *first = 0.9 * *first + 0.1 * gradient;
    *second = 0.98 * *second + 0.02 * gradient * gradient;
    let (first, second) = (
        *first / (1.0 - 0.9f32.powi(step)),
        *second / (1.0 - 0.98f32.powi(step)),
    );
    *value -= 0.1 * (first / (second.sqrt() + 1e-6) + 0.01 * *value);
}

/// Parameters as plain vectors.
struct Vectors<'a>(&'a mut Vec<Vec<f32>>);

impl Parameters for Vectors<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    fn read(&self, part: &Part, out: &mut [f32]) -> train::Result<()> {
        out.copy_from_slice(&self.0[part.parameter][part.of_parameter.clone()]);
        Ok(())
    }

    fn write(&mut self, part: &Part, values: &[f32]) -> train::Result<()> {
        self.0[part.parameter][part.of_parameter.clone()].copy_from_slice(values);
        Ok(())
    }
}

/// Ranks that update a stretch each end with the parameters of one that updates all.
pub fn shards_are_updated_as_the_whole(ranks: &dyn Collective) {
    let lengths = [7, 1, 0, 30, 2, 1001];
    let fresh = || -> Vec<Vec<f32>> {
        let lengths = lengths.iter().enumerate();
        lengths.map(|(seed, &n)| numbers(100 + seed, n)).collect()
    };
    let train = |ranks: &dyn Collective| {
        let shards = Shards::new(lengths, ranks.size());
        let n_own = shards.range(ranks.rank()).len();
        let mut moments = Moments {
            first: vec![0.0; n_own],
            second: vec![0.0; n_own],
        };
        let mut parameters = fresh();
        for step in 1..=3 {
            for part in shards.parts(ranks.rank()) {
                let gradient = numbers(1000 * step as usize + part.parameter, 1001);
                for (at, of_shard) in part.of_parameter.zip(part.of_shard) {
                    let value = &mut parameters[part.parameter][at];
                    update(value, gradient[at], &mut moments, of_shard, step);
                }
            }
            let gathered = shards.gather_ranges(ranks, &mut Vectors(&mut parameters));
            gathered.expect("gathered");
        }
        parameters
    };
    let trained = train(ranks);
    assert_eq!(trained, train(&Alone));
    assert_ne!(trained, fresh());
}
