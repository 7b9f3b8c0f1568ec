//! Normalization, dropout and noise in training or evaluation mode, whatever mode the file was exported in.

use super::random::{seed, silence};
use crate::error::{Error, Result};
use crate::ir::{Attr, Graph, Node, Source, ValueId};
use std::collections::HashSet;

/// How normalization and dropout behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// BatchNormalization uses the statistics of the batch; Dropout drops, and random masks and noise follow from the graph's input [`KEY`](super::KEY).
    Train,
    /// BatchNormalization uses its running statistics; Dropout, random masks and noise do nothing.
    Eval,
}

/// A BatchNormalization in training mode.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Running mean and variance (statistics of the graph), each of shape `[C]`.
    pub running: [ValueId; 2],
    /// Mean and biased variance of the batch (outputs of the node), each of shape `[C]`.
    pub batch: [ValueId; 2],
    /// Share of the running value that stays at each move: ONNX's `momentum`, 1 − PyTorch's. At 1, which PyTorch writes for
    /// `momentum=None`, the running value is the average of all batches.
    pub momentum: f32,
    /// Elements per channel.
    pub count: usize,
}

/// Puts every BatchNormalization and Dropout of a concretized graph in `mode`.
///
/// A BatchNormalization that standardises weights (its input does not depend on the graph's inputs) or whose statistics are
/// computed is part of the model's arithmetic and stays as it is. One whose statistics are frozen (constants) uses them in either
/// mode; so does one that a training export fixed: where some are in training mode, the others are not by accident.
///
/// # Errors
/// A graph that is not concretized; in training mode a batch with one value per channel, which has no variance.
pub fn set_mode(graph: &mut Graph, mode: Mode) -> Result<Vec<BatchNorm>> {
    let data = depends_on_inputs(graph);
    let live = live_norms(graph, &data);
    let training_export = live.iter().any(|i| is_training(&graph.nodes[*i]));
    let mut norms = Vec::new();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        if node.is("BatchNormalization") {
            let (Some(x), Some(mean), Some(var)) = (node.input(0), node.input(3), node.input(4)) else { continue };
            if !live.contains(&i) {
                continue;
            }
            let moves = [mean, var].iter().all(|v| matches!(graph[*v].source, Source::Stat(_)));
            let fixed = !moves || training_export && !is_training(node);
            let mode = if fixed { Mode::Eval } else { mode };
            let momentum = match node.attrs.get("momentum") {
                Some(Attr::Float(m)) => *m,
                _ => 0.9,
            };
            let shape = graph.ty(x)?.shape.clone();
            let count = shape.iter().enumerate().filter(|(d, _)| *d != 1).map(|(_, n)| n).product();
            if mode == Mode::Train && count == 1 {
                let cause =
                    "a batch of one value per channel has no variance, so this normalization cannot train on it";
                let hint =
                    "use --batch-size 2 or more, or --freeze the normalization, which then uses its running statistics";
                return Err(node.blame(Error::new(cause)).hint(hint));
            }
            graph.nodes[i].outputs.truncate(1);
            graph.nodes[i].attrs.insert("training_mode".into(), Attr::Int(i64::from(mode == Mode::Train)));
            if mode == Mode::Train {
                // With momentum 0 the node's second and third outputs are the statistics of the batch.
                graph.nodes[i].attrs.insert("momentum".into(), Attr::Float(0.0));
                let ty = graph.ty(mean)?.clone();
                let batch = [mean, var].map(|v| {
                    let name = format!("{}/batch", graph[v].name);
                    graph.add_value(&name, Some(ty.clone()), Source::Node)
                });
                graph.nodes[i].outputs.extend(batch.map(Some));
                norms.push(BatchNorm { running: [mean, var], batch, momentum, count });
            }
        } else if node.is("Dropout") {
            set_dropout(graph, i, mode);
        }
    }
    graph.nodes.retain(|n| !n.outputs.is_empty());
    match mode {
        Mode::Train => seed(graph)?,
        Mode::Eval => silence(graph)?,
    }
    graph.check_typed()?;
    Ok(norms)
}

/// A Dropout that does not drop is removed.
fn set_dropout(graph: &mut Graph, i: usize, mode: Mode) {
    let node = &graph.nodes[i];
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return };
    let active = node.input(2).and_then(|v| graph.constant(v)).is_some_and(|t| t.to_f64() == [1.0]);
    if mode == Mode::Train && active {
        return;
    }
    if !graph.outputs.contains(&y) {
        graph.nodes[i].outputs.clear();
        graph.replace(y, x);
    } else {
        let node = &mut graph.nodes[i];
        node.op = "Identity".into();
        node.inputs.truncate(1);
        node.outputs.truncate(1);
        node.attrs.clear();
    }
}

/// The BatchNormalization nodes over data whose statistics are stored: those that have a mode.
fn live_norms(graph: &Graph, data: &HashSet<ValueId>) -> HashSet<usize> {
    let stored = |v: ValueId| graph.tensor(v).is_some();
    let live = |n: &Node| {
        let over_data = n.is("BatchNormalization") && n.input(0).is_some_and(|x| data.contains(&x));
        over_data && [3, 4].iter().all(|i| n.input(*i).is_some_and(stored))
    };
    (0..graph.nodes.len()).filter(|i| live(&graph.nodes[*i])).collect()
}

/// Whether a BatchNormalization was exported in training mode.
fn is_training(node: &Node) -> bool {
    matches!(node.attrs.get("training_mode"), Some(Attr::Int(m)) if *m != 0)
}

/// Values computed from the graph's inputs.
pub(crate) fn depends_on_inputs(graph: &Graph) -> HashSet<ValueId> {
    graph.downstream(graph.inputs.iter().copied(), |_| true)
}
