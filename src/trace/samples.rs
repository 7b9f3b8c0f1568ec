//! Random samples, and the form of a graph in which each sample's outputs follow from that sample alone.

use crate::builder::attrs;
use crate::ir::{Attr, Attrs, DType, Declared, Graph, Node, Source, Tensor, Type, ValueId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashSet};

/// How floats are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    /// Around zero; masks hide the ends of rows.
    Normal,
    /// Between 0 and 1, for models that take logarithms or roots; masks hide nothing.
    Positive,
}

/// Values of every input for a few samples.
pub(super) struct Samples {
    /// A tensor per sample, whose first dimension is 1.
    batched: BTreeMap<ValueId, Vec<Tensor>>,
    /// What all samples share.
    shared: BTreeMap<ValueId, Tensor>,
}

impl Samples {
    /// Draws `count` samples for inputs of these shapes; the first dimension of those in `batched` is the batch.
    pub fn draw(
        graph: &Graph,
        shapes: &BTreeMap<ValueId, Vec<usize>>,
        batched: &HashSet<ValueId>,
        count: usize,
        draw: Draw,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut samples = Self { batched: BTreeMap::new(), shared: BTreeMap::new() };
        for (v, shape) in shapes {
            let Source::Input(Declared { dtype, .. }) = &graph[*v].source else { continue };
            let rows = table_rows(graph, *v);
            if batched.contains(v) && !shape.is_empty() {
                let ty = Type::new(*dtype, &[&[1], &shape[1..]].concat());
                let drawn = (0..count).map(|_| value(&mut rng, &ty, rows, draw)).collect();
                samples.batched.insert(*v, drawn);
            } else {
                samples.shared.insert(*v, value(&mut rng, &Type::new(*dtype, shape), rows, draw));
            }
        }
        samples
    }

    /// The inputs of a batch of these samples.
    pub fn batch(&self, order: &[usize]) -> BTreeMap<ValueId, Tensor> {
        let stack = |(v, samples): (&ValueId, &Vec<Tensor>)| {
            let first = samples.first()?;
            let bytes = order.iter().flat_map(|s| samples[*s].bytes()).copied().collect();
            let shape = [&[order.len()], &first.shape()[1..]].concat();
            Some((*v, Tensor::from_bytes(first.dtype(), &shape, bytes).ok()?))
        };
        let mut inputs: BTreeMap<ValueId, Tensor> = self.batched.iter().filter_map(stack).collect();
        inputs.extend(self.shared.clone());
        inputs
    }
}

/// Floats as `draw` says; row numbers of a table of `rows`; other integers are 1, or a mask whose rows end in zeros.
fn value(rng: &mut ChaCha8Rng, ty: &Type, rows: Option<usize>, draw: Draw) -> Tensor {
    let n = ty.len();
    let values: Vec<f64> = if ty.dtype.is_float() {
        (0..n).map(|_| if draw == Draw::Normal { normal(rng) } else { rng.random_range(0.05..1.0) }).collect()
    } else if let Some(rows) = rows.filter(|_| ty.dtype != DType::Bool) {
        (0..n).map(|_| rng.random_range(0..rows) as f64).collect()
    } else if let (Draw::Normal, [_, .., width]) = (draw, ty.shape.as_slice()) {
        let shown = rng.random_range(width.div_ceil(2)..=*width);
        (0..n).map(|i| f64::from(u8::from(i % width < shown))).collect()
    } else {
        vec![1.0; n]
    };
    Tensor::from_f64(ty.dtype, &ty.shape, &values)
}

pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random_range(0.0..1.0));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Operators that hand integers on as they are.
const PASSING: &[&str] =
    &["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Slice", "Transpose", "Concat"];

/// For an integer input that picks rows of tables (token ids, say), the number of rows of the smallest.
fn table_rows(graph: &Graph, input: ValueId) -> Option<usize> {
    let mut passed = HashSet::from([input]);
    let mut least: Option<usize> = None;
    for node in &graph.nodes {
        if node.is("Gather") && node.input(1).is_some_and(|v| passed.contains(&v)) {
            let shape =
                node.input(0).and_then(|t| graph[t].ty.as_ref()).map(|t| t.shape.as_slice()).unwrap_or_default();
            let axis = match node.attrs.get("axis") {
                Some(Attr::Int(a)) => a.rem_euclid(shape.len().max(1) as i64) as usize,
                _ => 0,
            };
            let rows = shape.get(axis).copied().filter(|n| *n > 0);
            least = least.min(rows).or(rows).or(least);
        } else if PASSING.iter().any(|op| node.is(op)) && node.input(0).is_some_and(|v| passed.contains(&v)) {
            passed.extend(node.outputs.iter().flatten());
        }
    }
    least
}

/// Operators whose outputs are drawn anew in every run.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"];

/// Whether a node draws.
pub(super) fn is_random(node: &Node) -> bool {
    RANDOM.iter().any(|op| node.is(op))
}

/// The mean of what a node draws.
pub(super) fn mean(node: &Node) -> f64 {
    let float = |name: &str, default: f64| match node.attrs.get(name) {
        Some(Attr::Float(v)) => f64::from(*v),
        _ => default,
    };
    if node.op.starts_with("RandomNormal") {
        float("mean", 0.0)
    } else {
        (float("low", 0.0) + float("high", 1.0)) / 2.0
    }
}

/// A node with normalization by running statistics, or without dropping.
pub(super) fn in_evaluation(graph: &Graph, node: &Node) -> Node {
    let mut node = node.clone();
    let stored = |slot: usize| node.input(slot).is_some_and(|v| graph.tensor(v).is_some());
    if node.is("BatchNormalization") && node.attrs.contains_key("training_mode") && stored(3) && stored(4) {
        node.attrs.remove("training_mode");
        node.outputs.truncate(1);
    } else if node.is("Dropout") {
        node.inputs.truncate(1);
    }
    node
}

/// The graph in evaluation mode, and with what it draws at random replaced by the mean.
pub(super) fn evaluation_form(graph: &Graph) -> Graph {
    let mut form = graph.clone();
    let nodes = std::mem::take(&mut form.nodes);
    for node in &nodes {
        if is_random(node) && node.op != "Multinomial" {
            without_chance(&mut form, node);
            continue;
        }
        let eval = in_evaluation(graph, node);
        for (slot, v) in node.outputs.iter().enumerate().skip(eval.outputs.len()) {
            let running = node.input(if slot == 1 { 3 } else { 4 }).and_then(|s| graph.tensor(s));
            if let (Some(v), Some(t)) = (v, running) {
                form.set_source(*v, Source::Constant(t.clone()));
            }
        }
        form.nodes.push(eval);
    }
    form
}

/// Writes a drawing node's mean out.
fn without_chance(form: &mut Graph, node: &Node) {
    let Some(y) = node.output(0) else { return };
    let dtype = match node.attrs.get("dtype") {
        Some(Attr::Int(n)) => DType::from_onnx(*n as i32).unwrap_or(DType::F32),
        _ => DType::F32,
    };
    let of = |op: &str, inputs: Vec<ValueId>, attrs: Attrs, output: ValueId| Node {
        name: node.name.clone(),
        domain: String::new(),
        op: op.into(),
        inputs: inputs.into_iter().map(Some).collect(),
        outputs: vec![Some(output)],
        attrs,
    };
    match (node.input(0), node.attrs.get("shape")) {
        (Some(x), _) if node.is("Bernoulli") => {
            let cast = node.attrs.get("dtype").map(|d| attrs([("to", d.clone())]));
            let op = if cast.is_some() { "Cast" } else { "Identity" };
            form.nodes.push(of(op, vec![x], cast.unwrap_or_default(), y));
        }
        (Some(x), _) => {
            let shape = form.add_value(&format!("{}/shape", node.name), None, Source::Node);
            form.nodes.push(of("Shape", vec![x], Attrs::new(), shape));
            let value = Tensor::full(dtype, &[1], mean(node));
            form.nodes.push(of("ConstantOfShape", vec![shape], attrs([("value", Attr::Tensor(value))]), y));
        }
        (None, Some(Attr::Ints(dims))) => {
            let shape: Vec<usize> = dims.iter().map(|d| (*d).max(0) as usize).collect();
            form.set_source(y, Source::Constant(Tensor::full(dtype, &shape, mean(node))));
        }
        _ => form.nodes.push(node.clone()),
    }
}

/// Operators between an initial state as the file holds it and the node that takes it.
const LEADING: &[&str] = &["Identity", "Expand", "Slice", "Reshape", "Unsqueeze", "Transpose", "Tile"];

/// Parameters all of whose elements are equal, moved a little: a scale of zero would hide everything behind it. Initial states of
/// recurrent networks stay the same for every sample.
pub(super) fn varied(graph: &Graph) -> BTreeMap<ValueId, Tensor> {
    let recurrent = graph.nodes.iter().filter(|n| ["RNN", "GRU", "LSTM"].iter().any(|op| n.is(op)));
    let mut states: HashSet<ValueId> = recurrent.flat_map(|n| n.inputs.iter().skip(5).flatten()).copied().collect();
    for node in graph.nodes.iter().rev() {
        if LEADING.iter().any(|op| node.is(op)) && node.output(0).is_some_and(|v| states.contains(&v)) {
            states.extend(node.input(0));
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut vary = |v: ValueId| {
        let tensor = graph.param(v).filter(|t| t.dtype().is_float() && t.len() > 1 && !states.contains(&v))?;
        let value = tensor.uniform()?;
        let moved: Vec<f64> = (0..tensor.len()).map(|_| value + 0.1 * normal(&mut rng)).collect();
        Some((v, Tensor::from_f64(tensor.dtype(), tensor.shape(), &moved)))
    };
    graph.params().into_iter().filter_map(&mut vary).collect()
}

/// The graph with other values of parameters.
pub(super) fn with_values(mut graph: Graph, values: &BTreeMap<ValueId, Tensor>) -> Graph {
    values.iter().for_each(|(v, t)| graph.set_source(*v, Source::Param(t.clone())));
    graph
}
