//! Gradients of every model against PyTorch's autograd.

use crate::common::{engine, npz, relative, repo};
use bisam::adapt::Mode;
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::step::Kernels;
use bisam::step::gradient::{Objective, Request, gradient, with_all_initializers};
use bisam::trace::Sizes;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest error of a parameter's gradient, relative to its norm.
const TOLERANCE: f64 = 1e-4;

/// With batch statistics of four samples, a number that rounding moves across a kink (of Relu or Clip) moves a few gradients by percents.
/// Which ones depends on how sums are ordered, so our kernels' are then judged by the median over all parameters, and by this bound.
const ACROSS_A_KINK: f64 = 0.05;

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
    let request = Request { mode, objective: Objective::CrossEntropy, params: true, inputs: false, kernels };
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
        let modes = [(Mode::Eval, "eval"), (Mode::Train, "train")];
        let ways = modes.into_iter().flat_map(|m| [Kernels::Plain, Kernels::Fused].map(|k| (m, k)));
        for ((mode, prefix), kernels) in ways {
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
            let mut errors: Vec<(f64, &str)> = Vec::new();
            for (k, t) in want {
                let Some(g) = ours.get(k) else {
                    failures.push(format!("{name} {prefix} {kernels:?}: no {k}"));
                    continue;
                };
                assert_eq!(g.shape(), t.shape(), "{name} {k}");
                let error = relative(&g.to_f32(), &t.to_f32(), floor);
                errors.push((error, k));
            }
            errors.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (worst, median) = (errors[errors.len() - 1], errors[errors.len() / 2].0);
            let kinks = kernels == Kernels::Fused && prefix == "train" && median < 0.1 * TOLERANCE;
            println!("{name} {prefix} {kernels:?}: worst {:.1e} at {}", worst.0, worst.1);
            if worst.0 > if kinks { ACROSS_A_KINK } else { TOLERANCE } {
                failures.push(format!("{name} {prefix} {kernels:?}: {} is off by {:.1e}", worst.1, worst.0));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
