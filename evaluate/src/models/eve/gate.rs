//! Assigns each token its two experts and its places in their queues.

/// Choices of each token.
pub const CHOICES: usize = 2;

/// A router's decision for each token of a pass. None of it carries a gradient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The two experts of each token.
    pub experts: [Vec<u32>; CHOICES],
    /// The places of both choices in the queues of their experts, before the capacity is looked at.
    pub places: [Vec<u32>; CHOICES],
    /// Whether each choice found room.
    pub kept: [Vec<bool>; CHOICES],
    /// First choices by expert, dropped ones included.
    pub counts: Vec<u32>,
}

/// Choices of the tokens that stand before those of a pass, on ranks that share experts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// First choices by expert of those before.
    pub first: Vec<u32>,
    /// First choices by expert of all, those behind included.
    pub all_first: Vec<u32>,
    /// Second choices by expert of those before.
    pub second: Vec<u32>,
}

impl Before {
    /// Nobody stands before these tokens, or behind them.
    #[must_use]
    pub fn none(picks: &[Vec<u32>; CHOICES], n_experts: usize) -> Self {
        Self {
            first: vec![0; n_experts],
            all_first: counts(&picks[0], n_experts),
            second: vec![0; n_experts],
        }
    }
}

/// The number of times that each expert is chosen.
#[must_use]
pub fn counts(picks: &[u32], n_experts: usize) -> Vec<u32> {
    let mut counts = vec![0; n_experts];
    for &expert in picks {
        counts[expert as usize] += 1;
    }
    counts
}

/// Lets each token choose.
///
/// The first choice has the highest gate, the second the highest of the other scores plus `noise`; of equal ones the
/// first expert. All first choices stand in the queues before all second ones, each in the order of the tokens; whoever
/// stands beyond `capacity` is dropped.
#[must_use]
pub fn choose(
    gates: &[f32],
    scores: &[f32],
    noise: Option<&[f32]>,
    n_experts: usize,
    capacity: usize,
) -> Choices {
    let picks = pick(gates, scores, noise, n_experts);
    let before = Before::none(&picks, n_experts);
    queue(picks, &before, capacity)
}

/// The two experts of each token, before anybody queues.
#[must_use]
pub fn pick(
    gates: &[f32],
    scores: &[f32],
    noise: Option<&[f32]>,
    n_experts: usize,
) -> [Vec<u32>; CHOICES] {
    let mut picks = [Vec::new(), Vec::new()];
    if n_experts == 0 {
        return picks;
    }
    let rows = gates
        .chunks_exact(n_experts)
        .zip(scores.chunks_exact(n_experts));
    for (row, (gates, scores)) in rows.enumerate() {
        let first = highest(gates.iter().copied(), None);
        let noise = noise.and_then(|noise| noise.get(row * n_experts..));
        let noisy = scores.iter().enumerate().map(|(expert, score)| {
            let noise = noise.and_then(|noise| noise.get(expert)).copied();
            score + noise.unwrap_or(0.0)
        });
        let second = highest(noisy, Some(first));
        picks[0].push(first as u32);
        picks[1].push(second as u32);
    }
    picks
}

/// Puts tokens into the queues of their experts, behind those `before` them.
#[must_use]
pub fn queue(picks: [Vec<u32>; CHOICES], before: &Before, capacity: usize) -> Choices {
    let n_experts = before.first.len();
    let own = counts(&picks[0], n_experts);
    let mut ends = [before.first.clone(), before.all_first.clone()];
    for (end, second) in ends[1].iter_mut().zip(&before.second) {
        *end += second;
    }
    let mut places = [Vec::new(), Vec::new()];
    for ((picks, ends), places) in picks.iter().zip(&mut ends).zip(&mut places) {
        for &expert in picks {
            let place = &mut ends[expert as usize];
            places.push(*place);
            *place += 1;
        }
    }
    let fits = |place: &u32| (*place as usize) < capacity;
    let kept = [0, 1].map(|nth: usize| places[nth].iter().map(fits).collect());
    Choices {
        experts: picks,
        places,
        kept,
        counts: own,
    }
}

/// The index of the highest number but one; of equal ones the first.
fn highest(numbers: impl Iterator<Item = f32>, but: Option<usize>) -> usize {
    let mut best: Option<(usize, f32)> = None;
    for (index, number) in numbers.enumerate() {
        if Some(index) != but && best.is_none_or(|(_, most)| number > most) {
            best = Some((index, number));
        }
    }
    best.map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_choices_queue_behind_all_first_ones_and_late_ones_are_dropped() {
        // Three tokens prefer expert 0; the last one prefers expert 1, and expert 0 second.
        let gates = [
            0.7, 0.2, 0.1, //
            0.6, 0.3, 0.1, //
            0.5, 0.1, 0.4, //
            0.3, 0.6, 0.1,
        ];
        let choices = choose(&gates, &gates, None, 3, 2);
        assert_eq!(choices.experts, [vec![0, 0, 0, 1], vec![1, 1, 2, 0]]);
        assert_eq!(choices.counts, [3, 1, 0]);
        assert_eq!(choices.places, [vec![0, 1, 2, 0], vec![1, 2, 0, 3]]);
        let [first, second] = choices.kept;
        assert_eq!(first, [true, true, false, true]);
        assert_eq!(second, [true, false, true, false]);
    }

    #[test]
    fn tokens_of_two_ranks_queue_as_those_of_one_process() {
        let gates: Vec<f32> = (0..60).map(|at| (at as f32 * 1.7).sin().abs()).collect();
        let whole = choose(&gates, &gates, None, 4, 5);
        // The first rank has six tokens, the second nine.
        let parts = [&gates[..24], &gates[24..]].map(|gates| pick(gates, gates, None, 4));
        let count = |part: usize, nth: usize| counts(&parts[part][nth], 4);
        let mut all_first = count(0, 0);
        all_first
            .iter_mut()
            .zip(count(1, 0))
            .for_each(|(sum, n)| *sum += n);
        let nothing = vec![0; 4];
        let before = [
            Before {
                first: nothing.clone(),
                all_first: all_first.clone(),
                second: nothing,
            },
            Before {
                first: count(0, 0),
                all_first,
                second: count(0, 1),
            },
        ];
        let [one, two] = parts;
        let [one, two] = [queue(one, &before[0], 5), queue(two, &before[1], 5)];
        for nth in 0..CHOICES {
            let places = [one.places[nth].clone(), two.places[nth].clone()].concat();
            assert_eq!(places, whole.places[nth]);
            assert_eq!(
                [one.kept[nth].clone(), two.kept[nth].clone()].concat(),
                whole.kept[nth]
            );
        }
        assert!(
            whole.kept.iter().flatten().any(|kept| !kept),
            "somebody is dropped"
        );
    }

    #[test]
    fn noise_decides_second_choices_alone_and_ties_go_to_the_first_expert() {
        let scores = [0.25; 4];
        let noise = [9.0, 0.0, 1.0, 1.0];
        let choices = choose(&scores, &scores, Some(&noise), 4, 4);
        assert_eq!(choices.experts, [vec![0], vec![2]]);
    }
}
