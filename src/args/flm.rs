//! Flags for the task of an FLM.

use clap::ValueEnum;
use merge::layouts::FlmTask;

/// The task of an FLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// Free language modeling
    Pretrain,
    /// Free language modeling and image-text matching
    Itm,
    /// Masked language modeling, with one stream
    Mlm,
    /// Language modeling from left to right, with one stream
    Ar,
    /// Visual question answering
    Vqa,
    /// Reasoning over two images
    Nlvr2,
    /// Retrieval by ranking pairs
    #[value(alias = "irtr")]
    Retrieval,
    /// Writing captions
    Caption,
}

impl From<TaskArg> for FlmTask {
    fn from(arg: TaskArg) -> Self {
        match arg {
            TaskArg::Pretrain => Self::Pretrain,
            TaskArg::Itm => Self::Itm,
            TaskArg::Mlm => Self::Mlm,
            TaskArg::Ar => Self::Ar,
            TaskArg::Vqa => Self::Vqa,
            TaskArg::Nlvr2 => Self::Nlvr2,
            TaskArg::Retrieval => Self::Retrieval,
            TaskArg::Caption => Self::Caption,
        }
    }
}
