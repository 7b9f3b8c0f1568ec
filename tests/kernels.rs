//! The crate's own kernels against plain operators, on every model.

use crate::common::{engine, relative, repo};
use bisam::autodiff::differentiate;
use bisam::builder::{Builder, attrs};
use bisam::engine::Program;
use bisam::error::Result;
use bisam::ir::{Attr, DType, Declared, Graph, Source, Tensor, Type, ValueId};
use bisam::onnx::import;
use bisam::step::cost::cost;
use bisam::step::{Ends, Kernels, Preset, StepOptions, build, prepare, round_factors};
use bisam::trace::Sizes;

/// Loss, gradient and statistics of one step on a batch of 4 with either kind of kernels agree, and convolutional models do use
/// the kernels.
#[test]
fn fused_kernels_agree_with_plain_operators() {
    let networks =
        ["resnet20", "resnet20_eval", "resnet8_28", "vgg", "densenet", "mobilenet", "lenet", "tiny_bn", "vit"];
    for name in networks.into_iter().chain(["vit_dynamo", "bert", "bert_dynamo", "tiny_ln"]) {
        let model = import(repo(&format!("models/{name}.onnx"))).expect("imports");
        let engine = engine();
        let prepared = prepare(&model.graph, &Sizes::batch(4), Ends::default(), &engine).expect("prepares");
        let run = |kernels: Kernels| {
            let options = StepOptions { kernels, ..Preset::Sgd.options() };
            let stages = build(&prepared, &options).expect("builds");
            let fused = stages.grad.nodes.iter().filter(|n| n.domain == "bisam").count();
            assert_eq!(fused > 0, kernels == Kernels::Fused, "{name}: {fused} nodes of domain bisam");
            let mut program = Program::new(&engine, &stages, &options).expect("compiles");
            let inputs: Vec<_> = stages.inputs.iter().map(|(_, ty)| wave(ty)).collect();
            let bytes: Vec<&[u8]> = inputs.iter().map(|t| t.bytes()).collect();
            let labels = [0, 1, 2, 3].map(|i| i % stages.classes as i64);
            let losses = program.step(&bytes, &labels, 0.01, 0.0).expect("steps");
            let names: Vec<String> = program.params().iter().map(|p| p.name.clone()).collect();
            (losses.descent, names, program.gradient().expect("gradient"), program.state().expect("state").stats)
        };
        let (plain, fused) = (run(Kernels::Plain), run(Kernels::Fused));
        assert!((plain.0 - fused.0).abs() < 1e-5 * plain.0.abs(), "{name}: loss {} and {}", plain.0, fused.0);
        let largest = plain.2.iter().map(|g| norm(g)).fold(0.0, f64::max);
        for (parameter, (a, b)) in plain.1.iter().zip(plain.2.iter().zip(&fused.2)) {
            let error = relative(b, a, 1e-3 * largest);
            assert!(error < 1e-4, "{name}: gradient of {parameter} differs by {error:.1e}");
        }
        for (a, b) in plain.3.iter().zip(&fused.3) {
            let error = relative(b, a, 1e-3);
            assert!(error < 1e-5, "{name}: a statistic differs by {error:.1e}");
        }
    }
}

/// With `recompute` a step gives the same bits, and keeps less from the forward pass.
#[test]
fn what_is_computed_again_is_the_same() {
    for (name, least) in [("resnet20", 0.75), ("mobilenet", 0.9), ("densenet", 0.75), ("vit", 0.9), ("bert", 0.9)] {
        let model = import(repo(&format!("models/{name}.onnx"))).expect("imports");
        let engine = engine();
        let prepared = prepare(&model.graph, &Sizes::batch(4), Ends::default(), &engine).expect("prepares");
        let run = |recompute: bool| {
            let options = StepOptions { recompute, ..Preset::Bisam.options() };
            let stages = build(&prepared, &options).expect("builds");
            let mut program = Program::new(&engine, &stages, &options).expect("compiles");
            let inputs: Vec<_> = stages.inputs.iter().map(|(_, ty)| wave(ty)).collect();
            let bytes: Vec<&[u8]> = inputs.iter().map(|t| t.bytes()).collect();
            let labels = [0, 1, 2, 3].map(|i| i % stages.classes as i64);
            let losses = [(); 2].map(|()| program.step(&bytes, &labels, 0.01, 0.05).expect("steps"));
            (losses, program.state().expect("state"), cost(&prepared.graph, 4, Some(&stages), None).activation_bytes)
        };
        let (kept, again) = (run(false), run(true));
        assert!(kept.0 == again.0 && kept.1 == again.1, "{name} differs");
        let [kept, again] = [kept.2, again.2].map(|bytes| bytes.expect("is known") as f64);
        assert!(again < least * kept, "{name} keeps {again} bytes instead of {kept}");
    }
}

#[test]
fn recompute_needs_the_kernels() {
    let options = StepOptions { recompute: true, kernels: Kernels::Plain, ..Preset::Sgd.options() };
    let error = options.validate().expect_err("plain operators");
    assert!(error.to_string().contains("fused kernels"), "{error}");
}

/// An input that is not the same anywhere; of tokens and masks, ones and zeros.
fn wave(ty: &bisam::ir::Type) -> Tensor {
    if !ty.dtype.is_float() {
        let values: Vec<f64> = (0..ty.len()).map(|i| f64::from(u8::from(i % 3 > 0))).collect();
        return Tensor::from_f64(ty.dtype, &ty.shape, &values);
    }
    let values: Vec<f64> = (0..ty.len()).map(|i| (i as f64 * 0.37).sin() + (i as f64 * 0.0113).cos()).collect();
    Tensor::from_f64(ty.dtype, &ty.shape, &values)
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

/// a·W₁ + ½b and (that)·W₂, with W₁ read twice.
fn products() -> Result<(Graph, Vec<ValueId>)> {
    let mut graph = Graph::default();
    graph.name.push_str("products");
    graph.opsets.insert(String::new(), 18);
    let x = Type::new(DType::F32, &[3, 4]);
    let x = graph.add_value("x", Some(x), Source::Input(Declared { dtype: DType::F32, dims: None }));
    graph.inputs.push(x);
    let weight = |name: &str, shape: &[usize], graph: &mut Graph| {
        let n = shape.iter().product::<usize>();
        let values: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
        graph.add_value(name, None, Source::Param(Tensor::from_f64(DType::F32, shape, &values)))
    };
    let (w1, bias) = (weight("w1", &[4, 4], &mut graph), weight("b", &[4], &mut graph));
    let w2 = weight("w2", &[4, 2], &mut graph);
    let mut b = Builder::new(&mut graph, "net");
    let ty = Type::new(DType::F32, &[3, 4]);
    let h = b.op("Gemm", &[x, w1, bias], attrs([("beta", Attr::Float(0.5))]), ty);
    let h = b.matmul(h, w1)?;
    let y = b.matmul(h, w2)?;
    graph.outputs.push(y);
    Ok((graph, vec![x, w1, bias, w2]))
}

/// With a type that loses nothing, values and gradients are those of the graph as it was.
#[test]
fn products_between_casts_are_the_same() {
    let run = |round: bool| -> Result<Vec<Tensor>> {
        let (mut graph, wrt) = products()?;
        if round {
            round_factors(&mut graph, DType::F64)?;
        }
        let output = graph.outputs[0];
        let seed = Builder::new(&mut graph, "seed").constant(Tensor::full(DType::F32, &[3, 2], 1.0));
        let gradients = differentiate(&mut graph, &[(output, seed)], &wrt)?;
        graph.outputs.extend(gradients.into_iter().flatten());
        let x: Vec<f64> = (0..12).map(|i| f64::from(i).cos()).collect();
        engine().compile_whole(&graph)?.run(&[("x", &Tensor::from_f64(DType::F32, &[3, 4], &x))])
    };
    for (a, b) in run(false).expect("runs").iter().zip(run(true).expect("runs")) {
        assert!(a.to_f64().iter().zip(b.to_f64()).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn factors_are_rounded_once_and_gradients_stay_f32() -> Result<()> {
    let (mut graph, wrt) = products()?;
    round_factors(&mut graph, DType::BF16)?;
    let count = |op: &str| graph.nodes.iter().filter(|n| n.is(op)).count();
    // x, W₁, the first product, the second, W₂; three products on their way out.
    assert_eq!((count("Cast"), count("Add")), (5 + 3, 1));
    let output = graph.outputs[0];
    let seed = Builder::new(&mut graph, "seed").constant(Tensor::full(DType::F32, &[3, 2], 1.0));
    let gradients = differentiate(&mut graph, &[(output, seed)], &wrt)?;
    let f32s = gradients.iter().flatten().filter(|g| graph.ty(**g).is_ok_and(|t| t.dtype == DType::F32)).count();
    assert_eq!((f32s, gradients.len()), (4, 4));
    Ok(())
}

/// The norm of the perturbation is that of one vector of all parameters, of which there may be millions.
#[test]
fn sums_of_long_vectors_lose_nothing() {
    let n = 12_000_000 / 64 * 64;
    let values: Vec<f32> = (0..n).map(|i| 0.1 + 0.05 * ((i % 97) as f32 / 97.0)).collect();
    let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 18);
    let declared = Declared { dtype: DType::F32, dims: None };
    let x = graph.add_value("x", Some(Type::new(DType::F32, &[n])), Source::Input(declared));
    graph.inputs.push(x);
    let mut b = Builder::new(&mut graph, "long");
    let found = [b.norm(x), b.sum_all(x)];
    graph.outputs.extend(found);
    let mut session = engine().compile_whole(&graph).expect("compiles");
    let x = Tensor::new(&[n], &values).expect("fits");
    let found: Vec<f64> = session.run(&[("x", &x)]).expect("runs").iter().flat_map(Tensor::to_f64).collect();
    for (found, want) in found.into_iter().zip([square.sqrt(), sum]) {
        assert!((found / want - 1.0).abs() < 1e-6, "{found}, not {want}");
    }
}
