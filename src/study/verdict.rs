//! The sentence that a paired test supports.

use evaluate::reports::{Difference, labels};
use evaluate::tasks::TaskSpec;

/// A sentence says that two models differ if the p-value of their test is below this.
const SURPRISING: f64 = 0.05;

/// A difference in a sentence; none where one of the two is not defined.
pub fn verdict(task: &TaskSpec, found: &Difference, [own, other]: [&str; 2]) -> Option<String> {
    let number = task.number(&found.name)?;
    let difference = labels::difference(found.difference?, number.unit);
    let (interval, p) = (found.interval?, found.p?);
    let [low, high] = [interval.low, interval.high].map(|end| labels::difference(end, number.unit));
    let so = match p < SURPRISING {
        true => "they differ",
        false => "the data do not tell them apart",
    };
    let label = number.label;
    Some(format!(
        "{label} of {own} against that of {other} {difference} ({low} to {high}, p = {p:.4}): {so}."
    ))
}
