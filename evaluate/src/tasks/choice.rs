//! Opening a task on a split.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::Task;
use super::nlvr2::Nlvr2;
use super::retrieval::Retrieval;
use super::vqa::Vqa;
use crate::Result;
use crate::datasets::captions::CaptionSet;
use crate::datasets::nlvr2::Nlvr2Set;
use crate::datasets::vqa::{VqaSet, label_answers};
use crate::metrics::retrieval::Ties;

/// The tasks that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Texts for images and images for texts.
    Retrieval,
    /// Questions about images.
    Vqa,
    /// Statements about two images.
    Nlvr2,
}

impl Name {
    /// The number that weights are chosen by unless another is asked for.
    #[must_use]
    pub fn usual_metric(self) -> &'static str {
        match self {
            Self::Retrieval => "rsum",
            Self::Vqa => "vqa_score",
            Self::Nlvr2 => "accuracy",
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "retrieval" => Ok(Self::Retrieval),
            "vqa" => Ok(Self::Vqa),
            "nlvr2" => Ok(Self::Nlvr2),
            other => Err(format!("`{other}` is none of retrieval, vqa and nlvr2")),
        }
    }
}

/// A task on a split of a data set.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The task.
    pub task: Name,
    /// The data set of retrieval, such as `coco`; the other tasks have one each.
    pub dataset: &'a str,
    /// The split.
    pub split: &'a str,
    /// The first images, questions or statements alone.
    pub limit: Option<usize>,
    /// Count a caption that an image has twice once.
    pub without_repeats: bool,
    /// Show what was retrieved well and badly.
    pub with_examples: bool,
    /// How equal scores count in retrieval.
    pub ties: Ties,
}

impl Choice<'_> {
    /// Opens the split in a folder of arrow files.
    ///
    /// # Errors
    /// When there is no such data set or split, or a file is damaged.
    pub fn open(&self, folder: &Path) -> Result<Box<dyn Task>> {
        let limit = self.limit.unwrap_or(usize::MAX);
        Ok(match self.task {
            Name::Retrieval => {
                let set = CaptionSet::open(folder, self.dataset, self.split)?.first(limit);
                let set = match self.without_repeats {
                    true => set.without_repeats(),
                    false => set,
                };
                let task = Retrieval::new(Arc::new(set), self.ties);
                Box::new(match self.with_examples {
                    true => task,
                    false => task.without_examples(),
                })
            }
            Name::Vqa => {
                let set = VqaSet::open(folder, self.split)?.first(limit);
                Box::new(Vqa::new(Arc::new(set), label_answers(folder)?))
            }
            Name::Nlvr2 => {
                let set = Nlvr2Set::open(folder, self.split)?.first(limit);
                Box::new(Nlvr2::new(Arc::new(set)))
            }
        })
    }
}
