//! Captions written by a model of a few rules: greedy, and by beams.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use evaluate::batch::Images;
use evaluate::datasets::captions::CaptionSet;
use evaluate::metrics::bootstrap::Bootstrap;
use evaluate::models::{Captioner, Head, Model, ModelInput, Seen};
use evaluate::nn::Pass;
use evaluate::predictions::captions::official_id;
use evaluate::reports::file::Source;
use evaluate::reports::published::Published;
use evaluate::reports::{self, Document, Input, Report, TaskResult, html};
use evaluate::tasks::captions::Captioning;
use evaluate::tasks::{Predictions, Task};
use evaluate::writing::{Ends, Writing, Written, write};
use evaluate::{Error, Result};

/// The probability of each next token, after all tokens so far, for an image of one color.
type Rule = fn(f32, &[u32]) -> Vec<f32>;

/// Writes by a rule; it remembers the tokens of each row in what it has seen.
struct Ruled(Rule);

impl Model for Ruled {
    fn family(&self) -> &'static str {
        "ruled"
    }

    fn input(&self) -> &ModelInput {
        unreachable!("nothing is resized here")
    }

    fn score(&self, _: Head, _: &Tensor) -> Result<Tensor> {
        Err(self.cannot("score"))
    }

    fn n_classes(&self, _: Head) -> Result<usize> {
        Err(self.cannot("score"))
    }
}

impl Captioner for Ruled {
    fn see(&self, images: &Images, _: &Pass<'_>) -> Result<Seen> {
        Ok(seen(images.pixels.flatten_from(1)?.narrow(1, 0, 1)?, None)?)
    }

    fn next(&self, state: &mut Seen, ids: &Tensor) -> Result<Tensor> {
        let (color, words) = parts(state)?;
        let ids = ids.to_dtype(candle_core::DType::F32)?.unsqueeze(1)?;
        let words = match words {
            Some(words) => Tensor::cat(&[&words, &ids], 1)?,
            None => ids,
        };
        *state = seen(color.clone(), Some(words.clone()))?;
        let rows = color.flatten_all()?.to_vec1::<f32>()?;
        let words = words.to_vec2::<f32>()?;
        let logits: Vec<Vec<f32>> = (rows.iter().zip(words))
            .map(|(&color, words)| {
                // Without the token that all texts begin with.
                let words: Vec<u32> = words[1..].iter().map(|&word| word as u32).collect();
                (self.0)(color, &words).into_iter().map(f32::ln).collect()
            })
            .collect();
        Ok(Tensor::new(logits, &Device::Cpu)?)
    }
}

fn seen(color: Tensor, words: Option<Tensor>) -> candle_core::Result<Seen> {
    let n_words = words.as_ref().map_or(Ok(0), |words| words.dim(1))?;
    Ok(Seen {
        images: vec![color],
        words: vec![words],
        n_words,
    })
}

fn parts(state: &Seen) -> Result<(Tensor, Option<Tensor>)> {
    Ok((state.images[0].clone(), state.words[0].clone()))
}

const FIRST: u32 = 4;
const STOP: u32 = 0;

fn written(rule: Rule, colors: &[f32], writing: &Writing) -> Vec<Written> {
    let pixels = Tensor::new(colors, &Device::Cpu).and_then(|t| t.reshape((colors.len(), 1, 1, 1)));
    let ends = Ends {
        first: FIRST,
        stops: vec![STOP],
        never: vec![3],
    };
    let images = Images::new(pixels.expect("pixels"));
    write(&Ruled(rule), &images, &ends, writing, &Pass::new()).expect("texts")
}

/// Tokens: 0 ends, 1 and 2 are words, 3 is padding, 4 begins. After 1 nothing is sure; after 2 all is.
fn tempting(color: f32, words: &[u32]) -> Vec<f32> {
    match (words, color as u32) {
        ([], 0) => vec![0.05, 0.5, 0.4, 0.05, 0.0],
        ([], _) => vec![0.05, 0.1, 0.8, 0.05, 0.0],
        ([1], _) => vec![0.3, 0.3, 0.3, 0.1, 0.0],
        ([2], _) => vec![0.9, 0.04, 0.03, 0.03, 0.0],
        ([1, ..], _) => vec![0.4, 0.3, 0.3, 0.0, 0.0],
        _ => vec![0.5, 0.3, 0.2, 0.0, 0.0],
    }
}

#[test]
fn greedy_takes_the_likeliest_token_and_beams_the_likelier_text() {
    let greedy = written(tempting, &[0.0, 7.0], &Writing::default());
    let ids: Vec<&[u32]> = greedy.iter().map(|text| &text.ids[..]).collect();
    // Of equal tokens the first, which ends.
    assert_eq!(ids, [&[1][..], &[2][..]]);
    assert_eq!(greedy[0].stop, Some(STOP));
    // 0.5, and then 0.3; 0.8, and then 0.9.
    let logs = [0.5_f64.ln(), 0.15_f64.ln(), 0.8_f64.ln(), 0.72_f64.ln()];
    let found = [
        greedy[0].log_prob,
        greedy[0].log_prob_with_stop,
        greedy[1].log_prob,
        greedy[1].log_prob_with_stop,
    ];
    for (found, expected) in found.into_iter().zip(logs) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    let beams = Writing {
        beams: 2,
        ..Writing::default()
    };
    let better = written(tempting, &[0.0, 7.0], &beams);
    // 0.4 · 0.9 is more than 0.5 · 0.3.
    assert_eq!(better[0].ids, [2]);
    assert!((better[0].log_prob_with_stop - 0.36_f64.ln()).abs() < 1e-6);
    assert_eq!(better[1].ids, [2]);
}

#[test]
fn texts_do_not_depend_on_what_else_is_written() {
    for beams in [1, 2, 3] {
        let writing = Writing {
            beams,
            max_tokens: 5,
            ..Writing::default()
        };
        let colors = [0.0, 7.0, 0.0, 7.0, 7.0];
        let together = written(tempting, &colors, &writing);
        for (color, text) in colors.iter().zip(&together) {
            assert_eq!(
                &written(tempting, &[*color], &writing)[0],
                text,
                "{beams} beams"
            );
        }
    }
}

/// Likes to go on: a long text is less likely as a whole, and likelier by the token.
fn wordy(_: f32, words: &[u32]) -> Vec<f32> {
    match words.len() {
        0 => vec![0.4, 0.55, 0.05, 0.0, 0.0],
        1..4 => vec![0.02, 0.9, 0.08, 0.0, 0.0],
        _ => vec![0.9, 0.05, 0.05, 0.0, 0.0],
    }
}

#[test]
fn the_penalty_chooses_between_short_and_long_texts() {
    let of = |length_penalty: f64| {
        let writing = Writing {
            beams: 2,
            length_penalty,
            ..Writing::default()
        };
        written(wordy, &[0.0], &writing)[0].ids.clone()
    };
    // 0.4 as a whole against 0.55 · 0.9³ · 0.9 = 0.36, but the fifth root of that is 0.82.
    assert_eq!(of(0.0), [0_u32; 0]);
    assert_eq!(of(1.0), [1, 1, 1, 1]);
}

#[test]
fn a_text_that_does_not_end_is_cut() {
    let endless: Rule = |_, _| vec![0.1, 0.6, 0.1, 0.2, 0.0];
    let writing = Writing {
        max_tokens: 4,
        ..Writing::default()
    };
    let text = &written(endless, &[0.0], &writing)[0];
    assert_eq!((text.ids.as_slice(), text.stop), (&[1, 1, 1, 1][..], None));
    assert_eq!(text.log_prob, text.log_prob_with_stop);
}

#[test]
fn padding_is_never_written() {
    let padding: Rule = |_, words| match words.len() {
        0 => vec![0.1, 0.2, 0.1, 0.6, 0.0],
        _ => vec![0.4, 0.0, 0.0, 0.6, 0.0],
    };
    assert_eq!(written(padding, &[0.0], &Writing::default())[0].ids, [1]);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let broken: Rule = |_, _| vec![f32::NAN; 5];
    let images = Images::new(
        Tensor::zeros((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).expect("zeros"),
    );
    let ends = Ends {
        first: FIRST,
        stops: vec![STOP],
        never: vec![],
    };
    let error = write(
        &Ruled(broken),
        &images,
        &ends,
        &Writing::default(),
        &Pass::new(),
    );
    assert!(
        matches!(error, Err(Error::LogitNotANumber { example: 0 })),
        "{error:?}"
    );
}

#[test]
fn captions_of_a_split_are_judged_shown_and_written_as_official_files() {
    let folder = fixtures::path("arrow");
    let set = CaptionSet::open(&folder, "coco", "train").expect("a split");
    assert!(set.n_images() > 1);
    // The first image gets a person's caption of it, the others something else.
    let mut captions = vec!["zebras juggle".to_owned(); set.n_images()];
    captions[0].clone_from(&set.captions(0)[0]);
    let said = set.captions(0).to_vec();
    let ids: Vec<_> = (0..set.n_images())
        .map(|i| official_id(set.image_id(i)))
        .collect();
    let task = Captioning::new(Arc::new(set), Writing::default());
    task.check_predictions().expect("every image has a number");
    let outcome = task.judge(&captions).expect("judged");
    let Predictions::Captions(written) = &outcome.predictions else {
        panic!("no captions: {:?}", outcome.predictions);
    };
    assert!(written.iter().zip(&captions).all(|(a, b)| a.caption == *b));
    assert!(
        written
            .iter()
            .zip(ids)
            .all(|(a, id)| Some(a.image_id) == id)
    );
    let best = &outcome.examples[0];
    assert!(best.is_best && best.rank == 1);
    assert_eq!(best.references, said);
    // The page shows the picture, the caption and people's captions.
    let (measured, _) =
        reports::measure(&[outcome.sample], &Bootstrap::new(100, 0).expect("draws"))
            .expect("measured");
    let mut result = TaskResult {
        name: "writer".into(),
        task: "captions".into(),
        examples: outcome.examples,
        ..TaskResult::default()
    };
    result.measurements = measured.into_iter().next().expect("one");
    let report = Report::new(vec![result], Vec::new());
    let input = Input {
        label: "writer.json".into(),
        source: Source::Report(report),
    };
    let document = Document::new(
        "Captions",
        &[input],
        &Published::ours().expect("well-formed"),
    );
    let page = html::html(&document).expect("made");
    for shown in [
        "Written best",
        "People said:",
        "zebras juggle",
        "CIDEr",
        "Rank among all captions",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!page.contains("First right answer"));
}
