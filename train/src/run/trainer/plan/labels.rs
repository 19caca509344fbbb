//! Answers and classes of the data against those of the model.

use evaluate::models::Head;

use crate::recipe::TrainRecipe;
use crate::run::Start;
use crate::{Error, Result, data, objectives};

/// The number of answers that the model tells apart, for data with questions.
pub(super) fn n_answers(examples: &dyn data::Examples, start: &Start) -> Result<Option<usize>> {
    let Some(known) = examples.n_answers() else {
        return Ok(None);
    };
    let n_classes = start.model.n_classes(Head::Vqa)?;
    if known > n_classes {
        return Err(Error::TooManyAnswers { known, n_classes });
    }
    Ok(Some(n_classes))
}

/// The answers by class, for the model's file. A model that keeps a list was trained on its answers: data
/// that call a class otherwise would teach it another.
pub(super) fn answer_list(examples: &dyn data::Examples, start: &Start) -> Result<Option<String>> {
    let known = evaluate::tasks::answers_of(start.weights.checkpoint())?;
    let Some(answers) = examples.answers() else {
        return Ok(None);
    };
    for (label, (model, data)) in known.iter().flatten().zip(answers).enumerate() {
        if model != data {
            let fault = evaluate::LabelFault::AnswersDiffer {
                label: label as i64,
                model: model.clone(),
                data: data.clone(),
            };
            return Err(evaluate::Error::from(fault).into());
        }
    }
    let is_whole = start.model.n_classes(Head::Vqa)? == answers.len();
    // Strings always have a JSON form.
    Ok((known.is_none() && is_whole).then(|| serde_json::json!(answers).to_string()))
}

/// The names of the classes of images, for the model's file. A model that keeps a list was trained on its
/// classes: data that number them otherwise would teach it others.
pub(super) fn class_list(examples: &dyn data::Examples, start: &Start) -> Result<Option<String>> {
    let Some(classes) = examples.classes() else {
        return Ok(None);
    };
    let differs = |reason: String| Error::BadSetting {
        key: "data.train".into(),
        reason,
    };
    let n_classes = start.model.n_classes(Head::ImageClasses)?;
    if n_classes != classes.len() {
        let reason = format!(
            "it has {} classes, but the checkpoint's head tells {n_classes} apart",
            classes.len()
        );
        return Err(differs(reason));
    }
    let known = evaluate::tasks::classes_of(start.weights.checkpoint())?;
    let mut pairs = known.iter().flatten().zip(classes).enumerate();
    if let Some((number, (model, data))) = pairs.find(|(_, (model, data))| model != data) {
        let reason =
            format!("class {number} is {data:?}, but the checkpoint's head calls it {model:?}");
        return Err(differs(reason));
    }
    // Strings always have a JSON form.
    Ok(known
        .is_none()
        .then(|| serde_json::json!(classes).to_string()))
}

/// Refuses objectives that learn classes of images from data without, and texts from folders of classes.
pub(super) fn check_classes(recipe: &TrainRecipe, examples: &dyn data::Examples) -> Result<()> {
    let has_classes = examples.classes().is_some();
    for objective in &recipe.objectives {
        let spec = objectives::spec(&objective.name)?;
        let reason = match (has_classes, spec.needs.text) {
            (false, _) if spec.heads.contains(&Head::ImageClasses) => {
                format!(
                    "`{}` learns classes of images; `format: folders` has them",
                    spec.name
                )
            }
            (true, true) => format!(
                "`{}` learns from texts, which folders of classes lack",
                spec.name
            ),
            _ => continue,
        };
        return Err(Error::BadSetting {
            key: "data.format".into(),
            reason,
        });
    }
    Ok(())
}
