//! A head and the data disagree about classes.

use std::path::PathBuf;

/// A head and the data disagree about classes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelFault {
    /// The head has more or fewer classes than the data have answers.
    #[error(
        "the head has {n_classes} classes, but the data name {n_data} classes: their labels may not \
         belong together"
    )]
    OtherAnswers {
        /// Classes of the head.
        n_classes: usize,
        /// Classes of the data.
        n_data: usize,
    },
    /// A class stands for one answer in the model and for another in the data.
    #[error("class {label} is {model:?} in the model's list of answers, but {data:?} in the data")]
    AnswersDiffer {
        /// The class.
        label: i64,
        /// Its name in the model.
        model: String,
        /// Its name in the data.
        data: String,
    },
    /// A checkpoint's list of answers is damaged.
    #[error("the checkpoint's metadata `{key}` are no list of answers: {source}")]
    BadAnswerList {
        /// The key.
        key: &'static str,
        /// The fault.
        source: serde_json::Error,
    },
    /// The model's list of answers is longer or shorter than its head.
    #[error("the model's list has {n_answers} answers, but its head has {n_classes} classes")]
    AnswerList {
        /// Answers of the list.
        n_answers: usize,
        /// Classes of the head.
        n_classes: usize,
    },
    /// A folder is of a class that the model's head does not have.
    #[error(
        "{}: {class:?} is none of the {n_classes} classes that the model was trained on", path.display()
    )]
    NoSuchClassName {
        /// The folder of the split.
        path: PathBuf,
        /// The class.
        class: String,
        /// Classes of the model.
        n_classes: usize,
    },
    /// The head has more or fewer classes than there are folders, and the checkpoint does not name its classes.
    #[error(
        "{}: holds {n_data} classes, but the head has {n_classes}, and the checkpoint does not name \
         them: they may not belong together", path.display()
    )]
    OtherClasses {
        /// The folder of the split.
        path: PathBuf,
        /// Classes of the head.
        n_classes: usize,
        /// Classes of the data.
        n_data: usize,
    },
    /// An image is of a class that has no text.
    #[error("image {image} is of class {class}, which has no text")]
    UnknownClass {
        /// The image, from 0.
        image: usize,
        /// Its class.
        class: i64,
    },
}
