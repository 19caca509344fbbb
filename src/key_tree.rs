//! Keys of a checkpoint, collapsed over blocks and experts:
//! `transformer.blocks.{0..11}.attn.{v,l}.qkv.weight`.

use std::collections::{BTreeMap, BTreeSet};

use merge::{Expert, Role, TensorInfo};

/// One line of the tree: keys that differ in block and expert only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The keys, with braces where there are several.
    pub pattern: String,
    /// Shape and dtype of every one of them.
    pub info: TensorInfo,
    /// The number of tensors.
    pub n_tensors: usize,
}

/// A part of a key between dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    /// The first number of the key, as a rule the block.
    Index,
    /// The segment that names the expert.
    Expert,
    Text(String),
}

/// The properties that the keys of a line share: segments, dtype and shape.
type Alike<'a> = (Vec<Segment>, &'static str, &'a [usize]);

/// The keys of a line: blocks by expert.
type Members = BTreeMap<Option<(Expert, String)>, BTreeSet<Option<usize>>>;

/// Collapses keys; `role` says what each key is, where the layout knows it.
pub fn collapse<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a TensorInfo)>,
    role: impl Fn(&str) -> Option<Role>,
) -> Vec<Branch> {
    let mut branches: BTreeMap<Alike<'_>, (TensorInfo, Members)> = BTreeMap::new();
    for (key, info) in tensors {
        let (segments, index, expert) = dissect(key, role(key).as_ref());
        let members = branches
            .entry((segments, info.dtype.name(), &info.shape))
            .or_insert_with(|| (info.clone(), Members::new()));
        members.1.entry(expert).or_default().insert(index);
    }
    let mut lines = Vec::new();
    for ((segments, ..), (info, members)) in branches {
        // Experts with the same blocks share a line.
        let mut by_blocks: BTreeMap<BTreeSet<Option<usize>>, Vec<String>> = BTreeMap::new();
        for (expert, blocks) in members {
            let names = by_blocks.entry(blocks).or_default();
            names.extend(expert.map(|(_, name)| name));
        }
        for (blocks, experts) in by_blocks {
            let numbers: Vec<usize> = blocks.iter().flatten().copied().collect();
            let pattern: Vec<String> = segments
                .iter()
                .map(|segment| match segment {
                    Segment::Index => braces(&ranges(&numbers)),
                    Segment::Expert => braces(&shortened(&experts)),
                    Segment::Text(text) => text.clone(),
                })
                .collect();
            lines.push(Branch {
                pattern: pattern.join("."),
                info: info.clone(),
                n_tensors: blocks.len() * experts.len().max(1),
            });
        }
    }
    lines
}

/// The segments of a key, with its block and expert taken out.
fn dissect(
    key: &str,
    role: Option<&Role>,
) -> (Vec<Segment>, Option<usize>, Option<(Expert, String)>) {
    let texts: Vec<&str> = key.split('.').collect();
    let expert = role.and_then(|role| expert_segment(&texts, role));
    // Leading zeros would be lost.
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| n.to_string() == text);
    let mut index = None;
    let segments = texts.iter().enumerate().map(|(position, text)| {
        if expert.is_some_and(|(_, at)| at == position) {
            return Segment::Expert;
        }
        match number(text) {
            Some(n) if index.is_none() => {
                index = Some(n);
                Segment::Index
            }
            _ => Segment::Text((*text).to_owned()),
        }
    });
    let segments = segments.collect();
    let expert = expert.map(|(expert, at)| (expert, texts[at].to_owned()));
    (segments, index, expert)
}

/// The expert of a key and the segment that names it: the one in which the key differs from its
/// slot, whether it is added (`attn.v.qkv`) or changed (`mlp_imag`).
fn expert_segment(texts: &[&str], role: &Role) -> Option<(Expert, usize)> {
    let Role::Expert { expert, slot } = role else {
        return None;
    };
    let slot: Vec<&str> = slot.key.split('.').collect();
    let at = texts.iter().zip(&slot).position(|(a, b)| a != b)?;
    let is_added = texts.len() == slot.len() + 1 && texts[at + 1..] == slot[at..];
    let is_changed = texts.len() == slot.len() && texts[at + 1..] == slot[at + 1..];
    (is_added || is_changed).then_some((*expert, at))
}

/// Runs of consecutive numbers, e.g. `0..9`, `11`.
fn ranges(numbers: &[usize]) -> Vec<String> {
    numbers
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [first, .., last] => format!("{first}..{last}"),
            run => run.iter().map(usize::to_string).collect(),
        })
        .collect()
}

/// Names of experts that are numbers as runs, any others as they are.
fn shortened(experts: &[String]) -> Vec<String> {
    let numbers: Result<Vec<usize>, _> = experts.iter().map(|name| name.parse()).collect();
    numbers.map_or_else(|_| experts.to_vec(), |numbers| ranges(&numbers))
}

fn braces(items: &[String]) -> String {
    match items {
        [item] if !item.contains("..") => item.clone(),
        items => format!("{{{}}}", items.join(",")),
    }
}

/// Whether a key matches a pattern in which `*` stands for any characters and `?` for one.
pub fn matches(pattern: &str, key: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    // Which prefixes of the pattern match the part of the key that was read.
    let mut reached = vec![false; pattern.len() + 1];
    reached[0] = true;
    let skip_stars = |reached: &mut [bool]| {
        for (position, c) in pattern.iter().enumerate() {
            if *c == '*' && reached[position] {
                reached[position + 1] = true;
            }
        }
    };
    skip_stars(&mut reached);
    for c in key.chars() {
        let mut next = vec![false; pattern.len() + 1];
        for (position, wanted) in pattern.iter().enumerate() {
            if reached[position] {
                match wanted {
                    '*' => next[position] = true,
                    wanted if *wanted == c || *wanted == '?' => next[position + 1] = true,
                    _ => {}
                }
            }
        }
        skip_stars(&mut next);
        reached = next;
    }
    reached[pattern.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use merge::{DType, ParamKind, Slot};

    fn patterns(keys: &[&str]) -> Vec<(String, usize)> {
        let info = TensorInfo {
            dtype: DType::F32,
            shape: vec![2],
        };
        let role = |key: &str| {
            let (name, expert) = [
                (".vl.", Expert::VisionLanguage),
                (".v.", Expert::Vision),
                (".l.", Expert::Language),
                ("_imag.", Expert::Vision),
                ("_text.", Expert::Language),
            ]
            .into_iter()
            .find(|(name, _)| key.contains(name))?;
            let slot = Slot {
                key: key.replacen(name, ".", 1),
                block: None,
                module: String::new(),
                kind: ParamKind::Norm,
            };
            Some(Role::Expert { expert, slot })
        };
        collapse(keys.iter().map(|&key| (key, &info)), role)
            .into_iter()
            .map(|branch| (branch.pattern, branch.n_tensors))
            .collect()
    }

    #[test]
    fn blocks_and_experts_collapse_where_they_are_alike() {
        let keys = [
            "b.0.n.v.w",
            "b.0.n.l.w",
            "b.1.n.v.w",
            "b.1.n.l.w",
            "b.1.n.vl.w",
            "b.0.g",
            "b.2.g",
            "head.w",
        ];
        let line = |pattern: &str, n| (pattern.to_owned(), n);
        assert_eq!(
            patterns(&keys),
            [
                line("b.{0,2}.g", 2),
                line("b.{0..1}.n.{v,l}.w", 4),
                line("b.1.n.vl.w", 1),
                line("head.w", 1),
            ]
        );
    }

    #[test]
    fn an_expert_may_be_part_of_a_name() {
        assert_eq!(
            patterns(&["b.0.mlp_imag.w", "b.0.mlp_text.w"]),
            [("b.0.{mlp_imag,mlp_text}.w".to_owned(), 2)]
        );
    }

    #[test]
    fn only_the_first_number_is_a_block() {
        assert_eq!(
            patterns(&["a.0.x.1", "a.1.x.1", "a.01.x.1"]),
            [("a.{0..1}.x.1".to_owned(), 2), ("a.01.x.1".to_owned(), 1)]
        );
    }

    #[test]
    fn stars_stand_for_anything_and_question_marks_for_one() {
        for (pattern, is_match) in [
            ("*", true),
            ("a.b.c", true),
            ("a.*", true),
            ("*.c", true),
            ("*b*", true),
            ("a.?.c", true),
            ("a.??.c", false),
            ("b", false),
            ("", false),
            ("a.b.c*", true),
            ("*a*c*b", false),
        ] {
            assert_eq!(matches(pattern, "a.b.c"), is_match, "{pattern}");
        }
    }
}
