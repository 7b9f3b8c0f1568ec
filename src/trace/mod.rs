//! Concretize: fixes the batch size, and reads every type and shape off a run of the graph itself.
//!
//! Tracing replaces a hundred and fifty shape functions. The graph runs at two small batch sizes with every intermediate value
//! exposed; a dimension that differs follows the batch linearly, so no large activation is ever held. Afterwards `Shape` is a
//! constant, and whatever depends on constants alone is folded by running it.

mod control;
mod fold;

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
/// # Errors
/// A graph that does not run, or whose shapes do not follow the batch size; names the node.
pub fn concretize(graph: &mut Graph, sizes: &Sizes, run: &dyn Evaluator) -> Result<()> {
    let targets = input_shapes(graph, sizes)?;
    let batch = sizes.batch;
    // Nothing says the types inside its body, which a runtime wants to know.
    if graph.nodes.iter().any(|n| n.is("SequenceMap")) {
        let unfolded = graph.clone();
        control::resolve(graph, &unfolded)?;
    }
    loop {
        // A batch no larger than the traced ones is traced itself.
        let types = if batch <= TRACED[1] {
            trace(graph, &targets, run)?
        } else {
            // A file may hold its batch size in constants that fit no other: then only that batch itself runs.
            small_batches(graph, &targets, batch, run).or_else(|_| trace(graph, &targets, run))?
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
    graph.check_typed()
}

/// What to do about a graph that does not run on inputs of these shapes.
fn advice(graph: &Graph, shapes: &BTreeMap<ValueId, Vec<usize>>) -> String {
    let declared = |(v, shape): (&ValueId, &Vec<usize>)| match &graph[*v].source {
        Source::Input(Declared { dims: Some(dims), .. }) => match dims.first() {
            Some(Dim::Fixed(n)) if shape.first() != Some(n) => Some(*n),
            _ => None,
        },
        _ => None,
    };
    match shapes.iter().find_map(declared) {
        Some(n) => format!("the file is made for batches of {n}: export it with a dynamic batch dimension, or use {n}"),
        None => {
            "check the file with `bisam verify`; `bisam inspect --dim NAME=SIZE` tries sizes that it leaves open".into()
        }
    }
}

/// Types at `batch`, where the inputs have the shapes `targets`, from runs at the two traced batch sizes.
fn small_batches(
    graph: &Graph,
    targets: &BTreeMap<ValueId, Vec<usize>>,
    batch: usize,
    run: &dyn Evaluator,
) -> Result<BTreeMap<ValueId, Type>> {
    let at = |n: usize| -> BTreeMap<ValueId, Vec<usize>> {
        let shrink = |(v, s): (&ValueId, &Vec<usize>)| {
            let mut s = s.clone();
            if let Some(first) = s.first_mut().filter(|d| **d == batch) {
                *first = n;
            }
            (*v, s)
        };
        targets.iter().map(shrink).collect()
    };
    let low = trace(graph, &at(TRACED[0]), run)?;
    let high = trace(graph, &at(TRACED[1]), run)?;
    extrapolate(graph, &low, &high, batch)
}

/// Shape of every input at the wanted sizes.
fn input_shapes(graph: &Graph, sizes: &Sizes) -> Result<BTreeMap<ValueId, Vec<usize>>> {
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
            _ if i == 0 => sizes.batch,
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

/// Runs the graph with every value exposed; the type of each.
///
/// It runs in parts, one after the other: only what later parts read is held. Large weights are passed, not written into the
/// model, which would copy them several times.
fn trace(
    graph: &Graph,
    shapes: &BTreeMap<ValueId, Vec<usize>>,
    run: &dyn Evaluator,
) -> Result<BTreeMap<ValueId, Type>> {
    let mut part = graph.clone();
    let mut types: BTreeMap<ValueId, Type> = BTreeMap::new();
    let mut known: HashMap<ValueId, Tensor> = HashMap::new();
    for (v, shape) in shapes {
        if let Source::Input(Declared { dtype, .. }) = &graph[*v].source {
            let ty = Type::new(*dtype, shape);
            known.insert(*v, probe(&ty));
            part[*v].ty = Some(ty.clone());
            types.insert(*v, ty);
        }
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
        let inputs: Vec<(&str, &Tensor)> = part.inputs.iter().map(|v| (graph[*v].name.as_str(), &known[v])).collect();
        let model = encode(&emit(&part, Weights::Initializers))?;
        let values = run.evaluate(&model, &inputs).map_err(|e| {
            Error::new(format!("the model does not run: {}", e.cause())).hint_from(&e).hint(advice(graph, shapes))
        })?;
        let later: HashSet<ValueId> =
            graph.nodes[range.end..].iter().flat_map(|n| n.inputs.iter().flatten().copied()).collect();
        known.retain(|v, _| later.contains(v));
        for (v, tensor) in std::mem::take(&mut part.outputs).into_iter().zip(values) {
            let ty = tensor.ty();
            types.insert(v, ty.clone());
            if later.contains(&v) {
                part.set_source(v, Source::Input(Declared { dtype: ty.dtype, dims: None }));
                part[v].ty = Some(ty);
                known.insert(v, tensor);
            }
        }
    }
    Ok(types)
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
    for (v, lo) in low {
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
