//! Steps of all methods that compare elements of a task vector over all tensors of a model: a look at all
//! tensors, then each element for itself.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::methods::kernels::of_element::{EachElement, OfElement};
use crate::methods::parameters::ParameterSpec;
use crate::methods::{
    Base, ElementKernel, GroupShape, Groups, MergeMethod, Needs, Operation, Overview, Passes,
    Survey, Values,
};
use crate::{Error, MergeFault, Result};

/// A method that looks at all tensors first.
pub(in crate::methods) trait OverallMethod:
    Sized + Send + Sync + 'static
{
    /// The name in recipes.
    const NAME: &'static str;
    /// The parameters.
    const PARAMETERS: &'static [ParameterSpec];
    /// Fewest models beside the base.
    const MIN_INPUTS: usize = 1;
    /// The facts over all tensors.
    type Facts: Send + Sync + 'static;

    /// Reads the parameters, which must be the same for all tensors.
    ///
    /// # Errors
    /// When they do not go together.
    fn read(group: &GroupShape<'_>) -> Result<Self>;

    /// Whether both have the same parameters.
    fn is_like(&self, other: &Self) -> bool;

    /// Whether this tensor takes part. One that does not keeps the base.
    fn takes(group: &GroupShape<'_>) -> bool {
        let _ = group;
        true
    }

    /// Looks at all tensors.
    ///
    /// # Errors
    /// When they cannot be read, or the parameters do not fit their number of elements.
    fn look(&self, groups: &dyn Groups) -> Result<Self::Facts>;

    /// The change of an element with these differences from the base.
    fn change(&self, facts: &Self::Facts, deltas: &[f64]) -> f64;

    /// The merged tensor, in a few words.
    fn describe(group: &GroupShape<'_>) -> String {
        format!("base + {} of {}", Self::NAME, group.labels().join(", "))
    }
}

/// The method of checkpoints that an [`OverallMethod`] is: one object for all tensors of a merge.
pub(in crate::methods) struct Overall<M: OverallMethod>(Mutex<Option<Arc<Shared<M>>>>);

impl<M: OverallMethod> Overall<M> {
    /// Before any tensor was placed.
    pub(in crate::methods) const fn new() -> Self {
        Self(Mutex::new(None))
    }
}

/// The facts that all tensors share.
struct Shared<M: OverallMethod> {
    method: M,
    /// The parameters of the first tensor.
    values: Values,
    facts: OnceLock<M::Facts>,
}

impl<M: OverallMethod> Overview for Shared<M> {
    fn look(&self, groups: &dyn Groups) -> Result<()> {
        if self.facts.get().is_none() {
            let facts = self.method.look(groups)?;
            self.facts.get_or_init(|| facts);
        }
        Ok(())
    }
}

impl<M: OverallMethod> MergeMethod for Overall<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, M::MIN_INPUTS, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        M::PARAMETERS
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if !M::takes(group) {
            return Ok(Operation::TakeBase);
        }
        let method = M::read(group)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &*known {
            Some(shared) if !shared.method.is_like(&method) => {
                let names = M::PARAMETERS.iter().map(|spec| spec.name);
                let (name, place) = group.values.unlike(&shared.values, names);
                return Err(MergeFault::VariesByTensor {
                    slot: group.slot.key.clone(),
                    method: M::NAME,
                    name,
                    place,
                }
                .into());
            }
            Some(shared) => Arc::clone(shared),
            None => {
                let facts = OnceLock::new();
                let shared = Arc::new(Shared {
                    method,
                    values: group.values.clone(),
                    facts,
                });
                *known = Some(Arc::clone(&shared));
                shared
            }
        };
        Ok(Operation::Survey(Arc::new(Part(shared))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        match M::takes(group) {
            true => M::describe(group),
            false => "base".to_owned(),
        }
    }
}

/// One tensor's part.
struct Part<M: OverallMethod>(Arc<Shared<M>>);

impl<M: OverallMethod> Survey for Part<M> {
    fn overview(&self) -> Option<Arc<dyn Overview>> {
        Some(Arc::clone(&self.0) as Arc<dyn Overview>)
    }

    fn survey(&self, _: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        // The executor has looked at all tensors by now.
        if self.0.facts.get().is_none() {
            return Err(Error::MethodNeeds {
                method: M::NAME,
                what: "a look at all tensors",
            });
        }
        Ok(Arc::new(EachElement(Known(Arc::clone(&self.0)))))
    }
}

struct Known<M: OverallMethod>(Arc<Shared<M>>);

impl<M: OverallMethod> OfElement for Known<M> {
    fn change(&self, deltas: &[f64]) -> f64 {
        let facts = self.0.facts.get();
        facts.map_or(0.0, |facts| self.0.method.change(facts, deltas))
    }
}
