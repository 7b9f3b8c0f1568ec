//! Brings operators of old operator sets to the form of opset 18, so that rules know one form of each.
//!
//! From opset 18 on a file keeps its own version. Most changes before moved an attribute to an input.

use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Graph, Node, Source, Tensor, ValueId};

/// The version every graph has at least.
const TARGET: i64 = 18;

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

/// Upgrades every node of the default domain to opset 18, if the graph is older.
///
/// # Errors
/// Forms that have no successor: BatchNormalization with `spatial = 0`.
pub(super) fn upgrade(graph: &mut Graph) -> Result<()> {
    let from = graph.opset();
    if from >= TARGET {
        return Ok(());
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for mut node in nodes {
        if node.domain.is_empty() {
            let name = (node.op.clone(), node.name.clone());
            upgrade_node(graph, &mut node, from).map_err(|e| e.at_node(&name.0, &name.1))?;
            if from < 13 && matches!(node.op.as_str(), "Softmax" | "LogSoftmax" | "Hardmax") {
                coerced_softmax(graph, node);
                continue;
            }
        }
        graph.nodes.push(node);
    }
    graph.opsets.insert(String::new(), TARGET);
    Ok(())
}

fn ints(graph: &mut Graph, values: &[i64]) -> ValueId {
    graph.add_value("upgraded", None, Source::Constant(Tensor::ints(values)))
}

/// Moves attribute `name` to input `slot`, where it is an integer list.
fn ints_to_input(graph: &mut Graph, node: &mut Node, name: &str, slot: usize) {
    if let Some(Attr::Ints(values)) = node.attrs.remove(name) {
        set_input(node, slot, ints(graph, &values));
    }
}

fn float_to_input(graph: &mut Graph, node: &mut Node, name: &str, slot: usize) {
    if let Some(Attr::Float(value)) = node.attrs.remove(name) {
        let tensor = Tensor::scalar(DType::F32, f64::from(value));
        let v = graph.add_value("upgraded", None, Source::Constant(tensor));
        set_input(node, slot, v);
    }
}

fn set_input(node: &mut Node, slot: usize, v: ValueId) {
    if node.inputs.len() <= slot {
        node.inputs.resize(slot + 1, None);
    }
    node.inputs[slot] = Some(v);
}

fn upgrade_node(graph: &mut Graph, node: &mut Node, from: i64) -> Result<()> {
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
            float_to_input(graph, node, "min", 1);
            float_to_input(graph, node, "max", 2);
        }
        "Slice" if from < 10 => {
            ints_to_input(graph, node, "starts", 1);
            ints_to_input(graph, node, "ends", 2);
            ints_to_input(graph, node, "axes", 3);
        }
        "Pad" if from < 11 => {
            ints_to_input(graph, node, "pads", 1);
            float_to_input(graph, node, "value", 2);
        }
        "Dropout" if from < 12 => float_to_input(graph, node, "ratio", 1),
        "TopK" if from < 10 => {
            if let Some(Attr::Int(k)) = node.attrs.remove("k") {
                let k = ints(graph, &[k]);
                set_input(node, 1, k);
            }
        }
        "Scan" if from < 9 => {
            return Err(Error::new("Scan of operator set 8 has no successor in newer ones")
                .hint("convert the file with onnx.version_converter, or export it again"));
        }
        "Scatter" => node.op = "ScatterElements".into(),
        "Upsample" | "Resize" if from < 11 => resize(node),
        "BatchNormalization" if from < 14 => batch_normalization(node)?,
        _ => {}
    }
    Ok(())
}

/// Upsample-9 and Resize-10 sampled asymmetrically, rounding down.
fn resize(node: &mut Node) {
    node.op = "Resize".into();
    let scales = node.input(1);
    node.inputs.truncate(1);
    node.inputs.extend([None, scales]);
    node.attrs.insert("coordinate_transformation_mode".into(), Attr::Str("asymmetric".into()));
    node.attrs.insert("nearest_mode".into(), Attr::Str("floor".into()));
}

/// Before opset 14 five outputs meant training.
fn batch_normalization(node: &mut Node) -> Result<()> {
    if matches!(node.attrs.remove("spatial"), Some(Attr::Int(0))) {
        return Err(Error::new("BatchNormalization with spatial = 0 has no successor in newer operator sets"));
    }
    if node.outputs.len() > 1 {
        node.attrs.insert("training_mode".into(), Attr::Int(1));
        node.outputs.truncate(3);
    }
    Ok(())
}

/// Before opset 13 Softmax worked on the input as a matrix: everything from `axis` on is one row.
fn coerced_softmax(graph: &mut Graph, mut node: Node) {
    let axis = match node.attrs.get("axis") {
        Some(Attr::Int(a)) => *a,
        _ => 1,
    };
    node.attrs.insert("axis".into(), Attr::Int(-1));
    let (Some(x), Some(y), true) = (node.input(0), node.output(0), axis != -1) else {
        graph.nodes.push(node);
        return;
    };
    let name = node.name.clone();
    let value = |graph: &mut Graph, suffix: &str| graph.add_value(&format!("{name}/{suffix}"), None, Source::Node);
    let (rows, soft, shape) = (value(graph, "rows"), value(graph, "softmax"), value(graph, "shape"));
    let helper = |op: &str, inputs: &[ValueId], output: ValueId, attrs: Attrs| Node {
        name: format!("{name}/{op}"),
        domain: String::new(),
        op: op.into(),
        inputs: inputs.iter().copied().map(Some).collect(),
        outputs: vec![Some(output)],
        attrs,
    };
    graph.nodes.push(helper("Flatten", &[x], rows, Attrs::from([("axis".into(), Attr::Int(axis))])));
    node.inputs = vec![Some(rows)];
    node.outputs = vec![Some(soft)];
    graph.nodes.push(node);
    graph.nodes.push(helper("Shape", &[x], shape, Attrs::new()));
    graph.nodes.push(helper("Reshape", &[soft, shape], y, Attrs::new()));
}
