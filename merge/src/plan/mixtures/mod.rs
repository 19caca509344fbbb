//! Experts of the models of a recipe: brought into one spelling, compared, and aligned where the recipe asks for it.

use std::collections::BTreeMap;
use std::sync::Arc;

mod aligned;
mod given;
mod order;

pub(super) use aligned::Aligned;
pub use aligned::AlignmentReport;
use aligned::{Move, Observation};
pub(super) use given::refuse_unused;
use given::{activations, observe, require_same_rows};
pub(super) use order::{OrderCheck, check_order};

use super::checkpoints::Models;
use super::grams::GramFiles;
use super::opener::Opener;
use crate::beside::experts::choice;
use crate::methods::MergeMethod;
use crate::mixtures::spelling::spelling_of;
use crate::mixtures::{Ffn, Mixture, Mixtures, Sequence, Survey, ffns, respelled};
use crate::permutations::Network;
use crate::provenance::short_names;
use crate::recipe::{Align, AlignBy, AlignExperts, AlignLayers, ForeignGrams, OnMissing};
use crate::{Checkpoint, MergeFault, MergeRecipe, Result, layouts, model_config};

/// The facts about the models' experts.
pub(super) struct Experts {
    /// The mixtures of each source.
    surveys: Vec<Mixtures>,
    /// Models that are brought into the order of another.
    pub(super) aligned: Vec<Arc<Aligned>>,
}

/// Brings the models' mixtures into the spelling of the base or the first model, and sets up what the recipe says of
/// their order.
pub(super) fn prepare(
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    models: &mut Models,
    (opener, grams): (&Opener, &mut GramFiles),
) -> Result<Experts> {
    let surveys = models.sources.iter().map(|source| Survey::of(source));
    let mut surveys: Vec<Survey> = surveys.collect();
    let reference = models.base.unwrap_or(0);
    let own = surveys.get(reference);
    if let Some(spelling) = own.and_then(|own| spelling_of(&own.mixtures)) {
        for (source, survey) in models.sources.iter_mut().zip(&mut surveys) {
            if spelling_of(&survey.mixtures).is_some_and(|of| of != spelling) {
                *source = respelled(Arc::clone(source), spelling)?;
                *survey = Survey::of(source);
            }
        }
    }
    if !recipe.is_cut() {
        compare(recipe, models, &surveys, reference)?;
    }
    if recipe.moves_experts() || recipe.align_units {
        let mut sources = surveys.iter().zip(&models.sources);
        sources.try_for_each(|(survey, source)| survey.require_whole(source))?;
    }
    let surveys = surveys.into_iter().map(|survey| survey.mixtures).collect();
    let mut experts = Experts {
        surveys,
        aligned: Vec::new(),
    };
    refuse_unused(recipe)?;
    if recipe.moves_experts() || recipe.align_units {
        experts.align(recipe, method, models, (opener, grams), reference)?;
    } else if recipe.align_experts.is_some() {
        experts.require_mixtures(models)?;
    }
    if let Some(layers) = &recipe.align_layers {
        experts.align_layers(recipe, layers, method, models, (opener, reference))?;
    }
    if let Some(align) = &recipe.align {
        experts.align_networks(recipe, align, method, models, (opener, reference))?;
    }
    Ok(experts)
}

/// Checks that the models have as many experts in each mixture. A mixture that no model has whole is merged by its names.
fn compare(
    recipe: &MergeRecipe,
    models: &Models,
    surveys: &[Survey],
    reference: usize,
) -> Result<()> {
    let all: BTreeMap<&str, (usize, &Mixture)> = (surveys.iter().enumerate().rev())
        .chain(surveys.get(reference).map(|own| (reference, own)))
        .flat_map(|(source, own)| {
            let mixtures = own.mixtures.iter();
            mixtures.map(move |(host, own)| (host.as_str(), (source, own)))
        })
        .collect();
    for (host, (first, mixture)) in all {
        for (source, own) in surveys.iter().enumerate() {
            match own.mixtures.get(host) {
                Some(own) if own.n_experts != mixture.n_experts => {
                    return Err(MergeFault::ExpertCounts {
                        mixture: host.to_owned(),
                        model: models.name(source),
                        found: own.n_experts,
                        first: models.name(first),
                        expected: mixture.n_experts,
                        place: models.place(source),
                    }
                    .into());
                }
                Some(_) => {}
                None if own.broken.contains_key(host) => {
                    return Err(own.fault(host, &models.sources[source]).into());
                }
                None if recipe.on_missing != OnMissing::Error => {}
                None => {
                    let mut rows = mixture.router.iter();
                    let has = |key: &str| models.sources[source].get(key).is_some();
                    if let Some(router) = rows.find(|tensor| has(&tensor.key)) {
                        return Err(MergeFault::RouterAlone {
                            router: router.key.clone(),
                            mixture: host.to_owned(),
                            model: models.name(source),
                            place: models.place(source),
                        }
                        .into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Groups of experts that the routers of a mixture pick among, in both models.
fn groups_of(mixture: &Mixture, (one, other): (&Checkpoint, &Checkpoint)) -> Result<usize> {
    let of = |model| -> Result<Option<usize>> {
        let config = model_config::of(model)?;
        let choice = config.map(|config| choice(&config, &mixture.host));
        Ok(choice.map(|choice| choice.groups.map_or(1, |groups| groups.n)))
    };
    let (own, theirs) = (of(one)?, of(other)?);
    let refused = |why| MergeFault::CannotAlign {
        setting: "align_experts",
        why,
    };
    let n = own.or(theirs).unwrap_or(1);
    if theirs.is_some_and(|theirs| theirs != n) {
        let why = "the models' routers pick among different numbers of groups of experts (`n_group` of config.json)";
        return Err(refused(why).into());
    }
    if !mixture.n_experts.is_multiple_of(n) {
        let why = "experts do not make groups of equal sizes (`n_group` of config.json)";
        return Err(refused(why).into());
    }
    Ok(n)
}

impl Experts {
    /// Refuses a setting for experts where models have none.
    fn require_mixtures(&self, models: &Models) -> Result<()> {
        match self.surveys.iter().position(BTreeMap::is_empty) {
            Some(source) => Err(MergeFault::NoMixtures {
                model: models.name(source),
                place: models.place(source),
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Puts views in place of the models whose experts or units are to stand as those of the reference do.
    fn align(
        &mut self,
        recipe: &MergeRecipe,
        method: &dyn MergeMethod,
        models: &mut Models,
        (opener, grams): (&Opener, &mut GramFiles),
        reference: usize,
    ) -> Result<()> {
        let setting = match recipe.moves_experts() {
            true => "align_experts",
            false => "align_units",
        };
        let refused = |why: &'static str| MergeFault::CannotAlign { setting, why };
        if recipe.moves_experts() {
            self.require_mixtures(models)?;
        }
        require_alignable(setting, recipe, method, models, opener)?;
        let kept = Arc::clone(&models.sources[reference]);
        let networks = match recipe.align_units {
            true => ffns(&kept, &self.surveys[reference]),
            false => Vec::new(),
        };
        let no_networks = || MergeFault::CannotAlign {
            setting: "align_units",
            why: "no feed-forward network is known by the names of its layers",
        };
        if recipe.align_units && networks.is_empty() {
            return Err(no_networks().into());
        }
        if networks.iter().any(Ffn::is_out_of_proportion) {
            let why = "a network has more than 64 hidden units for each of its inputs";
            return Err(refused(why).into());
        }
        for (source, name) in &others_of(models, reference) {
            let source = *source;
            if recipe.moves_experts() {
                let pairs = self.surveys[reference].values().filter_map(|own| {
                    let theirs = self.surveys[source].get(&own.host)?;
                    Some((own.clone(), theirs.clone()))
                });
                let pairs: Vec<_> = pairs.collect();
                if pairs.is_empty() {
                    return Err(refused("no mixture has the same name in all models").into());
                }
                let mut all = pairs.iter();
                if let Some((own, theirs)) = all.find(|(own, of)| own.n_experts != of.n_experts) {
                    return Err(MergeFault::ExpertCounts {
                        mixture: own.host.clone(),
                        model: models.name(source),
                        found: theirs.n_experts,
                        first: models.name(reference),
                        expected: own.n_experts,
                        place: models.place(source),
                    }
                    .into());
                }
                if let Some((_, theirs)) = pairs.iter().find(|(_, of)| of.router.is_empty()) {
                    return Err(MergeFault::NoRouter {
                        mixture: theirs.host.clone(),
                        model: models.name(source),
                        place: models.place(source),
                    }
                    .into());
                }
                let observed = match recipe.align_experts {
                    Some(AlignExperts::Outputs) => Some([
                        observe(recipe, grams, models, reference)?,
                        observe(recipe, grams, models, source)?,
                    ]),
                    _ => None,
                };
                let hosts = pairs.iter().map(|(own, _)| own);
                let n_groups = hosts
                    .map(|own| groups_of(own, (&kept, &models.sources[source])))
                    .collect::<Result<Vec<_>>>()?;
                let moved = Move::Experts {
                    pairs,
                    n_groups,
                    any_units: recipe.align_units,
                    observed,
                };
                self.view(name, (&kept, source), models, moved);
            }
            if recipe.align_units {
                let theirs = ffns(&models.sources[source], &self.surveys[source]);
                let pairs = pairs_of(&networks, theirs);
                if pairs.is_empty() {
                    return Err(no_networks().into());
                }
                self.view(name, (&kept, source), models, Move::Units { pairs });
            }
        }
        Ok(())
    }

    /// Puts views in place of the models whose layers are to stand as those of the reference do.
    fn align_layers(
        &mut self,
        recipe: &MergeRecipe,
        layers: &AlignLayers,
        method: &dyn MergeMethod,
        models: &mut Models,
        (opener, reference): (&Opener, usize),
    ) -> Result<()> {
        let setting = "align_layers";
        if recipe.align_units || recipe.moves_experts() {
            let why = "layers are moved by it alone, without `align_units` and `align_experts`";
            return Err(MergeFault::CannotAlign { setting, why }.into());
        }
        require_alignable(setting, recipe, method, models, opener)?;
        let kept = Arc::clone(&models.sources[reference]);
        let own = Sequence::of(&kept, layers)?;
        for (source, name) in &others_of(models, reference) {
            let source = *source;
            let theirs = Sequence::of(&models.sources[source], layers)?;
            if !own.is_alike(&theirs) {
                let why = "layers of the models differ in their sizes";
                return Err(MergeFault::CannotAlign { setting, why }.into());
            }
            let moved = Move::Layers {
                own: own.clone(),
                theirs,
            };
            self.view(name, (&kept, source), models, moved);
        }
        Ok(())
    }

    /// Puts views in place of the models whose units, heads and residual stream are to stand as those of the reference
    /// do.
    fn align_networks(
        &mut self,
        recipe: &MergeRecipe,
        align: &Align,
        method: &dyn MergeMethod,
        models: &mut Models,
        (opener, reference): (&Opener, usize),
    ) -> Result<()> {
        let setting = "align";
        if recipe.align_units || recipe.moves_experts() || recipe.align_layers.is_some() {
            let why =
                "it moves all by itself, without `align_units`, `align_experts` and `align_layers`";
            return Err(MergeFault::CannotAlign { setting, why }.into());
        }
        require_alignable(setting, recipe, method, models, opener)?;
        if recipe.tokenizer_source.is_some() || recipe.tokenizer.is_some() {
            let why =
                "vocabularies are brought together first; write that to a file, and align that";
            return Err(MergeFault::CannotAlign { setting, why }.into());
        }
        if self.surveys.iter().any(|mixtures| !mixtures.is_empty()) {
            let why =
                "a model has mixtures of experts, whose units it does not know; `align_units` does";
            return Err(MergeFault::CannotAlign { setting, why }.into());
        }
        let kept = Arc::clone(&models.sources[reference]);
        let network = |model: &Checkpoint| {
            let layout = layouts::detect(model)?;
            Network::of(model, layout.as_ref(), &align.of)
        };
        let own = network(kept.as_ref())?;
        let observed = |source: usize, models: &Models| {
            let observed = activations(recipe, models, source)?;
            observed.require(&own)?;
            Ok::<_, crate::Error>(Arc::new(observed))
        };
        let of_reference = match align.by {
            AlignBy::Weights => None,
            AlignBy::Activations => Some(observed(reference, models)?),
        };
        for (source, name) in &others_of(models, reference) {
            let source = *source;
            if network(models.sources[source].as_ref())? != own {
                let why = "the networks of the models differ in names or sizes, so their units have no common order";
                return Err(MergeFault::CannotAlign { setting, why }.into());
            }
            let observation = match &of_reference {
                None => None,
                Some(first) => {
                    let theirs = observed(source, models)?;
                    require_same_rows((first, reference), (&theirs, source), models)?;
                    Some(Observation {
                        own: Arc::clone(first),
                        theirs,
                        is_checked: recipe.foreign_grams == ForeignGrams::Error,
                    })
                }
            };
            let moved = Move::Network {
                own: own.clone(),
                observed: observation,
            };
            self.view(name, (&kept, source), models, moved);
        }
        Ok(())
    }

    /// Puts a view in place of a model.
    fn view(
        &mut self,
        model: &str,
        (reference, source): (&Arc<Checkpoint>, usize),
        models: &mut Models,
        moved: Move,
    ) {
        let aligned = Arc::new(Aligned::new(
            model,
            reference,
            &models.sources[source],
            moved,
        ));
        models.sources[source] = aligned.view();
        self.aligned.push(aligned);
    }
}

/// Refuses merges whose files are in the models' own order.
fn require_alignable(
    setting: &'static str,
    recipe: &MergeRecipe,
    method: &dyn MergeMethod,
    models: &Models,
    opener: &Opener,
) -> Result<()> {
    let refused = |why: &'static str| MergeFault::CannotAlign { setting, why };
    if recipe.parts().iter().any(|part| !part.slices.is_empty()) {
        let why = "slices put layers in places where nothing says which experts are meant; align whole models, and \
                   cut the result";
        return Err(refused(why).into());
    }
    if method.needs().grams || method.needs().paired.is_some() {
        let why = "this method reads files beside the models, which are in the models' own order";
        return Err(refused(why).into());
    }
    if models.refs().iter().any(|model| opener.is_document(model)) {
        let why = "a model is the result of another document; write that to a file first";
        return Err(refused(why).into());
    }
    Ok(())
}

/// The models beside the one whose order counts, each with its name in reports.
fn others_of(models: &Models, reference: usize) -> Vec<(usize, String)> {
    let paths = models.refs().iter().map(|model| model.model.clone());
    let paths: Vec<_> = paths.collect();
    let paths: Vec<_> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let named = short_names(&paths).into_iter().enumerate();
    named.filter(|(source, _)| *source != reference).collect()
}

/// Networks of one name and form.
fn pairs_of(own: &[Ffn], theirs: Vec<Ffn>) -> Vec<(Ffn, Ffn)> {
    let theirs = theirs.into_iter();
    let mut theirs: BTreeMap<String, Ffn> = theirs
        .map(|network| (network.name.clone(), network))
        .collect();
    let pairs = own.iter().filter_map(|own| {
        let theirs = theirs.remove(&own.name)?;
        own.is_alike(&theirs).then(|| (own.clone(), theirs))
    });
    pairs.collect()
}
