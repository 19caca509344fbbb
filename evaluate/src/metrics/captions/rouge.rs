//! ROUGE-L: the longest common subsequence of a caption and its references.
//!
//! Reference: <https://aclanthology.org/W04-1013>, section 3.

/// The weight of recall against precision; that of the captioning challenge.
const BETA: f64 = 1.2;

/// `(1 + β²) P R / (R + β² P)` with the largest precision P and the largest recall R over all
/// references, each the share of the caption's or the reference's tokens in their longest common
/// subsequence. A caption without tokens counts as one empty token, as in the official program.
///
/// # Example
/// ```
/// use evaluate::metrics::captions::rouge_l;
/// // Of three tokens two are common, in order; of the reference's four likewise.
/// let (p, r, b) = (2.0 / 3.0, 0.5, 1.44);
/// let score = rouge_l("a cat sleeps", &["a small cat runs"]);
/// assert!((score - (1.0 + b) * p * r / (r + b * p)).abs() < 1e-15);
/// ```
#[must_use]
pub fn rouge_l(caption: &str, references: &[impl AsRef<str>]) -> f64 {
    let own: Vec<&str> = caption.split(' ').collect();
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in references {
        let other: Vec<&str> = reference.as_ref().split(' ').collect();
        let common = common_subsequence(&own, &other) as f64;
        precision = precision.max(common / own.len() as f64);
        recall = recall.max(common / other.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    let weight = BETA * BETA;
    (1.0 + weight) * precision * recall / (recall + weight * precision)
}

/// The length of the longest common subsequence.
fn common_subsequence(left: &[&str], right: &[&str]) -> usize {
    // Of the prefixes of `left` seen so far with every prefix of `right`.
    let mut lengths = vec![0; right.len() + 1];
    for token in left {
        let mut diagonal = 0;
        for (place, other) in right.iter().enumerate() {
            let above = lengths[place + 1];
            lengths[place + 1] = match token == other {
                true => diagonal + 1,
                false => above.max(lengths[place]),
            };
            diagonal = above;
        }
    }
    lengths[right.len()]
}
