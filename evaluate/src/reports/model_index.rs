//! Results as the hub's `model-index`, for the head of a model card.
//!
//! Reference: <https://huggingface.co/docs/hub/model-cards#evaluation-results> and
//! <https://github.com/huggingface/hub-docs/blob/main/modelcard.md>.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::file::{self, Source};
use super::{SCHEMA, TaskResult};
use crate::outside::logs::results_of;
use crate::{Error, ReportFault, Result};

/// Kinds of tasks on the hub, of tasks that have another name here.
const KINDS: [(&str, &str); 6] = [
    ("retrieval", "image-text-retrieval"),
    ("vqa", "visual-question-answering"),
    ("nlvr2", "visual-reasoning"),
    ("captions", "image-to-text"),
    ("zero_shot", "zero-shot-image-classification"),
    ("zero_shot_classes", "zero-shot-image-classification"),
];

/// The kind of the tasks of lm-evaluation-harness and of lmms-eval: models that write text.
const WRITING: &str = "text-generation";

/// The results of a model, as `model-index` lists them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelIndex {
    /// The model.
    pub name: String,
    /// By task and data set.
    pub results: Vec<IndexResult>,
}

/// The numbers of one task on one data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexResult {
    /// The task.
    pub task: Kind,
    /// The data set.
    pub dataset: Dataset,
    /// The numbers.
    pub metrics: Vec<Metric>,
}

/// A kind of task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kind {
    /// Its name on the hub.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name in the results.
    pub name: String,
}

/// A data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Its name for people.
    pub name: String,
    /// Its name on the hub, as far as the results say it.
    #[serde(rename = "type")]
    pub id: String,
    /// Its part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Its split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// The metric.
    #[serde(rename = "type")]
    pub kind: String,
    /// The number, in the unit of the results.
    pub value: f64,
    /// Its name for people.
    pub name: String,
}

/// Reads results: a report of this program, of which `model` names one model if it has several, or the results of
/// lm-evaluation-harness or lmms-eval.
///
/// # Errors
/// When the file cannot be read, is of neither form, holds no number, or results of several models of which none is named
/// ([`ReportFault::BadReport`]).
pub fn read(path: &Path, model: Option<&str>) -> Result<Vec<IndexResult>> {
    let value = results_of(path)?;
    let found = match value.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => match file::read_source(path)? {
            Source::Report(report) => of_report(path, &report.results, model)?,
            Source::Distances(_) | Source::Course(_) => Vec::new(),
        },
        _ => of_harness(&value),
    };
    match found.is_empty() {
        true => Err(bad(path, "it holds no numbers of a model on tasks")),
        false => Ok(found),
    }
}

fn of_report(path: &Path, results: &[TaskResult], model: Option<&str>) -> Result<Vec<IndexResult>> {
    let mut names: Vec<&str> = Vec::new();
    for result in results {
        if !names.contains(&result.name.as_str()) {
            names.push(&result.name);
        }
    }
    let wanted = match (model, &names[..]) {
        (Some(model), names) if names.contains(&model) => model,
        (None, [only]) => only,
        (_, names) => {
            let names = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
            return Err(bad(
                path,
                format!("it has results of {names}; name one with --model"),
            ));
        }
    };
    let own = results.iter().filter(|result| result.name == wanted);
    let own = own.map(|result| {
        let kind = KINDS.iter().find(|(task, _)| *task == result.task);
        let dataset = result
            .dataset
            .clone()
            .unwrap_or_else(|| result.task.clone());
        IndexResult {
            task: Kind {
                kind: kind
                    .map_or_else(|| result.task.replace('_', "-"), |(_, kind)| (*kind).into()),
                name: result.task.clone(),
            },
            dataset: Dataset {
                name: dataset.clone(),
                id: dataset,
                config: None,
                split: result.split.clone(),
            },
            metrics: (result.measurements.iter())
                .filter_map(|number| {
                    Some(Metric {
                        kind: number.name.clone(),
                        value: number.value?,
                        name: number.name.clone(),
                    })
                })
                .collect(),
        }
    });
    Ok(own.filter(|result| !result.metrics.is_empty()).collect())
}

/// Results of lm-evaluation-harness and lmms-eval: `results` has numbers by task, under `metric,filter`.
fn of_harness(value: &Value) -> Vec<IndexResult> {
    let Some(Value::Object(tasks)) = value.get("results") else {
        return Vec::new();
    };
    let of_task = |(task, numbers): (&String, &Value)| {
        let config = value.get("configs").and_then(|configs| configs.get(task));
        let said = |key: &str| {
            let said = config
                .and_then(|config| config.get(key))
                .and_then(Value::as_str);
            said.map(str::to_owned)
        };
        let number = |(name, value): (&String, &Value)| {
            let (metric, filter) = name.split_once(',').unwrap_or((name, "none"));
            let value = value.as_f64()?;
            (!metric.ends_with("_stderr") && metric != "samples").then(|| Metric {
                kind: metric.to_owned(),
                value,
                name: match filter {
                    "none" => metric.to_owned(),
                    filter => format!("{metric} ({filter})"),
                },
            })
        };
        IndexResult {
            task: Kind {
                kind: WRITING.to_owned(),
                name: task.clone(),
            },
            dataset: Dataset {
                name: task.clone(),
                id: said("dataset_path").unwrap_or_else(|| task.clone()),
                config: said("dataset_name"),
                split: said("test_split").or_else(|| said("validation_split")),
            },
            metrics: match numbers {
                Value::Object(numbers) => numbers.iter().filter_map(number).collect(),
                _ => Vec::new(),
            },
        }
    };
    let found = tasks.iter().map(of_task);
    found.filter(|result| !result.metrics.is_empty()).collect()
}

/// A model card with these results in its head: in place of the results that it had, the rest as it was.
///
/// # Errors
/// [`ReportFault::BadReport`] for a card whose head does not end, or when the results cannot be written as YAML.
pub fn in_card(path: &Path, card: &str, index: &ModelIndex) -> Result<String> {
    #[derive(Serialize)]
    struct Head<'a> {
        #[serde(rename = "model-index")]
        index: [&'a ModelIndex; 1],
    }
    let block = serde_saphyr::to_string(&Head { index: [index] });
    let block = block.map_err(|fault| bad(path, fault.to_string()))?;
    let card = card.strip_prefix('\u{feff}').unwrap_or(card);
    let mut lines = card.split_inclusive('\n');
    let is_fence = |line: &str| line.trim_end() == "---";
    if !lines.next().is_some_and(is_fence) {
        return Ok(format!("---\n{block}---\n{card}"));
    }
    let mut head = String::new();
    let mut is_old = false;
    let mut is_closed = false;
    for line in lines.by_ref() {
        if is_fence(line) {
            is_closed = true;
            break;
        }
        // A key of the head begins its line; items of its list may, too.
        let is_key = !line.starts_with([' ', '\t', '-', '#', '\n', '\r']);
        if is_key {
            is_old = line.starts_with("model-index:");
        }
        if !is_old {
            head.push_str(line);
        }
    }
    if !is_closed {
        return Err(bad(path, "its head begins with `---` and does not end"));
    }
    let rest: String = lines.collect();
    Ok(format!("---\n{head}{block}---\n{rest}"))
}

fn bad(path: &Path, fault: impl Into<String>) -> Error {
    Error::Report(ReportFault::BadReport {
        path: path.into(),
        fault: fault.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> ModelIndex {
        let value = serde_json::json!({
            "results": {
                "arc_easy": { "alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "f1,strict": "N/A" },
                "group": { "alias": "x" }
            },
            "configs": { "arc_easy": { "dataset_path": "allenai/ai2_arc", "dataset_name": "ARC-Easy", "test_split": "test" } }
        });
        ModelIndex {
            name: "merged".to_owned(),
            results: of_harness(&value),
        }
    }

    #[test]
    fn a_card_gets_results_and_keeps_everything_else() {
        let card = "---\nlicense: mit # ours\nmodel-index:\n- name: old\n  results: []\ntags:\n- merge\n---\n# Title\n---\n";
        let new = in_card("README.md".as_ref(), card, &index()).expect("a card");
        assert!(
            new.starts_with("---\nlicense: mit # ours\ntags:\n- merge\nmodel-index:\n"),
            "{new}"
        );
        assert!(
            new.ends_with("---\n# Title\n---\n") && !new.contains("old"),
            "{new}"
        );
        for part in [
            "type: allenai/ai2_arc",
            "config: ARC-Easy",
            "type: acc",
            "value: 0.5",
            "type: text-generation",
        ] {
            assert!(new.contains(part), "{part}: {new}");
        }
        assert!(!new.contains("stderr") && !new.contains("group"), "{new}");
        // Once more changes nothing.
        assert_eq!(
            in_card("README.md".as_ref(), &new, &index()).expect("a card"),
            new
        );
    }

    #[test]
    fn a_card_without_a_head_gets_one_and_an_open_one_is_refused() {
        let new = in_card("README.md".as_ref(), "# Title\n", &index()).expect("a card");
        assert!(
            new.starts_with("---\nmodel-index:\n") && new.ends_with("---\n# Title\n"),
            "{new}"
        );
        assert!(in_card("README.md".as_ref(), "---\nlicense: mit\n", &index()).is_err());
    }
}
