//! A mixture of experts behind a router that looks at tokens and at their modality.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{DType, Result, Tensor};

use super::gate::{Before, CHOICES, Choices, counts, pick, queue};
use crate::Weights;
use crate::crossing;
use crate::nn::{
    Activation, ExchangedExperts, Linear, Mask, Mlp, Pass, Residual, RoutedExperts, Routing, Taken,
    Tape,
};
use crate::ranks::{Collective, ExpertShare};
use crate::weights::Init;

/// Gives an output by name to a tap, and makes it only if there is one.
type Showing<'a> = dyn Fn(&str, &dyn Fn() -> Result<Tensor>) -> Result<()> + 'a;

/// Weights of the two choices are divided by their sum, which is at least this.
const LEAST_SUM: f64 = f32::EPSILON as f64;

/// The modalities of the tokens of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    /// All.
    Image,
    /// None.
    Text,
    /// This number at its beginning.
    Both(usize),
}

/// The inputs of a router beside its weights.
pub struct Ask<'a> {
    /// Its rule of choosing.
    pub routing: &'a Routing,
    /// The modality of the tokens.
    pub modality: Modality,
    /// Padding, which gram matrices leave out.
    pub mask: Option<&'a Mask>,
    /// The number of the block, by which taps and draws know the router.
    pub block: usize,
}

/// A router, its experts, and the vector that it adds to the tokens of each modality.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// Added to image tokens and to text tokens.
    tags: Option<[Tensor; 2]>,
    router: Tensor,
    /// Those that this process holds.
    experts: Vec<Mlp>,
    /// Their numbers.
    held: Range<usize>,
    n_experts: usize,
    name: String,
}

/// The weights of tokens in their experts.
struct Gated {
    scores: Tensor,
    gates: Tensor,
    choices: Choices,
    noise: Option<Vec<f32>>,
    /// Of both choices, `(rows)` each.
    weights: [Tensor; CHOICES],
    capacity: usize,
    balanced: Balanced,
}

/// First choices that a router is balanced by: those of all ranks that share its experts.
struct Balanced {
    /// By expert.
    counts: Vec<u32>,
    rows: usize,
}

impl Mixture {
    /// Loads `{name}.gate.wg`, `{name}.experts.experts.K` and, as far as they are there, `{name}.vision_embed` and
    /// `.text_embed`; of the experts those that [`Weights::expert_share`] says.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        name: &str,
        [width, inner, n_experts]: [usize; 3],
    ) -> crate::Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let tag = |of: &str| weights.get(&part(of), &[width], Init::Normal(0.02));
        let has_tags = weights.has(&part("vision_embed"));
        let held = weights.expert_share().own(n_experts);
        let experts = held.clone().map(|index| {
            let name = part(&format!("experts.experts.{index}"));
            let expert = Mlp::load(weights, &name, width, inner)?;
            Ok(expert.with_activation(Activation::QuickGelu))
        });
        Ok(Self {
            tags: match has_tags {
                true => Some([tag("vision_embed")?, tag("text_embed")?]),
                false => None,
            },
            router: weights.get(&part("gate.wg.weight"), &[n_experts, width], Linear::INIT)?,
            experts: experts.collect::<crate::Result<_>>()?,
            held,
            n_experts,
            name: name.to_owned(),
        })
    }

    /// The number of experts, those of other ranks included.
    #[must_use]
    pub fn n_experts(&self) -> usize {
        self.n_experts
    }

    /// The experts' answers, weighted: `(b, n, d) -> (b, n, d)`. The balance of the router is a side loss of the pass.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor, ask: &Ask<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let (b, n, d) = x.dims3()?;
        let (rows, block) = (b * n, ask.block);
        let ranks = self.ranks(pass)?;
        let show = |name: &str, tensor: &dyn Fn() -> Result<Tensor>| {
            pass.show_output(format_args!("block{block}.moe.{name}"), tensor)
        };
        show("input", &|| Ok(x.clone()))?;
        let tagged = self.tagged(x, ask.modality)?;
        let h = tagged.reshape((rows, d))?; // (s, d)
        show("tagged", &|| Ok(h.clone()))?;
        pass.show(|| format!("{}.gate.wg", self.name), &tagged, ask.mask)?;
        let gated = self.gate(&h, ask, [b, n], pass)?;
        self.show(&gated, &show)?;
        let balance = self.balance(&gated)?;
        show("aux", &|| Ok(balance.clone()))?;
        pass.add_loss(&format!("block{block}.balance"), &balance);
        let kept = match pass.is_tapped() {
            true => ask.mask.map(Mask::kept).transpose()?,
            false => None,
        };
        let watches = pass.is_tapped() && pass.tape().is_none();
        let mut routes = watches.then(|| Routes::new(rows, self.n_experts()));
        let out = match pass.tape() {
            Some(tape) => self.record(tape, &h, &gated, pass)?,
            None => {
                let answered = match pass.is_tapped() {
                    true => None,
                    false => self.routed(&gated)?.run(&h)?,
                };
                let out = match answered {
                    Some(out) => out,
                    None => {
                        let weights = &gated.weights;
                        let (kept, routes) = (kept.as_deref(), routes.as_mut());
                        self.dispatch(&h, &gated.choices, weights, kept, routes, pass)?
                    }
                };
                match ranks {
                    // Each rank has the answers of its own experts to the same tokens.
                    Some(ranks) => ranks.sum_tensor(&out).map_err(|error| lost(&error))?,
                    None => out,
                }
            }
        };
        let out = out.reshape((b, n, d))?;
        if let Some(routes) = routes {
            let routes = Tensor::from_vec(
                routes.table,
                (b, n, routes.width),
                &candle_core::Device::Cpu,
            )?;
            pass.show(|| format!("{}.routing", self.name), &routes, ask.mask)?;
        }
        show("out", &|| Ok(out.clone()))?;
        Ok(out)
    }

    /// The ranks that hold the other experts; none where all are here.
    fn ranks<'p>(&self, pass: &Pass<'p>) -> Result<Option<&'p Rc<dyn Collective>>> {
        let ranks = pass.expert_ranks();
        let share = ranks.map_or(ExpertShare::ALL, |ranks| ExpertShare::of(ranks.as_ref()));
        let (held, expected) = (&self.held, share.own(self.n_experts));
        if *held != expected {
            candle_core::bail!(
                "`{}` holds experts {held:?} of {}, but a pass among its ranks needs {expected:?} here",
                self.name,
                self.n_experts
            );
        }
        if ranks.is_some() && pass.is_tapped() {
            candle_core::bail!(
                "a pass that shows its inputs needs all experts of `{}` in one process",
                self.name
            );
        }
        Ok(ranks)
    }

    /// Tokens with what tells their modality.
    fn tagged(&self, x: &Tensor, modality: Modality) -> Result<Tensor> {
        let Some([of_image, of_text]) = &self.tags else {
            return x.contiguous();
        };
        let n = x.dim(1)?;
        match modality {
            Modality::Image => x.broadcast_add(of_image),
            Modality::Text => x.broadcast_add(of_text),
            Modality::Both(n_image) if n_image >= n => x.broadcast_add(of_image),
            Modality::Both(n_image) => {
                let image = x.narrow(1, 0, n_image)?.broadcast_add(of_image)?;
                let text = x.narrow(1, n_image, n - n_image)?.broadcast_add(of_text)?;
                Tensor::cat(&[&image, &text], 1)
            }
        }
    }

    fn gate(
        &self,
        h: &Tensor,
        ask: &Ask<'_>,
        [b, n]: [usize; 2],
        pass: &Pass<'_>,
    ) -> Result<Gated> {
        let n_experts = self.n_experts();
        let rows = b * n;
        let router = self.router.to_dtype(DType::F32)?;
        let scores = h.to_dtype(DType::F32)?.matmul(&router.t()?)?; // (s, e)
        let gates = softmax(&scores)?;
        let site = pass.name(&format!("block{}", ask.block));
        let noise = ask.routing.noise.of(&site, [b, n, n_experts])?;
        let values = crossing::to_memory::<f32>;
        let (of_gates, of_scores) = (values(&gates)?, values(&scores)?);
        let picks = pick(&of_gates, &of_scores, noise.as_deref(), n_experts);
        // Without a tape all ranks have the same tokens.
        let (before, all_rows) = match (pass.expert_ranks(), pass.tape()) {
            (Some(ranks), Some(_)) => before(ranks.as_ref(), &picks, n_experts)?,
            _ => (Before::none(&picks, n_experts), rows),
        };
        let capacity = ask.routing.capacity.of(all_rows, n_experts, CHOICES);
        let balanced = Balanced {
            counts: before.all_first.clone(),
            rows: all_rows,
        };
        let choices = queue(picks, &before, capacity);
        let device = h.device();
        let raw = |nth: usize| {
            let experts = crossing::to_device(choices.experts[nth].clone(), (rows, 1), device)?;
            let kept = choices.kept[nth]
                .iter()
                .map(|&kept| f32::from(u8::from(kept)));
            let kept = crossing::to_device(kept.collect::<Vec<_>>(), rows, device)?;
            gates.gather(&experts, 1)?.squeeze(1)? * kept
        };
        let [first, second] = [raw(0)?, raw(1)?];
        let sum = (&first + &second)?.maximum(LEAST_SUM)?;
        Ok(Gated {
            weights: [(&first / &sum)?, (&second / &sum)?],
            scores,
            gates,
            choices,
            noise,
            capacity,
            balanced,
        })
    }

    /// `e Σ mean(gate) · mean(first choice)`: 1 where both are even.
    fn balance(&self, gated: &Gated) -> Result<Tensor> {
        let rows = gated.balanced.rows.max(1) as f32;
        let counts = gated.balanced.counts.iter();
        let counts = counts.map(|&count| count as f32 / rows);
        let shares = crossing::to_device(
            counts.collect::<Vec<_>>(),
            self.n_experts(),
            gated.gates.device(),
        )?;
        (gated.gates.mean(0)? * shares)?.sum_all()? * self.n_experts() as f64
    }

    /// Each expert that is here answers the tokens that it takes, as a list of their numbers.
    fn dispatch(
        &self,
        h: &Tensor,
        choices: &Choices,
        weights: &[Tensor; CHOICES],
        kept: Option<&[bool]>,
        mut routes: Option<&mut Routes>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let device = h.device();
        let mut out = h.zeros_like()?;
        for (index, expert) in self.held.clone().zip(&self.experts) {
            let rows = choices.taken_by(index as u32);
            let n: usize = rows.iter().map(Vec::len).sum();
            if n == 0 {
                if let Some(nothing) = nothing_of(expert)? {
                    out = out.broadcast_add(&nothing)?;
                }
                continue;
            }
            let weights = rows
                .iter()
                .zip(weights)
                .filter(|(rows, _)| !rows.is_empty());
            let weights = weights.map(|(rows, weights)| {
                weights.index_select(&crossing::to_device(rows.to_vec(), rows.len(), device)?, 0)
            });
            let weights = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 0)?;
            let rows = rows.concat();
            let mask = kept.map(|kept| mask_of(kept, &rows, device)).transpose()?;
            let numbers = rows;
            let rows = crossing::to_device(numbers.clone(), n, device)?;
            let taken = h.index_select(&rows, 0)?.unsqueeze(0)?; // (1, n, d)
            let nothing = taken.zeros_like()?;
            let answer = expert.forward(&taken, Residual::plain(&nothing), mask.as_ref(), pass)?;
            if let Some(routes) = &mut routes {
                routes.add(index, &numbers, &weights, &answer)?;
            }
            let weights = weights.to_dtype(answer.dtype())?.unsqueeze(1)?;
            let answer = answer.squeeze(0)?.broadcast_mul(&weights)?;
            out = out.index_add(&rows, &answer, 0)?;
        }
        Ok(out)
    }

    /// Experts that are here with the tokens that each takes.
    fn routed(&self, gated: &Gated) -> Result<RoutedExperts> {
        let mut taken = gated.choices.taken(self.n_experts);
        Ok(RoutedExperts {
            experts: self.experts.clone(),
            taken: taken.drain(self.held.clone()).collect(),
            weights: Tensor::stack(&gated.weights, 1)?, // (s, 2)
        })
    }

    /// The same on a tape: on slices where that is possible.
    fn record(&self, tape: &Tape, h: &Tensor, gated: &Gated, pass: &Pass<'_>) -> Result<Tensor> {
        if let Some(ranks) = pass.expert_ranks() {
            let exchanged = ExchangedExperts {
                own: self.experts.clone(),
                taken: gated.choices.taken(self.n_experts),
                weights: Tensor::stack(&gated.weights, 1)?, // (s, 2)
                ranks: Rc::clone(ranks),
            };
            return exchanged.record(tape, h);
        }
        let routed = self.routed(gated)?;
        let weights = routed.weights.clone();
        if routed.is_fusible(tape, h) {
            return routed.record(tape, h);
        }
        let (mixture, choices) = (self.clone(), gated.choices.clone());
        tape.segment(vec![h.clone(), weights], move |inputs| {
            let weight = |nth: usize| inputs[1].narrow(1, nth, 1)?.contiguous()?.squeeze(1);
            let weights = [weight(0)?, weight(1)?];
            mixture.dispatch(&inputs[0], &choices, &weights, None, None, &Pass::new())
        })
    }

    fn show(&self, gated: &Gated, show: &Showing<'_>) -> Result<()> {
        let device = gated.gates.device();
        let numbers = |of: &[u32]| {
            let numbers: Vec<i64> = of.iter().copied().map(i64::from).collect();
            Tensor::new(numbers.as_slice(), device)
        };
        let flags = |of: &[bool]| {
            let flags: Vec<u8> = of.iter().copied().map(u8::from).collect();
            Tensor::new(flags.as_slice(), device)
        };
        let choices = &gated.choices;
        show("logits", &|| Ok(gated.scores.clone()))?;
        show("gates", &|| Ok(gated.gates.clone()))?;
        if let Some(noise) = &gated.noise {
            show("noise", &|| {
                Tensor::from_slice(noise, gated.gates.dims(), device)
            })?;
        }
        for (nth, [chosen, place, kept, weight]) in [
            ["first", "pos1", "keep1", "w1"],
            ["second", "pos2", "keep2", "w2"],
        ]
        .into_iter()
        .enumerate()
        {
            show(chosen, &|| numbers(&choices.experts[nth]))?;
            show(place, &|| numbers(&choices.places[nth]))?;
            show(kept, &|| flags(&choices.kept[nth]))?;
            show(weight, &|| Ok(gated.weights[nth].clone()))?;
        }
        show("counts", &|| numbers(&choices.counts))?;
        show("capacity", &|| Tensor::new(gated.capacity as i64, device))
    }
}

/// Records the routing of tokens, a row for each token: 1, then 1 for each expert that it goes to, then for each of
/// those its weight times the length of its answer. Their products are what [`merge::mixtures::Routing`] reads.
struct Routes {
    n_experts: usize,
    width: usize,
    table: Vec<f32>,
}

impl Routes {
    fn new(rows: usize, n_experts: usize) -> Self {
        let width = 1 + 2 * n_experts;
        let mut table = vec![0.0; rows * width];
        table.iter_mut().step_by(width).for_each(|one| *one = 1.0);
        Self {
            n_experts,
            width,
            table,
        }
    }

    /// An expert's answers `(1, n, d)` to the tokens `rows`, with their weights `(n)`.
    fn add(
        &mut self,
        expert: usize,
        rows: &[u32],
        weights: &Tensor,
        answers: &Tensor,
    ) -> Result<()> {
        let lengths = answers
            .to_dtype(DType::F32)?
            .sqr()?
            .sum(2)?
            .sqrt()?
            .flatten_all()?;
        let lengths: Vec<f32> = crossing::to_memory(&lengths)?;
        let weights: Vec<f32> = crossing::to_memory(&weights.to_dtype(DType::F32)?)?;
        for ((&row, length), weight) in rows.iter().zip(lengths).zip(weights) {
            let first = row as usize * self.width;
            self.table[first + 1 + expert] = 1.0;
            self.table[first + 1 + self.n_experts + expert] = weight * length;
        }
        Ok(())
    }
}

impl Choices {
    /// The tokens that an expert takes as their first choice, and as their second.
    #[must_use]
    pub fn taken_by(&self, expert: u32) -> [Vec<u32>; CHOICES] {
        [0, 1].map(|nth: usize| {
            let rows = self.experts[nth].iter().zip(&self.kept[nth]).enumerate();
            let taken = rows.filter(|(_, (chosen, kept))| **chosen == expert && **kept);
            taken.map(|(row, _)| row as u32).collect()
        })
    }
}

impl Choices {
    /// The rows that each expert takes: those of first choices, then those of second ones.
    fn taken(&self, n_experts: usize) -> Vec<Vec<Taken>> {
        let mut taken = vec![Vec::new(); n_experts];
        for choice in 0..CHOICES {
            let rows = self.experts[choice].iter().zip(&self.kept[choice]);
            for (row, (&expert, _)) in rows.enumerate().filter(|(_, (_, kept))| **kept) {
                taken[expert as usize].push(Taken { row, choice });
            }
        }
        taken
    }
}

/// An error of the ranks that hold the other experts.
fn lost(what: &dyn std::fmt::Display) -> candle_core::Error {
    candle_core::Error::Msg(format!("ranks that share experts: {what}"))
}

/// The choices of the tokens of other ranks, and the number of tokens of all ranks: the ranks before this one have the
/// tokens before its own.
fn before(
    ranks: &dyn Collective,
    picks: &[Vec<u32>; CHOICES],
    n_experts: usize,
) -> Result<(Before, usize)> {
    let own = [counts(&picks[0], n_experts), counts(&picks[1], n_experts)].concat();
    let all = ranks.gather(bytemuck::cast_slice(&own));
    let all = all.map_err(|error| lost(&error))?;
    let mut before = Before {
        first: vec![0; n_experts],
        all_first: vec![0; n_experts],
        second: vec![0; n_experts],
    };
    let mut rows = 0;
    for (rank, bytes) in all.iter().enumerate() {
        let theirs: Vec<u32> = bytemuck::pod_collect_to_vec(bytes);
        if theirs.len() != own.len() {
            let n = theirs.len();
            return Err(lost(&format!(
                "{n} counts of rank {rank} instead of {}",
                own.len()
            )));
        }
        let (first, second) = theirs.split_at(n_experts);
        let add = |sums: &mut Vec<u32>, counts: &[u32]| {
            sums.iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
        };
        rows += first.iter().sum::<u32>() as usize;
        add(&mut before.all_first, first);
        if rank < ranks.rank() {
            add(&mut before.first, first);
            add(&mut before.second, second);
        }
    }
    Ok((before, rows))
}

/// Nothing, `()`, through which every weight of an expert that no token chose has a gradient of zeros, as in the published
/// program; none where nothing is trained.
fn nothing_of(expert: &Mlp) -> Result<Option<Tensor>> {
    let mut nothing: Option<Tensor> = None;
    for weight in expert.weights().filter(|weight| weight.track_op()) {
        let of = (weight.flatten_all()?.narrow(0, 0, 1)?.sum_all()? * 0.0)?;
        nothing = Some(match nothing {
            Some(sum) => (sum + of)?,
            None => of,
        });
    }
    Ok(nothing)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let most = scores.max_keepdim(1)?.detach();
    let exponents = scores.broadcast_sub(&most)?.exp()?;
    exponents.broadcast_div(&exponents.sum_keepdim(1)?)
}

/// The mask of some rows, as if they were a sequence.
fn mask_of(kept: &[bool], rows: &[u32], device: &candle_core::Device) -> Result<Mask> {
    let kept = rows.iter().map(|&row| {
        let kept = kept.get(row as usize).copied();
        u8::from(kept.unwrap_or(true))
    });
    let kept: Vec<u8> = kept.collect();
    Mask::new(&crossing::to_device(kept, (1, rows.len()), device)?)
}
