//! Verbs by what they are for, as `vlmerge --help` lists them.

use std::fmt::Write;

use clap::Command;

/// Each group and its verbs, in the order of the list.
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
    let verbs = GROUPS.iter().flat_map(|(_, verbs)| *verbs);
    let width = verbs.map(|verb| verb.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (group, verbs) in GROUPS {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{group}:");
        for verb in *verbs {
            let about = command.find_subcommand(verb).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {verb:width$}  {about}");
        }
    }
    text
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
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, verbs)| *verbs)
            .copied()
            .collect();
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
        assert!(at("Train:\n  pretrain") < at("Options:\n"));
        assert!(at("Options:\n") < at("--threads"));
        assert!(!help.contains("Commands:"), "{help}");
    }
}
