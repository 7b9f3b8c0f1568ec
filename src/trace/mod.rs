//! Concretize: fixes the batch size, and reads every type and shape off a run of the graph itself.
//!
//! Tracing replaces a hundred and fifty shape functions. The graph runs at two small batch sizes with every intermediate value
//! exposed; a dimension that differs follows the batch linearly, so no large activation is ever held. Afterwards `Shape` is a
//! constant, and whatever depends on constants alone is folded by running it.

mod control;
mod fold;
mod layout;
mod proof;
mod rebatch;
mod rewrite;
mod samples;
mod walk;

use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Dim, Graph, Source, Tensor, Type, ValueId};
use crate::onnx::{Weights, emit};
use onnx_protobuf::{Message, ModelProto};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

/// Runs plain ONNX models; the engine implements it on ONNX Runtime.
pub trait Evaluator {
    /// Runs a model once; the outputs in order.
    ///
    /// # Errors
    /// Whatever the runtime says, naming the node where it does.
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>>;

    /// Runs a model on each of several inputs.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    fn evaluate_each(&self, model: &[u8], inputs: &[&[(&str, &Tensor)]]) -> Result<Vec<Vec<Tensor>>> {
        inputs.iter().map(|i| self.evaluate(model, i)).collect()
    }
}

/// The sizes that a file leaves open.
#[derive(Debug, Clone, Default)]
pub struct Sizes {
    /// Samples in a batch.
    pub batch: usize,
    /// Other named dimensions, such as `sequence`; what is not named gets [`DEFAULT_DIM`].
    pub dims: BTreeMap<String, usize>,
    /// Whole shapes of inputs, batch included, by name; they win over everything else.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

impl Sizes {
    /// Batches of this many samples, everything else as the file says.
    pub fn batch(batch: usize) -> Self {
        Self { batch, ..Self::default() }
    }
}

impl Sizes {
    /// The same for batches of another size.
    pub fn with_batch(&self, batch: usize) -> Self {
        let mut sizes = self.clone();
        sizes.batch = batch;
        sizes.shapes.values_mut().filter_map(|s| s.first_mut()).for_each(|n| *n = batch);
        sizes
    }

    /// The same for texts of another length.
    pub fn with_length(&self, tokens: usize) -> Self {
        let mut sizes = self.clone();
        sizes.shapes.values_mut().for_each(|shape| shape[1..].fill(tokens));
        sizes
    }
}

/// Size of a dimension nobody names.
pub const DEFAULT_DIM: usize = 16;

/// The batch sizes traced; they are prime, so that no product of them is taken for another dimension.
const TRACED: [usize; 2] = [2, 3];

/// Fixes the sizes, fills in the type of every value and folds what is constant.
///
/// A file that fixes another batch size is rewritten for this one. What there is to say about that, or about outputs that depend on other
/// samples of the batch, comes back as notes.
///
/// # Errors
/// A graph that does not run, or whose shapes do not follow the batch size; names the node.
pub fn concretize(graph: &mut Graph, sizes: &Sizes, run: &dyn Evaluator) -> Result<Vec<String>> {
    let mut notes: Vec<String> = open_batch(graph, sizes, run)?.into_iter().collect();
    let given = graph.clone();
    let mut concretized = concretize_at(graph, &input_shapes(graph, sizes)?, sizes.batch, run);
    if concretized.is_err() && sizes.batch > 1 && rebatch::own_batch(&given).is_none() {
        // A batch that is left open in name only: the file holds the one sample that it was exported with.
        let mut freed = given;
        if let Ok(Some(note)) = rebatch::free(&mut freed, sizes, 1, run) {
            notes.push(note);
            *graph = freed;
            concretized = concretize_at(graph, &input_shapes(graph, sizes)?, sizes.batch, run);
        }
    }
    notes.extend(concretized?);
    Ok(notes)
}

/// Rewrites the graph of a file that fixes a batch size, if that of `sizes` is another, so that it serves any; a note of what was done.
///
/// # Errors
/// A node that cannot be rewritten, or outputs that cannot be shown to be those of the file, with what the exporter has to be told.
pub fn open_batch(graph: &mut Graph, sizes: &Sizes, run: &dyn Evaluator) -> Result<Option<String>> {
    match rebatch::own_batch(graph).filter(|own| *own != sizes.batch) {
        Some(own) => rebatch::free(graph, sizes, own, run),
        None => Ok(None),
    }
}

/// As [`concretize`], with inputs of these shapes, and without rewriting.
fn concretize_at(
    graph: &mut Graph,
    targets: &BTreeMap<ValueId, Vec<usize>>,
    batch: usize,
    run: &dyn Evaluator,
) -> Result<Option<String>> {
    // Nothing says the types inside its body, which a runtime wants to know.
    if graph.nodes.iter().any(|n| n.is("SequenceMap")) {
        let unfolded = graph.clone();
        control::resolve(graph, &unfolded)?;
    }
    let mut note = None;
    loop {
        // A file may hold its batch size in constants that fit no other: then only that batch itself runs.
        let small = (batch >= TRACED[0]).then(|| small_batches(graph, targets, batch, run).ok()).flatten();
        let types = match small {
            Some((types, found)) => {
                note = found;
                types
            }
            None => trace(graph, &ones(graph, targets), run)?.0,
        };
        let mut folded = graph.clone();
        for (v, ty) in types {
            folded[v].ty = Some(ty);
        }
        fold::fold(&mut folded, run)?;
        // Constants at this batch size say how control flow goes; the graph itself still serves any batch size.
        if !control::resolve(graph, &folded)? {
            *graph = folded;
            break;
        }
        graph.remove_dead_nodes();
    }
    control::unresolved(graph)?;
    graph.check_typed()?;
    Ok(note)
}

/// What to do about a graph that does not run on inputs of these shapes.
fn advice(graph: &Graph, inputs: &BTreeMap<ValueId, Tensor>) -> String {
    let own = rebatch::own_batch(graph);
    match own.filter(|n| inputs.values().next().is_some_and(|t| t.shape().first() != Some(n))) {
        Some(n) => rebatch::export_hint(graph, n),
        None => {
            "check the file with `bisam verify`; `bisam inspect --dim NAME=SIZE` tries sizes that it leaves open".into()
        }
    }
}

/// Types at `batch`, where the inputs have the shapes `targets`, from runs at the two traced batch sizes; and a note when outputs of a
/// sample depend on other samples.
fn small_batches(
    graph: &Graph,
    targets: &BTreeMap<ValueId, Vec<usize>>,
    batch: usize,
    run: &dyn Evaluator,
) -> Result<(BTreeMap<ValueId, Type>, Option<String>)> {
    let mut batched = rebatch::batched_inputs(graph);
    batched.retain(|v| targets.get(v).is_some_and(|s| s.first() == Some(&batch)));
    let random = samples::Samples::draw(graph, targets, &batched, TRACED[1], samples::Draw::Normal);
    // The two batches have samples in common, in other places.
    let form = samples::with_values(samples::evaluation_form(graph), &samples::varied(graph));
    let low = trace(&form, &random.batch(&[0, 1]), run);
    let high = low.as_ref().ok().map(|_| trace(&form, &random.batch(&[1, 0, 2]), run));
    if let (Ok((low, few)), Some(Ok((high, more)))) = (low, high)
        && let Ok(mut types) = extrapolate(graph, &low, &high, batch)
    {
        let written_out = |v: &ValueId| graph.tensor(*v).is_none();
        let constants = graph.value_ids().filter(written_out).filter_map(|v| Some((v, form.tensor(v)?.ty())));
        types.extend(constants);
        let pairs = graph.outputs.iter().zip(few.iter().zip(&more));
        let mixed: Vec<String> = pairs
            .filter(|(_, (few, more))| layout::depends_on_others(few, more))
            .map(|(v, _)| format!("`{}`", graph[*v].name))
            .collect();
        let note = (!mixed.is_empty() && rebatch::own_batch(graph) != Some(batch)).then(|| {
            format!(
                "what the model gives for a sample in {} depends on the other samples of its batch, in evaluation too; \
                 if that is not meant, the file holds the batch size it was exported with",
                mixed.join(", ")
            )
        });
        return Ok((types, note));
    }
    // Random inputs do not suit every model.
    let at = |n: usize| -> BTreeMap<ValueId, Vec<usize>> {
        let shrink = |(v, s): (&ValueId, &Vec<usize>)| {
            let mut s = s.clone();
            s.first_mut().filter(|_| batched.contains(v)).into_iter().for_each(|first| *first = n);
            (*v, s)
        };
        targets.iter().map(shrink).collect()
    };
    let (low, _) = trace(graph, &ones(graph, &at(TRACED[0])), run)?;
    let (high, _) = trace(graph, &ones(graph, &at(TRACED[1])), run)?;
    Ok((extrapolate(graph, &low, &high, batch)?, None))
}

/// Shape of every input at the wanted sizes.
fn input_shapes(graph: &Graph, sizes: &Sizes) -> Result<BTreeMap<ValueId, Vec<usize>>> {
    let batched = rebatch::batched_inputs(graph);
    let mut shapes = BTreeMap::new();
    for v in &graph.inputs {
        let Source::Input(Declared { dims, .. }) = &graph[*v].source else { continue };
        let name = &graph[*v].name;
        if let Some(shape) = sizes.shapes.get(name) {
            shapes.insert(*v, shape.clone());
            continue;
        }
        let dims = dims.as_ref().ok_or_else(|| {
            Error::new(format!("input `{name}` does not say its rank")).hint("export the model with a shape for it")
        })?;
        let size = |(i, d): (usize, &Dim)| match d {
            _ if i == 0 && batched.contains(v) => sizes.batch,
            Dim::Fixed(n) => *n,
            Dim::Symbol(s) => sizes.dims.get(s).copied().unwrap_or(DEFAULT_DIM),
            Dim::Unknown => DEFAULT_DIM,
        };
        shapes.insert(*v, dims.iter().enumerate().map(size).collect());
    }
    Ok(shapes)
}

/// Input values that are valid wherever floats are data and integers are indices or masks: 1 everywhere.
pub(crate) fn probe(ty: &Type) -> Tensor {
    Tensor::full(ty.dtype, &ty.shape, 1.0)
}

/// Inputs of these shapes, 1 everywhere.
fn ones(graph: &Graph, shapes: &BTreeMap<ValueId, Vec<usize>>) -> BTreeMap<ValueId, Tensor> {
    let one = |(v, shape): (&ValueId, &Vec<usize>)| match &graph[*v].source {
        Source::Input(Declared { dtype, .. }) => Some((*v, probe(&Type::new(*dtype, shape)))),
        _ => None,
    };
    shapes.iter().filter_map(one).collect()
}

/// Runs the graph with every value exposed: the type of each, and the graph's outputs.
///
/// It runs in parts, one after the other: only what later parts read is held. Large weights are passed, not written into the
/// model, which would copy them several times.
fn trace(
    graph: &Graph,
    inputs: &BTreeMap<ValueId, Tensor>,
    run: &dyn Evaluator,
) -> Result<(BTreeMap<ValueId, Type>, Vec<Tensor>)> {
    let mut part = graph.clone();
    let mut types: BTreeMap<ValueId, Type> = BTreeMap::new();
    let mut known: HashMap<ValueId, Tensor> = HashMap::new();
    let results: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    for (v, tensor) in inputs {
        known.insert(*v, tensor.clone());
        part[*v].ty = Some(tensor.ty());
        types.insert(*v, tensor.ty());
    }
    for v in graph.value_ids() {
        let large = |t: &&Tensor| t.dtype() == DType::F32 && t.bytes().len() > LARGE;
        if let Some(tensor) = graph.tensor(v).filter(large) {
            part.set_source(v, Source::Input(Declared { dtype: DType::F32, dims: None }));
            known.insert(v, tensor.clone());
        }
    }
    let lists = control::sequences(graph);
    for range in parts(graph, &lists) {
        part.nodes = graph.nodes[range.clone()].to_vec();
        let made: HashSet<ValueId> = part.nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let read: BTreeSet<ValueId> = part.nodes.iter().flat_map(|n| n.inputs.iter().flatten().copied()).collect();
        part.inputs = read.into_iter().filter(|v| known.contains_key(v)).collect();
        part.outputs = made.into_iter().filter(|v| !lists.contains(v)).collect();
        let given: Vec<(&str, &Tensor)> = part.inputs.iter().map(|v| (graph[*v].name.as_str(), &known[v])).collect();
        let model = encode(&emit(&part, Weights::Initializers))?;
        let values = run.evaluate(&model, &given).map_err(|e| {
            Error::new(format!("the model does not run: {}", e.cause())).hint_from(&e).hint(advice(graph, inputs))
        })?;
        let later: HashSet<ValueId> =
            graph.nodes[range.end..].iter().flat_map(|n| n.inputs.iter().flatten().copied()).collect();
        known.retain(|v, _| later.contains(v) || results.contains(v));
        for (v, tensor) in std::mem::take(&mut part.outputs).into_iter().zip(values) {
            let ty = tensor.ty();
            types.insert(v, ty.clone());
            if later.contains(&v) {
                part.set_source(v, Source::Input(Declared { dtype: ty.dtype, dims: None }));
                part[v].ty = Some(ty);
            }
            if later.contains(&v) || results.contains(&v) {
                known.insert(v, tensor);
            }
        }
    }
    let result = |v: &ValueId| known.get(v).or_else(|| graph.tensor(*v)).cloned();
    let missing = |v: &ValueId| Error::new(format!("output `{}` is no tensor", graph[*v].name));
    let outputs = graph.outputs.iter().map(|v| result(v).ok_or_else(|| missing(v))).collect::<Result<_>>()?;
    Ok((types, outputs))
}

/// Bytes from which on a weight is passed to a part of a trace.
const LARGE: usize = 1 << 16;

/// Nodes in a part of a trace, and most parts; a list of tensors does not leave its part.
const PART: usize = 8;
const PARTS: usize = 64;

/// The nodes of each part of a trace.
fn parts(graph: &Graph, lists: &HashSet<ValueId>) -> Vec<Range<usize>> {
    let most = PART.max(graph.nodes.len() / PARTS);
    let mut last_read: HashMap<ValueId, usize> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        last_read.extend(node.inputs.iter().flatten().filter(|v| lists.contains(v)).map(|v| (*v, i)));
    }
    let (mut parts, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, node) in graph.nodes.iter().enumerate() {
        if i > held && i - start >= most {
            parts.push(start..i);
            start = i;
        }
        held = node.outputs.iter().flatten().filter_map(|v| last_read.get(v)).fold(held, |h, i| h.max(*i));
    }
    parts.push(start..graph.nodes.len());
    parts
}

/// Encodes a model for the runtime.
pub(crate) fn encode(model: &ModelProto) -> Result<Vec<u8>> {
    model.write_to_bytes().map_err(|e| Error::new(format!("cannot encode the graph: {e}")))
}

/// Types at `batch` from those at the two traced batch sizes.
fn extrapolate(
    graph: &Graph,
    low: &BTreeMap<ValueId, Type>,
    high: &BTreeMap<ValueId, Type>,
    batch: usize,
) -> Result<BTreeMap<ValueId, Type>> {
    let [a, b] = TRACED;
    let mut types = BTreeMap::new();
    // The form in evaluation mode may have values of its own.
    for (v, lo) in low.iter().filter(|(v, _)| graph.has(**v)) {
        let hi = high.get(v).filter(|hi| hi.shape.len() == lo.shape.len() && hi.dtype == lo.dtype);
        let dims = hi.and_then(|hi| {
            let line = |(x, y): (&usize, &usize)| {
                let slope = y.checked_sub(*x)? / (b - a);
                let base = x.checked_sub(slope * a)?;
                Some(base + slope * batch)
            };
            lo.shape.iter().zip(&hi.shape).map(line).collect::<Option<Vec<_>>>()
        });
        let shape = dims.ok_or_else(|| {
            Error::new(format!("the shape of `{}` does not follow the batch size", graph[*v].name))
                .hint("export the model with a dynamic batch dimension")
        })?;
        types.insert(*v, Type { dtype: lo.dtype, shape });
    }
    Ok(types)
}
