//! Data sets and judges say what they left out: cases of public reports, `fixtures/data_cases`.

use std::collections::BTreeMap;
use std::path::Path;

use merge::TensorInfo;
use merge::io::{OpenOptions, WriteOptions, Writer};
use tempfile::TempDir;

use crate::program::{ok, run};

const CASES: &str = "fixtures/data_cases";
const WITH_HEADS: &str = "fixtures/ckpt/all_moe.safetensors";
const SPECIFIC: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const VOCABULARY: &str = "fixtures/real/vocab.txt";
const OFFICIAL: &str = "fixtures/data_cases/questions_dropped/v2_mscoco_val2014_annotations.json";

fn shown(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn new_folder() -> TempDir {
    TempDir::new().expect("a folder")
}

/// Copies a folder with all that is in it.
fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copied(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).expect("copied");
            }
        }
    }
}

/// Flags that run a checkpoint of the fixtures on the arrow files in `{}/arrow`.
fn on(checkpoint: &str, task: &str, split: &str) -> String {
    format!(
        "-q evaluate {checkpoint} --text-table-len 16 --tokenizer {VOCABULARY} --task {task} \
         --data {{}}/arrow --split {split}"
    )
}

#[test]
fn questions_that_no_class_answers_are_counted_wherever_the_data_are_used() {
    let folder = new_folder();
    let build = format!(
        "data build vqa --raw {CASES}/questions_dropped --out {{}}/arrow --split train --split val"
    );
    let said = ok(run(&build, &folder));
    let of_val = "vqav2_val.arrow: 5 rows\n  4 of 18 questions left out: no answer in the vocabulary\n  1 of 6 images left out: no question left\n";
    assert!(said.stdout.contains(of_val), "{}", said.stdout);
    // The same of a file that is there.
    let said = ok(run(&format!("{build} --json"), &folder)).json();
    let val = said["files"].as_array().expect("files").iter();
    let mut val = val.filter(|file| {
        file["path"]
            .as_str()
            .expect("a path")
            .ends_with("vqav2_val.arrow")
    });
    let val = val.next_back().expect("the file");
    assert_eq!(val["is_old"], true);
    assert_eq!(val["left_out"][0]["n"], 4);
    assert_eq!(val["left_out"][0]["of"], 18);
    let ids = val["left_out"][0]["ids"].as_array().expect("ids");
    assert!(ids.contains(&"12000".into()), "{ids:?}");
    assert_eq!(val["left_out"][1]["ids"], serde_json::json!(["11"]));

    let said = ok(run("data stats {}/arrow/vqav2_val.arrow", &folder));
    assert!(
        said.stdout.contains("4 of 18 questions left out"),
        "{}",
        said.stdout
    );
    let evaluate = format!(
        "{} --allow-other-answers --out {{}}/report.json",
        on(WITH_HEADS, "vqa", "val")
    );
    let said = ok(run(&evaluate, &folder));
    assert!(
        said.stdout
            .contains("vqav2_val.arrow: 4 of 18 questions left out"),
        "{}",
        said.stdout
    );
    let said = ok(run("report {}/report.json --format markdown", &folder));
    assert!(
        said.stdout.contains("4 of 18 questions left out"),
        "{}",
        said.stdout
    );
}

#[test]
fn a_repaired_picture_is_taken_up_again_and_a_missing_one_listed_every_time() {
    let folder = new_folder();
    let raw = folder.path().join("raw");
    copied(Path::new(&format!("{CASES}/bad_picture")), &raw);
    let picture = raw.join("val2014/COCO_val2014_000000000003.jpg");
    let away = folder.path().join("away.jpg");
    std::fs::rename(&picture, &away).expect("moved");
    let build = "data build coco --raw {}/raw --out {}/arrow --split test --skip-bad";
    for was_there in ["", ", was there"] {
        let said = ok(run(build, &folder));
        let rows = format!("coco_caption_karpathy_test.arrow: 2 rows{was_there}\n");
        assert!(said.stdout.contains(&rows), "{}", said.stdout);
        assert!(
            said.stdout.contains("1 of 3 rows left out") && said.stdout.contains("000003.jpg"),
            "{}",
            said.stdout
        );
    }
    // Without the flag a missing picture is an error, and the file stays.
    let strict = build.replace(" --skip-bad", "");
    let said = run(&strict, &folder);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stderr.contains("000003.jpg"), "{}", said.stderr);
    std::fs::rename(&away, &picture).expect("moved");
    let said = ok(run(build, &folder));
    assert!(
        said.stdout.contains("test.arrow: 3 rows\n"),
        "{}",
        said.stdout
    );
    // Nothing is left out, so the flag makes no other file.
    let said = ok(run(&strict, &folder));
    assert!(
        said.stdout.contains("3 rows, was there\n"),
        "{}",
        said.stdout
    );
}

#[test]
fn what_a_finished_file_leaves_out_is_told_even_if_a_later_one_fails() {
    let folder = new_folder();
    let raw = folder.path().join("raw");
    copied(Path::new("fixtures/raw/f30k"), &raw);
    let json = raw.join("karpathy/dataset_flickr30k.json");
    let annotations: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).expect("read")).expect("JSON");
    let images = annotations["images"].as_array().expect("images");
    let of = |split: &str| {
        let images = images.iter().filter(|image| image["split"] == split);
        let names = images.map(|image| image["filename"].as_str().expect("a name"));
        names.collect::<Vec<_>>()
    };
    // One picture of the first file goes, and all of the last.
    for name in of("test").iter().chain(&of("train")[..1]) {
        std::fs::remove_file(raw.join("flickr30k-images").join(name)).expect("removed");
    }
    let said = run(
        "data build f30k --raw {}/raw --out {}/arrow --skip-bad",
        &folder,
    );
    assert_eq!(said.code, Some(1));
    assert!(
        said.stdout.contains(&format!("left out: {}", shown(&raw))),
        "{}",
        said.stdout
    );
}

#[test]
fn retrieval_writes_scores_and_ranks_that_are_judged_in_folds() {
    let folder = new_folder();
    ok(run(
        "data build coco --raw fixtures/real/raw --out {}/arrow",
        &folder,
    ));
    let evaluate = format!(
        "{} --predictions {{}}/out --json",
        on(SPECIFIC, "retrieval", "test")
    );
    let measured = ok(run(&evaluate, &folder)).json();
    let score = "score retrieval --scores {}/out/all_moe_pretrain.test.safetensors --json";
    let scored = ok(run(score, &folder)).json();
    let numbers = |report: &serde_json::Value| -> Vec<(String, f64)> {
        let numbers = report["results"][0]["measurements"]
            .as_array()
            .expect("numbers");
        let shares = numbers.iter().filter(|m| m["unit"] != "rank");
        let number = |m: &serde_json::Value| {
            let name = m["name"].as_str().expect("a name").to_owned();
            (name, m["value"].as_f64().expect("a value"))
        };
        shares.map(number).collect()
    };
    assert_eq!(numbers(&measured), numbers(&scored));
    // One fold is the whole; images that do not part evenly are refused.
    let one = ok(run(&format!("{score} --folds 1"), &folder)).json();
    assert_eq!(numbers(&one), numbers(&scored));
    let n_images = measured["results"][0]["counts"]["images"]
        .as_u64()
        .expect("a count");
    let said = run(&format!("{score} --folds {}", n_images + 1), &folder);
    assert!(
        said.stderr.contains("cannot be split into"),
        "{}",
        said.stderr
    );
}

#[test]
fn statements_keep_their_official_numbers() {
    let folder = new_folder();
    ok(run(
        &format!("data build nlvr2 --raw {CASES}/sentence_lost --out {{}}/arrow --split dev"),
        &folder,
    ));
    let evaluate = format!("{} --predictions {{}}/pred", on(WITH_HEADS, "nlvr2", "dev"));
    ok(run(&evaluate, &folder));
    let csv = folder.path().join("pred/all_moe.dev.csv");
    let csv = std::fs::read_to_string(csv).expect("predictions");
    assert!(
        csv.contains("dev-7-1-1,") && !csv.contains("dev-7-1-0,"),
        "{csv}"
    );
    let labels = format!("{CASES}/sentence_lost/nlvr2/data/dev.json");
    ok(run(
        &format!("score nlvr2 --predictions {{}}/pred/all_moe.dev.csv --labels {labels}"),
        &folder,
    ));
    // Files of the published writer do not tell the numbers: nothing is guessed.
    let other = new_folder();
    let arrow = other.path().join("arrow");
    std::fs::create_dir(&arrow).expect("a folder");
    let dev = Path::new("fixtures/arrow/nlvr2_dev.arrow");
    std::fs::copy(dev, arrow.join("nlvr2_dev.arrow")).expect("copied");
    let said = run(&evaluate, &other);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("official number"), "{}", said.stderr);
}

#[test]
fn an_image_without_a_text_is_an_error_or_left_out_and_listed_in_every_data_set() {
    let folder = new_folder();
    let build = format!("data build vg --raw {CASES}/no_region --out {{}}/arrow");
    let said = run(&build, &folder);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("row 1: image 2 has no region") && said.stderr.contains("--skip-bad"),
        "{}",
        said.stderr
    );
    let said = ok(run(&format!("{build} --skip-bad"), &folder));
    assert!(
        said.stdout
            .contains("vg.arrow: 2 rows\n  1 of 3 images left out: no region\n"),
        "{}",
        said.stdout
    );
    // COCO alike.
    let raw = folder.path().join("raw");
    copied(Path::new(&format!("{CASES}/bad_picture")), &raw);
    let json = raw.join("karpathy/dataset_coco.json");
    let text = std::fs::read_to_string(&json).expect("read");
    let mut annotations: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    annotations["images"][1]["sentences"] = serde_json::json!([]);
    std::fs::write(&json, annotations.to_string()).expect("written");
    let build = "data build coco --raw {}/raw --out {}/coco --split test";
    let said = run(build, &folder);
    assert!(said.stderr.contains("has no caption"), "{}", said.stderr);
    let said = ok(run(&format!("{build} --skip-bad"), &folder));
    assert!(
        said.stdout.contains("1 of 3 images left out: no caption"),
        "{}",
        said.stdout
    );
}

#[test]
fn answers_of_one_split_are_judged_by_the_official_files() {
    let folder = new_folder();
    ok(run(
        &format!(
            "data build vqa --raw {CASES}/questions_dropped --out {{}}/arrow --split train --split val"
        ),
        &folder,
    ));
    let evaluate = format!(
        "{} --allow-other-answers --predictions {{}}/pred",
        on(WITH_HEADS, "vqa", "val")
    );
    ok(run(&evaluate, &folder));
    let score = format!("score vqa --results {{}}/pred/all_moe.val.json --annotations {OFFICIAL}");
    let said = run(&score, &folder);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("--partial"), "{}", said.stderr);
    let questions = format!("{CASES}/questions_dropped/v2_OpenEnded_mscoco_val2014_questions.json");
    for more in ["", &format!(" --questions {questions}")] {
        let said = ok(run(&format!("{score} --partial{more}"), &folder));
        assert!(
            said.stdout.contains("14 of 18 questions"),
            "{}",
            said.stdout
        );
    }
}

#[test]
fn a_head_with_other_classes_than_the_data_is_an_error() {
    let folder = new_folder();
    ok(run(
        &format!(
            "data build vqa --raw {CASES}/questions_dropped --out {{}}/arrow --split train --split val"
        ),
        &folder,
    ));
    let said = run(&on(WITH_HEADS, "vqa", "val"), &folder);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("17 classes") && said.stderr.contains("2 classes"),
        "{}",
        said.stderr
    );
}

#[test]
fn captions_of_some_images_are_judged_though_others_have_none() {
    let folder = new_folder();
    let said = ok(run(
        &format!(
            "score captions --results {CASES}/partial_captions/results.json --annotations \
             {CASES}/partial_captions/annotations.json --partial --json"
        ),
        &folder,
    ));
    let numbers = said.json();
    let numbers = numbers["results"][0]["measurements"]
        .as_array()
        .expect("numbers")
        .clone();
    // The official program, as the case tells.
    for (index, percent) in [100.0, 86.6, 72.11, 0.01].into_iter().enumerate() {
        let value = 100.0 * numbers[index]["value"].as_f64().expect("a value");
        assert!(
            (value - percent).abs() < 0.006,
            "{}: {value}",
            numbers[index]["name"]
        );
    }
}

#[test]
fn a_flag_that_a_task_has_no_use_for_is_an_error() {
    let folder = new_folder();
    for (task, flag) in [
        ("vqa", "--ties first"),
        ("nlvr2", "--dataset coco"),
        ("vqa", "--without-repeats"),
    ] {
        let said = run(&format!("{} {flag}", on(WITH_HEADS, task, "val")), &folder);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains("has no use for it"), "{}", said.stderr);
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let folder = new_folder();
    let messages = format!("{CASES}/messages");
    let score = |name: &str| {
        format!(
            "score vqa --results {messages}/{name}.json --annotations {messages}/annotations.json"
        )
    };
    ok(run(&score("bom"), &folder));
    for (line, parts) in [
        (score("nan"), vec!["question_id 1001", "`answer`", "NaN"]),
        (
            score("number"),
            vec!["question_id 1001", "`answer`", "integer `2`", "a string"],
        ),
        (score("string_ids"), vec!["\"1000\"", "a whole number"]),
        (
            format!("data build sbu --raw {messages}/sbu --out {{}}/arrow"),
            vec!["row 0", "NaN"],
        ),
        (format!("data stats {messages}/parquet"), vec!["Parquet"]),
        (
            format!("data stats {messages}/struct"),
            vec!["`image`", "struct", "binary"],
        ),
        (
            format!(
                "score nlvr2 --predictions {messages}/bom.json --labels {messages}/number.json"
            ),
            vec!["a JSON object per line is expected"],
        ),
    ] {
        let said = run(&line, &folder);
        assert_eq!(said.code, Some(1), "{line}: {}", said.stdout);
        for part in parts {
            assert!(said.stderr.contains(part), "{line}: {}", said.stderr);
        }
    }
    // A question twice in an official file: no advice about predictions.
    let raw = folder.path().join("raw");
    copied(Path::new(&format!("{CASES}/questions_dropped")), &raw);
    let json = raw.join("v2_OpenEnded_mscoco_val2014_questions.json");
    let text = std::fs::read_to_string(&json).expect("read");
    let mut file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let first = file["questions"][0].clone();
    file["questions"]
        .as_array_mut()
        .expect("a list")
        .push(first);
    std::fs::write(&json, file.to_string()).expect("written");
    let said = run("data build vqa --raw {}/raw --out {}/arrow", &folder);
    assert!(
        said.stderr.contains("occurs more than once") && !said.stderr.contains("evaluation code"),
        "{}",
        said.stderr
    );
}

/// A copy of a checkpoint whose tensors of these names have zero rows at the end.
fn padded(from: &str, to: &Path, names: &[&str], n: usize) {
    let source = merge::io::open(Path::new(from), &OpenOptions::default()).expect("a checkpoint");
    let is_padded = |key: &str| names.iter().any(|name| key.ends_with(name));
    let tensors: Vec<(String, TensorInfo)> = (source.tensors())
        .map(|(key, info)| {
            let mut info = info.clone();
            if is_padded(key) {
                info.shape[0] += n;
            }
            (key.to_owned(), info)
        })
        .collect();
    let metadata = BTreeMap::new();
    let writer = Writer::create(&tensors, &metadata, &WriteOptions::new(to)).expect("a writer");
    for (index, (key, info)) in tensors.iter().enumerate() {
        let mut bytes = source.read_all(key).expect("read").to_vec();
        bytes.resize(info.n_elements() * info.dtype.size_bytes(), 0);
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&metadata).expect("finished");
}

#[test]
fn padded_word_embeddings_give_the_same_numbers() {
    let folder = new_folder();
    ok(run(
        "data build coco --raw fixtures/real/raw --out {}/arrow --split test",
        &folder,
    ));
    let embeddings = "word_embeddings.weight";
    let all = [embeddings, "mlm_score.bias", "mlm_score.decoder.weight"];
    let measured = |path: &str| {
        let said = ok(run(
            &format!("{} --json", on(path, "retrieval", "test")),
            &folder,
        ));
        said.json()["results"][0]["measurements"].clone()
    };
    let expected = measured(WITH_HEADS);
    // 101 rows to 128 as padding, all of them or the embeddings alone to 104.
    for (name, names, n) in [("all", &all[..], 27), ("embeddings", &all[..1], 3)] {
        let path = folder.path().join(format!("{name}.safetensors"));
        padded(WITH_HEADS, &path, names, n);
        assert_eq!(measured(shown(&path)), expected, "{name}");
    }
    // Another vocabulary is still refused.
    let line = on(WITH_HEADS, "retrieval", "test");
    let said = run(
        &line.replace(VOCABULARY, "fixtures/text/vocab.txt"),
        &folder,
    );
    assert!(
        said.stderr.contains("but the model knows 101"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_trained_model_keeps_its_answers_and_other_data_are_refused() {
    let folder = new_folder();
    ok(run(
        "data build vqa --raw fixtures/real/raw --out {}/arrow",
        &folder,
    ));
    let finetune = format!(
        "finetune --task vqa --init {SPECIFIC} --tokenizer {VOCABULARY} --data {{}}/arrow --out {{}}/run \
         --set batch_size=4 --set length={{steps:~1}} --set model.text_table_len=16 \
         --set model.image_size=48"
    );
    let said = run(&finetune, &folder);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let model = folder.path().join("run/model.safetensors");
    let file = merge::io::open(&model, &OpenOptions::default()).expect("a model");
    let answers: Vec<String> =
        serde_json::from_str(&file.info().metadata["vlmerge.answers"]).expect("a list");
    assert!(answers.len() > 2, "{answers:?}");
    // A merge keeps them, too.
    let merged = format!(
        "interpolate {} --ratio 0.5 --out {{}}/merged.safetensors",
        shown(&model)
    );
    ok(run(&merged, &folder));
    let merged = folder.path().join("merged.safetensors");
    let file = merge::io::open(&merged, &OpenOptions::default()).expect("a model");
    assert!(file.info().metadata.contains_key("vlmerge.answers"));
    ok(run(&on(shown(&merged), "vqa", "val"), &folder));
    // The same numbers of classes, other words.
    let other = new_folder();
    let raw = other.path().join("raw");
    copied(Path::new("fixtures/real/raw"), &raw);
    for year in ["train", "val"] {
        let json = raw.join(format!("v2_mscoco_{year}2014_annotations.json"));
        let text = std::fs::read_to_string(&json).expect("read");
        std::fs::write(&json, text.replace("\"yes\"", "\"aye\"")).expect("written");
    }
    ok(run("data build vqa --raw {}/raw --out {}/arrow", &other));
    let said = run(&on(shown(&merged), "vqa", "val"), &other);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("in the model's list of answers"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_run_goes_on_with_its_own_data_and_settings_alone() {
    let folder = new_folder();
    ok(run(
        "data build coco --raw fixtures/real/raw --out {}/arrow",
        &folder,
    ));
    let finetune = format!(
        "finetune --task retrieval --init {SPECIFIC} --tokenizer {VOCABULARY} --data {{}}/arrow --out {{}}/run \
         --set length={{steps:~2}} --set save={{every:~{{steps:~1}}}} --set model.text_table_len=16 \
         --set model.image_size=48"
    );
    ok(run(&format!("{finetune} --set batch_size=4"), &folder));
    let said = run(&format!("{finetune} --set batch_size=6 --resume"), &folder);
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("`batch_size`: 4 then, 6 now"),
        "{}",
        said.stderr
    );
    let arrow = folder.path().join("arrow");
    std::fs::copy(
        arrow.join("coco_caption_karpathy_test.arrow"),
        arrow.join("coco_caption_karpathy_train.arrow"),
    )
    .expect("copied");
    let said = run(&format!("{finetune} --set batch_size=4 --resume"), &folder);
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("other data") && said.stderr.contains("karpathy_train.arrow"),
        "{}",
        said.stderr
    );
}
