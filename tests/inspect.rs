//! `bisam inspect` and `bisam gradcheck`, as a user sees them.

use crate::common::{self, repo};
use crate::snapshot;
use bisam::onnx::{Weights, emit, import, save};
use std::process::Output;

fn bisam(args: &[&str]) -> Output {
    common::bisam().args(args).output().expect("starts")
}

fn text(args: &[&str]) -> String {
    let output = bisam(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("is text")
}

#[test]
fn reports_are_as_kept() {
    for name in ["resnet20", "resnet20_eval", "bert", "vit"] {
        let shown = text(&["inspect", &format!("models/{name}.onnx")]);
        snapshot::check(&format!("tests/snapshots/inspect_{name}.txt"), &shown);
    }
    let node = text(&["inspect", "models/tiny_bn.onnx", "--batch", "8", "--node", "/conv2/Conv"]);
    snapshot::check("tests/snapshots/inspect_node.txt", &node);
}

#[test]
fn verbose_lists_every_tensor() {
    let shown = text(&["inspect", "models/resnet20.onnx", "-v"]);
    assert!(shown.contains("stages.1.0.shortcut.1.running_var"), "{shown}");
}

#[test]
fn json_is_one_document() {
    let report: serde_json::Value =
        serde_json::from_str(&text(&["inspect", "models/tiny_bn.onnx", "--json"])).expect("is JSON");
    assert_eq!(report["problems"], serde_json::json!([]));
    assert!(report["cost"]["forward_multiply_adds"].as_u64().is_some_and(|n| n > 0));
    let rows: serde_json::Value =
        serde_json::from_str(&text(&["gradcheck", "models/tiny_ln.onnx", "--json"])).expect("is JSON");
    assert!(rows.as_array().is_some_and(|r| r.iter().all(|r| r["verdict"] == "right")), "{rows}");
}

#[test]
fn a_model_that_does_not_run_is_shown_with_the_reason() {
    let mut graph = import(repo("models/tiny_bn.onnx")).expect("imports").graph;
    graph.nodes.iter_mut().filter(|n| n.is("Relu")).for_each(|n| n.op = "Unheard".into());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("broken.onnx");
    save(&emit(&graph, Weights::Initializers), &path).expect("saves");
    let shown = text(&["inspect", &path.display().to_string()]);
    assert!(shown.contains("Unheard") && shown.contains("MISSING") && shown.contains("does not run"), "{shown}");
    assert!(shown.contains("BatchNormalization"), "{shown}");
}

#[test]
fn a_quantized_model_is_refused_with_the_reason() {
    let shown = text(&["inspect", "tests/forms/quantized.onnx"]);
    assert!(
        shown.contains("QuantizeLinear: it rounds to integers") && shown.contains("quantize the result"),
        "{shown}"
    );
}

#[test]
fn operators_are_listed() {
    let shown = text(&["ops", "lstm"]);
    assert!(shown.contains("LSTM") && shown.contains("written out") && shown.contains("quantized"), "{shown}");
    let all: serde_json::Value = serde_json::from_str(&text(&["ops", "--json"])).expect("is JSON");
    assert!(all.as_array().is_some_and(|rows| rows.len() > 150));
}

#[test]
fn an_unknown_node_is_an_error_that_names_some() {
    let output = bisam(&["inspect", "models/tiny_bn.onnx", "--node", "nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(shown.contains("error: ") && shown.contains("no node `nowhere`") && shown.contains("hint: "), "{shown}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    assert_eq!(bisam(&["inspect"]).status.code(), Some(2));
    assert_eq!(bisam(&["gradcheck", "models/mlp.onnx", "--batch", "0"]).status.code(), Some(2));
}

#[test]
fn half_precision_is_mentioned() {
    let shown = text(&["inspect", "tests/forms/half.onnx"]);
    assert!(shown.contains("stored as f16"), "{shown}");
}
