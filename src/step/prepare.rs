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
    /// The logits, [N, K].
    pub logits: ValueId,
    /// The model's own loss.
    pub loss: Option<OwnLoss>,
    /// What there is to say about batches of this size.
    pub notes: Vec<String>,
}

/// A loss that the model computes itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnLoss {
    /// The loss, one float.
    pub value: ValueId,
    /// The model's input that takes the labels: the one of integers, one per sample, that the logits do not depend on.
    pub labels: Option<ValueId>,
}

/// Concretizes an adapted graph and finds its logits.
///
/// # Errors
/// As [`concretize`] and [`find_logits`]; or a loss that the model does not have.
pub fn prepare(graph: &Graph, sizes: &Sizes, ends: Ends<'_>, run: &dyn Evaluator) -> Result<Prepared> {
    let mut graph = graph.clone();
    let notes = concretize(&mut graph, sizes, run)?;
    let loss = ends.loss.map(|name| scalar_output(&graph, name)).transpose()?;
    let all = graph.outputs.clone();
    graph.outputs.retain(|v| Some(*v) != loss);
    let logits = find_logits(&graph, ends.logits)?;
    graph.outputs = all;
    let loss = loss.map(|value| OwnLoss { value, labels: label_input(&graph, value, logits, sizes.batch) });
    let batch = graph.ty(logits)?.shape[0];
    if batch != sizes.batch {
        return Err(Error::new(format!("the logits of a batch of {} have {batch} rows", sizes.batch))
            .hint("export the model with a dynamic batch dimension"));
    }
    Ok(Prepared { graph, logits, loss, notes })
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
fn label_input(graph: &Graph, loss: ValueId, logits: ValueId, batch: usize) -> Option<ValueId> {
    let (of_loss, of_logits) = (graph.upstream([loss]), graph.upstream([logits]));
    let one_each = |v: &ValueId| {
        let integers = |t: &Type| matches!(t.dtype, DType::I32 | DType::I64) && t.len() == batch;
        of_loss.contains(v) && !of_logits.contains(v) && graph[*v].ty.as_ref().is_some_and(integers)
    };
    graph.inputs.iter().copied().find(one_each)
}

impl Prepared {
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
