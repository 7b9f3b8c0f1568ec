//! Trains any exported ONNX model with sharpness-aware optimizers.

pub mod adapt;
pub mod autodiff;
pub mod builder;
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod export;
pub mod figure;
pub mod files;
pub mod ir;
pub mod onnx;
pub mod report;
pub mod sharpness;
pub mod step;
pub mod trace;
pub mod train;
pub mod wording;

pub use error::{Error, Result};
