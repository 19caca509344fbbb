//! NLVR2: is a sentence true of two images?

use std::collections::HashMap;
use std::sync::Arc;

use merge::layouts;

use super::grams::{Batch, texts_in_batches};
use super::runner::by_length;
use super::spec::{TaskSpec, number};
use super::vqa::largest;
use super::{Outcome, Predictions, Runner, Task};
use crate::batch::Pair;
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::left_out::Omission;
use crate::datasets::nlvr2::Nlvr2Set;
use crate::models::{Head, Model};
use crate::nn::Pass;
use crate::sample::{Contribution, Ratio, Unit};
use crate::text::{Encoded, TextKind};
use crate::{Error, Result, Sample};

/// The experts that a merge takes for it, and its names there.
const EXPERTS: layouts::Task = layouts::Task::Nlvr2;

/// The row of NLVR2.
pub const SPEC: TaskSpec = TaskSpec {
    name: EXPERTS.name(),
    aliases: EXPERTS.aliases(),
    title: "NLVR2",
    about: EXPERTS.about(),
    kind: Kind::Statements,
    reads_texts: true,
    dataset: "nlvr2",
    default_split: "dev",
    headline: "accuracy",
    numbers: &[
        number("accuracy", "Accuracy", Unit::Fraction, true),
        number("consistency", "Consistency", Unit::Fraction, true),
    ],
    prediction_ending: Some("csv"),
    published_experts: Some(EXPERTS),
    options: &[],
    open: Some(|options, folder| {
        let set = Nlvr2Set::open(folder, options.split)?;
        let set = set.first(options.limit.unwrap_or(usize::MAX));
        set.check_pictures()?;
        Ok(Box::new(Nlvr2::new(Arc::new(set))))
    }),
};

/// Statements about pairs of images, true or false.
pub struct Nlvr2 {
    set: Arc<Nlvr2Set>,
}

impl Nlvr2 {
    /// On an opened split.
    #[must_use]
    pub fn new(set: Arc<Nlvr2Set>) -> Self {
        Self { set }
    }

    fn verdicts(&self, runner: &Runner<'_>) -> Result<Vec<bool>> {
        let statements = self.set.statements();
        let encoded = runner.encode(
            TextKind::Statement,
            statements.iter().map(|s| s.sentence.as_str()),
        )?;
        let all = by_length(&encoded, runner.batch_size());
        let batches = runner.own(all.clone());
        // The first images of a batch, then its second ones.
        let images = batches.iter().map(|batch| {
            let sides = [0, 1].into_iter();
            sides
                .flat_map(|side| batch.iter().map(move |&s| (statements[s].pair, side)))
                .collect()
        });
        let set = Arc::clone(&self.set);
        let pixels = runner.pictures(images.collect(), move |&(pair, side)| {
            set.picture(pair, side)
        });
        let model = runner.model().fusion()?;
        let mut own: Vec<u8> = Vec::new();
        for (pixels, batch) in pixels.zip(&batches) {
            let n = batch.len();
            let images = runner.pixels(pixels?, 2 * n)?;
            let images = [images.narrow(0, n)?, images.narrow(n, n)?];
            let texts: Vec<&Encoded> = batch.iter().map(|&s| &encoded[s]).collect();
            let texts = runner.texts(&texts)?;
            let logits = model.judge(&texts, images.each_ref(), [runner.pass(); 2])?;
            let logits = runner.rows(&logits)?;
            for (&statement, logits) in batch.iter().zip(logits.chunks_exact(2)) {
                own.push(u8::from(largest(logits, statement)? == 1));
            }
            runner.advance(n)?;
        }
        let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
        let found = runner.gathered(own, &sizes)?;
        let mut verdicts = vec![false; statements.len()];
        for (&statement, verdict) in all.iter().flatten().zip(found.into_iter().flatten()) {
            verdicts[statement] = verdict == 1;
        }
        Ok(verdicts)
    }

    /// Sentences with the statements that make use of them: the same sentence of the same set,
    /// said of several pairs. `dev-12-0` and `dev-12-1` are two pairs of set `dev-12`.
    fn sentences(&self) -> Vec<Vec<usize>> {
        let mut places: HashMap<(&str, &str), usize> = HashMap::new();
        let mut sentences: Vec<Vec<usize>> = Vec::new();
        for (index, statement) in self.set.statements().iter().enumerate() {
            let id = statement.identifier.as_str();
            let set = id.rsplit_once('-').map_or(id, |(set, _)| set);
            let place = *places.entry((set, &statement.sentence)).or_insert_with(|| {
                sentences.push(Vec::new());
                sentences.len() - 1
            });
            sentences[place].push(index);
        }
        sentences
    }
}

impl Task for Nlvr2 {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn check_predictions(&self) -> Result<()> {
        let mut statements = self.set.statements().iter();
        match statements.find(|statement| statement.official.is_none()) {
            None => Ok(()),
            Some(statement) => Err(Error::NoOfficialNumber {
                pair: statement.identifier.clone(),
            }),
        }
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let statements = self.set.statements();
        runner.model().n_classes(Head::Nlvr2)?;
        runner
            .progress()
            .start_items("statements", statements.len() as u64);
        let verdicts = self.verdicts(runner);
        runner.progress().finish();
        let verdicts = verdicts?;
        let sentences = self.sentences();
        let is_right = |index: usize| Some(statements[index].label? == verdicts[index]);
        let mut sample = Sample::new(sentences.len());
        if statements.iter().all(|statement| statement.label.is_some()) {
            let cases = sentences.iter().enumerate().flat_map(|(unit, of_unit)| {
                of_unit
                    .iter()
                    .map(move |&index| (unit, f64::from(u8::from(is_right(index) == Some(true)))))
            });
            sample.report("accuracy", Ratio::of_cases(cases));
            let consistent = sentences
                .iter()
                .enumerate()
                .map(|(unit, of_unit)| Contribution {
                    unit,
                    numerator: f64::from(u8::from(
                        of_unit.iter().all(|&i| is_right(i) == Some(true)),
                    )),
                    denominator: 1.0,
                });
            let consistent = Ratio {
                contributions: consistent.collect(),
            };
            sample.report("consistency", consistent);
        }
        let said = statements.iter().zip(&verdicts);
        let said = said.map(|(s, &verdict)| Some((s.official.clone()?, verdict)));
        // Without official numbers no file is written: its identifiers might be of other sentences.
        let predictions = match said.collect::<Option<Vec<_>>>() {
            Some(said) => Predictions::Verdicts(said),
            None => Predictions::None,
        };
        let counts = [
            ("pairs", self.set.n_pairs()),
            ("statements", statements.len()),
            ("sentences", sentences.len()),
        ];
        Ok(Outcome {
            sample,
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples: Vec::new(),
            predictions,
        })
    }

    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        texts_in_batches(self.set.statements().len(), size)
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let (Batch::Texts(examples) | Batch::Images { examples, .. }) = batch;
        let statements: Vec<_> = examples
            .iter()
            .map(|&index| &self.set.statements()[index])
            .collect();
        let encoded = runner.encode(
            TextKind::Statement,
            statements.iter().map(|s| s.sentence.as_str()),
        )?;
        let texts = capture.texts(runner, &encoded)?;
        for side in [0, 1] {
            let picture = |s: &&crate::datasets::nlvr2::Statement| self.set.picture(s.pair, side);
            let images = runner.picture_batch(&statements, picture)?;
            let tap = capture.times(1);
            let pair = Pair::new(&texts, &images).nth(side);
            runner.model().fusion()?.fuse(&pair, &Pass::tapped(&tap))?;
        }
        Ok(())
    }
}
