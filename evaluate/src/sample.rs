//! What each unit of a data set adds to each number.

use serde::{Deserialize, Serialize};

/// What one unit adds to a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// The unit, from 0.
    pub unit: usize,
    /// What it adds above the line: hits, or the sum of accuracies.
    pub numerator: f64,
    /// What it adds below: cases.
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

    /// The mean over cases, each unit taken `weight(unit)` times; `None` when no case is left.
    pub fn weighted(&self, weight: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut above, mut below) = (0.0, 0.0);
        for part in &self.contributions {
            let weight = weight(part.unit);
            above += weight * part.numerator;
            below += weight * part.denominator;
        }
        (below > 0.0).then(|| above / below)
    }
}

/// The unit of measurement of a [`Quantity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share in [0, 1].
    Fraction,
    /// A sum of shares, each times 100.
    PercentSum,
    /// A place in a list, from 1.
    Rank,
}

/// A number that is reported: a ratio or the sum of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantity {
    /// Its name, e.g. `tr_r1`.
    pub name: String,
    /// What it is measured in.
    pub unit: Unit,
    /// Indices into [`Sample::ratios`]; their values are added.
    pub ratios: Vec<usize>,
}

/// The results of one set of predictions. Larger is better in every quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How many units there are.
    pub n_units: usize,
    /// What is averaged.
    pub ratios: Vec<Ratio>,
    /// What is reported.
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
        });
        self.ratios.push(ratio);
    }

    /// The value of a quantity.
    #[must_use]
    pub fn value(&self, quantity: &Quantity) -> Option<f64> {
        let values: Vec<Option<f64>> = self.ratios.iter().map(|r| r.weighted(|_| 1.0)).collect();
        quantity.combine(&values)
    }

    /// How many cases the first ratio of a quantity is a mean over.
    #[must_use]
    pub fn n_cases(&self, quantity: &Quantity) -> u64 {
        quantity.ratios.first().map_or(0, |&ratio| {
            let cases = self.ratios[ratio].contributions.iter();
            cases.map(|part| part.denominator).sum::<f64>() as u64
        })
    }
}

impl Quantity {
    /// The quantity from the values of all ratios of its sample.
    pub(crate) fn combine(&self, values: &[Option<f64>]) -> Option<f64> {
        let sum: Option<f64> = self.ratios.iter().map(|&ratio| values[ratio]).sum();
        sum.map(|sum| match self.unit {
            Unit::Fraction | Unit::Rank => sum,
            Unit::PercentSum => 100.0 * sum,
        })
    }
}
