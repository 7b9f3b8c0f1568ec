//! Trains any exported ONNX classifier with sharpness-aware optimizers.

pub mod error;

pub use error::{Error, Result};
