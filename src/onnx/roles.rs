//! Parameter or table? Decides, for every float constant of a file, whether it is trained.

use crate::ir::{Body, Graph, Node, NodeId, Source, Tensor, ValueId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What a float constant is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained.
    Param,
    /// A running mean or variance of a BatchNormalization: moved by training, not by the gradient.
    Stat,
    /// Left as it is.
    Constant,
}

/// A decision, with its reason for the user.
#[derive(Debug, Clone)]
pub struct RoleReason {
    /// The constant.
    pub value: ValueId,
    /// What it is used as.
    pub role: Role,
    /// Why, in a few words.
    pub reason: &'static str,
}

/// Operators that move elements without computing: a constant is what its far side is used as.
const LAYOUT: &[&str] = &[
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Cast",
    "Expand",
    "Slice",
    "Split",
    "Concat",
    "Tile",
    "Gather",
    "Pad",
];

/// Input slots that hold weights by the operator's own meaning.
const WEIGHT_SLOTS: &[(&str, &[usize])] = &[
    ("Conv", &[1, 2]),
    ("ConvTranspose", &[1, 2]),
    ("DeformConv", &[1, 3]),
    ("Gemm", &[0, 1, 2]),
    ("MatMul", &[0, 1]),
    ("Einsum", &[0, 1]),
    ("BatchNormalization", &[1, 2]),
    ("LayerNormalization", &[1, 2]),
    ("InstanceNormalization", &[1, 2]),
    ("GroupNormalization", &[1, 2]),
    ("RMSNormalization", &[1]),
    ("SimplifiedLayerNormalization", &[1]),
    ("PRelu", &[1]),
    ("LSTM", &[1, 2, 3, 5, 6, 7]),
    ("GRU", &[1, 2, 3, 5]),
    ("RNN", &[1, 2, 3, 5]),
];

/// The same for operators of domain com.microsoft, which ONNX Runtime's optimizers leave in files.
const MICROSOFT_SLOTS: &[(&str, &[usize])] = &[
    ("Attention", &[1, 2]),
    ("BiasAdd", &[1]),
    ("BiasDropout", &[1]),
    ("BiasGelu", &[1]),
    ("BiasSplitGelu", &[1]),
    ("EmbedLayerNormalization", &[2, 3, 4, 5, 6]),
    ("FastGelu", &[1]),
    ("FusedConv", &[1, 2]),
    ("FusedGemm", &[0, 1, 2]),
    ("FusedMatMul", &[0, 1]),
    ("MultiHeadAttention", &[3]),
    ("SkipLayerNormalization", &[2, 3, 4]),
    ("SkipSimplifiedLayerNormalization", &[2, 3]),
];

/// Elementwise operators whose constant operand may be a bias, a gain, a position table, or a mere number.
const ELEMENTWISE: &[&str] = &["Add", "Sub", "Mul", "Div"];

/// An additive mask holds values such as -1e4, -1e9 or -inf; no weight is that large.
const MASK_MAGNITUDE: f64 = 5e3;

/// Turns constants into parameters and statistics, and says why for every float constant.
pub(super) fn assign(graph: &mut Graph) -> Vec<RoleReason> {
    let from_input = before_any_weight(graph);
    let readers = graph.readers();
    let mut roles = Vec::new();
    for value in graph.value_ids() {
        let Some(tensor) = graph.constant(value).filter(|t| t.dtype().is_float()) else { continue };
        let (role, reason) = decide(graph, &readers, &from_input, value, tensor);
        roles.push(RoleReason { value, role, reason });
    }
    for r in &roles {
        if let Some(tensor) = graph.constant(r.value).cloned() {
            match r.role {
                Role::Param => graph.set_source(r.value, Source::Param(tensor)),
                Role::Stat => graph.set_source(r.value, Source::Stat(tensor)),
                Role::Constant => {}
            }
        }
    }
    roles
}

fn decide(
    graph: &Graph,
    readers: &HashMap<ValueId, Vec<NodeId>>,
    from_input: &HashSet<ValueId>,
    value: ValueId,
    tensor: &Tensor,
) -> (Role, &'static str) {
    let uses = uses(graph, readers, value);
    if uses.is_empty() {
        return (Role::Constant, "nothing reads it");
    }
    let is = |node: NodeId, op: &str| graph.nodes[node].is(op);
    if uses.iter().all(|(n, slot)| is(*n, "BatchNormalization") && *slot >= 3) {
        return (Role::Stat, "running statistic");
    }
    if uses.iter().any(|(n, slot)| weight_slot(&graph.nodes[*n], *slot)) {
        return (Role::Param, "weight of an operator");
    }
    if tensor.len() == 1 {
        return (Role::Constant, "a single number");
    }
    if tensor.any(|v| !v.is_finite() || v.abs() > MASK_MAGNITUDE) {
        return (Role::Constant, "values of a mask");
    }
    let elementwise = |(n, _): &(NodeId, usize)| ELEMENTWISE.iter().any(|op| is(*n, op));
    if uses.iter().any(elementwise) {
        let beside_input = |(n, slot): &(NodeId, usize)| {
            graph.nodes[*n].input(1 - slot.min(&1)).is_some_and(|o| from_input.contains(&o))
        };
        return if tensor.len() <= 4 && uses.iter().all(beside_input) {
            (Role::Constant, "normalizes the input")
        } else {
            (Role::Param, "bias, gain or position table")
        };
    }
    let table = |v: &ValueId| {
        readers.get(v).is_some_and(|r| r.iter().any(|n| is(*n, "Gather") && graph.nodes[*n].input(0) == Some(*v)))
    };
    if table(&value) {
        return (Role::Param, "embedding table");
    }
    (Role::Constant, "no operator uses it as a weight")
}

/// Whether input `slot` of a node is a weight by the operator's own meaning; in the body of control flow, too.
fn weight_slot(node: &Node, slot: usize) -> bool {
    let known = |(op, slots): &(&str, &[usize])| node.op == *op && slots.contains(&slot);
    let table = match node.domain.as_str() {
        "" => WEIGHT_SLOTS,
        "com.microsoft" => MICROSOFT_SLOTS,
        _ => &[],
    };
    let inside = |body: &Arc<Body>| {
        let formal = body.graph.inputs.len() - body.captured;
        let captured = (slot + body.captured).checked_sub(node.inputs.len());
        let v = captured.and_then(|i| body.graph.inputs.get(formal + i));
        let readers = body.graph.readers();
        let uses = v.map(|v| uses(&body.graph, &readers, *v)).unwrap_or_default();
        uses.iter().any(|(n, slot)| weight_slot(&body.graph.nodes[*n], *slot))
    };
    table.iter().any(known) || node.bodies().any(inside)
}

/// The (node, slot) pairs that compute with a constant, seen through layout operators.
fn uses(graph: &Graph, readers: &HashMap<ValueId, Vec<NodeId>>, value: ValueId) -> Vec<(NodeId, usize)> {
    let mut found = Vec::new();
    let mut todo = vec![value];
    let mut seen = HashSet::new();
    while let Some(v) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        for n in readers.get(&v).into_iter().flatten() {
            let node = &graph.nodes[*n];
            for slot in (0..node.inputs.len()).filter(|s| node.input(*s) == Some(v)) {
                let moves =
                    node.domain.is_empty() && LAYOUT.contains(&node.op.as_str()) && (slot == 0 || node.op == "Concat");
                if moves {
                    todo.extend(node.outputs.iter().flatten());
                } else {
                    found.push((*n, slot));
                }
            }
        }
    }
    found
}

/// Values computed from the graph's inputs by elementwise and layout operators alone.
fn before_any_weight(graph: &Graph) -> HashSet<ValueId> {
    let mut set: HashSet<ValueId> = graph.inputs.iter().copied().collect();
    for node in &graph.nodes {
        let simple =
            node.domain.is_empty() && (LAYOUT.contains(&node.op.as_str()) || ELEMENTWISE.contains(&node.op.as_str()));
        let computed = |v: &ValueId| graph.constant(*v).is_none();
        if simple && node.inputs.iter().flatten().filter(|v| computed(v)).all(|v| set.contains(v)) {
            set.extend(node.outputs.iter().flatten());
        }
    }
    set
}
