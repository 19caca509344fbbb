//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Result as Computed, Tensor};

use super::heads::Judge;
use super::{Embedded, Eve, Modality};
use crate::Result;
use crate::batch::{Images, Pair, Texts};
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::{Head, Model};
use crate::nn::{GivenNoise, Noise, Pass, Routing};

/// Passes of a task that have noise of their own.
const N_PASSES: usize = 5;

/// Every pass of the family.
const PASSES: &[PassSpec<Eve>] = &[
    spec("image", &["image"], false, image),
    spec("text", &["ids", "atts"], false, text),
    spec(
        "text_long",
        &["text_long_ids", "text_long_atts"],
        false,
        text_long,
    ),
    spec("vl", &["ids", "atts", "image"], false, vl),
    spec("retrieval", &["ids", "atts", "image"], false, retrieval),
    spec("vqa", &["ids", "atts", "image"], false, vqa),
    spec("nlvr2", &["ids", "atts", "image", "image2"], false, nlvr2),
    spec(
        "inplace_image",
        &["image", "image_mask"],
        true,
        inplace_image,
    ),
    spec(
        "inplace_vl",
        &["ids", "atts", "image", "image_mask"],
        true,
        inplace_vl,
    ),
    spec("drop_image", &["image", "ids_keep"], true, drop_image),
    spec(
        "drop_vl",
        &["ids", "atts", "image", "ids_keep"],
        true,
        drop_vl,
    ),
];

const fn spec(
    name: &'static str,
    inputs: &'static [&'static str],
    on_demand: bool,
    run: fn(&Eve, &Given, &Recorder) -> Result<()>,
) -> PassSpec<Eve> {
    PassSpec {
        name,
        inputs,
        on_demand,
        run,
    }
}

impl NamedPasses for Eve {
    fn inputs(&self) -> Vec<Input> {
        let side = Size::Exactly(self.config.image_size);
        let pixels = || vec![Size::Any("b"), Size::Exactly(3), side, side];
        let most = self.config.text_positions;
        let tokens = |letter| vec![Size::Any("b"), Size::UpTo(letter, most)];
        let ids = Kind::Ids {
            below: self.config.vocabulary,
        };
        let answers = match self.n_classes(Head::Vqa) {
            Ok(n) => Size::Exactly(n),
            Err(_) => Size::Any("answers"),
        };
        let of_batch = Kind::Ids { below: 1 << 30 };
        let input = |name, shape, kind| Input { name, shape, kind };
        let mut inputs = vec![
            input("ids", tokens("t"), ids),
            input("atts", tokens("t"), Kind::Flags),
            input("text_long_ids", tokens("l"), ids),
            input("text_long_atts", tokens("l"), Kind::Flags),
            input("image", pixels(), Kind::Floats),
            input("image2", pixels(), Kind::Floats),
            input(
                "image_mask",
                vec![Size::Any("b"), Size::Exactly(self.config.n_patches())],
                Kind::Flags,
            ),
            input(
                "ids_keep",
                vec![Size::Any("b"), Size::UpTo("k", self.config.n_patches())],
                Kind::Ids {
                    below: self.config.n_patches(),
                },
            ),
            input("idx", vec![Size::Any("b")], of_batch),
            input("image_for_text", vec![Size::Any("b")], of_batch),
            input("text_for_image", vec![Size::Any("b")], of_batch),
            input("nlvr_targets", vec![Size::Any("b")], Kind::Ids { below: 2 }),
            input("vqa_targets", vec![Size::Any("b"), answers], Kind::Floats),
        ];
        let noise = || vec![Size::Any("rows"), Size::Any("experts")];
        let names = PASS_NOISE.iter().chain(&TASK_NOISE);
        inputs.extend(names.map(|name| input(name, noise(), Kind::Floats)));
        inputs
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        PASSES.iter().map(|spec| spec.of(self)).collect()
    }

    fn routing(&self, given: &Given, number: usize) -> Result<Option<Routing>> {
        let Some(name) = TASK_NOISE.get(number) else {
            return Ok(None);
        };
        routing(self, given, name).map(Some)
    }
}

/// Noise of the routers of a pass, one table a block.
const PASS_NOISE: [&str; 4] = [
    "image.block{i}.moe.noise",
    "text.block{i}.moe.noise",
    "text_long.block{i}.moe.noise",
    "vl.block{i}.moe.noise",
];

/// The same of the passes of a task, in their order.
pub const TASK_NOISE: [&str; N_PASSES] = [
    "noise.p0.block{i}",
    "noise.p1.block{i}",
    "noise.p2.block{i}",
    "noise.p3.block{i}",
    "noise.p4.block{i}",
];

/// Given tables by block.
struct Tables(BTreeMap<usize, Vec<f32>>);

impl GivenNoise for Tables {
    fn noise(&self, site: &str, _: usize, _: usize) -> Computed<Option<Vec<f32>>> {
        let block = site
            .rsplit('.')
            .next()
            .and_then(|name| name.strip_prefix("block"));
        let block = block.and_then(|block| block.parse().ok());
        Ok(block.and_then(|block: usize| self.0.get(&block).cloned()))
    }
}

/// The choice of a pass's routers: with the noise given under `name`, if there is any.
///
/// # Errors
/// When the device fails.
pub fn routing(model: &Eve, given: &Given, name: &str) -> Result<Routing> {
    let mut routing = model.config.usual_routing();
    let mut tables = BTreeMap::new();
    for block in 0..model.config.n_blocks {
        let name = name.replace("{i}", &block.to_string());
        if given.has(&name) {
            let table = given.tensor(&name)?.to_dtype(DType::F32)?;
            tables.insert(block, table.flatten_all()?.to_vec1()?);
        }
    }
    if !tables.is_empty() {
        routing.noise = Noise::Given(Arc::new(Tables(tables)));
    }
    Ok(routing)
}

fn texts(given: &Given) -> Result<Texts> {
    given.texts("ids", "atts")
}

/// A pass on its own, with its last state under its name.
fn alone(
    model: &Eve,
    given: &Given,
    (name, noise): (&str, Option<&str>),
    of: impl FnOnce(&Pass<'_>) -> Result<Embedded>,
    out: &Recorder,
) -> Result<()> {
    let routing = match noise {
        Some(noise) => routing(model, given, noise)?,
        None => model.config.usual_routing(),
    };
    let pass = out.pass(name).routed(&routing);
    let of = of(&pass)?;
    out.add(format!("{name}.norm"), &model.run(&of, true, &pass)?)?;
    if let Some(relative) = model.pairs(of.modality, of.x.dim(1)?)? {
        let kind = name.split('_').next().unwrap_or(name);
        out.add(format!("index.{kind}"), &relative.rows()?)?;
    }
    Ok(())
}

fn image(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let images = given.images("image")?;
    let of = |_: &Pass<'_>| model.image_alone(&images, None);
    alone(model, given, ("image", Some(PASS_NOISE[0])), of, out)
}

fn text(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let texts = texts(given)?;
    let of = |pass: &Pass<'_>| model.text_alone(&texts, pass);
    alone(model, given, ("text", Some(PASS_NOISE[1])), of, out)
}

fn text_long(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("text_long_ids", "text_long_atts")?;
    let of = |pass: &Pass<'_>| model.text_alone(&texts, pass);
    alone(model, given, ("text_long", Some(PASS_NOISE[2])), of, out)
}

fn vl(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let of = |pass: &Pass<'_>| model.together(&texts, &images, None, pass);
    alone(model, given, ("vl", Some(PASS_NOISE[3])), of, out)
}

fn inplace_image(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (images, masked) = (given.images("image")?, given.tensor("image_mask")?);
    let of = |_: &Pass<'_>| model.image_alone(&images, Some(masked));
    alone(model, given, ("inplace_image", None), of, out)
}

fn inplace_vl(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let masked = Some(given.tensor("image_mask")?);
    let of = |pass: &Pass<'_>| model.together(&texts, &images, masked, pass);
    alone(model, given, ("inplace_vl", None), of, out)
}

/// The published program's way of leaving patches out, which it hardly trained with: kept patches have no positions, and
/// routers take the first tokens for image tokens as if all patches were there.
fn drop_image(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (images, kept) = (given.images("image")?, given.tensor("ids_keep")?);
    let of = |_: &Pass<'_>| {
        Ok(Embedded {
            x: model.embed_kept(&images.pixels, kept)?,
            modality: Modality::Image,
            mask: None,
        })
    };
    alone(model, given, ("drop_image", None), of, out)
}

fn drop_vl(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let kept = given.tensor("ids_keep")?;
    let of = |pass: &Pass<'_>| {
        let image = model.embed_kept(&images.pixels, kept)?;
        let n_all = model.config.n_patches() + 1;
        model.joined(image, &texts, Modality::Both(n_all), pass)
    };
    alone(model, given, ("drop_vl", None), of, out)
}

/// Features as the published program evaluates, without the last norm, and as it trains, with it; and the matching head.
fn retrieval(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let contrast = model.heads.contrast()?;
    for (nth, (name, is_normed)) in [("eval", false), ("train", true)].into_iter().enumerate() {
        let routing = [2 * nth, 2 * nth + 1].map(|at| routing(model, given, TASK_NOISE[at]));
        let [of_image, of_text] = routing;
        let (of_image, of_text) = (of_image?, of_text?);
        let pass = Pass::new().routed(&of_image);
        let image = model.class(&model.image_alone(&images, None)?, is_normed, &pass)?;
        let image = contrast.image(&image)?;
        let pass = Pass::new().routed(&of_text);
        let text = model.class(&model.text_alone(&texts, &pass)?, is_normed, &pass)?;
        let text = contrast.text(&text)?;
        out.add(format!("retrieval.{name}_image"), &image)?;
        out.add(format!("retrieval.{name}_text"), &text)?;
        out.add(format!("retrieval.{name}_sims"), &image.matmul(&text.t()?)?)?;
    }
    let state = state(model, given, (&texts, &images), 4)?;
    out.add("retrieval.itm_state", &state)?;
    let logits = model.score(Head::Matching, &state)?;
    Ok(out.add("retrieval.itm_logits", &logits)?)
}

/// The state of the first text token in pass `nth` of a task, `(b, d)`.
fn state(
    model: &Eve,
    given: &Given,
    (texts, images): (&Texts, &Images),
    nth: usize,
) -> Result<Tensor> {
    let routing = routing(model, given, TASK_NOISE[nth])?;
    let pass = Pass::new().routed(&routing);
    let (states, _) = model.fused(&Pair::new(texts, images), &pass)?;
    let at = model.config.n_patches() + 1;
    Ok(states.narrow(1, at, 1)?.squeeze(1)?)
}

fn vqa(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let state = state(model, given, (&texts, &images), 0)?;
    Ok(out.add("vqa.logits", &model.score(Head::Vqa, &state)?)?)
}

fn nlvr2(model: &Eve, given: &Given, out: &Recorder) -> Result<()> {
    let texts = texts(given)?;
    let both = [given.images("image")?, given.images("image2")?];
    match model.heads.judge()? {
        Judge::States(classifier) => {
            let states = [0, 1].map(|nth: usize| state(model, given, (&texts, &both[nth]), nth));
            let [left, right] = states;
            let logits = classifier.forward(&Tensor::cat(&[&left?, &right?], 1)?)?;
            Ok(out.add("nlvr2.logits", &logits)?)
        }
        Judge::Tokens(head) => {
            let read = |nth: usize| {
                let routing = routing(model, given, TASK_NOISE[nth])?;
                let pass = Pass::new().routed(&routing);
                model.fused(&Pair::new(&texts, &both[nth]).nth(nth), &pass)
            };
            let [(left, of), (right, _)] = [read(0)?, read(1)?];
            let Some(mask) = &of.mask else {
                return Err(model.cannot("judge two images without padding of the text"));
            };
            let pass = out.pass("nlvr2_biattn");
            out.add("nlvr2_biattn.left", &left)?;
            out.add("nlvr2_biattn.right", &right)?;
            let logits = head.forward([&left, &right], mask, &pass)?;
            Ok(out.add("nlvr2_biattn.logits", &logits)?)
        }
    }
}
