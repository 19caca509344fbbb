//! The table of data sets: one row says everything that a program needs to know of one.

use crate::build::{Planner, karpathy, listed as lists, pretraining, regions, statements, vqa};
use crate::{DataFault, Error, Result};

/// The kind of a data set's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image with its captions.
    Captions,
    /// An image with its questions and answers.
    Questions,
    /// A pair of images with statements about it.
    Statements,
    /// Texts without an image.
    Texts,
    /// An image with its class.
    Classes,
}

impl Kind {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Captions => "captions",
            Self::Questions => "questions",
            Self::Statements => "statements",
            Self::Texts => "texts",
            Self::Classes => "classes",
        }
    }
}

/// A split and the files that hold it.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Its name.
    pub name: &'static str,
    /// Names of files without their ending. A `{}` stands for a number, from 0: as many as
    /// follow one another. None where the split is no arrow file: a CSV table beside a folder of
    /// pictures, or folders of classes.
    pub tables: &'static [&'static str],
    /// X-VLM's JSON files of the split, each by its name and other names that it may have; none where there
    /// are no such.
    pub json: &'static [&'static [&'static str]],
}

/// A data set: one row of [`DATASETS`].
#[derive(Clone, Copy, Debug)]
pub struct DatasetSpec {
    /// Its name in flags, recipes and reports.
    pub name: &'static str,
    /// Other names that reports of other programs use.
    pub aliases: &'static [&'static str],
    /// Its name for people.
    pub title: &'static str,
    /// Its contents, in a few words.
    pub about: &'static str,
    /// The kind of its rows.
    pub kind: Kind,
    /// Its splits.
    pub splits: &'static [Split],
    /// The folders of the pictures that X-VLM's JSON files name, each behind what an entry calls its
    /// `dataset`; entries that do not say use the first.
    pub roots: &'static [(&'static str, &'static str)],
    /// Plans its files from public downloads; `None` where `data build` makes none, or makes them of texts.
    pub(crate) plan: Option<Planner>,
}

const fn split(name: &'static str, tables: &'static [&'static str]) -> Split {
    Split {
        name,
        tables,
        json: &[],
    }
}

impl Split {
    /// With JSON files of X-VLM's.
    const fn json(self, json: &'static [&'static [&'static str]]) -> Self {
        Self { json, ..self }
    }
}

/// X-VLM's questions with answers; EVE's are without those whose answers the list lacks.
const VQA_TRAIN: &[&str] = &["vqa_train_filter.json", "vqa_train.json"];

/// The same to validate with.
const VQA_VAL: &[&str] = &["vqa_val_filter.json", "vqa_val.json"];

/// Every data set that is known by name. `published_train` and the like are the splits of the
/// published program where it departs from what the names say: its Flickr30K trains on the
/// validation images too, and validates on the test images.
pub const DATASETS: &[DatasetSpec] = &[
    DatasetSpec {
        name: "coco",
        aliases: &[],
        title: "COCO",
        about: "COCO captions in Karpathy's splits",
        kind: Kind::Captions,
        splits: &[
            split("train", &["coco_caption_karpathy_train"]),
            split(
                "train+restval",
                &[
                    "coco_caption_karpathy_train",
                    "coco_caption_karpathy_restval",
                ],
            )
            .json(&[&["coco_train.json"]]),
            split("pretrain", &["coco_{}"]),
            split("restval", &["coco_caption_karpathy_restval"]),
            split("val", &["coco_caption_karpathy_val"]).json(&[&["coco_val.json"]]),
            split("test", &["coco_caption_karpathy_test"]).json(&[&["coco_test.json"]]),
        ],
        roots: &[("coco", "images/coco")],
        plan: Some(pretraining::coco),
    },
    DatasetSpec {
        name: "f30k",
        aliases: &["flickr30k"],
        title: "Flickr30K",
        about: "Flickr30K captions in Karpathy's splits",
        kind: Kind::Captions,
        splits: &[
            split("train", &["f30k_caption_karpathy_train"]).json(&[&["flickr30k_train.json"]]),
            split(
                "published_train",
                &["f30k_caption_karpathy_train", "f30k_caption_karpathy_val"],
            ),
            split("val", &["f30k_caption_karpathy_val"]).json(&[&["flickr30k_val.json"]]),
            split("published_val", &["f30k_caption_karpathy_test"]),
            split("test", &["f30k_caption_karpathy_test"]).json(&[&["flickr30k_test.json"]]),
        ],
        roots: &[("flickr30k", "images/flickr30k")],
        plan: Some(|options| karpathy::plan(&karpathy::FLICKR30K, options)),
    },
    DatasetSpec {
        name: "gcc",
        aliases: &[],
        title: "Conceptual Captions",
        about: "Conceptual Captions",
        kind: Kind::Captions,
        splits: &[
            split("train", &["conceptual_caption_train_{}"]),
            split("val", &["conceptual_caption_val_{}"]),
        ],
        roots: &[],
        plan: Some(|options| lists::plan(&lists::CONCEPTUAL_CAPTIONS, options)),
    },
    DatasetSpec {
        name: "cc3m",
        aliases: &[],
        title: "Conceptual Captions, EVE's files",
        about: "Conceptual Captions, one caption a row as EVE keeps them",
        kind: Kind::Captions,
        splits: &[split("train", &["cc3m_{}"])],
        roots: &[],
        plan: Some(|options| lists::plan(&lists::CC3M, options)),
    },
    DatasetSpec {
        name: "cc12m",
        aliases: &[],
        title: "Conceptual 12M",
        about: "Conceptual 12M, one caption a row as EVE keeps them",
        kind: Kind::Captions,
        splits: &[split("train", &["cc12m_{}"])],
        roots: &[],
        plan: Some(|options| lists::plan(&lists::CC12M, options)),
    },
    DatasetSpec {
        name: "sbu",
        aliases: &[],
        title: "SBU",
        about: "SBU captions",
        kind: Kind::Captions,
        splits: &[split("train", &["sbu_{}"])],
        roots: &[],
        plan: Some(|options| lists::plan(&lists::SBU, options)),
    },
    DatasetSpec {
        name: "vg",
        aliases: &[],
        title: "Visual Genome",
        about: "Visual Genome regions",
        kind: Kind::Captions,
        splits: &[split("train", &["vg"])],
        roots: &[],
        plan: Some(regions::plan),
    },
    DatasetSpec {
        name: "imagenet",
        aliases: &[],
        title: "ImageNet",
        about: "Images with a class each and a text per class, as a CSV table",
        kind: Kind::Captions,
        splits: &[split("train", &[]), split("valid", &[])],
        roots: &[],
        plan: None,
    },
    DatasetSpec {
        name: "imagenet1k",
        aliases: &[],
        title: "ImageNet-1K",
        about: "Images in a folder for each class",
        kind: Kind::Classes,
        splits: &[split("train", &[]), split("val", &[])],
        roots: &[],
        plan: None,
    },
    DatasetSpec {
        name: "vqa",
        aliases: &["vqav2"],
        title: "VQAv2",
        about: "VQA v2",
        kind: Kind::Questions,
        splits: &[
            split("train", &["vqav2_train"]).json(&[VQA_TRAIN]),
            split("train+val", &["vqav2_train", "vqav2_trainable_val"]).json(&[VQA_TRAIN, VQA_VAL]),
            split("val", &["vqav2_val"]).json(&[VQA_VAL]),
            split("trainable_val", &["vqav2_trainable_val"]),
            split("rest_val", &["vqav2_rest_val"]),
            split("test", &["vqav2_test"]).json(&[&["vqa_test.json"]]),
            split("test-dev", &["vqav2_test-dev"]),
        ],
        roots: &[
            ("vqa", "images/coco"),
            ("vg", "images/visualgenome"),
            ("gqa", "images/gqa"),
        ],
        plan: Some(vqa::plan),
    },
    DatasetSpec {
        name: "nlvr2",
        aliases: &[],
        title: "NLVR2",
        about: "NLVR2",
        kind: Kind::Statements,
        splits: &[
            split("train", &["nlvr2_train"]).json(&[&["nlvr_train.json"]]),
            split("dev", &["nlvr2_dev"]).json(&[&["nlvr_dev.json"]]),
            split("test1", &["nlvr2_test1"]).json(&[&["nlvr_test.json"]]),
            split("balanced_dev", &["nlvr2_balanced_dev"]),
            split("balanced_test1", &["nlvr2_balanced_test1"]),
            split("unbalanced_dev", &["nlvr2_unbalanced_dev"]),
            split("unbalanced_test1", &["nlvr2_unbalanced_test1"]),
        ],
        roots: &[("nlvr2", "images/nlvr2")],
        plan: Some(statements::plan),
    },
    DatasetSpec {
        name: "wikibk",
        aliases: &[],
        title: "Wikipedia and BookCorpus",
        about: "Texts of Wikipedia and BookCorpus",
        kind: Kind::Texts,
        splits: &[
            split("train", &["wikibk_train_{}"]),
            split("val", &["wikibk_val_{}"]),
        ],
        roots: &[],
        plan: None,
    },
];

impl DatasetSpec {
    /// The data set of this name or alias.
    #[must_use]
    pub fn of(name: &str) -> Option<&'static Self> {
        let is_it = |set: &&Self| set.name == name || set.aliases.contains(&name);
        DATASETS.iter().find(is_it)
    }

    /// The name in the row of the data set of this name or alias; other names stay as they are.
    #[must_use]
    pub fn name_of(name: &str) -> &str {
        Self::of(name).map_or(name, |dataset| dataset.name)
    }

    /// The data set of this name and kind.
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`] when there is none.
    pub fn find(name: &str, kind: Kind) -> Result<&'static Self> {
        let found = Self::of(name).filter(|dataset| dataset.kind == kind);
        let of_kind = DATASETS.iter().filter(|dataset| dataset.kind == kind);
        found.ok_or_else(|| Self::unknown(name, of_kind))
    }

    /// The error that there is no data set of this name among those that would do.
    pub(crate) fn unknown(name: &str, known: impl Iterator<Item = &'static Self>) -> Error {
        Error::Data(DataFault::UnknownDataset {
            name: name.into(),
            known: listed(known.map(|dataset| dataset.name)),
        })
    }

    /// Whether `data build` makes its files: of public downloads, or of plain texts.
    #[must_use]
    pub fn is_built(&self) -> bool {
        self.plan.is_some() || self.kind == Kind::Texts
    }

    /// The split of this name.
    ///
    /// # Errors
    /// [`DataFault::UnknownSplit`] when there is none.
    pub fn split(&self, name: &str) -> Result<&'static Split> {
        let found = self.splits.iter().find(|split| split.name == name);
        found.ok_or_else(|| {
            Error::Data(DataFault::UnknownSplit {
                dataset: self.name,
                name: name.into(),
                known: listed(self.splits.iter().map(|split| split.name)),
            })
        })
    }
}

fn listed(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole_and_has_its_own_names() {
        for set in DATASETS {
            assert!(
                !set.title.is_empty() && !set.about.is_empty(),
                "{}",
                set.name
            );
            assert!(!set.splits.is_empty(), "{}", set.name);
            for name in set.aliases.iter().chain([&set.name]) {
                let found = DatasetSpec::of(name).expect("a row");
                assert_eq!(found.name, set.name);
            }
        }
    }
}
