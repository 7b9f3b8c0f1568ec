//! Runs models of the gradient checks.

use crate::common::engine;
use bisam::Result;
use bisam::engine::Session;
use bisam::ir::{Graph, Tensor};
use bisam::onnx::{Weights, emit};
use bisam::trace::Evaluator;
use onnx_protobuf::Message;
use std::sync::Mutex;

/// A compiled graph.
pub struct Compiled(Mutex<Session>);

impl Compiled {
    pub fn new(graph: &Graph) -> Result<Self> {
        let bytes = emit(graph, Weights::Initializers).write_to_bytes().expect("encodes");
        Ok(Self(Mutex::new(engine().compile_model(&bytes)?)))
    }

    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        self.0.lock().expect("not poisoned").run(inputs)
    }
}

/// Runs a model once.
pub struct Once;

impl Evaluator for Once {
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        engine().evaluate(model, inputs)
    }
}
