//! The float type of a graph.

use super::{Attr, Body, DType, Graph, Source, Tensor, ValueId};
use std::collections::HashSet;
use std::sync::Arc;

/// Attributes that hold a type, by operator.
const TYPES: &[(&str, &str)] = &[
    ("Cast", "to"),
    ("EyeLike", "dtype"),
    ("RandomNormal", "dtype"),
    ("RandomNormalLike", "dtype"),
    ("RandomUniform", "dtype"),
    ("RandomUniformLike", "dtype"),
    ("Bernoulli", "dtype"),
    ("SequenceEmpty", "dtype"),
    ("HannWindow", "output_datatype"),
    ("HammingWindow", "output_datatype"),
    ("BlackmanWindow", "output_datatype"),
    ("MelWeightMatrix", "output_datatype"),
    ("Attention", "softmax_precision"),
    ("DequantizeLinear", "output_dtype"),
];

/// Inputs that are f32 whatever the type of the rest.
const ALWAYS_F32: &[(&str, usize)] = &[("Resize", 2), ("Upsample", 1)];

/// Turns every value of a type in `from` into one of type `to`: constants, parameters, declared inputs, and the types that
/// attributes name. Types that tracing found are forgotten.
pub fn set_float_type(graph: &mut Graph, from: &[DType], to: DType) {
    let fixed: HashSet<ValueId> = graph
        .nodes
        .iter()
        .flat_map(|n| ALWAYS_F32.iter().filter(|(op, _)| n.is(op)).filter_map(|(_, slot)| n.input(*slot)))
        .collect();
    let convert = |t: &Tensor| from.contains(&t.dtype()).then(|| Tensor::from_f64(to, t.shape(), &t.to_f64()));
    for v in graph.value_ids() {
        let source = match &graph[v].source {
            Source::Constant(t) if !fixed.contains(&v) => convert(t).map(Source::Constant),
            Source::Param(t) => convert(t).map(Source::Param),
            Source::Stat(t) => convert(t).map(Source::Stat),
            Source::Input(d) if from.contains(&d.dtype) => {
                let mut declared = d.clone();
                declared.dtype = to;
                Some(Source::Input(declared))
            }
            _ => None,
        };
        match source {
            Some(source) => graph.set_source(v, source),
            None if matches!(graph[v].source, Source::Constant(_) | Source::Param(_) | Source::Stat(_)) => {}
            None => graph[v].ty = None,
        }
    }
    for node in graph.nodes.iter_mut().filter(|n| n.domain.is_empty()) {
        for (_, name) in TYPES.iter().filter(|(op, _)| node.op == *op) {
            if let Some(Attr::Int(number)) = node.attrs.get_mut(*name)
                && from.iter().any(|d| i64::from(d.onnx()) == *number)
            {
                *number = i64::from(to.onnx());
            }
        }
        for attr in node.attrs.values_mut() {
            match attr {
                Attr::Tensor(t) => *t = convert(t).unwrap_or_else(|| t.clone()),
                Attr::Graph(body) => {
                    let mut inner = body.graph.clone();
                    set_float_type(&mut inner, from, to);
                    *body = Arc::new(Body { graph: inner, captured: body.captured });
                }
                _ => {}
            }
        }
        // What makes a float by default makes it explicitly now.
        let default = match node.op.as_str() {
            "ConstantOfShape" => ("value", Attr::Tensor(Tensor::full(to, &[1], 0.0))),
            "RandomNormal" | "RandomUniform" | "SequenceEmpty" => ("dtype", Attr::Int(i64::from(to.onnx()))),
            _ => continue,
        };
        if from.contains(&DType::F32) {
            node.attrs.entry(default.0.to_owned()).or_insert(default.1);
        }
    }
}
