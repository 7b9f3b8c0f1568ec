//! Finds the logits: losses and bounds work on them, not on probabilities.

use crate::error::{Error, Result};
use crate::ir::{Attr, Graph, Node, ValueId};

/// The value that holds the logits: graph output `name`, or the first float output, seen through a final Softmax (also one
/// written out), LogSoftmax or Identity along the classes.
///
/// # Errors
/// No such output, or one that does not have the shape [batch, classes] (dimensions of size 1 after it are allowed).
pub fn find_logits(graph: &Graph, name: Option<&str>) -> Result<ValueId> {
    let float = |v: &&ValueId| graph[**v].ty.as_ref().is_none_or(|t| t.dtype.is_float());
    let output = match name {
        Some(name) => graph.outputs.iter().find(|v| graph[**v].name == name),
        None => graph.outputs.iter().find(float),
    };
    let names = || graph.outputs.iter().map(|v| graph[*v].name.as_str()).collect::<Vec<_>>().join(", ");
    let output = output.ok_or_else(|| {
        let what = name.map_or("the model has no float output".into(), |n| format!("the model has no output `{n}`"));
        Error::new(what).hint(format!("its outputs are {}", names()))
    })?;
    let producers = graph.producers();
    let mut logits = *output;
    let maker = |v: ValueId| producers.get(&v).map(|i| &graph.nodes[*i]);
    while let Some(node) = maker(logits) {
        let Some(inner) = behind(graph, node).or_else(|| behind_written_out(node, &maker)) else { break };
        logits = inner;
    }
    let shape = &graph.ty(logits)?.shape;
    if shape.len() < 2 || shape[2..].iter().any(|d| *d != 1) {
        return Err(Error::new(format!("output `{}` has shape {shape:?}, not [batch, classes]", graph[*output].name))
            .hint(format!("choose the logits with --logits; the outputs are {}", names())));
    }
    Ok(logits)
}

/// The logits of a softmax that is written out, e/Σe with e = exp z; a largest logit subtracted before does not matter.
fn behind_written_out<'g>(node: &'g Node, maker: &impl Fn(ValueId) -> Option<&'g Node>) -> Option<ValueId> {
    let exp = node.input(0).filter(|_| node.is("Div"))?;
    let mut sum = maker(node.input(1)?)?;
    while ["Reshape", "Unsqueeze", "Expand"].iter().any(|op| sum.is(op)) {
        sum = maker(sum.input(0)?)?;
    }
    let softmax = sum.is("ReduceSum") && sum.input(0) == Some(exp);
    maker(exp).filter(|e| softmax && e.is("Exp")).and_then(|e| e.input(0))
}

/// The input of a node that classifiers end in and that losses do without.
fn behind(graph: &Graph, node: &Node) -> Option<ValueId> {
    let along_classes = match node.attrs.get("axis") {
        Some(Attr::Int(axis)) => matches!(axis, 1 | -1),
        _ => true,
    };
    // Softmax of old operator sets works on the input as a matrix, and stands between reshapes.
    let same =
        node.input(0).zip(node.output(0)).is_some_and(|(x, y)| graph[x].ty.is_some() && graph[x].ty == graph[y].ty);
    let neutral = same && ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().any(|op| node.is(op));
    let ends = node.is("Identity") || neutral || ((node.is("Softmax") || node.is("LogSoftmax")) && along_classes);
    node.input(0).filter(|_| ends)
}
