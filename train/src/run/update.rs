//! From gradients to new weights.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::crossing;
use evaluate::models::Grouping;
use evaluate::nn::{Gradient, Gradients, in_pool};

use super::gathered::brought_to_first;
use super::moments::{Moment, Moments};
use super::ownership::Ownership;
use super::{ExpertVariables, KeptState};
use crate::collective::{Collective, said_by_all};
use crate::optim::clip::{clip_factor, square_sum};
use crate::optim::{AdamW, Ema, GroupKind, Lars, OptimSettings, ParamGroups, Rule, Schedule, Step};
use crate::{Error, Result};

/// The optimizer of a run. With several ranks each keeps the moments of its own share of the
/// variables alone and updates that; experts that one rank alone holds are its own.
///
/// Rajbhandari et al. 2020, "ZeRO", <https://arxiv.org/abs/1910.02054>, section 5.1.
pub struct Updater {
    rule: Update,
    schedule: Schedule,
    groups: ParamGroups,
    max_norm: Option<f64>,
    ownership: Ownership,
    experts: ExpertVariables,
    moments: Moments,
    /// Updates in which a variable had no gradient.
    skipped: BTreeMap<String, u64>,
    /// Names of variables that stay between two numbers.
    bounded: &'static [(&'static str, [f64; 2])],
    average: Option<Ema>,
}

/// The update rule of a run.
enum Update {
    AdamW(AdamW),
    Lars(Lars),
}

impl Update {
    fn of(settings: &OptimSettings) -> Self {
        match settings.rule {
            Rule::AdamW => Self::AdamW(settings.adamw()),
            Rule::Lars => Self::Lars(Lars {
                momentum: settings.beta1,
                trust: settings.trust,
                epsilon: settings.epsilon,
            }),
        }
    }
}

fn is_trained(groups: &ParamGroups, name: &str) -> bool {
    let group = groups.group(name);
    group.is_ok_and(|group| group.kind != GroupKind::Frozen)
}

/// Runs work on many variables: on the CPU in the thread pool, which then runs each.
fn near<T: Send>(variables: &BTreeMap<String, Var>, work: impl FnOnce() -> T + Send) -> T {
    let mut devices = variables.values().map(|variable| variable.device());
    match devices.all(Device::is_cpu) {
        true => in_pool(work),
        false => work(),
    }
}

/// The facts about an update that logs show.
#[derive(Clone, Copy, Debug)]
pub struct Updated {
    /// The body's rate.
    pub rate: f64,
    /// The norm of all gradients together.
    pub norm: f64,
}

impl Updater {
    /// For these variables, which every rank holds. They are grouped by the rules of their model's family, each in just one
    /// group.
    ///
    /// # Errors
    /// When a setting is out of range or matches nothing.
    pub fn new(
        settings: &OptimSettings,
        total_steps: u64,
        variables: &BTreeMap<String, Var>,
        family: &Grouping,
        collective: &dyn Collective,
    ) -> Result<Self> {
        let experts = ExpertVariables::default();
        Self::sharing(
            settings,
            total_steps,
            (variables, &experts),
            family,
            collective,
        )
    }

    /// The same where ranks share experts out: `variables` lacks those of other ranks.
    ///
    /// # Errors
    /// As [`Updater::new`].
    pub fn sharing(
        settings: &OptimSettings,
        total_steps: u64,
        (variables, experts): (&BTreeMap<String, Var>, &ExpertVariables),
        family: &Grouping,
        collective: &dyn Collective,
    ) -> Result<Self> {
        settings.check()?;
        // Settings mean the whole model, wherever its variables are.
        let shapes = variables
            .iter()
            .map(|(name, var)| (name.as_str(), var.dims()));
        let others = experts.others().iter();
        let shapes = shapes.chain(others.map(|(name, shape)| (name.as_str(), shape.as_slice())));
        let groups = ParamGroups::of(shapes, family, &settings.groups())?;
        let names = variables.keys().chain(experts.others().keys());
        groups.check(names.map(String::as_str))?;
        let trained = variables
            .iter()
            .filter(|(name, _)| is_trained(&groups, name));
        let trained = trained.map(|(name, variable)| (variable, !experts.has(name)));
        let ownership = Ownership::new(&trained.collect::<Vec<_>>(), collective);
        let average = settings.ema.map(|decay| Ema::new(decay, variables));
        Ok(Self {
            rule: Update::of(settings),
            schedule: settings.schedule(total_steps),
            groups,
            max_norm: settings.max_norm,
            ownership,
            experts: experts.clone(),
            moments: Moments::default(),
            skipped: BTreeMap::new(),
            bounded: family.bounded,
            average: average.transpose()?,
        })
    }

    /// The number of updates that skipped a variable without a gradient, by name, for the variables of all ranks; all
    /// call this together.
    ///
    /// # Errors
    /// When a rank is gone.
    pub fn skipped(&self, collective: &dyn Collective) -> Result<BTreeMap<String, u64>> {
        if !self.experts.are_shared_out() {
            return Ok(self.skipped.clone());
        }
        let all = said_by_all(collective, &self.skipped)?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Brings variables that have bounds between them. The program of EVE does so with its temperature before each
    /// step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bound(&self, variables: &BTreeMap<String, Var>) -> Result<()> {
        for (name, [least, most]) in self.bounded {
            if let Some((_, variable)) = self.trained(variables).find(|(found, _)| found == name) {
                variable.set(&variable.as_detached_tensor().clamp(*least, *most)?)?;
            }
        }
        Ok(())
    }

    /// Variables that are not frozen.
    pub fn trained<'a>(
        &'a self,
        variables: &'a BTreeMap<String, Var>,
    ) -> impl Iterator<Item = (&'a String, &'a Var)> {
        variables
            .iter()
            .filter(|(name, _)| is_trained(&self.groups, name))
    }

    /// Numbers whose moments this rank keeps.
    #[must_use]
    pub fn n_owned(&self) -> u64 {
        self.ownership.n_owned()
    }

    /// The contents of a state file, the same on all ranks, which call this together: names, and how many numbers each has.
    ///
    /// # Errors
    /// When a rank is gone.
    pub fn kept(&self, collective: &dyn Collective) -> Result<Vec<(String, usize)>> {
        let own = self.kept_here();
        if !self.experts.are_shared_out() {
            return Ok(own);
        }
        let all = said_by_all(collective, &own)?.into_iter().flatten();
        // Groups come in the order of their names.
        let all: BTreeMap<String, usize> = all.collect();
        Ok(all.into_iter().collect())
    }

    /// The same of the variables that this rank holds.
    fn kept_here(&self) -> Vec<(String, usize)> {
        let averages = self.average.iter().flat_map(|average| average.averages());
        let averages =
            averages.map(|(name, tensor)| (format!("average/{name}"), tensor.elem_count()));
        let moments = |group: &'static str| {
            let lengths = self.moments.lengths();
            lengths.map(move |(name, n)| (format!("{group}/{name}"), n))
        };
        averages
            .chain(moments("first"))
            .chain(moments("second"))
            .collect()
    }

    /// The numbers of an entry of [`kept`](Self::kept), put together from all ranks, each of which
    /// asks for the same one. Those of an expert that one rank alone holds reach the first rank only.
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub fn whole(&self, key: &str, collective: &dyn Collective) -> Result<Cow<'_, [f32]>> {
        let (group, name) = key.split_once('/').unwrap_or(("", key));
        let lost = || Error::OtherMoments { name: name.into() };
        let is_elsewhere = self.experts.others().contains_key(name);
        let own = match group {
            _ if is_elsewhere => Cow::Owned(Vec::new()),
            "average" => {
                let average = self.average.as_ref().and_then(|a| a.averages().get(name));
                let flat = average.ok_or_else(lost)?.to_device(&Device::Cpu)?;
                Cow::Owned(flat.flatten_all()?.to_vec1()?)
            }
            "first" => self.moments.get(name).ok_or_else(lost)?.first.values()?,
            _ => self.moments.get(name).ok_or_else(lost)?.second.values()?,
        };
        if self.experts.has(name) {
            return Ok(Cow::Owned(brought_to_first(collective, &own)?));
        }
        if collective.size() == 1 || group == "average" {
            return Ok(own);
        }
        // Stretches follow one another in the order of the ranks.
        let parts = collective.gather(bytemuck::cast_slice(&own))?;
        let whole = parts
            .iter()
            .flat_map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
        Ok(Cow::Owned(whole.collect()))
    }

    /// Goes on with a kept state: of the moments, this rank's share.
    ///
    /// # Errors
    /// [`Error::BadState`] when it is of other variables; when the file or the device fails.
    pub fn resume(
        &mut self,
        kept: &KeptState,
        settings: &OptimSettings,
        variables: &BTreeMap<String, Var>,
    ) -> Result<()> {
        let trained: Vec<(&String, &Var)> = self.trained(variables).collect();
        let lengths: BTreeMap<&str, usize> = kept.entries().collect();
        let mut moments = Moments::default();
        let mut n_known = 0;
        for (index, (name, variable)) in trained.into_iter().enumerate() {
            let keys = ["first", "second"].map(|group| format!("{group}/{name}"));
            let found = keys
                .each_ref()
                .map(|key| lengths.get(key.as_str()).copied());
            match found {
                [None, None] => continue,
                [Some(a), Some(b)] if [a, b] == [variable.elem_count(); 2] => {}
                _ => {
                    return Err(
                        kept.refused(format!("the moments of `{name}` are not of its size"))
                    );
                }
            }
            let own = self.ownership.own(index);
            let [first, second] = keys;
            let own = [kept.read(&first, own.clone())?, kept.read(&second, own)?];
            moments.put(name, variable, own)?;
            n_known += 2;
        }
        let is_elsewhere =
            |name: &str| self.experts.others().contains_key(name) && is_trained(&self.groups, name);
        // Of other ranks' experts their own ranks check the sizes.
        let n_moments = (lengths.keys())
            .filter_map(|key| key.split_once('/'))
            .filter(|(group, name)| *group != "average" && !is_elsewhere(name))
            .count();
        if n_known != n_moments {
            let n = n_moments - n_known;
            return Err(kept.refused(format!("{n} moments are of no variable that is trained")));
        }
        if let Some(decay) = settings.ema {
            let mut averages = BTreeMap::new();
            for (name, variable) in variables {
                let key = format!("average/{name}");
                let n = variable.elem_count();
                if lengths.get(key.as_str()) != Some(&n) {
                    return Err(
                        kept.refused(format!("there is no average of `{name}` of its size"))
                    );
                }
                let values = kept.read(&key, 0..n)?;
                let tensor = Tensor::from_vec(values, variable.dims(), &Device::Cpu)?;
                averages.insert(name.clone(), tensor.to_device(variable.device())?);
            }
            self.average = Some(Ema::resumed(decay, averages));
        }
        self.moments = moments;
        let skipped = kept.state.skipped.clone().into_iter();
        let skipped = skipped.filter(|(name, _)| variables.contains_key(name));
        self.skipped = skipped.collect();
        Ok(())
    }

    /// Averages of the weights in place of the weights, or back again.
    ///
    /// # Errors
    /// When the device fails.
    pub fn swap_averages(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        match &mut self.average {
            Some(average) => average.swap(variables),
            None => Ok(()),
        }
    }

    /// Adds up the gradients of all ranks, of those variables that any of them has reached. Gradients of an expert that
    /// one rank alone holds are sums over the tokens of all ranks already, and stay where they are.
    ///
    /// # Errors
    /// When a rank is gone.
    pub fn exchange(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &mut Gradients,
        collective: &dyn Collective,
    ) -> Result<()> {
        if collective.size() == 1 {
            return Ok(());
        }
        // A variable that no rank has reached stays without a gradient: zeros would let it decay.
        let shared = || {
            let trained = self.trained(variables);
            trained.filter(|(name, _)| !self.experts.has(name))
        };
        let reached = shared().map(|(_, variable)| gradients.get(variable).is_some());
        let mut reached: Vec<f64> = reached
            .map(|reached| f64::from(u8::from(reached)))
            .collect();
        collective.sum_f64(&mut reached)?;
        for ((_, variable), reached) in shared().zip(reached) {
            if reached == 0.0 {
                continue;
            }
            if let Some(values) = gradients.host(variable) {
                collective.sum(values)?;
                continue;
            }
            let own = match gradients.get(variable) {
                Some(Gradient::Device(own)) => own.clone(),
                _ => variable.zeros_like()?,
            };
            let sum = collective.sum_tensor(&own)?;
            gradients.set(variable, sum);
        }
        Ok(())
    }

    /// The norm of all gradients together, each times `factor`; all ranks call this together, after
    /// [`exchange`](Self::exchange).
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub fn norm(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        factor: f64,
        collective: &dyn Collective,
    ) -> Result<f64> {
        let sum_of = |of_one_rank: bool| {
            let trained = self.trained(variables);
            let trained = trained.filter(|(name, _)| self.experts.has(name) == of_one_rank);
            let trained: Vec<&Var> = trained.map(|(_, var)| var).collect();
            let (mut sum, on_device) = near(variables, || -> Result<(f64, Vec<Tensor>)> {
                let (mut sum, mut on_device) = (0.0, Vec::new());
                for variable in trained {
                    match gradients.get(variable) {
                        None => {}
                        Some(Gradient::Host(values)) => sum += square_sum(values),
                        Some(Gradient::Device(tensor)) => {
                            on_device.push(tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?);
                        }
                    }
                }
                Ok((sum, on_device))
            })?;
            // One copy for all of them: a card waits at each.
            if !on_device.is_empty() {
                let values: Vec<f32> = crossing::to_memory(&Tensor::stack(&on_device, 0)?)?;
                sum += values.into_iter().map(f64::from).sum::<f64>();
            }
            Ok::<_, Error>(sum)
        };
        let mut sum = sum_of(false)?;
        if self.experts.are_shared_out() {
            let mut of_experts = [sum_of(true)?];
            collective.sum_f64(&mut of_experts)?;
            sum += of_experts[0];
        }
        Ok(sum.sqrt() * factor)
    }

    /// The first variable of any rank whose gradient is not finite; all ranks call this together.
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub fn not_finite(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        collective: &dyn Collective,
    ) -> Result<Option<String>> {
        let here = self.not_finite_here(variables, gradients)?;
        if !self.experts.are_shared_out() {
            return Ok(here);
        }
        let all = said_by_all(collective, &here)?;
        Ok(all.into_iter().flatten().min())
    }

    fn not_finite_here(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
    ) -> Result<Option<String>> {
        for (name, variable) in self.trained(variables) {
            let is_finite = match gradients.get(variable) {
                None => true,
                Some(Gradient::Host(values)) => values.iter().all(|value| value.is_finite()),
                Some(Gradient::Device(tensor)) => {
                    let sum = tensor.to_dtype(DType::F32)?.abs()?.sum_all()?;
                    crossing::number::<f32>(&sum)?.is_finite()
                }
            };
            if !is_finite {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Makes update number `index`, counted from 0, with gradients times `factor`, whose norm is
    /// `norm`: every rank that of its own share, which it then gives to all except for experts that it alone holds. A variable
    /// without a gradient is
    /// skipped: it does not decay, and its own number of steps, by which moments are corrected, stays.
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub fn update(
        &mut self,
        index: u64,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        (factor, norm): (f64, f64),
        collective: &dyn Collective,
    ) -> Result<Updated> {
        let rate = self.schedule.rate(index);
        let clipped = self.max_norm.map_or(1.0, |max| clip_factor(norm, max));
        let groups = &self.groups;
        let mut trained = Vec::new();
        for (name, variable) in variables {
            let group = groups.group(name)?;
            if group.kind != GroupKind::Frozen {
                trained.push((name, variable, group));
            }
        }
        let (rule, ownership, moments) = (&self.rule, &self.ownership, &mut self.moments);
        let skipped = &mut self.skipped;
        near(variables, || {
            for (at, (name, variable, group)) in trained.iter().enumerate() {
                let Some(gradient) = gradients.get(variable) else {
                    *skipped.entry((*name).clone()).or_default() += 1;
                    continue;
                };
                let own_steps = index.saturating_sub(skipped.get(*name).copied().unwrap_or(0));
                let step = Step {
                    index: own_steps,
                    rate: rate * group.rate_factor,
                    decay: group.decay,
                    gradient_scale: factor * clipped,
                };
                let own = ownership.own(at);
                let pair = moments.of(name, variable, &own)?;
                if own.is_empty() {
                    continue;
                }
                match (gradient, &mut pair.first, &mut pair.second) {
                    (Gradient::Host(g), Moment::Host(m), Moment::Host(v)) => match rule {
                        Update::AdamW(rule) => {
                            rule.update_in_place(step, variable, g, own, m, v)?;
                        }
                        Update::Lars(rule) => {
                            rule.update_in_place(step, variable, g, own, m)?;
                        }
                    },
                    (Gradient::Device(g), Moment::Device(m), Moment::Device(v)) => {
                        let g = g.to_dtype(DType::F32)?;
                        match rule {
                            Update::AdamW(rule) => {
                                (*m, *v) = rule.update_by_operations(step, variable, &g, m, v)?;
                            }
                            Update::Lars(rule) => {
                                *m = rule.update_by_operations(step, variable, &g, m)?;
                            }
                        }
                    }
                    _ => {
                        let name = (*name).clone();
                        return Err(Error::OtherMoments { name });
                    }
                }
            }
            Ok(())
        })?;
        let trained: Vec<&Var> = trained.iter().map(|(_, variable, _)| *variable).collect();
        self.ownership.share(&trained, collective)?;
        if let Some(average) = &mut self.average {
            average.update(variables)?;
        }
        Ok(Updated { rate, norm })
    }
}
