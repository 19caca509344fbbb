//! Statements about two images.

use evaluate::models::Head;
use evaluate::nn::{cross_entropy, n_right};

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;
use crate::batch::Batch;

/// True or false: the text with each image in turn, both results together to one classifier.
#[derive(Clone, Copy, Debug)]
pub struct Nlvr2;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "nlvr2",
    needs: Needs {
        image: true,
        second_image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Nlvr2],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(Nlvr2)),
};

impl Objective for Nlvr2 {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn n_passes(&self, _: &Batch) -> usize {
        2
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let text = step.text()?;
        let ways = ["nlvr2.first", "nlvr2.second"].map(|name| step.ways(name));
        let images = [step.image()?, step.second_image()?];
        let passes = [step.pass(&ways[0]), step.pass(&ways[1])];
        let logits = step.model.fusion()?.judge(text, images, passes)?;
        let classes = step.classes()?;
        let n_right = n_right(&logits, classes)?;
        let measures = vec![("nlvr2_accuracy", n_right, step.batch.n as f64)];
        Loss::mean(cross_entropy(&logits, classes)?, measures)
    }
}
