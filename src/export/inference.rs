//! A file exported in training mode, ready for inference: BatchNormalization on its running statistics, Dropout inert.

use crate::adapt::depends_on_inputs;
use crate::ir::{Node, Source, ValueId};
use crate::onnx::Model;
use onnx_protobuf::{GraphProto, NodeProto};
use std::collections::{HashMap, HashSet};

/// Puts normalization and dropout of `graph` in evaluation mode, by the same rule as [`set_mode`](crate::adapt::set_mode).
pub(super) fn ready_for_inference(graph: &mut GraphProto, model: &Model) {
    let norms = live_norms(model);
    let drops = active_dropouts(model);
    let read: HashSet<String> =
        graph.node.iter().flat_map(|n| n.input.iter()).chain(graph.output.iter().map(|o| &o.name)).cloned().collect();
    let nodes = std::mem::take(&mut graph.node);
    for mut node in nodes {
        let first = node.output.first().cloned().unwrap_or_default();
        let mut copies = Vec::new();
        if node.op_type == "BatchNormalization" && norms.contains(&first) {
            node.attribute.retain(|a| a.name != "training_mode" || a.i == 0);
            // What still reads the moved statistics gets those of the file.
            for (i, out) in node.output.iter().enumerate().skip(1).filter(|(_, o)| read.contains(*o)) {
                let stat = node.input.get(if i % 2 == 1 { 3 } else { 4 }).cloned().unwrap_or_default();
                copies.push(NodeProto {
                    name: format!("{}/{out}", node.name),
                    op_type: "Identity".into(),
                    input: vec![stat],
                    output: vec![out.clone()],
                    ..Default::default()
                });
            }
            node.output.truncate(1);
        } else if node.op_type == "Dropout" && drops.contains(&first) {
            node.input.truncate(2);
            while node.input.last().is_some_and(String::is_empty) {
                node.input.pop();
            }
        }
        graph.node.push(node);
        graph.node.extend(copies);
    }
}

/// First outputs of the normalizations over data whose statistics are stored.
fn live_norms(model: &Model) -> HashSet<String> {
    let graph = &model.graph;
    let data = depends_on_inputs(graph);
    let producers: HashMap<ValueId, &Node> =
        graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten().map(move |v| (*v, n))).collect();
    let is_stat = |mut v: ValueId| {
        while let Some(next) = producers.get(&v).filter(|n| n.is("Identity")).and_then(|n| n.input(0)) {
            v = next;
        }
        matches!(graph[v].source, Source::Stat(_))
    };
    let live = |n: &&Node| {
        n.is("BatchNormalization")
            && n.input(0).is_some_and(|x| data.contains(&x))
            && [3, 4].iter().all(|i| n.input(*i).is_some_and(is_stat))
    };
    graph.nodes.iter().filter(live).filter_map(|n| n.output(0)).map(|v| graph[v].name.clone()).collect()
}

/// First outputs of the Dropout nodes whose training mode is not switched off.
fn active_dropouts(model: &Model) -> HashSet<String> {
    let graph = &model.graph;
    let off = |v: ValueId| graph.constant(v).is_some_and(|t| t.to_f64() == [0.0]);
    let active = |n: &&Node| n.is("Dropout") && n.input(2).is_some_and(|v| !off(v));
    graph.nodes.iter().filter(active).filter_map(|n| n.output(0)).map(|v| graph[v].name.clone()).collect()
}
