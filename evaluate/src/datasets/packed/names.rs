//! Names of files that belong together: patterns with braces, numbers in their order, parts of a split.

use std::cmp::Ordering;

/// The most files that a pattern stands for.
const MAX_FILES: usize = 1 << 17;

/// The names of a pattern such as `shard-{000000..000012}.tar` or `{a,b}.tar`; a name without braces is itself. `None`
/// for braces that are not closed, a range that is none, or too many names.
pub(super) fn expanded(pattern: &str) -> Option<Vec<String>> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return (!pattern.contains('}')).then(|| vec![pattern.to_owned()]);
    };
    let (inner, after) = rest.split_once('}')?;
    if before.contains('}') {
        return None;
    }
    let parts: Vec<String> = match inner.split_once("..") {
        Some((first, last)) => {
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let numbers = [first, last].map(|text| text.parse::<usize>().ok());
            let (from, to) = numbers[0].zip(numbers[1])?;
            if !is_number(first) || !is_number(last) || to < from || to - from >= MAX_FILES {
                return None;
            }
            // Leading zeros keep the width, as in a shell.
            let width = match first.len() > 1 && first.starts_with('0') || last.starts_with('0') {
                true => first.len().max(last.len()),
                false => 0,
            };
            (from..=to).map(|n| format!("{n:0width$}")).collect()
        }
        None => inner.split(',').map(str::to_owned).collect(),
    };
    let behind = expanded(after)?;
    if parts.len().saturating_mul(behind.len()) > MAX_FILES {
        return None;
    }
    let names = parts.iter().flat_map(|part| {
        let behind = behind.iter();
        behind.map(move |after| format!("{before}{part}{after}"))
    });
    Some(names.collect())
}

/// The order of names in which numbers count as numbers: `2.tar` before `10.tar`.
pub(super) fn in_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let is_digit = |c: char| c.is_ascii_digit();
        let numbers = [left, right].map(|text| text.find(|c| !is_digit(c)).unwrap_or(text.len()));
        let order = match numbers {
            [0, _] | [_, 0] => {
                let (mut first, mut second) = (left.chars(), right.chars());
                match (first.next(), second.next()) {
                    (None, None) => return a.cmp(b),
                    (x, y) if x != y => return x.cmp(&y),
                    _ => (left, right) = (first.as_str(), second.as_str()),
                }
                continue;
            }
            [i, j] => {
                let [x, y] = [&left[..i], &right[..j]].map(|text| text.trim_start_matches('0'));
                (left, right) = (&left[i..], &right[j..]);
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The number of a part and the number of all parts of a split, from a name such as `train-00000-of-00003.parquet` or
/// `train.parquet`.
pub(super) fn part_of(name: &str, split: &str, ending: &str) -> Option<Option<(usize, usize)>> {
    let rest = name.strip_suffix(ending)?.strip_prefix(split)?;
    if rest.is_empty() {
        return Some(None);
    }
    let mut parts = rest.strip_prefix('-')?.split('-');
    let number = parts.next()?.parse().ok()?;
    match (parts.next(), parts.next()) {
        (Some("of"), Some(n)) => Some(Some((number, n.parse().ok()?))),
        (None, None) => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_names() {
        let names = |pattern| expanded(pattern).unwrap_or_default().join(" ");
        assert_eq!(names("s-{009..011}.tar"), "s-009.tar s-010.tar s-011.tar");
        assert_eq!(names("{9..11}.tar"), "9.tar 10.tar 11.tar");
        assert_eq!(names("{a,b}{0..1}"), "a0 a1 b0 b1");
        assert_eq!(names("plain.tar"), "plain.tar");
        for pattern in ["{0..1", "0..1}", "{2..1}", "{0..x}", "{0..99999999}", "}{"] {
            assert_eq!(expanded(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["10.tar", "2.tar", "a10", "a9", "a09", "0.tar", "a"];
        names.sort_by(|a, b| in_order(a, b));
        assert_eq!(names, ["0.tar", "2.tar", "10.tar", "a", "a09", "a9", "a10"]);
    }

    #[test]
    fn parts_of_a_split_are_told_by_their_names() {
        let part = |name| part_of(name, "train", ".parquet");
        assert_eq!(part("train-00002-of-00003.parquet"), Some(Some((2, 3))));
        assert_eq!(
            part("train-00002-of-00003-a1b2.parquet"),
            Some(Some((2, 3)))
        );
        assert_eq!(part("train.parquet"), Some(None));
        assert_eq!(part("train-0001.parquet"), Some(None));
        for other in [
            "trainer.parquet",
            "test.parquet",
            "train.tar",
            "train-x.parquet",
        ] {
            assert_eq!(part(other), None, "{other}");
        }
    }
}
