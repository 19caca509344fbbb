//! Who goes where: the two experts of each token, and their places in the queues of these.

/// Choices of each token.
pub const CHOICES: usize = 2;

/// What a router decided for each token of a pass. None of it carries a gradient.
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
    let mut choices = Choices {
        counts: vec![0; n_experts],
        ..Choices::default()
    };
    if n_experts == 0 {
        return choices;
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
        choices.places[0].push(choices.counts[first]);
        choices.counts[first] += 1;
        choices.experts[0].push(first as u32);
        choices.experts[1].push(second as u32);
    }
    let mut queued = choices.counts.clone();
    for &second in &choices.experts[1] {
        let place = &mut queued[second as usize];
        choices.places[1].push(*place);
        *place += 1;
    }
    let fits = |place: &u32| (*place as usize) < capacity;
    choices.kept = [0, 1].map(|nth: usize| choices.places[nth].iter().map(fits).collect());
    choices
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
    fn noise_decides_second_choices_alone_and_ties_go_to_the_first_expert() {
        let scores = [0.25; 4];
        let noise = [9.0, 0.0, 1.0, 1.0];
        let choices = choose(&scores, &scores, Some(&noise), 4, 4);
        assert_eq!(choices.experts, [vec![0], vec![2]]);
    }
}
