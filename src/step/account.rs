//! What of a model is trained and what stays, as a sum over everything that is stored in it.

use super::stages::Stages;
use crate::autodiff::table;
use crate::error::Error;
use crate::ir::{DType, Graph, Source, Value, ValueId};
use crate::onnx::{COMPUTED, Model, Role, RoleReason};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Names of a list before it is cut.
const SHOWN: usize = 4;

/// The share of what reaches the logits that may stay fixed without a loud word.
const QUIET: f64 = 0.1;

/// A tensor that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fixed {
    /// Its name.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// Why.
    pub reason: String,
    /// Whether the user wants it so.
    pub wanted: bool,
}

/// The sum over everything stored that reaches the outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Elements of trained parameters.
    pub trained: usize,
    /// Trained parameters.
    pub tensors: usize,
    /// Elements of running statistics that move.
    pub statistics: usize,
    /// Float constants of more than one element, the largest first, and quantized weights.
    pub constant: Vec<Fixed>,
    /// Elements of weights that are stored as integers.
    pub quantized: usize,
    /// Trained tensors that the exporter computed from parameters, which the file does not hold, or holds elsewhere, too.
    pub computed: Vec<String>,
    /// What is worth a word about the parameters of the file.
    pub notes: Vec<String>,
}

impl Account {
    /// Of `model`, from whose graph with the user's selection, `graph`, the stages were built.
    pub fn new(model: &Model, graph: &Graph, stages: &Stages) -> Self {
        let reached = graph.upstream(graph.outputs.iter().copied());
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let trained: HashSet<&str> = stages.params.iter().map(|p| p.name.as_str()).collect();
        let moved: HashSet<&str> = stages.stats.iter().map(|s| s.slot.name.as_str()).collect();
        let roles: HashMap<ValueId, &RoleReason> = model.roles.iter().map(|r| (r.value, r)).collect();
        let mut account = Self {
            trained: stages.params.iter().map(|p| elements(&p.shape)).sum(),
            tensors: stages.params.len(),
            statistics: stages.stats.iter().map(|s| elements(&s.slot.shape)).sum(),
            notes: model.notes.clone(),
            ..Self::default()
        };
        let quantized = quantized(graph);
        for v in graph.value_ids().filter(|v| reached.contains(v)) {
            let name = graph[v].name.as_str();
            if trained.contains(name) && roles.get(&v).is_some_and(|r| r.reason == COMPUTED) {
                account.computed.push(name.to_owned());
            }
            let Some(t) = graph.tensor(v).filter(|t| t.len() > 1 && !trained.contains(name) && !moved.contains(name))
            else {
                continue;
            };
            let fixed = |reason: &str, wanted| Fixed {
                name: name.to_owned(),
                elements: t.len(),
                reason: reason.to_owned(),
                wanted,
            };
            if quantized.contains(&v) {
                account.quantized += t.len();
                account.constant.push(fixed(&format!("quantized, {}", t.dtype()), false));
            } else if let Some(r) = roles.get(&v).filter(|_| t.dtype().is_float()) {
                let frozen = r.role != Role::Constant && matches!(graph[v].source, Source::Constant(_));
                let reason = match (frozen, r.role) {
                    (true, _) => "frozen",
                    (false, Role::Constant) => r.reason,
                    (false, Role::Stat) => "statistic of a normalization that is fixed",
                    (false, Role::Param) => "no gradient reaches it",
                };
                account.constant.push(fixed(reason, frozen));
            }
        }
        account.constant.sort_by_key(|f| std::cmp::Reverse(f.elements));
        if !account.computed.is_empty() {
            account.notes.push(format!(
                "the exporter has computed {} from parameters, and what it computed is trained; torch.onnx.export(…, optimize=False) keeps the \
                 parameters themselves",
                names(account.computed.iter(), |name| format!("`{name}`"))
            ));
        }
        account
    }

    /// `trained 13.90 M of 13.95 M parameters in 161 tensors; constant 54.5 K: …`.
    pub fn summary(&self) -> String {
        let fixed: usize = self.constant.iter().map(|f| f.elements).sum();
        let plural = if self.tensors == 1 { "" } else { "s" };
        let mut text = format!(
            "trained {} of {} parameters in {} tensor{plural}",
            short(self.trained),
            short(self.trained + fixed),
            self.tensors
        );
        if self.statistics > 0 {
            text += &format!("; running statistics {}", short(self.statistics));
        }
        if fixed > 0 {
            text += &format!(
                "; constant {}: {}",
                short(fixed),
                names(self.constant.iter(), |f| format!("{} ({})", f.name, f.reason))
            );
        }
        text
    }

    /// What is worth a loud word: much of the model stays fixed, and the user did not ask for it.
    pub fn warning(&self) -> Option<String> {
        let unwanted = || self.constant.iter().filter(|f| !f.wanted);
        let fixed: usize = unwanted().map(|f| f.elements).sum();
        let all = self.trained + self.constant.iter().map(|f| f.elements).sum::<usize>();
        let much = fixed as f64 > QUIET * all as f64;
        if self.quantized > 0 {
            return Some(format!(
                "WARNING: {} weights are quantized (stored as integers) and stay as they are; to train them, train the model they were quantized from",
                short(self.quantized)
            ));
        }
        much.then(|| {
            format!(
                "WARNING: {} of {} stored values that reach the outputs stay fixed: {}; --as-parameter PATTERN trains them",
                short(fixed),
                short(all),
                names(unwanted(), |f| format!("{} ({})", f.name, f.reason))
            )
        })
    }
}

/// Why nothing in a graph is trained, naming the operator that reads most of what is stored, or holds it itself.
pub fn nothing_to_train(graph: &Graph) -> Error {
    if let Some(refused) = nothing_learnable(graph, &graph.outputs) {
        return refused;
    }
    let reached = graph.upstream(graph.outputs.iter().copied());
    let stored = graph.value_ids().filter(|v| reached.contains(v) && graph.tensor(*v).is_some());
    let largest = stored.max_by_key(|v| graph.tensor(*v).map_or(0, |t| t.len()));
    let error = Error::new("nothing in this model is trained");
    let Some((v, t)) = largest.and_then(|v| Some((v, graph.tensor(v)?))) else {
        return error.hint("the file stores no weights");
    };
    let reader = graph.nodes.iter().find(|n| n.inputs.contains(&Some(v)));
    let name = &graph[v].name;
    let hint = if t.dtype().is_float() {
        format!("`{name}` ({}) is read here; --as-parameter '{name}' trains it", t.ty())
    } else {
        format!(
            "`{name}` ({}) is read here: quantized weights stay as they are; train the model they were made from",
            t.ty()
        )
    };
    match reader {
        Some(node) => node.blame(error).hint(hint),
        None => error.hint(hint),
    }
}

/// Refuses a graph whose values `ends` come from an operator without a gradient that holds what it has learned itself.
pub(super) fn nothing_learnable(graph: &Graph, ends: &[ValueId]) -> Option<Error> {
    let before = graph.upstream(ends.iter().copied());
    graph.nodes.iter().filter(|n| n.outputs.iter().flatten().any(|v| before.contains(v))).find_map(|node| {
        let Ok(table::Entry::Refused(why)) = table::find(node) else { return None };
        let error = Error::new(format!("{why}, and no parameter of the model reaches the logits otherwise"));
        (node.domain == "ai.onnx.ml")
            .then(|| node.blame(error).hint("train it with the library that made it; bisam trains networks"))
    })
}

/// The node at which the last gradient on the way from the parameters to the logits ends.
pub(super) fn where_gradients_end(graph: &Graph) -> Option<String> {
    let on_way = graph.downstream(graph.params(), Value::carries_gradient);
    let ends = |n: &&crate::ir::Node| {
        let reads = n.inputs.iter().flatten().any(|v| on_way.contains(v));
        reads && matches!(table::find(n), Ok(table::Entry::NoGradient(_) | table::Entry::Refused(_)) | Err(_))
    };
    graph.nodes.iter().find(ends).map(|n| format!("{} `{}`", n.qualified(), n.name))
}

/// Integer tensors that stand for weights.
fn quantized(graph: &Graph) -> HashSet<ValueId> {
    let small =
        |v: &ValueId| graph.tensor(*v).is_some_and(|t| matches!(t.dtype(), DType::I8 | DType::U8) && t.len() > 1);
    let reads = |n: &&crate::ir::Node| {
        let by_name = ["Dequantize", "QLinear", "Integer", "NBits", "QGemm", "QAttention", "DynamicQuantize"];
        by_name.iter().any(|w| n.op.contains(w))
    };
    graph.nodes.iter().filter(reads).flat_map(|n| n.inputs.iter().flatten().copied().filter(small)).collect()
}

fn names<T>(of: impl Iterator<Item = T> + Clone, show: impl Fn(T) -> String) -> String {
    let count = of.clone().count();
    let mut text = of.take(SHOWN).map(show).collect::<Vec<_>>().join(", ");
    if count > SHOWN {
        text += &format!(" and {} more", count - SHOWN);
    }
    text
}

/// 950, 54.5 K, 13.90 M.
fn short(n: usize) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}
