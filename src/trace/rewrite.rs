//! What a node that holds the batch size of its file may be replaced by, so that it serves any.
//!
//! These are guesses. Which of them is right is found by running them ([`super::rebatch`]).

use super::layout::Layout;
use crate::builder::attrs;
use crate::ir::{Attr, Attrs, DType, Graph, Node, Source, Tensor, ValueId};
use std::collections::HashMap;

/// What is known of the values around a node.
pub(super) struct Around<'a> {
    /// Where the batch is in the values that depend on it.
    pub layouts: &'a HashMap<ValueId, Layout>,
    /// Computed values that do not depend on it.
    pub shared: &'a HashMap<ValueId, Tensor>,
    /// The batch size of the file.
    pub own: usize,
    /// The batch size, i64 `[1]`.
    pub batch: ValueId,
}

/// The nodes that take a node's place; the last ones make its outputs.
pub(super) type Nodes = Vec<Node>;

/// Replacements of `node`, which has an input that depends on the batch; all values have the types of the file's own batch.
pub(super) fn candidates(graph: &mut Graph, node: &Node, around: &Around<'_>) -> Vec<Nodes> {
    let mut draft = Draft { graph, node, around };
    let mut found = match node.op.as_str() {
        _ if !node.domain.is_empty() => Vec::new(),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => draft.reshapes(),
        "Expand" => draft.expands(),
        "Slice" => draft.without_whole_axes().into_iter().collect(),
        "Gather" => [draft.picks_every_sample(), draft.counted_on()].into_iter().flatten().collect(),
        "Split" => draft.scaled(1, |_| true).into_iter().collect(),
        "Resize" => draft.scaled(3, |i| i == 0).into_iter().collect(),
        "Tile" => draft.tiles().into_iter().collect(),
        "GatherND" | "ScatterND" => draft.numbered(),
        _ => Vec::new(),
    };
    found.extend(draft.operands());
    found.extend(draft.repeated());
    found.extend(draft.shifted());
    found
}

/// Whether the element order of a node's output is that of its input.
pub(super) fn keeps_order(node: &Node) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().any(|op| node.is(op))
}

/// What a drawing node becomes whose draws have the file's batch size, and are not made for the values of a batch.
pub(super) fn noise(graph: &mut Graph, node: &Node, around: &Around<'_>) -> Option<Nodes> {
    let y = node.output(0)?;
    let ty = graph[y].ty.clone()?;
    let constant = node.input(0).is_none_or(|x| graph.constant(x).is_some());
    if !constant || ty.shape.len() < 2 || ty.shape[0] != around.own {
        return None;
    }
    let mut draft = Draft { graph, node, around };
    let mut nodes = Vec::new();
    let target = draft.sized(&mut nodes, &ty.shape, |i| i == 0);
    let mut op = node.op.clone();
    let like = match node.input(0).filter(|_| node.is("Bernoulli")) {
        Some(p) => draft.made(&mut nodes, "Expand", &[p, target], Attrs::new()),
        None => {
            op = format!("{}Like", node.op.trim_end_matches("Like"));
            draft.made(&mut nodes, "ConstantOfShape", &[target], Attrs::new())
        }
    };
    let mut drawn = Node { op, inputs: vec![Some(like)], ..node.clone() };
    drawn.attrs.remove("shape");
    nodes.push(drawn);
    Some(nodes)
}

struct Draft<'a> {
    graph: &'a mut Graph,
    node: &'a Node,
    around: &'a Around<'a>,
}

impl Draft<'_> {
    fn shape(&self, v: Option<ValueId>) -> Vec<usize> {
        v.and_then(|v| self.graph[v].ty.as_ref()).map(|t| t.shape.clone()).unwrap_or_default()
    }

    fn tensor(&self, v: ValueId) -> Option<Tensor> {
        self.graph.tensor(v).or_else(|| self.around.shared.get(&v)).cloned()
    }

    fn ints_of(&self, slot: usize) -> Option<Vec<i64>> {
        self.graph.constant(self.node.input(slot)?)?.to_i64()
    }

    fn layout(&self, slot: usize) -> Option<Layout> {
        self.around.layouts.get(&self.node.input(slot)?).copied()
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::ints(values))
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = format!("batch/{}", self.graph.value_count());
        self.graph.add_value(&name, None, Source::Constant(tensor))
    }

    fn made(&mut self, nodes: &mut Nodes, op: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let name = format!("batch/{op}/{}", self.graph.value_count());
        let y = self.graph.add_value(&name, None, Source::Node);
        let name = self.graph[y].name.clone();
        let (domain, inputs) = (String::new(), inputs.iter().copied().map(Some).collect());
        nodes.push(Node { name, domain, op: op.into(), inputs, outputs: vec![Some(y)], attrs });
        y
    }

    /// The node with other inputs.
    fn with(&self, changes: &[(usize, ValueId)]) -> Node {
        let mut node = self.node.clone();
        for (slot, v) in changes {
            node.inputs[*slot] = Some(*v);
        }
        node
    }

    /// The node's output by another operator.
    fn instead(&self, op: &str, inputs: &[ValueId]) -> Node {
        let inputs = inputs.iter().copied().map(Some).collect();
        Node { op: op.into(), inputs, attrs: Attrs::new(), ..self.node.clone() }
    }

    /// `shape` with the entries that `scaled` chooses following the batch.
    fn sized(&mut self, nodes: &mut Nodes, shape: &[usize], scaled: impl Fn(usize) -> bool) -> ValueId {
        let own = self.around.own;
        let mut parts = Vec::new();
        for (i, n) in shape.iter().enumerate() {
            if !scaled(i) {
                parts.push(self.ints(&[*n as i64]));
            } else if *n == own {
                parts.push(self.around.batch);
            } else {
                let factor = self.ints(&[(*n / own) as i64]);
                let batch = self.around.batch;
                parts.push(self.made(nodes, "Mul", &[batch, factor], Attrs::new()));
            }
        }
        match parts.as_slice() {
            [only] => *only,
            parts => self.made(nodes, "Concat", parts, attrs([("axis", Attr::Int(0))])),
        }
    }

    /// Axes of the output whose size may hold the batch.
    fn axes(&self) -> Vec<usize> {
        let shape = self.shape(self.node.output(0));
        (0..shape.len()).filter(|a| shape[*a] > 0 && shape[*a].is_multiple_of(self.around.own)).collect()
    }

    /// Reshapes to the output's own shape with each dimension in turn left open, and to one with a dimension for the batch alone.
    fn reshapes(&mut self) -> Vec<Nodes> {
        let (Some(x), shape) = (self.node.input(0), self.shape(self.node.output(0))) else { return Vec::new() };
        if self.layout(0).is_none() || shape.contains(&0) {
            return Vec::new();
        }
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let mut targets: Vec<Vec<i64>> = Vec::new();
        for a in self.axes() {
            let mut target = dims.clone();
            target[a] = -1;
            targets.push(target);
        }
        if self.around.own == 1 {
            targets.push([&[-1], dims.as_slice()].concat());
        }
        let mut found = Vec::new();
        for target in targets {
            let target = self.ints(&target);
            found.push(vec![self.instead("Reshape", &[x, target])]);
        }
        if self.node.is("Squeeze") {
            found.push(vec![self.instead("Identity", &[x])]);
        }
        found
    }

    /// Expands that leave a dimension as it is, or make it as large as the batch.
    fn expands(&mut self) -> Vec<Nodes> {
        let (Some(x), shape) = (self.node.input(0), self.shape(self.node.output(0))) else { return Vec::new() };
        let mut found = Vec::new();
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        for a in self.axes() {
            let mut target = dims.clone();
            target[a] = 1;
            let target = self.ints(&target);
            found.push(vec![self.instead("Expand", &[x, target])]);
            let mut nodes = Vec::new();
            let target = self.sized(&mut nodes, &shape, |i| i == a);
            nodes.push(self.instead("Expand", &[x, target]));
            found.push(nodes);
        }
        if self.layout(0).is_some_and(|l| l.added && l.axis == 0) {
            let target = self.ints(&[&[1], dims.as_slice()].concat());
            found.push(vec![self.instead("Expand", &[x, target])]);
        }
        found
    }

    /// A Slice without the axes of which it takes everything.
    fn without_whole_axes(&mut self) -> Option<Nodes> {
        let x = self.node.input(0)?;
        let (before, after) = (self.shape(Some(x)), self.shape(self.node.output(0)));
        let (starts, ends) = (self.ints_of(1)?, self.ints_of(2)?);
        let axes = self.ints_of(3).unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.ints_of(4).unwrap_or_else(|| vec![1; starts.len()]);
        let axis = |i: usize| axes[i].rem_euclid(before.len().max(1) as i64) as usize;
        let whole = |i: &usize| before.get(axis(*i)) == after.get(axis(*i)) && steps[*i] == 1;
        let keep: Vec<usize> = (0..starts.len()).filter(|i| !whole(i)).collect();
        if keep.len() == starts.len() {
            return None;
        }
        if keep.is_empty() {
            return Some(vec![self.instead("Identity", &[x])]);
        }
        let kept = |list: &[i64]| keep.iter().map(|i| list[*i]).collect::<Vec<_>>();
        let lists = [kept(&starts), kept(&ends), kept(&axes), kept(&steps)].map(|l| self.ints(&l));
        Some(vec![self.instead("Slice", &[&[x], lists.as_slice()].concat())])
    }

    /// A Gather of all samples in their order, which is no Gather.
    fn picks_every_sample(&mut self) -> Option<Nodes> {
        let x = self.node.input(0)?;
        let picked = self.graph.constant(self.node.input(1)?)?.clone();
        let every = picked.to_i64()?.iter().copied().eq(0..self.around.own as i64);
        (every && picked.shape().len() <= 1).then(|| vec![self.instead("Identity", &[x])])
    }

    /// A Gather from all samples one after the other, by indices that count from each sample's first element.
    fn counted_on(&mut self) -> Option<Nodes> {
        let (data, at) = (self.layout(0)?, self.layout(1)?);
        let (shape, indices) = (self.shape(self.node.input(0)), self.shape(self.node.input(1)));
        let axis = match self.node.attrs.get("axis") {
            Some(Attr::Int(a)) => a.rem_euclid(shape.len().max(1) as i64) as usize,
            _ => 0,
        };
        let plain = !data.added && !at.added && data.outer == 1 && indices.get(at.axis) == Some(&1);
        if self.around.own != 1 || data.axis != axis || !plain {
            return None;
        }
        let mut nodes = Vec::new();
        let numbers = self.numbers(&mut nodes, at.axis, indices.len());
        let each = self.ints(&[shape[axis] as i64]);
        let starts = self.made(&mut nodes, "Mul", &[numbers, each], Attrs::new());
        let mut given = self.node.input(1)?;
        if self.graph[given].ty.as_ref().is_some_and(|t| t.dtype != DType::I64) {
            let to = attrs([("to", Attr::Int(i64::from(DType::I64.onnx())))]);
            given = self.made(&mut nodes, "Cast", &[given], to);
        }
        let moved = self.made(&mut nodes, "Add", &[given, starts], Attrs::new());
        nodes.push(self.with(&[(1, moved)]));
        Some(nodes)
    }

    /// The node with the entries of constant `slot` that `which` chooses following the batch.
    fn scaled(&mut self, slot: usize, which: impl Fn(usize) -> bool) -> Option<Nodes> {
        let values: Vec<usize> = self.ints_of(slot)?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
        let own = self.around.own;
        if values.is_empty() || (0..values.len()).any(|i| which(i) && !values[i].is_multiple_of(own)) {
            return None;
        }
        let mut nodes = Vec::new();
        let sizes = self.sized(&mut nodes, &values, which);
        nodes.push(self.with(&[(slot, sizes)]));
        Some(nodes)
    }

    /// A Tile that leaves the batch alone.
    fn tiles(&mut self) -> Option<Nodes> {
        let mut repeats = self.ints_of(1)?;
        let axis = self.layout(0)?.axis;
        let n = repeats.get_mut(axis).filter(|n| **n != 1)?;
        *n = 1;
        let repeats = self.ints(&repeats);
        Some(vec![self.with(&[(1, repeats)])])
    }

    /// The sample numbers as indices along axis `axis` of `rank`.
    fn numbers(&mut self, nodes: &mut Nodes, axis: usize, rank: usize) -> ValueId {
        let [zero, one] = [0.0, 1.0].map(|v| self.constant(Tensor::scalar(DType::I64, v)));
        let (axes, batch) = (self.ints(&[0]), self.around.batch);
        let batch = self.made(nodes, "Squeeze", &[batch, axes], Attrs::new());
        let range = self.made(nodes, "Range", &[zero, batch, one], Attrs::new());
        let mut shape = vec![1; rank];
        shape[axis] = -1;
        let shape = self.ints(&shape);
        self.made(nodes, "Reshape", &[range, shape], Attrs::new())
    }

    /// Indices that count the batch among what they index, with the number of the sample where the file has 0.
    fn numbered(&mut self) -> Vec<Nodes> {
        let (Some(indices), Some(data)) = (self.node.input(1), self.layout(0)) else { return Vec::new() };
        let shape = self.shape(Some(indices));
        let Some((width, places)) = shape.split_last() else { return Vec::new() };
        let batched = matches!(self.node.attrs.get("batch_dims"), Some(Attr::Int(n)) if *n > 0);
        if self.around.own != 1 || data.added || data.axis >= *width || batched {
            return Vec::new();
        }
        let axes: Vec<usize> = match self.layout(1) {
            Some(l) if l.added => return Vec::new(),
            Some(l) => vec![l.axis],
            None => (0..places.len()).filter(|a| places[*a] == 1).collect(),
        };
        let mut found = Vec::new();
        // Without a dimension that could be the batch's, the indices get one.
        for (axis, rank) in
            if places.is_empty() { vec![(0, 2)] } else { axes.iter().map(|a| (*a, shape.len())).collect() }
        {
            let mut nodes = Vec::new();
            let numbers = self.numbers(&mut nodes, axis, rank);
            let mut unit = vec![0; *width];
            unit[data.axis] = 1;
            let unit = self.ints(&unit);
            let offsets = self.made(&mut nodes, "Mul", &[numbers, unit], Attrs::new());
            let moved = self.made(&mut nodes, "Add", &[indices, offsets], Attrs::new());
            let mut changes = vec![(1, moved)];
            if let Some(updates) = self.node.input(2).filter(|_| self.layout(2).is_none()) {
                let all = self.expanded(&mut nodes, updates, axis);
                changes.push((2, all));
            }
            nodes.push(self.with(&changes));
            found.push(nodes);
        }
        found
    }

    /// `v`, whose dimension `axis` has the file's batch size, for any batch.
    fn expanded(&mut self, nodes: &mut Nodes, v: ValueId, axis: usize) -> ValueId {
        let mut shape = self.shape(Some(v));
        let one = self.one_sample(nodes, v, axis);
        shape[axis] = self.around.own;
        let target = self.sized(nodes, &shape, |i| i == axis);
        self.made(nodes, "Expand", &[one, target], Attrs::new())
    }

    /// One sample of `v` along `axis`, where all are the same: of what is trained the mean, so that they stay the same.
    fn one_sample(&mut self, nodes: &mut Nodes, v: ValueId, axis: usize) -> ValueId {
        if self.around.own == 1 {
            return v;
        }
        let float = self.graph[v].ty.as_ref().is_some_and(|t| t.dtype.is_float());
        if float && self.graph.constant(v).is_none() {
            let axes = self.ints(&[axis as i64]);
            return self.made(nodes, "ReduceMean", &[v, axes], attrs([("keepdims", Attr::Int(1))]));
        }
        let lists = [[0], [1], [axis as i64]].map(|l| self.ints(&l));
        self.made(nodes, "Slice", &[&[v], lists.as_slice()].concat(), Attrs::new())
    }

    /// Whether all samples of `v` along `axis` are the same.
    fn alike(&self, v: ValueId, axis: usize) -> bool {
        let Some(t) = self.tensor(v) else { return false };
        let after = t.shape()[axis + 1..].iter().product::<usize>() * t.dtype().width();
        let own = self.around.own;
        after > 0 && t.bytes().chunks_exact(after * own).all(|all| all.chunks_exact(after).all(|c| c == &all[..after]))
    }

    /// Operands that do not depend on the batch but have its size: repeated for each sample, or, where they broadcast, one for all.
    fn operands(&mut self) -> Vec<Nodes> {
        let recurrent = ["RNN", "GRU", "LSTM"].iter().any(|op| self.node.is(op));
        let first = if recurrent { 4 } else { 0 };
        let shared: Vec<(usize, ValueId)> = (first..self.node.inputs.len())
            .filter_map(|slot| Some((slot, self.node.input(slot)?)))
            .filter(|(_, v)| !self.around.layouts.contains_key(v))
            .collect();
        let rank = shared.iter().map(|(_, v)| self.shape(Some(*v)).len()).max().unwrap_or(0);
        let mut found = Vec::new();
        for axis in 0..rank {
            let holds = |(_, v): &&(usize, ValueId)| self.shape(Some(*v)).get(axis) == Some(&self.around.own);
            let of: Vec<(usize, ValueId)> = shared.iter().filter(holds).copied().collect();
            let (alike, counted): (Vec<_>, Vec<_>) = of.into_iter().partition(|(_, v)| self.alike(*v, axis));
            if !alike.is_empty() && self.around.own > 1 {
                let mut nodes = Vec::new();
                let changes: Vec<_> = alike.iter().map(|(s, v)| (*s, self.one_sample(&mut nodes, *v, axis))).collect();
                nodes.push(self.with(&changes));
                found.push(nodes);
            }
            let mut nodes = Vec::new();
            let mut changes: Vec<_> = alike.iter().map(|(s, v)| (*s, self.expanded(&mut nodes, *v, axis))).collect();
            for (slot, v) in counted {
                if let Some(step) = self.step(v, axis) {
                    let rank = self.shape(Some(v)).len();
                    let (first, numbers) = (self.one_sample(&mut nodes, v, axis), self.numbers(&mut nodes, axis, rank));
                    let step = self.constant(step);
                    let offsets = self.made(&mut nodes, "Mul", &[numbers, step], Attrs::new());
                    changes.push((slot, self.made(&mut nodes, "Add", &[first, offsets], Attrs::new())));
                }
            }
            if !changes.is_empty() {
                nodes.push(self.with(&changes));
                found.push(nodes);
            }
        }
        found
    }

    /// Operands as large as the part of a sample in a dimension where other operands have one such part after the other.
    fn repeated(&mut self) -> Vec<Nodes> {
        let slots = || 0..self.node.inputs.len();
        let merged = slots().filter_map(|s| Some((self.layout(s)?, self.shape(self.node.input(s)))));
        let merged: Vec<(usize, usize)> = merged
            .filter(|(l, shape)| !l.added && l.outer == 1 && shape.get(l.axis).is_some_and(|d| *d > self.around.own))
            .map(|(l, shape)| (shape.len() - l.axis, shape[l.axis]))
            .collect();
        let shared: Vec<(usize, ValueId)> =
            slots().filter(|s| self.layout(*s).is_none()).filter_map(|s| Some((s, self.node.input(s)?))).collect();
        if self.around.own != 1 {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (slot, v) in shared {
            let shape = self.shape(Some(v));
            for (from_end, size) in &merged {
                let Some(axis) = shape.len().checked_sub(*from_end).filter(|a| shape[*a] == *size) else { continue };
                let mut nodes = Vec::new();
                let repeats = self.sized(&mut nodes, &vec![1; shape.len()], |i| i == axis);
                let all = self.made(&mut nodes, "Tile", &[v, repeats], Attrs::new());
                nodes.push(self.with(&[(slot, all)]));
                found.push(nodes);
            }
        }
        found
    }

    /// By how much each sample of `v` along `axis` exceeds the one before: indices that count the samples.
    fn step(&self, v: ValueId, axis: usize) -> Option<Tensor> {
        let tensor = self.tensor(v).filter(|t| t.dtype() == DType::I64)?;
        let (inner, own) = (&tensor.shape()[axis + 1..], self.around.own);
        let after = inner.iter().product::<usize>();
        let values = tensor.to_i64()?;
        let (first, second) = (values.get(..after)?, values.get(after..2 * after)?);
        let step: Vec<i64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
        let steady =
            |all: &[i64]| all.iter().zip(&all[after..]).enumerate().all(|(i, (a, b))| b - a == step[i % after]);
        let all = after > 0 && values.chunks_exact(after * own).all(steady);
        all.then(|| Tensor::new(inner, &step).ok()).flatten()
    }

    /// The node with axes counted one further, for inputs that have a first dimension for the batch alone.
    fn shifted(&mut self) -> Option<Nodes> {
        (0..self.node.inputs.len()).filter_map(|s| self.layout(s)).find(|l| l.added && l.axis == 0)?;
        let mut node = self.node.clone();
        let mut changed = false;
        for (name, attr) in &mut node.attrs {
            match attr {
                Attr::Int(axis) if name == "axis" && *axis >= 0 => *axis += 1,
                Attr::Ints(axes) if name == "axes" => axes.iter_mut().filter(|a| **a >= 0).for_each(|a| *a += 1),
                Attr::Ints(perm) if name == "perm" => {
                    *perm = std::iter::once(0).chain(perm.iter().map(|p| p + 1)).collect();
                }
                _ => continue,
            }
            changed = true;
        }
        let slot = match self.node.op.as_str() {
            "Slice" => Some(3),
            op if op.starts_with("Reduce") => Some(1),
            _ => None,
        };
        if let Some(axes) = slot.and_then(|s| self.ints_of(s)) {
            let moved: Vec<i64> = axes.iter().map(|a| if *a < 0 { *a } else { a + 1 }).collect();
            let moved = self.ints(&moved);
            node.inputs[slot.unwrap_or(0)] = Some(moved);
            changed = true;
        }
        if !changed && node.is("Gather") {
            node.attrs.insert("axis".into(), Attr::Int(1));
            changed = true;
        }
        changed.then(|| vec![node])
    }
}
