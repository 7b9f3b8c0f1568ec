//! Layers that the dynamo exporter's optimizer has computed once for several, taken apart again.
//!
//! Of nodes with equal inputs it keeps one. Layers on the same input whose weights are still equal, such as two LayerNormalizations with
//! gains of one, or the zero-initialised modulations of all blocks, become one layer so, and would be trained as one. What is left of the
//! others is their names in the calls that read them: `%layer_norm_1`, where the file has `layer_norm` alone. A layer whose weights
//! are not all alike is really one that is applied twice.

use super::external::DataFiles;
use super::record::{Call, Record, number, stem};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Where a value is read: a node, by its place in the file, and the number of its input.
type Place = (usize, usize);

/// For a value, the places that read it by another name than its own, by that name and its number.
type Uses = BTreeMap<String, BTreeMap<(usize, String), Vec<Place>>>;

/// What the program calls a part of a result that has several.
const PART: &str = "getitem";

/// Takes the layers apart; says which it could not.
pub(super) fn split(graph: &mut GraphProto, record: &Record, files: &mut DataFiles) -> Vec<String> {
    if graph.node.iter().flat_map(|n| &n.attribute).any(|a| a.g.is_some()) {
        return Vec::new();
    }
    let program = Program::new(graph, record);
    let uses = program.uses();
    let (layers, unclear) = program.layers(&uses, files);
    let mut copies = Copies {
        program: &program,
        layers: &layers,
        names: HashMap::new(),
        nodes: HashMap::new(),
        tensors: Vec::new(),
    };
    let mut read: HashMap<Place, String> = HashMap::new();
    for (value, names) in &uses {
        for (k, places) in names.values().enumerate() {
            let name = copies.value(value, k);
            read.extend(places.iter().map(|place| (*place, name.clone())));
        }
    }
    let Copies { mut nodes, tensors, .. } = copies;
    let own = |n: &usize| format!("`{}`", program.graph.node[*n].output[0]);
    let notes = unclear.iter().map(own).map(|layer| {
        format!(
            "the exporter has computed {layer} once for several layers whose weights were equal, and it is trained as one; \
             torch.onnx.export(…, optimize=False) keeps them apart"
        )
    });
    let notes = notes.collect();
    graph.initializer.extend(tensors);
    let old = std::mem::take(&mut graph.node);
    for (n, mut node) in old.into_iter().enumerate() {
        for (slot, input) in node.input.iter_mut().enumerate() {
            if let Some(copy) = read.remove(&(n, slot)) {
                *input = copy;
            }
        }
        graph.node.push(node);
        graph.node.extend(nodes.remove(&n).into_iter().flatten());
    }
    notes
}

/// A file's nodes as the calls of the program that was exported.
struct Program<'a> {
    graph: &'a GraphProto,
    record: &'a Record,
    calls: Vec<Option<Call>>,
    /// The first node of the same call, for every node.
    layer: Vec<usize>,
    /// The nodes of the call that each node is the first of.
    nodes: Vec<Vec<usize>>,
    makers: HashMap<&'a str, usize>,
    stored: HashMap<&'a str, &'a TensorProto>,
    /// Names that something in the file has.
    known: HashSet<String>,
}

impl<'a> Program<'a> {
    fn new(graph: &'a GraphProto, record: &'a Record) -> Self {
        let calls: Vec<Option<Call>> = graph.node.iter().map(Call::of).collect();
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut layer = Vec::with_capacity(calls.len());
        for (n, call) in calls.iter().enumerate() {
            layer.push(call.as_ref().map_or(n, |c| *first.entry(&c.result).or_insert(n)));
        }
        let mut nodes = vec![Vec::new(); calls.len()];
        layer.iter().enumerate().for_each(|(n, l)| nodes[*l].push(n));
        let mut makers = HashMap::new();
        for (n, node) in graph.node.iter().enumerate() {
            makers.extend(node.output.iter().map(|o| (o.as_str(), n)));
        }
        let inputs = graph.input.iter().map(|i| i.name.clone());
        let known = calls.iter().flatten().map(|c| c.result.clone()).chain(makers.keys().map(|k| (*k).to_owned()));
        let known = known.chain(inputs).collect();
        let stored = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        Self { graph, record, layer, nodes, makers, stored, known, calls }
    }

    /// What readers call a value: the result of the call that made it, or of a node that no call made, as Split, one of its parts.
    fn called<'v>(&self, value: &'v str) -> Option<&'v str> {
        match &self.calls[*self.makers.get(value)?] {
            Some(call) => (call.result == value).then_some(value),
            None => Some(PART),
        }
    }

    fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for n in 0..self.graph.node.len() {
            for (slot, name) in self.other_names(n) {
                let value = self.graph.node[n].input[slot].clone();
                let name = (number(name), name.to_owned());
                uses.entry(value).or_default().entry(name).or_default().push((n, slot));
            }
        }
        for (value, names) in &mut uses {
            // The parts of a Split have their names from the calls alone: the first is their own.
            if self.called(value) == Some(PART) {
                names.pop_first();
            }
        }
        uses.retain(|_, names| !names.is_empty());
        uses
    }

    /// The inputs of a node that its call calls by names that nothing in the file has, and these names.
    fn other_names(&self, n: usize) -> Vec<(usize, &str)> {
        let Some(call) = &self.calls[n] else { return Vec::new() };
        let (mut names, mut slots): (Vec<&str>, Vec<usize>) = (call.values().collect(), Vec::new());
        for (slot, input) in self.graph.node[n].input.iter().enumerate() {
            match (self.called(input), names.iter().position(|name| name == input)) {
                (_, Some(own)) => drop(names.remove(own)),
                (Some(_), None) => slots.push(slot),
                (None, None) => {}
            }
        }
        names.retain(|name| !self.known.contains(*name));
        let kind = |slot: &usize| self.called(&self.graph.node[n].input[*slot]).map(stem);
        let mut found = Vec::new();
        for slot in &slots {
            let alike: Vec<&usize> = slots.iter().filter(|s| kind(s) == kind(slot)).collect();
            let meant: Vec<&str> = names.iter().copied().filter(|name| kind(slot) == Some(stem(name))).collect();
            let place = alike.iter().position(|s| *s == slot).filter(|_| alike.len() == meant.len());
            found.extend(place.map(|place| (*slot, meant[place])));
        }
        found
    }

    /// The parameters and statistics that a layer reads.
    fn weights(&self, layer: usize) -> impl Iterator<Item = &'a TensorProto> {
        let names = self.nodes[layer].iter().flat_map(|n| &self.graph.node[*n].input);
        names.filter(|i| self.record.kind(i).is_some()).filter_map(|i| self.stored.get(i.as_str()).copied())
    }

    /// The layers with weights that a value comes from by way of nodes without any.
    fn behind(&self, value: &str) -> Vec<usize> {
        let (mut found, mut seen, mut todo) = (Vec::new(), HashSet::new(), vec![value]);
        while let Some(n) = todo.pop().and_then(|v| self.makers.get(v)) {
            if !seen.insert(*n) {
                continue;
            }
            let layer = self.layer[*n];
            if self.weights(layer).next().is_none() {
                todo.extend(
                    self.graph.node[*n].input.iter().map(String::as_str).filter(|v| self.makers.contains_key(v)),
                );
            } else if !found.contains(&layer) {
                found.push(layer);
            }
        }
        found
    }

    /// How many calls of the program with names like this one are not in the file.
    fn gaps(&self, name: &str, uses: &Uses) -> usize {
        let read = uses.values().flat_map(|names| names.keys().map(|(_, name)| name.as_str()));
        let results = self.calls.iter().flatten().map(|c| c.result.as_str());
        let last = read.chain(results.clone()).filter(|r| stem(r) == stem(name)).map(number).max().unwrap_or(0);
        let there: HashSet<usize> = results.filter(|r| stem(r) == stem(name)).map(number).collect();
        (0..=last).filter(|k| !there.contains(k)).count()
    }

    /// The layers that stand for several, and those for which it is not clear how many, or which of their readers read which.
    fn layers(&self, uses: &Uses, files: &mut DataFiles) -> (HashSet<usize>, Vec<usize>) {
        let mut read: BTreeMap<usize, Vec<(usize, bool)>> = BTreeMap::new();
        for (value, names) in uses {
            let own = self.makers.get(value.as_str()).map(|n| self.layer[*n]);
            for layer in self.behind(value) {
                read.entry(layer).or_default().push((names.len(), own == Some(layer)));
            }
        }
        let mut uniform = |t: &TensorProto| files.read(t).is_ok_and(|t| t.uniform().is_some());
        read.retain(|layer, _| self.weights(*layer).all(&mut uniform));
        let (mut layers, mut unclear, mut further) = (HashSet::new(), Vec::new(), BTreeMap::new());
        for (layer, counts) in &read {
            if !counts.iter().all(|(n, _)| *n == counts[0].0) {
                unclear.push(*layer);
            } else if counts.iter().any(|(_, own)| *own) {
                layers.insert(*layer);
            } else if let Some(call) = &self.calls[*layer] {
                // Its own name is read nowhere: it may be that a step after it alone was computed once.
                let of_kind: &mut (usize, Vec<usize>) = further.entry(stem(&call.result)).or_default();
                of_kind.0 += counts[0].0;
                of_kind.1.push(*layer);
            }
        }
        for (kind, (copies, some)) in further {
            let certain = |l: &&usize| self.calls[**l].as_ref().is_some_and(|c| stem(&c.result) == kind);
            let taken: usize = layers.iter().filter(certain).map(|l| read[l][0].0).sum();
            if copies + taken <= self.gaps(kind, uses) {
                layers.extend(some);
            }
        }
        (layers, unclear)
    }
}

/// What is made again for the layers whose calls are not in the file.
struct Copies<'a> {
    program: &'a Program<'a>,
    layers: &'a HashSet<usize>,
    /// The names of copied values.
    names: HashMap<(String, usize), String>,
    /// By the node that they are copies of.
    nodes: HashMap<usize, Vec<NodeProto>>,
    tensors: Vec<TensorProto>,
}

impl Copies<'_> {
    /// The value of the `k`th other layer that stands in the place of `value`.
    fn value(&mut self, value: &str, k: usize) -> String {
        if let Some(name) = self.names.get(&(value.to_owned(), k)) {
            return name.clone();
        }
        let Some(&n) = self.program.makers.get(value) else { return value.to_owned() };
        let layer = self.program.layer[n];
        let is_copied = self.layers.contains(&layer);
        let node = &self.program.graph.node[n];
        let mut inputs = node.input.clone();
        if is_copied {
            for input in &mut inputs {
                if self.program.makers.get(input.as_str()).is_some_and(|m| self.program.layer[*m] == layer) {
                    *input = self.value(input, k);
                } else {
                    *input = self.tensor(input, k);
                }
            }
        } else if self.program.weights(layer).next().is_none() {
            inputs.iter_mut().for_each(|i| *i = self.value(i, k));
        }
        if inputs == node.input {
            return value.to_owned();
        }
        let output: Vec<String> = node.output.iter().map(|o| copied(o, k)).collect();
        self.names.extend(node.output.iter().map(|o| ((o.clone(), k), copied(o, k))));
        let name = copied(&node.name, k);
        let copy = NodeProto { name, input: inputs, output, metadata_props: Vec::new(), ..node.clone() };
        self.nodes.entry(n).or_default().push(copy);
        copied(value, k)
    }

    /// The weight of the `k`th other layer that stands in the place of `name`; what is no weight stays.
    fn tensor(&mut self, name: &str, k: usize) -> String {
        let (Some(tensor), Some(kind)) = (self.program.stored.get(name), self.program.record.kind(name)) else {
            return name.to_owned();
        };
        let copy = copied(name, k);
        if !self.tensors.iter().any(|t| t.name == copy) {
            self.tensors.push(kind.mark(TensorProto { name: copy.clone(), ..(*tensor).clone() }));
        }
        copy
    }
}

/// The name of the `k`th copy: `n.weight/2` is the first.
fn copied(name: &str, k: usize) -> String {
    format!("{name}/{}", k + 2)
}
