//! Runs ONNX graphs on a stock ONNX Runtime; the only user of `ort`.
//!
//! [`library`] finds and loads the runtime once per process, [`session`] compiles a model for a [`Device`], [`arena`]
//! owns the flat buffers that parameters, gradients and optimizer states live in, [`binding`] ties a session's inputs and
//! outputs to views of those buffers, and [`program`] runs training steps over them, copying nothing but batches and scalars.
//!
//! All `unsafe` of the crate's core lives here, in the files that talk to the C interface.

pub mod arena;
pub mod binding;
mod find;
pub mod library;
pub mod program;
pub mod session;
mod value;

pub use arena::{Buffer, Layout, Memory};
pub use binding::Binding;
pub use library::{Runtime, load, load_with};
pub use program::{Losses, Program};
pub use session::{Device, Engine, Session};

use crate::error::Error;

/// Turns an error of `ort` into one of this crate.
///
/// ONNX Runtime names the failing node in the middle of its message; it becomes the error's node here.
fn ort_error<R>(error: ort::Error<R>) -> Error {
    let message = error.message();
    node_error(message).unwrap_or_else(|| Error::new(message.trim().replace('\n', " ")))
}

/// `… while running Conv node. Name:'c1' Status Message: CAUSE`, taken apart.
fn node_error(message: &str) -> Option<Error> {
    let (_, rest) = message.split_once("while running ")?;
    let (op, rest) = rest.split_once(" node. Name:'")?;
    let (name, cause) = rest.split_once("' Status Message: ")?;
    Some(Error::new(cause.trim().replace('\n', " ")).at_node(op, name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_failing_node_is_taken_from_the_message() {
        let message = "Non-zero status code returned while running Add node. Name:'a/b' Status Message: bad shapes\n";
        let error = super::node_error(message).expect("has a node");
        assert_eq!(error.to_string(), "Add `a/b`: bad shapes");
        assert!(super::node_error("Load model failed").is_none());
    }
}
