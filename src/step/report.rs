//! What there is to know about a model before training it, as `bisam inspect` shows it.

use super::account::{Account, nothing_to_train};
use super::cost::{Cost, cost};
use super::placement::{Fallback, for_cuda, off_cuda};
use super::{Ends, Origin, Prepared, Preset, StepOptions, build, prepare};
use crate::autodiff::{lower, table};
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Declared, Dim, Graph, Node, Source, Value, ValueId};
use crate::onnx::{Model, Role};
use crate::trace::{Evaluator, Sizes};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Everything known about a model. What needs shapes is missing where the model does not run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The file, as it was named.
    pub file: String,
    /// Name of the graph.
    pub graph: String,
    /// The exporter and its version, as the file says.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Version of each operator domain.
    pub opsets: BTreeMap<String, i64>,
    /// The inputs, with the dimensions that the file declares.
    pub inputs: Vec<Port>,
    /// The outputs; after one that holds no numbers, the tensors that it is made of.
    pub outputs: Vec<Port>,
    /// Outputs that hold no numbers: training passes them over.
    pub left_out: Vec<String>,
    /// Where the losses read.
    pub logits: Option<Origin>,
    /// Every parameter, running statistic and float constant.
    pub tensors: Vec<Tensor>,
    /// The sum of what is trained and what stays; missing where a step cannot be built.
    pub account: Option<Account>,
    /// Every operator.
    pub operators: Vec<Operator>,
    /// How the model normalizes.
    pub normalization: Normalization,
    /// Parameters that the exporter had merged into one initializer.
    pub merged: Vec<Merged>,
    /// What a step costs.
    pub cost: Option<Cost>,
    /// Nodes of a step that would leave a CUDA device; unknown where a step cannot be built.
    pub off_cuda: Option<Vec<Fallback>>,
    /// What there is to say about batches of this size.
    pub notes: Vec<String>,
    /// What stands in the way of training; empty when nothing does.
    pub problems: Vec<Problem>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type; empty where nothing says.
    pub dtype: String,
    /// Dimensions: numbers, names, or `?`.
    pub dims: Vec<String>,
    /// Shape at the batch size asked for.
    pub shape: Option<Vec<usize>>,
}

/// A float tensor stored in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// Name of the initializer, or the name that untying gave it.
    pub name: String,
    /// Element type in the file; half precision is computed and trained in f32.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Number of elements.
    pub count: usize,
    /// What it is used as.
    pub role: Used,
    /// Why.
    pub reason: String,
}

/// What a stored tensor is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Used {
    /// Trained.
    Trained,
    /// A running statistic.
    RunningStatistic,
    /// Left as it is.
    Constant,
}

/// An operator of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// Its name, with the domain where that is not the default one.
    pub operator: String,
    /// Number of nodes.
    pub count: usize,
    /// Whether it has a gradient.
    pub gradient: Gradient,
    /// Why it has none.
    pub reason: Option<String>,
    /// Nodes whose gradient training needs.
    pub needed: usize,
}

/// Whether an operator has a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// By its rule.
    Yes,
    /// None by its nature.
    None,
    /// There is no rule, and some node needs one.
    Missing,
    /// There is no rule, and no node needs one.
    Unneeded,
}

/// Normalization layers of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Normalization {
    /// BatchNormalization nodes exported in training mode.
    pub training: usize,
    /// BatchNormalization nodes exported in evaluation mode.
    pub evaluation: usize,
    /// Normalization nodes without running statistics, by operator.
    pub others: BTreeMap<String, usize>,
    /// Convolutions with a bias, where there is no BatchNormalization: an exporter may have folded it into them.
    pub conv_with_bias: usize,
}

/// A parameter that got its own tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Name of the parameter.
    pub name: String,
    /// The initializer that the exporter had merged it into.
    pub initializer: String,
}

/// Something that stands in the way of training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it is, with the node.
    pub cause: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<&Error> for Problem {
    fn from(e: &Error) -> Self {
        Self { cause: e.to_string(), hint: e.hint_text().map(str::to_owned) }
    }
}

/// An imported model made ready for a look at it, as far as that goes.
pub struct Inspection<'a> {
    model: &'a Model,
    /// Concretized where that was possible, else as imported.
    pub graph: Graph,
    prepared: Option<Prepared>,
    batch: usize,
    failure: Option<Error>,
}

impl<'a> Inspection<'a> {
    /// Unties and concretizes the model; a failure becomes a problem of the report.
    ///
    /// The logits are looked for as [`prepare`] does, by the name `logits` where there is one.
    pub fn new(model: &'a Model, sizes: &Sizes, logits: Option<&str>, run: Result<&dyn Evaluator>) -> Self {
        let graph = model.graph.clone();
        let nothing = || graph.params().is_empty().then(|| nothing_to_train(&graph));
        let nothing = nothing();
        let (mut graph, prepared, failure) =
            match run.and_then(|run| prepare(&graph, sizes, Ends { logits, loss: None }, run)) {
                Ok(prepared) => (prepared.graph.clone(), Some(prepared), None),
                Err(e) => (graph, None, Some(e)),
            };
        graph.outputs.truncate(model.graph.outputs.len());
        let failure = failure.or(nothing);
        Self { model, graph, prepared, batch: sizes.batch, failure }
    }

    /// The report.
    pub fn report(&self) -> Report {
        let stages = self.prepared.as_ref().map(|p| build(p, &Preset::Bisam.options()));
        let mut problems = self.missing();
        problems.extend(self.failure.iter().map(Problem::from));
        if problems.is_empty() {
            problems.extend(stages.iter().filter_map(|s| s.as_ref().err()).map(Problem::from));
        }
        let proto = &self.model.proto;
        let stages = stages.and_then(Result::ok);
        let again = StepOptions { recompute: true, ..Preset::Bisam.options() };
        let recompute = stages.as_ref().and(self.prepared.as_ref()).and_then(|p| build(p, &again).ok());
        Report {
            file: self.model.path.display().to_string(),
            graph: self.graph.name.clone(),
            producer: format!("{} {}", proto.producer_name, proto.producer_version).trim().to_owned(),
            ir_version: proto.ir_version,
            opsets: proto.opset_import.iter().map(|o| (domain(&o.domain), o.version)).collect(),
            inputs: self.graph.inputs.iter().map(|v| self.port(*v)).collect(),
            outputs: self.outputs(),
            left_out: self.model.left_out.iter().map(|l| l.name.clone()).collect(),
            logits: self.prepared.as_ref().and_then(|p| p.origin.clone()),
            tensors: self.tensors(stages.as_ref().map(|s| s.params.iter().map(|p| p.name.as_str()).collect())),
            account: stages.as_ref().map(|s| Account::new(self.model, &self.model.graph, s)),
            operators: self.operators(),
            normalization: normalization(&self.model.graph),
            merged: self
                .model
                .untied
                .iter()
                .map(|u| Merged { name: u.name.clone(), initializer: u.merged.clone() })
                .collect(),
            cost: self.prepared.as_ref().map(|p| {
                // Products inside of larger operators count too.
                let mut lowered = p.graph.clone();
                let graph = if lower(&mut lowered).is_ok() { &lowered } else { &p.graph };
                cost(graph, self.batch, stages.as_ref(), recompute.as_ref())
            }),
            off_cuda: stages.as_ref().map(|s| off_cuda(&for_cuda(&s.grad))),
            notes: self.prepared.as_ref().map(|p| p.notes.clone()).unwrap_or_default(),
            problems,
        }
    }

    /// A problem for every operator whose rule is missing and needed.
    fn missing(&self) -> Vec<Problem> {
        let on_path = self.on_path();
        let missing = |o: &Operator| {
            let nodes = self.graph.nodes.iter().zip(&on_path);
            let first =
                nodes.filter(|(n, on)| **on && n.qualified() == o.operator).map(|(n, _)| n.name.as_str()).next();
            let (name, n) = (&o.operator, o.needed);
            let why = o.reason.as_deref().map_or_else(|| "it has no gradient rule".to_owned(), ToOwned::to_owned);
            let hint = if why.contains("quantized") {
                "train the model it was quantized from, and quantize the result"
            } else {
                "export the model with other operators, or freeze the parameters before it"
            };
            Problem {
                cause: format!("{name}: {why}; {n} nodes need its gradient, `{}` first", first.unwrap_or("")),
                hint: Some(hint.into()),
            }
        };
        self.operators().iter().filter(|o| o.gradient == Gradient::Missing).map(missing).collect()
    }

    fn port(&self, v: ValueId) -> Port {
        let value = &self.graph[v];
        let declared = match &value.source {
            Source::Input(d) => Some(d.clone()),
            _ => self.declared_output(&value.name),
        };
        let dim = |d: &Dim| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => s.clone(),
            Dim::Unknown => "?".into(),
        };
        let ty = value.ty.as_ref();
        let dtype = declared.as_ref().map(|d| d.dtype).or(ty.map(|t| t.dtype));
        let dims = declared.and_then(|d| d.dims).map(|d| d.iter().map(dim).collect());
        Port {
            name: value.name.clone(),
            dtype: dtype.map_or(String::new(), |d| d.to_string()),
            dims: dims.unwrap_or_default(),
            shape: ty.map(|t| t.shape.clone()),
        }
    }

    /// The outputs of the file; of those that hold no numbers the name, what they hold, and the tensors they are made of.
    fn outputs(&self) -> Vec<Port> {
        let mut values = self.graph.outputs.iter();
        let mut ports = Vec::new();
        for output in &self.model.proto.graph.output {
            let Some(left) = self.model.left_out.iter().find(|l| l.name == output.name) else {
                ports.extend(values.next().map(|v| self.port(*v)));
                continue;
            };
            let dtype = left.kind.clone();
            ports.push(Port { name: left.name.clone(), dtype, dims: Vec::new(), shape: None });
            ports.extend(values.by_ref().take(left.instead.len()).map(|v| self.port(*v)));
        }
        ports
    }

    fn declared_output(&self, name: &str) -> Option<Declared> {
        let info = self.model.proto.graph.output.iter().find(|o| o.name == name)?;
        crate::onnx::declared(info).ok()
    }

    fn tensors(&self, reached: Option<HashSet<&str>>) -> Vec<Tensor> {
        let reasons: HashMap<ValueId, (Role, &str)> =
            self.model.roles.iter().map(|r| (r.value, (r.role, r.reason))).collect();
        let merged: HashMap<&str, &str> =
            self.model.untied.iter().map(|u| (u.name.as_str(), u.merged.as_str())).collect();
        let read = self.graph.readers();
        let stored = self.model.proto.graph.initializer.iter();
        let stored: HashMap<&str, DType> =
            stored.filter_map(|i| Some((i.name.as_str(), DType::from_onnx(i.data_type)?))).collect();
        let mut tensors = Vec::new();
        for v in self.graph.value_ids() {
            let value = &self.graph[v];
            let Some(t) = self.graph.tensor(v).filter(|t| t.dtype().is_float()) else { continue };
            // Constants that folding made are no tensors of the file.
            let known = reasons.get(&v).map(|(_, reason)| (*reason).to_owned());
            let untied = merged.get(value.name.as_str()).map(|m| format!("was merged into {m}"));
            let Some(mut reason) = untied.or(known) else { continue };
            let role = match &value.source {
                Source::Param(_) => Used::Trained,
                Source::Stat(_) => Used::RunningStatistic,
                _ if !read.contains_key(&v) => continue,
                _ => Used::Constant,
            };
            let mut role = role;
            if role == Used::Trained && reached.as_ref().is_some_and(|r| !r.contains(value.name.as_str())) {
                (role, reason) = (Used::Constant, "does not reach the logits".into());
            }
            tensors.push(Tensor {
                name: value.name.clone(),
                dtype: stored.get(value.name.as_str()).copied().unwrap_or(t.dtype()).to_string(),
                shape: t.shape().to_vec(),
                count: t.len(),
                role,
                reason,
            });
        }
        tensors
    }

    fn operators(&self) -> Vec<Operator> {
        let on_path = self.on_path();
        let mut operators: Vec<Operator> = Vec::new();
        for (node, needed) in self.graph.nodes.iter().zip(on_path) {
            let name = node.qualified();
            let entry = table::find(node).ok();
            let at = operators.iter().position(|o| o.operator == name).unwrap_or_else(|| {
                let (gradient, reason) = match entry {
                    Some(table::Entry::Rule(_) | table::Entry::Lower(_)) => (Gradient::Yes, None),
                    Some(table::Entry::NoGradient(why)) => (Gradient::None, Some(why.to_owned())),
                    Some(table::Entry::Refused(why)) => (Gradient::Unneeded, Some(why.to_owned())),
                    None => (Gradient::Unneeded, None),
                };
                operators.push(Operator { operator: name, count: 0, gradient, reason, needed: 0 });
                operators.len() - 1
            });
            let operator = &mut operators[at];
            operator.count += 1;
            operator.needed += usize::from(needed);
            if operator.gradient == Gradient::Unneeded && needed {
                operator.gradient = Gradient::Missing;
            }
        }
        operators.sort_by(|a, b| b.count.cmp(&a.count).then(a.operator.cmp(&b.operator)));
        operators
    }

    /// For every node, whether a trained parameter reaches it.
    fn on_path(&self) -> Vec<bool> {
        let reached = self.graph.downstream(self.graph.params(), Value::carries_gradient);
        let on = |n: &Node| n.inputs.iter().flatten().any(|v| reached.contains(v));
        self.graph.nodes.iter().map(on).collect()
    }

    /// One node with what it reads and what reads it; `name` is the node's or one of its outputs'.
    ///
    /// # Errors
    /// When there is none; the hint names similar ones.
    pub fn node(&self, name: &str) -> Result<Neighbourhood> {
        let is_output = |n: &Node| n.outputs.iter().flatten().any(|v| self.graph[*v].name == name);
        let found = self.graph.nodes.iter().find(|n| n.name == name);
        let Some(node) = found.or_else(|| self.graph.nodes.iter().find(|n| is_output(n))) else {
            return Err(self.no_node(name));
        };
        let producers = self.graph.producers();
        let readers = self.graph.readers();
        let label = |i: &usize| format!("{} {}", self.graph.nodes[*i].qualified(), self.graph.nodes[*i].name);
        let edge = |v: &Option<ValueId>| {
            let v = (*v)?;
            let value = &self.graph[v];
            let source = match &value.source {
                Source::Node => producers.get(&v).map_or(String::new(), label),
                Source::Input(_) => "input of the model".into(),
                Source::Constant(t) if t.len() <= 8 => format!("constant {t}"),
                Source::Constant(_) => "constant".into(),
                Source::Param(_) => "parameter".into(),
                Source::Stat(_) => "running statistic".into(),
            };
            let mut consumers: Vec<String> = readers.get(&v).into_iter().flatten().map(label).collect();
            if self.graph.outputs.contains(&v) {
                consumers.push("output of the model".into());
            }
            let ty = value.ty.as_ref().map(ToString::to_string);
            Some(Edge { value: value.name.clone(), ty, producer: source, consumers })
        };
        let gradient = match table::find(node) {
            Ok(table::Entry::Rule(_)) => "yes".to_owned(),
            Ok(table::Entry::Lower(_)) => "yes, written out as simpler operators".to_owned(),
            Ok(table::Entry::Refused(why)) => format!("refused: {why}"),
            Ok(table::Entry::NoGradient(why)) => format!("none: {why}"),
            Err(_) => "missing".to_owned(),
        };
        Ok(Neighbourhood {
            name: node.name.clone(),
            operator: node.qualified(),
            gradient,
            attributes: node.attrs.iter().map(|(k, v)| (k.clone(), v.to_string())).collect(),
            inputs: node.inputs.iter().map(edge).collect(),
            outputs: node.outputs.iter().map(edge).collect(),
        })
    }

    fn no_node(&self, name: &str) -> Error {
        let wanted = name.to_lowercase();
        let part = wanted.rsplit(['/', '.']).next().unwrap_or(&wanted).to_owned();
        let names = || self.graph.nodes.iter().map(|n| n.name.as_str());
        let similar: Vec<&str> = names().filter(|n| n.to_lowercase().contains(&part)).take(5).collect();
        let shown = if similar.is_empty() { names().take(5).collect() } else { similar };
        Error::new(format!("the graph has no node `{name}`"))
            .hint(format!("some of its nodes are {}", shown.join(", ")))
    }
}

/// One node with its edges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbourhood {
    /// Name of the node.
    pub name: String,
    /// Its operator.
    pub operator: String,
    /// Whether it has a gradient.
    pub gradient: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// What it reads; none where an optional input is left out.
    pub inputs: Vec<Option<Edge>>,
    /// What it makes.
    pub outputs: Vec<Option<Edge>>,
}

/// A value between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// Name of the value.
    pub value: String,
    /// Its type, where known.
    pub ty: Option<String>,
    /// The node that makes it, or what else it is.
    pub producer: String,
    /// The nodes that read it.
    pub consumers: Vec<String>,
}

fn domain(name: &str) -> String {
    if name.is_empty() { "ai.onnx".into() } else { name.to_owned() }
}

fn normalization(graph: &Graph) -> Normalization {
    let mut found = Normalization::default();
    let mut conv_with_bias = 0;
    for node in &graph.nodes {
        if node.is("BatchNormalization") {
            let training = matches!(node.attrs.get("training_mode"), Some(Attr::Int(m)) if *m != 0);
            *(if training { &mut found.training } else { &mut found.evaluation }) += 1;
        } else if node.op.ends_with("Normalization") {
            *found.others.entry(node.qualified()).or_default() += 1;
        } else if node.is("Conv") && node.input(2).is_some() {
            conv_with_bias += 1;
        }
    }
    if found.training + found.evaluation == 0 {
        found.conv_with_bias = conv_with_bias;
    }
    found
}
