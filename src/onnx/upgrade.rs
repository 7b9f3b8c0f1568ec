//! Brings operators of old operator sets to the form of opset 18, so that rules know one form of each, and writes out operators that no
//! runtime has a kernel of.
//!
//! From opset 18 on a file keeps its own version. Most changes before moved an attribute to an input; `changes.rs` lists them.

mod resize;
mod written;

use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Graph, Node, Source, Tensor, ValueId};

/// The version every graph has at least.
pub(super) const TARGET: i64 = 18;

const REDUCTIONS: &[&str] = &[
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
];

/// Upgrades every node of the default domain to opset 18, if the graph is older, and writes some operators out.
///
/// The result is the constants that were attributes before: the file has no tensor that could hold a trained value of them.
///
/// # Errors
/// Forms that have no successor: BatchNormalization that normalizes every element by itself, Scan of opset 8.
pub(super) fn upgrade(graph: &mut Graph) -> Result<Vec<ValueId>> {
    let from = graph.opset();
    let before = graph.value_count();
    for node in std::mem::take(&mut graph.nodes) {
        if node.domain.is_empty() {
            let (op, name) = (node.op.clone(), node.name.clone());
            upgrade_node(graph, node, from).map_err(|e| e.at_node(&op, &name))?;
        } else {
            graph.nodes.push(node);
        }
    }
    graph.opsets.insert(String::new(), from.max(TARGET));
    Ok(graph.value_ids().skip(before).filter(|v| graph.constant(*v).is_some()).collect())
}

/// Appends `node`, or what stands for it.
fn upgrade_node(graph: &mut Graph, mut node: Node, from: i64) -> Result<()> {
    if from < TARGET {
        change(graph, &mut node, from)?;
    }
    let mut w = Writer { graph, name: node.name.clone() };
    match node.op.as_str() {
        "Softmax" | "LogSoftmax" | "Hardmax" if from < 13 => coerced_softmax(&mut w, node),
        "Upsample" | "Resize" if from < 11 => resize::resize(&mut w, node)?,
        _ if written::is_written_out(&node, from) => written::write_out(&mut w, node)?,
        _ => graph.nodes.push(node),
    }
    Ok(())
}

/// Writes nodes in the place of one.
struct Writer<'g> {
    graph: &'g mut Graph,
    name: String,
}

impl Writer<'_> {
    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.graph.add_value(&format!("{}/attribute", self.name), None, Source::Constant(tensor))
    }

    fn scalar(&mut self, value: f32) -> ValueId {
        self.constant(Tensor::scalar(DType::F32, f64::from(value)))
    }

    /// The output of a node that is still to be made.
    fn value(&mut self, op: &str) -> ValueId {
        self.graph.add_value(&format!("{}/{op}", self.name), None, Source::Node)
    }

    /// The output of a new node.
    fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let y = self.value(op);
        self.op_to(op, inputs, attrs, y);
        y
    }

    /// A new node that computes `output`.
    fn op_to(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs, output: ValueId) {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.raw(op, inputs, attrs, output);
    }

    fn raw(&mut self, op: &str, inputs: Vec<Option<ValueId>>, attrs: Attrs, output: ValueId) {
        let (name, outputs) = (format!("{}/{op}", self.name), vec![Some(output)]);
        self.graph.nodes.push(Node { name, domain: String::new(), op: op.into(), inputs, outputs, attrs });
    }
}

fn ints(graph: &mut Graph, node: &Node, values: &[i64]) -> ValueId {
    graph.add_value(&format!("{}/attribute", node.name), None, Source::Constant(Tensor::ints(values)))
}

/// Moves attribute `name` to input `slot`, where it is an integer list.
fn ints_to_input(graph: &mut Graph, node: &mut Node, name: &str, slot: usize) {
    if let Some(Attr::Ints(values)) = node.attrs.remove(name) {
        let v = ints(graph, node, &values);
        set_input(node, slot, v);
    }
}

/// Moves attribute `name` to input `slot`, unless it is `default`.
fn float_to_input(graph: &mut Graph, node: &mut Node, name: &str, slot: usize, default: f32) {
    if let Some(Attr::Float(value)) = node.attrs.remove(name).filter(|a| *a != Attr::Float(default)) {
        let tensor = Tensor::scalar(DType::F32, f64::from(value));
        let v = graph.add_value(&format!("{}/attribute", node.name), None, Source::Constant(tensor));
        set_input(node, slot, v);
    }
}

fn set_input(node: &mut Node, slot: usize, v: ValueId) {
    if node.inputs.len() <= slot {
        node.inputs.resize(slot + 1, None);
    }
    node.inputs[slot] = Some(v);
}

/// Changes a node that stays one.
fn change(graph: &mut Graph, node: &mut Node, from: i64) -> Result<()> {
    // Which inputs could be overwritten, and that this is no training: neither means anything any more.
    node.attrs.remove("consumed_inputs");
    if node.attrs.get("is_test") == Some(&Attr::Int(1)) {
        node.attrs.remove("is_test");
    }
    match node.op.as_str() {
        op if REDUCTIONS.contains(&op) => ints_to_input(graph, node, "axes", 1),
        "ReduceSum" | "Squeeze" | "Unsqueeze" if from < 13 => ints_to_input(graph, node, "axes", 1),
        "Split" => {
            ints_to_input(graph, node, "split", 1);
            if node.input(1).is_none() {
                node.attrs.insert("num_outputs".into(), Attr::Int(node.outputs.len() as i64));
            }
        }
        "Clip" if from < 11 => {
            float_to_input(graph, node, "min", 1, f32::MIN);
            float_to_input(graph, node, "max", 2, f32::MAX);
        }
        "Slice" if from < 10 => {
            ints_to_input(graph, node, "starts", 1);
            ints_to_input(graph, node, "ends", 2);
            ints_to_input(graph, node, "axes", 3);
        }
        "Pad" if from < 11 => {
            ints_to_input(graph, node, "pads", 1);
            float_to_input(graph, node, "value", 2, 0.0);
        }
        "Dropout" if from < 12 => float_to_input(graph, node, "ratio", 1, 0.5),
        "TopK" if from < 10 => {
            if let Some(Attr::Int(k)) = node.attrs.remove("k") {
                let k = ints(graph, node, &[k]);
                set_input(node, 1, k);
            }
        }
        "Scan" if from < 9 => {
            return Err(Error::new("Scan of operator set 8 has no successor in newer ones")
                .hint("convert the file with onnx.version_converter, or export it again"));
        }
        "Scatter" => node.op = "ScatterElements".into(),
        "RoiAlign" if from < 16 => {
            node.attrs.insert("coordinate_transformation_mode".into(), Attr::Str("output_half_pixel".into()));
        }
        "BatchNormalization" if from < 14 => batch_normalization(graph, node)?,
        _ => {}
    }
    Ok(())
}

/// Before opset 14 five outputs meant training. Before opset 9 `spatial = 0` normalized every element by itself, which is nothing else
/// where a sample is a vector.
fn batch_normalization(graph: &Graph, node: &mut Node) -> Result<()> {
    let vectors = || node.input(1).and_then(|gain| graph.tensor(gain)).is_some_and(|t| t.shape().len() == 1);
    if node.attrs.get("spatial") == Some(&Attr::Int(0)) && !vectors() {
        return Err(Error::new("BatchNormalization with spatial = 0 has no successor in newer operator sets"));
    }
    node.attrs.remove("spatial");
    if node.outputs.len() > 1 {
        node.attrs.insert("training_mode".into(), Attr::Int(1));
        node.outputs.truncate(3);
    }
    Ok(())
}

/// Before opset 13 Softmax worked on the input as a matrix: everything from `axis` on is one row.
fn coerced_softmax(w: &mut Writer<'_>, mut node: Node) {
    let axis = match node.attrs.get("axis") {
        Some(Attr::Int(a)) => *a,
        _ => 1,
    };
    node.attrs.insert("axis".into(), Attr::Int(-1));
    let (Some(x), Some(y), true) = (node.input(0), node.output(0), axis != -1) else {
        w.graph.nodes.push(node);
        return;
    };
    let rows = w.op("Flatten", &[x], Attrs::from([("axis".into(), Attr::Int(axis))]));
    let soft = w.value("softmax");
    node.inputs = vec![Some(rows)];
    node.outputs = vec![Some(soft)];
    w.graph.nodes.push(node);
    let shape = w.op("Shape", &[x], Attrs::new());
    w.op_to("Reshape", &[soft, shape], Attrs::new(), y);
}
