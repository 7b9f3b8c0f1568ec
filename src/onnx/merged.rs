//! Exporters merge initializers of equal value, so that all zero biases and all unit gains of a fresh network become one tensor each,
//! running statistics included. Here the places that read a stored tensor are told apart again.
//!
//! Two places read one parameter if one layer is applied several times, or if weights are tied on purpose; otherwise they read tensors that
//! were equal by accident. Random values are never equal by accident, but those of a layer and of its deep copy are; equal elements tell nothing. What tells more, from the surest on:
//!
//! - TorchScript leaves an `Identity` with the own name of each merged tensor.
//! - An exporter records the call that each node was made of, with its arguments.
//! - An exporter records the module of each node. Places in different modules read different tensors.
//! - Of one layer applied twice, what comes before or after is one layer applied twice, too: the nearest weight on the way is the same.

use super::record::{Argument, Record};
use crate::ir::{Attr, Graph, NodeId, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// A place where a node reads a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    /// The node.
    pub node: NodeId,
    /// Its input.
    pub slot: usize,
    /// Outputs of the `Identity` nodes between the two, outermost first.
    pub through: Vec<String>,
}

/// Nodes looked at on the way to the nearest weight.
const REACH: usize = 64;

/// Tells the places apart that read one stored tensor.
pub(super) struct Merged<'a> {
    pub graph: &'a Graph,
    pub record: &'a Record,
    pub readers: HashMap<ValueId, Vec<NodeId>>,
    pub producers: HashMap<ValueId, NodeId>,
    /// Values that depend on the values of inputs.
    pub data: HashSet<ValueId>,
    /// Whether the network was exported before training: some normalization has a gain of ones.
    fresh: bool,
}

impl<'a> Merged<'a> {
    /// For the tensors of `graph`, in which what follows from the values of `inputs` is data.
    pub(super) fn new(graph: &'a Graph, record: &'a Record, inputs: impl Iterator<Item = ValueId>) -> Self {
        let gain = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() > 1 && t.uniform() == Some(1.0));
        let producers = graph.producers();
        let source = |v: Option<ValueId>| v.map(|v| behind_identities(graph, &producers, v));
        let ones = |n: &crate::ir::Node| n.op.ends_with("Normalization") && source(n.input(1)).is_some_and(gain);
        let fresh = graph.nodes.iter().any(ones);
        let (data, readers) = (graph.data(inputs), graph.readers());
        Self { graph, record, readers, producers, data, fresh }
    }

    /// The places that read `v`, directly or through `Identity` nodes.
    pub(super) fn sites(&self, v: ValueId) -> Vec<Site> {
        let mut found = Vec::new();
        let mut todo = vec![(v, Vec::new())];
        let mut seen = HashSet::new();
        while let Some((v, through)) = todo.pop() {
            if !seen.insert(v) {
                continue;
            }
            let mut nodes = self.readers.get(&v).cloned().unwrap_or_default();
            nodes.dedup();
            for n in nodes {
                let node = &self.graph.nodes[n];
                for slot in (0..node.inputs.len()).filter(|s| node.input(*s) == Some(v)) {
                    match node.output(0) {
                        Some(out) if node.is("Identity") && !self.graph.outputs.contains(&out) => {
                            todo.push((out, [through.clone(), vec![self.graph[out].name.clone()]].concat()));
                        }
                        _ => found.push(Site { node: n, slot, through: through.clone() }),
                    }
                }
            }
        }
        found.sort();
        found
    }

    /// The places that read `v`, by the parameter that they read.
    pub(super) fn groups(&self, v: ValueId) -> Vec<Vec<Site>> {
        let sites = self.sites(v);
        let uniform = self.graph.constant(v).is_some_and(|t| t.uniform().is_some());
        if sites.len() < 2 {
            return if sites.is_empty() { Vec::new() } else { vec![sites] };
        }
        let named = sites.iter().any(|s| !s.through.is_empty());
        let own = &self.graph[v].name;
        let names: Vec<&str> = sites.iter().map(|s| s.through.last().unwrap_or(own).as_str()).collect();
        let contexts: Vec<Context> = sites.iter().map(|s| self.context(v, s)).collect();
        let same = |a: usize, b: usize| {
            let (x, y) = (&contexts[a], &contexts[b]);
            if let (Some(x), Some(y)) = (&x.argument, &y.argument) {
                return x == y;
            }
            match (named, uniform) {
                (true, true) => names[a] == names[b],
                (false, _) if self.record.is_whole(own) => true,
                // TorchScript numbers folded weights; what tells these apart is who reads them.
                (true, false) if !is_numbered(names[a]) => !differ_in_numbers(names[a], names[b]),
                (false, true) => x.is_again(y),
                (_, false) => !(self.fresh && x.is_copy_of(y)),
            }
        };
        let mut parent: Vec<usize> = (0..sites.len()).collect();
        for b in 0..sites.len() {
            for a in 0..b {
                if same(a, b) {
                    let (x, y) = (root(&parent, a), root(&parent, b));
                    parent[y.max(x)] = y.min(x);
                }
            }
        }
        let mut groups: BTreeMap<usize, Vec<Site>> = BTreeMap::new();
        for (i, site) in sites.into_iter().enumerate() {
            groups.entry(root(&parent, i)).or_default().push(site);
        }
        groups.into_values().collect()
    }

    /// What was read at a place in the program that was exported.
    pub(super) fn argument(&self, site: &Site) -> Option<Argument> {
        let node = &self.graph.nodes[site.node];
        let first = node.outputs.iter().flatten().next()?;
        self.record.argument(&self.graph[*first].name, &node.op, site.slot)
    }

    fn context(&self, v: ValueId, site: &Site) -> Context<'a> {
        let node = &self.graph.nodes[site.node];
        let first = node.outputs.iter().flatten().next();
        let module = first.and_then(|o| self.record.module(&self.graph[*o].name));
        let others = (0..node.inputs.len()).filter(|s| *s != site.slot).filter_map(|s| node.input(s));
        let data = others.filter(|o| self.data.contains(o)).collect();
        Context {
            op: &node.op,
            slot: site.slot,
            module,
            argument: self.argument(site),
            data,
            before: self.nearest(v, site.node, Way::Before),
            after: self.nearest(v, site.node, Way::After),
        }
    }

    /// The nearest weight before or after a node, with the operators on the way to it.
    fn nearest(&self, merged: ValueId, from: NodeId, way: Way) -> Option<(ValueId, Vec<String>)> {
        let mut todo = VecDeque::from([(from, Vec::new())]);
        let mut seen = HashSet::from([from]);
        while let Some((n, path)) = todo.pop_front() {
            let node = &self.graph.nodes[n];
            if (n != from || way == Way::Before)
                && let Some(weight) = node.inputs.iter().flatten().find_map(|v| self.weight(*v, merged))
            {
                return Some((weight, path));
            }
            if seen.len() > REACH {
                return None;
            }
            let next: Vec<(NodeId, usize)> = match way {
                Way::Before => {
                    let made = |v: &ValueId| {
                        let n = *self.producers.get(v)?;
                        let output = self.graph.nodes[n].outputs.iter().position(|o| *o == Some(*v))?;
                        (!self.graph.nodes[n].is("Identity")).then_some((n, output))
                    };
                    node.inputs.iter().flatten().filter_map(made).collect()
                }
                Way::After => {
                    let read = |(i, v): (usize, &ValueId)| {
                        self.readers.get(v).into_iter().flatten().map(move |n| (*n, i)).collect::<Vec<_>>()
                    };
                    node.outputs.iter().flatten().enumerate().flat_map(read).collect()
                }
            };
            for (m, output) in next {
                if seen.insert(m) {
                    let step = self.step(if way == Way::Before { m } else { n }, output);
                    todo.push_back((m, [path.clone(), vec![step]].concat()));
                }
            }
        }
        None
    }

    /// A stored tensor whose elements vary, behind `Identity` nodes or a transposition.
    fn weight(&self, v: ValueId, merged: ValueId) -> Option<ValueId> {
        let mut v = behind_identities(self.graph, &self.producers, v);
        if let Some(node) = self.producers.get(&v).map(|n| &self.graph.nodes[*n]).filter(|n| n.is("Transpose")) {
            v = node.input(0).map_or(v, |x| behind_identities(self.graph, &self.producers, x));
        }
        let varied = |t: &crate::ir::Tensor| t.dtype().is_float() && t.len() > 1 && t.uniform().is_none();
        self.graph.constant(v).filter(|t| v != merged && varied(t)).map(|_| v)
    }

    /// An operator on the way: what it is, which of its outputs, and small integers that it reads, such as the bounds of a slice.
    fn step(&self, n: NodeId, output: usize) -> String {
        let node = &self.graph.nodes[n];
        let small = |v: &ValueId| self.graph.constant(*v).filter(|t| t.len() <= 8).and_then(|t| t.to_i64());
        let read: Vec<Vec<i64>> = node.inputs.iter().flatten().filter_map(small).collect();
        let attrs: Vec<String> =
            node.attrs.iter().filter(|(_, a)| !matches!(a, Attr::Graph(_))).map(|(k, a)| format!("{k}={a}")).collect();
        format!("{}:{output}{read:?}{attrs:?}", node.qualified())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Before,
    After,
}

/// What is known about a place.
struct Context<'a> {
    op: &'a str,
    slot: usize,
    module: Option<&'a str>,
    argument: Option<Argument>,
    /// What else the node reads of what depends on inputs.
    data: Vec<ValueId>,
    before: Option<(ValueId, Vec<String>)>,
    after: Option<(ValueId, Vec<String>)>,
}

impl Context<'_> {
    /// Whether one layer, applied again, reads one tensor in both places.
    fn is_again(&self, other: &Self) -> bool {
        // What is applied twice to one value would give one value.
        let alike = self.op == other.op && self.slot == other.slot && self.data != other.data;
        // One number may be read together with data and, apart from them, by what computes with constants: GeM's x^p and 1/p.
        let constant = [self, other].map(|c| c.data.is_empty());
        let modules = [self, other].map(|c| c.module.map(repeated));
        let computed =
            modules[0] == modules[1] && (constant[0] != constant[1] || constant == [true; 2] && self.module.is_some());
        let apart = modules[0].zip(modules[1]).is_some_and(|(a, b)| a != b);
        let near =
            self.before.is_some() && self.before == other.before || self.after.is_some() && self.after == other.after;
        computed || alike && !apart && near
    }

    /// Whether one place is in a module and the other in its deep copy.
    fn is_copy_of(&self, other: &Self) -> bool {
        let modules = self.module.zip(other.module);
        self.op == other.op && self.slot == other.slot && modules.is_some_and(|(a, b)| differ_in_numbers(a, b))
    }
}

/// A module's path without the number that a tracer appends where it is applied again: `norm_1`, `norm@1`.
fn repeated(module: &str) -> &str {
    let digits = module.trim_end_matches(|c: char| c.is_ascii_digit());
    digits.strip_suffix(['_', '@']).filter(|_| digits.len() < module.len()).unwrap_or(module)
}

/// Whether two paths differ, but only in the numbers of layers.
fn differ_in_numbers(a: &str, b: &str) -> bool {
    let shape = |s: &str| -> Vec<String> {
        s.split('.').map(|p| if p.parse::<usize>().is_ok() { "#".into() } else { p.to_owned() }).collect()
    };
    a != b && shape(a) == shape(b)
}

/// Whether TorchScript numbered it, as it does with folded weights; their names say nothing about modules.
fn is_numbered(name: &str) -> bool {
    name.starts_with("onnx::")
}

fn behind_identities(graph: &Graph, producers: &HashMap<ValueId, NodeId>, mut v: ValueId) -> ValueId {
    while let Some(node) = producers.get(&v).map(|n| &graph.nodes[*n]).filter(|n| n.is("Identity")) {
        let Some(x) = node.input(0) else { break };
        v = x;
    }
    v
}

fn root(parent: &[usize], mut i: usize) -> usize {
    while parent[i] != i {
        i = parent[i];
    }
    i
}
