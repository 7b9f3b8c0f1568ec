//! What the methods have in common, what bounds them, and which combinations are refused.

use crate::common::{engine, relative, repo};
use bisam::builder::Builder;
use bisam::engine::Program;
use bisam::engine::program::State;
use bisam::ir::{DType, Declared, Graph, Source, Tensor, Type, ValueId};
use bisam::onnx::{Weights, emit, import};
use bisam::step::ascent::ascent_loss;
use bisam::step::{Ascent, Base, Ends, Preset, StepOptions, build, prepare};
use bisam::trace::{Evaluator, Sizes};
use onnx_protobuf::Message;
use std::collections::BTreeMap;

const BATCH: usize = 12;

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// The state after three steps on fixed batches, from the weights of the file, each changed by `change`.
fn trained(model: &str, options: &StepOptions, change: impl Fn(&str, f32) -> f32) -> (Vec<String>, State) {
    let imported = import(repo(&format!("models/{model}.onnx"))).expect("imports");
    let graph = &imported.graph;
    let engine = engine();
    let stages = |n: usize| {
        build(&prepare(graph, &Sizes::batch(n), Ends::default(), &engine).expect("prepares"), options).expect("builds")
    };
    let whole = stages(BATCH);
    let mut program = Program::new(&engine, &whole, options).expect("compiles");
    program.add_batch_sizes(&whole, BATCH, |n| Ok(stages(n))).expect("compiles");
    let names: Vec<String> = program.params().iter().map(|p| p.name.clone()).collect();
    let mut state = program.state().expect("state");
    for (name, values) in names.iter().zip(&mut state.params) {
        values.iter_mut().for_each(|v| *v = change(name, *v));
    }
    program.restore(&state).expect("restores");
    let input = stages(BATCH).inputs[0].1.clone();
    for step in 0..3 {
        let x = numbers(input.len(), step);
        let labels: Vec<i64> = (0..BATCH).map(|i| ((i * 7 + step) % 10) as i64).collect();
        program.step(&[bytemuck::cast_slice(&x)], &labels, 0.1, options.rho).expect("steps");
    }
    (names, program.state().expect("state"))
}

fn same(what: &str, model: &str, a: &StepOptions, b: &StepOptions, tolerance: f64) {
    let ((_, a), (_, b)) = (trained(model, a, |_, v| v), trained(model, b, |_, v| v));
    for (x, y) in a.params.iter().chain(&a.stats).zip(b.params.iter().chain(&b.stats)) {
        let error = relative(x, y, 1e-3);
        assert!(error <= tolerance, "{what} on {model}: off by {error:.1e}");
    }
}

#[test]
fn methods_are_each_other_where_their_settings_say_so() {
    let (sgd, sam, bisam) = (Preset::Sgd.options(), Preset::Sam.options(), Preset::Bisam.options());
    let whole = Some(BATCH);
    for model in ["tiny_bn", "tiny_ln"] {
        same("SAM with ρ = 0 is SGD", model, &StepOptions { rho: 0.0, ..sam.clone() }, &sgd, 0.0);
        same("mSAM with m = batch is SAM", model, &StepOptions { micro_batch: whole, ..sam.clone() }, &sam, 0.0);
        same("K-SAM with k = batch is SAM", model, &StepOptions { top_k: whole, ..sam.clone() }, &sam, 0.0);
        same("SDS with γ = 1 is BiSAM", model, &StepOptions { sds_gamma: 1.0, ..bisam.clone() }, &bisam, 0.0);
        same("GSAM with α = 0 is SAM", model, &StepOptions { gsam_alpha: 0.0, ..sam.clone() }, &sam, 0.0);
        same("GSAM is nearly SAM for a small α", model, &StepOptions { gsam_alpha: 1e-6, ..sam.clone() }, &sam, 1e-5);
        same("LookSAM with period 1 is SAM", model, &StepOptions { period: 1, ..sam.clone() }, &sam, 0.0);
        let never = StepOptions { period: 100, look_alpha: 0.0, rho: 0.0, ..sam.clone() };
        same("LookSAM that does not look is SGD", model, &never, &sgd, 0.0);
    }
    // Without batch normalization a gradient is the mean of its micro-batches' gradients, whatever their sizes.
    for size in [1, 4, 5] {
        let accumulated = StepOptions { micro_batch: Some(size), ..sgd.clone() };
        same("accumulation is a larger batch", "tiny_ln", &accumulated, &sgd, 1e-5);
    }
}

/// Batch normalization makes the scale of the convolution before it meaningless; ASAM's perturbation scales with it, SAM's does not
/// (Kwon et al. 2021, section 3).
#[test]
fn the_adaptive_perturbation_is_invariant_to_scale() {
    let options = |adaptive: bool| StepOptions {
        adaptive,
        adaptive_all: adaptive,
        eta: 0.0,
        rho: 0.5,
        weight_decay: 0.0,
        ..Preset::Sam.options()
    };
    // The gradient shrinks as the weight grows: what is compared is the loss at the perturbed weights.
    let losses = |adaptive: bool, factor: f32| {
        let imported = import(repo("models/tiny_bn.onnx")).expect("imports");
        let engine = engine();
        let prepared = prepare(&imported.graph, &Sizes::batch(BATCH), Ends::default(), &engine).expect("prepares");
        let options = options(adaptive);
        let stages = build(&prepared, &options).expect("builds");
        let mut program = Program::new(&engine, &stages, &options).expect("compiles");
        let mut state = program.state().expect("state");
        for (slot, values) in program.params().iter().zip(&mut state.params) {
            if slot.name.starts_with("conv") && slot.shape.len() == 4 {
                values.iter_mut().for_each(|v| *v *= factor);
            }
        }
        program.restore(&state).expect("restores");
        let x = numbers(stages.inputs[0].1.len(), 0);
        let labels: Vec<i64> = (0..BATCH as i64).map(|i| i % 10).collect();
        program.step(&[bytemuck::cast_slice(&x)], &labels, 0.0, options.rho).expect("steps").descent
    };
    let (adaptive, plain) = ([losses(true, 1.0), losses(true, 8.0)], [losses(false, 1.0), losses(false, 8.0)]);
    assert!((adaptive[0] - adaptive[1]).abs() < 1e-3 * adaptive[0], "{adaptive:?}");
    assert!((plain[0] - plain[1]).abs() > 1e-2 * plain[0], "{plain:?}");
}

/// Q of random logits, and their 0-1 error, for labels 0.
fn bound(ascent: Ascent, options: &StepOptions, logits: &Tensor) -> f64 {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 18);
    let [n, k] = [0, 1].map(|i| logits.shape()[i]);
    let ty = Type::new(DType::F32, &[n, k]);
    let input = |graph: &mut Graph, name: &str| -> ValueId {
        let v = graph.add_value(name, Some(ty.clone()), Source::Input(Declared { dtype: DType::F32, dims: None }));
        graph.inputs.push(v);
        v
    };
    let (x, one_hot) = (input(&mut graph, "x"), input(&mut graph, "one_hot"));
    let q = ascent_loss(&mut Builder::new(&mut graph, "q"), ascent, x, one_hot, options).expect("builds");
    graph.outputs.push(q);
    let model = emit(&graph, Weights::Initializers).write_to_bytes().expect("encodes");
    let labels: Vec<f32> = (0..n * k).map(|i| if i % k == 0 { 1.0 } else { 0.0 }).collect();
    let labels = Tensor::new(&[n, k], &labels).expect("fits");
    engine().evaluate(&model, &[("x", logits), ("one_hot", &labels)]).expect("runs")[0].to_f64()[0]
}

/// Xie et al. 2024, eq. 10 to 12: φ is below the step function, and the log-sum-exp is at most log(K)/μ above the largest φ.
#[test]
fn the_bounds_are_below_the_zero_one_loss() {
    let [n, k] = [40, 10];
    for (preset, ascent) in [(Preset::Bisam, Ascent::NegLog), (Preset::BisamTanh, Ascent::Tanh)] {
        for (mu, scale) in [(1.0, 0.1), (10.0, 1.0), (10.0, 30.0), (1000.0, 5.0)] {
            let options = StepOptions { mu, ..preset.options() };
            let values: Vec<f32> = numbers(n * k, 3).iter().map(|v| v * scale).collect();
            let wrong = |row: &[f32]| f64::from(row[1..].iter().any(|v| *v > row[0]));
            let error = values.chunks(k).map(wrong).sum::<f64>() / n as f64;
            let q = bound(ascent, &options, &Tensor::new(&[n, k], &values).expect("fits"));
            let slack = (k as f64).ln() / f64::from(mu);
            assert!(q <= error + slack + 1e-5, "{ascent:?}, μ {mu}: {q} above {error} + {slack}");
            // Where nothing is wrong by much, nothing is lost by much either.
            let sure: Vec<f32> = (0..n * k).map(|i| if i % k == 0 { 1e3 } else { -1e3 }).collect();
            assert!(bound(ascent, &options, &Tensor::new(&[n, k], &sure).expect("fits")) <= slack + 1e-5);
        }
    }
}

#[test]
fn combinations_without_a_meaning_are_refused_with_the_reason() {
    let sam = Preset::Sam.options();
    let cases = BTreeMap::from([
        ("same samples", StepOptions { gsam_alpha: 0.1, micro_batch: Some(4), ..sam.clone() }),
        ("of the same", StepOptions { period: 3, sds_gamma: 0.5, ..sam.clone() }),
        ("each chooses", StepOptions { top_k: Some(3), sds_gamma: 0.5, ..sam.clone() }),
        ("no surrogate gap", StepOptions { gsam_alpha: 0.1, period: 2, ..sam.clone() }),
        ("need a perturbation", StepOptions { gsam_alpha: 0.1, ..Preset::Sgd.options() }),
        ("sds-gamma is 1.5", StepOptions { sds_gamma: 1.5, ..sam.clone() }),
        ("precisions decide", StepOptions { adaptive: true, ..Preset::Bsam.options() }),
        ("does not start", StepOptions { start_sigma: 0.1, sds_gamma: 0.5, ..sam.clone() }),
        ("start-sigma, adaptive", StepOptions { start_sigma: 0.1, ..Preset::Sgd.options() }),
        ("micro-batch is 0", StepOptions { micro_batch: Some(0), ..sam.clone() }),
    ]);
    for (reason, options) in cases {
        let e = options.validate().expect_err(reason);
        assert!(e.to_string().contains(reason), "{reason}: {e}");
    }
    for (preset, name) in Preset::ALL {
        let options = preset.options();
        options.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
        // On top of AdamW too.
        StepOptions { base: Base::Adamw, ..options }.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
