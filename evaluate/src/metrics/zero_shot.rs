//! Zero-shot classification: the class whose text is nearest to an image.

use std::collections::HashMap;

use super::retrieval::{ScoreMatrix, Standing, Ties};
use crate::sample::Ratio;
use crate::{Error, LabelFault, Result, Sample};

/// The numbers of nearest classes among which the right one counts.
const RANKS: [usize; 2] = [1, 5];

/// Top-1 and top-5 accuracy. `scores` has a row per class, in the order of `classes`, and a column per
/// image, whose class is in `labels`: an image is ranked among the texts of all classes, those without an
/// image too. Units are images.
///
/// # Errors
/// [`LabelFault::UnknownClass`] when an image is of no class, [`Error::ScoreNotANumber`], and what reading the
/// matrix returns.
pub fn sample<M: ScoreMatrix<Score = f32>>(
    scores: &M,
    classes: &[i64],
    labels: &[i64],
    ties: Ties,
) -> Result<Sample> {
    let rows: HashMap<i64, usize> = classes.iter().copied().zip(0..).collect();
    let own_rows: Vec<usize> = (labels.iter().enumerate())
        .map(|(image, label)| {
            let row = rows.get(label).copied();
            row.ok_or(Error::from(LabelFault::UnknownClass {
                image,
                class: *label,
            }))
        })
        .collect::<Result<_>>()?;
    let mut row = vec![0.0; labels.len()];
    let mut own = vec![0.0; labels.len()];
    for number in 0..classes.len() {
        scores.read(number, 0, &mut row)?;
        if row.iter().any(|score| score.is_nan()) {
            return Err(Error::ScoreNotANumber { row: number });
        }
        for (image, score) in row.iter().enumerate() {
            if own_rows[image] == number {
                own[image] = *score;
            }
        }
    }
    let mut found = vec![
        Standing {
            n_higher: 0,
            n_right_tied: 1,
            n_wrong_tied: 0,
            n_wrong_tied_before: 0,
        };
        labels.len()
    ];
    for number in 0..classes.len() {
        scores.read(number, 0, &mut row)?;
        for (image, standing) in found.iter_mut().enumerate() {
            let (score, own, own_row) = (row[image], own[image], own_rows[image]);
            if score > own {
                standing.n_higher += 1;
            } else if score == own && number != own_row {
                standing.n_wrong_tied += 1;
                standing.n_wrong_tied_before += u32::from(number < own_row);
            }
        }
    }
    let mut sample = Sample::new(labels.len());
    for k in RANKS {
        let cases =
            (found.iter().enumerate()).map(|(image, standing)| (image, standing.hit(k, ties)));
        sample.report(format!("top{k}"), Ratio::of_cases(cases));
    }
    Ok(sample)
}

/// Reports `per_class`: the mean over classes of the share of their images that `nearest` gives their class. Units are
/// images; classes without an image count for nothing.
pub fn per_class(sample: &mut Sample, nearest: &[usize], labels: &[i64], n_classes: usize) {
    let mut n_images = vec![0_usize; n_classes];
    let of = |label: i64| usize::try_from(label).unwrap_or(usize::MAX);
    for label in labels {
        if let Some(n) = n_images.get_mut(of(*label)) {
            *n += 1;
        }
    }
    let n_there = n_images.iter().filter(|n| **n > 0).count();
    let cases = nearest.iter().zip(labels).enumerate();
    let cases = cases.map(|(image, (nearest, label))| {
        let label = of(*label);
        let n = n_images.get(label).copied().unwrap_or(1).max(1);
        // The mean over images, each weighed by the size of its class.
        let weight = labels.len() as f64 / (n * n_there.max(1)) as f64;
        (image, if *nearest == label { weight } else { 0.0 })
    });
    sample.report("per_class", Ratio::of_cases(cases));
}

/// The vector of each class: the mean over its templates of features of length one, brought to length one again, as
/// CLIP's program has it. `features` are those of all templates of the first class, `width` numbers each, then those of
/// the next.
///
/// Radford et al. 2021, <https://arxiv.org/abs/2103.00020>, section 3.1.4.
#[must_use]
pub fn of_templates(features: &[f32], n_templates: usize, width: usize) -> Vec<f32> {
    let mut classes = Vec::with_capacity(features.len() / n_templates.max(1));
    for of_class in features.chunks_exact((n_templates * width).max(1)) {
        let mut sum = vec![0.0_f64; width];
        for row in of_class.chunks_exact(width) {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        classes.extend(sum.into_iter().map(|value| (value / length) as f32));
    }
    classes
}

/// The rows of each id, by rising id: how pairs of an image and a text make up images with several texts,
/// and classes with several images.
#[must_use]
pub fn rows_by_id(ids: &[i64]) -> Vec<(i64, Vec<usize>)> {
    let mut rows: std::collections::BTreeMap<i64, Vec<usize>> = Default::default();
    for (row, &id) in ids.iter().enumerate() {
        rows.entry(id).or_default().push(row);
    }
    rows.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    #[test]
    fn classes_count_alike_whatever_their_size() {
        let mut sample = Sample::new(4);
        // Of three images of class 0 one is right, the only one of class 2 too.
        per_class(&mut sample, &[0, 1, 1, 2], &[0, 0, 0, 2], 3);
        let found = sample.value(&sample.quantities[0]).expect("a value");
        assert!((found - (1.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12, "{found}");
    }

    #[test]
    fn templates_are_averaged_and_brought_to_length_one() {
        // (1, 0) and (0, 1) in the middle, then (0, 1) twice.
        let found = of_templates(&[1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 2, 2);
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let expected = [half, half, 0.0, 1.0];
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }

    #[test]
    fn an_image_counts_if_the_text_of_its_class_is_among_the_nearest() {
        // Seven classes; the first image is nearest to its own, the second finds it sixth.
        let scores = arr2(&[
            [0.9_f32, 0.1],
            [0.5, 0.9],
            [0.4, 0.8],
            [0.3, 0.7],
            [0.2, 0.6],
            [0.1, 0.5],
            [0.0, 0.0],
        ]);
        let classes: Vec<i64> = (0..7).collect();
        let sample = sample(&scores.view(), &classes, &[0, 0], Ties::default());
        // Classes without an image are no fault.
        let sample = sample.expect("ranks");
        let values: Vec<_> = (sample.quantities.iter())
            .map(|quantity| (quantity.name.as_str(), sample.value(quantity)))
            .collect();
        assert_eq!(values, [("top1", Some(0.5)), ("top5", Some(0.5))]);
        assert_eq!(rows_by_id(&[5, 2, 5]), [(2, vec![1]), (5, vec![0, 2])]);
    }
}
