//! A study of ways to pre-train, as a user starts, continues and misspells it.

use std::path::Path;

use serde_json::Value;
use train::log::{LINES_FILE, read};

use crate::program::{Said, vlmerge};

const RECIPE: &str = "docs/recipes/study-flm.yaml";

/// The recipe, cut down to a few steps.
const SHORT: [&str; 9] = [
    "compare=[{name: flm, model: {streams: three}, objectives: [{name: flm}]}, \
     {name: mlm, model: {streams: bidirectional}, objectives: [{name: mlm}]}]",
    "at.steps=[0, 2, 4]",
    "pace={steps: 4, rounds: 2}",
    "pretrain.batch_size=8",
    "tasks.0.limit=6",
    "tasks.0.finetune.length={steps: 2}",
    "tasks.1.limit=6",
    "tasks.1.finetune.length={steps: 2}",
    "tasks.1.finetune.other_texts=2",
];

fn study(out: &Path, settings: &[&str], flags: &[&str]) -> Said {
    let mut arguments = vec!["study", RECIPE, "--out", out.to_str().expect("UTF-8")];
    for setting in SHORT.iter().chain(settings) {
        arguments.extend(["--set", setting]);
    }
    vlmerge(&[&arguments, flags].concat())
}

/// Seconds of processor time of all steps of a run.
fn seconds(run: &Path) -> Vec<f64> {
    let records = read(&run.join(LINES_FILE)).expect("a log");
    let of_step = |record: &train::log::Record| record.values["processor_seconds"];
    records.iter().map(of_step).collect()
}

/// Seconds of a step, as the docs have it: the mean over the second halves of both short runs.
fn pace(timing: &Path, way: &str) -> f64 {
    let halves: Vec<f64> = (0..2)
        .flat_map(|round| seconds(&timing.join(format!("run-{way}-{round}"))).split_off(2))
        .collect();
    assert_eq!(halves.len(), 4);
    halves.iter().sum::<f64>() / 4.0
}

/// The file `init` of a run's recipe.
fn start_of(step: &Path) -> String {
    let recipe = std::fs::read_to_string(step.join("recipe.yaml")).expect("a recipe");
    let recipe: Value = serde_json::to_value(
        train::recipe::TrainRecipe::parse(&recipe, step, &[])
            .expect("a recipe")
            .into_inner(),
    )
    .expect("JSON");
    recipe["init"].to_string()
}

#[test]
fn ways_are_measured_after_as_many_steps_and_after_as_long() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("ways");
    let said = study(&out, &[], &["--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    let steps = out.join("steps");

    // The first way last; both ways without pre-training and after 2 and 4 steps; the second as long as those.
    let points = found["points"].as_array().expect("points");
    let told: Vec<_> = points
        .iter()
        .map(|p| {
            (
                p["way"].as_str(),
                p["equal"].as_str(),
                p["first_way_steps"].as_u64(),
            )
        })
        .collect();
    let expected = [
        ("flm", "steps", 4),
        ("flm", "steps", 0),
        ("flm", "steps", 2),
        ("mlm", "steps", 0),
        ("mlm", "steps", 2),
        ("mlm", "steps", 4),
        ("mlm", "seconds", 2),
        ("mlm", "seconds", 4),
    ];
    assert_eq!(told, expected.map(|(w, e, n)| (Some(w), Some(e), Some(n))));

    let timing = steps.join("timing");
    let ratio = pace(&timing, "flm") / pace(&timing, "mlm");
    for point in points {
        let (way, n) = (&point["way"], point["first_way_steps"].as_u64().expect("n"));
        let way = way.as_str().expect("a name");
        let taken = point["steps"].as_u64().expect("a number");
        let (name, expected) = match point["equal"].as_str() {
            Some("steps") => (format!("pretrain-{way}-{n}"), n),
            _ => {
                let as_long = ((n as f64 * ratio).floor() as u64).max(1);
                (format!("pretrain-{way}-as-long-as-{n}"), as_long)
            }
        };
        assert_eq!(taken, expected, "{name}");
        let run = steps.join(&name).join("run");
        assert_eq!(run.exists(), n > 0);
        let spent = match n {
            0 => 0.0,
            _ => seconds(&run).iter().sum::<f64>(),
        };
        let told = point["seconds"].as_f64().expect("a number");
        assert!((told - spent).abs() < 1e-9, "{name}: {told}, {spent}");
        assert!(n == 0 || told > 0.0);
        for task in ["captions-coco", "retrieval-coco"] {
            assert!(point["measurements"][task][0]["interval"].is_object());
            let own = steps.join(format!("finetune-{task}-{}", &name["pretrain-".len()..]));
            let begins_with = start_of(&own);
            match n {
                0 => assert!(begins_with.contains("synth"), "{begins_with}"),
                _ => assert!(begins_with.contains(&name), "{begins_with}"),
            }
        }
    }
    // Every run of both ways begins with the same weights, and its rate ends with it.
    let start = start_of(&steps.join("pretrain-flm-2"));
    assert!(start.contains("synth"));
    for name in [
        "pretrain-flm-4",
        "pretrain-mlm-4",
        "pretrain-mlm-as-long-as-4",
    ] {
        assert_eq!(start_of(&steps.join(name)), start, "{name}");
    }
    let rate = |step: &str, at: usize| {
        read(&steps.join(step).join("run").join(LINES_FILE)).expect("a log")[at].values["rate"]
    };
    // Of 2 steps the second has half the peak, of 4 the fourth a quarter.
    assert!((rate("pretrain-flm-2", 1) / rate("pretrain-flm-4", 3) - 2.0).abs() < 1e-9);

    // A table of the last points with differences to the first way, a sentence for each, and curves.
    for table in found["test"].as_array().expect("tables") {
        let results = table["results"].as_array().expect("results");
        let names: Vec<_> = results.iter().map(|r| r["name"].as_str()).collect();
        let expected = ["flm, 4 steps", "mlm, 4 steps", "mlm, as long as flm"];
        assert_eq!(names, expected.map(Some));
        let comparisons = table["comparisons"].as_array().expect("comparisons");
        assert_eq!(comparisons.len(), 2);
    }
    let statements = found["statements"].as_array().expect("sentences");
    assert_eq!(statements.len(), 4);
    for statement in statements {
        let text = statement.as_str().expect("text");
        assert!(
            text.contains("they differ") || text.contains("the data do not tell them apart"),
            "{text}"
        );
    }
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    // BLEU-4 and CIDEr, TR@1, IR@1 and RSUM, each over steps and over seconds.
    assert_eq!(page.matches("steps of pre-training</title>").count(), 5);
    assert_eq!(
        page.matches("seconds of processor time of pre-training</title>")
            .count(),
        5
    );
    assert!(page.contains("way way-1"));

    // Nothing is left to do; lost files are made again, with as many steps as before.
    let again = study(&out, &[], &["--json"]).json();
    assert_eq!(again["steps"]["run"], 0);
    assert_eq!(again["points"], found["points"]);
    std::fs::remove_file(steps.join("pretrain-mlm-as-long-as-4/run/model.safetensors"))
        .expect("removed");
    let mended = study(&out, &[], &["--json"]).json();
    // The run, two fine-tuned models from it, and both measurements.
    assert_eq!(mended["steps"]["run"], 5);
    assert_eq!(mended["points"][7]["steps"], found["points"][7]["steps"]);
    assert_eq!(
        mended["points"][7]["measurements"],
        found["points"][7]["measurements"]
    );

    // Another rate of one way concerns what follows it alone, and the timing of all.
    let changed = study(
        &out,
        &["compare.0.optim={lr: 1e-4}"],
        &["--dry-run", "--json"],
    )
    .json();
    let standing = |name: &str| {
        let steps = changed.as_array().expect("steps");
        let found = steps.iter().find(|step| step["name"] == name);
        found.map(|step| step["standing"].clone())
    };
    for (name, expected) in [
        ("data", "finished"),
        ("timing", "to do"),
        ("pretrain-flm-2", "to do"),
        ("pretrain-mlm-2", "finished"),
        ("pretrain-mlm-as-long-as-2", "to do"),
        ("finetune-captions-coco-mlm-4", "finished"),
        ("finetune-captions-coco-flm-4", "to do"),
        ("finetune-captions-coco-flm-0", "finished"),
    ] {
        assert_eq!(standing(name), Some(expected.into()), "{name}");
    }
}

#[test]
fn comparisons_that_cannot_be_are_refused_before_any_work() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("ways");
    for (setting, expected) in [
        ("at.stepz=1", "the nearest is `steps`"),
        ("at.steps=[4, 2]", "each larger than the one before"),
        ("at.steps=[0]", "each larger than the one before"),
        ("compare=[{name: flm}]", "nothing to be compared with"),
        ("compare.1.name=flm", "flm comes twice"),
        ("compare.1.name=a/b", "names no way"),
        ("compare.1.batch_size=3", "all ways have it alike"),
        ("compare.1.data={train: []}", "all ways have it alike"),
        ("compare.1.optim={lrr: 1}", "the nearest is `lr`"),
        ("pretrain.length={steps: 3}", "the study says that itself"),
        ("pace.rounds=0", "`pace`"),
        ("tasks.1.task=captions", "comes twice"),
        ("tasks.0.test=train", "is learned from"),
        ("tasks.0.finetune.init={}", "the study says that itself"),
        ("tasks.0.finetune=null", "only where it is fine-tuned"),
        (
            "tasks.0.candidates={number: 3, from: scores.safetensors}",
            "captions has no use for them",
        ),
        ("budget_steps=3", "budget_steps"),
    ] {
        let said = study(&out, &[setting], &[]);
        assert_eq!(said.code, Some(2), "{setting}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{setting}: {}", said.stderr);
        assert!(!out.exists(), "{setting}");
    }
    let wall = study(&out, &["pace.clock=wall"], &["--jobs", "2"]);
    assert_eq!(wall.code, Some(2), "{}", wall.stderr);
    assert!(
        wall.stderr.contains("slow each other down"),
        "{}",
        wall.stderr
    );
    let card = study(&out, &[], &["--device", "cuda"]);
    assert_eq!(card.code, Some(2), "{}", card.stderr);
    assert!(card.stderr.contains("set it to wall"), "{}", card.stderr);
}
