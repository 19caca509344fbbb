//! Flags that change how many experts a mixture has.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use merge::convert::{DenseOfExperts, FewerExperts, Keep, Others, Worth};
use merge::gram::GramStore;
use merge::io::{OpenOptions, open};
use merge::recipe::OutputDType;
use merge::{Checkpoint, MergePlan};

use crate::output::{Output, UsageError, printable};

/// The number of experts that each mixture keeps, and the choice of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mixtures of experts")]
pub struct ExpertsArgs {
    /// Give each mixture this many experts, by how tokens go to them; or make it one dense network, `dense`
    #[arg(long, value_name = "N|dense", conflicts_with_all = ["to", "image_size", "text_len", "nlvr2", "module"])]
    experts: Option<ExpertsArg>,
    /// Share N experts out among all mixtures, which then differ in size: each keeps at least as many as a token goes
    /// to, and the best of all others stay (M-SMoE)
    #[arg(long, requires = "experts")]
    in_all: bool,
    /// The gram file over the model, which says how tokens go to experts
    #[arg(long, value_name = "FILE", requires = "experts")]
    grams: Option<PathBuf>,
    /// The experts that stay [default: saliency; frequency with --group]
    #[arg(long, value_enum, value_name = "WORTH", requires = "experts")]
    by: Option<WorthArg>,
    /// Merge the other experts into those that stay, by the router's scores, instead of leaving them out
    #[arg(long, requires = "experts")]
    group: bool,
    /// Match hidden units of experts before they are merged
    #[arg(long, requires = "group")]
    align_units: bool,
}

/// The new form of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpertsArg {
    Number(usize),
    Dense,
}

impl FromStr for ExpertsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("dense", _) => Ok(Self::Dense),
            (_, Ok(n)) if n > 0 => Ok(Self::Number(n)),
            _ => Err("give a number of experts, or `dense`".to_owned()),
        }
    }
}

/// The experts that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WorthArg {
    /// Those with the longest answers, weighted by the router, on average over their tokens (REAP)
    Saliency,
    /// Those that most tokens go to
    Frequency,
}

impl ExpertsArgs {
    /// Whether mixtures are to change.
    pub fn is_given(&self) -> bool {
        self.experts.is_some()
    }

    /// The plan that these flags ask for, of a model folder or a file, after a note on its effect; `None` if they ask for nothing.
    pub fn plan(
        &self,
        source: &Arc<Checkpoint>,
        dtype: OutputDType,
        is_folder: bool,
        output: &Output,
    ) -> Result<Option<MergePlan>> {
        let Some(experts) = self.experts else {
            return Ok(None);
        };
        let grams = self.grams.as_ref().map(|path| {
            let file = open(path, &OpenOptions::default())?;
            Ok::<_, merge::Error>(Arc::new(GramStore::new(Arc::new(file))?))
        });
        let grams = grams.transpose()?;
        let source = Arc::clone(source);
        let keep = match experts {
            ExpertsArg::Number(keep) => keep,
            ExpertsArg::Dense => {
                if self.group || self.by.is_some_and(|by| by != WorthArg::Frequency) {
                    let advice =
                        "--experts dense takes the mean of all experts, by frequency with --grams";
                    return Err(UsageError(advice.into()).into());
                }
                if self.in_all {
                    return Err(UsageError("--in-all needs --experts N".into()).into());
                }
                if self.by.is_some() && grams.is_none() {
                    return Err(UsageError("--by frequency needs --grams".into()).into());
                }
                let dense = DenseOfExperts {
                    grams,
                    is_folder,
                    dtype,
                };
                return Ok(Some(dense.plan(source)?));
            }
        };
        let Some(grams) = grams else {
            let advice = "--experts N needs --grams, which says how tokens go to experts; `vlmerge gram` writes it";
            return Err(UsageError(advice.into()).into());
        };
        let worth = match (self.by, self.group) {
            (Some(WorthArg::Saliency), _) | (None, false) => Worth::Saliency,
            (Some(WorthArg::Frequency), _) | (None, true) => Worth::Frequency,
        };
        let fewer = FewerExperts {
            keep: match self.in_all {
                true => Keep::InAll(keep),
                false => Keep::Each(keep),
            },
            worth,
            others: match self.group {
                true => Others::Group {
                    align_units: self.align_units,
                },
                false => Others::Prune,
            },
            grams,
            is_folder,
            dtype,
        };
        let (plan, kept) = fewer.plan(source)?;
        for of in &kept {
            let groups = of.groups.iter().map(|group| {
                let experts: Vec<String> = group.iter().map(ToString::to_string).collect();
                experts.join("+")
            });
            let groups: Vec<String> = groups.collect();
            output.note(format!(
                "`{}`: {}",
                printable(&of.mixture),
                groups.join(" ")
            ));
        }
        Ok(Some(plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_experts_or_dense_is_understood() {
        assert_eq!("8".parse(), Ok(ExpertsArg::Number(8)));
        assert_eq!("dense".parse(), Ok(ExpertsArg::Dense));
        assert!("0".parse::<ExpertsArg>().is_err() && "all".parse::<ExpertsArg>().is_err());
    }
}
