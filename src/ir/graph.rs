//! Graph, nodes and values.

use super::{Attr, Attrs, Body, DType, Tensor};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Index of a value in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(super) u32);

/// Index of a node in its graph.
pub type NodeId = usize;

/// Element type and static shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<usize>,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.width()
    }
}

/// A dimension as a file declares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name such as `batch`; equal names are equal dimensions.
    Symbol(String),
    /// Nothing is said.
    Unknown,
}

/// What a file says about one of its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, `None` when not even the rank is said.
    pub dims: Option<Vec<Dim>>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// An output of a node.
    Node,
    /// An input of the graph.
    Input(Declared),
    /// A constant, folded into whatever reads it.
    Constant(Tensor),
    /// A trainable parameter, with its value in the file. Emitted stages take it as an input.
    Param(Tensor),
    /// A running statistic of a BatchNormalization, with its value in the file. Stages take it as an input too.
    Stat(Tensor),
}

/// A tensor of the graph.
#[derive(Debug, Clone)]
pub struct Value {
    /// Unique in the graph.
    pub name: String,
    /// Known for constants and parameters, and for every value after tracing.
    pub ty: Option<Type>,
    /// Where it comes from.
    pub source: Source,
}

/// An operator applied to values.
#[derive(Debug, Clone)]
pub struct Node {
    /// For messages; not necessarily unique.
    pub name: String,
    /// Operator domain; empty for ai.onnx.
    pub domain: String,
    /// Operator type.
    pub op: String,
    /// Inputs; `None` where an optional one is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` where an optional one is left out.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes.
    pub attrs: Attrs,
}

impl Node {
    /// Input `i`, if it is there.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Output `i`, if it is there.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// How many of its last inputs are what its bodies read of the graph around them; 0 but for control flow.
    pub fn captured(&self) -> usize {
        self.bodies().map(|b| b.captured).next().unwrap_or(0)
    }

    /// The bodies of a control-flow node.
    pub fn bodies(&self) -> impl Iterator<Item = &Arc<Body>> {
        self.attrs.values().filter_map(|a| if let Attr::Graph(body) = a { Some(body) } else { None })
    }

    /// Whether this is operator `op` of the default domain.
    pub fn is(&self, op: &str) -> bool {
        self.domain.is_empty() && self.op == op
    }

    /// Whether the shape of the input decides the output, whatever the elements are.
    pub fn reads_shapes_only(&self) -> bool {
        ["Shape", "Size", "EyeLike", "RandomUniformLike", "RandomNormalLike"].iter().any(|op| self.is(op))
    }

    /// `Op` or `domain.Op`.
    pub fn qualified(&self) -> String {
        if self.domain.is_empty() { self.op.clone() } else { format!("{}.{}", self.domain, self.op) }
    }

    /// Adds this node to an error.
    pub fn blame(&self, error: Error) -> Error {
        error.at_node(&self.qualified(), &self.name)
    }
}

/// A dataflow graph in topological order.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// For messages and the emitted file.
    pub name: String,
    /// In topological order.
    pub nodes: Vec<Node>,
    /// Inputs in the file's order.
    pub inputs: Vec<ValueId>,
    /// Outputs in the file's order.
    pub outputs: Vec<ValueId>,
    /// Version of each operator domain used; the default domain is the empty string.
    pub opsets: BTreeMap<String, i64>,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
}

impl Graph {
    /// `output = op(input)` over a vector of length `len`, in operator set `opset`.
    pub fn of_one_node(op: &str, [input, output]: [&str; 2], dtype: DType, len: Dim, opset: i64) -> Self {
        let mut graph = Self::default();
        op.clone_into(&mut graph.name);
        graph.opsets.insert(String::new(), opset);
        let x = graph.add_value(input, None, Source::Input(Declared { dtype, dims: Some(vec![len]) }));
        let y = graph.add_value(output, None, Source::Node);
        let (name, domain, attrs) = (op.to_owned(), String::new(), Attrs::new());
        graph.nodes.push(Node { name, domain, op: op.into(), inputs: vec![Some(x)], outputs: vec![Some(y)], attrs });
        graph.inputs.push(x);
        graph.outputs.push(y);
        graph
    }

    /// Adds a value. A name that is taken gets a number appended.
    pub fn add_value(&mut self, name: &str, ty: Option<Type>, source: Source) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let name = self.unique_name(name);
        self.names.insert(name.clone(), id);
        let ty = match &source {
            Source::Constant(t) | Source::Param(t) | Source::Stat(t) => Some(t.ty()),
            Source::Node | Source::Input(_) => ty,
        };
        self.values.push(Value { name, ty, source });
        id
    }

    fn unique_name(&self, name: &str) -> String {
        if !name.is_empty() && !self.names.contains_key(name) {
            return name.to_owned();
        }
        (1..).map(|i| format!("{name}_{i}")).find(|n| !self.names.contains_key(n)).unwrap_or_default()
    }

    /// Renames a value; a name that is taken gets a number appended.
    pub fn rename(&mut self, id: ValueId, name: &str) {
        if self[id].name == name {
            return;
        }
        let new = self.unique_name(name);
        let old = std::mem::replace(&mut self.values[id.0 as usize].name, new.clone());
        self.names.remove(&old);
        self.names.insert(new, id);
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// Every value id, in the order they were added.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// Whether the value is one of this graph's.
    pub fn has(&self, id: ValueId) -> bool {
        (id.0 as usize) < self.values.len()
    }

    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The value behind a constant; `None` for parameters and computed values.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match &self[id].source {
            Source::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// The initial value of a parameter.
    pub fn param(&self, id: ValueId) -> Option<&Tensor> {
        match &self[id].source {
            Source::Param(t) => Some(t),
            _ => None,
        }
    }

    /// The trainable parameters, in the order of the file.
    pub fn params(&self) -> Vec<ValueId> {
        self.value_ids().filter(|v| self.param(*v).is_some()).collect()
    }

    /// The tensor behind a constant, parameter or running statistic.
    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        match &self[id].source {
            Source::Constant(t) | Source::Param(t) | Source::Stat(t) => Some(t),
            Source::Node | Source::Input(_) => None,
        }
    }

    /// Type of a value.
    ///
    /// # Errors
    /// When the graph has not been traced.
    pub fn ty(&self, id: ValueId) -> Result<&Type> {
        let value = &self[id];
        value.ty.as_ref().ok_or_else(|| {
            Error::new(format!("shape of `{}` is not known", value.name)).hint("concretize the graph first")
        })
    }

    /// Version of the default operator domain.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").copied().unwrap_or(0)
    }

    /// For every value, the index of the node that makes it.
    pub fn producers(&self) -> HashMap<ValueId, NodeId> {
        let outputs = self.nodes.iter().enumerate();
        outputs.flat_map(|(i, n)| n.outputs.iter().flatten().map(move |v| (*v, i))).collect()
    }

    /// For every value, the nodes that read it, in order, once per input slot.
    pub fn readers(&self) -> HashMap<ValueId, Vec<NodeId>> {
        let mut map: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for v in node.inputs.iter().flatten() {
                map.entry(*v).or_default().push(i);
            }
        }
        map
    }

    /// The values of `from` and what is computed from them, through values that `through` lets pass.
    pub fn downstream(
        &self,
        from: impl IntoIterator<Item = ValueId>,
        through: impl Fn(&Value) -> bool,
    ) -> HashSet<ValueId> {
        self.reached(from, |_, v| through(&self[v]))
    }

    /// The values of `from` and what depends on their elements, not on their shapes alone.
    pub fn data(&self, from: impl IntoIterator<Item = ValueId>) -> HashSet<ValueId> {
        self.reached(from, |node, _| !node.reads_shapes_only())
    }

    /// The values of `from`, and every output that `passes` of a node that reads one of the set.
    fn reached(
        &self,
        from: impl IntoIterator<Item = ValueId>,
        passes: impl Fn(&Node, ValueId) -> bool,
    ) -> HashSet<ValueId> {
        let mut set: HashSet<ValueId> = from.into_iter().collect();
        for node in &self.nodes {
            if node.inputs.iter().flatten().any(|v| set.contains(v)) {
                set.extend(node.outputs.iter().flatten().filter(|v| passes(node, **v)));
            }
        }
        set
    }

    /// The values of `from` and what they are computed from.
    pub fn upstream(&self, from: impl IntoIterator<Item = ValueId>) -> HashSet<ValueId> {
        let mut set: HashSet<ValueId> = from.into_iter().collect();
        for node in self.nodes.iter().rev() {
            if node.outputs.iter().flatten().any(|v| set.contains(v)) {
                set.extend(node.inputs.iter().flatten());
            }
        }
        set
    }

    /// Makes every reader of `from`, and the graph's outputs, read `to` instead.
    pub fn replace(&mut self, from: ValueId, to: ValueId) {
        let inputs = self.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten());
        for v in inputs.chain(self.outputs.iter_mut()) {
            if *v == from {
                *v = to;
            }
        }
    }

    /// Removes nodes from which no output of the graph can be reached.
    pub fn remove_dead_nodes(&mut self) {
        let mut live = vec![false; self.values.len()];
        for v in &self.outputs {
            live[v.0 as usize] = true;
        }
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().flatten().any(|v| live[v.0 as usize]) {
                keep[i] = true;
                for v in node.inputs.iter().flatten() {
                    live[v.0 as usize] = true;
                }
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(false));
    }
}

impl Value {
    /// Whether a gradient can flow through it: it is of a float type, as far as is known.
    pub fn carries_gradient(&self) -> bool {
        self.ty.as_ref().is_none_or(|t| t.dtype.is_float())
    }
}

impl std::ops::Index<ValueId> for Graph {
    type Output = Value;
    fn index(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }
}

impl std::ops::IndexMut<ValueId> for Graph {
    /// Names and constants' types are kept in step by [`Graph::rename`] and [`Graph::set_source`]; change only the type here.
    fn index_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.0 as usize]
    }
}

impl Graph {
    /// Changes where a value comes from, for instance a computed value into the constant it always has.
    pub fn set_source(&mut self, id: ValueId, source: Source) {
        if let Source::Constant(t) | Source::Param(t) | Source::Stat(t) = &source {
            self[id].ty = Some(t.ty());
        }
        self[id].source = source;
    }
}
