//! Figures that others published, to be shown beside ours: each with its source, or none.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::datasets::DatasetSpec;
use crate::text::file::text_at_most;
use crate::{Error, ReportFault, Result};

/// The figures that come with this program.
const OURS: &str = include_str!("../../data/published.yaml");

/// Lists are written by hand; anything larger is not one.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The certainty of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Read where its authors published it.
    Sourced,
    /// Read where others cite it.
    Secondary,
    /// Known to be published, but not at hand: it has no value here.
    NotSourced,
}

/// A list of published figures: rows of the same model are shown as one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// One entry per number.
    pub figures: Vec<Figure>,
    /// Remarks in words or curves, which have no place in a table.
    #[serde(default)]
    pub remarks: Vec<Remark>,
}

/// A published number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The model and its treatment, as the head of a row.
    pub model: String,
    /// The benchmark that it was measured on.
    pub on: Benchmark,
    /// The number, as we call it: `tr_r1`, `accuracy`.
    pub number: String,
    /// In percent as printed; null where it is not at hand.
    pub percent: Option<f64>,
    /// Edge of the images in pixels, where it is known.
    #[serde(default)]
    pub image_size: Option<u32>,
    /// Its certainty.
    pub status: Status,
    /// The place where it was read, or where it would stand.
    pub source: String,
}

/// Something published that is no single number of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remark {
    /// The name of the entry.
    pub id: String,
    /// The data that it is about.
    #[serde(default)]
    pub on: Option<Benchmark>,
    /// The parameter of a sweep that it is about.
    #[serde(default)]
    pub parameter: Option<String>,
    /// The published remark.
    pub what: String,
    /// As it is printed; null where it is not at hand.
    pub quote: Option<String>,
    /// Its certainty.
    pub status: Status,
    /// The place where it was read, or where it would stand.
    pub source: String,
}

/// Data with a published split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Benchmark {
    /// VQA v2, answers judged by the server.
    VqaTestDev,
    /// The same, the other half.
    VqaTestStd,
    /// NLVR2's development split.
    Nlvr2Dev,
    /// NLVR2's public test split.
    Nlvr2TestP,
    /// The 5,000 test images of Karpathy's split of COCO.
    Coco5k,
    /// The 1,000 test images of Karpathy's split of Flickr30K.
    F30k1k,
    /// A linear probe on the 50,000 validation images of ImageNet-1K.
    ImagenetProbe,
}

impl Benchmark {
    const ALL: [Self; 7] = [
        Self::VqaTestDev,
        Self::VqaTestStd,
        Self::Nlvr2Dev,
        Self::Nlvr2TestP,
        Self::Coco5k,
        Self::F30k1k,
        Self::ImagenetProbe,
    ];

    /// The benchmark that a result of ours is of, by the names of its task, data set and split.
    #[must_use]
    pub fn of(task: &str, dataset: &str, split: &str) -> Option<Self> {
        let dataset = DatasetSpec::name_of(dataset);
        Self::ALL.into_iter().find(|benchmark| {
            let (of_task, of_dataset, splits) = benchmark.names();
            of_task == task && of_dataset == dataset && splits.contains(&split)
        })
    }

    /// The names of task and data set in their rows, and those that the split goes by.
    fn names(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::VqaTestDev => ("vqa", "vqa", &["test-dev", "test_dev"]),
            Self::VqaTestStd => ("vqa", "vqa", &["test-std", "test_std"]),
            Self::Nlvr2Dev => ("nlvr2", "nlvr2", &["dev"]),
            Self::Nlvr2TestP => ("nlvr2", "nlvr2", &["test1", "test-P", "testP", "test_p"]),
            Self::Coco5k => ("retrieval", "coco", &["test", "karpathy_test", "valid"]),
            Self::F30k1k => ("retrieval", "f30k", &["test", "karpathy_test", "valid"]),
            Self::ImagenetProbe => ("linear_probe", "imagenet1k", &["val", "validation"]),
        }
    }

    /// Its name, and how many of which things it has, as [`super::TaskResult::counts`] calls them.
    #[must_use]
    pub fn size(self) -> (&'static str, Option<(&'static str, u64)>) {
        match self {
            Self::VqaTestDev => ("VQAv2 test-dev", Some(("questions", 107_394))),
            Self::VqaTestStd => ("VQAv2 test-std", None),
            Self::Nlvr2Dev => ("NLVR2 dev", Some(("examples", 6_982))),
            Self::Nlvr2TestP => ("NLVR2 test-P", Some(("examples", 6_967))),
            Self::Coco5k => ("COCO 5K test", Some(("images", 5_000))),
            Self::F30k1k => ("Flickr30K 1K test", Some(("images", 1_000))),
            Self::ImagenetProbe => ("ImageNet-1K probe", Some(("images", 50_000))),
        }
    }
}

impl Published {
    /// The figures that come with this program.
    ///
    /// # Errors
    /// Never, as a test shows: the list is part of the program.
    pub fn ours() -> Result<Self> {
        Self::parse(OURS, Path::new("published.yaml"))
    }

    /// Reads more figures, in YAML of the form of `evaluate/data/published.yaml`.
    ///
    /// # Errors
    /// When the file cannot be read, or [`ReportFault::BadFigures`].
    pub fn open(path: &Path) -> Result<Self> {
        let text = text_at_most(path, MAX_FILE_BYTES)?;
        Self::parse(&text, path)
    }

    /// Reads a list; `path` is for messages only.
    ///
    /// # Errors
    /// [`ReportFault::BadFigures`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let bad = |fault| {
            Error::Report(ReportFault::BadFigures {
                path: path.into(),
                fault,
            })
        };
        let list: Self = serde_saphyr::from_str(text).map_err(|error| {
            // The lines after the first show the text around the fault.
            let message = error.to_string();
            let message = message.lines().next().unwrap_or_default();
            bad(message
                .strip_prefix("error: ")
                .unwrap_or(message)
                .to_owned())
        })?;
        for figure in &list.figures {
            let is_known = figure.status != Status::NotSourced;
            if figure.percent.is_some() != is_known {
                return Err(bad(format!(
                    "`{}`, {}: a figure has a value if and only if it has a source",
                    figure.model, figure.number
                )));
            }
            if figure.percent.is_some_and(|p| !(0.0..=600.0).contains(&p)) {
                return Err(bad(format!(
                    "`{}`, {}: is not within 0 and 600 percent",
                    figure.model, figure.number
                )));
            }
        }
        for remark in &list.remarks {
            if remark.quote.is_some() != (remark.status != Status::NotSourced) {
                return Err(bad(format!(
                    "`{}`: a quote is there if and only if it has a source",
                    remark.id
                )));
            }
        }
        Ok(list)
    }

    /// Adds the entries of another list after those of this one.
    pub fn extend(&mut self, other: Self) {
        self.figures.extend(other.figures);
        self.remarks.extend(other.remarks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_this_program_is_in_order() {
        let list = Published::ours().expect("well-formed");
        let value = |model: &str, on, number: &str| {
            let mut figures = list.figures.iter();
            let found = figures.find(|f| f.model == model && f.on == on && f.number == number);
            found.expect("listed").percent
        };
        // From the table of VLMo's README.
        assert_eq!(value("VLMo base", Benchmark::Coco5k, "tr_r1"), Some(74.8));
        assert_eq!(value("VLMo large", Benchmark::F30k1k, "ir_r1"), Some(84.5));
        assert_eq!(
            value("VLMo base plus", Benchmark::Nlvr2TestP, "accuracy"),
            Some(85.1)
        );
        let probe = value(
            "ZeroVL, 100M pairs, ViT-B/16",
            Benchmark::ImagenetProbe,
            "top1",
        );
        assert_eq!(probe, Some(80.6));
        let unknown = list
            .figures
            .iter()
            .filter(|f| f.status == Status::NotSourced);
        assert!(unknown.count() >= 6);
    }

    #[test]
    fn a_benchmark_is_told_by_task_data_set_and_split() {
        let of = Benchmark::of;
        assert_eq!(of("retrieval", "coco", "test"), Some(Benchmark::Coco5k));
        assert_eq!(of("nlvr2", "nlvr2", "test1"), Some(Benchmark::Nlvr2TestP));
        assert_eq!(of("retrieval", "coco", "val"), None);
        assert_eq!(of("vqa", "coco", "test"), None);
        let probe = of("linear_probe", "imagenet1k", "val");
        assert_eq!(probe, Some(Benchmark::ImagenetProbe));
        assert_eq!(of("zero_shot", "imagenet1k", "val"), None);
    }

    #[test]
    fn a_value_without_a_source_is_refused() {
        let list = "figures: [{ model: m, on: coco5k, number: tr_r1, percent: 70.0, \
                    status: not_sourced, source: memory }]";
        let error = Published::parse(list, Path::new("f.yaml")).expect_err("refused");
        assert!(error.to_string().contains("`m`, tr_r1: "), "{error}");
        assert!(Published::parse("figures: 7", Path::new("f.yaml")).is_err());
    }
}
