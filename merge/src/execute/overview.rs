//! Looking at all tensors of a merge before any is made, for methods that compare them.

use std::sync::Arc;

use super::survey::{Memory, with_data};
use super::whole;
use crate::methods::{ElementKernel, GroupData, Groups, Overview, Passes};
use crate::plan::{Action, Entry, TensorRef};
use crate::{Error, MergePlan, Progress, Result};

/// Lets every overview of a plan look at the entries that share it.
pub(super) fn look(
    plan: &MergePlan,
    memory: &Memory,
    is_checked: bool,
    progress: &dyn Progress,
) -> Result<()> {
    let mut all: Vec<(Arc<dyn Overview>, Vec<Part<'_>>)> = Vec::new();
    for entry in plan.entries() {
        let Some((overview, part)) = overview_of(entry) else {
            continue;
        };
        let is_same = |other: &Arc<dyn Overview>| crate::methods::is_same(other, &overview);
        match all.iter_mut().find(|(known, _)| is_same(known)) {
            Some((_, parts)) => parts.push(part),
            None => all.push((overview, vec![part])),
        }
    }
    all.into_iter().try_for_each(|(overview, parts)| {
        overview.look(&Shared {
            plan,
            parts,
            memory,
            is_checked,
            progress,
        })
    })
}

/// The tensors that an entry is made of.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) members: &'a [TensorRef],
    pub(super) base: Option<&'a TensorRef>,
    pub(super) n_elements: usize,
    pub(super) is_double: bool,
}

impl<'a> Part<'a> {
    /// Of an entry that is made element by element, and its kernel.
    pub(super) fn of_elements(entry: &'a Entry) -> Option<(Self, &'a dyn ElementKernel)> {
        let Action::Elementwise {
            members,
            base,
            kernel,
            ..
        } = &entry.action
        else {
            return None;
        };
        let part = Self {
            name: &entry.name,
            members,
            base: base.as_ref(),
            n_elements: entry.info.n_elements(),
            is_double: false,
        };
        Some((part, kernel.as_ref()))
    }
}

/// The overview that an entry shares with others.
fn overview_of(entry: &Entry) -> Option<(Arc<dyn Overview>, Part<'_>)> {
    let (overview, members, base, is_double) = match &entry.action {
        Action::Survey {
            members,
            base,
            survey,
            ..
        } => (survey.overview()?, members, base, survey.is_double()),
        Action::Whole {
            members,
            base,
            kernel,
            ..
        } => (kernel.overview()?, members, base, true),
        _ => return None,
    };
    let part = Part {
        name: &entry.name,
        members,
        base: base.as_ref(),
        n_elements: entry.info.n_elements(),
        is_double,
    };
    Some((overview, part))
}

/// Entries that are looked at together.
pub(super) struct Shared<'a> {
    pub(super) plan: &'a MergePlan,
    pub(super) parts: Vec<Part<'a>>,
    pub(super) memory: &'a Memory,
    pub(super) is_checked: bool,
    pub(super) progress: &'a dyn Progress,
}

impl Groups for Shared<'_> {
    fn sizes(&self) -> Vec<(String, u64)> {
        let parts = self.parts.iter();
        let sizes = parts.map(|part| (part.name.to_owned(), part.n_elements as u64));
        sizes.collect()
    }

    fn each_whole(
        &self,
        see: &mut dyn FnMut(&str, usize, &dyn GroupData) -> Result<()>,
    ) -> Result<()> {
        self.parts.iter().try_for_each(|part| {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let data = whole::Data {
                plan: self.plan,
                members: part.members,
                base: part.base,
                grams: &[],
                name: part.name,
                is_checked: self.is_checked,
            };
            see(part.name, part.members.len(), &data)
        })
    }

    fn each(&self, see: &mut dyn FnMut(&str, &dyn Passes) -> Result<()>) -> Result<()> {
        self.parts.iter().try_for_each(|part| {
            let see = |data: &dyn Passes| see(part.name, data);
            with_data(
                self.plan,
                *part,
                self.memory,
                self.is_checked,
                self.progress,
                see,
            )
        })
    }
}
