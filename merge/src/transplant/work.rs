//! Making the rows of tokens that a model lacks.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::dense::{Distribution, Rotation};
use super::magikarp::length;
use super::nearest::Nearest;
use super::omp::{Pursuit, gram_bytes};
use super::options::{Approximation, TransplantOptions, WeightScheme};
use super::report::{Copied, HeldOut, LISTED, ListedToken, Spread, TableReport, TransplantReport};
use super::sparse::{Combination, Solver};
use super::table::{Table, TableKind};
use super::tokens::Tokens;
use crate::random::Draws;
use crate::{DType, Error, Progress, Result};

/// Rows that one task makes at a time.
const BLOCK: usize = 64;

/// The origin of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A row of the model.
    Copy(usize),
    /// The row with this number among those that the method makes.
    Made(usize),
    /// The mean of all rows.
    Mean,
    /// Zero.
    Zero,
}

/// A table that gets other rows.
pub(super) struct TableWork {
    pub(super) kind: TableKind,
    pub(super) model: Table,
    /// The table of the donor that its rows go by.
    pub(super) donor: Option<Table>,
    /// The element type of the output.
    pub(super) dtype: DType,
    pub(super) origins: Vec<Origin>,
    /// Rows of tokens that both models have, the donor's first.
    pub(super) shared: Vec<(usize, usize)>,
    /// The donor's ids of the rows that the method makes.
    pub(super) made: Vec<usize>,
    /// For `subword`, the rows of the model that make each.
    pub(super) pieces: Vec<Combination>,
    pub(super) copied: Copied,
    pub(super) n_padding: usize,
    pub(super) n_junk: usize,
    /// The donor's ids of tokens that nothing is known of.
    pub(super) unknown: Vec<usize>,
}

impl TableWork {
    /// The row of the model that a row is a copy of.
    pub(super) fn copied(&self, row: usize) -> Option<usize> {
        match self.origins[row] {
            Origin::Copy(place) => Some(place),
            _ => None,
        }
    }
}

/// All tables, and their measurements.
pub(crate) struct Work {
    options: TransplantOptions,
    /// The donor's.
    tokens: Arc<Tokens>,
    tables: Vec<TableWork>,
    done: Mutex<Option<Arc<Vec<Done>>>>,
}

/// The method that makes the rows of a table.
enum Maker {
    /// Combinations of the model's rows, of which an empty one has nothing to go by.
    Combined(Vec<Combination>),
    Rotated(Rotation),
    Distribution(Distribution),
    Normal(Draws),
    Mean,
    Zero,
}

/// A table of which all is known.
struct Done {
    mean: Vec<f64>,
    maker: Maker,
    report: TableReport,
}

/// Combinations that make rows, and those that make the rows of held-out tokens.
type Solved = (Vec<Combination>, Vec<Combination>);

impl Work {
    pub(super) fn new(
        options: TransplantOptions,
        tokens: Arc<Tokens>,
        tables: Vec<TableWork>,
    ) -> Self {
        Self {
            options,
            tokens,
            tables,
            done: Mutex::default(),
        }
    }

    pub(super) fn tables(&self) -> &[TableWork] {
        &self.tables
    }

    /// Most bytes that are held while rows are made and after: shared rows of the donor and their products, combinations,
    /// or square matrices.
    pub(super) fn held_bytes(&self) -> u64 {
        let method = self.options.method;
        let tables = self.tables.iter().filter(|table| !table.made.is_empty());
        let while_made = tables.clone().map(|table| {
            let n = table.shared.len() as u64;
            let (from, to) = (
                table.donor.as_ref().map_or(0, |donor| donor.width as u64),
                table.model.width as u64,
            );
            let threads = rayon::current_num_threads() as u64;
            let block = threads * BLOCK as u64 * 4 * (2 * n + 2 * from);
            match method {
                Approximation::Omp {
                    gram_bytes: most, ..
                } => 4 * n * from + block + gram_bytes(table.shared.len(), most).unwrap_or(0),
                Approximation::CommonInterpolation { .. } | Approximation::Nearest { .. } => {
                    4 * n * from + block
                }
                // The moments, their eigenvectors, and products of them.
                Approximation::LandmarkPca => 8 * 4 * (from * from + to * to + from * to),
                Approximation::JohnHewitt => 8 * 4 * to * to,
                _ => 0,
            }
        });
        let kept = tables.map(|table| {
            let k = match method {
                Approximation::Omp { k, .. } | Approximation::CommonInterpolation { k, .. } => k,
                _ => 4,
            };
            (table.made.len() * (k * 12 + 64)) as u64
        });
        while_made.max().unwrap_or(0) + kept.sum::<u64>()
    }

    /// The changes, with measurements where the rows are made.
    pub(crate) fn report(&self) -> TransplantReport {
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let tables = match done {
            Some(done) => done.iter().map(|done| done.report.clone()).collect(),
            None => self.tables.iter().map(|table| self.counts(table)).collect(),
        };
        TransplantReport {
            method: self.options.method.name().to_owned(),
            n_tokens: self.tokens.all.len(),
            tables,
        }
    }

    /// Whether the measurements are there.
    pub(crate) fn is_settled(&self) -> bool {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    fn counts(&self, table: &TableWork) -> TableReport {
        TableReport {
            name: table.model.key.clone(),
            kind: table.kind,
            n_rows: table.origins.len(),
            copied: table.copied.clone(),
            n_made: table.made.len(),
            n_padding: table.n_padding,
            n_junk: table.n_junk,
            n_without_basis: table.unknown.len(),
            without_basis: self.listed(table.unknown.iter().map(|id| (*id, None))),
            donor_error: None,
            worst: Vec::new(),
            held_out: None,
            not_held_out: None,
        }
    }

    fn listed(&self, ids: impl Iterator<Item = (usize, Option<f64>)>) -> Vec<ListedToken> {
        ids.take(LISTED)
            .map(|(id, value)| ListedToken {
                id,
                token: self
                    .tokens
                    .token(id)
                    .map(|token| token.shown())
                    .unwrap_or_default(),
                value,
            })
            .collect()
    }

    /// Finds what makes the rows, on all cores.
    ///
    /// # Errors
    /// When a table cannot be read or holds a NaN or an infinity, and [`Error::Cancelled`].
    pub(crate) fn settle(&self, progress: &dyn Progress) -> Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        let n: usize = self.tables.iter().map(|table| table.made.len()).sum();
        progress.start_items("making rows", n as u64);
        let tables = self
            .tables
            .iter()
            .map(|table| self.of_table(table, progress));
        let done = tables.collect::<Result<Vec<_>>>();
        progress.finish();
        let mut known = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::new(done?));
        Ok(())
    }

    fn of_table(&self, table: &TableWork, progress: &dyn Progress) -> Result<Done> {
        let mean = table.model.mean()?;
        let mut report = self.counts(table);
        if table.made.is_empty() {
            let maker = Maker::Mean;
            return Ok(Done {
                mean,
                maker,
                report,
            });
        }
        let held = self.held_out(table, &mut report);
        let (maker, of_held) = match self.options.method {
            Approximation::Omp { .. }
            | Approximation::CommonInterpolation { .. }
            | Approximation::Nearest { .. } => {
                let (made, of_held) = self.solve(table, &held, progress)?;
                self.describe(table, &made, &mut report);
                (Maker::Combined(made), Some(Maker::Combined(of_held)))
            }
            Approximation::Subword(_) => {
                let pieces = table.pieces.clone();
                self.describe(table, &pieces, &mut report);
                (Maker::Combined(pieces), None)
            }
            Approximation::LandmarkPca => {
                let Some(donor) = &table.donor else {
                    return Ok(Done {
                        mean,
                        maker: Maker::Mean,
                        report,
                    });
                };
                let mut rest = table.shared.clone();
                let mut is_held = vec![false; rest.len()];
                held.iter().for_each(|&place| is_held[place] = true);
                let mut places = is_held.into_iter();
                rest.retain(|_| !places.next().unwrap_or(false));
                let of_rest = Rotation::of(donor, &table.model, &rest)?;
                let of_all = Rotation::of(donor, &table.model, &table.shared)?;
                (Maker::Rotated(of_all), Some(Maker::Rotated(of_rest)))
            }
            Approximation::JohnHewitt => {
                let found = Distribution::of(&table.model, mean.clone(), self.options.seed)?;
                (Maker::Distribution(found), None)
            }
            Approximation::Randn => {
                let draws = Draws::new(self.options.seed, &table.model.key);
                (Maker::Normal(draws), None)
            }
            Approximation::Mean => (Maker::Mean, None),
            Approximation::Zero => (Maker::Zero, None),
        };
        report.held_out = self.measure(table, &held, of_held.as_ref().unwrap_or(&maker), &mean)?;
        Ok(Done {
            mean,
            maker,
            report,
        })
    }

    /// Places of shared tokens that are held out: those with the smallest draws.
    fn held_out(&self, table: &TableWork, report: &mut TableReport) -> Vec<usize> {
        if matches!(self.options.method, Approximation::Subword(_)) {
            report.not_held_out =
                Some("the model's tokenizer knows shared tokens, so it does not split them");
            return Vec::new();
        }
        let shared = table.shared.len();
        let spare = shared.saturating_sub(self.options.method.n_shared());
        let n = self.options.held_out.min(spare).min(shared / 4);
        if n == 0 {
            report.not_held_out = Some(match self.options.held_out {
                0 => "none were asked for",
                _ => "the models share too few tokens",
            });
            return Vec::new();
        }
        let mut draws = vec![0.0f32; shared];
        Draws::new(self.options.seed, "held out").fill_uniform(0, &mut draws);
        let mut places: Vec<usize> = (0..shared).collect();
        places.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
        places.truncate(n);
        places.sort_unstable();
        places
    }

    /// Combinations of shared rows for all rows that are made, and for those that are held out, of the others alone. The
    /// rows in them are the model's.
    fn solve(&self, table: &TableWork, held: &[usize], progress: &dyn Progress) -> Result<Solved> {
        let Some(donor) = &table.donor else {
            return Ok(Solved::default());
        };
        let of_donor: Vec<usize> = table.shared.iter().map(|pair| pair.0).collect();
        let points = donor.gather(&of_donor)?;
        let nearest = |k, is_cosine, scheme| -> Box<dyn Solver + '_> {
            Box::new(Nearest::new(&points, (k, is_cosine, scheme), &donor.key))
        };
        let solver: Box<dyn Solver + '_> = match self.options.method {
            Approximation::CommonInterpolation {
                k,
                scheme,
                is_cosine,
            } => nearest(k, is_cosine, scheme),
            Approximation::Nearest { is_cosine } => {
                nearest(1, is_cosine, WeightScheme::DistanceProportional)
            }
            Approximation::Omp { k, gram_bytes } => Box::new(Pursuit::new(&points, k, gram_bytes)),
            _ => return Ok(Solved::default()),
        };
        let all = |ids: &[usize], excluded: &[bool]| -> Result<Vec<Combination>> {
            let blocks: Vec<&[usize]> = ids.chunks(BLOCK).collect();
            let blocks = blocks.into_par_iter().map(|ids| {
                if progress.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let mut found = solver.block(&donor.gather(ids)?, excluded)?;
                for atom in found.iter_mut().flat_map(|found| &mut found.atoms) {
                    *atom = table.shared[*atom as usize].1 as u32;
                }
                progress.advance(ids.len() as u64);
                Ok(found)
            });
            Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
        };
        let mut excluded = vec![false; table.shared.len()];
        let made = all(&table.made, &excluded)?;
        held.iter().for_each(|&place| excluded[place] = true);
        let of_held: Vec<usize> = held.iter().map(|&place| of_donor[place]).collect();
        Ok((made, all(&of_held, &excluded)?))
    }

    /// Writes down what combinations leave over, and those with nothing to go by.
    fn describe(&self, table: &TableWork, made: &[Combination], report: &mut TableReport) {
        let pairs = || table.made.iter().zip(made);
        let empty = pairs().filter(|(_, made)| made.atoms.is_empty());
        let empty: Vec<usize> = empty.map(|(id, _)| *id).collect();
        report.n_without_basis += empty.len();
        report.n_made -= empty.len();
        let all = table.unknown.iter().chain(&empty);
        report.without_basis = self.listed(all.map(|id| (*id, None)));
        if matches!(self.options.method, Approximation::Subword(_)) {
            return;
        }
        let made = pairs().filter(|(_, made)| !made.atoms.is_empty());
        let mut errors: Vec<(usize, f64)> = made.map(|(id, made)| (*id, made.error)).collect();
        let values: Vec<f64> = errors.iter().map(|(_, error)| *error).collect();
        report.donor_error = Spread::of(&values);
        errors.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        report.worst = self.listed(errors.into_iter().map(|(id, error)| (id, Some(error))));
    }

    /// Compares the rows that are made of held-out tokens with their own.
    fn measure(
        &self,
        table: &TableWork,
        held: &[usize],
        maker: &Maker,
        mean: &[f64],
    ) -> Result<Option<HeldOut>> {
        let mut found: [Vec<f64>; 4] = Default::default();
        let mut own = vec![0.0; table.model.width];
        let mut made = own.clone();
        for (index, &place) in held.iter().enumerate() {
            let (id, row) = table.shared[place];
            table.model.read(row, &mut own)?;
            self.make(table, maker, mean, (index, id), &mut made)?;
            let of_made = compared(&made, &own);
            let of_mean = compared(mean, &own);
            let numbers = [of_made.0, of_made.1, of_mean.0, of_mean.1];
            found
                .iter_mut()
                .zip(numbers)
                .for_each(|(all, number)| all.push(number));
        }
        let ids = held.iter().map(|&place| table.shared[place].0);
        let mut worst: Vec<(usize, f64)> = ids.zip(found[0].iter().copied()).collect();
        worst.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let spreads = found.each_ref().map(|values| Spread::of(values));
        let [
            Some(cosine),
            Some(error),
            Some(cosine_of_mean),
            Some(error_of_mean),
        ] = spreads
        else {
            return Ok(None);
        };
        Ok(Some(HeldOut {
            n_tokens: held.len(),
            cosine,
            relative_error: error,
            cosine_of_mean_row: cosine_of_mean,
            relative_error_of_mean_row: error_of_mean,
            worst: self.listed(worst.into_iter().map(|(id, cosine)| (id, Some(cosine)))),
        }))
    }

    /// Makes the row of the token with a place among those that are made, and an id of the donor's.
    fn make(
        &self,
        table: &TableWork,
        maker: &Maker,
        mean: &[f64],
        (place, id): (usize, usize),
        out: &mut [f64],
    ) -> Result<()> {
        match maker {
            Maker::Combined(all) => {
                let own = &all[place];
                if own.atoms.is_empty() {
                    out.copy_from_slice(mean);
                    return Ok(());
                }
                out.fill(0.0);
                let mut row = vec![0.0; out.len()];
                for (&atom, factor) in own.atoms.iter().zip(&own.factors) {
                    table.model.read(atom as usize, &mut row)?;
                    for (out, value) in out.iter_mut().zip(&row) {
                        *out += factor * value;
                    }
                }
            }
            Maker::Rotated(rotation) => {
                if let Some(donor) = &table.donor {
                    let mut row = vec![0.0; donor.width];
                    donor.read(id, &mut row)?;
                    rotation.apply(&row, out);
                }
            }
            Maker::Distribution(distribution) => distribution.draw(id, out),
            Maker::Normal(draws) => {
                let mut normal = vec![0.0f32; out.len()];
                draws.add_normal(1.0, id * out.len(), &mut normal);
                out.iter_mut()
                    .zip(normal)
                    .for_each(|(out, value)| *out = f64::from(value));
            }
            Maker::Mean => out.copy_from_slice(mean),
            Maker::Zero => out.fill(0.0),
        }
        Ok(())
    }

    /// A row of a table of the output, of one that is no copy.
    pub(super) fn row(&self, table: usize, row: usize, out: &mut [f64]) -> Result<()> {
        self.settle(&crate::progress::Silent)?;
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(done) = done else {
            return Ok(());
        };
        let (work, done) = (&self.tables[table], &done[table]);
        match work.origins[row] {
            Origin::Copy(place) => work.model.read(place, out),
            Origin::Mean => {
                out.copy_from_slice(&done.mean);
                Ok(())
            }
            Origin::Zero => {
                out.fill(0.0);
                Ok(())
            }
            Origin::Made(place) => {
                self.make(work, &done.maker, &done.mean, (place, row), out)?;
                if let Some(deviation) = self.options.new_vocab_noise {
                    let draws = Draws::new(self.options.seed, &format!("noise {}", work.model.key));
                    let mut noise = vec![0.0f32; out.len()];
                    draws.add_normal(1.0, row * out.len(), &mut noise);
                    for (out, noise) in out.iter_mut().zip(noise) {
                        *out += deviation * f64::from(noise);
                    }
                }
                if let Some(scale) = self.options.new_vocab_scale {
                    out.iter_mut().for_each(|value| *value *= scale);
                }
                Ok(())
            }
        }
    }
}

/// The cosine of two rows, and the length of their difference as a share of the second's.
fn compared(made: &[f64], own: &[f64]) -> (f64, f64) {
    let product: f64 = made.iter().zip(own).map(|(a, b)| a * b).sum();
    let rest: Vec<f64> = made.iter().zip(own).map(|(a, b)| a - b).collect();
    let (of_made, of_own) = (length(made), length(own));
    let cosine = match of_made * of_own > 0.0 {
        true => product / (of_made * of_own),
        false => 0.0,
    };
    let error = match of_own > 0.0 {
        true => length(&rest) / of_own,
        false => 0.0,
    };
    (cosine, error)
}
