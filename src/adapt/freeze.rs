//! Which tensors are trained, by glob patterns on their names.

use crate::error::{Error, Result};
use crate::ir::{Graph, Source, ValueId};
use crate::onnx::is_generated;
use globset::{Glob, GlobMatcher};
use std::collections::BTreeSet;

/// Patterns as the user gives them: `layer1.*`, `*.bias`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Selection {
    /// Parameters and running statistics that match are left as they are.
    pub freeze: Vec<String>,
    /// When not empty, only parameters and running statistics that match are trained.
    #[serde(alias = "train_only")]
    pub train_only: Vec<String>,
    /// Constants and statistics that match are parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub as_parameter: Vec<String>,
    /// Parameters and statistics that match are constants of the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub as_constant: Vec<String>,
}

/// Gives tensors the roles that the user wants, and turns parameters and running statistics that are not selected into constants; says
/// what each pattern matched. A BatchNormalization whose statistics are frozen uses them in training, too.
///
/// # Errors
/// A malformed pattern, one that matches nothing, or a selection that leaves nothing to train.
pub fn freeze(graph: &mut Graph, selection: &Selection) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let floats = |g: &Graph, v: ValueId| g.tensor(v).is_some_and(|t| t.dtype().is_float());
    for pattern in &selection.as_parameter {
        for v in matched(graph, "--as-parameter", pattern, |v| floats(graph, v), &mut notes)? {
            if let Some(t) = graph.tensor(v).cloned() {
                graph.set_source(v, Source::Param(t));
            }
        }
    }
    for pattern in &selection.as_constant {
        let constant = matched(graph, "--as-constant", pattern, |v| floats(graph, v), &mut notes)?;
        constant.into_iter().for_each(|v| fix(graph, v));
    }
    let moves = |g: &Graph, v: ValueId| matches!(g[v].source, Source::Param(_) | Source::Stat(_));
    let mut out = BTreeSet::new();
    for pattern in &selection.freeze {
        out.extend(matched(graph, "--freeze", pattern, |v| moves(graph, v), &mut notes)?);
    }
    if !selection.train_only.is_empty() {
        let mut stays = BTreeSet::new();
        for pattern in &selection.train_only {
            stays.extend(matched(graph, "--train-only", pattern, |v| moves(graph, v), &mut notes)?);
        }
        out.extend(graph.value_ids().filter(|v| moves(graph, *v) && !stays.contains(v)));
    }
    out.into_iter().for_each(|v| fix(graph, v));
    if graph.params().is_empty() && *selection != Selection::default() {
        return Err(Error::new("no parameter is left to train")
            .hint("`bisam inspect` lists the parameters; check --freeze, --train-only and --as-constant"));
    }
    Ok(notes)
}

fn fix(graph: &mut Graph, v: ValueId) {
    if let Some(tensor) = graph.tensor(v).cloned() {
        graph.set_source(v, Source::Constant(tensor));
    }
}

/// The tensors whose names match, of those that are asked about.
fn matched(
    graph: &Graph,
    flag: &str,
    pattern: &str,
    of: impl Fn(ValueId) -> bool,
    notes: &mut Vec<String>,
) -> Result<Vec<ValueId>> {
    let glob = Glob::new(pattern).map_err(|e| Error::new(format!("pattern `{pattern}`: {e}")))?.compile_matcher();
    let all: Vec<ValueId> = graph.value_ids().filter(|v| of(*v)).collect();
    let found: Vec<ValueId> = all.iter().copied().filter(|v| glob.is_match(&graph[*v].name)).collect();
    let name = |v: &ValueId| graph[*v].name.as_str();
    if found.is_empty() {
        let what = if flag.starts_with("--as") { "tensor" } else { "parameter" };
        return Err(Error::new(format!("pattern `{pattern}` matches no {what}"))
            .hint("`bisam inspect` lists the parameters; `*` stands for any characters"));
    }
    let elements: usize = found.iter().filter_map(|v| graph.tensor(*v)).map(|t| t.len()).sum();
    let shown: Vec<&str> = found.iter().map(name).take(SHOWN).collect();
    let more = if found.len() > SHOWN { ", …" } else { "" };
    let plural = if found.len() == 1 { "" } else { "s" };
    notes.push(format!(
        "{flag} {pattern} matches {} tensor{plural} of {elements} elements: {}{more}",
        found.len(),
        shown.join(", ")
    ));
    let escaped = escaped(graph, &glob, &found, &all);
    if !escaped.is_empty() {
        let shown: Vec<&str> = escaped.iter().map(name).take(SHOWN).collect();
        let more = if escaped.len() > SHOWN { ", …" } else { "" };
        notes.push(format!(
            "{flag} {pattern} does not match {}{more}, which belong to the same layers under names of the exporter's: name them, too, if they are meant",
            shown.join(", ")
        ));
    }
    Ok(found)
}

/// Names of a list before it is cut.
const SHOWN: usize = 6;

/// Tensors that do not match, read by the nodes that read ones that do or by their neighbours in the same layer, under a name that tells nothing of the layer.
fn escaped(graph: &Graph, glob: &GlobMatcher, found: &[ValueId], all: &[ValueId]) -> Vec<ValueId> {
    let readers = graph.readers();
    // A folded weight stands beside its bias: MatMul(x, onnx::MatMul_12), then Add(…, layer.bias).
    let near = |v: &ValueId| -> BTreeSet<usize> {
        let own: BTreeSet<usize> = readers.get(v).into_iter().flatten().copied().collect();
        let inputs = own.iter().flat_map(|n| graph.nodes[*n].inputs.iter().flatten());
        let makers = inputs.filter_map(|i| graph.nodes.iter().position(|n| n.outputs.contains(&Some(*i))));
        let before: BTreeSet<usize> =
            makers.filter(|n| ["MatMul", "Conv", "Gemm"].iter().any(|op| graph.nodes[*n].is(op))).collect();
        own.into_iter().chain(before).collect()
    };
    let nodes: BTreeSet<usize> = found.iter().flat_map(near).collect();
    let reads = |v: &ValueId| readers.get(v).is_some_and(|r| r.iter().any(|n| nodes.contains(n)));
    let escapes = |v: &ValueId| {
        let name = graph[*v].name.as_str();
        !glob.is_match(name) && is_generated(name) && reads(v) && graph.param(*v).is_some()
    };
    all.iter().copied().filter(escapes).collect()
}
