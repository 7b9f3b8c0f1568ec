//! A model with what training needs to know about it.

use super::logits::{Origin, logits};
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Type, ValueId};
use crate::trace::{Evaluator, Sizes, concretize};

/// The outputs that training works on, by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ends<'a> {
    /// The logits, or what they are found behind: an output, or a value inside; found among the outputs by default.
    pub logits: Option<&'a str>,
    /// A loss that the model computes itself, one float, in the place of cross-entropy.
    pub loss: Option<&'a str>,
}

/// A concretized graph with what training needs to know about it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The graph, in the file's own mode; the logits are its last output where they are none of the file's.
    pub graph: Graph,
    /// The logits, [N, K]. A model that is trained on its own loss may have none: what it puts out is taken for logits of classes
    /// where its loss takes classes, or the caller names them.
    pub logits: Option<ValueId>,
    /// Where they come from.
    pub origin: Option<Origin>,
    /// The model's own loss.
    pub loss: Option<OwnLoss>,
    /// Samples of a batch.
    pub batch: usize,
    /// What there is to say about batches of this size.
    pub notes: Vec<String>,
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
/// As [`concretize`] and [`find_logits`](crate::adapt::find_logits); or a loss that the model does not have.
pub fn prepare(graph: &Graph, sizes: &Sizes, ends: Ends<'_>, run: &dyn Evaluator) -> Result<Prepared> {
    let mut graph = graph.clone();
    let notes = concretize(&mut graph, sizes, run)?;
    let loss = ends.loss.map(|name| scalar_output(&graph, name)).transpose()?;
    let all = graph.outputs.clone();
    graph.outputs.retain(|v| Some(*v) != loss);
    let rest = graph.outputs.len();
    let found = logits(&mut graph, sizes.batch, ends.logits, run);
    let added = graph.outputs.split_off(rest);
    let others = std::mem::replace(&mut graph.outputs, [all, added].concat());
    let (loss, found) = match loss {
        None => (None, Some(found?)),
        Some(value) => {
            let predictions = found.as_ref().map_or(others, |(v, _)| vec![*v]);
            let own = OwnLoss { value, labels: label_input(&graph, value, predictions, sizes.batch) };
            let found =
                if ends.logits.is_some() { Some(found?) } else { found.ok().filter(|(_, o)| are_classes(own, o)) };
            (Some(own), found)
        }
    };
    let (logits, origin) = found.unzip();
    Ok(Prepared { graph, logits, origin, loss, batch: sizes.batch, notes })
}

/// Whether there is reason to take what was found for class scores beside a loss of the model's own: that takes classes, and there are
/// some.
fn are_classes(own: OwnLoss, found: &Origin) -> bool {
    own.labels.is_some() && found.classes > 1 && !found.is_one_number()
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

    /// What is worth saying about the logits.
    pub fn note(&self) -> Option<String> {
        self.origin.as_ref().and_then(Origin::note)
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
