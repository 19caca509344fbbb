//! The share of each unit of a data set in each number.

use serde::{Deserialize, Serialize};

use crate::metrics::captions::bleu;

/// The share of one unit in a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// The unit, from 0.
    pub unit: usize,
    /// Its share above the line: hits, or the sum of accuracies.
    pub numerator: f64,
    /// Its share below: cases.
    pub denominator: f64,
}

/// A mean over cases, split by unit; units without a case are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// At most one entry per unit, in the order of the units.
    pub contributions: Vec<Contribution>,
}

impl Ratio {
    /// Sums cases, given in the order of their units, to one entry per unit.
    #[must_use]
    pub fn of_cases(cases: impl IntoIterator<Item = (usize, f64)>) -> Self {
        let mut contributions: Vec<Contribution> = Vec::new();
        for (unit, value) in cases {
            match contributions.last_mut() {
                Some(last) if last.unit == unit => {
                    last.numerator += value;
                    last.denominator += 1.0;
                }
                _ => contributions.push(Contribution {
                    unit,
                    numerator: value,
                    denominator: 1.0,
                }),
            }
        }
        Self { contributions }
    }

    /// Both sums, each unit taken `weight(unit)` times.
    pub(crate) fn weighted(&self, weight: impl Fn(usize) -> f64) -> Sums {
        let mut sums = Sums::default();
        for part in &self.contributions {
            let weight = weight(part.unit);
            sums.above += weight * part.numerator;
            sums.below += weight * part.denominator;
        }
        sums
    }
}

/// The sums above and below the line of a ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sums {
    above: f64,
    below: f64,
}

impl Sums {
    /// The mean over cases; `None` when no case is left.
    fn mean(self) -> Option<f64> {
        (self.below > 0.0).then(|| self.above / self.below)
    }
}

/// The unit of measurement of a [`Quantity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share in [0, 1].
    Fraction,
    /// A score in [0, 10] that people write times 100, as shares in percent: CIDEr.
    Tenfold,
    /// A sum of shares, each times 100.
    PercentSum,
    /// A place in a list, from 1.
    Rank,
    /// A number as another program wrote it.
    Plain,
}

/// The rule by which the ratios of a [`Quantity`] make its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combination {
    /// Their means are added.
    #[default]
    Sum,
    /// Their means are added in groups, one group a fold, and the sums are averaged over folds.
    Folds {
        /// The number of folds, and of groups of ratios.
        n: usize,
    },
    /// [`bleu`](crate::metrics::captions::bleu) of their sums: the lengths of captions and of
    /// references, then for each n matches and n-grams.
    Bleu,
}

/// A number that is reported: a ratio or a combination of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantity {
    /// Its name, e.g. `tr_r1`.
    pub name: String,
    /// The unit.
    pub unit: Unit,
    /// Indices into [`Sample::ratios`].
    pub ratios: Vec<usize>,
    /// The rule that combines them.
    #[serde(default)]
    pub combination: Combination,
}

/// The results of one set of predictions. Larger is better in every quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The number of units.
    pub n_units: usize,
    /// The averages.
    pub ratios: Vec<Ratio>,
    /// The reported quantities.
    pub quantities: Vec<Quantity>,
}

impl Sample {
    /// A sample without quantities.
    #[must_use]
    pub fn new(n_units: usize) -> Self {
        Self {
            n_units,
            ratios: Vec::new(),
            quantities: Vec::new(),
        }
    }

    /// Reports a ratio as a fraction under `name`.
    pub fn report(&mut self, name: impl Into<String>, ratio: Ratio) {
        self.quantities.push(Quantity {
            name: name.into(),
            unit: Unit::Fraction,
            ratios: vec![self.ratios.len()],
            combination: Combination::Sum,
        });
        self.ratios.push(ratio);
    }

    /// The value of a quantity.
    #[must_use]
    pub fn value(&self, quantity: &Quantity) -> Option<f64> {
        let sums: Vec<Sums> = self.ratios.iter().map(|r| r.weighted(|_| 1.0)).collect();
        quantity.combine(&sums)
    }

    /// The number of cases that the first ratio of a quantity is a mean over.
    #[must_use]
    pub fn n_cases(&self, quantity: &Quantity) -> u64 {
        quantity.ratios.first().map_or(0, |&ratio| {
            let cases = self.ratios[ratio].contributions.iter();
            cases.map(|part| part.denominator).sum::<f64>() as u64
        })
    }
}

impl Quantity {
    /// The quantity from the sums of all ratios of its sample.
    pub(crate) fn combine(&self, sums: &[Sums]) -> Option<f64> {
        let own = self.ratios.iter().map(|&ratio| sums[ratio]);
        let value = match self.combination {
            Combination::Sum => own.map(Sums::mean).sum::<Option<f64>>()?,
            Combination::Folds { n } => own.map(Sums::mean).sum::<Option<f64>>()? / n as f64,
            Combination::Bleu => {
                let above: Vec<f64> = own.map(|sums| sums.above).collect();
                let ([lengths, counts @ ..], []) = above.as_chunks::<2>() else {
                    return None;
                };
                bleu(*lengths, counts.iter().copied())
            }
        };
        Some(match self.unit {
            Unit::Fraction | Unit::Tenfold | Unit::Rank | Unit::Plain => value,
            Unit::PercentSum => 100.0 * value,
        })
    }
}
