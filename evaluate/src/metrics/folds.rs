//! Retrieval in folds: the published rule of COCO's 1K test set.

use super::retrieval::{Captions, ScoreMatrix, Standings, Ties, sample, standings};
use crate::sample::{Combination, Contribution, Quantity, Ratio};
use crate::{Error, Result, Sample};

/// The mean of each number over folds, as published. A fold is a part of the images, in the order of the
/// file, ranked among its own images and texts alone: COCO's 5,000 test images are five folds of 1,000.
/// Units are images.
///
/// # Errors
/// [`Error::UnevenFolds`] when the images do not part evenly, and as [`standings`]'s.
pub fn sample_of_folds<M: ScoreMatrix>(
    scores: &M,
    image_ids: &[i64],
    text_image_ids: &[i64],
    n_folds: usize,
    ties: Ties,
) -> Result<Sample> {
    let n_images = image_ids.len();
    if n_folds == 0 || !n_images.is_multiple_of(n_folds) {
        return Err(Error::UnevenFolds { n_images, n_folds });
    }
    let size = n_images / n_folds;
    let mut whole = Sample::new(n_images);
    let mut names: Vec<Quantity> = Vec::new();
    for fold in 0..n_folds {
        let rows = fold * size..(fold + 1) * size;
        let own = &image_ids[rows.clone()];
        let known: std::collections::HashSet<i64> = own.iter().copied().collect();
        let columns: Vec<usize> = (0..text_image_ids.len())
            .filter(|&column| known.contains(&text_image_ids[column]))
            .collect();
        let of_texts: Vec<i64> = columns.iter().map(|&c| text_image_ids[c]).collect();
        let captions = Captions::new(own, &of_texts)?;
        let part = Part {
            scores,
            first_row: rows.start,
            n_rows: size,
            columns: &columns,
        };
        let found: Standings = standings(&part, &captions)?;
        let of_fold = sample(&found, &captions, ties);
        let offset = whole.ratios.len();
        whole.ratios.extend(of_fold.ratios.into_iter().map(|ratio| {
            Ratio {
                contributions: (ratio.contributions.into_iter())
                    .map(|own| Contribution {
                        unit: own.unit + rows.start,
                        ..own
                    })
                    .collect(),
            }
        }));
        for (index, quantity) in of_fold.quantities.into_iter().enumerate() {
            let ratios = quantity.ratios.iter().map(|ratio| ratio + offset);
            match names.get_mut(index) {
                Some(known) => known.ratios.extend(ratios),
                None => names.push(Quantity {
                    ratios: ratios.collect(),
                    combination: Combination::Folds { n: n_folds },
                    ..quantity
                }),
            }
        }
    }
    whole.quantities = names;
    Ok(whole)
}

/// Some rows of a matrix, and some of its columns.
struct Part<'a, M> {
    scores: &'a M,
    first_row: usize,
    n_rows: usize,
    columns: &'a [usize],
}

impl<M: ScoreMatrix> ScoreMatrix for Part<'_, M> {
    type Score = M::Score;

    fn shape(&self) -> (usize, usize) {
        (self.n_rows, self.columns.len())
    }

    fn read(&self, row: usize, column: usize, out: &mut [M::Score]) -> Result<()> {
        let wanted = &self.columns[column..column + out.len()];
        // Columns of a fold follow one another in files in order: they are read in runs.
        let mut done = 0;
        while done < wanted.len() {
            let from = wanted[done];
            let run = (wanted[done..].iter().zip(from..)).take_while(|(at, next)| **at == *next);
            let n = run.count();
            let out = &mut out[done..done + n];
            self.scores.read(self.first_row + row, from, out)?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    /// Two folds of two images with one text each; in the first both are found first, in the second
    /// each text is nearer to the other image.
    #[test]
    fn each_fold_is_ranked_alone_and_the_numbers_are_averaged() {
        let scores = arr2(&[
            [0.9_f32, 0.1, 0.95, 0.95],
            [0.1, 0.9, 0.95, 0.95],
            [0.99, 0.99, 0.1, 0.2],
            [0.99, 0.99, 0.2, 0.1],
        ]);
        let ids = [0, 1, 2, 3];
        let sample = sample_of_folds(&scores.view(), &ids, &ids, 2, Ties::default());
        let sample = sample.expect("folds");
        let value = |name: &str| {
            let quantity = sample.quantities.iter().find(|q| q.name == name);
            sample.value(quantity.expect("reported"))
        };
        assert_eq!(value("tr_r1"), Some(0.5));
        assert_eq!(value("ir_r1"), Some(0.5));
        assert_eq!(value("tr_r5"), Some(1.0));
        // Half of both R@1 and all else: 50 + 100 + 100, twice.
        assert_eq!(value("rsum"), Some(500.0));
        let uneven = sample_of_folds(&scores.view(), &ids, &ids, 3, Ties::default());
        assert!(matches!(uneven, Err(Error::UnevenFolds { .. })));
    }

    #[test]
    fn one_fold_is_the_whole() {
        let scores = arr2(&[[0.3_f64, 0.2, 0.9], [0.1, 0.8, 0.7]]);
        let (images, texts) = ([7, 8], [7, 7, 8]);
        let captions = Captions::new(&images, &texts).expect("captions");
        let whole = standings(&scores.view(), &captions).expect("ranks");
        let whole = sample(&whole, &captions, Ties::default());
        let fold = sample_of_folds(&scores.view(), &images, &texts, 1, Ties::default());
        let fold = fold.expect("a fold");
        for (a, b) in whole.quantities.iter().zip(&fold.quantities) {
            assert_eq!(whole.value(a), fold.value(b), "{}", a.name);
        }
        assert_eq!(whole.quantities.len(), fold.quantities.len());
    }
}
