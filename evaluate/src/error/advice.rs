//! Hints for errors, and the errors that wrong arguments cause.

use super::{
    DataFault, Error, GivenFault, JudgedFault, LabelFault, ModelFault, OutsideFault, ReportFault,
};

impl Error {
    /// A hint for the user, unless the message says enough.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Merge(error) => error.hint(),
            Self::DuplicateId {
                what: "the answer to question",
                ..
            } => Some(
                "published evaluation code repeats questions to fill its last batch; keep the \
                 first answer of each"
                    .into(),
            ),
            Self::DuplicateId {
                what: "question", ..
            } => Some("official files have each id once; download the file again".into()),
            Self::Judged(JudgedFault::MissingPredictions {
                what: "question", ..
            }) => Some(
                "--partial judges the questions that have an answer, such as those of one split"
                    .into(),
            ),
            Self::Judged(JudgedFault::MissingPredictions { what: "image", .. }) => {
                Some("--partial judges the images that have a caption".into())
            }
            Self::Model(ModelFault::NotRunnable { .. }) => {
                let families = crate::models::FAMILIES.iter().map(|family| family.runs);
                let families: Vec<&str> = families.collect();
                Some(format!("checkpoints of {} can be run", families.join(", ")))
            }
            Self::Model(ModelFault::UnknownSize { what, .. }) => match *what {
                "the number of heads" => Some("give it with --heads".into()),
                "the image size" => Some("give --text-table-len".into()),
                "the fusion start" => Some("give it with --fusion-start".into()),
                _ => None,
            },
            Self::NoDevice { .. } => Some(
                "build with --features cuda on a machine with an NVIDIA card, or use cpu".into(),
            ),
            Self::Precision { .. } => Some("use f32".into()),
            Self::OtherVocabulary { .. } => Some(
                "the published models use the vocabulary of bert-base-uncased, FLM that of roberta-base"
                    .into(),
            ),
            Self::Text(fault) => fault.hint().map(str::to_owned),
            Self::Label(LabelFault::OtherAnswers { .. } | LabelFault::AnswersDiffer { .. }) => Some(
                "build the data of the annotations that the model was trained on, or measure all \
                 the same with --allow-other-answers"
                    .into(),
            ),
            Self::Label(LabelFault::NoSuchClassName { .. } | LabelFault::OtherClasses { .. }) => Some(
                "give the data set that the classifier was trained on, or train one on this with `vlmerge \
                 finetune`"
                    .into(),
            ),
            Self::NoHead { .. } => Some(
                "this checkpoint was not trained for the task; use one that was fine-tuned on it"
                    .into(),
            ),
            Self::TokenizerFromHub { .. } => Some(
                "give the path of a vocab.txt or tokenizer.json: it works without a network".into(),
            ),
            Self::Data(DataFault::BadPictures { .. }) => {
                Some("repair them, or leave them out with --skip-bad, which lists them".into())
            }
            Self::Data(DataFault::NoText { .. }) => {
                Some("--skip-bad leaves such images out and lists them".into())
            }
            Self::Data(DataFault::OtherTable { .. }) => Some("replace it with --force".into()),
            Self::NoOfficialNumber { .. } => Some(
                "build it with `vlmerge data build nlvr2`, which keeps the numbers, or leave out \
                 --predictions"
                    .into(),
            ),
            Self::Outside(OutsideFault::NoAnswers { .. }) => Some(
                "lm_eval and lmms_eval write the answers with --log_samples".into(),
            ),
            Self::Outside(OutsideFault::Spreadsheet { .. }) => Some(
                "save it as .csv; VLMEvalKit writes text with PRED_FORMAT=tsv and EVAL_FORMAT=csv in its environment"
                    .into(),
            ),
            Self::Outside(OutsideFault::NoMetrics { .. }) => {
                Some("--metric NAME names the field with the number".into())
            }
            Self::Outside(
                OutsideFault::TaskInOne { .. }
                | OutsideFault::OtherExamples { .. }
                | OutsideFault::OtherContents { .. }
                | OutsideFault::OtherVersions { .. },
            ) => Some("--common compares what both runs have, and says what it leaves out".into()),
            Self::Outside(OutsideFault::NoKey { .. } | OutsideFault::SeveralNumbers { .. }) => {
                Some("--score-key takes the path of keys, with dots between them".into())
            }
            Self::NotPaired { .. } => Some("score the files one by one".into()),
            Self::Report(ReportFault::ReportSchema { .. }) => Some(
                "reports are made of what `vlmerge evaluate`, `sweep`, `score` and `distance` \
                 print with `--json`"
                    .into(),
            ),
            Self::Report(ReportFault::NoHeatMap { .. }) => Some("write a report with the extension .html".into()),
            Self::Report(ReportFault::NoCells { .. }) => Some("measure them with `--per cell`".into()),
            _ => None,
        }
    }

    /// Whether wrong arguments are the cause.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Merge(error) => error.is_usage(),
            Self::ResampleCount { .. }
            | Self::NoPredictions { .. }
            | Self::Model(ModelFault::IgnoredSetting { .. })
            | Self::Report(ReportFault::NoHeatMap { .. })
            | Self::Given(GivenFault::UnknownPass { .. })
            | Self::Data(DataFault::UnknownDataset { .. } | DataFault::UnknownSplit { .. }) => true,
            _ => false,
        }
    }
}
