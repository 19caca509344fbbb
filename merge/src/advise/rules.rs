//! From numbers to an order of methods: published accuracies, moved by rules. A heuristic, and nothing else.

use std::borrow::Cow;

use serde::Serialize;

use super::Facts;

/// The source of the published accuracies.
const TABLE: &str = "FusionBench, CLIP ViT-B/32, mean accuracy over eight tasks (arXiv 2406.03280)";

/// A method and its published accuracy.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// The name in recipes.
    pub method: &'static str,
    /// Parameters that it is meant with.
    pub with: &'static str,
    /// Mean accuracy in percent: where every method starts from.
    pub accuracy: f64,
    /// The source of the figure.
    pub source: &'static str,
    /// The inputs that it needs beside base and models.
    pub needs: Option<&'static str>,
}

const fn published(method: &'static str, accuracy: f64) -> Published {
    Published {
        method,
        with: "",
        accuracy,
        source: TABLE,
        needs: None,
    }
}

/// Methods that are ranked: those with a published figure.
pub const METHODS: &[Published] = &[
    published("linear", 66.5),
    published("task_arithmetic", 68.0),
    Published {
        needs: Some("`vlmerge fisher` over data of each model"),
        ..published("fisher", 70.6)
    },
    published("ties", 72.2),
    Published {
        source: "that of `ties`, which it merges by: the gain over it is published for adapters alone (arXiv 2410.19735)",
        ..published("knots", 72.2)
    },
    Published {
        needs: Some("`vlmerge gram` over data of each model"),
        ..published("regmean", 82.4)
    },
    published("iso_cts", 82.7),
    published("iso_c", 82.8),
    Published {
        source: "its paper: up to 15.45 above task arithmetic, whose figure is 68.0 (arXiv 2412.00081)",
        ..published("tsv_m", 83.45)
    },
    Published {
        with: "grams: task_vectors",
        source: "that of `wudi`, of which it is the form with task vectors counted by their squared size (arXiv 2604.01329)",
        ..published("regmean", 84.5)
    },
    published("wudi", 84.5),
];

/// A condition on task vectors, and its effects on methods.
pub struct Rule {
    /// A short name.
    pub name: &'static str,
    /// The condition, in words.
    pub when: &'static str,
    /// The finding in words, if the condition holds.
    pub found: fn(&Facts) -> Option<String>,
    /// Points of accuracy by method, and why; `""` as parameters stands for any.
    pub effects: &'static [Effect],
    /// The source of the reasons.
    pub source: &'static str,
}

/// The effect of a rule on a method.
pub struct Effect {
    /// The methods, as `regmean` or, with parameters, `regmean grams: task_vectors`.
    pub methods: &'static [&'static str],
    /// Points that are added.
    pub points: f64,
    /// The reason, in words.
    pub why: &'static str,
}

/// Methods that measure from a base and decompose or weigh task vectors.
const SPECTRAL: &[&str] = &[
    "tsv_m",
    "iso_c",
    "iso_cts",
    "wudi",
    "regmean grams: task_vectors",
];

/// The data-free form of `regmean`.
const ACTMAT: &str = "regmean grams: task_vectors";

/// The share of the magnitudes of `n` task vectors that cancels in their sum where they have nothing to do with each other:
/// the sum of `n` independent numbers around zero is √n times as large as one of them.
fn cancelled_by_chance(n: usize) -> f64 {
    1.0 - 1.0 / (n.max(1) as f64).sqrt()
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        name: "equal",
        when: "all cosines are above 0.999 and the longest task vector is at most 1.01 times the shortest",
        found: |facts| {
            let is_equal = least_cosine(facts)? > 0.999 && norm_ratio(facts)? <= 1.01;
            is_equal.then(|| {
                format!(
                    "the models are the same except for rounding (least cosine {:.4})",
                    least_cosine(facts).unwrap_or(1.0)
                )
            })
        },
        effects: &[
            Effect {
                methods: &["linear"],
                points: 25.0,
                why: "the mean of equal models is the model",
            },
            Effect {
                methods: &["tsv_m", "iso_c", "iso_cts"],
                points: -25.0,
                why: "it cuts or flattens the spectrum of a task vector that needs no merging",
            },
            Effect {
                methods: &["task_arithmetic"],
                points: -10.0,
                why: "the sum goes T times as far as the models did",
            },
        ],
        source: "closed forms of the methods for equal inputs (docs/methods.md)",
    },
    Rule {
        name: "orthogonal",
        when: "the mean cosine is below 0.1 in magnitude and the subspaces overlap by at most 0.1 more than by chance",
        found: |facts| {
            let cosine = facts.all.cosine?;
            let is_apart = cosine.abs() < 0.1 && excess(facts)? <= 0.1;
            is_apart
                .then(|| format!("task vectors are nearly orthogonal (mean cosine {cosine:.3})"))
        },
        effects: &[Effect {
            methods: &["task_arithmetic", "tsv_m"],
            points: 3.0,
            why: "task vectors that are nearly orthogonal add up with little interference",
        }],
        source: "Ilharco et al. 2023, arXiv 2212.04089, on cosines of task vectors; arXiv 2412.00081, on singular vectors",
    },
    Rule {
        name: "opposed",
        when: "of the magnitude of all T task vectors 0.06 more cancels in their sum than by chance, which is 1 − 1/√T",
        found: |facts| {
            let cancelled = facts.all.cancelled?;
            let by_chance = cancelled_by_chance(facts.models.len());
            (cancelled > by_chance + 0.06).then(|| {
                format!(
                    "{:.0} % of the task vectors cancel in their sum, by chance {:.0} %",
                    100.0 * cancelled,
                    100.0 * by_chance
                )
            })
        },
        effects: &[
            Effect {
                methods: &["ties", "knots"],
                points: 4.0,
                why: "an elected sign keeps what opposing updates would cancel",
            },
            Effect {
                methods: &["linear", "task_arithmetic"],
                points: -6.0,
                why: "sums and means lose what cancels",
            },
        ],
        source: "Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, on sign conflicts",
    },
    Rule {
        name: "common space",
        when: "the leading left singular vectors overlap by more than 0.3 more than by chance, and the rule `equal` does not hold",
        found: |facts| {
            let overlap = excess(facts)?;
            let is_common = overlap > 0.3 && !is_equal(facts);
            is_common.then(|| {
                format!("leading singular vectors overlap by {overlap:.2} more than by chance")
            })
        },
        effects: &[
            Effect {
                methods: &["iso_c", "iso_cts", "wudi", ACTMAT],
                points: 1.5,
                why: "it keeps a common space from being counted once for each task",
            },
            Effect {
                methods: &["task_arithmetic"],
                points: -3.0,
                why: "directions that tasks share are added up once for each of them",
            },
        ],
        source: "arXiv 2502.04959 (Iso), on common and task-specific subspaces; arXiv 2503.08099 (WUDI)",
    },
    Rule {
        name: "low rank",
        when: "the leading directions hold more than 0.99 of every model's matrices, and are fewer than half of the smallest",
        found: |facts| {
            let shares = facts.models.iter().map(|model| model.in_leading);
            let least = shares
                .collect::<Option<Vec<f64>>>()?
                .into_iter()
                .fold(1.0, f64::min);
            let is_low = least > 0.99 && 2 * facts.rank < facts.least_side?;
            is_low.then(|| {
                format!(
                    "{} directions hold {:.1} % of the task vectors, as with adapters",
                    facts.rank,
                    100.0 * least
                )
            })
        },
        effects: &[
            Effect {
                methods: &["knots"],
                points: 4.3,
                why: "it aligns updates of low rank in one space: up to 4.3 above TIES is published for adapters",
            },
            Effect {
                methods: &["iso_c", "iso_cts"],
                points: -5.0,
                why: "it lifts directions of rounding noise to the size of the others",
            },
        ],
        source: "arXiv 2410.19735 (KnOTS); docs/methods.md, `iso_c`, on rank",
    },
    Rule {
        name: "uneven",
        when: "the longest task vector is more than 3 times the shortest",
        found: |facts| {
            let ratio = norm_ratio(facts)?;
            (ratio > 3.0)
                .then(|| format!("the longest task vector is {ratio:.1} times the shortest"))
        },
        effects: &[
            Effect {
                methods: &[ACTMAT],
                points: -4.0,
                why: "it counts each task vector by its squared size, so that the longest decides",
            },
            Effect {
                methods: &["linear", "task_arithmetic", "tsv_m"],
                points: -2.0,
                why: "the longest task vector decides, unless `weight` says otherwise",
            },
            Effect {
                methods: &["wudi"],
                points: 1.0,
                why: "it counts all task vectors alike",
            },
        ],
        source: "the objectives of WUDI (arXiv 2503.08099) and ACTMat (arXiv 2604.01329)",
    },
    Rule {
        name: "apart",
        when: "several models change at most 0.2 of the elements that some model changes",
        found: |facts| {
            let shared = facts.all.shared?;
            (shared <= 0.2).then(|| {
                format!(
                    "only {:.0} % of the changed elements are changed by several models",
                    100.0 * shared
                )
            })
        },
        effects: &[Effect {
            methods: &["task_arithmetic"],
            points: 15.0,
            why: "where models change other elements, the sum holds all of them unchanged",
        }],
        source: "closed form; arXiv 2408.13656 (Localize-and-Stitch) keeps sparse regions for this reason",
    },
    Rule {
        name: "far",
        when: "a model is further from the base than half of the base's length",
        found: |facts| {
            let far = facts
                .models
                .iter()
                .max_by(|a, b| a.relative_distance.total_cmp(&b.relative_distance))?;
            let distance = far.relative_distance;
            (distance > 0.5).then(|| format!("{} is {:.0} % of the base's length away from it: is it a fine-tune of this base?", far.name, 100.0 * distance))
        },
        effects: &[Effect {
            methods: &[
                "linear",
                "task_arithmetic",
                "ties",
                "knots",
                "tsv_m",
                "iso_c",
                "iso_cts",
                "wudi",
                ACTMAT,
            ],
            points: -10.0,
            why: "averages and task vectors presuppose one valley around the base; `align` may bring models into one order \
                  first",
        }],
        source: "Ainsworth et al. 2023, Git Re-Basin, arXiv 2209.04836",
    },
    Rule {
        name: "too many",
        when: "there are more models than the smallest matrix has rows or columns",
        found: |facts| {
            let side = facts.least_side?;
            (facts.models.len() > side).then(|| {
                format!(
                    "{} models share matrices of rank {side}",
                    facts.models.len()
                )
            })
        },
        effects: &[Effect {
            methods: &["tsv_m"],
            points: -40.0,
            why: "it keeps rank / T directions of each model, which is none",
        }],
        source: "arXiv 2412.00081, the rank of each part",
    },
    Rule {
        name: "no matrix",
        when: "no matrix is in all models",
        found: |facts| {
            facts
                .least_side
                .is_none()
                .then(|| "no linear layer is in all models".to_owned())
        },
        effects: &[Effect {
            methods: SPECTRAL,
            points: -20.0,
            why: "without matrices it is the mean",
        }],
        source: "docs/methods.md: other tensors take the mean",
    },
];

/// The reason why a method has moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// The rule.
    pub rule: &'static str,
    /// Points that it adds.
    pub points: f64,
    /// The finding and its consequence, in words.
    pub why: String,
    /// The source of the rule.
    pub source: &'static str,
}

/// A method in the order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranked {
    /// The name in recipes.
    pub method: &'static str,
    /// Parameters that it is meant with.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub with: &'static str,
    /// The published figure with all points: it orders methods, and is no prediction of an accuracy.
    pub score: f64,
    /// The published figure.
    pub published: f64,
    /// The source of the figure.
    pub source: &'static str,
    /// The inputs that the method needs beside base and models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<&'static str>,
    /// The rules that have moved it.
    pub reasons: Vec<Reason>,
}

impl Published {
    /// The method with its parameters.
    #[must_use]
    pub fn label(&self) -> Cow<'static, str> {
        match self.with {
            "" => Cow::Borrowed(self.method),
            with => Cow::Owned(format!("{} {with}", self.method)),
        }
    }
}

/// The methods, the most promising first; those of one score in the order of [`METHODS`].
#[must_use]
pub fn ranked(facts: &Facts) -> Vec<Ranked> {
    let found: Vec<(&Rule, String)> = (RULES.iter())
        .filter_map(|rule| Some((rule, (rule.found)(facts)?)))
        .collect();
    let mut ranked: Vec<Ranked> = (METHODS.iter())
        .map(|of| {
            let reasons: Vec<Reason> = (found.iter())
                .flat_map(|(rule, what)| {
                    let effects = rule.effects.iter();
                    let own =
                        effects.filter(|effect| effect.methods.contains(&of.label().as_ref()));
                    own.map(move |effect| Reason {
                        rule: rule.name,
                        points: effect.points,
                        why: format!("{what}; {}", effect.why),
                        source: rule.source,
                    })
                })
                .collect();
            Ranked {
                method: of.method,
                with: of.with,
                score: of.accuracy + reasons.iter().map(|reason| reason.points).sum::<f64>(),
                published: of.accuracy,
                source: of.source,
                needs: of.needs,
                reasons,
            }
        })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranked
}

fn is_equal(facts: &Facts) -> bool {
    least_cosine(facts).is_some_and(|cosine| cosine > 0.999)
        && norm_ratio(facts).is_some_and(|ratio| ratio <= 1.01)
}

fn least_cosine(facts: &Facts) -> Option<f64> {
    let cosines = facts.pairs.iter().map(|pair| pair.cosine);
    let cosines: Option<Vec<f64>> = cosines.collect();
    cosines?.into_iter().reduce(f64::min)
}

/// The longest task vector over the shortest.
fn norm_ratio(facts: &Facts) -> Option<f64> {
    let norms = || facts.models.iter().map(|model| model.norm);
    let (least, most) = (norms().reduce(f64::min)?, norms().reduce(f64::max)?);
    (most > 0.0).then(|| most / least)
}

/// The excess of the subspaces' overlap over chance, as a share of the possible excess.
fn excess(facts: &Facts) -> Option<f64> {
    let (overlap, by_chance) = (facts.all.overlap?, facts.all.overlap_by_chance?);
    Some(match by_chance < 1.0 {
        true => (overlap - by_chance) / (1.0 - by_chance),
        false => 0.0,
    })
}
