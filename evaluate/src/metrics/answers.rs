//! Answers of VQA in words: normalization, soft scores, the vocabulary of a classifier.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Characters that count as punctuation, in the order in which they are taken.
const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];

/// The most periods that are taken out: the official program passes a flag of this value where
/// the count belongs.
const MAX_PERIODS: usize = 32;

const ARTICLES: [&str; 3] = ["a", "an", "the"];

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Contractions by the missing mark: `(as typed, as it should be, stems)`.
const CONTRACTIONS: [(&str, &str, &str); 10] = [
    (
        "nt",
        "n't",
        "ai are ca could did does do had has have is might must need ought sha should was were wo \
         would",
    ),
    (
        "ve",
        "'ve",
        "could might must not should they we what where who would you",
    ),
    (
        "ll",
        "'ll",
        "how it somebody someone something they what who why you",
    ),
    ("re", "'re", "there they what why you"),
    (
        "s",
        "'s",
        "he how somebody someone that there what when where who why",
    ),
    (
        "d",
        "'d",
        "how he it someone something there they where who you",
    ),
    ("d've", "'d've", TWICE_CONTRACTED),
    ("'dve", "'d've", TWICE_CONTRACTED),
    ("n'tve", "n't've", "could had might should would"),
    ("nt've", "n't've", "could had might should would"),
];

const TWICE_CONTRACTED: &str = "he it she somebody someone something there they we who y'all you";

/// Contractions that follow no rule. Those with a capital letter never apply, for words are in
/// lower case by then, so they are not here.
const SINGLE_CONTRACTIONS: [(&str, &str); 11] = [
    ("maam", "ma'am"),
    ("oclock", "o'clock"),
    ("ow's'at", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("'ow'sat", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("twas", "'twas"),
    ("yall", "y'all"),
    ("yall'll", "y'all'll"),
    ("y'allll", "y'all'll"),
    ("yall'd've", "y'all'd've"),
];

static CONTRACTION_OF: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let by_rule = CONTRACTIONS.iter().flat_map(|(typed, right, stems)| {
        stems
            .split(' ')
            .map(move |stem| (format!("{stem}{typed}"), format!("{stem}{right}")))
    });
    let single = SINGLE_CONTRACTIONS.iter();
    by_rule
        .chain(single.map(|&(typed, right)| (typed.to_owned(), right.to_owned())))
        .collect()
});

/// Line breaks and tabs become spaces, outer spaces go: what the official program does to every
/// answer before anything else.
#[must_use]
pub fn clean(answer: &str) -> String {
    answer
        .replace(['\n', '\t'], " ")
        .trim_matches(is_space)
        .to_owned()
}

/// The normal form of an answer: punctuation and articles out, numbers as digits, contractions with
/// their apostrophes.
///
/// A punctuation character vanishes if it stands beside a space anywhere in the answer, or if the
/// answer has a comma between digits; otherwise it becomes a space. The official program and the
/// published training code agree on this function; the former calls [`clean`] first.
///
/// # Example
/// ```
/// use evaluate::metrics::answers::normalize;
/// assert_eq!(normalize("The T-shirt."), "t shirt");
/// assert_eq!(normalize("1,000 dogs"), "1000 dogs");
/// assert_eq!(normalize("none"), "0");
/// assert_eq!(normalize("dont know"), "don't know");
/// ```
#[must_use]
pub fn normalize(answer: &str) -> String {
    let has_grouped_digits = answer
        .as_bytes()
        .windows(3)
        .any(|three| three[0].is_ascii_digit() && three[1] == b',' && three[2].is_ascii_digit());
    let mut text = String::with_capacity(answer.len());
    let mut beside_space = [None; PUNCTUATION.len()];
    for c in answer.chars() {
        let Some(index) = PUNCTUATION.iter().position(|&p| p == c) else {
            text.push(c);
            continue;
        };
        let vanishes = *beside_space[index].get_or_insert_with(|| {
            has_grouped_digits || stands_beside_space(answer, PUNCTUATION[index])
        });
        if !vanishes {
            text.push(' ');
        }
    }
    let text = without_periods(&text).to_lowercase();
    let mut words = Vec::new();
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        let number = NUMBERS.iter().find(|(name, _)| *name == word);
        let word = number.map_or(word, |&(_, digits)| digits);
        if !ARTICLES.contains(&word) {
            words.push(CONTRACTION_OF.get(word).map_or(word, String::as_str));
        }
    }
    words.join(" ")
}

fn stands_beside_space(answer: &str, punctuation: char) -> bool {
    let mut before = '\0';
    answer.chars().any(|c| {
        let pair = (std::mem::replace(&mut before, c), c);
        pair == (punctuation, ' ') || pair == (' ', punctuation)
    })
}

/// Takes out the first [`MAX_PERIODS`] periods that no digit follows.
fn without_periods(text: &str) -> String {
    let mut n_taken = 0;
    let mut rest = text.chars().peekable();
    let mut kept = String::with_capacity(text.len());
    while let Some(c) = rest.next() {
        let before_digit = rest.peek().is_some_and(char::is_ascii_digit);
        if c == '.' && !before_digit && n_taken < MAX_PERIODS {
            n_taken += 1;
        } else {
            kept.push(c);
        }
    }
    kept
}

/// White space as Python's strings see it: four separators more than Unicode's property.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The published soft score of an answer that `n_people` of ten gave.
///
/// # Example
/// ```
/// use evaluate::metrics::answers::soft_score_of_count;
/// assert_eq!([0, 1, 2, 3, 4, 9].map(soft_score_of_count), [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]);
/// ```
#[must_use]
pub fn soft_score_of_count(n_people: usize) -> f64 {
    match n_people {
        0 => 0.0,
        1 => 0.3,
        2 => 0.6,
        3 => 0.9,
        _ => 1.0,
    }
}

/// The answers of a classifier: the normal forms that occur at least `least` times among the
/// `multiple_choice_answer`s of a data set, by first appearance. The published programs take
/// training before validation questions and 9 times.
///
/// # Example
/// ```
/// let answers = ["Yes", "no", "yes", "a dog", "No."];
/// let vocabulary = evaluate::metrics::answers::vocabulary(answers, 2);
/// assert_eq!(vocabulary, ["yes", "no"]);
/// ```
#[must_use]
pub fn vocabulary<'a>(answers: impl IntoIterator<Item = &'a str>, least: usize) -> Vec<String> {
    let normal: Vec<String> = answers.into_iter().map(normalize).collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for answer in &normal {
        *counts.entry(answer).or_default() += 1;
    }
    let mut seen = HashSet::new();
    normal
        .iter()
        .filter(|answer| counts[answer.as_str()] >= least && seen.insert(answer.as_str()))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_32_periods_are_taken_out() {
        assert_eq!(normalize(&".".repeat(40)), ".".repeat(8));
        assert_eq!(normalize("3.5 p.m."), "3.5 pm");
    }

    #[test]
    fn a_character_beside_a_space_vanishes_everywhere() {
        assert_eq!(normalize("a-b"), "b");
        assert_eq!(normalize("x-y z- w"), "xy z w");
        assert_eq!(normalize("x-y 1,000"), "xy 1000");
    }
}
