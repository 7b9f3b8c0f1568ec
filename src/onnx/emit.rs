//! Writes a [`Graph`] as plain ONNX.

use super::attrs::from_attr;
use super::tensor::to_proto;
use crate::error::{Error, Result};
use crate::files::{write_atomically, write_to_temporary};
use crate::ir::{Attr, Body, DType, Declared, Dim, Graph, Source, Type, ValueId};
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use protobuf::MessageField;
use std::collections::HashSet;
use std::path::Path;

/// Where an emitted graph takes its parameters and running statistics from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// They are inputs, after the graph's own.
    Inputs,
    /// They are initializers with their values in the file.
    Initializers,
}

/// The file format version written: the newest that every runtime this crate supports reads.
const IR_VERSION: i64 = 10;

/// Turns a graph into a model. Values that nothing reads are left out.
pub fn emit(graph: &Graph, weights: Weights) -> ModelProto {
    let opset = |(d, v): (&String, &i64)| OperatorSetIdProto { domain: d.clone(), version: *v, ..Default::default() };
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "bisam".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: graph.opsets.iter().map(opset).collect(),
        graph: MessageField::some(graph_proto(graph, weights)),
        ..Default::default()
    }
}

fn graph_proto(graph: &Graph, weights: Weights) -> GraphProto {
    let mut g = GraphProto { name: graph.name.clone(), ..Default::default() };
    let name = |v: Option<ValueId>| v.map_or_else(String::new, |v| graph[v].name.clone());
    let read = graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
    let used: HashSet<ValueId> = read.chain(&graph.outputs).copied().collect();
    g.input = graph.inputs.iter().map(|v| value_info(graph, *v)).collect();
    for v in graph.value_ids().filter(|v| used.contains(v)) {
        match (&graph[v].source, weights) {
            (Source::Param(_) | Source::Stat(_), Weights::Inputs) => g.input.push(value_info(graph, v)),
            (Source::Constant(t) | Source::Param(t) | Source::Stat(t), _) => {
                g.initializer.push(to_proto(&graph[v].name, t));
            }
            (Source::Node | Source::Input(_), _) => {}
        }
    }
    g.output = graph.outputs.iter().map(|v| value_info(graph, *v)).collect();
    let mut taken = HashSet::new();
    g.node = graph
        .nodes
        .iter()
        .map(|n| NodeProto {
            name: unique(&n.name, &mut taken),
            domain: n.domain.clone(),
            op_type: n.op.clone(),
            input: n.inputs[..n.inputs.len() - n.captured()].iter().map(|v| name(*v)).collect(),
            output: n.outputs.iter().map(|v| name(*v)).collect(),
            attribute: n
                .attrs
                .iter()
                .map(|(k, v)| {
                    let mut attr = from_attr(k, v);
                    if let Attr::Graph(body) = v {
                        let around = &n.inputs[n.inputs.len() - body.captured..];
                        let prefix = name(n.outputs.iter().copied().flatten().next());
                        let mut inner = body_proto(body, &prefix, around.iter().map(|v| name(*v)));
                        if n.is("Loop") {
                            let known = [DType::I64, DType::Bool].into_iter().enumerate();
                            for (input, (i, dtype)) in inner.input.iter_mut().zip(known) {
                                let dims = vec![Dim::Fixed(1); body.counter_rank(i)];
                                input.type_ = MessageField::some(tensor_type(dtype, Some(&dims)));
                            }
                        }
                        attr.g = MessageField::some(inner);
                    }
                    attr
                })
                .collect(),
            ..Default::default()
        })
        .collect();
    g
}

/// The body of a control-flow node: its own names get a prefix, and what it captures the names `around` it.
fn body_proto(body: &Body, prefix: &str, around: impl Iterator<Item = String>) -> GraphProto {
    let mut graph = body.graph.clone();
    let formal = graph.inputs.len() - body.captured;
    let captured = graph.inputs.split_off(formal);
    for v in graph.value_ids() {
        let own = format!("{prefix}/{}", graph[v].name);
        graph.rename(v, &own);
    }
    for (v, name) in captured.into_iter().zip(around) {
        graph.rename(v, &name);
    }
    let mut g = graph_proto(&graph, Weights::Initializers);
    for input in &mut g.input {
        // Its type is that of what is passed, where something is.
        input.type_ = MessageField::none();
    }
    g
}

/// Node names only serve messages in a [`Graph`]; ONNX Runtime wants them unique.
fn unique(name: &str, taken: &mut HashSet<String>) -> String {
    let mut unique = name.to_owned();
    let mut i = 0;
    while !unique.is_empty() && !taken.insert(unique.clone()) {
        i += 1;
        unique = format!("{name}_{i}");
    }
    unique
}

fn value_info(graph: &Graph, v: ValueId) -> ValueInfoProto {
    let value = &graph[v];
    let fixed = |t: &Type| (t.dtype, Some(t.shape.iter().map(|d| Dim::Fixed(*d)).collect::<Vec<_>>()));
    let ty = match (&value.ty, &value.source) {
        (Some(t), _) => Some(fixed(t)),
        (None, Source::Input(Declared { dtype, dims })) => Some((*dtype, dims.clone())),
        (None, _) => None,
    };
    let mut info = ValueInfoProto { name: value.name.clone(), ..Default::default() };
    if let Some((dtype, dims)) = ty {
        info.type_ = MessageField::some(tensor_type(dtype, dims.as_deref()));
    }
    info
}

fn tensor_type(dtype: DType, dims: Option<&[Dim]>) -> TypeProto {
    let dimension = |d: &Dim| Dimension {
        value: match d {
            Dim::Fixed(n) => Some(dimension::Value::DimValue(*n as i64)),
            Dim::Symbol(s) => Some(dimension::Value::DimParam(s.clone())),
            Dim::Unknown => None,
        },
        ..Default::default()
    };
    let shape = dims.map(|d| TensorShapeProto { dim: d.iter().map(dimension).collect(), ..Default::default() });
    let tensor = type_proto::Tensor { elem_type: dtype.onnx(), shape: shape.into(), ..Default::default() };
    TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }
}

/// Writes a model to a temporary file beside `path`, syncs it and renames it: `path` holds either the old or the new file.
///
/// # Errors
/// A model too large for one protobuf message (2 GiB), or an I/O error; `path` is then as it was.
pub fn save(model: &ModelProto, path: &Path) -> Result<()> {
    write_atomically(path, &encoded(model, path)?)
}

/// Does all that [`save`] does but for the renaming: `path` stays as it is, and nothing is left beside it.
///
/// # Errors
/// As [`save`].
pub fn save_to_temporary(model: &ModelProto, path: &Path) -> Result<()> {
    write_to_temporary(path, &encoded(model, path)?)
}

fn encoded(model: &ModelProto, path: &Path) -> Result<Vec<u8>> {
    model.write_to_bytes().map_err(|e| Error::new(format!("cannot encode the model: {e}")).in_file(path))
}
