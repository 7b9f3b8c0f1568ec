//! Trains any exported ONNX classifier with sharpness-aware optimizers.

pub mod data;
pub mod error;
pub mod ir;

pub use error::{Error, Result};
