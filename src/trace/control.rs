//! Control flow and sequences, resolved: branches with a known condition, loops with a known number of rounds, and lists of tensors whose
//! length is known are written out as plain nodes.
//!
//! What is known is what folding made constant. One call resolves what it can; what that brings to light, the next one does.

use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, Body, DType, Declared, Graph, Node, Source, Tensor, ValueId};
use std::collections::{HashMap, HashSet};

/// More nodes than an unrolled loop may become.
const MAX_NODES: usize = 200_000;

/// Operators that make a list of tensors.
const SEQUENCES: &[&str] =
    &["SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SplitToSequence", "SequenceMap"];

/// The values of `graph` that hold no tensor but a list of them, or an optional value.
pub(super) fn sequences(graph: &Graph) -> HashSet<ValueId> {
    let mut found = HashSet::new();
    collect_sequences(graph, &mut found);
    found
}

fn collect_sequences(graph: &Graph, found: &mut HashSet<ValueId>) {
    for node in &graph.nodes {
        if !node.domain.is_empty() {
            continue;
        }
        let at = |i: usize| node.input(i).is_some_and(|v| found.contains(&v));
        let states = match node.op.as_str() {
            op if SEQUENCES.contains(&op) || op == "Optional" => node.outputs.len(),
            "Identity" => usize::from(at(0)),
            "OptionalGetElement" => 0,
            _ => 0,
        };
        let mut new: Vec<ValueId> = node.outputs[..states].iter().flatten().copied().collect();
        // What a body makes of the lists passed to it.
        for body in node.bodies().filter(|_| node.op != "SequenceMap") {
            let formal = body.graph.inputs.len() - body.captured;
            let declared = node.inputs.len() - body.captured;
            let mut inside = HashSet::new();
            for (k, v) in body.graph.inputs.iter().enumerate() {
                let outer = if k < formal { k } else { declared + k - formal };
                let passed = if node.op == "If" && k < formal { None } else { node.input(outer) };
                if passed.is_some_and(|v| found.contains(&v)) {
                    inside.insert(*v);
                }
            }
            collect_sequences(&body.graph, &mut inside);
            let skip = usize::from(node.op == "Loop");
            let made = body.graph.outputs.iter().skip(skip).zip(&node.outputs);
            new.extend(made.filter(|(inner, _)| inside.contains(inner)).filter_map(|(_, outer)| *outer));
        }
        found.extend(new);
    }
}

/// Resolves what can be in `graph`; `folded` is the same graph with its constants folded. Whether anything was resolved.
///
/// # Errors
/// A loop that would become too large, or malformed control flow.
pub(super) fn resolve(graph: &mut Graph, folded: &Graph) -> Result<bool> {
    let alive: HashSet<ValueId> = folded.nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
    let mut pass = Pass { graph, folded, lists: HashMap::new(), changed: false };
    for node in std::mem::take(&mut pass.graph.nodes) {
        let live = node.outputs.iter().flatten().any(|v| alive.contains(v));
        let listed = node.domain.is_empty() && (live || SEQUENCES.contains(&node.op.as_str()));
        let done = listed && pass.visit(&node).map_err(|e| node.blame(e))?;
        if done {
            pass.changed = true;
        } else {
            pass.graph.nodes.push(node);
        }
    }
    let changed = pass.changed;
    graph.check()?;
    Ok(changed)
}

/// Why a control-flow node is still there once nothing more can be resolved.
pub(super) fn unresolved(graph: &Graph) -> Result<()> {
    let lists = sequences(graph);
    let stuck = graph.nodes.iter().find(|n| n.outputs.iter().flatten().any(|v| lists.contains(v)));
    match stuck {
        None => Ok(()),
        Some(node) => Err(node.blame(
            Error::new("it makes a list of tensors whose length or use depends on data")
                .hint("export the model with fixed shapes, or without the list"),
        )),
    }
}

struct Pass<'a> {
    graph: &'a mut Graph,
    folded: &'a Graph,
    /// Lists of tensors whose elements are known.
    lists: HashMap<ValueId, Vec<ValueId>>,
    changed: bool,
}

impl Pass<'_> {
    fn constant(&self, v: ValueId) -> Option<Tensor> {
        self.graph.constant(v).or_else(|| self.folded.constant(v)).cloned()
    }

    fn int(&self, v: ValueId) -> Option<i64> {
        self.constant(v)?.to_i64()?.first().copied()
    }

    fn list(&self, node: &Node, i: usize) -> Option<Vec<ValueId>> {
        self.lists.get(&node.input(i)?).cloned()
    }

    /// Whether the node was replaced; if not it stays.
    fn visit(&mut self, node: &Node) -> Result<bool> {
        match node.op.as_str() {
            "If" => self.branch(node),
            "Loop" => self.unroll_loop(node),
            "Scan" => self.unroll_scan(node),
            "SequenceMap" => self.map(node),
            _ => Ok(self.sequence(node).unwrap_or(false)),
        }
    }

    /// Takes note of a list, or replaces what reads one; `None` where something is not known.
    fn sequence(&mut self, node: &Node) -> Option<bool> {
        let y = node.output(0)?;
        let place =
            |position: i64, n: usize| usize::try_from(if position < 0 { position + n as i64 } else { position });
        match node.op.as_str() {
            "SequenceEmpty" => drop(self.lists.insert(y, Vec::new())),
            "SequenceConstruct" => drop(self.lists.insert(y, node.inputs.iter().flatten().copied().collect())),
            "SequenceInsert" => {
                let mut list = self.list(node, 0)?;
                let at = match node.input(2) {
                    Some(v) => place(self.int(v)?, list.len()).ok()?,
                    None => list.len(),
                };
                (at <= list.len()).then(|| list.insert(at, node.inputs[1].unwrap_or(y)))?;
                self.lists.insert(y, list);
            }
            "SequenceErase" => {
                let mut list = self.list(node, 0)?;
                let at = match node.input(1) {
                    Some(v) => place(self.int(v)?, list.len()).ok()?,
                    None => list.len().checked_sub(1)?,
                };
                (at < list.len()).then(|| list.remove(at))?;
                self.lists.insert(y, list);
            }
            "SplitToSequence" if !self.lists.contains_key(&y) => return self.split(node, y),
            "Identity" => {
                let list = self.list(node, 0)?;
                self.lists.insert(y, list);
            }
            "SequenceAt" => {
                let list = self.list(node, 0)?;
                let at = place(self.int(node.input(1)?)?, list.len()).ok()?;
                self.copy(*list.get(at)?, y);
                return Some(true);
            }
            "SequenceLength" => {
                let n = self.list(node, 0)?.len();
                self.graph.set_source(y, Source::Constant(Tensor::scalar(DType::I64, n as f64)));
                return Some(true);
            }
            "ConcatFromSequence" => {
                let mut list = self.list(node, 0)?;
                let axis = attr_int(node, "axis", 0);
                if attr_int(node, "new_axis", 0) != 0 {
                    list = list.into_iter().map(|v| self.unsqueeze(v, axis)).collect();
                }
                if list.is_empty() {
                    return None;
                }
                self.push("Concat", &list, &[("axis", Attr::Int(axis))], &[y]);
                return Some(true);
            }
            // An optional value that is there is that value.
            "Optional" => drop(self.lists.insert(y, vec![node.input(0)?])),
            "OptionalGetElement" => {
                let x = node.input(0)?;
                let inner = self.lists.get(&x).and_then(|l| l.first().copied()).unwrap_or(x);
                self.copy(inner, y);
                return Some(true);
            }
            "OptionalHasElement" => {
                let known = node.input(0).is_none_or(|x| self.lists.contains_key(&x) || self.folded[x].ty.is_some());
                known.then_some(())?;
                let there = f64::from(u8::from(node.input(0).is_some()));
                self.graph.set_source(y, Source::Constant(Tensor::scalar(DType::Bool, there)));
                return Some(true);
            }
            _ => {}
        }
        Some(false)
    }

    fn split(&mut self, node: &Node, y: ValueId) -> Option<bool> {
        let x = node.input(0)?;
        let shape = self.folded[x].ty.as_ref()?.shape.clone();
        let axis = attr_int(node, "axis", 0).rem_euclid(shape.len().max(1) as i64);
        let size = *shape.get(axis as usize)?;
        let sizes: Vec<i64> = match node.input(1) {
            None => vec![1; size],
            Some(v) => {
                let given = self.constant(v)?;
                let values = given.to_i64()?;
                match (given.shape(), values.as_slice()) {
                    ([], [chunk]) if *chunk > 0 => {
                        let chunk = *chunk as usize;
                        (0..size).step_by(chunk).map(|at| chunk.min(size - at) as i64).collect()
                    }
                    _ => values,
                }
            }
        };
        if sizes.is_empty() {
            return None;
        }
        let split = self.ints(&sizes);
        let name = self.graph[y].name.clone();
        let mut parts: Vec<ValueId> =
            (0..sizes.len()).map(|i| self.graph.add_value(&format!("{name}/{i}"), None, Source::Node)).collect();
        self.push("Split", &[x, split], &[("axis", Attr::Int(axis))], &parts);
        if node.input(1).is_none() && attr_int(node, "keepdims", 1) == 0 {
            let axes = self.ints(&[axis]);
            parts = parts.into_iter().map(|v| self.made("Squeeze", &[v, axes], &[])).collect();
        }
        self.push("SequenceConstruct", &parts, &[], &[y]);
        self.lists.insert(y, parts);
        Some(true)
    }

    fn branch(&mut self, node: &Node) -> Result<bool> {
        let condition = node.input(0).and_then(|v| self.constant(v));
        let Some(condition) = condition.and_then(|t| t.to_f64().first().copied()) else { return Ok(false) };
        let name = if condition == 0.0 { "else_branch" } else { "then_branch" };
        let Some(Attr::Graph(body)) = node.attrs.get(name) else { crate::bail!("it has no `{name}`") };
        let captured: Vec<_> = node.inputs[node.inputs.len() - body.captured..].to_vec();
        let results = self.splice(body, &captured, &node.name)?;
        self.outputs(node, results);
        Ok(true)
    }

    fn unroll_loop(&mut self, node: &Node) -> Result<bool> {
        let Some(Attr::Graph(body)) = node.attrs.get("body") else { crate::bail!("it has no `body`") };
        let body = body.clone();
        let condition = match node.input(1) {
            None => Some(1.0),
            Some(v) => self.constant(v).and_then(|t| t.to_f64().first().copied()),
        };
        let rounds = node.input(0).and_then(|v| self.int(v));
        let (Some(condition), Some(rounds)) = (condition, rounds) else { return Ok(false) };
        let rounds = if condition == 0.0 { 0 } else { rounds.max(0) as usize };
        let states = body.graph.inputs.len().saturating_sub(2 + body.captured);
        let scanned = body.graph.outputs.len().saturating_sub(1 + states);
        if !self.goes_on(node, &body) || (rounds == 0 && scanned > 0) {
            return Ok(false);
        }
        fits(rounds, &body)?;
        let declared = node.inputs.len() - body.captured;
        let (mut current, captured) = (node.inputs[2..declared].to_vec(), node.inputs[declared..].to_vec());
        let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); scanned];
        let yes = self.filled(DType::Bool, body.counter_rank(1), 1.0);
        for round in 0..rounds {
            let number = self.filled(DType::I64, body.counter_rank(0), round as f64);
            let passed = [&[Some(number), Some(yes)], current.as_slice(), &captured].concat();
            let results = self.splice(&body, &passed, &format!("{}/{round}", node.name))?;
            current = results[1..=states].iter().copied().map(Some).collect();
            for (all, one) in collected.iter_mut().zip(&results[1 + states..]) {
                let one = self.unsqueeze(*one, 0);
                all.push(one);
            }
        }
        let mut results: Vec<ValueId> = current.into_iter().flatten().collect();
        for all in collected {
            results.push(self.made("Concat", &all, &[("axis", Attr::Int(0))]));
        }
        self.outputs(node, results);
        Ok(true)
    }

    /// Whether the body of a loop hands its condition on, or always says yes.
    fn goes_on(&self, node: &Node, body: &Body) -> bool {
        let inner = &body.graph;
        let (Some(mut v), Some(condition)) = (inner.outputs.first().copied(), inner.inputs.get(1).copied()) else {
            return false;
        };
        while v != condition {
            let place = inner.inputs.iter().position(|input| *input == v);
            let around = place.and_then(|i| i.checked_sub(inner.inputs.len() - body.captured));
            let outer = around.and_then(|i| node.input(node.inputs.len() - body.captured + i));
            if let Some(t) = inner.constant(v).cloned().or_else(|| self.constant(outer?)) {
                return t.uniform().is_some_and(|c| c != 0.0);
            }
            let copy = |n: &&Node| n.output(0) == Some(v) && (n.is("Identity") || n.is("Cast"));
            match inner.nodes.iter().find(copy).and_then(|n| n.input(0)) {
                Some(before) => v = before,
                None => return false,
            }
        }
        true
    }

    fn unroll_scan(&mut self, node: &Node) -> Result<bool> {
        let Some(Attr::Graph(body)) = node.attrs.get("body") else { crate::bail!("it has no `body`") };
        let body = body.clone();
        let declared = node.inputs.len() - body.captured;
        let read = attr_int(node, "num_scan_inputs", 1).max(0) as usize;
        let states = declared.saturating_sub(read);
        let scanned = body.graph.outputs.len().saturating_sub(states);
        let captured = node.inputs[declared..].to_vec();
        let list = |name: &str, n: usize| match node.attrs.get(name) {
            Some(Attr::Ints(v)) if v.len() == n => v.clone(),
            _ => vec![0; n],
        };
        let (axes, backwards) = (list("scan_input_axes", read), list("scan_input_directions", read));
        let (out_axes, out_backwards) = (list("scan_output_axes", scanned), list("scan_output_directions", scanned));
        let (mut rounds, mut places) = (None, Vec::new());
        for (x, axis) in node.inputs[states..declared].iter().zip(&axes) {
            let Some(x) = x else { crate::bail!("an input to scan is missing") };
            let Some(ty) = self.folded[*x].ty.clone() else { return Ok(false) };
            let axis = axis.rem_euclid(ty.shape.len().max(1) as i64);
            rounds = rounds.or(ty.shape.get(axis as usize).copied());
            places.push((*x, axis));
        }
        let Some(rounds) = rounds.filter(|n| *n > 0) else { return Ok(false) };
        fits(rounds, &body)?;
        let mut current = node.inputs[..states].to_vec();
        let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); scanned];
        for round in 0..rounds {
            let mut passed = current.clone();
            for ((x, axis), backwards) in places.iter().zip(&backwards) {
                let at = if *backwards == 0 { round } else { rounds - 1 - round };
                let at = self.scalar(DType::I64, at as f64);
                passed.push(Some(self.made("Gather", &[*x, at], &[("axis", Attr::Int(*axis))])));
            }
            passed.extend(&captured);
            let results = self.splice(&body, &passed, &format!("{}/{round}", node.name))?;
            current = results[..states].iter().copied().map(Some).collect();
            for (i, one) in results[states..].iter().enumerate() {
                let one = self.unsqueeze(*one, out_axes[i]);
                let at = if out_backwards[i] == 0 { collected[i].len() } else { 0 };
                collected[i].insert(at, one);
            }
        }
        let mut results: Vec<ValueId> = current.into_iter().flatten().collect();
        for (all, axis) in collected.iter().zip(&out_axes) {
            results.push(self.made("Concat", all, &[("axis", Attr::Int(*axis))]));
        }
        self.outputs(node, results);
        Ok(true)
    }

    fn map(&mut self, node: &Node) -> Result<bool> {
        let Some(Attr::Graph(body)) = node.attrs.get("body") else { crate::bail!("it has no `body`") };
        let body = body.clone();
        let Some(first) = self.list(node, 0) else { return Ok(false) };
        let declared = node.inputs.len() - body.captured;
        fits(first.len(), &body)?;
        let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); node.outputs.len()];
        for i in 0..first.len() {
            // Lists go element by element, tensors whole.
            let one = |v: &Option<ValueId>| v.map(|v| self.lists.get(&v).and_then(|l| l.get(i).copied()).unwrap_or(v));
            let passed: Vec<_> =
                node.inputs[..declared].iter().map(one).chain(node.inputs[declared..].iter().copied()).collect();
            let results = self.splice(&body, &passed, &format!("{}/{i}", node.name))?;
            collected.iter_mut().zip(results).for_each(|(all, one)| all.push(one));
        }
        for (all, output) in collected.into_iter().zip(&node.outputs) {
            if let Some(output) = *output {
                self.push("SequenceConstruct", &all, &[], &[output]);
                self.lists.insert(output, all);
            }
        }
        Ok(true)
    }

    /// Copies a body's nodes into the graph; its inputs are `passed`, the result its outputs.
    fn splice(&mut self, body: &Body, passed: &[Option<ValueId>], prefix: &str) -> Result<Vec<ValueId>> {
        let inner = &body.graph;
        if passed.len() != inner.inputs.len() {
            crate::bail!("its body takes {} values, and {} are passed", inner.inputs.len(), passed.len());
        }
        let mut map: HashMap<ValueId, Option<ValueId>> =
            inner.inputs.iter().copied().zip(passed.iter().copied()).collect();
        for v in inner.value_ids() {
            let name = format!("{prefix}/{}", inner[v].name);
            match &inner[v].source {
                Source::Input(Declared { .. }) => {}
                Source::Node => drop(map.insert(v, Some(self.graph.add_value(&name, None, Source::Node)))),
                constant => drop(map.insert(v, Some(self.graph.add_value(&name, None, constant.clone())))),
            }
        }
        let at = |v: &Option<ValueId>| v.and_then(|v| map.get(&v).copied().flatten());
        for node in &inner.nodes {
            self.graph.nodes.push(Node {
                name: format!("{prefix}/{}", node.name),
                inputs: node.inputs.iter().map(at).collect(),
                outputs: node.outputs.iter().map(at).collect(),
                ..node.clone()
            });
        }
        let missing = || Error::new("an output of its body is an input that nobody passes");
        inner.outputs.iter().map(|v| at(&Some(*v)).ok_or_else(missing)).collect()
    }

    /// Makes `results` the outputs of a node that goes.
    fn outputs(&mut self, node: &Node, results: Vec<ValueId>) {
        for (result, output) in results.into_iter().zip(&node.outputs) {
            if let Some(output) = *output {
                self.copy(result, output);
            }
        }
    }

    fn copy(&mut self, from: ValueId, to: ValueId) {
        self.push("Identity", &[from], &[], &[to]);
    }

    fn unsqueeze(&mut self, v: ValueId, axis: i64) -> ValueId {
        let axes = self.ints(&[axis]);
        self.made("Unsqueeze", &[v, axes], &[])
    }

    fn made(&mut self, op: &str, inputs: &[ValueId], attrs: &[(&str, Attr)]) -> ValueId {
        let v = self.graph.add_value(&format!("resolved/{op}"), None, Source::Node);
        self.push(op, inputs, attrs, &[v]);
        v
    }

    fn push(&mut self, op: &str, inputs: &[ValueId], attrs: &[(&str, Attr)], outputs: &[ValueId]) {
        self.graph.nodes.push(Node {
            name: self.graph[outputs[0]].name.clone(),
            domain: String::new(),
            op: op.into(),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect::<Attrs>(),
        });
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_value("resolved/ints", None, Source::Constant(Tensor::ints(values)))
    }

    fn scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.filled(dtype, 0, value)
    }

    /// One element in `rank` dimensions.
    fn filled(&mut self, dtype: DType, rank: usize, value: f64) -> ValueId {
        let tensor = Tensor::full(dtype, &vec![1; rank], value);
        self.graph.add_value("resolved/scalar", None, Source::Constant(tensor))
    }
}

fn attr_int(node: &Node, name: &str, default: i64) -> i64 {
    match node.attrs.get(name) {
        Some(Attr::Int(v)) => *v,
        _ => default,
    }
}

fn fits(rounds: usize, body: &Body) -> Result<()> {
    let nodes = rounds.saturating_mul(body.graph.nodes.len());
    if nodes > MAX_NODES {
        crate::bail!("{rounds} rounds of it would become {nodes} nodes");
    }
    Ok(())
}
