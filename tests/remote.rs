//! Merging checkpoints of other machines.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::range_server::{Fault, Server};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/ckpt/all_moe_pretrain.ckpt"
);

fn vlmerge(folder: &Path, hub: &Server, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .current_dir(folder)
        .env("HF_ENDPOINT", hub.address(""))
        .env("HF_TOKEN", "hf_secret")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("XDG_CACHE_HOME")
        .env("HOME", folder)
        .args(["--cache-dir", "cache"])
        .args(arguments)
        .output()
        .expect("the program runs")
}

fn fetched(output: &Output) -> u64 {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    value["fetched_bytes"].as_u64().expect("a number")
}

#[test]
fn a_recipe_of_addresses_gives_the_bytes_of_local_files_and_runs_again_offline() {
    let (hub, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let bytes = std::fs::read(FIXTURE).expect("a fixture");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let info = format!(r#"{{"sha":"{commit}","siblings":[{{"rfilename":"model.bin"}}]}}"#);
    hub.put(
        "/api/models/org/model/revision/main",
        info.into_bytes(),
        "\"i\"",
    );
    hub.put(
        &format!("/org/model/resolve/{commit}/model.bin"),
        bytes.clone(),
        "\"h\"",
    );
    hub.put("/plain/second.ckpt", bytes, "\"w\"");
    let recipe = |name: &str, first: &str, second: &str| {
        let text = format!(
            "merge_method: linear\nmodels:\n- model: {first}\n  parameters: {{weight: 0.25}}\n\
             - model: {second}\n  parameters: {{weight: 0.75}}\n"
        );
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    recipe(
        "far.yaml",
        "hf://org/model",
        &hub.address("/plain/second.ckpt"),
    );
    recipe("near.yaml", FIXTURE, FIXTURE);
    let merge = |recipe: &str, out: &str, more: &[&str]| {
        let mut arguments = vec!["merge", recipe, "--out", out, "--json"];
        arguments.extend(more);
        vlmerge(folder.path(), &hub, &arguments)
    };
    assert!(fetched(&merge("far.yaml", "far.safetensors", &[])) > 0);
    assert_eq!(fetched(&merge("near.yaml", "near.safetensors", &[])), 0);
    hub.asked();
    assert_eq!(
        fetched(&merge("far.yaml", "again.safetensors", &["--offline"])),
        0
    );
    assert!(hub.asked().is_empty());
    let same = vlmerge(
        folder.path(),
        &hub,
        &["diff", "far.safetensors", "near.safetensors"],
    );
    assert!(
        same.status.success(),
        "{}",
        String::from_utf8_lossy(&same.stdout)
    );
    let read = |name: &str| std::fs::read(folder.path().join(name)).expect("written");
    assert_eq!(read("far.safetensors"), read("again.safetensors"));
    let text = String::from_utf8_lossy(&read("far.safetensors")[..4000]).into_owned();
    assert!(
        text.contains("hf://org/model") && text.contains("etag"),
        "{text}"
    );
    assert!(!text.contains("hf_secret"));

    let missing = vlmerge(
        folder.path(),
        &hub,
        &["inspect", "hf://org/other", "--offline"],
    );
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success());
    assert!(
        said.contains("hf://org/other: offline") && said.contains("hint: "),
        "{said}"
    );
    let plain = vlmerge(
        folder.path(),
        &hub,
        &["inspect", "http://example.org/m.safetensors"],
    );
    assert_eq!(plain.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&plain.stderr).contains("--allow-http"));
}

#[test]
fn a_bucket_of_google_cloud_storage_gives_the_bytes_of_local_files() {
    let (cloud, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let bytes = std::fs::read(FIXTURE).expect("a fixture");
    let listing = format!(
        "<?xml version='1.0'?><ListBucketResult><Contents><Key>one/model.ckpt</Key>\
         <LastModified>2026-07-01T00:00:00.000Z</LastModified><ETag>\"g\"</ETag>\
         <Size>{}</Size></Contents></ListBucketResult>",
        bytes.len()
    );
    cloud.put("/models", listing.into_bytes(), "\"l\"");
    cloud.put("/models/one%2Fmodel%2Eckpt", bytes, "\"g\"");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .current_dir(folder.path())
            .env("GOOGLE_BASE_URL", cloud.address(""))
            .env("GOOGLE_SKIP_SIGNATURE", "true")
            .args(["--cache-dir", "cache"])
            .args(arguments)
            .output();
        output.expect("the program runs")
    };
    for address in ["gs://models/one/model.ckpt", "gs://models/one"] {
        let same = run(&["diff", address, FIXTURE]);
        let said = String::from_utf8_lossy(&same.stderr);
        assert!(same.status.success(), "{address}: {said}");
    }
    assert!(cloud.asked().iter().any(|asked| asked.range.is_some()));
    let offline = run(&["diff", "gs://models/one/model.ckpt", FIXTURE, "--offline"]);
    assert!(offline.status.success());
    assert!(cloud.asked().is_empty());
    let absent = run(&["inspect", "gs://models/none.safetensors"]);
    let said = String::from_utf8_lossy(&absent.stderr);
    assert!(!absent.status.success());
    assert!(said.contains("gs://models/none.safetensors") && said.contains("404"));
}

#[test]
fn what_lies_beside_weights_of_the_hub_travels_along() {
    let (hub, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let weights = std::fs::read(FIXTURE).expect("a fixture");
    let tokenizer = |word: &str| {
        format!(r#"{{"model":{{"type":"WordPiece","vocab":{{"[UNK]":0,"{word}":1}}}}}}"#)
    };
    let put = |name: &str, commit: &str, word: &str| {
        let files = [
            "README.md",
            "config.json",
            "model.bin",
            "tokenizer.json",
            "train.py",
        ];
        let siblings = files
            .map(|file| format!(r#"{{"rfilename":"{file}"}}"#))
            .join(",");
        let info = format!(r#"{{"sha":"{commit}","siblings":[{siblings}]}}"#);
        hub.put(
            &format!("/api/models/org/{name}/revision/main"),
            info.into_bytes(),
            "\"i\"",
        );
        let contents = [
            b"---\nlicense: mit\n---\n# A model\n".to_vec(),
            br#"{"model_type":"vlmo","note":"from afar"}"#.to_vec(),
            weights.clone(),
            tokenizer(word).into_bytes(),
        ];
        for (file, content) in files.into_iter().zip(contents) {
            let tag = format!("\"{commit}{file}\"");
            hub.put(
                &format!("/org/{name}/resolve/{commit}/{file}"),
                content,
                &tag,
            );
        }
    };
    put("one", &"1".repeat(40), "[PAD]");
    put("two", &"2".repeat(40), "[PAD]");
    put("other", &"3".repeat(40), "[SEP]");
    let recipe = |name: &str, second: &str| {
        let text = format!(
            "merge_method: linear\nmodels:\n- model: hf://org/one\n  parameters: {{weight: 0.25}}\n\
             - model: hf://org/{second}\n  parameters: {{weight: 0.75}}\n"
        );
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    recipe("same.yaml", "two");
    recipe("different.yaml", "other");
    let merge = |arguments: &[&str]| vlmerge(folder.path(), &hub, arguments);
    let first = merge(&["merge", "same.yaml", "--out", "merged/", "--json"]);
    assert!(fetched(&first) > 0);
    // Weights and what lies beside them are of one commit, because it is asked for once.
    let asked = hub.asked();
    let of_api = asked.iter().filter(|asked| asked.path.starts_with("/api/"));
    assert_eq!(of_api.count(), 2);
    let again = merge(&[
        "merge",
        "same.yaml",
        "--out",
        "again/",
        "--json",
        "--offline",
    ]);
    assert_eq!(fetched(&again), 0);
    assert!(hub.asked().is_empty());
    for out in ["merged", "again"] {
        let read = |name: &str| std::fs::read_to_string(folder.path().join(out).join(name));
        assert_eq!(read("tokenizer.json").expect("written"), tokenizer("[PAD]"));
        assert!(read("config.json").expect("written").contains("from afar"));
        let card = read("README.md").expect("written");
        assert!(card.contains("org/two") && card.contains("mit"), "{card}");
        assert!(read("train.py").is_err());
    }
    let refused = merge(&["merge", "different.yaml", "--out", "refused/"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(
        said.contains("tokenizer_source") && said.contains("[PAD]"),
        "{said}"
    );
}

#[test]
fn a_server_that_sends_drop_by_drop_is_given_up_whatever_the_address() {
    let (cloud, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let bytes = std::fs::read(FIXTURE).expect("a fixture");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let info = format!(r#"{{"sha":"{commit}","siblings":[{{"rfilename":"model.bin"}}]}}"#);
    cloud.put(
        "/api/models/org/model/revision/main",
        info.into_bytes(),
        "\"i\"",
    );
    for path in [
        "/plain/model.ckpt",
        "/models/one%2Fmodel%2Eckpt",
        &format!("/org/model/resolve/{commit}/model.bin"),
    ] {
        cloud.put(path, bytes.clone(), "\"g\"");
    }
    cloud.misbehave(Fault::Drips);
    let web = cloud.address("/plain/model.ckpt");
    std::thread::scope(|scope| {
        for address in [web.as_str(), "gs://models/one/model.ckpt", "hf://org/model"] {
            let (cloud, folder) = (&cloud, folder.path());
            scope.spawn(move || {
                let begun = std::time::Instant::now();
                let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
                    .current_dir(folder)
                    .env("GOOGLE_BASE_URL", cloud.address(""))
                    .env("GOOGLE_SKIP_SIGNATURE", "true")
                    .env("HF_ENDPOINT", cloud.address(""))
                    .env_remove("HF_HUB_OFFLINE")
                    .args(["--cache-dir", "cache", "--timeout", "1", "inspect", address])
                    .output()
                    .expect("the program runs");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(1), "{address}: {said}");
                assert!(
                    said.contains(address) && said.contains("bytes came in"),
                    "{address}: {said}"
                );
                assert!(
                    begun.elapsed() < std::time::Duration::from_secs(60),
                    "{address}"
                );
            });
        }
    });
}

#[test]
fn a_listing_of_the_hub_that_leads_elsewhere_is_refused() {
    let (hub, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let long = "a".repeat(300);
    let many: Vec<String> = (0..2000)
        .map(|index| format!("special_tokens_{index}.json"))
        .collect();
    let list = |names: &[&str]| {
        let names = [names, &["model.bin", "config.json"]].concat();
        let siblings: Vec<Value> = names
            .iter()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let info = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        hub.put(
            "/api/models/org/model/revision/main",
            info.into_bytes(),
            "\"i\"",
        );
        let weights = std::fs::read(FIXTURE).expect("a fixture");
        for (name, bytes) in [("model.bin", weights), ("config.json", b"{}".to_vec())] {
            hub.put(
                &format!("/org/model/resolve/{commit}/{name}"),
                bytes,
                &format!("\"{name}\""),
            );
        }
        let recipe = "merge_method: passthrough\nmodels: [hf://org/model]\n";
        std::fs::write(folder.path().join("r.yaml"), recipe).expect("written");
        let output = vlmerge(
            folder.path(),
            &hub,
            &["merge", "r.yaml", "--out", "out/", "--force"],
        );
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    for name in [
        "../../.ssh/authorized_keys",
        "/etc/passwd",
        "a/../../b.json",
        "a\\b.json",
        "a\0b.json",
        "",
        "tokenizer.json/",
        &long,
    ] {
        let (code, said) = list(&[name]);
        assert_eq!(code, Some(1), "{name:?}: {said}");
        assert!(
            said.contains("the hub lists a file named"),
            "{name:?}: {said}"
        );
        assert!(said.len() < 1000, "{} bytes", said.len());
        assert!(!folder.path().join("out").exists(), "{name:?}");
    }
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (code, said) = list(&many);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("files go with the model; 1000 may"), "{said}");
    let (code, said) = list(&[]);
    assert_eq!(code, Some(0), "{said}");
    let names = std::fs::read_dir(folder.path().join("out"))
        .expect("written")
        .count();
    assert_eq!(names, 3, "weights, configuration, card");
}
