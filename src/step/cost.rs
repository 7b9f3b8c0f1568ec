//! What a step costs: multiply-adds, and the memory of its activations.

use super::stages::Stages;
use crate::ir::{Attr, Graph, Node, Source, Type, ValueId};
use serde::Serialize;
use std::collections::HashMap;

/// Passes over the products of the forward graph that one gradient takes: forward, and one each for input and weight.
const PASSES: u64 = 3;

/// The cost of one step, for the whole batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Samples in the batch.
    pub batch: usize,
    /// Multiply-adds of the convolutions and matrix products of the forward graph.
    pub forward_multiply_adds: u64,
    /// Floating point operations of one gradient: 2 per multiply-add, 3 passes.
    pub gradient_flops: u64,
    /// Floating point operations of a sharpness-aware step: two gradients.
    pub step_flops: u64,
    /// Bytes of forward values that the backward pass reads; none where the gradient graph cannot be built.
    pub activation_bytes: Option<u64>,
    /// Largest sum of bytes alive at once, in the order of the nodes and without reuse in place.
    pub peak_bytes: Option<u64>,
    /// Bytes of the parameters; weights, perturbed weights, gradient and momentum take as much each.
    pub parameter_bytes: u64,
}

/// The cost of a step on a concretized graph.
pub fn cost(graph: &Graph, batch: usize, stages: Option<&Stages>) -> Cost {
    let forward: u64 = graph.nodes.iter().map(|n| multiply_adds(graph, n)).sum();
    let parameter_bytes = graph.params().iter().filter_map(|v| graph.tensor(*v)).map(|t| t.bytes().len() as u64).sum();
    let memory = stages.map(|s| memory(&s.grad));
    Cost {
        batch,
        forward_multiply_adds: forward,
        gradient_flops: 2 * PASSES * forward,
        step_flops: 4 * PASSES * forward,
        activation_bytes: memory.map(|m| m.0),
        peak_bytes: memory.map(|m| m.1),
        parameter_bytes,
    }
}

/// Multiply-adds of a node; 0 for operators other than convolutions and matrix products.
fn multiply_adds(graph: &Graph, node: &Node) -> u64 {
    let shape = |v: Option<ValueId>| v.and_then(|v| graph[v].ty.as_ref()).map_or(&[][..], |t: &Type| &t.shape);
    let product = |s: &[usize]| s.iter().map(|d| *d as u64).product::<u64>();
    let (x, w, y) = (shape(node.input(0)), shape(node.input(1)), shape(node.output(0)));
    match node.op.as_str() {
        // A weight has all of its dimensions but one (the outputs') summed over.
        "Conv" if w.len() > 2 => product(y) * product(&w[1..]),
        "ConvTranspose" if w.len() > 2 => product(x) * product(&w[1..]),
        "Gemm" if x.len() == 2 => {
            let transposed = matches!(node.attrs.get("transA"), Some(Attr::Int(t)) if *t != 0);
            product(y) * x[usize::from(!transposed)] as u64
        }
        "MatMul" => product(y) * x.last().map_or(0, |d| *d as u64),
        _ => 0,
    }
}

/// Operators whose output is their input's memory.
const VIEWS: &[&str] = &["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// Bytes of forward values that backward nodes read, and the largest sum alive at once.
fn memory(graph: &Graph) -> (u64, u64) {
    let mut buffer: HashMap<ValueId, ValueId> = HashMap::new();
    let mut made: HashMap<ValueId, (usize, u64)> = HashMap::new();
    let mut last: HashMap<ValueId, usize> = HashMap::new();
    let mut kept: HashMap<ValueId, bool> = HashMap::new();
    let backward = |node: &Node| node.name.starts_with("grad/");
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in node.inputs.iter().flatten() {
            let root = buffer.get(v).copied().unwrap_or(*v);
            last.insert(root, i);
            if let Some((maker, _)) = made.get(&root)
                && backward(node)
                && !backward(&graph.nodes[*maker])
            {
                kept.insert(root, true);
            }
        }
        let view = node.domain.is_empty() && VIEWS.contains(&node.op.as_str());
        for v in node.outputs.iter().flatten() {
            match node.input(0).filter(|x| view && graph[*x].source == Source::Node) {
                Some(x) => {
                    let root = buffer.get(&x).copied().unwrap_or(x);
                    buffer.insert(*v, root);
                    last.insert(root, i);
                }
                None => {
                    let bytes = graph[*v].ty.as_ref().map_or(0, Type::bytes) as u64;
                    made.insert(*v, (i, bytes));
                    last.insert(*v, i);
                }
            }
        }
    }
    for v in &graph.outputs {
        last.insert(buffer.get(v).copied().unwrap_or(*v), graph.nodes.len());
    }
    let activations = kept.keys().map(|v| made[v].1).sum();
    let mut change = vec![0i128; graph.nodes.len() + 2];
    for (v, (from, bytes)) in &made {
        change[*from] += i128::from(*bytes);
        change[last[v] + 1] -= i128::from(*bytes);
    }
    let (mut alive, mut peak) = (0i128, 0i128);
    for c in change {
        alive += c;
        peak = peak.max(alive);
    }
    (activations, u64::try_from(peak).unwrap_or(0))
}
