//! Ranks that share the experts of mixtures: run by threads in `eve`, and by processes under `mpirun` in `mpi_ranks`.

use std::collections::BTreeMap;
use std::rc::Rc;

use evaluate::models::Head;
use evaluate::nn::{Capacity, Gradients, Routing, SideLosses, Tape};
use evaluate::ranks::ExpertShare;
use merge::layouts::EveTask;
use train::batch::Batch;
use train::collective::{Alone, Collective};
use train::objectives::{
    BALANCE_WEIGHT, Negatives, Objective, Passes, RoutingOf, Shared, SignalSettings, Step,
};

use crate::eve_model::{
    NOTHING, Opened, SIGNALS, batch, objectives, open, open_share, share, unlimited,
};
use crate::fixture::{l2, values};

/// Of losses, and of gradients by L2, relative.
const TOLERANCE: f64 = 1e-5;

/// Gradients below this share of the largest are zero except for rounding: compared absolutely.
const FLOOR: f64 = 1e-2;

/// An objective and its weight.
type Weighted = (Box<dyn Objective>, f64);

/// The mean loss with the balance, and the mean gradients of ranks: those of experts as their own rank alone has them, if
/// `experts` are shared out.
fn shared(
    opened: &Opened,
    (objectives, routing): (&[Weighted], &RoutingOf<'_>),
    batch: &Batch,
    (collective, experts): (&dyn Collective, Option<&Rc<dyn Collective>>),
    tape: fn() -> Tape,
) -> (f64, BTreeMap<String, Vec<f64>>) {
    let variables = opened.weights.variables();
    let mut gradients = Gradients::of(variables.values());
    let passes = Passes::of(objectives.iter().map(|(objective, _)| &**objective), batch);
    let (shared, mut total) = (Shared::default(), 0.0);
    for (objective, _) in objectives {
        let (tape, losses) = (tape(), SideLosses::new());
        let step = Step {
            routing: Some(routing),
            side_losses: Some(&losses),
            experts,
            tape: Some(&tape),
            ..Step::plain(opened.model.as_ref(), batch, collective, &shared)
        };
        let loss = objective.loss(&step).expect("a loss");
        let balance = passes.balance(objective.as_ref(), batch, losses.take());
        let balance =
            (balance.expect("balance").expect("routers") * BALANCE_WEIGHT).expect("a loss");
        total += loss.reported + values(&balance)[0];
        let value = (loss.value + balance).expect("a sum");
        tape.backward(&value, &mut gradients).expect("gradients");
    }
    let size = collective.size() as f64;
    let mut sum = [total];
    collective.sum_f64(&mut sum).expect("a sum");
    let mut by_name = BTreeMap::new();
    for (name, variable) in &variables {
        let reached = gradients.get(variable).is_some();
        let gradient = gradients.host(variable).expect("in memory");
        if experts.is_none() || !opened.blueprint.is_of_expert(name) {
            collective.sum(gradient).expect("a sum");
        }
        let mean: Vec<f64> = gradient.iter().map(|&g| f64::from(g) / size).collect();
        assert!(reached || mean.iter().all(|g| *g == 0.0), "{name}");
        by_name.insert(name.clone(), mean);
    }
    (sum[0] / size, by_name)
}

/// So little room that tokens are dropped, on whatever rank they stand.
fn narrow(_: &str) -> Option<Routing> {
    Some(Routing {
        capacity: Capacity::Even {
            factor: 0.5,
            least: 1,
        },
        ..Routing::default()
    })
}

/// Every rank holds all variables but those of other ranks' experts, and each expert is held by one rank.
fn check_held(opened: &Opened, alone: &Opened, ranks: &dyn Collective) {
    let (held, all) = (opened.weights.variables(), alone.weights.variables());
    let mut owners: Vec<f64> = Vec::new();
    for (name, variable) in &all {
        let is_held = held.contains_key(name);
        match opened.blueprint.is_of_expert(name) {
            true => owners.push(f64::from(u8::from(is_held))),
            false => assert!(is_held, "{name}"),
        }
        assert!(!is_held || held[name].dims() == variable.dims(), "{name}");
    }
    assert!(held.keys().all(|name| all.contains_key(name)));
    ranks.sum_f64(&mut owners).expect("a sum");
    assert!(!owners.is_empty() && owners.iter().all(|n| *n == 1.0));
}

/// Losses and gradients of ranks of which each holds its own experts are those of one process, balance and dropped
/// tokens included. Gives the largest error of a gradient.
pub fn ranks_that_share_experts_learn_what_one_process_learns(ranks: &Rc<dyn Collective>) -> f64 {
    let mut whole = batch(6);
    whole.image_numbers = Some(vec![0, 1, 2, 2, 0, 3]);
    whole.negatives = Some(Negatives {
        images: vec![1, 2, 4, 5, 3, 0],
        texts: vec![5, 3, 1, 0, 2, 4],
    });
    let own = share(&whole, ranks.rank(), ranks.size());
    let cases: [(EveTask, &[&str], &[Head]); 4] = [
        (EveTask::Retrieval, &["itc", "itm"], &[]),
        (EveTask::Vqa, &["vqa"], &[]),
        (EveTask::Nlvr2Biattn, &["nlvr2"], &[]),
        (EveTask::Pretrain, &["masked_signal"], &SIGNALS),
    ];
    let tapes: [fn() -> Tape; 3] = [Tape::new, Tape::checkpointing, || Tape::new().of_graphs()];
    let mut worst: f64 = 0.0;
    for (task, names, heads) in cases {
        let alone = open(task, &NOTHING, heads);
        let opened = open_share(task, &NOTHING, heads, ExpertShare::of(ranks.as_ref()));
        check_held(&opened, &alone, ranks.as_ref());
        let objectives = objectives(names, SignalSettings::default());
        let ways: [(&str, &RoutingOf<'_>); 2] =
            [("room for all", &unlimited), ("little room", &narrow)];
        for (said, routing) in ways {
            let of = (&objectives[..], routing);
            let (loss, expected) = shared(&alone, of, &whole, (&Alone, None), Tape::new);
            let largest = expected.values().map(|g| l2(g.iter().copied()));
            let floor = FLOOR * largest.fold(0.0, f64::max);
            for tape in tapes {
                let together = (ranks.as_ref(), Some(ranks));
                let (found, gradients) = shared(&opened, of, &own, together, tape);
                let error = (found - loss).abs() / loss;
                assert!(
                    error <= TOLERANCE,
                    "{task:?}, {said}: {found} instead of {loss}"
                );
                for (name, found) in &gradients {
                    let expected = &expected[name];
                    let off = l2(found.iter().zip(expected).map(|(a, b)| a - b));
                    let error = off / l2(expected.iter().copied()).max(floor);
                    assert!(error <= TOLERANCE, "{task:?}, {said}: {name}: {error}");
                    worst = worst.max(error);
                }
            }
        }
    }
    worst
}
