//! A file made for one batch size, rewritten for any.
//!
//! The file itself says what is right: run at its own batch size on each sample, it gives every value of that sample. A graph for a
//! larger batch is right when each of its values holds exactly these, sample by sample. So the graph is walked in order, each node runs on
//! the samples put together, and where its output does not hold theirs, what [`rewrite`](super::rewrite) proposes is tried. Which
//! proposal suits may show only further on (a dimension of size 1 may be the batch or anything else): then the walk begins again with
//! the next one.

use super::layout::{Groups, Layout};
use super::rewrite::{Around, Nodes, candidates, keeps_order, noise};
use super::samples::{Draw, Samples, evaluation_form, in_evaluation, is_random, mean, vary};
use super::{Evaluator, LARGE, Sizes, concretize_at, encode, trace};
use crate::builder::attrs;
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Declared, Dim, Graph, Node, Source, Tensor, ValueId};
use crate::onnx::{Weights, emit};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// How far a node's output may be from that of single samples, relative to the largest element.
const NODE_TOLERANCE: f64 = 1e-4;

/// How far the model's outputs may be, relative to how much they differ between samples.
const TOLERANCE: f64 = 0.02;

/// How much a value has to differ between samples, relative to its largest element, to tell them apart.
const TELLING: f64 = 0.01;

/// What rounding may do to an output, relative to its largest element.
const ROUNDING: f64 = 1e-5;

/// How often the walk may begin again.
const ATTEMPTS: usize = 64;

/// Nodes that run together as long as nothing stands in their way.
const PART: usize = 16;

/// The batch size that the first input of a file fixes.
pub(super) fn own_batch(graph: &Graph) -> Option<usize> {
    let dims = graph.inputs.iter().filter_map(|v| match &graph[*v].source {
        Source::Input(Declared { dims: Some(dims), .. }) if !dims.is_empty() => Some(dims),
        _ => None,
    });
    match dims.map(|d| &d[0]).next() {
        Some(Dim::Fixed(n)) if *n > 0 => Some(*n),
        _ => None,
    }
}

/// The inputs whose first dimension is the batch: all, but those for which the file fixes another size than its batch.
pub(super) fn batched_inputs(graph: &Graph) -> HashSet<ValueId> {
    let own = own_batch(graph);
    let batched = |v: &ValueId| match &graph[*v].source {
        Source::Input(Declared { dims: Some(dims), .. }) => match (dims.first(), own) {
            (Some(Dim::Fixed(n)), Some(own)) => *n == own,
            _ => true,
        },
        _ => true,
    };
    graph.inputs.iter().copied().filter(batched).collect()
}

/// What an exporter has to be told for a file of any batch size.
pub(super) fn export_hint(graph: &Graph, own: usize) -> String {
    let batched = batched_inputs(graph);
    let names: Vec<String> =
        graph.inputs.iter().filter(|v| batched.contains(v)).map(|v| graph[*v].name.clone()).collect();
    let dims = names.iter().map(|n| format!("\"{n}\": {{0: \"batch\"}}")).collect::<Vec<_>>().join(", ");
    format!(
        "export it with a batch dimension that is left open: torch.onnx.export(model, inputs, \"model.onnx\", \
         dynamic_shapes={{{dims}}}) on inputs of at least 2 samples, or with dynamo=False \
         dynamic_axes={{{dims}}}; or use batches of {own}"
    )
}

/// Rewrites a graph whose file fixes a batch size other than that of `sizes`; a note of what was done.
///
/// # Errors
/// A node that cannot be rewritten, or outputs that cannot be shown to be those of the file.
pub(super) fn free(graph: &mut Graph, sizes: &Sizes, run: &dyn Evaluator) -> Result<Option<String>> {
    let Some(own) = own_batch(graph).filter(|own| *own != sizes.batch) else { return Ok(None) };
    let mut shapes = super::input_shapes(graph, sizes)?;
    let batched = batched_inputs(graph);
    for v in &batched {
        shapes.get_mut(v).and_then(|s| s.first_mut()).into_iter().for_each(|n| *n = own);
    }
    let hint = export_hint(graph, own);
    let refused = |e: Error| {
        let cause = format!("the file is made for batches of {own}: {}", e.cause());
        Error::new(cause).place_from(&e).hint(hint.clone())
    };
    let proof = Proof::new(graph, &shapes, &batched, own, run).map_err(refused)?;
    let chance = graph.nodes.iter().any(is_random);
    let (mut places, summed);
    places = 0;
    match proof.holds(graph, run) {
        Ok(found) if !chance && found.tells => summed = found.summed,
        _ => {
            let mut base = graph.clone();
            concretize_at(&mut base, &shapes, own, run)?;
            let (rewritten, n, joins) = rewrite(base, &batched, &proof, run).map_err(refused)?;
            let shown = proof.holds(&rewritten, run);
            summed = shown.map_err(|e| refused(joins.map_or(e.clone(), |n| n.blame(e))))?.summed;
            (*graph, places) = (rewritten, n);
        }
    }
    open(graph, &batched);
    let mut notes = Vec::new();
    match places {
        0 => {}
        1 => notes.push(format!("a place that holds the file's batch size of {own} was rewritten")),
        n => notes.push(format!("{n} places that hold the file's batch size of {own} were rewritten")),
    }
    if places > 0 {
        notes.push("for training; the file itself keeps it".to_owned());
    }
    if !summed.is_empty() {
        notes.push(format!("{} is a sum over the samples of a batch", summed.join(", ")));
    }
    Ok((!notes.is_empty()).then(|| notes.join(" ")))
}

/// Declares the batch of inputs as open.
fn open(graph: &mut Graph, batched: &HashSet<ValueId>) {
    for v in batched {
        if let Source::Input(declared) = &mut graph[*v].source
            && let Some(first) = declared.dims.as_mut().and_then(|d| d.first_mut())
        {
            *first = Dim::Symbol("batch".into());
        }
    }
}

/// The outputs of a file for a few samples, each run at the file's own batch size.
struct Proof {
    samples: Samples,
    groups: Groups,
    /// For every output of the graph its values, one for each group.
    outputs: Vec<Vec<Tensor>>,
}

impl Proof {
    fn new(
        graph: &Graph,
        shapes: &BTreeMap<ValueId, Vec<usize>>,
        batched: &HashSet<ValueId>,
        own: usize,
        run: &dyn Evaluator,
    ) -> Result<Self> {
        let count = if own < 3 { 3 } else { 2 };
        let groups = Groups::new(own, count);
        let form = evaluation_form(graph);
        let mut failure = None;
        for draw in [Draw::Normal, Draw::Positive] {
            let samples = Samples::draw(graph, shapes, batched, count, draw);
            let values = groups.own.iter().map(|g| trace(&form, &samples.batch(g), run).map(|t| t.1));
            match values.collect::<Result<Vec<_>>>() {
                Ok(values) => {
                    let outputs: Vec<Vec<Tensor>> =
                        (0..graph.outputs.len()).map(|i| values.iter().map(|g| g[i].clone()).collect()).collect();
                    let finite = |t: &Tensor| !t.any(|v| !v.is_finite());
                    if outputs.iter().flatten().filter(|t| t.dtype().is_float()).all(finite) {
                        return Ok(Self { samples, groups, outputs });
                    }
                    let cause = "its outputs on random inputs are not finite, so that nothing shows whether it \
                                 computes the same at another size";
                    failure = Some(Error::new(cause));
                }
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::new("it has no outputs")))
    }

    /// Shows that `graph` gives every sample the outputs that the file gives it.
    fn holds(&self, graph: &Graph, run: &dyn Evaluator) -> Result<Found> {
        let form = evaluation_form(graph);
        let (_, outputs) = trace(&form, &self.samples.batch(&self.groups.all), run)?;
        let (mut shown, mut found) = (false, Found { tells: true, summed: Vec::new() });
        for ((v, own), all) in graph.outputs.iter().zip(&self.outputs).zip(&outputs) {
            let name = || format!("output `{}`", graph[*v].name);
            match self.output(own, all) {
                Shown::PerSample(tells) => {
                    shown |= all.dtype().is_float();
                    found.tells &= tells;
                }
                Shown::Mean => {}
                Shown::Sum => found.summed.push(name()),
                Shown::Not => crate::bail!("{} of a batch is not that of its samples", name()),
            }
        }
        if shown { Ok(found) } else { Err(Error::new("no output is shown to be the same for every sample")) }
    }

    fn output(&self, own: &[Tensor], all: &Tensor) -> Shown {
        let spread = spread(own);
        let tolerance = (TOLERANCE * spread).clamp(ROUNDING, NODE_TOLERANCE);
        if Layout::find(own, all, &self.groups, tolerance).is_some() {
            return Shown::PerSample(spread > 10.0 * ROUNDING || !all.dtype().is_float());
        }
        reduction(own, all, &self.groups)
    }
}

/// What is found about the outputs of a graph.
struct Found {
    /// Whether they differ enough between samples to tell one from another. An untrained network may hardly look at its input.
    tells: bool,
    /// The outputs that are sums over the samples.
    summed: Vec<String>,
}

/// What an output of several samples is shown to be.
enum Shown {
    /// Theirs, sample by sample, and whether that tells something.
    PerSample(bool),
    /// The mean of theirs.
    Mean,
    /// The sum of theirs.
    Sum,
    /// Something else.
    Not,
}

/// How much a value differs between groups, relative to its largest element.
fn spread(values: &[Tensor]) -> f64 {
    let all: Vec<Vec<f64>> = values.iter().filter(|t| t.dtype().is_float()).map(Tensor::to_f64).collect();
    let largest = all.iter().flatten().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    let differ = match (all.as_slice(), values.first().and_then(|t| t.shape().first())) {
        // Of a single group, between its first rows, which are those of samples.
        ([one], Some(rows)) if *rows > 1 => {
            let row = one.len() / rows;
            apart(&one[..row], &one[row..2 * row])
        }
        ([_], _) => largest,
        (several, _) => several.windows(2).fold(0.0f64, |m, w| m.max(apart(&w[0], &w[1]))),
    };
    if largest > 0.0 { differ / largest } else { 0.0 }
}

/// Whether a value of all samples is the mean or the sum of theirs.
fn reduction(own: &[Tensor], all: &Tensor, groups: &Groups) -> Shown {
    let Some(first) = own.first().filter(|f| f.dtype().is_float() && f.shape() == all.shape()) else {
        return Shown::Not;
    };
    if groups.size() != 1 {
        return Shown::Not;
    }
    let mut sum = vec![0.0; first.len()];
    for t in own {
        sum.iter_mut().zip(t.to_f64()).for_each(|(s, v)| *s += v);
    }
    let given = all.to_f64();
    let is = |scale: f64| {
        let largest = sum.iter().fold(0.0f64, |m, s| m.max((s * scale).abs()));
        sum.iter().zip(&given).all(|(s, g)| (s * scale - g).abs() <= NODE_TOLERANCE * largest)
    };
    match () {
        () if is(1.0 / own.len() as f64) => Shown::Mean,
        () if is(1.0) => Shown::Sum,
        () => Shown::Not,
    }
}

/// Rewrites `base`, concretized at its own batch size; with the number of nodes replaced, and the first node that joins samples.
fn rewrite(
    base: Graph,
    batched: &HashSet<ValueId>,
    proof: &Proof,
    run: &dyn Evaluator,
) -> Result<(Graph, usize, Option<Node>)> {
    let mut graph = base.clone();
    vary(&mut graph);
    let declared = Declared { dtype: DType::I64, dims: None };
    let batch = graph.add_value("batch", None, Source::Input(declared));
    let nodes: Vec<Node> = base.nodes.iter().map(|n| in_evaluation(&base, n)).collect();
    // Sample numbers within the file's own batch are the same in another one only where every sample keeps its place.
    let in_place = Groups { own: vec![(0..proof.groups.size()).collect()], all: vec![0] };
    let others = (proof.groups.size() == 2).then_some(in_place);
    let mut first = None;
    for groups in std::iter::once(proof.groups.clone()).chain(others) {
        let mut walk = Walk::new(&mut graph, &nodes, batched, (&proof.samples, &groups), batch, run)?;
        let mut start = 0;
        for _ in 0..ATTEMPTS {
            let Err((error, reads)) = walk.go(start) else {
                let Walk { replaced, joins, .. } = walk;
                return Ok((assemble(graph, &base, &replaced, batch, batched), replaced.len(), joins));
            };
            first.get_or_insert(error);
            let upstream = base.upstream(reads);
            let concerned = |i: usize| nodes[i].outputs.iter().flatten().any(|v| upstream.contains(v));
            let Some(node) = walk.back(concerned) else { break };
            start = node + 1;
        }
    }
    Err(first.unwrap_or_else(|| Error::new("it cannot be rewritten")))
}

/// The base with nodes replaced, and the batch size read off its first input.
fn assemble(
    mut graph: Graph,
    base: &Graph,
    replaced: &BTreeMap<usize, Nodes>,
    batch: ValueId,
    batched: &HashSet<ValueId>,
) -> Graph {
    for v in base.value_ids() {
        graph.set_source(v, base[v].source.clone());
    }
    graph.set_source(batch, Source::Node);
    // They are those of the file's own batch.
    for v in graph.value_ids().collect::<Vec<_>>() {
        if matches!(graph[v].source, Source::Node | Source::Input(_)) {
            graph[v].ty = None;
        }
    }
    let name = graph[batch].name.clone();
    let first = base.inputs.iter().copied().find(|v| batched.contains(v));
    let range = attrs([("start", Attr::Int(0)), ("end", Attr::Int(1))]);
    let (op, domain, inputs, outputs) = ("Shape".into(), String::new(), vec![first], vec![Some(batch)]);
    graph.nodes = vec![Node { name, domain, op, inputs, outputs, attrs: range }];
    for (i, node) in base.nodes.iter().enumerate() {
        match replaced.get(&i) {
            None => graph.nodes.push(node.clone()),
            Some(nodes) => {
                // Found for the form in evaluation mode; nodes that differ in it keep what is theirs.
                for new in nodes {
                    let same = new.outputs.first() == node.outputs.first();
                    let mut new = new.clone();
                    if same && new.op == node.op {
                        new.outputs.clone_from(&node.outputs);
                        new.attrs.extend(
                            node.attrs
                                .iter()
                                .filter(|(k, _)| *k == "training_mode")
                                .map(|(k, v)| (k.clone(), v.clone())),
                        );
                    }
                    graph.nodes.push(new);
                }
            }
        }
    }
    graph.remove_dead_nodes();
    graph
}

/// What is known of a value that depends on the batch.
#[derive(Clone)]
enum Known {
    /// Where the batch is, and the value for each group.
    Batched(Layout, Vec<Tensor>),
    /// One that joins the samples; for each group, and for all.
    Joined(Vec<Tensor>, Tensor),
}

struct Walk<'a> {
    graph: &'a mut Graph,
    nodes: &'a [Node],
    groups: &'a Groups,
    run: &'a dyn Evaluator,
    batch: ValueId,
    known: HashMap<ValueId, Known>,
    shared: HashMap<ValueId, Tensor>,
    last_read: HashMap<ValueId, usize>,
    replaced: BTreeMap<usize, Nodes>,
    /// The first node whose output joins samples.
    joins: Option<Node>,
    /// Nodes of which several forms suit, in order.
    choices: Vec<Choice>,
}

/// A form that a node may take, with where the batch then is in its outputs.
struct Form {
    /// As usual as [`Layout::rank`] says, then the axis of the batch.
    rank: (usize, usize),
    /// None for the node as it is.
    nodes: Option<Nodes>,
    layouts: Vec<Layout>,
}

/// A node of which several forms suit, and what was known before one was taken.
struct Choice {
    node: usize,
    rest: VecDeque<Form>,
    outputs: Vec<(ValueId, Vec<Tensor>)>,
    known: HashMap<ValueId, Known>,
    replaced: BTreeMap<usize, Nodes>,
    joins: Option<Node>,
}

/// An error, and what the node that it is about reads.
type Failure = (Error, Vec<ValueId>);

impl<'a> Walk<'a> {
    fn new(
        graph: &'a mut Graph,
        nodes: &'a [Node],
        batched: &HashSet<ValueId>,
        (samples, groups): (&Samples, &'a Groups),
        batch: ValueId,
        run: &'a dyn Evaluator,
    ) -> Result<Self> {
        let mut last_read = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            last_read.extend(node.inputs.iter().flatten().map(|v| (*v, i)));
        }
        last_read.extend(graph.outputs.iter().map(|v| (*v, nodes.len())));
        let (known, shared, replaced, joins, choices) = Default::default();
        let mut walk = Self { graph, nodes, groups, run, batch, known, shared, last_read, replaced, joins, choices };
        let own: Vec<BTreeMap<ValueId, Tensor>> = groups.own.iter().map(|g| samples.batch(g)).collect();
        for v in walk.graph.inputs.clone() {
            let values: Vec<Tensor> = own.iter().filter_map(|g| g.get(&v).cloned()).collect();
            if batched.contains(&v) && values.first().is_some_and(|t| !t.shape().is_empty()) {
                walk.known.insert(v, Known::Batched(Layout::FIRST, values));
            } else if let Some(value) = values.into_iter().next() {
                walk.shared.insert(v, value);
            }
        }
        let count = groups.all.len() as i64;
        walk.shared.insert(batch, Tensor::ints(&[count]));
        walk.share()?;
        Ok(walk)
    }

    /// Computes what does not depend on the batch.
    fn share(&mut self) -> Result<()> {
        let mut batched: HashSet<ValueId> = self.known.keys().copied().collect();
        let (mut nodes, mut made) = (Vec::new(), Vec::new());
        for node in self.nodes {
            if node.inputs.iter().flatten().any(|v| batched.contains(v)) || (is_random(node)) {
                batched.extend(node.outputs.iter().flatten());
            } else {
                made.extend(node.outputs.iter().flatten().filter(|v| self.last_read.contains_key(v)));
                nodes.push(node.clone());
            }
        }
        if !made.is_empty() {
            let feeds = self.feeds(&nodes, |_| None);
            let values = self.evaluate(&nodes, &made, &[feeds])?.remove(0);
            self.shared.extend(made.into_iter().zip(values));
        }
        Ok(())
    }

    /// What `nodes` read from outside of them: `value`'s, or else what is shared.
    fn feeds(&self, nodes: &[Node], value: impl Fn(&Known) -> Option<Tensor>) -> HashMap<ValueId, Tensor> {
        let read = nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        let one = |v: &ValueId| {
            let tensor = self.known.get(v).and_then(&value).or_else(|| self.shared.get(v).cloned());
            tensor.map(|t| (*v, t))
        };
        read.filter_map(one).collect()
    }

    /// The values `outputs` of `nodes` for each of `feeds`, which are of the same values.
    fn evaluate(
        &self,
        nodes: &[Node],
        outputs: &[ValueId],
        feeds: &[HashMap<ValueId, Tensor>],
    ) -> Result<Vec<Vec<Tensor>>> {
        let graph = &*self.graph;
        let fed = feeds.first().cloned().unwrap_or_default();
        let mut part = Graph::default();
        part.opsets.clone_from(&graph.opsets);
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        let mut large: Vec<(String, Tensor)> = Vec::new();
        let all = nodes.iter().flat_map(|n| n.inputs.iter().chain(&n.outputs).flatten());
        for v in all {
            if map.contains_key(v) {
                continue;
            }
            let name = &graph[*v].name;
            let input = |dtype| Source::Input(Declared { dtype, dims: None });
            let source = match (fed.get(v), graph.tensor(*v)) {
                (Some(t), _) => input(t.dtype()),
                (None, Some(t)) if t.dtype() == DType::F32 && t.bytes().len() > LARGE => {
                    large.push((name.clone(), t.clone()));
                    input(t.dtype())
                }
                (None, Some(_)) => graph[*v].source.clone(),
                (None, None) => Source::Node,
            };
            let is_input = matches!(source, Source::Input(_));
            let new = part.add_value(name, None, source);
            if is_input {
                part.inputs.push(new);
            }
            map.insert(*v, new);
        }
        let at = |v: &Option<ValueId>| v.and_then(|v| map.get(&v).copied());
        for node in nodes {
            let (inputs, outputs) = (node.inputs.iter().map(at).collect(), node.outputs.iter().map(at).collect());
            part.nodes.push(Node { inputs, outputs, ..node.clone() });
        }
        part.outputs = outputs.iter().filter_map(|v| map.get(v).copied()).collect();
        let model = encode(&emit(&part, Weights::Initializers))?;
        let named: Vec<Vec<(&str, &Tensor)>> = feeds
            .iter()
            .map(|f| {
                let fed = f.iter().filter(|(v, _)| map.contains_key(v)).map(|(v, t)| (graph[*v].name.as_str(), t));
                fed.chain(large.iter().map(|(n, t)| (n.as_str(), t))).collect()
            })
            .collect();
        let named: Vec<&[(&str, &Tensor)]> = named.iter().map(Vec::as_slice).collect();
        self.run.evaluate_each(&model, &named)
    }

    /// Takes the nodes from `start` on.
    fn go(&mut self, start: usize) -> Result<(), Failure> {
        let mut part = Vec::new();
        for i in start..self.nodes.len() {
            let node = &self.nodes[i];
            let depends = |v: &ValueId| {
                self.known.contains_key(v) || part.iter().any(|j: &usize| self.nodes[*j].outputs.contains(&Some(*v)))
            };
            if is_random(node) {
                self.together(&std::mem::take(&mut part))?;
                self.draws(i);
            } else if node.inputs.iter().flatten().any(depends) {
                part.push(i);
            }
            if part.len() >= PART || i + 1 == self.nodes.len() {
                self.together(&std::mem::take(&mut part))?;
                self.known.retain(|v, _| self.last_read.get(v).is_some_and(|last| *last > i));
            }
        }
        Ok(())
    }

    /// Goes back to the last node of which another form suits and on which, says `concerned`, what failed depends; which one.
    fn back(&mut self, concerned: impl Fn(usize) -> bool) -> Option<usize> {
        while let Some(mut choice) = self.choices.pop() {
            let Some(form) = choice.rest.pop_front().filter(|_| concerned(choice.node)) else { continue };
            self.known.clone_from(&choice.known);
            self.replaced.clone_from(&choice.replaced);
            self.joins.clone_from(&choice.joins);
            let node = choice.node;
            self.take(node, form, choice.outputs.clone());
            if !choice.rest.is_empty() {
                self.choices.push(choice);
            }
            return Some(node);
        }
        None
    }

    /// Takes note of a value. One that hardly differs between samples would not tell them apart further on, so it is made to: a node is
    /// right when it is for any input.
    fn learn(&mut self, v: ValueId, layout: Layout, mut values: Vec<Tensor>) {
        if values.first().is_some_and(|t| t.dtype().is_float()) && spread(&values) < TELLING {
            values = layout.vary(&values, self.groups);
        }
        self.known.insert(v, Known::Batched(layout, values));
    }

    fn take(&mut self, node: usize, form: Form, outputs: Vec<(ValueId, Vec<Tensor>)>) {
        for ((v, values), layout) in outputs.into_iter().zip(form.layouts) {
            self.learn(v, layout, values);
        }
        if let Some(nodes) = form.nodes {
            self.replaced.insert(node, nodes);
        }
    }

    /// Outputs of nodes that something reads.
    fn read_outputs(&self, nodes: &[Node]) -> Vec<ValueId> {
        let all = nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        all.filter(|v| self.last_read.contains_key(v)).copied().collect()
    }

    fn of_groups(&self, nodes: &[Node]) -> Vec<HashMap<ValueId, Tensor>> {
        let value = |known: &Known, g: usize| match known {
            Known::Batched(_, values) | Known::Joined(values, _) => values.get(g).cloned(),
        };
        (0..self.groups.own.len()).map(|g| self.feeds(nodes, |known| value(known, g))).collect()
    }

    fn of_all(&self, nodes: &[Node]) -> HashMap<ValueId, Tensor> {
        self.feeds(nodes, |known| match known {
            Known::Batched(layout, values) => layout.stack(values, self.groups),
            Known::Joined(_, all) => Some(all.clone()),
        })
    }

    /// Takes nodes as they are if nothing stands in their way, and one by one otherwise.
    fn together(&mut self, part: &[usize]) -> Result<(), Failure> {
        if part.is_empty() {
            return Ok(());
        }
        let nodes: Vec<Node> = part.iter().map(|i| self.nodes[*i].clone()).collect();
        let outputs = self.read_outputs(&nodes);
        let reads = || nodes.iter().flat_map(|n| n.inputs.iter().flatten()).copied().collect::<Vec<_>>();
        let values = self.evaluate(&nodes, &outputs, &self.of_groups(&nodes)).map_err(|e| (e, reads()))?;
        let own: HashMap<ValueId, Vec<Tensor>> =
            outputs.iter().enumerate().map(|(k, v)| (*v, values.iter().map(|g| g[k].clone()).collect())).collect();
        let joined = nodes
            .iter()
            .flat_map(|n| n.inputs.iter().flatten())
            .any(|v| matches!(self.known.get(v), Some(Known::Joined(..))));
        if !joined && let Some(layouts) = self.plain(&nodes, &outputs, &own) {
            for (v, values) in own {
                if let Some(layout) = layouts.get(&v) {
                    self.learn(v, *layout, values);
                }
            }
            return Ok(());
        }
        for i in part {
            self.one(*i, &own)?;
        }
        Ok(())
    }

    /// The layouts of the outputs of nodes as they are, when all are usual ones.
    fn plain(
        &self,
        nodes: &[Node],
        outputs: &[ValueId],
        own: &HashMap<ValueId, Vec<Tensor>>,
    ) -> Option<HashMap<ValueId, Layout>> {
        let all = self.evaluate(nodes, outputs, &[self.of_all(nodes)]).ok()?.remove(0);
        let mut layouts = HashMap::new();
        for (v, all) in outputs.iter().zip(all) {
            let values = own.get(v)?;
            let layout = Layout::find(values, &all, self.groups, NODE_TOLERANCE)?;
            let rank = layout.rank(values.first()?.shape(), self.groups.size());
            (rank < 2).then(|| layouts.insert(*v, layout))?;
        }
        Some(layouts)
    }

    /// Takes one node, as it is or rewritten.
    fn one(&mut self, i: usize, own: &HashMap<ValueId, Vec<Tensor>>) -> Result<(), Failure> {
        let node = self.nodes[i].clone();
        let outputs = self.read_outputs(std::slice::from_ref(&node));
        let reads: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        if reads.iter().any(|v| matches!(self.known.get(v), Some(Known::Joined(..)))) {
            return self.join(&node, &outputs, own).map_err(|e| (e, reads));
        }
        let as_it_is = self.suits(std::slice::from_ref(&node), &outputs, own);
        let settled = !keeps_order(&node) && as_it_is.as_ref().is_ok_and(|form| form.rank.0 == 0);
        let (mut forms, failure) = match as_it_is {
            Ok(form) => (vec![form], None),
            Err(e) => (Vec::new(), Some(e)),
        };
        if !settled {
            let layouts = self.layouts();
            let around = Around { layouts: &layouts, shared: &self.shared, own: self.groups.size(), batch: self.batch };
            for nodes in candidates(self.graph, &node, &around) {
                if let Ok(form) = self.suits(&nodes, &outputs, own)
                    && !forms.iter().any(|f| f.layouts == form.layouts)
                {
                    forms.push(Form { nodes: Some(nodes), ..form });
                }
            }
        }
        forms.sort_by_key(|f| f.rank);
        let mut forms = VecDeque::from(forms);
        let Some(form) = forms.pop_front() else {
            if reduces(&node) && self.join(&node, &outputs, own).is_ok() {
                return Ok(());
            }
            let error = failure.unwrap_or_else(|| Error::new("it does not run at another size"));
            return Err((node.blame(error), reads));
        };
        let outputs: Vec<_> = outputs.into_iter().filter_map(|v| Some((v, own.get(&v)?.clone()))).collect();
        if !forms.is_empty() {
            let (known, replaced, joins) = (self.known.clone(), self.replaced.clone(), self.joins.clone());
            self.choices.push(Choice { node: i, rest: forms, outputs: outputs.clone(), known, replaced, joins });
        }
        self.take(i, form, outputs);
        Ok(())
    }

    /// The layouts known.
    fn layouts(&self) -> HashMap<ValueId, Layout> {
        let one = |(v, known): (&ValueId, &Known)| match known {
            Known::Batched(layout, _) => Some((*v, *layout)),
            Known::Joined(..) => None,
        };
        self.known.iter().filter_map(one).collect()
    }

    /// `nodes` as a form, when the `outputs` that they give hold every sample's own.
    fn suits(&self, nodes: &[Node], outputs: &[ValueId], own: &HashMap<ValueId, Vec<Tensor>>) -> Result<Form> {
        let count = self.groups.all.len();
        let all = self.evaluate(nodes, outputs, &[self.of_all(nodes)]);
        let all = all.map_err(|e| Error::new(format!("at another size it does not run ({})", e.cause())))?.remove(0);
        let (mut worst, mut layouts) = (0, Vec::new());
        for (v, all) in outputs.iter().zip(&all) {
            let values = own.get(v).map(Vec::as_slice).unwrap_or_default();
            let layout = Layout::find(values, all, self.groups, NODE_TOLERANCE).ok_or_else(|| {
                let shape = values.first().map(Tensor::shape).unwrap_or_default();
                Error::new(format!(
                    "for {count} samples it gives {:?}, which are not the samples' own {shape:?} put together",
                    all.shape()
                ))
            })?;
            worst = worst.max(layout.rank(values.first().map(Tensor::shape).unwrap_or_default(), self.groups.size()));
            layouts.push(layout);
        }
        Ok(Form { rank: (worst, layouts.first().map_or(0, |l| l.axis)), nodes: None, layouts })
    }

    /// Takes a node as it is whose outputs join the samples.
    fn join(&mut self, node: &Node, outputs: &[ValueId], own: &HashMap<ValueId, Vec<Tensor>>) -> Result<()> {
        let nodes = std::slice::from_ref(node);
        let all = self.evaluate(nodes, outputs, &[self.of_all(nodes)]).map_err(|e| node.blame(e))?.remove(0);
        self.joins.get_or_insert_with(|| node.clone());
        for (v, all) in outputs.iter().zip(all) {
            self.known.insert(*v, Known::Joined(own.get(v).cloned().unwrap_or_default(), all));
        }
        Ok(())
    }

    /// Takes a node that draws: as many draws as there are samples, each the mean.
    fn draws(&mut self, i: usize) {
        let node = self.nodes[i].clone();
        let Some((y, ty)) = node.output(0).and_then(|y| Some((y, self.graph[y].ty.clone()?))) else { return };
        let drawn = Tensor::full(ty.dtype, &ty.shape, mean(&node));
        if let Some(layout) = node.input(0).and_then(|x| self.layouts().get(&x).copied()) {
            self.known.insert(y, Known::Batched(layout, vec![drawn; self.groups.own.len()]));
            return;
        }
        let layouts = self.layouts();
        let around = Around { layouts: &layouts, shared: &self.shared, own: self.groups.size(), batch: self.batch };
        match noise(self.graph, &node, &around) {
            Some(nodes) => {
                self.known.insert(y, Known::Batched(Layout::FIRST, vec![drawn; self.groups.own.len()]));
                self.replaced.insert(i, nodes);
            }
            None => drop(self.shared.insert(y, drawn)),
        }
    }
}

/// Operators that may make one value of all samples on purpose, a loss say.
fn reduces(node: &Node) -> bool {
    node.domain.is_empty()
        && (node.op.starts_with("Reduce")
            || ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"].contains(&node.op.as_str()))
}
