//! What a step costs: multiply-adds, and the memory of its activations.

use super::stages::Stages;
use crate::ir::{Attr, Graph, Node, Source, Type, ValueId};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

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
    /// The same two with `--recompute`, which computes outputs of normalizations and activations again.
    pub recompute: Option<Recomputed>,
    /// Nodes of the gradient graph.
    pub nodes: usize,
    /// The forward values that the backward pass reads, largest first.
    pub activations: Vec<Activation>,
    /// Bytes of the parameters; weights, perturbed weights, gradient and momentum take as much each.
    pub parameter_bytes: u64,
}

/// Memory of a step that computes some values again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recomputed {
    /// As [`Cost::activation_bytes`].
    pub activation_bytes: u64,
    /// As [`Cost::peak_bytes`].
    pub peak_bytes: u64,
}

/// A forward value that is kept for the backward pass, and how long: from the node that makes it to the last one that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Activation {
    /// Its name.
    pub value: String,
    /// Its type and shape.
    pub ty: String,
    /// Its size.
    pub bytes: u64,
    /// Place of the node that makes it among the nodes of the gradient graph, from 0.
    pub from: usize,
    /// Place of the node that reads it last.
    pub to: usize,
    /// Operator of the node that makes it.
    pub made_by: String,
    /// Operator of the node that reads it last.
    pub last_read_by: String,
}

/// The cost of a step on a concretized graph; `recompute` are the stages that compute values again, where these are others.
pub fn cost(graph: &Graph, batch: usize, stages: Option<&Stages>, recompute: Option<&Stages>) -> Cost {
    let forward: u64 = graph.nodes.iter().map(|n| multiply_adds(graph, n)).sum();
    let parameter_bytes = graph.params().iter().filter_map(|v| graph.tensor(*v)).map(|t| t.bytes().len() as u64).sum();
    let memory = stages.map(|s| Lifetimes::of(&s.grad));
    let recompute = recompute.map(|s| Lifetimes::of(&s.grad));
    Cost {
        batch,
        forward_multiply_adds: forward,
        gradient_flops: 2 * PASSES * forward,
        step_flops: 4 * PASSES * forward,
        activation_bytes: memory.as_ref().map(Lifetimes::activation_bytes),
        peak_bytes: memory.as_ref().map(|m| m.peak),
        recompute: (recompute.as_ref())
            .map(|m| Recomputed { activation_bytes: m.activation_bytes(), peak_bytes: m.peak }),
        nodes: stages.map_or(0, |s| s.grad.nodes.len()),
        activations: memory.map_or_else(Vec::new, |m| m.kept),
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

/// How long the values of a gradient graph are needed.
struct Lifetimes {
    /// Forward values that backward nodes read, largest first.
    kept: Vec<Activation>,
    /// Largest sum of bytes alive at once.
    peak: u64,
}

impl Lifetimes {
    fn activation_bytes(&self) -> u64 {
        self.kept.iter().map(|a| a.bytes).sum()
    }

    fn of(graph: &Graph) -> Self {
        let mut buffer: HashMap<ValueId, ValueId> = HashMap::new();
        let mut made: HashMap<ValueId, (usize, u64)> = HashMap::new();
        let mut last: HashMap<ValueId, usize> = HashMap::new();
        let mut kept: HashSet<ValueId> = HashSet::new();
        let backward = |node: &Node| node.name.starts_with("grad/");
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs.iter().flatten() {
                let root = buffer.get(v).copied().unwrap_or(*v);
                last.insert(root, i);
                if let Some((maker, _)) = made.get(&root)
                    && backward(node)
                    && !backward(&graph.nodes[*maker])
                {
                    kept.insert(root);
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
        let activation = |v: &ValueId| {
            let ((from, bytes), to) = (made[v], last[v]);
            let node = |i: usize| graph.nodes.get(i).map_or_else(|| "output".to_owned(), Node::qualified);
            Activation {
                value: graph[*v].name.clone(),
                ty: graph[*v].ty.as_ref().map_or_else(String::new, ToString::to_string),
                bytes,
                from,
                to,
                made_by: node(from),
                last_read_by: node(to),
            }
        };
        let mut kept: Vec<Activation> = kept.iter().map(activation).collect();
        kept.sort_by_key(|a| (std::cmp::Reverse(a.bytes), a.from, a.value.clone()));
        Self { kept, peak: u64::try_from(peak).unwrap_or(0) }
    }
}
