//! Parameter, statistic or table? Decides, for every use of every float constant of a file, whether it is trained.
//!
//! What counts is where a constant meets a value that depends on the model's inputs. On the way there it may be rearranged, normalised, cast,
//! or combined with other constants: a weight that is standardised is a weight. Where that leaves a choice (a single number, a table, what comes before
//! all weights), the record of the exporter, the name, the values and the position decide, in this order.

use super::merged::Site;
use super::record::{Argument, Record};
use super::rules::Rules;
use crate::error::{Error, Result};
use crate::ir::{Graph, Source, ValueId};

/// What a float constant is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained.
    Param,
    /// A running mean or variance of a BatchNormalization: moved by training, not by the gradient.
    Stat,
    /// Left as it is.
    Constant,
}

/// A decision, with its reason for the user.
#[derive(Debug, Clone)]
pub struct RoleReason {
    /// The constant.
    pub value: ValueId,
    /// What it is used as.
    pub role: Role,
    /// Why, in a few words.
    pub reason: &'static str,
}

/// A parameter or statistic that got its own tensor; export gives it its own initializer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untied {
    /// Name of the new parameter.
    pub name: String,
    /// Name of the initializer that it was merged into.
    pub merged: String,
    /// The places that read it: first output of the node and the input slot there.
    pub readers: Vec<(String, usize)>,
    /// Outputs of the `Identity` nodes between initializer and readers, outermost first.
    pub through: Vec<String>,
}

/// The reason for training what the exporter computed from parameters: it stands for what is not in the file.
pub(crate) const COMPUTED: &str = "computed by the exporter from parameters";

/// A role, and why.
pub(super) type Decision = (Role, &'static str);

/// Decides about every float constant, and gives the uses of a merged one tensors of their own. With the decisions comes what was untied.
pub(super) fn assign(graph: &mut Graph, record: &Record) -> Result<(Vec<RoleReason>, Vec<Untied>)> {
    let plan = {
        let rules = Rules::new(graph, record, graph.inputs.iter().copied());
        let floats = graph.value_ids().filter(|v| graph.constant(*v).is_some_and(|t| t.dtype().is_float()));
        floats.map(|v| (v, rules.decide(v))).collect::<Vec<_>>()
    };
    let (mut roles, mut untied) = (Vec::new(), Vec::new());
    for (value, groups) in plan {
        apply(graph, record, value, groups, &mut roles, &mut untied)?;
    }
    // What Identity nodes carried to places that now read their own tensor.
    graph.remove_dead_nodes();
    Ok((roles, untied))
}

/// Gives a constant, or each of its uses where these differ, its role.
fn apply(
    graph: &mut Graph,
    record: &Record,
    value: ValueId,
    groups: Vec<(Vec<Site>, Decision)>,
    roles: &mut Vec<RoleReason>,
    untied: &mut Vec<Untied>,
) -> Result<()> {
    let Some(tensor) = graph.constant(value).cloned() else { return Ok(()) };
    let source = |role: Role| match role {
        Role::Param => Source::Param(tensor.clone()),
        Role::Stat => Source::Stat(tensor.clone()),
        Role::Constant => Source::Constant(tensor.clone()),
    };
    let unmoved = groups.iter().all(|(_, (role, _))| *role == Role::Constant);
    // The place that reads the initializer itself keeps it.
    let mut groups = groups;
    groups.sort_by_key(|(sites, (role, _))| {
        let name = sites.first().and_then(|s| module_name(graph, record, s));
        let other = name.is_some_and(|n| n != graph[value].name);
        (sites.iter().map(|s| s.through.len()).min(), *role == Role::Constant, other)
    });
    let mut groups = groups.into_iter();
    let Some((sites, (role, reason))) = groups.next() else {
        roles.push(RoleReason { value, role: Role::Constant, reason: "nothing that depends on the input reads it" });
        return Ok(());
    };
    roles.push(RoleReason { value, role, reason });
    if unmoved {
        return Ok(());
    }
    graph.set_source(value, source(role));
    for s in sites {
        graph.nodes[s.node].inputs[s.slot] = Some(value);
    }
    for (sites, (role, reason)) in groups {
        let Some(name) = own_name(graph, record, value, &sites) else {
            return Err(Error::new(format!(
                "`{}` stands for several tensors of equal values, and functions of the file read it",
                graph[value].name
            ))
            .hint("give each its own: `onnx.inliner.inline_local_functions(onnx.load(FILE))`, saved, is the same model without functions"));
        };
        if let Some(taken) = graph.find(&name) {
            graph.rename(taken, &format!("{name}/identity"));
        }
        let new = graph.add_value(&name, None, source(role));
        let reader =
            |s: &Site| graph.nodes[s.node].outputs.iter().flatten().next().map(|o| (graph[*o].name.clone(), s.slot));
        let readers = sites.iter().filter_map(reader).collect();
        let through = sites.first().map(|s| s.through.clone()).unwrap_or_default();
        untied.push(Untied { name: graph[new].name.clone(), merged: graph[value].name.clone(), readers, through });
        for s in &sites {
            graph.nodes[s.node].inputs[s.slot] = Some(new);
        }
        roles.push(RoleReason { value: new, role, reason });
    }
    Ok(())
}

/// The name of a use that was merged: what an `Identity` or the module says it was; none where the file's own nodes do not read it.
fn own_name(graph: &Graph, record: &Record, value: ValueId, sites: &[Site]) -> Option<String> {
    let first_output = |s: &Site| graph.nodes[s.node].outputs.iter().flatten().next().map(|o| graph[*o].name.as_str());
    if !sites.iter().all(|s| first_output(s).is_some_and(|o| record.makes(o))) {
        return None;
    }
    let first = sites.first()?;
    if let Some(name) = first.through.last() {
        return Some(name.clone());
    }
    let free = |n: &String| graph.find(n).is_none();
    let numbered = || format!("{}/{}", graph[value].name, graph.nodes[first.node].name);
    Some(module_name(graph, record, first).filter(free).unwrap_or_else(numbered))
}

/// What the tensor read at a place is called in the program that was exported, as far as the file tells.
fn module_name(graph: &Graph, record: &Record, site: &Site) -> Option<String> {
    let node = &graph.nodes[site.node];
    let output = graph[*node.outputs.iter().flatten().next()?].name.as_str();
    let module = record.module(output);
    if let Some(Argument::Stored(name, _)) = record.argument(output, &node.op, site.slot) {
        // p_layer1_0_bn1_weight in module layer1.0.bn1.
        let plain = &name[2..];
        let mangled = module.filter(|m| !m.is_empty()).map(|m| m.replace('.', "_") + "_");
        let own = mangled.as_deref().and_then(|m| plain.strip_prefix(m));
        return Some(own.zip(module).map_or_else(|| plain.to_owned(), |(own, module)| format!("{module}.{own}")));
    }
    let module = module.filter(|m| !m.is_empty())?;
    let suffix = match (node.op.as_str(), site.slot) {
        (op, 1) if op.ends_with("Normalization") => "weight",
        (op, 2) if op.ends_with("Normalization") => "bias",
        ("BatchNormalization", 3) => "running_mean",
        ("BatchNormalization", 4) => "running_var",
        ("Conv" | "ConvTranspose" | "Gemm", 1) => "weight",
        ("Conv" | "ConvTranspose" | "Gemm", 2) => "bias",
        _ => return None,
    };
    Some(format!("{module}.{suffix}"))
}
