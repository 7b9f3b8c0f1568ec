//! Training runs: recipe, schedule, loop, checkpoints.

pub mod checkpoint;
pub mod events;
mod experiment;
mod metrics;
pub mod recipe;
mod run;
pub mod schedule;

pub(crate) use experiment::moments;
pub use experiment::{Cell, Experiment, Measure, Results};
pub(crate) use metrics::judge;
pub use metrics::{ClassScores, Confusion, Metric, Scores};
pub use recipe::Recipe;
pub use run::{EpochReport, Evaluation, Observer, StepReport, Summary, evaluate_model, train};
pub(crate) use run::{bytes, open_split};
