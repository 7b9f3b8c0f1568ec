//! Control flow and lists of tensors in a file: gone from the concretized graph, which computes the same and has the right gradient.

use crate::common::{self, engine, npz, repo};
use bisam::Result;
use bisam::autodiff::differentiate;
use bisam::data::write_npz;
use bisam::ir::{Declared, Graph, Source, Tensor, ValueId};
use bisam::onnx::{Weights, emit, import};
use bisam::onnx::{save, to_tensor};
use bisam::trace::{Evaluator, Sizes, concretize};
use onnx_protobuf::{AttributeProto, GraphProto, Message, NodeProto, TensorProto};
use std::collections::BTreeMap;

fn run(graph: &Graph, fed: &[(ValueId, Tensor)]) -> Result<Vec<Tensor>> {
    let bytes = emit(graph, Weights::Initializers).write_to_bytes().expect("encodes");
    let fed: Vec<(&str, &Tensor)> = fed.iter().map(|(v, t)| (graph[*v].name.as_str(), t)).collect();
    engine().evaluate(&bytes, &fed)
}

fn concretized(name: &str, batch: usize) -> Result<(Graph, Graph)> {
    let model = import(repo(&format!("tests/control/{name}.onnx")))?;
    let mut graph = model.graph.clone();
    concretize(&mut graph, &Sizes::batch(batch), &engine())?;
    Ok((model.graph, graph))
}

/// Concretizes a model for two batch sizes and compares outputs, and a directional derivative with differences.
fn resolves(name: &str) -> Result<()> {
    for batch in [2, 5] {
        let (given, graph) = concretized(name, batch)?;
        let control = |n: &&bisam::ir::Node| n.bodies().next().is_some() || n.op.contains("Sequence");
        assert!(graph.nodes.iter().find(control).is_none(), "{name}: {graph}");
        let (x, y) = (graph.inputs[0], graph.outputs[0]);
        let ty = graph.ty(x)?.clone();
        let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f + 0.3).sin()).collect::<Vec<_>>();
        let (base, direction) = (wave(ty.len(), 0.7), wave(ty.len(), 1.3));
        let at = |h: f64| {
            let moved: Vec<f64> = base.iter().zip(&direction).map(|(x, v)| x + h * v).collect();
            Tensor::from_f64(ty.dtype, &ty.shape, &moved)
        };
        let (before, after) = (run(&given, &[(given.inputs[0], at(0.0))])?, run(&graph, &[(x, at(0.0))])?);
        assert_eq!(before[0].ty(), after[0].ty());
        assert!(before[0].to_f64().iter().zip(after[0].to_f64()).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {graph}");
        let mut backward = graph.clone();
        let out = graph.ty(y)?.clone();
        let weights = Tensor::from_f64(out.dtype, &out.shape, &wave(out.len(), 2.1));
        let seed = Source::Input(Declared { dtype: out.dtype, dims: None });
        let seed = backward.add_value("u", Some(out.clone()), seed);
        backward.inputs.push(seed);
        let dx = differentiate(&mut backward, &[(y, seed)], &[x])?[0].expect("has a path");
        backward.outputs = vec![dx];
        backward.remove_dead_nodes();
        let dx = run(&backward, &[(x, at(0.0)), (seed, weights.clone())])?[0].to_f64();
        let analytic: f64 = dx.iter().zip(&direction).map(|(g, v)| g * v).sum();
        let weighted = |h: f64| -> Result<f64> {
            let y = run(&given, &[(given.inputs[0], at(h))])?[0].to_f64();
            Ok(y.iter().zip(weights.to_f64()).map(|(y, u)| y * u).sum())
        };
        let numeric = (weighted(1e-2)? - weighted(-1e-2)?) / 2e-2;
        assert!((analytic - numeric).abs() < 5e-3 * (1.0 + numeric.abs()), "{name}: {analytic} and {numeric}");
    }
    Ok(())
}

#[test]
fn a_branch_that_shapes_decide_is_taken() -> Result<()> {
    resolves("branch")
}

#[test]
fn a_loop_of_known_length_is_unrolled() -> Result<()> {
    resolves("loop")
}

#[test]
fn a_scan_is_unrolled() -> Result<()> {
    resolves("scan")
}

/// The body that reads `w`.
fn body(graph: &mut GraphProto) -> &mut GraphProto {
    let mut bodies = graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.g.as_mut());
    bodies.find(|b| b.node.iter().any(|n| n.input.iter().any(|i| i == "w"))).expect("a body that reads it")
}

/// The tensor `w`, wherever it is stored.
fn weight(graph: &GraphProto) -> Option<TensorProto> {
    let constant = |n: &NodeProto| n.op_type == "Constant" && n.output[0] == "w";
    let own = graph.initializer.iter().find(|t| t.name == "w").cloned();
    let made = || graph.node.iter().find(|n| constant(n)).map(|n| (*n.attribute[0].t).clone());
    let inner = || graph.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_ref()).find_map(weight);
    own.or_else(made).or_else(inner)
}

#[test]
fn weights_in_the_bodies_of_control_flow_are_trained() {
    let folder = tempfile::tempdir().expect("a folder");
    let wave: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    let labels: Vec<i64> = (0..16).map(|i| i % 4).collect();
    let arrays = [("x", Tensor::new(&[16, 4], &wave)), ("labels", Tensor::new(&[16], &labels))];
    let arrays: BTreeMap<String, Tensor> = arrays.into_iter().map(|(n, t)| (n.into(), t.expect("fits"))).collect();
    let data = folder.path().join("data.npz");
    write_npz(&data, &arrays).expect("writes");
    assert_eq!(npz(&data)["x"].shape(), [16, 4]);
    for name in ["branch", "loop"] {
        let proto = import(repo(&format!("tests/control/{name}.onnx"))).expect("imports").proto;
        let mut trained = Vec::new();
        for place in ["outside", "initializer", "constant"] {
            let mut moved = proto.clone();
            let graph = moved.graph.as_mut().expect("a graph");
            if place != "outside" {
                let at = graph.initializer.iter().position(|t| t.name == "w").expect("a weight");
                let w = graph.initializer.remove(at);
                match place {
                    "initializer" => body(graph).initializer.push(w),
                    _ => {
                        let value = AttributeProto { name: "value".into(), t: Some(w).into(), ..Default::default() };
                        let value = AttributeProto {
                            type_: onnx_protobuf::attribute_proto::AttributeType::TENSOR.into(),
                            ..value
                        };
                        let made =
                            NodeProto { op_type: "Constant".into(), output: vec!["w".into()], ..Default::default() };
                        body(graph).node.insert(0, NodeProto { attribute: vec![value], ..made });
                    }
                }
            }
            let (file, out) =
                (folder.path().join(format!("{name}-{place}.onnx")), folder.path().join(format!("{name}-{place}")));
            save(&moved, &file).expect("saves");
            let mut command = common::bisam();
            command.arg("train").arg(&file).arg("--data").arg(format!("npz:{}", data.display())).arg("-o").arg(&out);
            let done = command.args(["--steps", "2", "--batch-size", "8", "--valid", "0"]).output().expect("starts");
            let text = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{name}, {place}: {text}");
            assert!(text.contains("trained 16 of 16 parameters"), "{name}, {place}: {text}");
            let last = import(out.join("last.onnx")).expect("imports").proto;
            let w = weight(last.graph.as_ref().expect("a graph")).expect("a weight");
            trained.push(to_tensor(&w).expect("a tensor"));
        }
        let before = weight(proto.graph.as_ref().expect("a graph")).expect("a weight");
        assert_ne!(trained[0], to_tensor(&before).expect("a tensor"));
        assert!(trained.iter().all(|w| *w == trained[0]), "{name}: {trained:?}");
    }
}

#[test]
fn lists_of_tensors_fold_away() -> Result<()> {
    resolves("lists")
}

#[test]
fn a_branch_that_data_decide_is_refused_with_the_reason() -> Result<()> {
    let (_, mut graph) = concretized("unknown", 2)?;
    let (x, y) = (graph.inputs[0], graph.outputs[0]);
    let seed =
        graph.add_value("u", graph[y].ty.clone(), Source::Constant(Tensor::full(bisam::ir::DType::F32, &[2, 4], 1.0)));
    let e = differentiate(&mut graph, &[(y, seed)], &[x]).expect_err("is refused");
    assert!(e.to_string().contains("condition depends on data"), "{e}");
    Ok(())
}
