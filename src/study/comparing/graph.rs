//! From a recipe to the steps of a comparison.
//!
//! ```text
//! data → short runs of all ways in turn → how many steps take as long ┐
//!      → pre-training of each way for each number of steps ───────────┴→ fine-tuning → measuring
//! ```

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use train::recipe::Span;

use super::recipe::{CompareRecipe, JudgedTask, Way};
use crate::output::UsageError;
use crate::study::pace::{Clock, Quota};
use crate::study::recipe::checked;
use crate::study::results::Findings;
use crate::study::step::{Draft, Kind, Place, Step, Word};
use crate::study::step_plan::{On, StepPlan};
use crate::study::{Runner, Store, Study};

/// The measure by which a way has its number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equal {
    /// That of the first way.
    Steps,
    /// As many as take as long as those of the first way.
    Seconds,
}

/// A way after some pre-training.
#[derive(Clone, Debug)]
pub struct Point {
    /// The way, by its place in the recipe.
    pub way: usize,
    /// The measure behind its steps.
    pub equal: Equal,
    /// Steps of the first way.
    pub steps: u64,
    /// The folder of its run; none without pre-training.
    pub run: Option<Place>,
    /// Its weights; none without pre-training.
    weights: Option<Place>,
}

/// A task with the step that measures all points on it, in their order.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The task, by its place in the recipe.
    pub task: usize,
    /// The names of the points in the report.
    pub names: Vec<String>,
    /// The report.
    pub report: Place,
}

/// A study of ways to pre-train, planned.
#[derive(Debug)]
pub struct Comparison {
    /// The recipe.
    pub recipe: CompareRecipe,
    /// Every step stands behind those that it needs.
    steps: Vec<Step>,
    /// The measured models. The first is the first way after its last number of steps; the others are compared with it.
    pub points: Vec<Point>,
    /// Measurements, by task.
    pub judged: Vec<Judged>,
}

impl Comparison {
    /// Reads a recipe, with settings changed, and plans the study; every training recipe in it is checked.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        let recipe = CompareRecipe::open(path, settings)?;
        let mut builder = Builder {
            recipe: &recipe,
            plan: StepPlan::new(&recipe.data, &recipe.model),
        };
        let points = builder.points()?;
        let mut judged = Vec::new();
        for (index, task) in recipe.tasks.iter().enumerate() {
            judged.push(builder.judge(index, task, &points)?);
        }
        let steps = builder.plan.into_steps();
        Ok(Self {
            recipe,
            steps,
            points,
            judged,
        })
    }
}

impl Study for Comparison {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn check(&self, runner: &Runner) -> Result<()> {
        let on_card = runner.device.as_deref().is_some_and(|name| name != "cpu");
        let what = match self.recipe.pace.clock {
            _ if !self.recipe.at.equal_seconds => return Ok(()),
            Clock::Processor if on_card => {
                "`pace.clock`: seconds of processors say nothing of training on a card; set it to wall"
            }
            Clock::Wall if runner.jobs > 1 => {
                "`pace.clock`: steps that run at once slow each other down; leave out --jobs, or set it to processor"
            }
            _ => return Ok(()),
        };
        Err(UsageError(what.into()).into())
    }

    fn join(&self, store: &Store) -> Result<Findings> {
        super::results::join(self, store)
    }
}

struct Builder<'a> {
    recipe: &'a CompareRecipe,
    plan: StepPlan<'a>,
}

/// The folder of a timed run.
fn timed(way: &Way, round: usize) -> String {
    format!("run-{}-{round}", way.name)
}

impl Builder<'_> {
    /// The first way after its last number of steps, then all others, way by way.
    fn points(&mut self) -> Result<Vec<Point>> {
        let at = &self.recipe.at;
        let mut points = Vec::new();
        for (index, way) in self.recipe.compare.iter().enumerate() {
            for &steps in &at.steps {
                points.push(self.point(index, way, steps, Equal::Steps)?);
            }
        }
        if at.equal_seconds {
            self.time()?;
            for (index, way) in self.recipe.compare.iter().enumerate().skip(1) {
                for &steps in at.steps.iter().filter(|&&steps| steps > 0) {
                    points.push(self.point(index, way, steps, Equal::Seconds)?);
                }
            }
        }
        points[..at.steps.len()].rotate_right(1);
        Ok(points)
    }

    /// In what pre-training of a way differs from that of others.
    fn pretraining(&self, way: &Way, steps: u64) -> Result<Draft> {
        let mut over = json!(way.settings);
        over["model"] = json!(way.model);
        over["length"] = json!(Span::Steps(steps));
        (self.plan).recipe_from_start(&self.recipe.pretrain, &over, &self.recipe.init)
    }

    fn point(&mut self, index: usize, way: &Way, steps: u64, equal: Equal) -> Result<Point> {
        let mut point = Point {
            way: index,
            equal,
            steps,
            run: None,
            weights: None,
        };
        if steps == 0 {
            return Ok(point);
        }
        let mut draft = self.pretraining(way, steps)?;
        if equal == Equal::Seconds {
            let runs = |way: &Way| {
                let rounds = 0..self.recipe.pace.rounds;
                rounds
                    .map(|round| Place::Of("timing".into(), timed(way, round)))
                    .collect()
            };
            let quota = Quota {
                steps,
                of: runs(&self.recipe.compare[0]),
                own: runs(way),
                clock: self.recipe.pace.clock,
            };
            draft.lengths.push(("/length/steps".into(), quota));
        }
        let name = format!("pretrain-{}", self.slug(&point));
        let weights = self.plan.run("pretrain", &name, &way.name, draft)?;
        point.weights = Some(weights);
        point.run = Some(Place::Of(name, "run".into()));
        Ok(point)
    }

    /// Short runs of all ways in turn, so that what else runs on the machine meets all of them.
    fn time(&mut self) -> Result<()> {
        let (pace, ways) = (self.recipe.pace, &self.recipe.compare);
        let mut step = Step::new("timing", Kind::Train, &[]);
        for way in ways {
            let mut draft = self.pretraining(way, pace.steps)?;
            draft.name = format!("{}.yaml", way.name);
            checked(&draft.document, &way.name)?;
            step.drafts.push(draft);
        }
        for round in 0..pace.rounds {
            for way in ways {
                let run = timed(way, round);
                step.outputs
                    .push(format!("{run}/{}", train::log::LINES_FILE));
                step = step.command([
                    "pretrain".into(),
                    Place::Own(format!("{}.yaml", way.name)).into(),
                    "--out".into(),
                    Place::Own(run).into(),
                    "--resume".into(),
                ]);
            }
        }
        self.plan.add(step);
        Ok(())
    }

    /// A name for the steps of a point.
    fn slug(&self, point: &Point) -> String {
        let (name, steps) = (&self.recipe.compare[point.way].name, point.steps);
        match point.equal {
            Equal::Steps => format!("{name}-{steps}"),
            Equal::Seconds => format!("{name}-as-long-as-{steps}"),
        }
    }

    /// A name for the row of a point.
    fn name(&self, point: &Point) -> String {
        let ways = &self.recipe.compare;
        let (name, steps) = (&ways[point.way].name, point.steps);
        match point.equal {
            Equal::Steps => format!("{name} after {steps} steps"),
            Equal::Seconds => format!("{name} as long as {steps} steps of {}", ways[0].name),
        }
    }

    fn judge(&mut self, index: usize, task: &JudgedTask, points: &[Point]) -> Result<Judged> {
        let mut models = Vec::new();
        for point in points {
            models.push((self.name(point), self.finished(task, point)?));
        }
        let mut words = self.plan.on(On {
            task: task.task,
            dataset: task.dataset(),
            split: &task.test,
        });
        let numbers = [("--limit", task.limit), ("--batch-size", task.batch_size)];
        for (flag, number) in numbers {
            if let Some(number) = number {
                words.extend([Word::from(flag), number.to_string().into()]);
            }
        }
        if let Some(candidates) = &task.candidates {
            let from = Place::Outside(candidates.from.clone());
            words.extend(["--candidates".into(), candidates.number.to_string().into()]);
            words.extend(["--candidates-from".into(), from.into()]);
        }
        let name = format!("evaluate-{}", task.slug());
        let of_models = models
            .iter()
            .map(|(name, weights)| (name.as_str(), weights));
        Ok(Judged {
            task: index,
            report: self.plan.evaluate(name, of_models, words),
            names: models.into_iter().map(|(name, _)| name).collect(),
        })
    }

    /// The weights of a point as they are measured: fine-tuned, if the task says how.
    fn finished(&mut self, task: &JudgedTask, point: &Point) -> Result<Place> {
        let way = &self.recipe.compare[point.way];
        let over = json!({ "model": way.model });
        let draft = match (&task.finetune, &point.weights) {
            (None, Some(weights)) => return Ok(weights.clone()),
            (None, None) => {
                let what = "`tasks`: without pre-training (0 of `at.steps`) a model is measured only where it is fine-tuned";
                return Err(UsageError(what.into()).into());
            }
            (Some(finetune), Some(weights)) => self.plan.recipe_from(finetune, &over, weights)?,
            (Some(finetune), None) => {
                (self.plan).recipe_from_start(finetune, &over, &self.recipe.init)?
            }
        };
        let name = format!("finetune-{}-{}", task.slug(), self.slug(point));
        let of = format!("finetune on {}", task.dataset());
        self.plan.run("finetune", &name, &of, draft)
    }
}
