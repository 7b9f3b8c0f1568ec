//! Training runs: recipe, schedule, loop, checkpoints.

pub mod checkpoint;
mod metrics;
pub mod recipe;
mod run;
pub mod schedule;

pub use metrics::{ClassScores, Confusion, Metric, Scores};
pub use recipe::Recipe;
pub use run::{EpochReport, Evaluation, Observer, StepReport, Summary, evaluate_model, train};
