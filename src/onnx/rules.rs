//! The rules by which a constant is a parameter, a statistic or neither, from where it meets data in one graph.

use super::evidence::Evidence;
use super::fixed::{is_bank, is_filter, is_formula, is_mask, is_sinusoidal, is_unit_vector};
use super::merged::{Merged, Site};
use super::record::{Argument, Kind, Record};
use super::roles::{COMPUTED, Decision, Role};
use crate::ir::{Attr, Body, DType, Graph, Node, NodeId, Tensor, ValueId};
use std::collections::HashSet;
use std::sync::Arc;

/// Input slots that hold weights by the operator's own meaning.
const WEIGHT_SLOTS: &[(&str, &[usize])] = &[
    ("Conv", &[1, 2]),
    ("ConvTranspose", &[1, 2]),
    ("DeformConv", &[1, 3]),
    ("Gemm", &[0, 1, 2]),
    ("MatMul", &[0, 1]),
    ("Einsum", &[0, 1]),
    ("BatchNormalization", &[1, 2]),
    ("LayerNormalization", &[1, 2]),
    ("InstanceNormalization", &[1, 2]),
    ("GroupNormalization", &[1, 2]),
    ("RMSNormalization", &[1]),
    ("SimplifiedLayerNormalization", &[1]),
    ("PRelu", &[1]),
    ("LSTM", &[1, 2, 3, 5, 6, 7]),
    ("GRU", &[1, 2, 3, 5]),
    ("RNN", &[1, 2, 3, 5]),
    ("CausalConvWithState", &[1, 2]),
];

/// The same for operators of domain com.microsoft, which ONNX Runtime's optimizers leave in files.
const MICROSOFT_SLOTS: &[(&str, &[usize])] = &[
    ("Attention", &[1, 2]),
    ("BiasAdd", &[1]),
    ("BiasDropout", &[1]),
    ("BiasGelu", &[1]),
    ("BiasSplitGelu", &[1]),
    ("EmbedLayerNormalization", &[2, 3, 4, 5, 6]),
    ("FastGelu", &[1]),
    ("FusedConv", &[1, 2]),
    ("FusedGemm", &[0, 1, 2]),
    ("FusedMatMul", &[0, 1]),
    ("MultiHeadAttention", &[3]),
    ("SkipLayerNormalization", &[2, 3, 4]),
    ("SkipSimplifiedLayerNormalization", &[2, 3]),
];

/// Operators through which no gradient flows, or whose output is a table whatever goes in.
const ENDS: &[&str] = &[
    "Shape",
    "Size",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "Not",
    "And",
    "Or",
    "Sin",
    "Cos",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "NonZero",
    "ArgMax",
    "ArgMin",
    "Range",
    "ConstantOfShape",
    "QuantizeLinear",
    "IsNaN",
    "IsInf",
    "RandomUniformLike",
    "RandomNormalLike",
    "Bernoulli",
    "EyeLike",
];

/// Operators that move elements without computing.
const LAYOUT: &[&str] = &[
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Cast",
    "Expand",
    "Slice",
    "Split",
    "Concat",
    "Tile",
    "Gather",
    "Pad",
    "Where",
    "ScatterND",
    "ScatterElements",
];

/// What the rules look at in one graph: the model's, or the body of a node.
pub(super) struct Rules<'a> {
    tensors: Merged<'a>,
    /// Data that no weight has met yet.
    raw: HashSet<ValueId>,
}

impl<'a> Rules<'a> {
    /// For `graph`, in which what follows from the values of `inputs` is data.
    pub(super) fn new(graph: &'a Graph, record: &'a Record, inputs: impl Iterator<Item = ValueId>) -> Self {
        let mut rules = Self { tensors: Merged::new(graph, record, inputs), raw: HashSet::new() };
        rules.raw = rules.before_weights();
        rules
    }

    /// The data that no weight has met: computed from inputs by operators without weights, and filters of a preprocessing.
    fn before_weights(&self) -> HashSet<ValueId> {
        let mut raw: HashSet<ValueId> =
            self.tensors.graph.inputs.iter().copied().filter(|v| self.tensors.data.contains(v)).collect();
        for node in &self.tensors.graph.nodes {
            let mut read = node.inputs.iter().flatten().filter(|v| self.tensors.data.contains(v)).peekable();
            let weight = |slot: usize| {
                let stored = node.input(slot).and_then(|v| self.stored(v)).filter(|t| t.dtype().is_float());
                // An embedding table may hold a row of zeros, for padding, as a filter bank does.
                let trained = |t: &Tensor| node.is("Gather") || weight_slot(node, slot) && !is_bank(t) && !is_filter(t);
                stored.is_some_and(|t| !is_formula(t) && trained(t))
            };
            let meets = (0..node.inputs.len()).any(weight) || node.bodies().next().is_some();
            if read.peek().is_some() && read.all(|v| raw.contains(v)) && !meets {
                raw.extend(node.outputs.iter().flatten());
            }
        }
        raw
    }

    /// The stored tensor that a value is, or is rearranged from.
    fn stored(&self, v: ValueId) -> Option<&Tensor> {
        self.tensors.graph.tensor(v).or_else(|| {
            let node = &self.tensors.graph.nodes[*self.tensors.producers.get(&v)?];
            if !LAYOUT.iter().any(|op| node.is(op)) || self.tensors.data.contains(&v) {
                return None;
            }
            self.stored(node.input(0)?)
        })
    }

    /// The role of each group of places that read one parameter.
    pub(super) fn decide(&self, value: ValueId) -> Vec<(Vec<Site>, Decision)> {
        let groups = self.tensors.groups(value);
        // Of a number that several places read without a name of their own, nothing says that it is learned.
        let carried = groups.iter().flatten().any(|s| !s.through.is_empty());
        let alone = groups.len() == 1
            || carried
            || self.tensors.record.kind(&self.tensors.graph[value].name) == Some(Kind::Parameter);
        let merged = groups.len() > 1;
        let decide = |sites: Vec<Site>| {
            let name = sites.first().and_then(|s| s.through.last()).unwrap_or(&self.tensors.graph[value].name);
            let argument = sites.first().and_then(|s| self.tensors.argument(s));
            let decision = self.decide_group(value, name, &sites, (merged, alone), argument.as_ref());
            (sites, decision)
        };
        groups.into_iter().map(decide).collect()
    }

    fn decide_group(
        &self,
        value: ValueId,
        name: &str,
        sites: &[Site],
        (merged, alone): (bool, bool),
        argument: Option<&Argument>,
    ) -> Decision {
        let Some(tensor) = self.tensors.graph.constant(value) else { return (Role::Constant, "it is computed") };
        if !self.tensors.record.stores(&self.tensors.graph[value].name)
            && !self.tensors.record.makes(&self.tensors.graph[value].name)
        {
            return (Role::Constant, "in a function of the file");
        }
        if tensor.uniform().is_some() && self.tensors.record.is_literal(name) {
            return (Role::Constant, "a constant of the program: initial states and the like");
        }
        if self.tensors.record.is_computed(name) {
            return (Role::Constant, "computed by the exporter, from no parameter: a mask, a grid or the like");
        }
        // What is recorded of a merged tensor is true of one of its uses only; what is recorded of the use is better.
        let kind = match argument {
            Some(Argument::Stored(_, kind)) => Some(*kind),
            Some(Argument::None) if tensor.uniform().is_some() => {
                return (Role::Constant, "the exporter's own, for what the layer does not have");
            }
            _ if merged => None,
            _ => self.tensors.record.kind(name),
        };
        let alone = alone || argument.is_some();
        // TorchScript writes numbers as Constant nodes: a numbered tensor among the initializers is folded from parameters.
        let folded = tensor.len() > 1 && name.starts_with("onnx::") && self.tensors.record.stores(name);
        let named = folded || self.tensors.record.is_named(name);
        let uses: Vec<Use> = sites.iter().flat_map(|s| self.uses(s)).collect();
        let mixes = named && uses.iter().any(|u| u.way.iter().any(|(n, slot)| self.is_complement(*n, *slot)));
        let of = Evidence { tensor, name, named, kind, alone, mixes };
        let decisions: Vec<Decision> = uses.iter().map(|u| self.decide_use(&of, u)).collect();
        let Some(first) = decisions.first() else {
            return (Role::Constant, "nothing that depends on the input reads it");
        };
        if decisions.iter().all(|(role, _)| *role == Role::Stat) {
            return *first;
        }
        match decisions.iter().find(|(role, _)| *role == Role::Param) {
            Some(_) if kind == Some(Kind::Buffer) => (Role::Constant, "the exporter recorded it as a buffer"),
            // Among PyTorch's parameters there are some that it does not train.
            Some(_) if is_sinusoidal(tensor) => (Role::Constant, "sines and cosines of positions"),
            Some((_, _)) if kind == Some(Kind::Parameter) => (Role::Param, "the exporter recorded it as a parameter"),
            Some(_) if self.tensors.record.is_mixed(name) => (Role::Param, COMPUTED),
            Some(decision) => *decision,
            None if kind == Some(Kind::Parameter) && decisions.iter().any(|d| d.1 != TABLE_OF_SINES) => {
                (Role::Param, "the exporter recorded it as a parameter")
            }
            None => decisions.iter().copied().find(|(role, _)| *role == Role::Constant).unwrap_or(*first),
        }
    }

    /// Where what is read at a place meets data, seen through nodes that compute with constants alone.
    fn uses(&self, site: &Site) -> Vec<Use> {
        let mut found = Vec::new();
        let mut todo = vec![(site.node, site.slot, Vec::new())];
        let mut seen = HashSet::new();
        while let Some((n, slot, way)) = todo.pop() {
            if !seen.insert((n, slot)) {
                continue;
            }
            let node = &self.tensors.graph.nodes[n];
            let meets = node.inputs.iter().flatten().any(|v| self.tensors.data.contains(v));
            let ends = ENDS.iter().any(|op| node.is(op)) || casts_to_integers(node);
            if meets || ends || node.bodies().next().is_some() {
                found.push(Use { node: n, slot, way });
                continue;
            }
            let way = [way, vec![(n, slot)]].concat();
            for out in node.outputs.iter().flatten() {
                for reader in self.tensors.readers.get(out).into_iter().flatten() {
                    let node = &self.tensors.graph.nodes[*reader];
                    let slots = (0..node.inputs.len()).filter(|s| node.input(*s) == Some(*out));
                    todo.extend(slots.map(|s| (*reader, s, way.clone())));
                }
            }
        }
        found
    }

    fn decide_use(&self, of: &Evidence, used: &Use) -> Decision {
        if let Some(reason) =
            used.way.iter().find_map(|(n, slot)| self.is_aside(of, &self.tensors.graph.nodes[*n], *slot))
        {
            return (Role::Constant, reason);
        }
        let (node, slot) = (&self.tensors.graph.nodes[used.node], used.slot);
        if ["Sin", "Cos"].iter().any(|op| node.is(op)) {
            return (Role::Constant, TABLE_OF_SINES);
        }
        if let Some(decision) = self.inside(of, node, slot) {
            return decision;
        }
        if ENDS.iter().any(|op| node.is(op)) || casts_to_integers(node) {
            return (Role::Constant, "no gradient flows through what reads it");
        }
        if node.is("BatchNormalization") && slot >= 3 {
            let own = used.way.iter().all(|(n, _)| LAYOUT.iter().any(|op| self.tensors.graph.nodes[*n].is(op)));
            return if own {
                (Role::Stat, "running statistic")
            } else {
                (Role::Constant, "part of a running statistic")
            };
        }
        if weight_slot(node, slot) {
            return self.decide_weight(of, node, slot);
        }
        let decide = match node.op.as_str() {
            _ if !node.domain.is_empty() => None,
            "Add" | "Sub" | "Mul" | "Div" | "Pow" => Some(self.decide_elementwise(of, node, slot)),
            "Gather" | "GatherND" | "GatherElements" if slot == 0 => Some(decide_table(of)),
            op if LAYOUT.contains(&op) => Some(self.decide_content(of, node, slot)),
            "Max" | "Min" | "Clip" => None,
            "DequantizeLinear" => Some((Role::Constant, "scale of quantized values")),
            "STFT" | "DFT" => Some((Role::Constant, "window of a transform")),
            _ => None,
        };
        decide.unwrap_or((Role::Constant, "no operator uses it as a weight"))
    }

    /// Why a constant that meets other constants is not what is trained there.
    fn is_aside(&self, of: &Evidence, node: &Node, slot: usize) -> Option<&'static str> {
        let generated = !of.named;
        let neutral = |v: f64| of.tensor.uniform() == Some(v);
        match node.op.as_str() {
            "BatchNormalization" if slot >= 3 => Some("statistic of a weight's standardisation"),
            op if op.ends_with("Normalization") && slot >= 1 => {
                let own = generated && (neutral(1.0) || neutral(0.0)) || self.is_placeholder(of, node, slot);
                own.then_some("the exporter's own, for a normalization without gain and bias")
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" => {
                let number = of.tensor.len() == 1 && (generated || self.is_number(of, node, slot));
                let exporters = generated && of.tensor.len() > 1 && (neutral(0.0) || neutral(1.0));
                (number || exporters).then_some("a number that weights are computed with")
            }
            "MatMul" | "Gemm" | "Einsum" if is_unit_vector(of.tensor) => Some("vector of a power iteration"),
            "Max" | "Min" | "Clip" if slot > 0 || of.tensor.len() == 1 => Some("a bound"),
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" if slot > 0 => Some("axes"),
            "DequantizeLinear" if slot > 0 => Some("scale of quantized values"),
            "Dropout" | "Resize" | "Upsample" | "Pad" if slot > 0 => Some("a setting of an operator"),
            "OneHot" => Some("a setting of an operator"),
            _ => None,
        }
    }

    /// Ones or zeros that a merged tensor gives to a normalization of a weight, which needs some.
    fn is_placeholder(&self, of: &Evidence, node: &Node, slot: usize) -> bool {
        let weights = node.input(0).is_some_and(|x| !self.tensors.data.contains(&x));
        let value = if slot == 1 { 1.0 } else { 0.0 };
        weights && !of.alone && of.tensor.uniform() == Some(value)
    }

    fn decide_weight(&self, of: &Evidence, node: &Node, slot: usize) -> Decision {
        let uniform = of.tensor.uniform();
        let neutral = uniform == Some(if slot == 1 { 1.0 } else { 0.0 });
        if node.op.ends_with("Normalization") {
            return if neutral && !of.named && of.alone {
                (Role::Constant, "the exporter's own, for a normalization without gain and bias")
            } else {
                (Role::Param, "weight of an operator")
            };
        }
        let initial = ["LSTM", "GRU", "RNN"].iter().any(|op| node.is(op)) && (5..=6).contains(&slot);
        if initial && uniform == Some(0.0) && !of.named {
            return (Role::Constant, "initial state of zeros");
        }
        let raw =
            (0..node.inputs.len()).filter(|s| *s != slot).filter_map(|s| node.input(s)).any(|v| self.raw.contains(&v));
        let matrix =
            ["MatMul", "Gemm", "Einsum", "Conv", "FusedMatMul"].contains(&node.op.as_str()) && of.tensor.len() > 1;
        if matrix && of.kind.is_none() {
            if node.op == "Conv" && slot == 1 && is_filter(of.tensor) {
                return (Role::Constant, "one fixed filter for all channels");
            }
            if raw && slot != 2 && (is_bank(of.tensor) && !of.is_weight_name() || is_formula(of.tensor)) {
                return (Role::Constant, "filters of the preprocessing");
            }
            if is_mask(of.tensor) && !of.named {
                return (Role::Constant, "a selection of elements");
            }
        }
        (Role::Param, "weight of an operator")
    }

    fn decide_elementwise(&self, of: &Evidence, node: &Node, slot: usize) -> Decision {
        let tensor = of.tensor;
        let other = node.input(1 - slot.min(1));
        let raw = other.is_some_and(|o| self.raw.contains(&o));
        if tensor.len() == 1 && (!of.named || self.is_number(of, node, slot)) {
            return (Role::Constant, "a single number");
        }
        if is_mask(tensor) && !of.is_weight_name() {
            return (Role::Constant, "values of a mask");
        }
        if of.kind.is_none() && raw && self.scales_input(of, node, slot) {
            return (Role::Constant, "normalizes the input");
        }
        let formula = is_formula(tensor) && !of.mixes;
        if of.kind.is_none() && (formula || of.is_table_name() || self.is_rotary(tensor, node)) {
            return (Role::Constant, "a table of positions or the like");
        }
        let neutral = if matches!(node.op.as_str(), "Add" | "Sub") { 0.0 } else { 1.0 };
        if !of.named && of.alone && tensor.uniform() == Some(neutral) {
            return (Role::Constant, "changes nothing");
        }
        let reason = if tensor.len() == 1 {
            "a number with a name: a gate, a scale or a temperature"
        } else {
            "bias, gain or position table"
        };
        (Role::Param, reason)
    }

    /// Whether a node computes 1 − t of its input `slot`.
    fn is_complement(&self, node: NodeId, slot: usize) -> bool {
        let node = &self.tensors.graph.nodes[node];
        let one = |v: ValueId| self.tensors.graph.tensor(v).is_some_and(|t| t.uniform() == Some(1.0));
        node.is("Sub") && slot == 1 && node.input(0).is_some_and(one)
    }

    /// Whether a named number is nevertheless part of a formula.
    fn is_number(&self, of: &Evidence, node: &Node, slot: usize) -> bool {
        if of.kind == Some(Kind::Parameter) {
            return false;
        }
        let value = of.tensor.uniform().unwrap_or_default();
        let epsilon = matches!(node.op.as_str(), "Add" | "Sub") && value != 0.0 && value.abs() <= 1e-3;
        let complement = node.is("Sub") && slot == 0 && value == 1.0;
        let squares = node.is("Pow") && slot == 1 && (value == 2.0 || value == 0.5);
        let raw = node.input(1 - slot.min(1)).is_some_and(|o| self.raw.contains(&o));
        // A learned number has one place, or the same in each application of its layer.
        !of.alone || epsilon || complement || squares || raw || of.is_number_name()
    }

    /// Whether a constant next to an input scales it: any difference or quotient, and few numbers or one for each feature otherwise.
    fn scales_input(&self, of: &Evidence, node: &Node, slot: usize) -> bool {
        let long = of.tensor.shape().iter().filter(|d| **d > 1).count();
        let scaler = matches!(node.op.as_str(), "Sub" | "Div") && slot == 1;
        of.tensor.len() <= 4 || scaler && !of.is_weight_name() || long <= 1 && of.is_scaler_name()
    }

    /// Whether another constant beside this one completes its squares to one: a cosine for a sine.
    fn is_rotary(&self, tensor: &Tensor, node: &Node) -> bool {
        if !node.is("Mul") || tensor.len() < 8 || tensor.uniform().is_some() || tensor.any(|v| v.abs() > 1.0 + 1e-4) {
            return false;
        }
        let values = tensor.to_f64();
        let completes = |v: ValueId| {
            let other = self.tensors.graph.tensor(v).filter(|t| t.shape() == tensor.shape() && t.dtype().is_float());
            other.is_some_and(|t| t.to_f64().iter().zip(&values).all(|(a, b)| (a * a + b * b - 1.0).abs() < 1e-3))
        };
        self.tensors.graph.value_ids().any(completes)
    }

    /// A constant that becomes part of the data: a class token, padding, a mask.
    fn decide_content(&self, of: &Evidence, node: &Node, slot: usize) -> Decision {
        let content = match node.op.as_str() {
            "Concat" => true,
            "Where" => slot > 0,
            "ScatterND" | "ScatterElements" => slot != 1,
            _ => slot == 0,
        };
        let learned = content && of.tensor.len() > 1 && of.kind != Some(Kind::Buffer);
        let plain = of.tensor.uniform().is_some() && !of.named
            || is_mask(of.tensor)
            || is_formula(of.tensor)
            || of.is_table_name();
        if learned && (of.kind == Some(Kind::Parameter) || !plain) {
            return (Role::Param, "token that is put beside the data");
        }
        (Role::Constant, "filling or table beside the data")
    }

    /// The use in the body of control flow, if the node has one.
    fn inside(&self, of: &Evidence, node: &Node, slot: usize) -> Option<Decision> {
        let mut decisions = node.bodies().filter_map(|body| {
            let own = body.graph.inputs.len() - body.captured;
            let place = (slot + body.captured).checked_sub(node.inputs.len()).map(|i| own + i);
            // The inputs of a loop before these are its number of iterations and condition; of a scan there are none.
            let place = place.or_else(|| (!node.is("If")).then_some(slot).filter(|i| *i < own))?;
            let value = *body.graph.inputs.get(place)?;
            Some(self.in_body(of, node, body, value))
        });
        let first = decisions.next()?;
        let rest: Vec<Decision> = decisions.collect();
        Some(if first.0 == Role::Param {
            first
        } else {
            rest.into_iter().find(|d| d.0 == Role::Param).unwrap_or(first)
        })
    }

    fn in_body(&self, of: &Evidence, node: &Node, body: &Arc<Body>, value: ValueId) -> Decision {
        let graph = &body.graph;
        let own = graph.inputs.len() - body.captured;
        let depends = |(i, v): (usize, &ValueId)| {
            let outer = (i >= own).then(|| node.input(node.inputs.len() - body.captured + i - own)).flatten();
            (*v != value && outer.is_none_or(|o| self.tensors.data.contains(&o))).then_some(*v)
        };
        let inputs: Vec<ValueId> = graph.inputs.iter().enumerate().filter_map(depends).collect();
        let mut rules = Rules::new(graph, self.tensors.record, inputs.into_iter());
        rules.raw.clear();
        let uses: Vec<Use> = rules.tensors.sites(value).iter().flat_map(|s| rules.uses(s)).collect();
        let decisions: Vec<Decision> = uses.iter().map(|u| rules.decide_use(of, u)).collect();
        let param = decisions.iter().find(|d| d.0 == Role::Param).or(decisions.first()).copied();
        param.unwrap_or((Role::Constant, "nothing in the body reads it"))
    }
}

const TABLE_OF_SINES: &str = "frequencies of a table of sines";

/// A place where a constant, or what is computed from it alone, meets data.
struct Use {
    node: NodeId,
    slot: usize,
    /// The nodes on the way, with the input by which they are entered.
    way: Vec<(NodeId, usize)>,
}

fn decide_table(of: &Evidence) -> Decision {
    if of.kind.is_none() && (is_formula(of.tensor) || is_mask(of.tensor) && !of.named || of.is_table_name()) {
        return (Role::Constant, "a table of positions or the like");
    }
    if of.tensor.len() == 1 {
        return (Role::Constant, "a single number");
    }
    (Role::Param, "embedding table")
}

fn casts_to_integers(node: &Node) -> bool {
    let to = match node.attrs.get("to") {
        Some(Attr::Int(to)) => i32::try_from(*to).ok().and_then(DType::from_onnx),
        _ => None,
    };
    node.is("Cast") && to.is_some_and(|d| !d.is_float())
}

/// Whether input `slot` of a node is a weight by the operator's own meaning.
fn weight_slot(node: &Node, slot: usize) -> bool {
    let table = match node.domain.as_str() {
        "" => WEIGHT_SLOTS,
        "com.microsoft" => MICROSOFT_SLOTS,
        _ => &[],
    };
    table.iter().any(|(op, slots)| node.op == *op && slots.contains(&slot))
}
