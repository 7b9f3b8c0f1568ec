//! Training runs: recipe, schedule, loop, checkpoints.

pub mod checkpoint;
mod data;
mod evaluate;
pub mod events;
mod experiment;
mod folder;
mod head;
mod log;
mod metrics;
pub mod recipe;
mod run;
pub mod schedule;
mod setup;
mod trainer;
mod verdict;
mod weights;

pub(crate) use data::{Opened, open_split};
pub(crate) use evaluate::bytes;
pub use evaluate::{Evaluation, evaluate_model};
pub(crate) use experiment::moments;
pub use experiment::{Cell, Experiment, Measure, Results};
pub use folder::Folder;
pub use log::{EpochReport, StepReport, Summary};
pub(crate) use metrics::judge;
pub use metrics::{ClassScores, Confusion, Metric, Scores};
pub use recipe::Recipe;
pub use run::{Observer, train};
