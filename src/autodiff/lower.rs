//! Operators written out as simpler ones, before the graph is differentiated.

use super::Call;
use super::table::{self, Entry};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attrs, Graph, Node, Source, Value, ValueId};
use std::collections::HashMap;

/// Writes an operator out: appends nodes that compute its outputs and returns one value per output, in order; `None` for an output
/// that the file leaves out.
pub type Lowering = fn(&mut Builder<'_>, &Call<'_>) -> Lowered;

/// What a lowering returns: one value per output.
pub type Lowered = Result<Vec<Option<ValueId>>>;

/// Replaces every node whose table entry is a [`Lowering`] and which data or parameters reach, until none is left.
///
/// The outputs stay the same values.
///
/// # Errors
/// When the graph is not concretized, or a lowering refuses its node.
pub fn lower(graph: &mut Graph) -> Result<()> {
    graph.check_typed()?;
    let sources = |v: &ValueId| matches!(graph[*v].source, Source::Param(_) | Source::Stat(_) | Source::Input(_));
    let from: Vec<ValueId> = graph.value_ids().filter(sources).collect();
    let reached = graph.downstream(from, Value::carries_gradient);
    let mut waiting: Vec<Node> = std::mem::take(&mut graph.nodes);
    waiting.reverse();
    let given = waiting.len();
    let mut left = given;
    while let Some(node) = waiting.pop() {
        // What a lowering makes is on the way by itself.
        let made = waiting.len() >= left;
        left = left.min(waiting.len());
        let on_the_way = made || node.inputs.iter().flatten().any(|v| reached.contains(v));
        let entry = if on_the_way { table::find(&node).ok() } else { None };
        let Some(Entry::Lower(lowering)) = entry else {
            graph.nodes.push(node);
            continue;
        };
        let before = graph.nodes.len();
        write_out(graph, &node, lowering).map_err(|e| node.blame(e))?;
        waiting.extend(graph.nodes.drain(before..).rev());
    }
    graph.check_typed()
}

fn write_out(graph: &mut Graph, node: &Node, lowering: Lowering) -> Result<()> {
    let before = graph.nodes.len();
    let mut b = Builder::new(graph, &node.name);
    let call = Call::new(node, Vec::new(), Vec::new());
    let results = lowering(&mut b, &call)?;
    call.finish()?;
    let mut taken: HashMap<ValueId, ValueId> = HashMap::new();
    for (i, output) in node.outputs.iter().enumerate() {
        let Some(output) = *output else { continue };
        let result = results.get(i).copied().flatten();
        let result = result.ok_or_else(|| Error::new(format!("its output {i} is not known to its lowering")))?;
        if b.graph[result].ty != b.graph[output].ty {
            let [made, known] = [result, output].map(|v| b.ty(v));
            crate::bail!("its lowering makes {made} of output {i}, which is {known}");
        }
        let made = graph_makes(b.graph, before, result);
        match taken.get(&result) {
            None if made => become_output(b.graph, before, result, output),
            other => {
                let (from, ty) = (*other.unwrap_or(&result), b.ty(output));
                let copy = b.op("Identity", &[from], Attrs::new(), ty);
                become_output(b.graph, before, copy, output);
            }
        }
        taken.entry(result).or_insert(output);
    }
    Ok(())
}

fn graph_makes(graph: &Graph, first: usize, v: ValueId) -> bool {
    graph.nodes[first..].iter().any(|n| n.outputs.contains(&Some(v)))
}

/// Makes the nodes from `first` on compute `output` in place of `result`.
fn become_output(graph: &mut Graph, first: usize, result: ValueId, output: ValueId) {
    for node in &mut graph.nodes[first..] {
        for v in node.inputs.iter_mut().chain(&mut node.outputs).flatten() {
            if *v == result {
                *v = output;
            }
        }
    }
}
