//! The part of a checkpoint that goes into a model, by the flags of the published loader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fixtures::{Case, Raw, list, text};
use merge::Checkpoint;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::progress::Silent;
use serde_json::Value;
use train::Error;
use train::recipe::{Fit, Loading, Rename};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    flags_of_loading_take_what_the_published_program_takes: "load_rule" => load_rule,
}

/// A buffer, which no rule counts: loaders rebuild it.
const BUFFER: &str = "position_ids";

type Tensors = BTreeMap<String, Raw>;

fn opened(path: &Path, tensors: &Tensors) -> Arc<Checkpoint> {
    fixtures::write(path, tensors);
    Arc::new(merge::io::open(path, &OpenOptions::default()).expect("it opens"))
}

fn zeros(like: &Raw, shape: Vec<usize>) -> Raw {
    let n: usize = shape.iter().product();
    Raw {
        bytes: vec![0; n * like.bytes.len() / like.shape.iter().product::<usize>().max(1)],
        shape,
        ..like.clone()
    }
}

/// `[2,3]` in a text.
fn shape(of: &str) -> Vec<usize> {
    let (_, rest) = of.split_once('[').expect("a shape");
    let (inner, _) = rest.split_once(']').expect("a shape");
    let axes = inner.split(',').map(|axis| axis.trim().parse());
    axes.collect::<Result<_, _>>().expect("numbers")
}

/// The checkpoint as the rule changes it, and the model without values.
fn changed(case: &Case, rule: &Value) -> (Tensors, Tensors) {
    let mut own = case.tensors("input");
    let config = case.set().config();
    let is_buffer = |name: &String| name.ends_with(BUFFER);
    let mut model: Tensors = (own.iter())
        .filter(|(name, _)| !is_buffer(name))
        .map(|(name, raw)| (name.clone(), zeros(raw, raw.shape.clone())))
        .collect();
    let Some(change) = rule["change"].as_str() else {
        return (own, model);
    };
    let words: Vec<&str> = change.split_whitespace().collect();
    let ends = |with: &str| change.ends_with(with);
    match words.as_slice() {
        [name, "buffer", "removed"] => own.retain(|key, _| !key.ends_with(name)),
        [name, "removed"] => {
            own.remove(*name).expect("there");
        }
        [name, .., "added"] if ends("added") => {
            let like = model.values().next().expect("a tensor").clone();
            own.insert((*name).into(), zeros(&like, shape(change)));
        }
        [name, "is", ..] => {
            let like = own[*name].clone();
            own.insert((*name).into(), zeros(&like, shape(change)));
        }
        ["keys", from, "renamed", to] => {
            let [from, to] = [from, to].map(|pattern| pattern.trim_end_matches('*'));
            let renamed = own
                .into_iter()
                .map(|(key, raw)| match key.strip_prefix(from) {
                    Some(rest) => (format!("{to}{rest}"), raw),
                    None => (key, raw),
                });
            own = renamed.collect();
        }
        ["model", "built", "for", "image", side] => {
            let side: u64 = side.parse().expect("pixels");
            let patches = (side / config["patch_size"].as_u64().expect("pixels")).pow(2);
            let table = model
                .iter_mut()
                .find(|(name, _)| name.ends_with("pos_embed"));
            let (_, table) = table.expect("a table of positions");
            let mut shape = table.shape.clone();
            shape[1] = patches as usize + 1;
            *table = zeros(table, shape);
        }
        other => panic!("no change {other:?}"),
    }
    (own, model)
}

/// The rule's flags as our settings.
fn settings(rule: &Value) -> Loading {
    let flags = &rule["flags"];
    let is_set = |flag: &str| flags[flag].as_bool().unwrap_or(false);
    let only = ["image", "text"].into_iter();
    let only = only.filter(|word| is_set(&format!("ckpt.only_load_{word}_encoder")));
    let only: Vec<String> = only.map(str::to_owned).collect();
    let renames = flags["model.pretrain_prefix_change_list"].as_array();
    let rename = renames.into_iter().flatten().map(|rule| {
        let (from, to) = text(rule).split_once("->").expect("an arrow");
        Rename {
            from: from.into(),
            to: to.into(),
        }
    });
    Loading {
        // `ckpt.soft_resume` changes nothing in the published program, and is no setting here.
        fit: match only.is_empty() {
            true => Fit::Exact,
            false => Fit::Lenient,
        },
        only,
        rename: rename.collect(),
        interpolate_positions: is_set("model.interpolate_pos_embed"),
    }
}

/// Whether we load what the published program fails at for no reason of the weights: a container that it
/// does not know, or whose prefix it does not remove; a buffer that every loader rebuilds; a rule that does
/// not spell out the prefix which it has put there itself.
fn is_accepted_here(rule: &Value) -> bool {
    let (container, prefix) = (text(&rule["container"]), text(&rule["prefix"]));
    let is_container = matches!(
        (container, prefix),
        ("state_dict" | "model_state_dict", _) | ("model", "")
    );
    let is_buffer = rule["change"]
        .as_str()
        .is_some_and(|change| change.contains(BUFFER));
    let rules = rule["flags"]["model.pretrain_prefix_change_list"].as_array();
    let has_bare_rule = rules
        .into_iter()
        .flatten()
        .any(|rule| !text(rule).starts_with("module."));
    !is_container || is_buffer || has_bare_rule
}

fn load_rule(case: &Case) {
    let rules = case.json("expected");
    let mut rules = list(&rules).iter();
    let rule = rules
        .find(|rule| rule["id"] == case["key"])
        .expect("the rule");
    let (own, model) = changed(case, rule);
    let prefix = text(&rule["prefix"]);
    let prefixed = own
        .into_iter()
        .map(|(key, raw)| (format!("{prefix}{key}"), raw));
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let own = opened(&path("own.safetensors"), &prefixed.collect());
    let fresh = opened(&path("fresh.safetensors"), &model);
    let loading = settings(rule);
    let placed = loading.place(own, fresh, &Silent);
    let all = || model.keys().cloned().collect::<BTreeSet<String>>();
    let expected: BTreeSet<String> = match &rule["loaded"] {
        Value::Array(names) => names.iter().map(|name| text(name).to_owned()).collect(),
        Value::String(_) => all(),
        _ if is_accepted_here(rule) => all(),
        _ => BTreeSet::new(),
    };
    let placed = match placed {
        Ok(placed) => placed,
        // Where nothing is loaded, the published program fails, or says nothing.
        Err(error) if expected.is_empty() => {
            let is_silent = rule["result"] == "ok";
            match error {
                Error::BadSetting { .. } => assert!(is_silent),
                Error::DoesNotFit { .. } => assert!(!is_silent),
                other => panic!("{other}"),
            }
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let taken: BTreeSet<String> = placed.taken.into_iter().collect();
    assert_eq!(taken, expected);
    // Tensors that are taken have the checkpoint's values, all others are fresh, which is zero.
    let made = in_memory(&placed.plan, &RunOptions::default(), &Silent).expect("made");
    for (name, raw) in &model {
        let bytes = made.read_all(name).expect("it reads");
        assert_eq!(
            made.require(name).expect("there").shape,
            raw.shape,
            "{name}"
        );
        let is_fresh = bytes.iter().all(|byte| *byte == 0);
        assert_eq!(is_fresh, !taken.contains(name), "{name}");
    }
}
