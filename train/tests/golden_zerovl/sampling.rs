//! Which examples come when.

use fixtures::{Case, integers, list, number};
use serde_json::Value;
use train::data::{Order, Sampling, Visits, share_out};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    ranks_take_turns: "sampler" => sampler,
    an_epoch_has_the_published_number_of_steps: "steps_per_epoch" => steps_per_epoch,
    data_sets_begin_again_when_they_are_used_up: "debias" => debias,
    mixing_is_mostly_near_none_or_all: "mixup_draws" => mixup_draws,
}

fn cases(case: &Case) -> Vec<Value> {
    let all = case.json("expected");
    list(&all[case.text("key")]).to_vec()
}

fn count(value: &Value) -> usize {
    value.as_u64().expect("a number") as usize
}

fn counts(value: &Value) -> Vec<usize> {
    integers(value).into_iter().map(|n| n as usize).collect()
}

fn sampler(case: &Case) {
    for example in cases(case) {
        let (n, n_ranks) = (count(&example["rows"]), count(&example["ranks"]));
        let whole = n.next_multiple_of(n_ranks);
        let order: Vec<usize> = (0..whole).map(|row| row % n).collect();
        let shared = share_out(&order, 0, whole, n_ranks);
        let found: Vec<Vec<usize>> = shared.chunks(whole / n_ranks).map(<[_]>::to_vec).collect();
        let expected: Vec<Vec<usize>> = list(&example["unshuffled"]).iter().map(counts).collect();
        assert_eq!(found, expected);
        // Shuffled: as many for each rank, and every row at least once.
        let sets = Order::of_sets(&[("one".into(), n)], Sampling::Shuffle, whole, n_ranks, 1);
        let first = sets.expect("an order").from(Default::default()).next();
        let mut drawn = first.expect("a batch").1;
        assert_eq!(drawn.len(), whole);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, (0..n).collect::<Vec<_>>());
    }
}

fn steps_per_epoch(case: &Case) {
    for example in cases(case) {
        let (rows, n_ranks) = (counts(&example["rows"]), count(&example["ranks"]));
        let batch = count(&example["per_rank_batch"]) * n_ranks;
        let sets = rows.iter().enumerate();
        let named: Vec<(String, usize)> = sets.map(|(at, &n)| (at.to_string(), n)).collect();
        let steps = |sampling| {
            let order = Order::of_sets(&named, sampling, batch, n_ranks, 1);
            order.map(|order| order.n_batches() as usize)
        };
        let shuffled = steps(Sampling::Shuffle).expect("an order");
        assert_eq!(shuffled, count(&example["shuffle"]));
        let expected = count(&example["debias_or_sequential"]);
        for sampling in [Sampling::Sequential, Sampling::Debias] {
            match steps(sampling) {
                Ok(found) => assert_eq!(found, expected),
                // A data set without a batch is left out as published, and refused here.
                Err(error) => {
                    let lacks = rows.iter().any(|n| n.next_multiple_of(n_ranks) < batch);
                    assert!(lacks, "{error}");
                }
            }
        }
    }
}

fn debias(case: &Case) {
    for example in cases(case) {
        let n_batches = counts(&example["batches_per_loader"]);
        let visited: Vec<Vec<usize>> = list(&example["visited"]).iter().map(counts).collect();
        let steps = count(&example["steps_per_epoch"]);
        for epoch in visited.chunks(steps) {
            let mut visits = Visits::new(&n_batches);
            for step in epoch {
                assert_eq!(visits.next(step[0]).batch, step[1], "{epoch:?}");
            }
        }
        let rows = counts(&example["rows"]);
        let total: usize = rows.iter().sum();
        for (n, weight) in rows.iter().zip(list(&example["weights"])) {
            assert!((*n as f64 / total as f64 - number(weight)).abs() < 1e-12);
        }
    }
}

fn mixup_draws(case: &Case) {
    let beta = case.number("beta").expect("a number");
    let expected = case.json("expected");
    let draws = list(&expected);
    // Bits of numpy are not asked for: the shares of each kind are.
    let n = 4000;
    let mut drawn: Vec<(f64, bool)> = Vec::with_capacity(n);
    for step in 0..n as u64 {
        let draw = train::objectives::MixDraw::of(1, step, beta);
        assert!((0.0..=1.0).contains(&draw.alpha));
        drawn.push((draw.alpha, draw.mixes_images));
    }
    let share = |is: &dyn Fn(&(f64, bool)) -> bool| {
        drawn.iter().filter(|draw| is(draw)).count() as f64 / n as f64
    };
    let published = |is: &dyn Fn(f64) -> bool| {
        let n_such = draws
            .iter()
            .filter(|draw| is(number(&draw["alpha"])))
            .count();
        n_such as f64 / draws.len() as f64
    };
    for draw in draws {
        let mixes_images = number(&draw["gamma"]) > 0.5;
        assert_eq!(draw["mixed"], if mixes_images { "image" } else { "text" });
    }
    assert!((share(&|(_, images)| *images) - 0.5).abs() < 0.04);
    // Four standard deviations of so few published draws.
    let within = 4.0 * 0.5 / (draws.len() as f64).sqrt();
    for bound in [0.1, 0.9] {
        let found = share(&|(alpha, _)| *alpha < bound);
        assert!(
            (found - published(&|alpha| alpha < bound)).abs() < within,
            "{bound}: {found}"
        );
    }
}
