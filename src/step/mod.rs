//! The training step as ONNX graphs: losses and bounds at the logits, the perturbation, the update, and the four stages they
//! make up.

pub mod account;
pub mod ascent;
pub mod check;
pub mod cost;
pub mod elementwise;
pub mod flat;
pub mod gradient;
mod logits;
pub mod loss;
pub mod names;
pub mod options;
pub mod perturb;
pub mod placement;
mod precision;
mod prepare;
pub mod report;
pub mod stages;
pub mod update;

pub use logits::{Form, Origin, refuse_probabilities};
pub use options::{Ascent, Base, Kernels, Preset, StepOptions};
pub use precision::{Precision, round_factors};
pub use prepare::{Ends, OwnLoss, Prepared, prepare};
pub use stages::{Stages, build};
