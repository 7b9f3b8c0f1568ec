//! A file exported in training mode, ready for inference: BatchNormalization on its running statistics, Dropout inert, random masks and
//! noise taken out.

use crate::adapt::{Edit, depends_on_inputs, noise, noise_names};
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use crate::ir::{Node, Source, ValueId};
use crate::onnx::Model;
use crate::onnx::to_proto;
use onnx_protobuf::{GraphProto, NodeProto};
use std::collections::{HashMap, HashSet};

/// Puts normalization and dropout of `graph` in evaluation mode, by the same rule as [`set_mode`](crate::adapt::set_mode).
///
/// # Errors
/// Randomness that cannot be taken out; names the node.
pub(super) fn ready_for_inference(graph: &mut GraphProto, model: &Model) -> Result<()> {
    silence(graph, model)?;
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
    Ok(())
}

/// Takes noise out, by the same rule as [`set_mode`](crate::adapt::set_mode), and removes the nodes that made it.
fn silence(graph: &mut GraphProto, model: &Model) -> Result<()> {
    let source = &model.graph;
    let name = |v: ValueId| source[v].name.clone();
    let first = |n: usize| source.nodes[n].outputs.iter().flatten().next().map(|v| name(*v));
    let edits = noise(source)?;
    if edits.is_empty() {
        return Ok(());
    }
    for (i, edit) in edits.into_iter().enumerate() {
        let (Edit::Pass(n, _) | Edit::Mean(n, _, _)) = edit;
        let output = first(n);
        let node = graph.node.iter_mut().find(|node| node.output.first() == output.as_ref());
        let lost =
            || source.nodes[n].blame(Error::new("random values in a function of the file cannot be switched off"));
        let node = node.ok_or_else(lost)?;
        match edit {
            Edit::Pass(_, v) => {
                node.op_type = "Identity".into();
                node.input = vec![name(v)];
                node.attribute.clear();
            }
            Edit::Mean(_, slot, mean) => {
                let free = format!("mean_of_noise_{i}");
                if let Some(input) = node.input.get_mut(slot) {
                    input.clone_from(&free);
                }
                graph.initializer.push(to_proto(&free, &Tensor::scalar(DType::F32, mean)));
            }
        }
    }
    let random = noise_names(source);
    loop {
        let read: HashSet<&String> =
            graph.node.iter().flat_map(|n| &n.input).chain(graph.output.iter().map(|o| &o.name)).collect();
        let unread = |n: &NodeProto| n.output.iter().all(|o| random.contains(o) && !read.contains(o));
        let dead: HashSet<String> = graph.node.iter().filter(|n| unread(n)).flat_map(|n| n.output.clone()).collect();
        if dead.is_empty() {
            return Ok(());
        }
        graph.node.retain(|n| !n.output.first().is_some_and(|o| dead.contains(o)));
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
