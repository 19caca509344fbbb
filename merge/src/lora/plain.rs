//! The factors of an adapter that is nothing but products, for formats that hold nothing else.

use std::path::Path;

use super::config::{self, Config};
use super::part::Part;
use super::weights;
use crate::io::{self, OpenOptions};
use crate::recipe::Place;
use crate::{Checkpoint, ExportFault, Result};

/// The factors of a module's update.
pub(crate) struct Factors {
    /// The module, as the base calls it.
    pub(crate) module: String,
    /// The name of `A`, of (rank, inputs).
    pub(crate) first: String,
    /// The name of `B`, of (outputs, rank).
    pub(crate) second: String,
}

/// A plain adapter.
pub(crate) struct Plain {
    /// Its tensors.
    pub(crate) tensors: Checkpoint,
    /// Its factors, by the names of modules.
    pub(crate) factors: Vec<Factors>,
    /// α of all modules: an update is `α / r B A`.
    pub(crate) alpha: f64,
}

/// Opens the adapter in `folder`, if it is made of products with one α alone.
///
/// # Errors
/// [`ExportFault::Adapter`] for any other; [`crate::AdapterFault`] for settings that are not known.
pub(crate) fn open(folder: &Path) -> Result<Plain> {
    let refused = |reason: String| -> crate::Error {
        ExportFault::Adapter {
            path: folder.into(),
            reason,
        }
        .into()
    };
    if !config::has_settings(folder) {
        return Err(refused("it has no adapter_config.json".into()));
    }
    let (config, _) = Config::open(folder, Place::default())?;
    for (is_there, what) in [
        (config.has_magnitudes, "lengths of rows (DoRA)"),
        (config.fan_in_fan_out, "weights of (inputs, outputs)"),
        (!config.parameters.is_empty(), "parameters without modules"),
    ] {
        if is_there {
            return Err(refused(format!("it changes {what}")));
        }
    }
    let tensors = io::open(&weights(folder), &OpenOptions::default())?;
    tensors.require_unique_names()?;
    let (mut factors, mut alpha) = (Vec::new(), None);
    for (key, info) in tensors.tensors() {
        match Part::of(key) {
            Part::First {
                module,
                second,
                is_embedding: false,
            } => {
                let of_second = tensors.require(&second)?;
                let ([rank, _], [_, other]) = (&info.shape[..], &of_second.shape[..]) else {
                    return Err(refused(format!("`{key}` and `{second}` are no matrices")));
                };
                if rank != other || *rank != config.rank(module, *rank) {
                    return Err(refused(format!(
                        "`{key}` and `{second}` have the ranks {rank} and {other}, and its settings another"
                    )));
                }
                let own = config.scale(module, *rank, None) * *rank as f64;
                // In f32, in which formats hold it.
                if alpha.is_some_and(|known| known as f32 != own as f32) {
                    return Err(refused(
                        "its modules have several α, and the file holds one".into(),
                    ));
                }
                alpha = Some(own);
                factors.push(Factors {
                    module: module.to_owned(),
                    first: key.to_owned(),
                    second,
                });
            }
            Part::Second { first } if tensors.get(&first).is_some() => {}
            _ => {
                return Err(refused(format!(
                    "`{key}` is no factor of the weight of a module"
                )));
            }
        }
    }
    match alpha {
        Some(alpha) => Ok(Plain {
            tensors,
            factors,
            alpha,
        }),
        None => Err(refused("it has no factors".into())),
    }
}
