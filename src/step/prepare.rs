//! A model with what training needs to know about it.

use crate::adapt::find_logits;
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Type, ValueId};
use crate::trace::{Evaluator, Sizes, concretize};

/// The outputs that training works on, by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ends<'a> {
    /// The logits; the first float output by default.
    pub logits: Option<&'a str>,
    /// A loss that the model computes itself, one float, in the place of cross-entropy.
    pub loss: Option<&'a str>,
}

/// A concretized graph with what training needs to know about it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The graph, in the file's own mode.
    pub graph: Graph,
    /// The logits, [N, K]. A model that is trained on its own loss may have none: what it puts out is taken for logits of classes
    /// where its loss takes classes, or the caller names them.
    pub logits: Option<ValueId>,
    /// The model's own loss.
    pub loss: Option<OwnLoss>,
    /// Samples of a batch.
    pub batch: usize,
}

/// A loss that the model computes itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnLoss {
    /// The loss, one float.
    pub value: ValueId,
    /// The model's input that takes the labels: the one of integers, one per sample, that the predictions do not depend on.
    pub labels: Option<ValueId>,
}

/// Concretizes an adapted graph and finds its logits; beside a loss of the model's own they may be missing.
///
/// # Errors
/// As [`concretize`] and [`find_logits`]; or a loss that the model does not have.
pub fn prepare(graph: &Graph, sizes: &Sizes, ends: Ends<'_>, run: &dyn Evaluator) -> Result<Prepared> {
    let mut graph = graph.clone();
    concretize(&mut graph, sizes, run)?;
    let loss = ends.loss.map(|name| scalar_output(&graph, name)).transpose()?;
    let all = graph.outputs.clone();
    graph.outputs.retain(|v| Some(*v) != loss);
    let found = find_logits(&graph, ends.logits);
    let others = std::mem::replace(&mut graph.outputs, all);
    let (loss, logits) = match loss {
        None => (None, Some(found?)),
        Some(value) => {
            let predictions = found.as_ref().map_or(others, |v| vec![*v]);
            let own = OwnLoss { value, labels: label_input(&graph, value, predictions, sizes.batch) };
            let logits = if ends.logits.is_some() { Some(found?) } else { class_logits(&graph, own, found.ok()) };
            (Some(own), logits)
        }
    };
    let rows = logits.map(|v| graph.ty(v).map(|t| t.shape[0])).transpose()?.unwrap_or(sizes.batch);
    if rows != sizes.batch {
        return Err(Error::new(format!("the logits of a batch of {} have {rows} rows", sizes.batch))
            .hint("export the model with a dynamic batch dimension"));
    }
    Ok(Prepared { graph, logits, loss, batch: sizes.batch })
}

/// `found`, where there is reason to take it for logits beside a loss of the model's own: that takes classes, and there are some.
fn class_logits(graph: &Graph, own: OwnLoss, found: Option<ValueId>) -> Option<ValueId> {
    found.filter(|v| own.labels.is_some() && graph.ty(*v).is_ok_and(|t| t.shape[1] > 1))
}

/// The graph's output `name`, which has one float.
///
/// # Errors
/// When there is none, or it is something else.
pub(super) fn scalar_output(graph: &Graph, name: &str) -> Result<ValueId> {
    let names = || graph.outputs.iter().map(|v| graph[*v].name.as_str()).collect::<Vec<_>>().join(", ");
    let v = graph.outputs.iter().copied().find(|v| graph[*v].name == *name).ok_or_else(|| {
        Error::new(format!("the model has no output `{name}`")).hint(format!("its outputs are {}", names()))
    })?;
    let ty = graph.ty(v)?;
    if ty.len() != 1 || !ty.dtype.is_float() {
        return Err(Error::new(format!("output `{name}` is {ty}, but a loss is one float")));
    }
    Ok(v)
}

/// The input that takes the labels of a model's own loss.
fn label_input(graph: &Graph, loss: ValueId, predictions: Vec<ValueId>, batch: usize) -> Option<ValueId> {
    let (of_loss, of_predictions) = (graph.upstream([loss]), graph.upstream(predictions));
    let one_each = |v: &ValueId| {
        let integers = |t: &Type| matches!(t.dtype, DType::I32 | DType::I64) && t.len() == batch;
        of_loss.contains(v) && !of_predictions.contains(v) && graph[*v].ty.as_ref().is_some_and(integers)
    };
    graph.inputs.iter().copied().find(one_each)
}

impl Prepared {
    /// Number of classes; 0 without logits.
    ///
    /// # Errors
    /// A graph that is not concretized.
    pub fn classes(&self) -> Result<usize> {
        self.logits.map_or(Ok(0), |v| Ok(self.graph.ty(v)?.shape[1]))
    }

    /// Name of the model's own input for labels, where its own loss has one.
    pub fn label_input(&self) -> Option<&str> {
        self.loss?.labels.map(|v| self.graph[v].name.as_str())
    }

    /// Name and type of the inputs that data are fed to.
    ///
    /// # Errors
    /// A graph that is not concretized.
    pub fn inputs(&self) -> Result<Vec<(String, Type)>> {
        let graph = &self.graph;
        let labels = self.loss.and_then(|l| l.labels);
        let data = graph.inputs.iter().filter(|v| Some(**v) != labels);
        data.map(|v| Ok((graph[*v].name.clone(), graph.ty(*v)?.clone()))).collect()
    }
}
