//! A new head for another number of classes.

use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Graph, Node, Source, Tensor, ValueId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Replaces the parameters of the last linear layer before the first output, or before the value `output`, so that it gives `classes`
/// logits; true if they had to change.
///
/// The new weight is uniform in ±1/√fan_in, its bias zero, both drawn with `seed`. The graph must not be concretized yet.
///
/// # Errors
/// A model that does not end in Gemm, MatMul (+ Add) or a 1×1 Conv with parameters of its own.
pub fn replace_head(graph: &mut Graph, output: Option<&str>, classes: usize, seed: u64) -> Result<bool> {
    let cannot = |why: &str| {
        Error::new(format!("cannot replace the head: {why}"))
            .hint("a head is a last Gemm, MatMul (+ Add) or 1x1 Conv with its own weight; export the model with the wanted classes")
    };
    let producers = graph.producers();
    let found = output.map_or_else(|| graph.outputs.first().copied(), |name| graph.find(name));
    let mut v = found.ok_or_else(|| cannot("there is no such output"))?;
    let mut bias = None;
    let (weight, axis, fan_axis) = loop {
        let node = producers.get(&v).map(|i| &graph.nodes[*i]).ok_or_else(|| cannot("no linear layer was found"))?;
        let int = |name: &str| matches!(node.attrs.get(name), Some(Attr::Int(1)));
        let param = |slot: usize| node.input(slot).filter(|p| graph.param(*p).is_some());
        match node.op.as_str() {
            "Gemm" => {
                bias = param(2);
                break (param(1), usize::from(!int("transB")), usize::from(int("transB")));
            }
            "MatMul" => break (param(1), 1, 0),
            "Conv" => {
                bias = param(2);
                break (param(1), 0, 1);
            }
            "Add" => {
                let (a, b) = (param(0), param(1));
                bias = a.or(b);
                v = next(node, usize::from(a.is_some())).ok_or_else(|| cannot("no linear layer was found"))?;
            }
            "Softmax" | "LogSoftmax" | "Identity" | "Flatten" | "Squeeze" | "Reshape" => {
                v = next(node, 0).ok_or_else(|| cannot("no linear layer was found"))?;
            }
            other => return Err(cannot(&format!("the model ends in {other}"))),
        }
    };
    let weight = weight.ok_or_else(|| cannot("the last layer's weight is computed, not stored"))?;
    let readers = graph.readers();
    if [Some(weight), bias].iter().flatten().any(|p| readers.get(p).is_some_and(|r| r.len() > 1)) {
        return Err(cannot("its parameters are shared with another layer"));
    }
    let Some(old) = graph.param(weight) else { return Err(cannot("its weight is not trained")) };
    let mut shape = old.shape().to_vec();
    if shape.len() < 2 {
        return Err(cannot("its weight is not a matrix"));
    }
    if shape[axis] == classes {
        return Ok(false);
    }
    shape[axis] = classes;
    let fresh = uniform(old.dtype(), &shape, shape[fan_axis], seed);
    graph.set_source(weight, Source::Param(fresh));
    if let Some(b) = bias {
        graph.set_source(b, Source::Param(Tensor::full(DType::F32, &[classes], 0.0)));
    }
    Ok(true)
}

/// A weight uniform in ±1/√fan_in, drawn with `seed`.
pub(super) fn uniform(dtype: DType, shape: &[usize], fan_in: usize, seed: u64) -> Tensor {
    let bound = 1.0 / (fan_in as f64).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect();
    Tensor::from_f64(dtype, shape, &values)
}

fn next(node: &Node, slot: usize) -> Option<ValueId> {
    node.input(slot)
}
