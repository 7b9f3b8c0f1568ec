//! A head for a model that ends in an embedding.

use super::head::uniform;
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Tensor, ValueId};
use crate::onnx::{Model, declared, from_proto, to_proto};
use crate::trace::{Evaluator, Sizes, concretize};
use crate::wording::count;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use protobuf::{EnumOrUnknown, MessageField};
use std::collections::{HashMap, HashSet};

/// Names of the input that tells tokens (1) from padding (0).
pub const MASK_NAMES: [&str; 2] = ["attention_mask", "input_mask"];

/// A model with a linear layer after one of its outputs.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The model; its first output is the logits, the others are those that it had.
    pub model: Model,
    /// The new output.
    pub logits: String,
    /// The output that the layer reads.
    pub embedding: String,
    /// What was done, a sentence.
    pub note: String,
}

/// Appends a linear layer of `classes` logits to output `name`, in the message and in the graph; without a name, to the first
/// float output of embeddings [N, D], or else of token embeddings [N, T, D].
///
/// Token embeddings are averaged over the tokens of the input `attention_mask`. The layer is `classifier.weight` [K, D], uniform
/// in ±1/√D and drawn with `seed`, and `classifier.bias`, zero; its output is `logits`. `sizes` are any on which the model runs.
///
/// # Errors
/// A model that does not run on `sizes`, or has no such output.
pub fn append_head(
    model: &Model,
    name: Option<&str>,
    classes: usize,
    seed: u64,
    sizes: &Sizes,
    run: &dyn Evaluator,
) -> Result<Appended> {
    let mut traced = model.graph.clone();
    concretize(&mut traced, sizes, run)?;
    let (place, source) = find_embedding(model, &traced, name, sizes.batch)?;
    let mut proto = model.proto.clone();
    let old = proto.ir_version < 4;
    let graph = proto.graph.mut_or_insert_default();
    let info = graph.output[place].clone();
    let dtype = declared(&info).map(|d| d.dtype).ok().filter(|d| d.is_float()).unwrap_or(DType::F32);
    let mut layers = Layers { taken: HashSet::new(), old, graph };
    names(layers.graph, &mut layers.taken);
    let mut note = format!("a linear layer of {} was appended to output `{}`", count(classes, "class"), info.name);
    let (features, width) = match source {
        Source::Vectors { width, flat: true } => (info.name.clone(), width),
        Source::Vectors { width, flat: false } => (layers.node("Flatten", "embedding", &[&info.name], None), width),
        Source::Tokens { width, mask } => {
            note += &format!(", averaged over the tokens of `{mask}`");
            (layers.masked_mean(&info.name, &mask, dtype), width)
        }
    };
    let weight = layers.initializer("classifier.weight", &uniform(dtype, &[classes, width], width, seed));
    let bias = layers.initializer("classifier.bias", &Tensor::full(dtype, &[classes], 0.0));
    let logits = layers.node("Gemm", "logits", &[&features, &weight, &bias], Some(("transB", 1)));
    let batch = match info.type_.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(t)) => t.shape.dim.first().cloned().unwrap_or_default(),
        _ => Dimension::default(),
    };
    graph.output.insert(0, value_info(&logits, dtype, vec![batch, fixed(classes)]));
    Ok(Appended { model: from_proto(&model.path, proto)?, logits, embedding: info.name, note })
}

/// Where the features come from.
enum Source {
    /// [N, D]; with dimensions of size 1 after it unless `flat`.
    Vectors { width: usize, flat: bool },
    /// [N, T, D], with an input [N, T] that is 1 for tokens.
    Tokens { width: usize, mask: String },
}

/// The place among the outputs of the one that the head is for.
fn find_embedding(model: &Model, traced: &Graph, name: Option<&str>, batch: usize) -> Result<(usize, Source)> {
    let mask = |tokens: &[usize]| {
        let plain = |v: &&ValueId| MASK_NAMES.contains(&traced[**v].name.trim_end_matches(":0"));
        let fits = |v: &&ValueId| traced.ty(**v).is_ok_and(|t| t.shape == tokens);
        traced.inputs.iter().filter(plain).find(fits).map(|v| traced[*v].name.clone())
    };
    let source = |v: ValueId| {
        let ty = traced.ty(v).ok().filter(|t| t.dtype.is_float() && t.shape.first() == Some(&batch))?;
        match ty.shape.as_slice() {
            [_, width, rest @ ..] if rest.iter().all(|d| *d == 1) => {
                Some(Source::Vectors { width: *width, flat: rest.is_empty() })
            }
            [_, _, width] => mask(&ty.shape[..2]).map(|mask| Source::Tokens { width: *width, mask }),
            _ => None,
        }
    };
    let left_out = |o: &&ValueInfoProto| model.left_out.iter().any(|l| l.name == o.name);
    let outputs = &model.proto.graph.output;
    let values: HashMap<&str, ValueId> =
        model.graph.outputs.iter().zip(&traced.outputs).map(|(v, t)| (model.graph[*v].name.as_str(), *t)).collect();
    let value = |o: &ValueInfoProto| values.get(o.name.as_str()).copied();
    let tensors = outputs.iter().enumerate().filter(|(_, o)| !left_out(o));
    let wanted = tensors.filter(|(_, o)| name.is_none_or(|n| o.name == n));
    let mut found: Vec<(usize, Source)> = wanted.filter_map(|(i, o)| Some((i, source(value(o)?)?))).collect();
    found.sort_by_key(|(_, source)| matches!(source, Source::Tokens { .. }));
    found.into_iter().next().ok_or_else(|| {
        let shown = |o: &ValueInfoProto| match value(o).map(|v| traced.ty(v)) {
            Some(Ok(ty)) => format!("{} {ty}", o.name),
            _ => o.name.clone(),
        };
        let all: Vec<String> = outputs.iter().map(shown).collect();
        let cause = match name {
            Some(n) if outputs.iter().all(|o| o.name != n) => format!("the model has no output `{n}`"),
            Some(n) => format!("a head cannot be appended to output `{n}`"),
            None => "the model has no output that a head can be appended to".to_owned(),
        };
        let takes = "a head takes floats [N, D], or [N, T, D] with an input `attention_mask` [N, T]";
        Error::new(cause).hint(format!("{takes}; the outputs are {}", all.join(", ")))
    })
}

/// Adds to a graph under names that are free.
struct Layers<'g> {
    taken: HashSet<String>,
    /// Before IR version 4 initializers are inputs, too.
    old: bool,
    graph: &'g mut GraphProto,
}

impl Layers<'_> {
    fn free(&mut self, name: &str) -> String {
        let mut free = name.to_owned();
        while !self.taken.insert(free.clone()) {
            free.push('_');
        }
        free
    }

    fn initializer(&mut self, name: &str, tensor: &Tensor) -> String {
        let name = self.free(name);
        if self.old {
            let dims = tensor.shape().iter().map(|d| fixed(*d)).collect();
            self.graph.input.push(value_info(&name, tensor.dtype(), dims));
        }
        self.graph.initializer.push(to_proto(&name, tensor));
        name
    }

    fn node(&mut self, op: &str, output: &str, inputs: &[&str], attribute: Option<(&str, i64)>) -> String {
        let (name, output) = (self.free(&format!("classifier/{op}")), self.free(output));
        let attribute = attribute.map(|(name, i)| AttributeProto {
            name: name.to_owned(),
            i,
            type_: EnumOrUnknown::new(AttributeType::INT),
            ..Default::default()
        });
        self.graph.node.push(NodeProto {
            name,
            op_type: op.to_owned(),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.clone()],
            attribute: attribute.into_iter().collect(),
            ..Default::default()
        });
        output
    }

    /// Σ mₜ xₜ / max(Σ mₜ, 1) of `tokens` x [N, T, D] and `mask` m [N, T], in operators that never changed.
    fn masked_mean(&mut self, tokens: &str, mask: &str, dtype: DType) -> String {
        let one = self.initializer("classifier/one", &Tensor::scalar(dtype, 1.0));
        let [row, column] = [("row", [0, 1, -1]), ("column", [0, -1, 1])]
            .map(|(name, dims)| self.initializer(&format!("classifier/{name}_shape"), &Tensor::ints(&dims)));
        let mask = self.node("Cast", "classifier/mask", &[mask], Some(("to", i64::from(dtype.onnx()))));
        let row = self.node("Reshape", "classifier/row", &[&mask, &row], None);
        let column = self.node("Reshape", "classifier/column", &[&mask, &column], None);
        let sum = self.node("MatMul", "classifier/sum", &[&row, tokens], None);
        let count = self.node("MatMul", "classifier/count", &[&row, &column], None);
        let count = self.node("Max", "classifier/at_least_one", &[&count, &one], None);
        let mean = self.node("Div", "classifier/mean", &[&sum, &count], None);
        self.node("Flatten", "embedding", &[&mean], None)
    }
}

/// The names of values and nodes, in the bodies of control flow, too.
fn names(graph: &GraphProto, all: &mut HashSet<String>) {
    all.extend(graph.input.iter().chain(&graph.output).map(|i| i.name.clone()));
    all.extend(graph.initializer.iter().map(|t| t.name.clone()));
    all.extend(graph.sparse_initializer.iter().map(|t| t.values.name.clone()));
    for node in &graph.node {
        all.extend(node.output.iter().chain([&node.name]).cloned());
        node.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|body| names(body, all));
    }
}

fn fixed(size: usize) -> Dimension {
    Dimension { value: Some(dimension::Value::DimValue(size as i64)), ..Default::default() }
}

fn value_info(name: &str, dtype: DType, dim: Vec<Dimension>) -> ValueInfoProto {
    let shape = MessageField::some(TensorShapeProto { dim, ..Default::default() });
    let tensor = type_proto::Tensor { elem_type: dtype.onnx(), shape, ..Default::default() };
    let value = Some(type_proto::Value::TensorType(tensor));
    let type_ = MessageField::some(TypeProto { value, ..Default::default() });
    ValueInfoProto { name: name.to_owned(), type_, ..Default::default() }
}
