//! How the table of a study of many tasks is to be read.

use evaluate::reports::scoreboard::{Agreement, Correlation, LEAST_METHODS, Scoreboard};

use super::recipe::{FINE_TUNED, MultiTaskRecipe, PRETRAINED};

/// How the table is to be read.
pub fn notes(recipe: &MultiTaskRecipe, board: &Scoreboard, has_chosen: bool) -> Vec<String> {
    let (n, tasks) = (board.n_tested(), board.tasks.len());
    let mut notes = vec![
        format!(
            "Top-1 accuracy in percent on test pictures, by zero-shot classification; in brackets 95% intervals by the \
             bootstrap over pictures, {} draws, tasks drawn independently.",
            recipe.resamples
        ),
        format!(
            "Normalized: the mean over tasks of the accuracy over that of the row “{FINE_TUNED}”, where each task has its own \
             model. “{PRETRAINED}” is the model that all copies started from."
        ),
        format!(
            "Difference: to the mean of {}, on the same draws; two-sided paired bootstrap. P-values are corrected by Holm's \
             procedure for {n} merges; stars at single tasks (p < 0.05) for {n} merges on {tasks} tasks.",
            board.baseline
        ),
        "Seconds are of processors, and memory is the most that one process of the merge holds; both count gram matrices and \
         the restoring of tasks' models, and neither training nor measuring. Data: what a merge takes beside the models."
            .to_owned(),
    ];
    if has_chosen {
        notes.push(
            "Chosen: of several values the one with the best mean accuracy on the validation splits; all rows are of the test \
             splits."
                .to_owned(),
        );
    }
    notes.extend(board.agreement.as_ref().map(on_advice));
    notes
}

/// The table's note on `vlmerge advise`.
fn on_advice(agreement: &Agreement) -> String {
    let (n, of) = (agreement.n_predicted(), agreement.methods.len());
    let said = format!(
        "Advice: `vlmerge advise` ranks {n} of the {of} merges by the weights of the models alone; equal ones share their mean rank."
    );
    let (Some(spearman), Some(kendall)) = (agreement.spearman, agreement.kendall) else {
        return format!(
            "{said} No rank correlation: it takes {LEAST_METHODS} ranked merges, and different scores and means."
        );
    };
    let verdict = match spearman.interval {
        Some(interval) if interval.low > 0.0 => {
            "so for these methods and tasks the predicted order agrees with the measured one"
        }
        Some(interval) if interval.high < 0.0 => {
            "so for these methods and tasks the predicted order opposes the measured one"
        }
        _ => "so this table does not show that the predicted order helps",
    };
    let first = agreement.first_and_best().map_or_else(String::new, |(first, best)| {
        format!(
            " {} comes first by score and reaches {:.2}; the best of the ranked merges is {} with {:.2}.",
            first.name,
            100.0 * first.mean,
            best.name,
            100.0 * best.mean
        )
    });
    format!(
        "{said} Score and measured mean correlate by {} (Spearman) and {} (Kendall’s τ_b), {verdict}; the 95% intervals are of the \
         bootstrap over tasks and over the pictures of each, and do not cover the choice of methods.{first}",
        correlation(spearman),
        correlation(kendall)
    )
}

fn correlation(of: Correlation) -> String {
    let sign = |value: f64| format!("{value:.2}").replace('-', "−");
    match of.interval {
        Some(interval) => format!(
            "{} ({} to {})",
            sign(of.value),
            sign(interval.low),
            sign(interval.high)
        ),
        None => sign(of.value),
    }
}

#[cfg(test)]
mod tests {
    use evaluate::metrics::bootstrap::Interval;
    use evaluate::reports::scoreboard::{Advised, Ranks};

    use super::*;

    fn agreement(spearman: Option<[f64; 3]>) -> Agreement {
        let correlation = spearman.map(|[value, low, high]| Correlation {
            value,
            interval: Some(Interval { low, high }),
        });
        let advised = |name: &str, mean, rank| Advised {
            name: name.into(),
            mean,
            prediction: Some(Ranks {
                score: 80.0,
                predicted: rank,
                measured: 3.0 - rank,
                rules: Vec::new(),
            }),
        };
        Agreement {
            methods: vec![advised("a", 0.25, 1.0), advised("b", 0.5, 2.0)],
            spearman: correlation,
            kendall: correlation,
        }
    }

    #[test]
    fn a_verdict_goes_by_the_interval() {
        let said = |of| on_advice(&agreement(Some(of)));
        assert!(said([0.5, 0.1, 0.8]).contains("0.50 (0.10 to 0.80) (Spearman)"));
        assert!(said([0.5, 0.1, 0.8]).contains("agrees with the measured one"));
        assert!(said([-0.5, -0.8, -0.1]).contains("−0.50 (−0.80 to −0.10)"));
        assert!(said([-0.5, -0.8, -0.1]).contains("opposes the measured one"));
        let wide = said([0.5, -0.1, 0.8]);
        assert!(wide.contains("does not show that the predicted order helps"));
        assert!(wide.contains("a comes first by score and reaches 25.00; the best of the ranked merges is b with 50.00."));
        assert!(
            on_advice(&agreement(None)).contains("No rank correlation: it takes 3 ranked merges")
        );
    }
}
