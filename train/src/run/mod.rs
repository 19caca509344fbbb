//! A run: its start, its folder, its state, the one loop.

mod backward;
mod experts;
mod folder;
mod gathered;
mod in_turn;
mod memory;
mod model_file;
mod moments;
mod origin;
mod ownership;
mod start;
mod state_file;
mod sums;
mod trainer;
mod update;
mod validation;

pub use backward::{Backward, Found, Told, looks_beyond};
pub use experts::ExpertVariables;
pub use folder::RunFolder;
pub use memory::Memory;
pub use model_file::write_model;
pub use start::{Start, Wanted};
pub use state_file::{Best, KeptState, TrainState};
pub use trainer::{Ended, Pace, Prepared, TrainPlan, Trainer, Where};
pub use update::{Updated, Updater};
pub use validation::{Measured, Together, Validation};
