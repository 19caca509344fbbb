//! The distance between a model's confidence and its accuracy.

use crate::Sample;
use crate::sample::Ratio;

/// Bins of confidence, of equal width.
const N_BINS: usize = 15;

/// Reports the expected calibration error as `calibration_error`: images are put in 15 bins by the largest share of the
/// softmax of their scores times `scale`; the error is the mean over images of the distance between the mean share and
/// the accuracy of their bin. `scores` are those of all classes of the first image, then those of the next.
///
/// Guo et al. 2017, "On Calibration of Modern Neural Networks", <https://arxiv.org/abs/1706.04599>, section 2.
pub fn calibration_error(sample: &mut Sample, scores: &[f32], labels: &[i64], scale: f32) {
    let n_classes = scores.len() / labels.len().max(1);
    let mut bins = [(0.0_f64, 0.0_f64, 0_usize); N_BINS];
    let mut places = Vec::with_capacity(labels.len());
    for (row, label) in scores.chunks_exact(n_classes.max(1)).zip(labels) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row
            .iter()
            .map(|score| f64::from(scale * (score - most)).exp())
            .sum();
        let share = 1.0 / sum;
        let best = row.iter().position(|score| *score == most);
        let is_right = best.is_some_and(|best| best as i64 == *label);
        // The upper end of a bin is in it.
        let bin = ((share * N_BINS as f64).ceil() as usize).clamp(1, N_BINS) - 1;
        bins[bin].0 += share;
        bins[bin].1 += f64::from(u8::from(is_right));
        bins[bin].2 += 1;
        places.push(bin);
    }
    let gap = |bin: usize| {
        let (shares, right, n) = bins[bin];
        (shares - right).abs() / n.max(1) as f64
    };
    let cases = places.into_iter().enumerate();
    let cases = cases.map(|(image, bin)| (image, gap(bin)));
    sample.report("calibration_error", Ratio::of_cases(cases));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_distance_of_shares_from_accuracy_by_bin() {
        // Two images with shares of e / (e + 1) = 0.7311, one right; a third with one half each, wrong.
        let scores = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let mut sample = Sample::new(3);
        calibration_error(&mut sample, &scores, &[0, 1, 1], 1.0);
        let found = sample.value(&sample.quantities[0]).expect("a value");
        let share = std::f64::consts::E / (std::f64::consts::E + 1.0);
        let expected = (2.0 * (share - 0.5) + 0.5) / 3.0;
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }
}
