//! The walk through a graph that finds what has to be rewritten for another batch size, and by what.

use super::layout::{Groups, Layout};
use super::proof::{NODE_TOLERANCE, spread};
use super::rewrite::{Around, Nodes, candidates, keeps_order, noise};
use super::samples::{Samples, is_random, mean};
use super::{Evaluator, LARGE, encode};
use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Graph, Node, Source, Tensor, ValueId};
use crate::onnx::{Weights, emit};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// How much a value has to differ between samples, relative to its largest element, to tell them apart.
const TELLING: f64 = 0.01;

/// Nodes that run together as long as nothing stands in their way.
const PART: usize = 16;

/// What is known of a value that depends on the batch.
#[derive(Clone)]
enum Known {
    /// Where the batch is, and the value for each group.
    Batched(Layout, Vec<Tensor>),
    /// One that joins the samples; for each group, and for all.
    Joined(Vec<Tensor>, Tensor),
}

/// The walk: what is known so far, and what was decided.
pub(super) struct Walk<'a> {
    graph: &'a mut Graph,
    nodes: &'a [Node],
    groups: &'a Groups,
    run: &'a dyn Evaluator,
    batch: ValueId,
    known: HashMap<ValueId, Known>,
    shared: HashMap<ValueId, Tensor>,
    last_read: HashMap<ValueId, usize>,
    pub replaced: BTreeMap<usize, Nodes>,
    /// The first node whose output joins samples.
    pub joins: Option<Node>,
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
pub(super) type Failure = (Error, Vec<ValueId>);

impl<'a> Walk<'a> {
    pub fn new(
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
    pub fn go(&mut self, start: usize) -> Result<(), Failure> {
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
    pub fn back(&mut self, concerned: impl Fn(usize) -> bool) -> Option<usize> {
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
        let reads = nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        let joined = reads.clone().any(|v| matches!(self.known.get(v), Some(Known::Joined(..))));
        let own = self.own(&nodes, &outputs).map_err(|e| (e, reads.copied().collect()))?;
        if !joined && let Some(layouts) = self.plain(&nodes, &outputs, &own) {
            for (v, values) in own {
                if let Some(layout) = layouts.get(&v) {
                    self.learn(v, *layout, values);
                }
            }
            return Ok(());
        }
        part.iter().try_for_each(|i| self.one(*i))
    }

    /// What `nodes` give for `outputs`, by group.
    fn own(&self, nodes: &[Node], outputs: &[ValueId]) -> Result<HashMap<ValueId, Vec<Tensor>>> {
        let values = self.evaluate(nodes, outputs, &self.of_groups(nodes))?;
        let of = |k: usize| values.iter().map(|g| g[k].clone()).collect();
        Ok(outputs.iter().enumerate().map(|(k, v)| (*v, of(k))).collect())
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
    fn one(&mut self, i: usize) -> Result<(), Failure> {
        let node = self.nodes[i].clone();
        let outputs = self.read_outputs(std::slice::from_ref(&node));
        let reads: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let own = &self.own(std::slice::from_ref(&node), &outputs).map_err(|e| (e, reads.clone()))?;
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
