//! Verbs by what they are for, as `vlmerge --help` lists them.

use std::fmt::Write;

use clap::Command;
use clap::error::{ContextKind, ContextValue};

use crate::output::UsageError;

/// Each group and its verbs, in the order of the list. A build without models has fewer.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Look",
        &["inspect", "diff", "distance", "advise", "verify", "recipe"],
    ),
    (
        "Merge",
        &[
            "merge",
            "interpolate",
            "arithmetic",
            "regmean",
            "regmeanpp",
            "adamerging",
            "soup",
            "search",
            "moe",
            "transplant",
            "task",
        ],
    ),
    (
        "Change",
        &[
            "convert",
            "expand",
            "extract-lora",
            "classifier",
            "recalibrate",
            "synth",
        ],
    ),
    (
        "Measure",
        &[
            "data",
            "evaluate",
            "sweep",
            "score",
            "report",
            "card",
            "encode",
            "forward",
            "gram",
            "activations",
            "fisher",
        ],
    ),
    ("Train", &["pretrain", "finetune", "study"]),
    ("Shell", &["completions", "man"]),
];

/// The command line whose help lists the verbs by groups.
pub fn grouped(command: Command) -> Command {
    let list = list(&command);
    command.help_template(format!(
        "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{list}\nOptions:\n{{options}}{{after-help}}"
    ))
}

fn list(command: &Command) -> String {
    let found = |verb: &&str| command.find_subcommand(verb);
    let verbs = || GROUPS.iter().flat_map(|(_, verbs)| *verbs);
    let width = verbs().filter(|verb| found(verb).is_some());
    let width = width.map(|verb| verb.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (group, verbs) in GROUPS {
        let found: Vec<&Command> = verbs.iter().filter_map(found).collect();
        if found.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{group}:");
        for verb in found {
            let about = verb.get_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            let _ = writeln!(text, "  {:width$}  {about}", verb.get_name());
        }
    }
    text
}

/// The error for a verb of the table that `command` lacks; `None` if `error` is about anything else.
pub fn left_out(command: &Command, error: &clap::Error) -> Option<UsageError> {
    let Some(ContextValue::String(asked)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let mut verbs = GROUPS.iter().flat_map(|(_, verbs)| *verbs);
    let verb = verbs.find(|verb| *verb == asked)?;
    let is_there = command.find_subcommand(verb).is_some();
    (!is_there).then(|| UsageError::no_models(&format!("`vlmerge {verb}`")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_verb_is_in_one_group() {
        let command = crate::cli::Cli::command();
        let seen = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut seen: Vec<&str> = seen.map(Command::get_name).collect();
        let grouped = GROUPS.iter().flat_map(|(_, verbs)| *verbs).copied();
        let is_built = |verb: &&str| cfg!(feature = "models") || seen.contains(verb);
        let mut grouped: Vec<&str> = grouped.filter(is_built).collect();
        seen.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, seen);
    }

    #[test]
    fn the_help_lists_groups_and_flags() {
        let help = grouped(crate::cli::Cli::command())
            .render_help()
            .to_string();
        let at = |text: &str| {
            help.find(text)
                .unwrap_or_else(|| panic!("no {text} in {help}"))
        };
        assert!(at("Look:\n  inspect") < at("Merge:\n  merge"));
        assert!(at("Shell:\n  completions") < at("Options:\n"));
        assert!(at("Options:\n") < at("--threads"));
        assert!(!help.contains("Commands:"), "{help}");
        let has_training = help.contains("\nTrain:\n  pretrain");
        assert_eq!(has_training, cfg!(feature = "models"), "{help}");
    }

    #[test]
    fn a_build_without_a_verb_names_it_and_does_not_list_it() {
        let small = || Command::new("vlmerge").subcommand(Command::new("inspect"));
        let help = grouped(small()).render_help().to_string();
        assert!(help.contains("\nLook:\n  inspect"), "{help}");
        assert!(
            !help.contains("evaluate") && !help.contains("Train:"),
            "{help}"
        );
        let said = |words: [&str; 2]| {
            let mut command = small().subcommand_required(true);
            let error = command.try_get_matches_from_mut(words);
            left_out(&command, &error.expect_err("no such verb")).map(|error| error.0)
        };
        let missing = said(["vlmerge", "evaluate"]).expect("a verb of the table");
        assert!(missing.contains("`vlmerge evaluate`"), "{missing}");
        assert!(missing.contains("has no models"), "{missing}");
        assert_eq!(said(["vlmerge", "evalute"]), None);
    }
}
