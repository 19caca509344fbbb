//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`).

use candle_core::Tensor;

use super::Flm;
use super::masks::{self, Masks};
use super::passes::{Looked, Three};
use crate::batch::{Images, Texts};
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::{FreeLanguage, FusionEncoder, Head, Model, Reading, Stream, Streams};
use crate::nn::{Mask, Pass};
use crate::streams::Span;
use crate::{Error, Result};

/// The inputs of a pass in one stream.
const ONE: &[&str] = &["text_ids", "text_masks", "image"];

/// The inputs of a pass in three streams. `m` and `coin` are its spans where they are given.
const THREE: &[&str] = &["text_ids", "text_masks", "text_all_masks_ids", "image"];

/// Every pass of the family. Those in one stream put out what those in three do, so each model runs those of
/// its own way unless others are named.
const PASSES: &[PassSpec<Flm>] = &[
    spec("three_stream", THREE, three_stream),
    spec("one_stream_causal", ONE, one_stream_causal),
    spec("one_stream_bidirectional", ONE, one_stream_bidirectional),
    spec("mlm", &["text_ids_mlm", "text_masks", "image"], mlm),
    spec("only_use_cls", ONE, only_use_cls),
    spec(
        "nlvr2",
        &["text_ids", "text_masks", "image_0", "image_1"],
        nlvr2,
    ),
    spec("rank", ONE, rank),
    spec("vit", &["image"], vit),
];

const fn spec(
    name: &'static str,
    inputs: &'static [&'static str],
    run: fn(&Flm, &Given, &Recorder) -> Result<()>,
) -> PassSpec<Flm> {
    PassSpec {
        name,
        inputs,
        on_demand: true,
        run,
    }
}

impl NamedPasses for Flm {
    fn inputs(&self) -> Vec<Input> {
        let side = Size::Exactly(self.input().image.side);
        let pixels = || vec![Size::Any("b"), Size::Exactly(3), side, side];
        let tokens = || vec![Size::Any("b"), Size::UpTo("t", self.config.text.text_len)];
        let below = self.input().text.vocabulary;
        let (ids, labels) = (Kind::Ids { below }, Kind::Labels { below });
        let answers = match self.n_classes(Head::Vqa) {
            Ok(n) => Size::Exactly(n),
            Err(_) => Size::Any("answers"),
        };
        let input = |name, shape, kind| Input { name, shape, kind };
        // A span is no longer than a text.
        let spans = Kind::Ids {
            below: self.config.text.text_len,
        };
        vec![
            input("text_ids", tokens(), ids),
            input("text_masks", tokens(), Kind::Flags),
            input("text_all_masks_ids", tokens(), ids),
            input("text_ids_mlm", tokens(), ids),
            input("text_labels_mlm", tokens(), labels),
            input("false_text_{i}_ids", tokens(), ids),
            input("false_text_{i}_masks", tokens(), Kind::Flags),
            input("image", pixels(), Kind::Floats),
            input("image_0", pixels(), Kind::Floats),
            input("image_1", pixels(), Kind::Floats),
            input("false_image_0", pixels(), Kind::Floats),
            input("m", tokens(), spans),
            input("coin", tokens(), Kind::Flags),
            input("itm_labels", vec![Size::Any("b")], Kind::Ids { below: 2 }),
            input("nlvr2_labels", vec![Size::Any("b")], Kind::Ids { below: 2 }),
            input("vqa_targets", vec![Size::Any("b"), answers], Kind::Floats),
        ]
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        let own = match self.config.streams {
            Streams::Three => "three_stream",
            Streams::Causal => "one_stream_causal",
            Streams::Bidirectional => "one_stream_bidirectional",
        };
        let pass = |spec: &PassSpec<Self>| {
            let mut pass = spec.of(self);
            pass.on_demand = spec.name != own && spec.name != "nlvr2";
            pass
        };
        PASSES.iter().map(pass).collect()
    }
}

/// Given spans, `m` tokens beside the asked one and the `coin` that says where an odd one lies: `b t`.
///
/// # Errors
/// [`GivenFault::MissingInput`](crate::GivenFault::MissingInput) where one of the two is missing.
pub fn spans(given: &Given) -> Result<Option<Vec<Span>>> {
    if !given.has("m") && !given.has("coin") {
        return Ok(None);
    }
    given.check("spans", &["text_ids", "m", "coin"])?;
    let spans = given
        .integers("m")?
        .into_iter()
        .zip(given.integers("coin")?);
    let span = |(extra, coin): (i64, i64)| Span {
        extra: usize::try_from(extra).unwrap_or_default(),
        leans_left: coin == 1,
    };
    Ok(Some(spans.map(span).collect()))
}

fn texts(given: &Given) -> Result<Texts> {
    given.texts("text_ids", "text_masks")
}

fn look(model: &Flm, images: &Images, pass: &Pass<'_>, out: &Recorder) -> Result<Looked> {
    let looked = model.look(images, 0, pass)?;
    out.add("vit.out", &looked.encoded)?;
    Ok(looked)
}

fn add_mask(out: &Recorder, name: &str, mask: &Mask) -> Result<()> {
    if let Some(seen) = masks::visible(mask)? {
        out.add(format!("mask.{name}"), &seen)?;
    }
    Ok(())
}

/// An output that needs a head, which a checkpoint may lack.
fn add_scores(out: &Recorder, name: &str, scores: Result<Tensor>) -> Result<()> {
    match scores {
        Err(Error::NoHead { .. }) => Ok(()),
        scores => Ok(out.add(name, &scores?)?),
    }
}

fn vit(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let pass = out.pass("");
    look(model, &given.images("image")?, &pass, out).map(|_| ())
}

fn three_stream(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pass) = (texts(given)?, out.pass(""));
    let looked = look(model, &given.images("image")?, &pass, out)?;
    let spans = spans(given)?;
    let masks = Masks::of_all(&texts, spans.as_deref())?;
    let queries = given.tensor("text_all_masks_ids")?;
    let three = model.three(&texts, queries, &looked, &masks, &pass)?;
    let top = three.completed()?;
    let Three { bottom, .. } = three;
    let [forward, reverse, queries] = [0, 1, 2].map(|stream: usize| bottom[stream].padded());
    let (forward, reverse, queries) = (forward?, reverse?, queries?);
    let bottom = match model.config.n_fusion_bottom {
        // Without layers of its own the query stream has nothing to show there.
        0 => (forward + reverse)?,
        _ => queries,
    };
    out.add("out.text_embeds", &bottom)?;
    out.add("out.image_embeds", &looked.encoded)?;
    out.add("out.text_feats", &top.queries)?;
    out.add("out.text_feats1", &top.forward)?;
    out.add("out.text_feats2", &top.reverse)?;
    add_mask(out, "F", &masks.forward)?;
    add_mask(out, "G", &masks.reverse)?;
    add_mask(out, "K", &masks.queries)?;
    let streams = [
        ("logits.f", Stream::Queries, &top.queries),
        ("logits.x", Stream::Forward, &top.forward),
        ("logits.xr", Stream::Reverse, &top.reverse),
    ];
    for (name, stream, states) in streams {
        add_scores(out, name, model.words(stream, states))?;
    }
    let pooled = model.pool(Streams::Three, &top.queries)?;
    out.add("out.cls_feats", &pooled)?;
    add_scores(out, "logits", model.score(Head::Vqa, &pooled))
}

fn only_use_cls(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pass) = (texts(given)?, out.pass(""));
    let looked = look(model, &given.images("image")?, &pass, out)?;
    let masks = Masks::of_first(&texts)?;
    let query = texts.ids.narrow(1, 0, 1)?.contiguous()?;
    let three = model.three(&texts, &query, &looked, &masks, &pass)?;
    add_mask(out, "K", &masks.queries)?;
    let pooled = model.pool(Streams::Three, &three.completed()?.queries)?;
    Ok(out.add("out.cls_feats", &pooled)?)
}

fn one_stream_causal(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    one_stream(model, &texts(given)?, Reading::Causal, given, out)
}

fn one_stream_bidirectional(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    one_stream(model, &texts(given)?, Reading::Bidirectional, given, out)
}

fn mlm(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("text_ids_mlm", "text_masks")?;
    one_stream(model, &texts, Reading::Bidirectional, given, out)
}

fn one_stream(
    model: &Flm,
    texts: &Texts,
    reading: Reading<'_>,
    given: &Given,
    out: &Recorder,
) -> Result<()> {
    let pass = out.pass("");
    let looked = look(model, &given.images("image")?, &pass, out)?;
    let states = model.one(texts, &looked, reading, &pass)?.padded()?;
    out.add("out.image_feats", &looked.states)?;
    out.add("out.text_feats", &states)?;
    add_mask(out, "F", &masks::of_reading(texts, reading)?)?;
    // The published program puts the vector out twice, side by side.
    let pooled = model.pool(Streams::Causal, &states)?;
    out.add("out.cls_feats", &Tensor::cat(&[&pooled, &pooled], 1)?)?;
    add_scores(out, "logits", model.score(Head::Vqa, &pooled))?;
    let words = match reading {
        Reading::Bidirectional => model.score(Head::MaskedLanguage, &states),
        _ => model.score(Head::CausalLanguage, &states),
    };
    add_scores(out, "logits", words)
}

fn nlvr2(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pass) = (texts(given)?, Pass::new().with_padding());
    let mut both = Vec::with_capacity(2);
    for (nth, name) in ["image_0", "image_1"].into_iter().enumerate() {
        let looked = model.look(&given.images(name)?, nth, &pass)?;
        let pooled = match given.has("text_all_masks_ids") {
            true if model.config.streams == Streams::Three => {
                let queries = given.tensor("text_all_masks_ids")?;
                let masks = Masks::of_all(&texts, None)?;
                let three = model.three(&texts, queries, &looked, &masks, &pass)?;
                let queries = three.completed()?.queries;
                out.add(format!("out.text_feats_{nth}"), &queries)?;
                model.pool(Streams::Three, &queries)?
            }
            _ => {
                let first = model.first_state(&texts, &looked, &pass)?;
                model.pool(model.config.streams, &first)?
            }
        };
        out.add(format!("out.cls_feats_{nth}"), &pooled)?;
        both.push(pooled);
    }
    let logits = model.score(Head::Nlvr2, &Tensor::cat(&both, 1)?)?;
    Ok(out.add("logits", &logits)?)
}

/// Scores each text with its image.
fn rank(model: &Flm, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pass) = (texts(given)?, Pass::new());
    let scores = model.rank(&[&texts], &given.images("image")?, &[pass])?;
    Ok(out.add("scores", &scores)?)
}
