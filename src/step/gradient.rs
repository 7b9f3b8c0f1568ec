//! One gradient of a model, for comparison with another framework or with finite differences.

use super::logits::{Origin, logits};
use super::loss;
use super::names;
use super::options::Kernels;
use super::prepare::scalar_output;
use crate::adapt::{KEY, KEYS, Mode, set_mode};
use crate::autodiff::{differentiate, fuse, lower, lower_batch_norm, lower_uniform};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attrs, DType, Declared, Graph, Source, Tensor, Type, ValueId};
use crate::onnx::Model;
use crate::trace::{Evaluator, Sizes, concretize};
use std::collections::HashSet;

/// What is differentiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objective {
    /// Mean cross-entropy of the logits, without smoothing, against an input `labels`, i64 `[N]`. They are found as
    /// [`find_logits`](crate::adapt::find_logits) does, by the name of an output or value where there is one.
    CrossEntropy(Option<String>),
    /// A graph output with one element.
    Output(String),
}

/// A graph that computes a loss and its gradient.
#[derive(Debug, Clone)]
pub struct Gradient {
    /// Outputs: the loss, `logits` (the file's first float output), then each gradient that is not zero, and with cross-entropy
    /// the logits that it works on, last.
    pub graph: Graph,
    /// With cross-entropy, the labels and logits.
    pub classes: Option<Classes>,
    /// For every differentiated value its name, type and output of `graph`; no output where the gradient is zero.
    pub of: Vec<(String, Type, Option<String>)>,
    /// What there is to say about batches of this size.
    pub notes: Vec<String>,
}

/// What cross-entropy works on.
#[derive(Debug, Clone)]
pub struct Classes {
    /// Input that takes the labels.
    pub labels: String,
    /// The logits [N, K].
    pub logits: ValueId,
    /// The output that gives them.
    pub output: String,
    /// Where they come from.
    pub origin: Origin,
}

/// Input slots whose float constants choose what an operator does and are not differentiated.
const SETTINGS: &[(&str, &[usize])] =
    &[("Dropout", &[1]), ("Resize", &[1, 2]), ("OneHot", &[2]), ("Range", &[0, 1, 2]), ("Upsample", &[1])];

/// The model's graph with every float initializer a parameter, whatever training would take it for.
pub fn with_all_initializers(model: &Model) -> Graph {
    let mut graph = model.graph.clone();
    let mut initializers: HashSet<&str> = model.proto.graph.initializer.iter().map(|i| i.name.as_str()).collect();
    let untied = model.untied.iter().filter(|u| initializers.contains(u.merged.as_str()));
    let untied: Vec<&str> = untied.map(|u| u.name.as_str()).collect();
    initializers.extend(untied);
    let setting = |v: ValueId| {
        graph.nodes.iter().any(|n| {
            let slots = SETTINGS.iter().find(|(op, _)| n.is(op)).map_or(&[][..], |(_, s)| s);
            slots.iter().any(|s| n.input(*s) == Some(v))
        })
    };
    let promote: Vec<ValueId> = model
        .roles
        .iter()
        .map(|r| r.value)
        .filter(|v| initializers.contains(graph[*v].name.as_str()) && !setting(*v) && graph.constant(*v).is_some())
        .collect();
    for v in promote {
        if let Some(t) = graph.constant(v).cloned() {
            graph.set_source(v, Source::Param(t));
        }
    }
    graph
}

/// What a gradient is of, and how it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Behaviour of normalization and dropout.
    pub mode: Mode,
    /// What is differentiated.
    pub objective: Objective,
    /// With respect to parameters and statistics.
    pub params: bool,
    /// With respect to inputs.
    pub inputs: bool,
    /// The operators it is made of.
    pub kernels: Kernels,
    /// Parts of what counts as one tensor, each with the name of the whole: the gradient of the whole is the sum over its parts.
    pub parts: Vec<(String, String)>,
}

/// The parts that the initializers of a file were told apart into.
pub fn parts_of_initializers(model: &Model) -> Vec<(String, String)> {
    model.untied.iter().map(|u| (u.name.clone(), u.merged.clone())).collect()
}

/// Concretizes `graph` and appends the gradient that is asked for.
///
/// # Errors
/// As [`concretize`] and [`differentiate`]; or an objective that the graph does not have.
pub fn gradient(graph: &Graph, sizes: &Sizes, request: &Request, run: &dyn Evaluator) -> Result<Gradient> {
    let mut graph = graph.clone();
    let notes = concretize(&mut graph, sizes, run)?;
    let scores = match &request.objective {
        Objective::CrossEntropy(name) => Some(logits(&mut graph, sizes.batch, name.as_deref(), run)?),
        Objective::Output(_) => None,
    };
    lower(&mut graph)?;
    set_mode(&mut graph, request.mode)?;
    fix_key(&mut graph);
    match request.kernels {
        Kernels::Fused => fuse(&mut graph)?,
        Kernels::Plain => lower_uniform(&mut graph)?,
    }
    let float = |v: &ValueId| graph[*v].ty.as_ref().is_some_and(|t| t.dtype.is_float());
    let first = graph.outputs.iter().copied().find(float);
    let first = first.ok_or_else(|| Error::new("the model has no float output"))?;
    let weights = graph.value_ids().filter(|v| matches!(graph[*v].source, Source::Param(_) | Source::Stat(_)));
    let data = graph.inputs.iter().copied().filter(float);
    let wrt: Vec<ValueId> = match (request.params, request.inputs) {
        (true, true) => weights.chain(data).collect(),
        (false, true) => data.collect(),
        _ => weights.collect(),
    };
    let mut classes = None;
    let loss = match &request.objective {
        Objective::CrossEntropy(_) => {
            let (logits, origin) = scores.ok_or_else(|| Error::new("no logits were looked for"))?;
            let [rows, width] = [0, 1].map(|i| graph.ty(logits).map(|t| t.shape[i]));
            let (rows, width) = (rows?, width?);
            let ty = Type::new(DType::I64, &[rows]);
            let declared = Declared { dtype: DType::I64, dims: None };
            let labels = graph.add_value(names::LABELS, Some(ty), Source::Input(declared));
            graph.inputs.push(labels);
            let mut b = Builder::new(&mut graph, "loss");
            let matrix = b.reshape(logits, &[rows, width]);
            let one_hot = loss::one_hot(&mut b, matrix, labels);
            let loss = loss::cross_entropy(&mut b, matrix, one_hot, 0.0)?;
            classes = Some((labels, matrix, origin));
            loss
        }
        Objective::Output(name) => {
            let v = scalar_output(&graph, name)?;
            Builder::new(&mut graph, "loss").reshape(v, &[])
        }
    };
    let one = Builder::new(&mut graph, "seed").scalar_like(1.0, loss);
    let gradients = differentiate(&mut graph, &[(loss, one)], &wrt)?;
    graph.outputs.clear();
    output(&mut graph, names::LOSS, loss);
    output(&mut graph, names::LOGITS, first);
    let whole = |name: &str| request.parts.iter().find(|(part, _)| part == name).map(|(_, whole)| whole.clone());
    let mut sums: Vec<(String, Type, Option<ValueId>)> = Vec::with_capacity(wrt.len());
    for (v, g) in wrt.into_iter().zip(gradients) {
        let ty = graph.ty(v)?.clone();
        let name = whole(&graph[v].name).unwrap_or_else(|| graph[v].name.clone());
        let Some(sum) = sums.iter_mut().find(|(n, _, _)| *n == name) else {
            sums.push((name, ty, g));
            continue;
        };
        sum.2 = match (sum.2, g) {
            (Some(a), Some(b)) => Some(Builder::new(&mut graph, "sum").add(a, b)?),
            (a, b) => a.or(b),
        };
    }
    let mut of = Vec::with_capacity(sums.len());
    for (name, ty, g) in sums {
        let out = g.map(|g| output(&mut graph, &format!("grad/{name}"), g));
        of.push((name, ty, out));
    }
    let classes = classes.map(|(labels, logits, origin)| {
        // A copy: the logits may be an output under another name already.
        let ty = graph[logits].ty.clone().unwrap_or(Type::new(DType::F32, &[]));
        let copy = Builder::new(&mut graph, "class_scores").op("Identity", &[logits], Attrs::new(), ty);
        let output = output(&mut graph, "class_scores", copy);
        Classes { labels: graph[labels].name.clone(), logits, output, origin }
    });
    lower_batch_norm(&mut graph)?;
    graph.remove_dead_nodes();
    graph.check_typed()?;
    Ok(Gradient { graph, classes, of, notes })
}

/// Random values of one gradient are always the same.
fn fix_key(graph: &mut Graph) {
    if let Some(key) = graph.inputs.iter().copied().find(|v| graph[*v].name == KEY) {
        graph.inputs.retain(|v| *v != key);
        graph.set_source(key, Source::Constant(Tensor::full(DType::F32, &[KEYS], 1.0)));
    }
}

/// Makes `v` an output under a name like `name`; one that is not computed here, or an output already, is copied.
pub(super) fn output(graph: &mut Graph, name: &str, v: ValueId) -> String {
    let mut v = v;
    if graph[v].source != Source::Node || graph.outputs.contains(&v) {
        let ty = graph[v].ty.clone().unwrap_or(Type::new(DType::F32, &[]));
        v = Builder::new(graph, "output").op("Identity", &[v], Attrs::new(), ty);
    }
    // A value of the model that happens to have this name makes room.
    if let Some(other) = graph.find(name).filter(|o| *o != v && graph[*o].source == Source::Node) {
        graph.rename(other, &format!("model/{name}"));
    }
    graph.rename(v, name);
    graph.outputs.push(v);
    graph[v].name.clone()
}
