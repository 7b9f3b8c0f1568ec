//! Gradients of every model against PyTorch's autograd.

use crate::common::{engine, npz, relative, repo};
use bisam::adapt::Mode;
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::step::Kernels;
use bisam::step::gradient::{Objective, Request, gradient, parts_of_initializers, with_all_initializers};
use bisam::trace::Sizes;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest error of a parameter's gradient, relative to its norm.
const TOLERANCE: f64 = 1e-4;

/// A gradient smaller than this share of the largest one is cancellation: its error is measured against this floor.
const FLOOR: f64 = 1e-3;

/// The gradients of a model in `mode`, by initializer, with loss and logits.
pub fn gradients_of(
    file: &Path,
    mode: Mode,
    kernels: Kernels,
    reference: &BTreeMap<String, Tensor>,
) -> BTreeMap<String, Tensor> {
    let model = import(file).expect("imports");
    let graph = with_all_initializers(&model);
    let shapes: BTreeMap<String, Vec<usize>> =
        graph.inputs.iter().map(|v| (graph[*v].name.clone(), reference[&graph[*v].name].shape().to_vec())).collect();
    let batch = shapes.values().next().expect("an input")[0];
    let sizes = Sizes { batch, shapes, ..Sizes::default() };
    let engine = engine();
    let request = Request {
        mode,
        objective: Objective::CrossEntropy(None),
        params: true,
        inputs: false,
        kernels,
        parts: parts_of_initializers(&model),
    };
    let g = gradient(&graph, &sizes, &request, &engine).expect("differentiates");
    let mut session = engine.compile_whole(&g.graph).expect("compiles");
    let inputs: Vec<(&str, &Tensor)> = session
        .inputs()
        .iter()
        .map(|n| reference.get_key_value(n).map(|(k, v)| (k.as_str(), v)).expect("given"))
        .collect();
    let values = session.run(&inputs).expect("runs");
    let mut by_output: BTreeMap<String, Tensor> = session.outputs().iter().cloned().zip(values).collect();
    let mut result = BTreeMap::new();
    for (name, ty, output) in g.of {
        let zero = || Tensor::full(ty.dtype, &ty.shape, 0.0);
        result.insert(format!("grad/{name}"), output.and_then(|o| by_output.remove(&o)).unwrap_or_else(zero));
    }
    result.extend(by_output);
    result
}

#[test]
fn gradients_equal_pytorch() {
    let mut failures = Vec::new();
    let mut names: Vec<String> = std::fs::read_dir(repo("models"))
        .expect("models")
        .filter_map(|e| e.expect("entry").file_name().to_str()?.strip_suffix(".onnx").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 10, "only {names:?}");
    for name in names {
        let reference = npz(&repo(&format!("models/reference/{name}.npz")));
        // With batch statistics of four samples, a number that rounding moves across the kink of a Relu moves many gradients, and which one
        // does depends on how sums are ordered: in that mode our kernels are compared with plain operators, on other inputs.
        let ways = [
            (Mode::Eval, "eval", Kernels::Plain),
            (Mode::Eval, "eval", Kernels::Fused),
            (Mode::Train, "train", Kernels::Plain),
        ];
        for (mode, prefix, kernels) in ways {
            let prefix = if reference.contains_key(&format!("{prefix}/loss")) { prefix } else { "eval" };
            let ours = gradients_of(&repo(&format!("models/{name}.onnx")), mode, kernels, &reference);
            let key = |k: &str| format!("{prefix}/{k}");
            let want: BTreeMap<&str, &Tensor> = reference
                .iter()
                .filter_map(|(k, v)| k.strip_prefix(&key("")).filter(|k| k.starts_with("grad/")).map(|k| (k, v)))
                .collect();
            assert!(!want.is_empty(), "{name} has no reference gradients");
            let norm = |t: &Tensor| t.to_f64().iter().map(|v| v * v).sum::<f64>().sqrt();
            let floor = FLOOR * want.values().map(|t| norm(t)).fold(0.0, f64::max);
            let loss = (ours["loss"].to_f32()[0], reference[&key("loss")].to_f32()[0]);
            if (loss.0 - loss.1).abs() > 1e-4 * loss.1.abs() {
                failures.push(format!("{name} {prefix} {kernels:?}: loss {} instead of {}", loss.0, loss.1));
            }
            let mut worst: (f64, &str) = (0.0, "");
            for (k, t) in want {
                let Some(g) = ours.get(k) else {
                    failures.push(format!("{name} {prefix} {kernels:?}: no {k}"));
                    continue;
                };
                assert_eq!(g.shape(), t.shape(), "{name} {k}");
                let error = relative(&g.to_f32(), &t.to_f32(), floor);
                if error > worst.0 {
                    worst = (error, k);
                }
            }
            println!("{name} {prefix} {kernels:?}: worst {:.1e} at {}", worst.0, worst.1);
            if worst.0 > TOLERANCE {
                failures.push(format!("{name} {prefix} {kernels:?}: {} is off by {:.1e}", worst.1, worst.0));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
