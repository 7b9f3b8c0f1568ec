//! Training runs: recipe, schedule, loop, checkpoints.

pub mod checkpoint;
mod experiment;
pub mod events;
pub mod recipe;
mod run;
pub mod schedule;

pub use experiment::{Cell, Experiment, Measure, Results};
pub use recipe::Recipe;
pub use run::{EpochReport, Observer, StepReport, Summary, evaluate_model, train};
