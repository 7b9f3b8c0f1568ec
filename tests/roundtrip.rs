//! Import → emit → import gives the same graph, and the emitted file the same outputs.

use crate::common::{engine, repo};
use bisam::ir::{Graph, Source, Tensor};
use bisam::onnx::{Weights, emit, import, save};
use bisam::trace::{Evaluator, Sizes, concretize};

#[test]
fn every_model_comes_back_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = 0;
    for entry in std::fs::read_dir(repo("models")).expect("models") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let first = import(&path).expect("imports").graph;
        let copy = folder.path().join(&name);
        save(&emit(&first, Weights::Initializers), &copy).expect("saves");
        let second = import(&copy).expect("imports again").graph;
        assert_eq!(sorted(&first), sorted(&second), "{name}");
        let inputs = inputs(&first);
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let run = |path| engine().evaluate(&std::fs::read(path).expect("reads"), &inputs).expect("runs");
        let (want, got) = (run(&path), run(&copy));
        if !first.nodes.iter().any(|n| n.is("Dropout")) {
            assert!(want == got, "{name}: outputs differ");
        }
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} models");
}

/// The text form, with the parameters by name: a file stores constants in its own order.
fn sorted(graph: &Graph) -> String {
    let text = graph.to_string();
    let (mut params, mut lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with("  param"));
    params.sort_unstable();
    lines.extend(params);
    lines.join("\n")
}

/// Numbers for every input, at a batch of 3.
fn inputs(graph: &Graph) -> Vec<(String, Tensor)> {
    let mut graph = graph.clone();
    concretize(&mut graph, &Sizes::batch(3), &engine()).expect("concretizes");
    let made = |v: &bisam::ir::ValueId| {
        assert!(matches!(graph[*v].source, Source::Input(_)));
        let ty = graph.ty(*v).expect("typed").clone();
        let number = |i: usize| if ty.dtype.is_float() { (i as f64).sin() } else { 1.0 };
        (graph[*v].name.clone(), Tensor::from_f64(ty.dtype, &ty.shape, &(0..ty.len()).map(number).collect::<Vec<_>>()))
    };
    graph.inputs.iter().map(made).collect()
}
