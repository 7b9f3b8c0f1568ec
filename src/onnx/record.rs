//! What an exporter recorded about the tensors and nodes of a file, beside the graph itself.
//!
//! PyTorch's dynamo exporter says of every initializer whether it was a parameter or a buffer, which tensors a folded one was made of, in
//! which module a node lies, and which call with which arguments it was made of. The TorchScript exporter puts the module into the node's name. Other exporters say none of this.

use onnx_protobuf::{GraphProto, NodeProto, StringStringEntryProto, TensorProto};
use std::collections::{HashMap, HashSet};

/// What a tensor was in the program that was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A trained parameter.
    Parameter,
    /// A buffer or a constant: saved with the weights, but not trained.
    Buffer,
}

const KIND: &str = "pkg.torch.export.graph_signature.InputSpec.kind";

impl Kind {
    /// The tensor, recorded as this and nothing else.
    pub(super) fn mark(self, mut tensor: TensorProto) -> TensorProto {
        let value = if self == Self::Parameter { "PARAMETER" } else { "BUFFER" };
        let entry = StringStringEntryProto { key: KIND.into(), value: value.into(), ..Default::default() };
        tensor.metadata_props = vec![entry];
        tensor
    }
}

/// What a node's input was in the program: an argument of the call that the node was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Argument {
    /// A parameter or buffer, by its name there: `p_bn_weight`.
    Stored(String, Kind),
    /// The call had no such argument: the exporter put a constant there.
    None,
}

/// A call of the program that a node was made of: `%y = linear(%x, %p_weight, None)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// The name of its result: `y`. A file has a value of this name, unless the exporter took it out.
    pub(super) result: String,
    /// The operator: `linear`.
    operator: String,
    /// Its positional arguments as they are printed: `%x`, `%p_weight`, `None`, `[%a, %b]`.
    pub(super) arguments: Vec<String>,
}

impl Call {
    /// What the dynamo exporter recorded of a node.
    pub(super) fn of(node: &NodeProto) -> Option<Self> {
        entry(&node.metadata_props, "pkg.torch.onnx.fx_node").map(Self::parse)
    }

    /// The results of other calls, and the inputs, among the arguments: `x`, `a` and `b`, but no parameter.
    pub(super) fn values(&self) -> impl Iterator<Item = &str> {
        let words = self.arguments.iter().flat_map(|a| a.split(|c: char| !(c.is_alphanumeric() || "_%.".contains(c))));
        let names = words.filter_map(|w| w.strip_prefix('%'));
        names.filter(|w| !["p_", "b_", "c_"].iter().any(|p| w.starts_with(p)))
    }

    /// Reads a call as torch.fx prints it:
    /// `%y : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%x, %p_weight, None), kwargs = {})`.
    fn parse(text: &str) -> Self {
        let result = text.split(" :").next().unwrap_or_default().trim_start_matches('%').to_owned();
        let target = text.split_once("target=").map_or("", |(_, rest)| rest.split(']').next().unwrap_or_default());
        let operator = target.trim_start_matches("torch.ops.").split('.').nth(1).unwrap_or_default().to_owned();
        let (mut depth, mut argument, mut arguments) = (0, String::new(), Vec::new());
        let Some((_, rest)) = text.split_once("(args = (") else { return Self { result, operator, arguments } };
        for c in rest.chars() {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' if depth > 0 => depth -= 1,
                ')' => break,
                ',' if depth == 0 => {
                    arguments.push(std::mem::take(&mut argument).trim().to_owned());
                    continue;
                }
                _ => {}
            }
            argument.push(c);
        }
        arguments.push(argument.trim().to_owned());
        Self { result, operator, arguments }
    }
}

/// The record of one file.
#[derive(Debug, Default)]
pub(super) struct Record {
    calls: HashMap<String, Call>,
    kinds: HashMap<String, Kind>,
    folded: HashMap<String, Vec<String>>,
    modules: HashMap<String, String>,
    /// Names of initializers, and of what `Identity` nodes make of them.
    initializers: HashSet<String>,
    outputs: HashSet<String>,
    /// Whether TorchScript's names of merged tensors are still there.
    aliased: bool,
}

impl Record {
    /// Reads the metadata of a file's graph.
    pub(super) fn new(graph: &GraphProto) -> Self {
        let mut record = Self::default();
        let stored = graph.initializer.iter().map(|t| (&t.name, &t.metadata_props));
        let values = graph.value_info.iter().map(|v| (&v.name, &v.metadata_props));
        for (name, props) in stored.chain(values) {
            let kind = match entry(props, KIND) {
                Some("PARAMETER") => Some(Kind::Parameter),
                Some("BUFFER" | "CONSTANT_TENSOR") => Some(Kind::Buffer),
                _ => None,
            };
            if let Some(kind) = kind {
                record.kinds.insert(name.clone(), kind);
            }
            if let Some(names) = entry(props, "pkg.onnxscript.optimizer.folded_from") {
                record.folded.insert(name.clone(), strings(names));
            }
        }
        record.names_in(graph);
        record.initializers.extend(graph.sparse_initializer.iter().map(|t| t.values.name.clone()));
        for node in &graph.node {
            if node.op_type == "Identity" {
                record.aliased |= node.input.iter().any(|i| record.initializers.contains(i));
                record.initializers.extend(node.output.iter().cloned());
            }
            // An optimizer that takes the Identity nodes out makes initializers of the Constant nodes, too.
            record.aliased |= node.op_type == "Constant" && node.output.iter().any(|o| o.starts_with('/'));
            record.outputs.extend(node.output.iter().cloned());
            if let (Some(module), Some(first)) = (module(node), node.output.first()) {
                record.modules.insert(first.clone(), module);
            }
            if let (Some(call), Some(first)) = (Call::of(node), node.output.first()) {
                record.calls.insert(first.clone(), call);
            }
        }
        record
    }

    /// The names of what a graph stores, in the bodies of its nodes, too.
    fn names_in(&mut self, graph: &GraphProto) {
        self.initializers.extend(graph.initializer.iter().map(|t| t.name.clone()));
        for body in graph.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_ref()) {
            self.outputs.extend(body.node.iter().filter(|n| n.op_type == "Constant").flat_map(|n| n.output.clone()));
            self.names_in(body);
        }
    }

    /// What the exporter says that the tensor `name` is.
    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        let folded = || self.kinds.get(self.only_source(name)?).copied();
        self.kinds.get(name).copied().or_else(folded)
    }

    /// Whether a person chose this name: it is an initializer's, or that of an `Identity` of one, and no exporter's way to number constants.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.initializers.contains(name) && !is_generated(self.only_source(name).unwrap_or(name))
    }

    /// Whether this tensor was merged with no other, since where TorchScript merges, it leaves each one's name.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        self.aliased && self.calls.is_empty() && self.is_named(name)
    }

    /// Whether the exporter computed this tensor from parameters and more, so that it holds none of them as it is.
    pub(super) fn is_mixed(&self, name: &str) -> bool {
        let sources = self.sources(name);
        sources.len() > 1 && !sources.iter().all(|s| is_step(s))
    }

    /// What the exporter computed this tensor from, by the names in the program.
    fn sources(&self, name: &str) -> &[String] {
        self.folded.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one thing that the exporter computed this tensor from.
    pub(super) fn only_source(&self, name: &str) -> Option<&str> {
        if let [one] = self.sources(name) { Some(one) } else { None }
    }

    /// The one weight or table among the things that the exporter computed this tensor from.
    pub(super) fn only_weight(&self, name: &str) -> Option<&str> {
        let is_weight = |source: &&String| ["weight", "table"].iter().any(|end| source.ends_with(end));
        let mut weights = self.sources(name).iter().filter(is_weight);
        let first = weights.next()?;
        weights.next().is_none().then_some(first.as_str())
    }

    /// Whether an initializer, or an `Identity` of one, has this name.
    pub(super) fn stores(&self, name: &str) -> bool {
        self.initializers.contains(name)
    }

    /// Whether PyTorch wrote this tensor as a Constant node; it keeps parameters among the initializers.
    pub(super) fn is_literal(&self, name: &str) -> bool {
        let script = name.starts_with('/') && name.contains("Constant");
        let dynamo = !self.calls.is_empty() && self.outputs.contains(name);
        (script || dynamo) && !self.initializers.contains(name)
    }

    /// Whether the exporter computed this tensor, and from no parameter: a mask, a grid, an initial state.
    pub(super) fn is_computed(&self, name: &str) -> bool {
        let own = |source: &String| !self.kinds.contains_key(source) && is_step(source);
        let sources = self.sources(name);
        !sources.is_empty() && sources.iter().all(own)
    }

    /// The module that the node with this first output lies in: `layer1.0.bn1`; empty for the network itself.
    pub(super) fn module(&self, first_output: &str) -> Option<&str> {
        self.modules.get(first_output).map(String::as_str)
    }

    /// What input `slot` of the node `op` with this first output was in the program; none where nothing tells.
    pub(super) fn argument(&self, first_output: &str, op: &str, slot: usize) -> Option<Argument> {
        let Call { operator, arguments, .. } = self.calls.get(first_output)?;
        let is_stored = |a: &&String| ["%p_", "%b_", "%c_"].iter().any(|p| a.starts_with(p));
        let place = match (operator.as_str(), op, slot) {
            ("layer_norm", "LayerNormalization", 1 | 2) => Some(slot + 1),
            ("group_norm", "GroupNormalization", 1 | 2) => Some(slot + 1),
            ("group_norm", "InstanceNormalization", _) => return Some(Argument::None),
            ("group_norm", "Mul", _) => Some(2),
            ("group_norm", "Add", _) => Some(3),
            (t, "BatchNormalization", 1..=4) if t.contains("batch_norm") => Some(slot),
            ("instance_norm", "InstanceNormalization", 1 | 2) => Some(slot),
            ("linear", "Gemm", 1 | 2) => Some(slot),
            ("linear", "MatMul", _) => Some(1),
            ("linear", "Add", _) => Some(2),
            (t, "Conv" | "ConvTranspose", 1 | 2) if t.contains("conv") => Some(slot),
            _ => None,
        };
        let argument = match place {
            Some(place) => arguments.get(place).filter(|a| *a == "None" || is_stored(a))?,
            None => {
                let mut stored = arguments.iter().filter(is_stored);
                let one = stored.next()?;
                stored.next().is_none().then_some(one)?
            }
        };
        Some(match argument.strip_prefix('%') {
            None => Argument::None,
            Some(name) => {
                let kind = if name.starts_with("p_") { Kind::Parameter } else { Kind::Buffer };
                Argument::Stored(name.to_owned(), kind)
            }
        })
    }

    /// Whether a node of the file's own main graph, or a Constant in a body, makes this value.
    pub(super) fn makes(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }
}

fn entry<'a>(props: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    props.iter().find(|p| p.key == key).map(|p| p.value.as_str())
}

/// The strings of a list as Python prints it: `['a', 'b']`.
fn strings(list: &str) -> Vec<String> {
    let inner = list.trim().trim_start_matches('[').trim_end_matches(']');
    inner.split(',').map(|s| s.trim().trim_matches(['\'', '"']).to_owned()).filter(|s| !s.is_empty()).collect()
}

fn module(node: &NodeProto) -> Option<String> {
    if let Some(scopes) = entry(&node.metadata_props, "pkg.torch.onnx.name_scopes") {
        // From the network down to the operator itself.
        let scopes = strings(scopes);
        return Some(scopes.len().checked_sub(2).map_or_else(String::new, |i| scopes[i].clone()));
    }
    // TorchScript: /layer1/layer1.0/bn1/BatchNormalization, in which a step may repeat the way to it.
    let path = node.name.strip_prefix('/')?;
    let (path, _) = path.rsplit_once('/').unwrap_or(("", path));
    let mut module = String::new();
    for step in path.split('/').filter(|s| !s.is_empty()) {
        let last = module.rsplit('.').next().unwrap_or_default();
        let step =
            step.strip_prefix(last).and_then(|s| s.strip_prefix('.')).filter(|_| !last.is_empty()).unwrap_or(step);
        module = if module.is_empty() { step.to_owned() } else { format!("{module}.{step}") };
    }
    Some(module)
}

/// Whether a value is a step of the program, by its name: `val_7`, or the operator, perhaps with its overload, and a number, as in
/// `new_ones_1` and `scalar_tensor_default_2`.
fn is_step(name: &str) -> bool {
    let operator = stem(name);
    let operator = operator.strip_suffix("_default").unwrap_or(operator);
    STEPS.split_whitespace().any(|s| s == operator)
}

/// A name without the number that tells it from others: `layer_norm` of `layer_norm_1`.
pub(super) fn stem(name: &str) -> &str {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() < name.len() { stem.strip_suffix('_').unwrap_or(stem) } else { stem }
}

/// The number at the end of a name, 0 where there is none.
pub(super) fn number(name: &str) -> usize {
    let at = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[at..].parse().unwrap_or(0)
}

/// Operators of PyTorch that constants are made with. A parameter is not called like any of them.
const STEPS: &str = "\
    val value shape select_scatter slice_scatter getitem lifted_tensor lift_fresh_copy _tensor_constant scalar_tensor \
    arange linspace ones zeros full eye empty new_ones new_zeros new_full new_empty ones_like zeros_like full_like \
    add sub rsub mul div pow neg abs exp log sqrt rsqrt reciprocal sin cos floor ceil round clamp minimum maximum \
    fmod remainder floor_divide cumsum sum mean outer eq ne lt le gt ge logical_and logical_or logical_not \
    bitwise_and bitwise_or bitwise_not __and__ __or__ where masked_fill tril triu view reshape _unsafe_view flatten \
    expand expand_as repeat tile squeeze unsqueeze permute transpose t cat stack split chunk unbind slice select \
    index index_select gather pad constant_pad_nd roll flip meshgrid broadcast_to contiguous clone detach alias to \
    _to_copy type_as fill copy \
    softmax log_softmax sigmoid tanh relu prod cumprod amax amin max min argmax argsort sort topk std var linalg_vector_norm norm matmul \
    mm bmm einsum diag diagonal clamp_min clamp_max sign erf square";

/// Whether an exporter or optimizer made this name up.
pub(crate) fn is_generated(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "onnx::",
        "/",
        "val_",
        "const",
        "Const",
        "_v_",
        "scalar_tensor",
        "_to_copy",
        "clone",
        "lift",
        "_lift",
        "c_lift",
        "_tensor_constant",
        "ones",
        "zeros",
        "full",
        "arange",
        "new_",
        "ortshared",
        "helper.constant",
        "p2o.helper",
        "fill_constant",
        "tmp_",
        "unnamed",
    ];
    // Of TensorFlow's tensors only variables are read by an operator.
    let literal = name.ends_with(":0") && !["ReadVariableOp", "Variable", "resource"].iter().any(|w| name.contains(w));
    name.chars().all(|c| c.is_ascii_digit())
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || name.contains("/Constant")
        || name.contains("onnx::")
        || literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_from_either_exporter() {
        let mut node = NodeProto { name: "/layer1/layer1.0/bn1/BatchNormalization".into(), ..Default::default() };
        assert_eq!(module(&node).as_deref(), Some("layer1.0.bn1"));
        node.name = "/Add_1".into();
        assert_eq!(module(&node).as_deref(), Some(""));
        node.name = "node_12".into();
        assert_eq!(module(&node), None);
        let (key, value) = ("pkg.torch.onnx.name_scopes".into(), "['', 'encs', 'encs.layers.0', 'linear']".into());
        node.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
        assert_eq!(module(&node).as_deref(), Some("encs.layers.0"));
    }

    #[test]
    fn calls_tell_the_arguments() {
        let text = "%n : [num_users=2] = call_function[target=torch.ops.aten.layer_norm.default](args = (%add, [8, 2], %p_n_weight, None, 1e-05, False), kwargs = {})";
        let call = Call::parse(text);
        assert_eq!((call.result.as_str(), call.operator.as_str()), ("n", "layer_norm"));
        assert_eq!(call.arguments, ["%add", "[8, 2]", "%p_n_weight", "None", "1e-05", "False"]);
        let mut record = Record::default();
        record.calls.insert("y".into(), call);
        let weight = Argument::Stored("p_n_weight".into(), Kind::Parameter);
        assert_eq!(record.argument("y", "LayerNormalization", 1), Some(weight));
        assert_eq!(record.argument("y", "LayerNormalization", 2), Some(Argument::None));
        assert_eq!(record.argument("z", "LayerNormalization", 1), None);
    }

    #[test]
    fn names_that_exporters_number_are_not_chosen() {
        for name in ["onnx::Mul_12", "/Constant_output_0", "val_3", "217", "model/batchnorm/add/y:0"] {
            assert!(is_generated(name), "{name}");
        }
        for name in ["alpha", "layer1.0.weight", "model/dense/BiasAdd/ReadVariableOp:0", "pool.p"] {
            assert!(!is_generated(name), "{name}");
        }
    }
}
