//! Shells: completions, manual pages and pipes.

use std::process::{Command, Stdio};

use crate::program::{Said, vlmerge};

#[test]
fn completions_know_verbs_and_their_flags() {
    for (shell, start) in [
        ("bash", "_vlmerge()"),
        ("zsh", "#compdef vlmerge"),
        ("fish", "#"),
    ] {
        let said = vlmerge(&["completions", shell]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(said.stdout.starts_with(start), "{shell}: {}", said.stdout);
        for part in ["interpolate", "ratio"] {
            assert!(said.stdout.contains(part), "{shell}: no {part}");
        }
    }
}

#[test]
fn each_verb_has_a_manual_page_and_none_is_replaced_unasked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pages = folder.path().join("man1").display().to_string();
    let said = vlmerge(&["man", &pages]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for (page, part) in [
        ("vlmerge.1", "vlmerge\\-merge(1)"),
        ("vlmerge-interpolate.1", "\\-\\-ratio"),
        ("vlmerge-score-retrieval.1", "\\-\\-folds"),
    ] {
        let text = std::fs::read_to_string(format!("{pages}/{page}")).expect("a page");
        assert!(text.contains(".TH vlmerge"), "{page}: {text}");
        assert!(text.contains(part), "{page}: no {part} in {text}");
    }
    let said = vlmerge(&["man", &pages]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("--force"), "{}", said.stderr);
    assert_eq!(vlmerge(&["man", &pages, "--force"]).code, Some(0));
}

#[test]
fn a_closed_pipe_ends_the_program_without_a_word() {
    const MODEL: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
    for arguments in [
        &["inspect", MODEL, "--json"][..],
        &["inspect", MODEL],
        &["distance", MODEL, "--per", "all", "--json"],
        &["distance", MODEL],
        &["completions", "bash"],
        &["merge", "--help"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .arg("--quiet")
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // The reader goes before it has read anything.
        drop(child.stdout.take());
        let said = Said::new(&child.wait_with_output().expect("it ends"));
        assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
        assert_eq!(said.stderr, "", "{arguments:?}");
    }
}
