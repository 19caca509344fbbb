//! Image-text matching with random negatives.

use candle_core::Tensor;
use evaluate::batch::{Images, Pair};
use evaluate::crossing;
use evaluate::models::{Head, Streams};
use evaluate::nn::{cross_entropy, n_right};

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Whether text and image belong together: half of the texts keep their image, the others get another one that
/// is drawn at random. The published program may draw the own one, too.
///
/// Kim et al. 2021, "ViLT", <https://arxiv.org/abs/2102.03334>, section 3.2.
#[derive(Clone, Copy, Debug)]
pub struct RandomMatching;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "random_itm",
    needs: Needs {
        image: true,
        text: true,
        other_image: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Matching],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(RandomMatching)),
};

impl Objective for RandomMatching {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn ways_of_reading(&self) -> &'static [Streams] {
        &[Streams::Bidirectional]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let n = step.batch.n;
        let labels = match &step.batch.classes {
            Some(given) => given.clone(),
            None => {
                let mut labels: Vec<u32> = (0..n).map(|at| u32::from(at < n / 2)).collect();
                let mut draws = step.draws("random_itm", step.batch.first);
                draws.shuffle(&mut labels);
                labels
            }
        };
        let [own, other] = [step.image()?, step.other_image()?].map(|images| &images.pixels);
        let rows = labels.iter().enumerate();
        let rows: Vec<u32> = rows
            .map(|(at, &label)| (if label == 1 { at } else { n + at }) as u32)
            .collect();
        let both = Images::new(Tensor::cat(&[own, other], 0)?);
        let n_rows = rows.len();
        let images = both.select(&crossing::to_device(rows, n_rows, own.device())?)?;
        let ways = step.ways("random_itm");
        let pass = step.pass(&ways);
        let pair = Pair::new(step.text()?, &images);
        let matched = step.model.fusion()?.matched(&pair, &pass)?;
        let logits = step.model.score(Head::Matching, &matched)?;
        let n_right = n_right(&logits, &labels)?;
        let measures = vec![("itm_accuracy", n_right, n as f64)];
        Loss::mean(cross_entropy(&logits, &labels)?, measures)
    }
}
