//! From a Lightning checkpoint to a merged one, and everything that must be refused on the way.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::vlmerge;

const SPECIFIC: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const SEED: &str = "fixtures/ckpt/ufo_pretrain.ckpt";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = (std::fs::read_dir(self.0.path()).expect("readable"))
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .collect();
        names.sort();
        names
    }
}

#[test]
fn the_three_verbs_and_the_recipe_they_print_give_the_same_bytes() {
    let folder = Folder::new();
    let grams = "fixtures/merge/gram_irtr.pth";
    let cases: [&[&str]; 3] = [
        &["interpolate", SPECIFIC, "--ratio", "0.25", "--for", "vqa"],
        &[
            "arithmetic",
            SPECIFIC,
            "--seed-checkpoint",
            SEED,
            "--lambda",
            "0.75",
        ],
        &[
            "regmean",
            SPECIFIC,
            "--grams",
            grams,
            "--shrink",
            "0.9",
            "--for",
            "retrieval",
        ],
    ];
    for case in cases {
        let (direct, by_recipe) = (
            folder.file("direct.safetensors"),
            folder.file("recipe.safetensors"),
        );
        let said = vlmerge(&[case, &["--out", &direct, "--force"]].concat());
        assert_eq!(
            (said.code, said.stdout.trim()),
            (Some(0), direct.as_str()),
            "{}",
            said.stderr
        );
        let recipe = vlmerge(&[case, &["--print-recipe"]].concat());
        assert_eq!(recipe.code, Some(0), "{}", recipe.stderr);
        let path = folder.file("recipe.yaml");
        std::fs::write(&path, &recipe.stdout).expect("written");
        let said = vlmerge(&["merge", &path, "--out", &by_recipe, "--force"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let bytes = |path: &str| std::fs::read(path).expect("written");
        assert!(bytes(&direct) == bytes(&by_recipe), "{}", case[0]);
    }
}

#[test]
fn a_merged_checkpoint_says_where_it_comes_from() {
    let folder = Folder::new();
    // Of the input, as `b3sum` and `sha256sum` print them.
    let blake3 = "ef848d890f762fc7bcb14e9ca7f2282bab30540e9e4b079a8f435e5d03665532";
    let sha256 = "f5ef9ec400524013ec75bfda4be26094bf0dc621856942aff1c00ed2ac23560a";
    for (name, kind, hash) in [
        ("merged.safetensors", "blake3", blake3),
        ("merged.ckpt", "sha256", sha256),
    ] {
        let out = folder.file(name);
        let said = vlmerge(&["interpolate", SPECIFIC, "--out", &out, "--hash", kind]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let inspected = vlmerge(&["inspect", &out, "--json"]).stdout;
        for part in [
            "interpolate",
            "all_moe_pretrain.ckpt",
            "vl_merging/agnostic",
        ] {
            assert!(inspected.contains(part), "{name}: no {part} in {inspected}");
        }
        let hash = format!("\"{kind}\": \"{hash}\"");
        assert!(
            inspected.contains(&hash),
            "{name}: no {hash} in {inspected}"
        );
    }
}

#[test]
fn a_dry_run_names_every_key_and_writes_nothing() {
    let folder = Folder::new();
    let out = folder.file("merged.safetensors");
    let said = vlmerge(&[
        "interpolate",
        SPECIFIC,
        "--out",
        &out,
        "--dry-run",
        "--json",
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let plan = said.json();
    let count = |key: &str| plan[key].as_array().expect("a list").len();
    let inspected = vlmerge(&["inspect", SPECIFIC, "--json", "--hash"]).json();
    let n_inputs = (inspected["tensors"].as_array().expect("a list").iter())
        .filter(|tensor| !tensor["name"].is_null())
        .count();
    let n_sources: usize = (plan["entries"].as_array().expect("a list").iter())
        .map(|entry| entry["from"].as_array().expect("a list").len())
        .sum();
    assert_eq!(
        n_sources + count("dropped"),
        n_inputs,
        "every key is used or dropped"
    );
    assert!(plan["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(folder.names().is_empty());
}

#[test]
fn wrong_arguments_and_recipes_end_with_2_and_bad_files_with_1() {
    let folder = Folder::new();
    let out = folder.file("merged.safetensors");
    let recipe = folder.file("recipe.yaml");
    std::fs::write(&recipe, "merge_method: liner\nmodels: [{model: x}]\n").expect("written");
    let read_only = "/proc/merged.safetensors";
    let cases: [(i32, &[&str], &str); 10] = [
        (2, &["interpolate"], "Usage"),
        (2, &["interpolate", SPECIFIC], "--out"),
        (
            2,
            &["interpolate", SPECIFIC, "--ratio", "1.5", "--out", &out],
            "`ratio`",
        ),
        (2, &["merge", &recipe, "--out", &out], "`liner`"),
        (
            2,
            &["interpolate", SPECIFIC, "--out", "merged.onnx"],
            ".safetensors",
        ),
        (
            1,
            &["interpolate", "missing.ckpt", "--out", &out],
            "missing.ckpt",
        ),
        (1, &["interpolate", SEED, "--out", &out], "nothing to merge"),
        (
            1,
            &["interpolate", SPECIFIC, "--out", "no/such/folder/merged.pt"],
            "no/such/folder",
        ),
        (1, &["interpolate", SPECIFIC, "--out", read_only], "/proc"),
        (
            1,
            &[
                "regmean",
                SPECIFIC,
                "--grams",
                "fixtures/merge/gram_irtr.pth",
                "--for",
                "vqa",
                "--out",
                &out,
            ],
            "vision_language",
        ),
    ];
    for (code, arguments, part) in cases {
        let said = vlmerge(arguments);
        assert_eq!(said.code, Some(code), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains(part), "{arguments:?}: {}", said.stderr);
        assert!(said.stdout.is_empty(), "{arguments:?}");
        assert!(!Path::new(&out).exists(), "{arguments:?}");
    }
}

#[test]
fn an_existing_target_is_replaced_only_with_force() {
    let folder = Folder::new();
    let out = folder.file("merged.safetensors");
    std::fs::write(&out, "precious").expect("written");
    let said = vlmerge(&["interpolate", SPECIFIC, "--out", &out]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("hint: pass --force"),
        "{}",
        said.stderr
    );
    assert_eq!(std::fs::read(&out).expect("there"), b"precious");
    assert_eq!(
        vlmerge(&["interpolate", SPECIFIC, "--out", &out, "--force"]).code,
        Some(0)
    );
    assert!(std::fs::metadata(&out).expect("there").len() > 100_000);
    assert_eq!(folder.names(), ["merged.safetensors"]);
}

/// A model of some size, so that writing it takes a while.
fn big_model(folder: &Folder) -> String {
    let path = folder.file("big.safetensors");
    let said = vlmerge(&[
        "synth",
        "--size",
        "custom",
        "--layout",
        "all-specific",
        "--blocks",
        "6",
        "--width",
        "512",
        "--attention-heads",
        "8",
        "--fusion-start",
        "4",
        "--no-sync",
        &path,
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    path
}

#[test]
fn a_killed_merge_leaves_the_old_target_or_none() {
    let folder = Folder::new();
    let model = big_model(&folder);
    let outputs = Folder::new();
    let mut n_killed = 0;
    for attempt in 0..12u64 {
        let out = outputs.file("merged.safetensors");
        let has_old = attempt % 2 == 0;
        if has_old {
            std::fs::write(&out, "old").expect("written");
        } else {
            let _ = std::fs::remove_file(&out);
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .args(["interpolate", &model, "--out", &out, "--force", "--quiet"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        std::thread::sleep(Duration::from_millis(3 * attempt));
        child.kill().expect("SIGKILL");
        n_killed += usize::from(!child.wait().expect("ended").success());
        match std::fs::read(&out) {
            Ok(bytes) if bytes == b"old" => assert!(has_old),
            // Done before the kill: then it is whole.
            Ok(_) => assert_eq!(
                vlmerge(&["diff", &out, &out, "--headers-only"]).code,
                Some(0)
            ),
            Err(_) => assert!(!has_old),
        }
    }
    assert!(n_killed > 0, "at least one attempt was killed under way");
}

#[test]
fn an_interrupt_stops_at_once_and_leaves_no_partial_file() {
    let folder = Folder::new();
    let model = big_model(&folder);
    let outputs = Folder::new();
    let out = outputs.file("merged.safetensors");
    for signal in ["-INT", "-TERM"] {
        let child = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .args(["interpolate", &model, "--out", &out, "--threads", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let started = Instant::now();
        let is_writing = || {
            outputs
                .names()
                .iter()
                .any(|name| name.ends_with(".partial"))
        };
        while !is_writing() && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill is there");
        let output = child.wait_with_output().expect("ended");
        if output.status.success() {
            // Too quick for the signal; what it wrote is whole and in the way of the next.
            std::fs::remove_file(&out).expect("written");
            continue;
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("stopped; nothing was written"), "{stderr}");
        assert!(outputs.names().is_empty(), "{:?}", outputs.names());
    }
}

#[test]
fn a_full_disk_is_an_error_with_a_hint_and_leaves_nothing() {
    // RLIMIT_FSIZE makes the kernel refuse writes beyond a size, as a full disk does.
    let folder = Folder::new();
    let outputs = Folder::new();
    let model = big_model(&folder);
    let out = outputs.file("merged.safetensors");
    let script = format!(
        "trap '' XFSZ; ulimit -f 2000; exec '{}' interpolate '{model}' --out '{out}'",
        env!("CARGO_BIN_EXE_vlmerge")
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("bash is there");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: ") && stderr.contains("merged.safetensors"),
        "{stderr}"
    );
    assert!(outputs.names().is_empty(), "{:?}", outputs.names());
}

#[test]
fn a_split_model_merges_like_a_whole_one() {
    let folder = Folder::new();
    let split = folder.file("split");
    std::fs::create_dir(&split).expect("created");
    let index = PathBuf::from(&split).join("model.safetensors");
    let said = vlmerge(&[
        "convert",
        SPECIFIC,
        index.to_str().expect("UTF-8"),
        "--max-shard-size",
        "300KB",
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let n_files = std::fs::read_dir(&split).expect("readable").count();
    assert!(n_files > 3, "{n_files} files");
    let (whole, parts) = (folder.file("whole.pt"), folder.file("parts.pt"));
    assert_eq!(
        vlmerge(&["interpolate", SPECIFIC, "--out", &whole]).code,
        Some(0)
    );
    assert_eq!(
        vlmerge(&["interpolate", &split, "--out", &parts]).code,
        Some(0)
    );
    let said = vlmerge(&["diff", &whole, &parts]);
    assert_eq!(said.code, Some(0), "{}", said.stdout);
}

#[test]
fn a_part_of_a_diffusion_pipeline_is_called_as_its_loader_asks() {
    let folder = Folder::new();
    let words = fixtures::tensors(Path::new("fixtures/mergekit/words_a/model.safetensors"));
    for part in ["a", "b"] {
        let part = folder.0.path().join(part);
        std::fs::create_dir(&part).expect("made");
        fixtures::write(&part.join("diffusion_pytorch_model.safetensors"), &words);
        let config = r#"{"_class_name": "UNet2DConditionModel"}"#;
        std::fs::write(part.join("config.json"), config).expect("written");
    }
    let (a, b, out) = (folder.file("a"), folder.file("b"), folder.file("out/"));
    let recipe = folder.file("recipe.yaml");
    let yaml = format!("merge_method: linear\nmodels: [{a}, {b}]\nparameters: {{weight: 1}}\n");
    std::fs::write(&recipe, yaml).expect("written");
    let merge = |more: &[&str]| {
        let said = vlmerge(&[&["merge", &recipe, "--out", &out, "--force"], more].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    };
    merge(&[]);
    let named = |ending: &str| {
        let name = format!("out/diffusion_pytorch_model{ending}");
        folder.0.path().join(name)
    };
    assert!(named(".safetensors").is_file());
    merge(&["--max-shard-size", "2KB"]);
    assert!(!named(".safetensors").exists());
    assert!(named(".safetensors.index.json").is_file());
    assert_eq!(vlmerge(&["verify", &out]).code, Some(0));
}

#[test]
fn a_tasks_model_comes_back_from_a_merge_and_its_masks() {
    let folder = Folder::new();
    let input = |name: &str| format!("fixtures/methods/inputs/{name}.safetensors");
    let (merged, masks) = (
        folder.file("merged.safetensors"),
        folder.file("masks.safetensors"),
    );
    let task = |task: &str, out: &str| {
        vlmerge(&[
            "task",
            &merged,
            "--masks",
            &masks,
            "--base",
            &input("base"),
            "--task",
            task,
            "--out",
            out,
        ])
    };
    for models in [vec!["model_a"], vec!["model_a", "model_b"]] {
        let recipe = folder.file("recipe.yaml");
        let list: Vec<String> = models.iter().map(|name| input(name)).collect();
        let text = format!(
            "merge_method: emr\nbase_model: {}\nmodels: [{}]\n",
            input("base"),
            list.join(", ")
        );
        std::fs::write(&recipe, text).expect("written");
        let said = vlmerge(&[
            "merge", &recipe, "--out", &merged, "--masks", &masks, "--force",
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(said.stderr.contains("masks of tasks"), "{}", said.stderr);
        let restored = folder.file(&format!("task-{}.safetensors", models.len()));
        let said = task("model_a", &restored);
        assert_eq!(
            (said.code, said.stdout.trim()),
            (Some(0), restored.as_str()),
            "{}",
            said.stderr
        );
        // A lone model is what its masks keep of it; of two each keeps a part.
        let said = vlmerge(&["diff", &restored, &input("model_a"), "--tolerance", "1e-6"]);
        assert_eq!(
            said.code,
            Some(i32::from(models.len() > 1)),
            "{}",
            said.stderr
        );
    }
    let said = task("model_z", &folder.file("none.safetensors"));
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("model_a") && said.stderr.contains("model_b"),
        "{}",
        said.stderr
    );
}
