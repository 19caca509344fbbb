//! Embeddings that an adapter changes, and the heads that share them.

use super::{Change, Changes, Reader};
use crate::ties::{self, TiedHead};
use crate::{AdapterFault, Result};

impl Reader<'_> {
    /// Settles a head that shares embeddings which the adapter changes: it keeps the base's weights, as PEFT computes
    /// it, unless the adapter changes both alike.
    pub(super) fn untie(&self, found: &mut Changes) -> Result<()> {
        let embeddings: Vec<String> = (found.by_target.keys())
            .filter(|target| ties::may_be_shared(target))
            .cloned()
            .collect();
        for embedding in embeddings {
            match ties::head_of(self.base, &embedding)? {
                TiedHead::None => {}
                TiedHead::Unknown if self.stays_tied(&found.by_target[&embedding]) => {}
                TiedHead::Unknown => {
                    return Err(AdapterFault::Tied {
                        path: self.path(),
                        embedding,
                        base: self.base.path().to_owned(),
                        place: self.place,
                    }
                    .into());
                }
                TiedHead::Named(head) => self.untie_head(&embedding, head, found)?,
            }
        }
        Ok(())
    }

    fn untie_head(&self, embedding: &str, head: String, found: &mut Changes) -> Result<()> {
        let change = &found.by_target[embedding];
        match found.by_target.get(&head) {
            Some(of_head) if self.are_alike(change, of_head)? => {
                // Both stay one.
                found.by_target.remove(&head);
                found.heads.remove(&head);
            }
            Some(_) => {}
            None if self.stays_tied(change) => {}
            None => {
                found.heads.insert(head, embedding.to_owned());
            }
        }
        Ok(())
    }

    /// Whether PEFT changes the head in the same way as the embeddings.
    fn stays_tied(&self, change: &Change) -> bool {
        let is_rows_alone =
            change.rows.is_some() && change.added.is_none() && change.replaced.is_none();
        self.config.keeps_ties || is_rows_alone
    }

    /// Whether whole tensors hold the same values.
    fn are_alike(&self, one: &Change, other: &Change) -> Result<bool> {
        let (Some((first, one_info)), Some((second, other_info))) =
            (&one.replaced, &other.replaced)
        else {
            return Ok(false);
        };
        let are_whole = one.added.is_none() && other.added.is_none();
        Ok(are_whole
            && one_info == other_info
            && self.adapter.read_all(first)? == self.adapter.read_all(second)?)
    }

    /// Checks that embeddings and head have the same rows, where an adapter brings more.
    pub(super) fn check_rows(&self, found: &Changes) -> Result<()> {
        let is_one = |name: &str| ties::is_embedding(name) || ties::is_head(name);
        let of_base = self.base.tensors().map(|(name, info)| (name, &info.shape));
        let of_heads = found.heads.iter().filter_map(|(head, embedding)| {
            Some((head.as_str(), &self.base.get(embedding)?.shape))
        });
        let mut rows: Vec<(&str, usize)> = Vec::new();
        for (name, shape) in of_base.chain(of_heads).filter(|(name, _)| is_one(name)) {
            let shape = self.wholes.get(name).unwrap_or(shape);
            rows.extend(shape.first().map(|&n| (name, n)));
        }
        let adds = |(name, n): &&(&str, usize)| {
            self.wholes.contains_key(*name)
                && self.base.get(name).is_some_and(|info| info.shape[0] < *n)
        };
        let Some(&(changed, n_rows)) = rows.iter().find(adds) else {
            return Ok(());
        };
        match rows.iter().find(|(_, n)| *n != n_rows) {
            None => Ok(()),
            Some(&(other, n_others)) => Err(AdapterFault::Rows {
                path: self.path(),
                changed: changed.to_owned(),
                n_rows,
                other: other.to_owned(),
                n_others,
                place: self.place,
            }
            .into()),
        }
    }
}

/// Whether a whole tensor is the base's with rows for more tokens.
pub(super) fn adds_rows(target: &str, whole: &[usize], base: &[usize]) -> bool {
    let (Some((n_rows, width)), Some((n_before, width_before))) =
        (whole.split_first(), base.split_first())
    else {
        return false;
    };
    let is_by_token = ties::is_embedding(target)
        || ties::is_head(target)
        || target.ends_with("shared.weight")
        || target.ends_with("lm_head.bias");
    is_by_token && width == width_before && n_rows > n_before
}
