//! What changed between operator sets, and which of them ONNX Runtime has kernels for.

use crate::ir::{Attr, Body, Graph, Node};
use std::sync::Arc;

/// For each operator of ai.onnx, the operator sets after 7 that added it, or from which on the same node means something else or is
/// written in another way. New attributes and inputs whose absence means what it meant, and new types, are not listed.
///
/// From "Changelog" of onnx 1.23.2, operator set 28. What is silent, the same node with another meaning, is: the default axis and the
/// coercion of Softmax, LogSoftmax and Hardmax (13), the outputs that mean training in BatchNormalization (14), the default coordinates
/// of Resize (11) and RoiAlign (16), the default axis of DFT (20), and the gains of GroupNormalization (21).
const CHANGES: &[(&str, &[i64])] = &[
    ("AffineGrid", &[20]),
    ("Attention", &[23]),
    ("BatchNormalization", &[9, 14]),
    ("BitCast", &[26]),
    ("CausalConvWithState", &[27]),
    ("Clip", &[11]),
    ("CumProd", &[26]),
    ("DFT", &[17, 20]),
    ("DeformConv", &[19]),
    ("Dropout", &[12]),
    ("Gelu", &[20]),
    ("GridSample", &[16, 20]),
    ("GroupNormalization", &[18, 21]),
    ("Hardmax", &[13]),
    ("ImageDecoder", &[20]),
    ("LinearAttention", &[27]),
    ("LogSoftmax", &[13]),
    ("MeanVarianceNormalization", &[9]),
    // Before, floats needed `fmod`.
    ("Mod", &[28]),
    ("Pad", &[11]),
    ("RMSNormalization", &[23]),
    ("ReduceL1", &[18]),
    ("ReduceL2", &[18]),
    ("ReduceLogSum", &[18]),
    ("ReduceLogSumExp", &[18]),
    ("ReduceMax", &[18]),
    ("ReduceMean", &[18]),
    ("ReduceMin", &[18]),
    ("ReduceProd", &[18]),
    ("ReduceSum", &[13]),
    ("ReduceSumSquare", &[18]),
    ("RegexFullMatch", &[20]),
    ("Resize", &[10, 11]),
    ("RoiAlign", &[16]),
    ("RotaryEmbedding", &[23]),
    ("Scan", &[8, 9]),
    ("Scatter", &[9, 11]),
    ("Slice", &[10]),
    ("Softmax", &[13]),
    ("Split", &[13, 18]),
    ("Squeeze", &[13]),
    ("StringConcat", &[20]),
    ("StringSplit", &[20]),
    ("SwiGLU", &[28]),
    ("Swish", &[24]),
    ("TensorScatter", &[24]),
    ("TopK", &[10]),
    ("Unsqueeze", &[13]),
    ("Upsample", &[9, 10]),
];

/// Operators of ai.onnx that ONNX Runtime (1.32, whose newest operator set is 28) has no kernel for from an operator set on, where
/// these differ from older ones in further types only.
const WITHOUT_KERNEL: &[(&str, i64)] = &[
    ("Bernoulli", 22),
    ("DequantizeLinear", 28),
    ("GlobalLpPool", 22),
    ("MaxRoiPool", 22),
    ("Multinomial", 22),
    ("Optional", 28),
    ("OptionalGetElement", 28),
    ("OptionalHasElement", 28),
    ("QuantizeLinear", 28),
    ("RandomNormal", 22),
    ("RandomNormalLike", 22),
    ("RandomUniform", 22),
    ("RandomUniformLike", 22),
    ("RoiAlign", 22),
];

fn entry<T: Copy>(table: &[(&str, T)], op: &str) -> Option<T> {
    table.iter().find(|(o, _)| *o == op).map(|(_, v)| *v)
}

/// The operator set, between two, from which on operator `op` of ai.onnx is another one than before.
pub(crate) fn change_between(op: &str, one: i64, other: i64) -> Option<i64> {
    let (low, high) = (one.min(other), one.max(other));
    entry(CHANGES, op)?.iter().copied().find(|v| low < *v && *v <= high)
}

/// Puts a graph of a newer operator set in an older one, from 18 on, that ONNX Runtime has all kernels of, if there is one in which
/// every operator means the same.
pub(super) fn settle(graph: &mut Graph) {
    let (newest, mut last) = (graph.opset(), graph.opset());
    let limit = |node: &Node| entry(WITHOUT_KERNEL, &node.op).filter(|v| *v <= newest).map(|v| v - 1);
    each_node(graph, &mut |node| last = last.min(limit(node).unwrap_or(last)));
    let mut same = true;
    each_node(graph, &mut |node| same &= change_between(&node.op, last, newest).is_none());
    if last < newest && same {
        set_opset(graph, last);
    }
}

/// Visits the nodes of ai.onnx, those in the bodies of control flow too.
fn each_node(graph: &Graph, visit: &mut dyn FnMut(&Node)) {
    for node in &graph.nodes {
        if node.domain.is_empty() {
            visit(node);
        }
        node.bodies().for_each(|body| each_node(&body.graph, visit));
    }
}

fn set_opset(graph: &mut Graph, version: i64) {
    graph.opsets.insert(String::new(), version);
    for attr in graph.nodes.iter_mut().flat_map(|n| n.attrs.values_mut()) {
        if let Attr::Graph(body) = attr {
            let mut inner = Body { graph: body.graph.clone(), captured: body.captured };
            set_opset(&mut inner.graph, version);
            *body = Arc::new(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Dim};

    fn settled(op: &str, opset: i64) -> i64 {
        let mut graph = Graph::of_one_node(op, ["x", "y"], DType::F32, Dim::Fixed(1), opset);
        settle(&mut graph);
        graph.opset()
    }

    #[test]
    fn a_graph_moves_to_an_older_operator_set_only_where_that_means_the_same() {
        assert_eq!(settled("RandomUniformLike", 23), 21);
        assert_eq!(settled("RandomUniformLike", 20), 20);
        assert_eq!(settled("QuantizeLinear", 28), 27);
        assert_eq!(settled("Relu", 28), 28);
    }

    #[test]
    fn an_operator_of_the_newer_set_keeps_it() {
        let mut graph = Graph::of_one_node("RandomUniformLike", ["x", "y"], DType::F32, Dim::Fixed(1), 23);
        let other = Node { op: "Attention".into(), ..graph.nodes[0].clone() };
        graph.nodes.push(other);
        settle(&mut graph);
        assert_eq!(graph.opset(), 23);
    }
}
