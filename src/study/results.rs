//! From what the steps measured to one report.

use anyhow::{Result, bail};
use evaluate::reports::file::{self, Source};
use evaluate::reports::published::Published;
use evaluate::reports::{Document, Input, Report, SweepPoint};
use serde_json::{Map, Value, json};
use train::recipe::ExpertForm;

use super::claims;
use super::graph::{Graph, Measured, Origin};
use super::recipe::StudyRecipe;
use super::step::Place;
use super::store::Store;

/// The findings of a study.
#[derive(Debug)]
pub struct Findings {
    /// Everything, for a page.
    pub document: Document,
    /// The tables of the test splits.
    pub tests: Vec<Report>,
    /// Statements that the tests support, in sentences.
    pub statements: Vec<String>,
    /// Further numbers by their names, for JSON.
    pub more: Map<String, Value>,
    /// Files beside the page: names and content.
    pub files: Vec<(&'static str, String)>,
    /// The table that a terminal shows instead of one for each test split.
    pub table: Option<String>,
}

/// Reads what the steps left, and joins it.
pub fn join(recipe: &StudyRecipe, graph: &Graph, store: &Store) -> Result<Findings> {
    let mut inputs = Vec::new();
    let mut tests = Vec::new();
    let mut sweeps = Vec::new();
    let mut remarks = Vec::new();
    let mut statements = Vec::new();
    for measured in &graph.measured {
        let names = || measured.models.iter().map(|model| model.name.as_str());
        let validation = read(store, &measured.validation, names())?;
        let chosen = choose(measured, &validation);
        let mut test = read(store, &measured.test, names())?;
        let is_shown = |index: usize| {
            let is_merge = matches!(measured.models[index].origin, Origin::Merge(_));
            !is_merge || chosen.contains(&index)
        };
        keep(&mut test, is_shown);
        for &index in &chosen {
            if let Origin::Merge(point) = &measured.models[index].origin
                && let Some((parameter, value)) = &point.at
            {
                remarks.push(format!(
                    "{} on {}: {parameter} {value} was chosen on the split {}; its row is of the split {}.",
                    point.method,
                    measured.task.dataset(),
                    measured.task.validation,
                    measured.task.test,
                ));
            }
        }
        rename(&mut test, measured);
        statements.extend(claims::of_merges(measured, &test));
        inputs.push(input("test", test.clone()));
        tests.push(test);
        for (other, place) in measured.task.also.iter().zip(&measured.also) {
            let mut further = read(store, place, names())?;
            keep(&mut further, is_shown);
            rename(&mut further, measured);
            for result in &mut further.results {
                let dataset = result.dataset.take().unwrap_or_default();
                result.dataset = Some(format!("{dataset}, {}", other.name));
            }
            statements.extend(claims::of_merges(measured, &further));
            inputs.push(input(&other.name, further.clone()));
            tests.push(further);
        }
        sweeps.extend(sweeps_of(measured, &validation, &chosen));
        let seeds = seeds(measured, recipe.budget_steps, store)?;
        statements.extend(claims::of_seeds(measured, &seeds));
        let forms = forms(measured, store)?;
        let reports = [Some(&seeds), forms.as_ref()];
        statements.extend(claims::of_distances(measured, store, &reports)?);
        sweeps.push(input("length of the seed", seeds));
        sweeps.extend(forms.map(|report| input("forms of experts", report)));
    }
    inputs.extend(sweeps);
    for apart in &graph.distances {
        let mut source = file::read_source(&store.path("", &apart.place))?;
        if let Source::Distances(distances) = &mut source {
            // Files of all steps have the same names.
            (distances.input, distances.other) = apart.names.clone();
            distances.seed = distances.seed.take().map(|_| "the seed".to_owned());
        }
        inputs.push(Input {
            label: apart.label.clone(),
            source,
        });
    }
    let published = Published::ours()?;
    let mut document = Document::new(&recipe.title, &inputs, &published);
    // Methods by tasks: of the test splits alone.
    document.overview = Document::new(&recipe.title, &inputs[..tests.len()], &published).overview;
    document.remarks.extend(remarks);
    document.remarks.push(format!(
        "Each model was pre-trained for {} steps in all{}; merges are of experts after {} seed steps \
         unless the table says otherwise. Parameters were chosen on validation data.",
        recipe.budget_steps,
        match recipe.experts.len() {
            0 => String::new(),
            n => format!(", {n} experts sharing those after the seed"),
        },
        recipe.main_seed_steps
    ));
    if recipe.forms().contains(&ExpertForm::LnSpecific) && recipe.forms().len() > 1 {
        let of_grams = "Of `ln-specific` experts only norms have copies, so no method that weighs linear layers merges them.";
        document.remarks.push(of_grams.into());
    }
    document.remarks.extend(statements.iter().cloned());
    let mut more = Map::new();
    more.insert("statements".into(), json!(statements));
    Ok(Findings {
        document,
        tests,
        statements,
        more,
        files: Vec::new(),
        table: None,
    })
}

pub(super) fn input(label: &str, report: Report) -> Input {
    Input {
        label: label.to_owned(),
        source: Source::Report(report),
    }
}

/// A report whose results have these names, in that order.
pub(super) fn read<'a>(
    store: &Store,
    place: &Place,
    names: impl Iterator<Item = &'a str>,
) -> Result<Report> {
    let path = store.path("", place);
    let report = file::read(&path)?;
    if report.results.iter().map(|r| r.name.as_str()).eq(names) {
        return Ok(report);
    }
    bail!("{}: its results are not those of the study", path.display())
}

/// Of each method the place of the best point on validation data; of equal ones the first.
fn choose(measured: &Measured, validation: &Report) -> Vec<usize> {
    let mut chosen: Vec<(&str, usize)> = Vec::new();
    for (index, model) in measured.models.iter().enumerate() {
        let Origin::Merge(point) = &model.origin else {
            continue;
        };
        let own = validation.results[index].worth();
        match chosen
            .iter_mut()
            .find(|(method, _)| *method == point.method)
        {
            Some((_, best)) if own > validation.results[*best].worth() => *best = index,
            Some(_) => {}
            None => chosen.push((&point.method, index)),
        }
    }
    chosen.into_iter().map(|(_, index)| index).collect()
}

/// Leaves out results, and the comparisons with them.
pub(super) fn keep(report: &mut Report, is_kept: impl Fn(usize) -> bool) {
    let kept: Vec<usize> = (0..report.results.len()).filter(|&i| is_kept(i)).collect();
    let place = |index: usize| kept.iter().position(|&k| k == index);
    report.comparisons.retain_mut(|comparison| {
        match (place(comparison.result), place(comparison.against)) {
            (Some(result), Some(against)) => {
                (comparison.result, comparison.against) = (result, against);
                true
            }
            _ => false,
        }
    });
    report.results = kept.iter().map(|&i| report.results[i].clone()).collect();
}

/// Calls a chosen point by its method, so that rows of several tasks stand in one line.
fn rename(report: &mut Report, measured: &Measured) {
    for result in &mut report.results {
        let model = measured
            .models
            .iter()
            .find(|model| model.name == result.name);
        if let Some(Origin::Merge(point)) = model.map(|model| &model.origin) {
            result.name.clone_from(&point.method);
        }
    }
}

/// A report per method that was swept, on validation data.
fn sweeps_of(measured: &Measured, validation: &Report, chosen: &[usize]) -> Vec<Input> {
    let mut of_methods: Vec<(&str, Vec<usize>)> = Vec::new();
    for (index, model) in measured.models.iter().enumerate() {
        if let Origin::Merge(point) = &model.origin
            && point.at.is_some()
        {
            match of_methods
                .iter_mut()
                .find(|(method, _)| *method == point.method)
            {
                Some((_, points)) => points.push(index),
                None => of_methods.push((&point.method, vec![index])),
            }
        }
    }
    let report = |(method, points): (&str, Vec<usize>)| {
        let mut report = Report::new(Vec::new(), Vec::new());
        for index in points {
            let mut result = validation.results[index].clone();
            // Pictures are shown once, beside the table.
            result.examples.clear();
            if let Origin::Merge(point) = &measured.models[index].origin {
                result.point = point.at.as_ref().map(|(parameter, value)| SweepPoint {
                    parameter: parameter.clone(),
                    value: *value,
                    is_best: chosen.contains(&index),
                });
            }
            report.results.push(result);
        }
        input(method, report)
    };
    of_methods.into_iter().map(report).collect()
}

/// Experts of every form on test data: no point of it is chosen.
fn forms(measured: &Measured, store: &Store) -> Result<Option<Report>> {
    let Some(place) = &measured.forms else {
        return Ok(None);
    };
    let baseline = measured.models.iter().take(1);
    let names = baseline
        .chain(&measured.by_form)
        .map(|model| model.name.as_str());
    let mut report = read(store, place, names)?;
    for result in &mut report.results {
        result.examples.clear();
    }
    Ok(Some(report))
}

/// Merges after seeds of all lengths on test data: no point of it is chosen.
fn seeds(measured: &Measured, whole: u64, store: &Store) -> Result<Report> {
    let names = measured.by_seed.iter();
    let names = names.map(|(_, model)| model.name.as_str());
    let mut report = read(store, &measured.seeds, names)?;
    for (result, (steps, _)) in report.results.iter_mut().zip(&measured.by_seed) {
        result.examples.clear();
        // The baseline stands in the table by its own name.
        if *steps == whole {
            result.name = "the whole budget".to_owned();
        }
        result.point = Some(SweepPoint {
            parameter: "seed steps".to_owned(),
            value: *steps as f64,
            is_best: false,
        });
    }
    Ok(report)
}
