//! A file made for one batch size, rewritten for any.
//!
//! The file itself says what is right: run at its own batch size on each sample, it gives every value of that sample. A graph for a
//! larger batch is right when each of its values holds exactly these, sample by sample. So the graph is walked in order, each node runs on
//! the samples put together, and where its output does not hold theirs, what [`rewrite`](super::rewrite) proposes is tried. Which
//! proposal suits may show only further on (a dimension of size 1 may be the batch or anything else): then the walk begins again with
//! the next one.

use super::layout::Groups;
use super::proof::Proof;
use super::rewrite::Nodes;
use super::samples::{in_evaluation, is_random, with_values};
use super::walk::Walk;
use super::{Evaluator, Sizes, concretize_at};
use crate::builder::attrs;
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Declared, Dim, Graph, Node, Source, ValueId};
use std::collections::{BTreeMap, HashSet};

/// How often the walk may begin again.
const ATTEMPTS: usize = 64;

/// The batch size that the first input of a file fixes.
pub(super) fn own_batch(graph: &Graph) -> Option<usize> {
    let dims = graph.inputs.iter().filter_map(|v| match &graph[*v].source {
        Source::Input(Declared { dims: Some(dims), .. }) if !dims.is_empty() => Some(dims),
        _ => None,
    });
    match dims.map(|d| &d[0]).next() {
        Some(Dim::Fixed(n)) if *n > 0 => Some(*n),
        _ => None,
    }
}

/// The inputs whose first dimension is the batch: all, but those for which the file fixes another size than its batch.
pub(super) fn batched_inputs(graph: &Graph) -> HashSet<ValueId> {
    let own = own_batch(graph);
    let batched = |v: &ValueId| match &graph[*v].source {
        Source::Input(Declared { dims: Some(dims), .. }) => match (dims.first(), own) {
            (Some(Dim::Fixed(n)), Some(own)) => *n == own,
            _ => true,
        },
        _ => true,
    };
    graph.inputs.iter().copied().filter(batched).collect()
}

/// What an exporter has to be told for a file of any batch size.
pub(super) fn export_hint(graph: &Graph, own: usize) -> String {
    let batched = batched_inputs(graph);
    let names: Vec<String> =
        graph.inputs.iter().filter(|v| batched.contains(v)).map(|v| graph[*v].name.clone()).collect();
    let dims = names.iter().map(|n| format!("\"{n}\": {{0: \"batch\"}}")).collect::<Vec<_>>().join(", ");
    format!(
        "export it with a batch dimension that is left open: torch.onnx.export(model, inputs, \"model.onnx\", \
         dynamic_shapes={{{dims}}}) on inputs of at least 2 samples, or with dynamo=False \
         dynamic_axes={{{dims}}}; or use batches of {own}"
    )
}

/// Rewrites a graph whose file is made for batches of `own`, for that of `sizes`; a note of what was done.
///
/// # Errors
/// A node that cannot be rewritten, or outputs that cannot be shown to be those of the file.
pub(super) fn free(graph: &mut Graph, sizes: &Sizes, own: usize, run: &dyn Evaluator) -> Result<Option<String>> {
    let mut shapes = super::input_shapes(graph, sizes)?;
    let batched = batched_inputs(graph);
    // Whoever gives whole shapes may mean the file's own.
    if batched.iter().all(|v| shapes.get(v).and_then(|s| s.first()) == Some(&own)) {
        return Ok(None);
    }
    for v in &batched {
        shapes.get_mut(v).and_then(|s| s.first_mut()).into_iter().for_each(|n| *n = own);
    }
    let hint = export_hint(graph, own);
    let refused = |e: Error| {
        let cause = format!("the file is made for batches of {own}: {}", e.cause());
        Error::new(cause).place_from(&e).hint(hint.clone())
    };
    let proof = Proof::new(graph, &shapes, &batched, own, run).map_err(refused)?;
    let chance = graph.nodes.iter().any(is_random);
    let (mut places, summed);
    places = 0;
    match proof.holds(graph, run) {
        Ok(found) if !chance && found.tells => summed = found.summed,
        _ => {
            let mut base = graph.clone();
            concretize_at(&mut base, &shapes, own, run)?;
            let (rewritten, n, joins) = rewrite(base, &batched, &proof, run).map_err(refused)?;
            let shown = proof.holds(&rewritten, run);
            summed = shown.map_err(|e| refused(joins.map_or(e.clone(), |n| n.blame(e))))?.summed;
            (*graph, places) = (rewritten, n);
        }
    }
    open(graph, &batched);
    let mut notes = Vec::new();
    if places > 0 {
        let (what, was) = if places == 1 { ("place that holds", "was") } else { ("places that hold", "were") };
        notes.push(format!(
            "the file is made for batches of {own}: {places} {what} this size {was} rewritten for others, not in the file itself"
        ));
    }
    if !summed.is_empty() {
        notes.push(format!("{} is a sum over the samples of a batch", summed.join(", ")));
    }
    Ok((!notes.is_empty()).then(|| notes.join("; ")))
}

/// Declares the batch of inputs as open.
fn open(graph: &mut Graph, batched: &HashSet<ValueId>) {
    for v in batched {
        if let Source::Input(declared) = &mut graph[*v].source
            && let Some(first) = declared.dims.as_mut().and_then(|d| d.first_mut())
        {
            *first = Dim::Symbol("batch".into());
        }
    }
}

/// Rewrites `base`, concretized at its own batch size; with the number of nodes replaced, and the first node that joins samples.
fn rewrite(
    base: Graph,
    batched: &HashSet<ValueId>,
    proof: &Proof,
    run: &dyn Evaluator,
) -> Result<(Graph, usize, Option<Node>)> {
    let mut graph = with_values(base.clone(), &proof.values);
    let declared = Declared { dtype: DType::I64, dims: None };
    let batch = graph.add_value("batch", None, Source::Input(declared));
    let nodes: Vec<Node> = base.nodes.iter().map(|n| in_evaluation(&base, n)).collect();
    // Sample numbers within the file's own batch are the same in another one only where every sample keeps its place.
    let in_place = Groups { own: vec![(0..proof.groups.size()).collect()], all: vec![0] };
    let others = (proof.groups.size() == 2).then_some(in_place);
    let mut first = None;
    for groups in std::iter::once(proof.groups.clone()).chain(others) {
        let mut walk = Walk::new(&mut graph, &nodes, batched, (&proof.samples, &groups), batch, run)?;
        let mut start = 0;
        for _ in 0..ATTEMPTS {
            let Err((error, reads)) = walk.go(start) else {
                let Walk { replaced, joins, .. } = walk;
                return Ok((assemble(graph, &base, &replaced, batch, batched), replaced.len(), joins));
            };
            first.get_or_insert(error);
            let upstream = base.upstream(reads);
            let concerned = |i: usize| nodes[i].outputs.iter().flatten().any(|v| upstream.contains(v));
            let Some(node) = walk.back(concerned) else { break };
            start = node + 1;
        }
    }
    Err(first.unwrap_or_else(|| Error::new("it cannot be rewritten")))
}

/// The base with nodes replaced, and the batch size read off its first input.
fn assemble(
    mut graph: Graph,
    base: &Graph,
    replaced: &BTreeMap<usize, Nodes>,
    batch: ValueId,
    batched: &HashSet<ValueId>,
) -> Graph {
    for v in base.value_ids() {
        graph.set_source(v, base[v].source.clone());
    }
    graph.set_source(batch, Source::Node);
    // They are those of the file's own batch.
    for v in graph.value_ids().collect::<Vec<_>>() {
        if matches!(graph[v].source, Source::Node | Source::Input(_)) {
            graph[v].ty = None;
        }
    }
    let name = graph[batch].name.clone();
    let first = base.inputs.iter().copied().find(|v| batched.contains(v));
    let range = attrs([("start", Attr::Int(0)), ("end", Attr::Int(1))]);
    let (op, domain, inputs, outputs) = ("Shape".into(), String::new(), vec![first], vec![Some(batch)]);
    graph.nodes = vec![Node { name, domain, op, inputs, outputs, attrs: range }];
    for (i, node) in base.nodes.iter().enumerate() {
        match replaced.get(&i) {
            None => graph.nodes.push(node.clone()),
            Some(nodes) => {
                // Found for the form in evaluation mode; nodes that differ in it keep what is theirs.
                for new in nodes {
                    let same = new.outputs.first() == node.outputs.first();
                    let mut new = new.clone();
                    if same && new.op == node.op {
                        new.outputs.clone_from(&node.outputs);
                        new.attrs.extend(
                            node.attrs
                                .iter()
                                .filter(|(k, _)| *k == "training_mode")
                                .map(|(k, v)| (k.clone(), v.clone())),
                        );
                    }
                    graph.nodes.push(new);
                }
            }
        }
    }
    graph.remove_dead_nodes();
    graph
}
