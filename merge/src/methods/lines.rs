use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use half::bf16;
use ndarray::ArrayD;

use crate::methods::parameters::ParameterSpec;
use crate::methods::{
    AnyChunk, Base, Chunk, ElementKernel, GroupData, GroupShape, Groups, MergeMethod, Needs,
    Operation, Overview, Passes, Real, StepRounding, Survey, Value, Values, WholeKernel,
};
use crate::recipe::{Parameter, Parameters};
use crate::{Error, Result};

/// ## What it does
/// Scales the change of another method by depth: small changes for early blocks, which all tasks
/// share, larger ones for late blocks (LiNeS). With `τ` the change by `method`, block l of L gets `W = b + (α + β l / (L
/// − 1)) τ`, and tensors outside the blocks `b + α τ`. With `alpha: auto`, `α = |Σ Dᵢ|₁ / (T |τ|₁)` for T models,
/// over all merged tensors, so that a method that adds more gets less. That takes a merge to measure and another to
/// write.
///
/// All other parameters are those of `method`, which is any method that needs a base. L counts the blocks of the
/// merged model by their names; towers with blocks of their own are counted apart. A model of one block gets `α + β`
/// there.
/// ## Why
/// Early blocks serve all tasks, and a change there harms all of them.
/// ## Cost
/// The cost of `method`; with `alpha: auto` twice, because the merge is measured first.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `method` | required | a method that needs a base | the method behind `τ`, such as `task_arithmetic` or `ties` |
/// | `alpha` | `auto` | `auto` or a number | the factor of the first block |
/// | `beta` | required | a number | the addition for the last block; the paper tunes it up to 1, and takes `1 − alpha` for a single model |
/// ## References
/// Wang et al. 2025, "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
/// <https://arxiv.org/abs/2410.17146>.
/// # Errors
/// [`Error::MethodNeeds`] without `method` or `beta`, or for a method without a base.
pub struct Lines {
    inner: Box<dyn MergeMethod>,
    schedule: Arc<Schedule>,
}

/// The parameters that `lines` reads itself.
const OWN: &[&str] = &["method", "alpha", "beta"];

impl Lines {
    /// Reads `method`, `alpha` and `beta`; the rest are the method's.
    ///
    /// # Errors
    /// When one is missing or no such value, and as the method.
    pub fn from_parameters(parameters: &Parameters, as_published: bool) -> Result<Self> {
        let needs = |what| Error::MethodNeeds {
            method: "lines",
            what,
        };
        let method = parameters.text("method")?;
        let mut others = parameters.clone();
        others.0.retain(|name, _| !OWN.contains(&name.as_str()));
        // Without a recipe there is nothing to schedule; descriptions of the method ask for that.
        let method = match (method, parameters.is_empty()) {
            (Some("lines"), _) => return Err(needs("another `method` than itself")),
            (Some(method), _) => method,
            (None, true) => "task_arithmetic",
            (None, false) => return Err(needs("the parameter `method`, what it schedules")),
        };
        let inner = super::by_name(method, &others, as_published)?;
        if inner.needs().base != Base::Required || inner.is_for_experts() {
            return Err(needs("a `method` that adds something to a base"));
        }
        let alpha = match parameters.get("alpha") {
            None => None,
            Some((Parameter::Text(text), _)) if text == "auto" => None,
            Some(_) => Some(parameters.number("alpha", 0.0, "`auto` or a number", |_| true)?),
        };
        if parameters.get("beta").is_none() && !parameters.is_empty() {
            return Err(needs(
                "the parameter `beta`, what the last block gets beyond the first",
            ));
        }
        let beta = parameters.number("beta", 0.0, "a number", |_| true)?;
        Ok(Self {
            inner,
            schedule: Arc::new(Schedule {
                alpha,
                beta,
                groups: Mutex::default(),
                measured: OnceLock::new(),
            }),
        })
    }
}

impl MergeMethod for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        self.inner.parameters()
    }

    fn own_parameters(&self) -> &'static [&'static str] {
        OWN
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn needs_ranks(&self) -> bool {
        self.inner.needs_ranks()
    }

    fn needs_masks(&self) -> bool {
        self.inner.needs_masks()
    }

    fn n_drawn(&self, values: &Values) -> usize {
        self.inner.n_drawn(values)
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let inner = match self.inner.operation(group)? {
            Operation::Elementwise(kernel) => Inner::Element(kernel),
            Operation::Survey(survey) => Inner::Survey(survey),
            Operation::Whole(kernel) => Inner::Whole(kernel),
            others => return Ok(others),
        };
        let part = Arc::new(Part {
            inner,
            depth: group.depth,
            schedule: Arc::clone(&self.schedule),
        });
        self.schedule
            .lock()
            .insert(group.slot.key.clone(), Arc::clone(&part));
        Ok(match &part.inner {
            Inner::Whole(_) => Operation::Whole(Arc::new(Handle(part))),
            _ => Operation::Survey(Arc::new(Handle(part))),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("by depth: {}", self.inner.describe(group))
    }
}

/// The method that makes a tensor before it is scaled.
enum Inner {
    Element(Arc<dyn ElementKernel>),
    Survey(Arc<dyn Survey>),
    Whole(Arc<dyn WholeKernel>),
}

impl Inner {
    fn overview(&self) -> Option<Arc<dyn Overview>> {
        match self {
            Self::Element(_) => None,
            Self::Survey(survey) => survey.overview(),
            Self::Whole(kernel) => kernel.overview(),
        }
    }

    /// The kernel of a tensor that is made element by element.
    fn kernel(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        match self {
            Self::Element(kernel) => Ok(Arc::clone(kernel)),
            Self::Survey(survey) => survey.survey(data),
            Self::Whole(_) => Err(NOT_BY_ELEMENT),
        }
    }
}

/// Tensors are asked for in the way that their operation was made.
const NOT_BY_ELEMENT: Error = Error::MethodNeeds {
    method: "lines",
    what: "whole arrays of this tensor",
};

/// Factors by depth.
struct Schedule {
    /// `None` for `auto`.
    alpha: Option<f64>,
    beta: f64,
    groups: Mutex<BTreeMap<String, Arc<Part>>>,
    /// α.
    measured: OnceLock<f64>,
}

impl Schedule {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Part>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The factor on the change of a tensor.
    fn factor(&self, depth: Option<f64>) -> f64 {
        let alpha = self.measured.get().copied().unwrap_or_default();
        alpha + self.beta * depth.unwrap_or(0.0)
    }

    /// `|Σ Dᵢ|₁ / (T |τ|₁)`; 0 where nothing is added.
    fn automatic(&self, groups: &dyn Groups) -> Result<f64> {
        let parts = self.lock().clone();
        let mut totals = Sizes::default();
        groups.each(&mut |name, data| {
            let Some(part) = parts.get(name) else {
                return Ok(());
            };
            if matches!(part.inner, Inner::Whole(_)) {
                return Ok(());
            }
            let kernel = part.inner.kernel(data)?;
            let all: Mutex<BTreeMap<usize, Result<Sizes>>> = Mutex::default();
            data.visit(0..data.n_chunks(), 1, &|index, chunk| {
                let sizes = Sizes::of_chunk(kernel.as_ref(), chunk);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(index, sizes);
            })?;
            // In order, so that the sum does not depend on threads.
            let all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
            all.into_values()
                .try_for_each(|sizes| sizes.map(|sizes| totals.add(&sizes)))
        })?;
        groups.each_whole(&mut |name, n_models, data| {
            let Some(Inner::Whole(kernel)) = parts.get(name).map(|part| &part.inner) else {
                return Ok(());
            };
            let base = data.base()?;
            let mut sum: ArrayD<f64> = ArrayD::zeros(base.raw_dim());
            for index in 0..n_models {
                sum += &data.member(index)?;
                sum -= &base;
            }
            let change = kernel.merge(data)? - &base;
            let size = |array: &ArrayD<f64>| array.iter().map(|value| value.abs()).sum();
            totals.add(&Sizes {
                sum: size(&sum),
                change: size(&change),
                n_models,
            });
            Ok(())
        })?;
        Ok(match totals.change > 0.0 {
            true => totals.sum / (totals.n_models.max(1) as f64 * totals.change),
            false => 0.0,
        })
    }
}

impl Overview for Schedule {
    fn look(&self, groups: &dyn Groups) -> Result<()> {
        if self.measured.get().is_some() {
            return Ok(());
        }
        let parts = self.lock().clone();
        let mut seen: Vec<Arc<dyn Overview>> = Vec::new();
        for overview in parts.values().filter_map(|part| part.inner.overview()) {
            if !seen.iter().any(|known| super::is_same(known, &overview)) {
                overview.look(&Those {
                    groups,
                    parts: &parts,
                    overview: &overview,
                })?;
                seen.push(overview);
            }
        }
        let alpha = match self.alpha {
            Some(alpha) => alpha,
            None => self.automatic(groups)?,
        };
        self.measured.get_or_init(|| alpha);
        Ok(())
    }
}

/// Those groups that share the method's own overview.
struct Those<'a> {
    groups: &'a dyn Groups,
    parts: &'a BTreeMap<String, Arc<Part>>,
    overview: &'a Arc<dyn Overview>,
}

impl Those<'_> {
    fn has(&self, name: &str) -> bool {
        let overview = self.parts.get(name).and_then(|part| part.inner.overview());
        overview.is_some_and(|own| super::is_same(&own, self.overview))
    }
}

impl Groups for Those<'_> {
    fn sizes(&self) -> Vec<(String, u64)> {
        let mut sizes = self.groups.sizes();
        sizes.retain(|(name, _)| self.has(name));
        sizes
    }

    fn each(&self, see: &mut dyn FnMut(&str, &dyn Passes) -> Result<()>) -> Result<()> {
        self.groups.each(&mut |name, data| match self.has(name) {
            true => see(name, data),
            false => Ok(()),
        })
    }

    fn each_whole(
        &self,
        see: &mut dyn FnMut(&str, usize, &dyn GroupData) -> Result<()>,
    ) -> Result<()> {
        self.groups
            .each_whole(&mut |name, n, data| match self.has(name) {
                true => see(name, n, data),
                false => Ok(()),
            })
    }
}

/// Sums of magnitudes: of the summed task vectors, and of the change.
#[derive(Default)]
struct Sizes {
    sum: f64,
    change: f64,
    n_models: usize,
}

impl Sizes {
    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.change += other.change;
        self.n_models = other.n_models;
    }

    fn of_chunk(kernel: &dyn ElementKernel, chunk: &AnyChunk<'_>) -> Result<Self> {
        let step = StepRounding::None;
        match chunk {
            AnyChunk::Bf16(chunk) => Self::of(chunk, |out| kernel.combine_bf16(chunk, step, out)),
            AnyChunk::F32(chunk) => Self::of(chunk, |out| kernel.combine_f32(chunk, step, out)),
            AnyChunk::F64(chunk) => Self::of(chunk, |out| kernel.combine_f64(chunk, step, out)),
        }
    }

    fn of<V: Value>(
        chunk: &Chunk<'_, V>,
        combine: impl FnOnce(&mut [V::Real]) -> Result<()>,
    ) -> Result<Self> {
        let base = chunk.base.unwrap_or_default();
        let mut merged = vec![V::Real::ZERO; base.len()];
        combine(&mut merged)?;
        let mut sizes = Self {
            n_models: chunk.members.len(),
            ..Self::default()
        };
        for (index, (base, merged)) in base.iter().zip(merged).enumerate() {
            let base = base.real().to_f64();
            let deltas = chunk.members.iter();
            let sum: f64 = deltas
                .map(|member| member[index].real().to_f64() - base)
                .sum();
            sizes.sum += sum.abs();
            sizes.change += (merged.to_f64() - base).abs();
        }
        Ok(sizes)
    }
}

/// One tensor's part.
struct Part {
    inner: Inner,
    depth: Option<f64>,
    schedule: Arc<Schedule>,
}

struct Handle(Arc<Part>);

impl Handle {
    fn schedule(&self) -> Option<Arc<dyn Overview>> {
        Some(Arc::clone(&self.0.schedule) as Arc<dyn Overview>)
    }
}

impl Survey for Handle {
    fn overview(&self) -> Option<Arc<dyn Overview>> {
        self.schedule()
    }

    fn is_double(&self) -> bool {
        true
    }

    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        Ok(Arc::new(Scaled {
            kernel: self.0.inner.kernel(data)?,
            factor: self.0.schedule.factor(self.0.depth),
        }))
    }

    fn unit(&self) -> usize {
        match &self.0.inner {
            Inner::Element(kernel) => kernel.unit(),
            Inner::Survey(survey) => survey.unit(),
            Inner::Whole(_) => 1,
        }
    }

    fn kept_bytes(&self, n_elements: usize) -> u64 {
        match &self.0.inner {
            Inner::Survey(survey) => survey.kept_bytes(n_elements),
            _ => 0,
        }
    }
}

impl WholeKernel for Handle {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let Inner::Whole(kernel) = &self.0.inner else {
            return Err(NOT_BY_ELEMENT);
        };
        let factor = self.0.schedule.factor(self.0.depth);
        let base = group.base()?;
        let change = kernel.merge(group)? - &base;
        Ok(base + change * factor)
    }

    fn overview(&self) -> Option<Arc<dyn Overview>> {
        self.schedule()
    }

    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64 {
        let own = 16 * shape.iter().product::<usize>() as u64;
        match &self.0.inner {
            Inner::Whole(kernel) => own + kernel.peak_bytes(shape, n_members),
            _ => own,
        }
    }
}

/// `b + factor · (merged − b)`.
struct Scaled {
    kernel: Arc<dyn ElementKernel>,
    factor: f64,
}

impl Scaled {
    fn scale<V: Value>(&self, base: Option<&[V]>, out: &mut [V::Real]) {
        for (out, base) in out.iter_mut().zip(base.unwrap_or_default()) {
            let base = base.real().to_f64();
            *out = V::Real::from_f64(base + self.factor * (out.to_f64() - base));
        }
    }
}

impl ElementKernel for Scaled {
    fn unit(&self) -> usize {
        self.kernel.unit()
    }

    fn masks(&self) -> Option<&dyn crate::methods::Masks> {
        None
    }

    fn combine_f32(
        &self,
        chunk: &Chunk<'_, f32>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.kernel.combine_f32(chunk, step, out)?;
        self.scale(chunk.base, out);
        Ok(())
    }

    fn combine_bf16(
        &self,
        chunk: &Chunk<'_, bf16>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.kernel.combine_bf16(chunk, step, out)?;
        self.scale(chunk.base, out);
        Ok(())
    }

    fn combine_f64(
        &self,
        chunk: &Chunk<'_, f64>,
        step: StepRounding,
        out: &mut [f64],
    ) -> Result<()> {
        self.kernel.combine_f64(chunk, step, out)?;
        self.scale(chunk.base, out);
        Ok(())
    }
}
