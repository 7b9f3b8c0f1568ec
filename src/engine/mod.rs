//! Runs ONNX graphs on a stock ONNX Runtime; the only user of `ort`.
//!
//! [`library`] finds and loads the runtime once per process, [`session`] compiles a model for a [`Device`], [`arena`]
//! owns the flat buffers that parameters, gradients and optimizer states live in, [`binding`] ties a session's inputs and
//! outputs to views of those buffers, and [`program`] runs training steps over them, copying nothing but batches and scalars.
//!
//! All `unsafe` of the crate's core lives here, in the files that talk to the C interface.

pub mod arena;
pub mod binding;
mod buffers;
mod cuda;
mod evaluation;
mod feed;
mod find;
mod heap;
mod kernels;
pub mod library;
pub mod probe;
pub mod profile;
pub mod program;
mod results;
pub mod session;
mod value;

pub use arena::{Buffer, Layout, Memory};
pub use binding::Binding;
pub use evaluation::{Evaluation, Outputs};
pub use library::{Runtime, load, load_with};
pub use program::{Losses, Program};
pub use session::{CudaOptions, Device, Engine, Session};

use crate::error::Error;

/// Turns an error of `ort` into one of this crate.
///
/// ONNX Runtime names the failing node in the middle of its message; it becomes the error's node here.
fn ort_error<R>(error: ort::Error<R>) -> Error {
    let message = plain(error.message());
    node_error(message).unwrap_or_else(|| Error::new(message.replace('\n', " ")))
}

/// `FILE:LINE FUNCTION [ONNXRuntimeError] : 1 : FAIL : CAUSE`, without what is in front of the cause.
fn plain(message: &str) -> &str {
    let after = message.rsplit_once("[ONNXRuntimeError] : ").map(|(_, rest)| rest.splitn(3, " : "));
    after.and_then(|fields| fields.last()).unwrap_or(message).trim()
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
    use super::{Device, Engine};
    use crate::error::Result;
    use crate::ir::{Attrs, DType, Declared, Dim, Graph, Node, Source};

    pub(super) fn engine() -> Engine {
        Engine::new(None, None, Device::Cpu).expect("run `make setup` first")
    }

    /// `c = a + b` of f32 tensors.
    pub(super) fn sum_model(shape: &[usize]) -> Result<Vec<u8>> {
        model("Add", DType::F32, shape, &["a", "b"], "c")
    }

    /// `y = x`.
    pub(super) fn identity_model(dtype: DType, shape: &[usize]) -> Result<Vec<u8>> {
        model("Identity", dtype, shape, &["x"], "y")
    }

    fn model(op: &str, dtype: DType, shape: &[usize], inputs: &[&str], output: &str) -> Result<Vec<u8>> {
        let mut graph = Graph::default();
        graph.name.push_str("test");
        graph.opsets.insert(String::new(), 18);
        for name in inputs {
            let dims = Some(shape.iter().map(|d| Dim::Fixed(*d)).collect());
            let input = graph.add_value(name, None, Source::Input(Declared { dtype, dims }));
            graph.inputs.push(input);
        }
        let ty = crate::ir::Type::new(dtype, shape);
        let output = graph.add_value(output, Some(ty), Source::Node);
        let inputs = graph.inputs.iter().map(|v| Some(*v)).collect();
        let (name, domain, op) = (op.to_lowercase(), String::new(), op.to_owned());
        graph.nodes.push(Node { name, domain, op, inputs, outputs: vec![Some(output)], attrs: Attrs::new() });
        graph.outputs.push(output);
        crate::trace::encode(&crate::onnx::emit(&graph, crate::onnx::Weights::Inputs))
    }

    #[test]
    fn the_failing_node_is_taken_from_the_message() {
        let message = "Non-zero status code returned while running Add node. Name:'a/b' Status Message: bad shapes\n";
        let error = super::node_error(message).expect("has a node");
        assert_eq!(error.to_string(), "Add `a/b`: bad shapes");
        assert!(super::node_error("Load model failed").is_none());
        assert_eq!(super::plain("a.cc:1 f() [ONNXRuntimeError] : 1 : FAIL : no : such\n"), "no : such");
        assert_eq!(super::plain("a: b : c"), "a: b : c");
    }
}
