//! Time by node and by operator within a compiled graph, from ONNX Runtime's profiler.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a node took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTime {
    /// Name of the node.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// The execution provider it ran on.
    pub provider: String,
    /// Shapes of its inputs.
    pub inputs: Vec<Vec<u64>>,
    /// Median over the runs.
    pub time: Duration,
}

/// What the nodes of an operator on one provider took together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorTime {
    /// The operator.
    pub op: String,
    /// The execution provider.
    pub provider: String,
    /// How many nodes there are.
    pub nodes: usize,
    /// Sum of their times.
    pub time: Duration,
}

/// Where a session's profile is written, removed with this.
#[derive(Debug)]
pub(super) struct Destination(tempfile::TempDir);

impl Destination {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bisam-profile-").tempdir();
        folder.map(Self).map_err(|e| Error::new(format!("there is no folder for a profile: {e}")))
    }

    /// What the file's name begins with; ONNX Runtime appends the time.
    pub fn prefix(&self) -> PathBuf {
        self.0.path().join("profile")
    }
}

/// Reads a profile: nodes in the order of their first run.
pub(super) fn read(path: &Path) -> Result<Vec<NodeTime>> {
    let fail = |e: &dyn std::fmt::Display| Error::new(format!("the profile cannot be read: {e}"));
    let text = std::fs::read(path).map_err(|e| fail(&e))?;
    let events: Vec<Value> = serde_json::from_slice(&text).map_err(|e| fail(&e))?;
    Ok(nodes(&events))
}

fn nodes(events: &[Value]) -> Vec<NodeTime> {
    let mut order: Vec<NodeTime> = Vec::new();
    let mut times: BTreeMap<&str, (usize, Vec<u64>)> = BTreeMap::new();
    for event in events.iter().filter(|e| e["cat"] == "Node") {
        let Some(name) = event["name"].as_str().and_then(|n| n.strip_suffix("_kernel_time")) else { continue };
        let text = |key: &str| event["args"][key].as_str().unwrap_or_default().to_owned();
        let (_, all) = times.entry(name).or_insert_with(|| {
            order.push(NodeTime {
                name: name.to_owned(),
                op: text("op_name"),
                provider: text("provider").replace("ExecutionProvider", ""),
                inputs: shapes(&event["args"]["input_type_shape"]),
                time: Duration::ZERO,
            });
            (order.len() - 1, Vec::new())
        });
        all.push(event["dur"].as_u64().unwrap_or(0));
    }
    for (i, mut all) in times.into_values() {
        all.sort_unstable();
        order[i].time = Duration::from_micros(all[all.len() / 2]);
    }
    order
}

/// `[{"float":[2,3]}, …]`
fn shapes(list: &Value) -> Vec<Vec<u64>> {
    let one = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let tensors = list.as_array().into_iter().flatten();
    tensors.flat_map(|t| t.as_object().into_iter().flat_map(|o| o.values().map(one))).collect()
}

/// Sums by operator and provider, longest first.
pub fn by_operator(nodes: &[NodeTime]) -> Vec<OperatorTime> {
    let mut sums: BTreeMap<(&str, &str), (usize, Duration)> = BTreeMap::new();
    for node in nodes {
        let (count, time) = sums.entry((&node.op, &node.provider)).or_default();
        *count += 1;
        *time += node.time;
    }
    let mut out: Vec<OperatorTime> = (sums.into_iter())
        .map(|((op, provider), (nodes, time))| OperatorTime { op: op.into(), provider: provider.into(), nodes, time })
        .collect();
    out.sort_by_key(|o| std::cmp::Reverse(o.time));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_profile_is_summed_by_operator() {
        let node = |name: &str, op: &str, dur: u64| {
            let args =
                json!({"op_name": op, "provider": "CPUExecutionProvider", "input_type_shape": [{"float": [2, 3]}]});
            json!({"cat": "Node", "name": format!("{name}_kernel_time"), "dur": dur, "args": args})
        };
        let mut events = vec![json!({"cat": "Session", "name": "model_run", "dur": 99})];
        // The first run of `a` was slow.
        events.extend([node("a", "Add", 90), node("m", "Mul", 5), node("b", "Add", 1)]);
        events.extend([node("a", "Add", 2), node("m", "Mul", 5), node("b", "Add", 1)]);
        events.extend([node("a", "Add", 3), node("m", "Mul", 6), node("b", "Add", 1)]);
        let nodes = nodes(&events);
        let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["a", "m", "b"]);
        assert_eq!(nodes[0].inputs, [[2, 3]]);
        let sums = by_operator(&nodes);
        let sums: Vec<_> = sums.iter().map(|s| (s.op.as_str(), s.nodes, s.time.as_micros())).collect();
        assert_eq!(sums, [("Mul", 1, 5), ("Add", 2, 4)]);
    }
}
