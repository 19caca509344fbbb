//! One example: its name, its content, its numbers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Example, Id, Wanted};
use crate::measure::key_of;
use crate::outside::json;

/// The fields of an example, as the file has them.
pub type Fields = Map<String, Value>;

/// Fields that name an example: of the harnesses, of VLMEvalKit, of other programs.
const IDS: [&str; 4] = ["doc_id", "index", "question_id", "id"];

/// Fields of the harnesses that are no metric, though their values may be numbers.
const NO_METRICS: [&str; 16] = [
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
    "input",
    "index",
    "question_id",
    "id",
    "schema",
];

/// Columns of tables that say how good an answer is.
const JUDGEMENTS: [&str; 6] = ["hit", "score", "correct", "match", "acc", "accuracy"];

/// The filter of lm-evaluation-harness that changes nothing.
const NO_FILTER: &str = "none";

/// Reads examples of one file.
pub struct Reader<'a> {
    wanted: &'a Wanted,
    is_harness: bool,
    /// Metrics, or fields in place of one, whose values are no numbers.
    no_numbers: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    /// A reader of lines of a harness, or of rows of a table.
    pub fn new(wanted: &'a Wanted, is_harness: bool) -> Self {
        Self {
            wanted,
            is_harness,
            no_numbers: BTreeSet::new(),
        }
    }

    /// Fields that might have been metrics, and hold no numbers.
    pub fn without_number(self) -> impl Iterator<Item = String> {
        self.no_numbers.into_iter()
    }

    /// An example and its name.
    ///
    /// # Errors
    /// The fault, as a clause.
    pub fn example(&mut self, fields: &Fields) -> Result<(Id, Example), String> {
        let id = id_of(fields)?;
        let hash = |name: &str| {
            let hash = fields.get(name).and_then(Value::as_str);
            hash.map(str::to_owned)
        };
        let content = hash("doc_hash").or_else(|| fields.get("doc").map(key_of));
        let content = content.or_else(|| {
            // Of a table the question and the right answer.
            let told = ["question", "answer"].map(|name| fields.get(name));
            told.iter().any(Option::is_some).then(|| key_of(&told))
        });
        let cluster = match &self.wanted.cluster_by {
            None => None,
            Some(path) => Some(cluster_of(fields, path)?),
        };
        Ok((
            id,
            Example {
                content,
                prompt: hash("prompt_hash"),
                target: hash("target_hash"),
                cluster,
                values: self.values(fields)?,
            },
        ))
    }

    fn values(&mut self, fields: &Fields) -> Result<BTreeMap<String, f64>, String> {
        let filter = fields.get("filter").and_then(Value::as_str);
        let filter = filter.filter(|&filter| self.is_harness && filter != NO_FILTER);
        let full = |name: &str| match filter {
            Some(filter) => format!("{name},{filter}"),
            None => name.to_owned(),
        };
        let names: Vec<String> = match (&self.wanted.metric, fields.get("metrics")) {
            (Some(wanted), _) => {
                // `exact_match,strict-match` is the metric of a filter.
                let own = match wanted.split_once(',') {
                    Some((name, of)) if self.is_harness => {
                        (of == filter.unwrap_or(NO_FILTER)).then_some(name)
                    }
                    _ => Some(wanted.as_str()),
                };
                own.map(str::to_owned).into_iter().collect()
            }
            (None, Some(Value::Array(names))) if self.is_harness => names
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            (None, _) if self.is_harness => {
                let others = fields
                    .keys()
                    .filter(|name| !NO_METRICS.contains(&name.as_str()));
                others.cloned().collect()
            }
            (None, _) => {
                let judged = JUDGEMENTS.iter().find(|&&name| fields.contains_key(name));
                if judged.is_none() {
                    self.no_numbers.extend(fields.keys().cloned());
                }
                judged.map(|&name| name.to_owned()).into_iter().collect()
            }
        };
        let mut values = BTreeMap::new();
        for name in names {
            let value = match fields.get(&name) {
                Some(value) => value,
                None if self.wanted.metric.is_some() => match json::at_fields(fields, &name) {
                    Some(value) => value,
                    // Another task of the run may have it.
                    None if self.is_harness => continue,
                    None => return Err(format!("has no `{name}`")),
                },
                None => return Err(format!("has no `{name}`, which it names as a metric")),
            };
            match number(value, !self.is_harness) {
                Some(number) => {
                    values.insert(full(&name), number);
                }
                None if self.wanted.metric.is_some() || !self.is_harness => {
                    let shown: String = value.to_string().chars().take(60).collect();
                    return Err(format!(
                        "has {shown} as `{name}`, which is no finite number"
                    ));
                }
                // Parts of a number that only all examples together have, such as BLEU.
                None => {
                    self.no_numbers.insert(name);
                }
            }
        }
        Ok(values)
    }
}

fn id_of(fields: &Fields) -> Result<Id, String> {
    let name = IDS.iter().find(|&&name| fields.contains_key(name));
    let Some(&name) = name else {
        return Err(format!(
            "names no example: it has none of {}",
            IDS.join(", ")
        ));
    };
    match &fields[name] {
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Ok(Id::Number(number)),
            // pandas writes 3.0 where another row has none.
            (None, Some(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Ok(Id::Number(number as i64))
            }
            _ => Ok(Id::Text(number.to_string())),
        },
        Value::String(text) if !text.is_empty() => Ok(match text.parse() {
            Ok(number) => Id::Number(number),
            Err(_) => Id::Text(text.clone()),
        }),
        _ => Err(format!("has no number or text as `{name}`")),
    }
}

/// The cluster: a field of the example, or of what the data set says of it.
fn cluster_of(fields: &Fields, path: &str) -> Result<String, String> {
    let of_doc = || fields.get("doc").and_then(|doc| json::at(doc, path));
    match json::at_fields(fields, path).or_else(of_doc) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) | None => {
            Err(format!("has no `{path}`, which says what belongs together"))
        }
        Some(other) => Ok(other.to_string()),
    }
}

/// A number, a truth value, an object with a `score`, or in a table the text of one.
fn number(value: &Value, is_cell: bool) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(is_right) => Some(f64::from(u8::from(*is_right))),
        Value::Object(map) => map.get("score").and_then(|score| number(score, is_cell)),
        Value::String(text) if is_cell => match text.trim() {
            "True" | "true" | "TRUE" => Some(1.0),
            "False" | "false" | "FALSE" => Some(0.0),
            text => text.parse().ok(),
        },
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_harness: bool, wanted: &Wanted) -> Result<(Id, Example), String> {
        let value = json::parse(text).expect("JSON");
        let fields = value.as_object().expect("an object");
        Reader::new(wanted, is_harness).example(fields)
    }

    #[test]
    fn numbers_of_a_line_are_its_metrics() {
        let wanted = Wanted::default();
        let line = r#"{"doc_id": 3, "doc": {"q": "x"}, "target": 1, "metrics": ["acc", "f1"], "acc": true, "f1": [1, 2]}"#;
        let (id, example) = read(line, true, &wanted).expect("an example");
        assert_eq!(id, Id::Number(3));
        assert_eq!(example.values, BTreeMap::from([("acc".to_owned(), 1.0)]));
        assert!(example.content.is_some());
        // As older versions write it, and lmms-eval.
        let line = r#"{"doc_id": 3, "target": 1, "acc": 0.5, "mme": {"score": 1, "id": "x"}, "filter": "strict"}"#;
        let (_, example) = read(line, true, &wanted).expect("an example");
        let expected = [("acc,strict", 0.5), ("mme,strict", 1.0)];
        assert_eq!(
            example.values,
            expected
                .map(|(name, value)| (name.to_owned(), value))
                .into()
        );
    }

    #[test]
    fn rows_of_a_table_are_numbers_as_text() {
        let wanted = Wanted {
            cluster_by: Some("category".to_owned()),
            ..Wanted::default()
        };
        let row = r#"{"index": "17", "question": "q", "hit": "1.0", "category": "color"}"#;
        let (id, example) = read(row, false, &wanted).expect("an example");
        assert_eq!(
            (id, example.cluster.as_deref()),
            (Id::Number(17), Some("color"))
        );
        assert_eq!(example.values["hit"], 1.0);
        let row = r#"{"index": 17, "hit": "yes", "category": "color"}"#;
        assert!(
            read(row, false, &wanted)
                .expect_err("refused")
                .contains("no finite number")
        );
        let row = r#"{"index": 17, "hit": 1}"#;
        assert!(
            read(row, false, &wanted)
                .expect_err("refused")
                .contains("no `category`")
        );
    }

    #[test]
    fn a_metric_of_a_filter_is_taken_from_its_lines_alone() {
        let wanted = Wanted {
            metric: Some("em,strict".to_owned()),
            ..Wanted::default()
        };
        let line = |filter: &str| format!(r#"{{"doc_id": 0, "filter": "{filter}", "em": 1}}"#);
        let (_, example) = read(&line("strict"), true, &wanted).expect("an example");
        assert_eq!(example.values["em,strict"], 1.0);
        let (_, example) = read(&line("loose"), true, &wanted).expect("an example");
        assert!(example.values.is_empty());
    }
}
