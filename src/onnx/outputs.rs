//! Outputs that hold no numbers (sequences, maps, strings): what only they need is left out of the graph, and stays in the file.

use super::import::captures;
use crate::ir::DType;
use onnx_protobuf::type_proto::Value as Kind;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto};
use protobuf::MessageField;
use std::collections::{HashMap, HashSet};

/// The domain of classical models.
const CLASSICAL: &str = "ai.onnx.ml";

/// An output of the file that is none of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// What it holds, in words.
    pub kind: String,
    /// The tensors it is made of, which are outputs of the graph in its place.
    pub instead: Vec<String>,
}

/// The part of a file that its tensors of numbers need.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// Outputs of the graph.
    pub(super) outputs: Vec<String>,
    /// Outputs that are not.
    pub(super) left_out: Vec<LeftOut>,
    /// What is read for the outputs; all there is where nothing is left out.
    needed: Option<HashSet<String>>,
}

impl Part {
    /// The part of a graph with these nodes that is left when outputs without numbers are passed over. Where no tensor of floats
    /// would be left, that is all of it.
    pub(super) fn of(g: &GraphProto, nodes: &[NodeProto]) -> Self {
        let whole = Self { outputs: g.output.iter().map(|o| o.name.clone()).collect(), ..Self::default() };
        let classical = nodes.iter().any(|n| n.domain == CLASSICAL);
        if !classical && g.output.iter().all(|o| unusual(o).is_none()) {
            return whole;
        }
        let reach = Reach::new(g, nodes);
        let (mut part, mut usable) = (Self::default(), false);
        for output in &g.output {
            let Some(kind) = unusual(output) else {
                usable |= !is_discrete(output);
                part.outputs.push(output.name.clone());
                continue;
            };
            let mut instead = reach.tensors(&output.name);
            usable |= !instead.is_empty();
            instead.retain(|t| !part.outputs.contains(t) && g.output.iter().all(|o| o.name != *t));
            part.outputs.extend(instead.iter().cloned());
            part.left_out.push(LeftOut { name: output.name.clone(), kind, instead });
        }
        if !usable {
            return whole;
        }
        // A label looked up among the classes is of no use to training, either.
        let kept: Vec<&ValueInfoProto> = g.output.iter().filter(|o| is_discrete(o) && unusual(o).is_none()).collect();
        for label in kept {
            let rest = part.outputs.iter().filter(|o| **o != label.name).map(String::as_str);
            let others = reach.upstream(rest);
            let own = reach.upstream([label.name.as_str()]);
            if own.difference(&others).any(|v| reach.is_classical(v)) {
                part.outputs.retain(|o| *o != label.name);
                let kind = tensor_kind(label).unwrap_or_default();
                part.left_out.push(LeftOut { name: label.name.clone(), kind, instead: Vec::new() });
            }
        }
        if part.left_out.is_empty() {
            return whole;
        }
        let needed = reach.upstream(part.outputs.iter().map(String::as_str));
        part.needed = Some(needed.into_iter().map(str::to_owned).collect());
        part
    }

    /// Whether the part has value `name`.
    pub(super) fn needs(&self, name: &str) -> bool {
        self.needed.as_ref().is_none_or(|n| n.contains(name))
    }

    /// Whether the part has this node.
    pub(super) fn has(&self, node: &NodeProto) -> bool {
        node.output.iter().any(|o| !o.is_empty() && self.needs(o))
    }
}

/// The file without the outputs that are left out and what only they need; none where nothing is left out.
pub fn of_tensors(proto: &ModelProto) -> Option<ModelProto> {
    let part = Part::of(&proto.graph, &proto.graph.node);
    if part.left_out.is_empty() {
        return None;
    }
    let mut proto = proto.clone();
    let graph = proto.graph.mut_or_insert_default();
    graph.node.retain(|n| part.has(n));
    graph.initializer.retain(|t| part.needs(&t.name));
    graph.input.retain(|i| part.needs(&i.name));
    let described: HashMap<String, ValueInfoProto> =
        graph.output.drain(..).chain(graph.value_info.iter().cloned()).map(|o| (o.name.clone(), o)).collect();
    let info = |name: &String| described.get(name).cloned().unwrap_or_else(|| float(name));
    graph.output = part.outputs.iter().map(info).collect();
    Some(proto)
}

/// A tensor of floats of any shape.
fn float(name: &str) -> ValueInfoProto {
    let tensor = onnx_protobuf::type_proto::Tensor { elem_type: DType::F32.onnx(), ..Default::default() };
    let type_ = MessageField::some(TypeProto { value: Some(Kind::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: name.to_owned(), type_, ..Default::default() }
}

fn element(info: &ValueInfoProto) -> Option<DType> {
    match &info.type_.as_ref()?.value {
        Some(Kind::TensorType(t)) => DType::from_onnx(t.elem_type),
        _ => None,
    }
}

fn tensor_kind(info: &ValueInfoProto) -> Option<String> {
    element(info).map(|d| d.to_string())
}

/// What an output holds that is no tensor of numbers.
fn unusual(info: &ValueInfoProto) -> Option<String> {
    fn words(ty: &TypeProto) -> &'static str {
        match &ty.value {
            Some(Kind::MapType(_)) => "maps",
            Some(Kind::SequenceType(_)) => "sequences",
            _ => "tensors",
        }
    }
    match &info.type_.as_ref()?.value {
        Some(Kind::TensorType(_)) => (element(info) == Some(DType::Str)).then(|| "strings".to_owned()),
        Some(Kind::SequenceType(s)) => Some(format!("sequence of {}", words(&s.elem_type))),
        Some(Kind::MapType(_)) => Some("map".to_owned()),
        Some(Kind::OptionalType(_)) => Some("optional".to_owned()),
        Some(Kind::SparseTensorType(_)) => Some("sparse tensor".to_owned()),
        _ => None,
    }
}

/// Whether an output is a tensor of integers, booleans or strings.
fn is_discrete(info: &ValueInfoProto) -> bool {
    element(info).is_some_and(|d| !d.is_float())
}

/// What values are computed from.
struct Reach<'a> {
    nodes: &'a [NodeProto],
    makers: HashMap<&'a str, usize>,
    captured: Vec<Vec<String>>,
    strings: HashSet<&'a str>,
}

impl<'a> Reach<'a> {
    fn new(g: &'a GraphProto, nodes: &'a [NodeProto]) -> Self {
        let made = |(i, n): (usize, &'a NodeProto)| n.output.iter().map(move |o| (o.as_str(), i));
        let makers = nodes.iter().enumerate().flat_map(made).collect();
        let of_strings = g.initializer.iter().filter(|t| t.data_type == DType::Str.onnx());
        let strings = of_strings.map(|t| t.name.as_str()).collect();
        Self { nodes, makers, captured: nodes.iter().map(captures).collect(), strings }
    }

    /// The values of `from` and what they are computed from.
    fn upstream<'s>(&'s self, from: impl IntoIterator<Item = &'s str>) -> HashSet<&'s str> {
        let mut todo: Vec<&str> = from.into_iter().collect();
        let mut found = HashSet::new();
        while let Some(name) = todo.pop() {
            if name.is_empty() || !found.insert(name) {
                continue;
            }
            if let Some(i) = self.makers.get(name) {
                let read = self.nodes[*i].input.iter().chain(&self.captured[*i]);
                todo.extend(read.map(String::as_str));
                // A node is there with all that it makes.
                todo.extend(self.nodes[*i].output.iter().map(String::as_str));
            }
        }
        found
    }

    /// Whether a value is made by an operator of classical models, or is a table of strings.
    fn is_classical(&self, name: &str) -> bool {
        let maker = self.makers.get(name).map(|i| &self.nodes[*i]);
        let text = |n: &NodeProto| {
            n.attribute.iter().any(|a| a.t.data_type == DType::Str.onnx() || a.name.starts_with("value_string"))
        };
        self.strings.contains(name) || maker.is_some_and(|n| n.domain == CLASSICAL || text(n))
    }

    /// The tensors that a sequence or map is made of, as far as operators say.
    fn tensors(&self, name: &str) -> Vec<String> {
        let Some(node) = self.makers.get(name).map(|i| &self.nodes[*i]) else { return Vec::new() };
        let wrapped = |v: &String| self.makers.get(v.as_str()).is_some_and(|i| wraps(&self.nodes[*i]));
        let of = |v: &String| if wrapped(v) { self.tensors(v) } else { vec![v.clone()] };
        let inputs = node.input.iter().filter(|v| wraps(node) && !v.is_empty());
        inputs.flat_map(of).collect()
    }
}

/// Whether a node does nothing but put tensors into a sequence or map.
fn wraps(node: &NodeProto) -> bool {
    (node.domain == CLASSICAL && node.op_type == "ZipMap")
        || (node.domain.is_empty() && ["SequenceConstruct", "Optional"].contains(&node.op_type.as_str()))
}
