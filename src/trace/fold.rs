//! Folding: `Shape` is a constant once shapes are, and what depends on constants alone is run once, now.

use super::{Evaluator, encode};
use crate::error::Result;
use crate::ir::{Attr, Graph, Source, Tensor, ValueId};
use crate::onnx::{Weights, emit};
use std::collections::HashSet;

/// A folded value larger than this stays computed: it would only make the graph large.
const MAX_BYTES: usize = 1 << 24;

/// Operators that give another result on every run.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"];

/// Folds constants, drops nodes that change nothing and nodes nothing depends on. Every value must have a type.
///
/// # Errors
/// When the constant part of the graph does not run.
pub(super) fn fold(graph: &mut Graph, run: &dyn Evaluator) -> Result<()> {
    fold_shapes(graph)?;
    drop_neutral_nodes(graph)?;
    graph.remove_dead_nodes();
    fold_constants(graph, run)?;
    graph.remove_dead_nodes();
    Ok(())
}

fn fold_shapes(graph: &mut Graph) -> Result<()> {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        if !node.is("Shape") && !node.is("Size") {
            continue;
        }
        let shape = &graph.ty(x)?.shape;
        let tensor = if node.is("Shape") {
            let rank = shape.len() as i64;
            let bound = |name: &str, default: i64| match node.attrs.get(name) {
                Some(Attr::Int(v)) if *v < 0 => (v + rank).max(0),
                Some(Attr::Int(v)) => (*v).min(rank),
                _ => default,
            };
            let (start, end) = (bound("start", 0) as usize, bound("end", rank) as usize);
            let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
            Tensor::ints(dims.get(start..end).unwrap_or_default())
        } else {
            Tensor::scalar(crate::ir::DType::I64, shape.iter().product::<usize>() as f64)
        };
        graph.nodes[i].outputs.clear();
        graph.set_source(y, Source::Constant(tensor));
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(())
}

/// Layout operators that keep the shape, casts to the same type and identities.
fn drop_neutral_nodes(graph: &mut Graph) -> Result<()> {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        // An output keeps its name, and a parameter its only direct reader decides what it is.
        if graph.outputs.contains(&y) || !matches!(graph[x].source, Source::Node | Source::Input(_)) {
            continue;
        }
        let layout = ["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Cast"];
        let same = graph[x].ty.is_some() && graph[x].ty == graph[y].ty;
        if layout.iter().any(|op| node.is(op)) && same {
            graph.nodes[i].outputs.clear();
            graph.replace(y, x);
        }
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    Ok(())
}

fn fold_constants(graph: &mut Graph, run: &dyn Evaluator) -> Result<()> {
    let mut known: HashSet<ValueId> = graph.value_ids().filter(|v| graph.constant(*v).is_some()).collect();
    let mut folds = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let constant = node.inputs.iter().flatten().all(|v| known.contains(v));
        let small =
            node.outputs.iter().flatten().all(|v| graph[*v].ty.as_ref().is_some_and(|t| t.bytes() <= MAX_BYTES));
        folds[i] = constant && small && !RANDOM.iter().any(|op| node.is(op));
        if folds[i] {
            known.extend(node.outputs.iter().flatten());
        }
    }
    // What the rest of the graph reads of the folded part.
    let rest = graph.nodes.iter().zip(&folds).filter(|(_, f)| !**f).flat_map(|(n, _)| n.inputs.iter().flatten());
    let read: HashSet<ValueId> = rest.chain(&graph.outputs).copied().collect();
    let folded = graph.nodes.iter().zip(&folds).filter(|(_, f)| **f);
    let wanted: Vec<ValueId> =
        folded.flat_map(|(n, _)| n.outputs.iter().flatten()).filter(|v| read.contains(v)).copied().collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut part = graph.clone();
    let mut keep = folds.iter();
    part.nodes.retain(|_| keep.next().copied().unwrap_or(false));
    part.inputs.clear();
    part.outputs.clone_from(&wanted);
    let values = run.evaluate(&encode(&emit(&part, Weights::Initializers))?, &[])?;
    let mut keep = folds.iter();
    graph.nodes.retain(|_| !keep.next().copied().unwrap_or(false));
    for (v, tensor) in wanted.into_iter().zip(values) {
        graph.set_source(v, Source::Constant(tensor));
    }
    Ok(())
}
