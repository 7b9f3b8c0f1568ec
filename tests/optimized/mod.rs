//! A model in the operators of ONNX Runtime's optimizer has the gradients of the model it was made of.

use crate::common::{npz, relative, repo};
use crate::models::gradients_of;
use bisam::adapt::Mode;
use bisam::ir::Tensor;
use bisam::step::Kernels;

/// Columns of several matrices, or of vectors, side by side.
fn beside(parts: &[&Tensor]) -> Vec<f32> {
    let width = |t: &Tensor| *t.shape().last().expect("a column");
    let rows = parts[0].len() / width(parts[0]);
    let all: Vec<Vec<f32>> = parts.iter().map(|t| t.to_f32()).collect();
    let row = |i: usize| parts.iter().zip(&all).flat_map(move |(t, v)| v[i * width(t)..][..width(t)].to_vec());
    (0..rows).flat_map(row).collect()
}

#[test]
fn optimized_bert_has_the_gradients_of_bert() {
    let inputs = npz(&repo("tests/optimized/inputs.npz"));
    let [plain, fused] = ["bert", "bert_optimized"]
        .map(|n| gradients_of(&repo(&format!("tests/optimized/{n}.onnx")), Mode::Eval, Kernels::Plain, &inputs));
    let largest = plain.values().flat_map(Tensor::to_f64).fold(0.0, |m: f64, v| m.max(v.abs()));
    let mut worst: (f64, String) = (0.0, String::new());
    let mut compared = 0;
    for (name, gradient) in &fused {
        let want = match name.strip_prefix("grad/Attention_") {
            None => plain[name].to_f32(),
            Some(rest) => {
                let (layer, what) = rest.split_once("_qkv_").expect("a packed weight");
                let kind = if what == "bias" { ".bias" } else { "" };
                let of = |part| format!("grad/bert.bert.encoder.layer.{layer}.attention.self.{part}{kind}");
                beside(&["query", "key", "value"].map(|part| &plain[&of(part)]))
            }
        };
        let error = relative(&gradient.to_f32(), &want, 1e-3 * largest);
        if error > worst.0 {
            worst = (error, name.clone());
        }
        compared += 1;
    }
    println!("{compared} compared, worst {:.1e} at {}", worst.0, worst.1);
    assert!(compared > 30 && worst.0 < 1e-4, "{} is off by {:.1e}", worst.1, worst.0);
}
