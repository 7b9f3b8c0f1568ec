//! Operators of domain `bisam` have the outputs and the gradients of the plain ones that they replace.

use super::{Case, all_rows, build, gradients_after, row, weights};
use bisam::Result;
use bisam::autodiff::{DOMAIN, fuse, lower};
use bisam::builder::Builder;
use bisam::ir::{DType, Declared, Graph, Source, Tensor, ValueId};
use std::collections::BTreeSet;

const F32: DType = DType::F32;

/// The operators of domain `bisam` that a case gets; its gradients with and without them agree.
fn agree(name: &str, case: &Case, weights: &[Option<Tensor>]) -> Result<Vec<String>> {
    let mut fused = case.graph.clone();
    lower(&mut fused)?;
    fuse(&mut fused)?;
    let ops: Vec<String> = fused.nodes.iter().filter(|n| n.domain == DOMAIN).map(|n| n.op.clone()).collect();
    if ops.is_empty() {
        return Ok(ops);
    }
    super::same_outputs(case, &fused)?;
    let plain = gradients_after(case, weights, |_| Ok(()))?;
    let kernels = gradients_after(case, weights, fuse)?;
    for (plain, kernel) in plain.iter().zip(&kernels) {
        let (Some(plain), Some(kernel)) = (plain, kernel) else {
            assert_eq!(plain.is_some(), kernel.is_some(), "{name}: a gradient is missing");
            continue;
        };
        let (a, b) = (plain.to_f64(), kernel.to_f64());
        let scale = 1.0 + a.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let far = a.iter().zip(&b).find(|(a, b)| (*a - *b).abs() > 2e-5 * scale);
        assert!(plain.ty() == kernel.ty() && far.is_none(), "{name}: {a:?} and, by {ops:?}, {b:?}");
    }
    Ok(ops)
}

#[test]
fn kernels_have_the_gradients_of_plain_operators() -> Result<()> {
    let ones_and_zeros = row("InstanceNormalization", "factor 1, summand 0").x(&[2, 3, 4, 5]);
    let ones_and_zeros = ones_and_zeros.floats(&[3], &[1.0; 3]).floats(&[3], &[0.0; 3]).float("epsilon", 0.01);
    let of_batch = row("BatchNormalization", "training, planes of 12").x(&[3, 2, 3, 4]).x(&[2]).x(&[2]);
    let of_batch = of_batch.floats(&[2], &[0.0; 2]).floats(&[2], &[1.0; 2]).int("training_mode", 1);
    let of_batch = of_batch.float("momentum", 0.0).outputs(&[true, false, false]);
    let mut found = BTreeSet::new();
    for row in all_rows().iter().chain([&ones_and_zeros, &of_batch]) {
        let case = build(row, F32)?;
        let weights = weights(row, &case)?;
        found.extend(agree(&row.name(), &case, &weights)?);
    }
    let want = ["BatchNorm", "Conv", "Gelu", "LayerNorm", "MaxPool", "Silu", "Softmax"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), want);
    Ok(())
}

/// A graph with one input [2, 3, 7], and what `f` makes of it as its output.
fn case(f: impl Fn(&mut Builder<'_>, ValueId) -> Result<ValueId>) -> Result<Case> {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 20);
    let values: Vec<f64> = (0..42).map(|i| (f64::from(i) * 0.7).sin() * 3.0).collect();
    let x = Tensor::from_f64(F32, &[2, 3, 7], &values);
    let input = graph.add_value("x", Some(x.ty()), Source::Input(Declared { dtype: F32, dims: None }));
    graph.inputs.push(input);
    let y = f(&mut Builder::new(&mut graph, "f"), input)?;
    graph.outputs.push(y);
    Ok(Case { graph, fed: vec![(input, x)], differentiable: vec![input] })
}

#[test]
fn activations_that_a_file_spells_out_are_found() -> Result<()> {
    type Made = Result<ValueId>;
    type Make = fn(&mut Builder<'_>, ValueId) -> Made;
    fn one_and_erf(b: &mut Builder<'_>, z: ValueId) -> Made {
        let (erf, one) = (b.unary("Erf", z), b.scalar(1.0, F32));
        b.add(erf, one)
    }
    fn scaled(b: &mut Builder<'_>, x: ValueId, by: f64) -> Made {
        let by = b.scalar(by, F32);
        b.mul(x, by)
    }
    fn over_root(b: &mut Builder<'_>, x: ValueId) -> Made {
        let root = b.scalar(std::f64::consts::SQRT_2, F32);
        let z = b.div(x, root)?;
        one_and_erf(b, z)
    }
    let cases: [(&str, &[&str], Make); 7] = [
        ("x·σ(x)", &["Silu"], |b, x| {
            let s = b.unary("Sigmoid", x);
            b.mul(x, s)
        }),
        ("σ(x)·x, read twice", &["Silu"], |b, x| {
            let s = b.unary("Sigmoid", x);
            let y = b.mul(s, x)?;
            b.mul(y, y)
        }),
        ("σ(x) read by another, too", &[], |b, x| {
            let s = b.unary("Sigmoid", x);
            let y = b.mul(s, x)?;
            b.add(y, s)
        }),
        ("x·(1 + erf(x/√2))·½", &["Gelu"], |b, x| {
            let sum = over_root(b, x)?;
            let product = b.mul(x, sum)?;
            scaled(b, product, 0.5)
        }),
        ("½x·(1 + erf(x·√½))", &["Gelu"], |b, x| {
            let halved = scaled(b, x, 0.5)?;
            let z = scaled(b, x, std::f64::consts::FRAC_1_SQRT_2)?;
            let sum = one_and_erf(b, z)?;
            b.mul(halved, sum)
        }),
        ("x·(1 + erf(x/√2))·0.4", &[], |b, x| {
            let sum = over_root(b, x)?;
            let product = b.mul(x, sum)?;
            scaled(b, product, 0.4)
        }),
        ("x·(1 + erf(1.3x))·½", &[], |b, x| {
            let z = scaled(b, x, 1.3)?;
            let sum = one_and_erf(b, z)?;
            let product = b.mul(x, sum)?;
            scaled(b, product, 0.5)
        }),
    ];
    for (name, want, f) in cases {
        let case = case(f)?;
        let ty = case.graph.ty(case.graph.outputs[0])?.clone();
        let u: Vec<f64> = (0..ty.len()).map(|i| (i as f64 * 1.9).cos()).collect();
        let found = agree(name, &case, &[Some(Tensor::from_f64(F32, &ty.shape, &u))])?;
        assert_eq!(found, want, "{name}");
    }
    Ok(())
}
