//! Parameters that the dynamo exporter's optimizer has looked up, expanded or transposed ahead of time, made parameters again.
//!
//! It replaces `Gather(token_type_embeddings, zeros)` by a table with one row many times, and the parameter leaves the file. Equal slices of
//! random values are one slice laid out; so the file gets the different slices as a parameter, and a `Gather` that lays them out. Copies
//! that it made of one weight are one again, too.

use super::external::DataFiles;
use super::fixed::is_mask;
use super::record::{Kind, Record};
use super::tensor::to_proto;
use crate::error::Result;
use crate::ir::Tensor;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};
use protobuf::EnumOrUnknown;
use std::collections::{HashMap, HashSet};

/// Elements from which on a tensor is not looked at.
const LARGEST: usize = 1 << 24;

/// Masks add at least so much, and no weight is so large.
const MASKED: f64 = 50.0;

/// Makes parameters again of what the optimizer computed from one each.
pub(super) fn gather(graph: &mut GraphProto, record: &Record, files: &mut DataFiles) -> Result<()> {
    let mut made = Vec::new();
    for i in 0..graph.initializer.len() {
        let name = graph.initializer[i].name.clone();
        let weight =
            record.only_weight(&name).filter(|_| record.is_mixed(&name) && graph.initializer[i].dims.len() > 1);
        let Some(source) = weight else { continue };
        let Ok(tensor) = files.read(&graph.initializer[i]) else { continue };
        if !tensor.dtype().is_float() || tensor.len() > LARGEST || tensor.uniform().is_some() || masks(&tensor) {
            continue;
        }
        if let Some(layout) = Layout::of(&tensor) {
            let parameter = if is_free(graph, source) { source.to_owned() } else { format!("{name}/rows") };
            graph.initializer[i] = Kind::Parameter.mark(to_proto(&parameter, &layout.slices));
            made.extend(layout.nodes(graph, &parameter, &name)?);
        }
    }
    graph.node.splice(0..0, made);
    untransposed(graph, record, files);
    tie(graph, record, files);
    Ok(())
}

/// Whether a tensor is a mask, or holds values of one, added to others.
fn masks(tensor: &Tensor) -> bool {
    is_mask(tensor) || tensor.to_f64().iter().any(|v| v.abs() >= MASKED)
}

/// Reads a matrix that is in the file itself and transposed, too, from one place: a layer that is an embedding at the other end.
fn untransposed(graph: &mut GraphProto, record: &Record, files: &mut DataFiles) {
    let at: HashMap<&str, usize> = graph.initializer.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut nodes = Vec::new();
    for t in &graph.initializer {
        let source = record.only_source(&t.name).and_then(|s| at.get(s)).map(|i| &graph.initializer[*i]);
        let Some(source) = source.filter(|s| s.dims.len() == 2 && s.dims.iter().rev().eq(&t.dims)) else { continue };
        let (Ok(a), Ok(b)) = (files.read(source), files.read(t)) else { continue };
        let (a, b, rows, columns) = (a.to_f64(), b.to_f64(), t.dims[0] as usize, t.dims[1] as usize);
        if (0..rows).all(|r| (0..columns).all(|c| b[r * columns + c] == a[c * rows + r])) {
            nodes.push(node("Transpose", vec![source.name.clone()], &t.name));
        }
    }
    let made: HashSet<String> = nodes.iter().flat_map(|n| n.output.clone()).collect();
    graph.initializer.retain(|t| !made.contains(&t.name));
    graph.node.splice(0..0, nodes);
}

/// Makes one initializer of equal ones that the optimizer computed from the same parameter: of a layer applied twice, it transposes the
/// weight twice.
fn tie(graph: &mut GraphProto, record: &Record, files: &mut DataFiles) {
    if graph.node.iter().flat_map(|n| &n.attribute).any(|a| a.g.is_some()) {
        return;
    }
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut copies: HashMap<String, String> = HashMap::new();
    for (i, t) in graph.initializer.iter().enumerate() {
        let Some(source) = record.only_source(&t.name) else { continue };
        let original = *first.entry(source.to_owned()).or_insert(i);
        let original = &graph.initializer[original];
        if original.name != t.name
            && let (Ok(a), Ok(b)) = (files.read(original), files.read(t))
            && a == b
        {
            copies.insert(t.name.clone(), original.name.clone());
        }
    }
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if let Some(original) = copies.get(input) {
            input.clone_from(original);
        }
    }
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    graph.initializer.retain(|t| !copies.contains_key(&t.name) || outputs.contains(&t.name));
}

fn node(op: &str, input: Vec<String>, output: &str) -> NodeProto {
    NodeProto {
        name: format!("{output}/{op}"),
        op_type: op.into(),
        input,
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

fn is_free(graph: &GraphProto, name: &str) -> bool {
    let made = graph.node.iter().flat_map(|n| &n.output).chain(graph.input.iter().map(|i| &i.name));
    !made.chain(graph.initializer.iter().map(|i| &i.name)).any(|n| n == name)
}

/// A tensor as its different slices across one axis.
struct Layout {
    /// [slices, elements along `axis`].
    slices: Tensor,
    /// The slice at each place of the other axes.
    indices: Vec<i64>,
    shape: Vec<usize>,
    axis: usize,
}

impl Layout {
    /// The one with the fewest elements, if slices repeat.
    fn of(tensor: &Tensor) -> Option<Self> {
        let (shape, values) = (tensor.shape(), tensor.to_f64());
        let along = |axis: usize| {
            let (length, stride): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
            let mut known: HashMap<Vec<u64>, i64> = HashMap::new();
            let (mut rows, mut indices) = (Vec::new(), Vec::new());
            for first in (0..values.len()).filter(|i| (i / stride).is_multiple_of(length)) {
                let slice: Vec<f64> = (0..length).map(|t| values[first + t * stride]).collect();
                let next = known.len() as i64;
                let key = slice.iter().map(|v| v.to_bits()).collect();
                indices.push(*known.entry(key).or_insert_with(|| {
                    rows.extend_from_slice(&slice);
                    next
                }));
            }
            (rows, indices, axis)
        };
        let axes = (0..shape.len()).filter(|a| shape[*a] > 1).map(along);
        let (rows, indices, axis) = axes.min_by_key(|(rows, ..)| rows.len())?;
        (rows.len() < values.len()).then(|| Self {
            slices: Tensor::from_f64(tensor.dtype(), &[rows.len() / shape[axis], shape[axis]], &rows),
            indices,
            shape: shape.to_vec(),
            axis,
        })
    }

    /// Nodes that lay `parameter` out as `name`; the indices become an initializer.
    fn nodes(&self, graph: &mut GraphProto, parameter: &str, name: &str) -> Result<Vec<NodeProto>> {
        let others: Vec<usize> = (0..self.shape.len()).filter(|a| *a != self.axis).collect();
        let dims: Vec<usize> = others.iter().map(|a| self.shape[*a]).collect();
        let indices = format!("{name}/indices");
        graph.initializer.push(to_proto(&indices, &Tensor::new(&dims, &self.indices)?));
        let last = self.axis + 1 == self.shape.len();
        let gathered = if last { name.to_owned() } else { format!("{name}/gathered") };
        let mut nodes = vec![node("Gather", vec![parameter.to_owned(), indices], &gathered)];
        if !last {
            // The axis of the slices comes out last.
            let place = |a: usize| others.iter().position(|o| *o == a).unwrap_or(others.len());
            let perm = AttributeProto {
                name: "perm".into(),
                ints: (0..self.shape.len()).map(|a| place(a) as i64).collect(),
                type_: EnumOrUnknown::new(AttributeType::INTS),
                ..Default::default()
            };
            nodes.push(NodeProto { attribute: vec![perm], ..node("Transpose", vec![gathered], name) });
        }
        Ok(nodes)
    }
}
