//! A run: its start, its folder, its state, the one loop.

mod folder;
mod model_file;
mod start;
mod state_file;
mod trainer;
mod update;
mod validation;

pub use folder::RunFolder;
pub use model_file::write_model;
pub use start::Start;
pub use state_file::{Best, Moments, TrainState};
pub use trainer::{Ended, Memory, Trainer, Where};
pub use update::{Updated, Updater};
pub use validation::{Measured, Validation};
