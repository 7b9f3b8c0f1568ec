//! Weights back into the user's file.

use crate::common::{engine, repo};
use bisam::adapt::{Mode, Untied, replace_head, set_mode, untie};
use bisam::export::{export, fresh, verify, with_values};
use bisam::ir::{DType, Declared, Dim, Graph, Source, Tensor};
use bisam::onnx::{Model, Weights, emit, import, save, to_tensor};
use bisam::trace::{Sizes, concretize};
use onnx_protobuf::{Message, ModelProto};
use std::collections::{BTreeMap, HashSet};

/// Every model of the repository.
fn models() -> Vec<Model> {
    let mut paths: Vec<_> = std::fs::read_dir(repo("models"))
        .expect("models")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 10);
    paths.iter().map(|p| import(p).expect("imports")).collect()
}

fn name(model: &Model) -> String {
    model.path.file_stem().expect("a name").to_string_lossy().into_owned()
}

fn untied(model: &Model) -> (Graph, Vec<Untied>) {
    let mut graph = model.graph.clone();
    let in_file: HashSet<&str> = model.proto.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let untied = untie(&mut graph, &|n| in_file.contains(n));
    (graph, untied)
}

/// The values that parameters and statistics have in the file.
fn own_values(graph: &Graph) -> BTreeMap<String, Tensor> {
    let stored = |v| match &graph[v].source {
        Source::Param(t) | Source::Stat(t) => Some((graph[v].name.clone(), t.clone())),
        _ => None,
    };
    graph.value_ids().filter_map(stored).collect()
}

fn inputs(graph: &Graph, batch: usize) -> Vec<(String, Tensor)> {
    let input = |v: &bisam::ir::ValueId| {
        let Source::Input(Declared { dtype, dims }) = &graph[*v].source else { panic!("an input") };
        let dims = dims.as_ref().expect("a rank");
        let size = |(i, d): (usize, &Dim)| match d {
            Dim::Fixed(n) => *n,
            _ => {
                if i == 0 {
                    batch
                } else {
                    16
                }
            }
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let n: usize = shape.iter().product();
        let value = |i: usize| if *dtype == DType::F32 { ((i * 7919 % 1000) as f64) / 500.0 - 1.0 } else { 1.0 };
        (graph[*v].name.clone(), Tensor::from_f64(*dtype, &shape, &(0..n).map(value).collect::<Vec<_>>()))
    };
    graph.inputs.iter().map(input).collect()
}

fn run(proto: &ModelProto, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let bytes = proto.write_to_bytes().expect("encodes");
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    engine().compile_model(&bytes).and_then(|mut s| s.run(&inputs)).expect("runs")
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64().iter().zip(b.to_f64()).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[test]
fn a_models_own_values_change_nothing() {
    for model in models() {
        let own = own_values(&model.graph);
        assert!(!own.is_empty());
        assert!(with_values(&model, &[], &own).expect("exports") == model.proto, "{}", name(&model));
    }
}
