//! Gradients that finite differences of one node do not show: random masks, ties, NaN and infinity that must not leak.

use super::Compiled;
use bisam::Result;
use bisam::autodiff::differentiate;
use bisam::builder::{Builder, attrs};
use bisam::ir::{DType, Declared, Graph, Source, Tensor, Type, ValueId};

const F32: DType = DType::F32;

/// A graph with one input `x` whose output `f` makes; runs it at `x` and returns the gradient of the sum of the output, and whatever
/// else `f` returns.
fn gradient(
    x: &Tensor,
    f: impl Fn(&mut Builder<'_>, ValueId) -> Result<(ValueId, Vec<ValueId>)>,
) -> Result<Vec<Tensor>> {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), 20);
    let declared = Declared { dtype: x.dtype(), dims: None };
    let input = graph.add_value("x", Some(x.ty()), Source::Input(declared));
    graph.inputs.push(input);
    let mut b = Builder::new(&mut graph, "f");
    let (y, more) = f(&mut b, input)?;
    let one = Tensor::full(x.dtype(), b.shape(y), 1.0);
    let seed = b.constant(one);
    let dx = differentiate(&mut graph, &[(y, seed)], &[input])?[0].expect("has a path");
    graph.outputs = [vec![dx], more].concat();
    Compiled::new(&graph)?.run(&[("x", x)])
}

fn f32s(values: &[f64]) -> Tensor {
    Tensor::from_f64(F32, &[values.len()], values)
}

#[test]
fn dropout_uses_the_mask_of_the_same_run() -> Result<()> {
    let x = Tensor::full(F32, &[200], 1.0);
    let values = gradient(&x, |b, x| {
        let (ratio, training) = (b.scalar(0.25, F32), b.constant(Tensor::scalar(DType::Bool, 1.0)));
        let types = [Type::new(F32, &[200]), Type::new(DType::Bool, &[200])];
        let y = b.raw("", "Dropout", &[Some(x), Some(ratio), Some(training)], attrs([]), &types);
        Ok((y[0], vec![y[1]]))
    })?;
    let expected: Vec<f32> = values[1].to_f32().iter().map(|m| m / 0.75).collect();
    assert_eq!(values[0].to_f32(), expected);
    assert!(expected.contains(&0.0));
    Ok(())
}

#[test]
fn equal_operands_share_the_cotangent() -> Result<()> {
    let dx = gradient(&f32s(&[1.0, 0.0, -1.0]), |b, x| {
        let zero = b.scalar(0.0, F32);
        Ok((b.binary("Max", x, zero)?, vec![]))
    })?;
    assert_eq!(dx[0].to_f32(), [1.0, 0.5, 0.0]);
    let dx = gradient(&f32s(&[1.0, 3.0, 3.0]), |b, x| Ok((b.reduce("ReduceMax", x, &[0], false), vec![])))?;
    assert_eq!(dx[0].to_f32(), [0.0, 0.5, 0.5]);
    Ok(())
}

#[test]
fn kinks_follow_the_documented_convention() -> Result<()> {
    for (op, at, slope) in [
        ("Relu", 0.0, 0.0),
        ("Abs", 0.0, 0.0),
        ("LeakyRelu", 0.0, 0.01),
        ("Elu", 0.0, 1.0),
        ("HardSwish", -3.0, 0.0),
        ("HardSwish", 3.0, 1.0),
        ("HardSigmoid", -2.5, 0.0),
        ("Shrink", 0.5, 0.0),
        ("ThresholdedRelu", 1.0, 0.0),
    ] {
        let dx = gradient(&f32s(&[at]), |b, x| Ok((b.unary(op, x), vec![])))?;
        assert!((dx[0].to_f64()[0] - slope).abs() < 1e-6, "{op} at {at}: {:?}", dx[0].to_f32());
    }
    let dx = gradient(&f32s(&[-1.0, 0.0, 0.5, 1.0, 2.0]), |b, x| {
        let (low, high) = (b.scalar(0.0, F32), b.scalar(1.0, F32));
        let ty = b.ty(x);
        Ok((b.op("Clip", &[x, low, high], attrs([]), ty), vec![]))
    })?;
    assert_eq!(dx[0].to_f32(), [0.0, 0.0, 1.0, 0.0, 0.0]);
    let dx = gradient(&f32s(&[0.0, 0.0]), |b, x| Ok((b.reduce("ReduceL2", x, &[0], false), vec![])))?;
    assert_eq!(dx[0].to_f32(), [0.0, 0.0]);
    Ok(())
}

/// What a guard keeps out of the forward pass stays out of the gradient.
#[test]
fn where_stops_nan_and_infinity() -> Result<()> {
    let dx = gradient(&f32s(&[-1.0, 0.0, 4.0]), |b, x| {
        let zero = b.scalar(0.0, F32);
        let positive = b.binary("Greater", x, zero)?;
        let safe = b.select(positive, x, zero)?;
        Ok((b.unary("Sqrt", safe), vec![]))
    })?;
    assert_eq!(dx[0].to_f32(), [0.0, 0.0, 0.25]);
    Ok(())
}

/// Attention that masks a whole row: softmax gives NaN there, and `Where(IsNaN(p), 0, p)` removes it.
#[test]
fn a_softmax_whose_nan_is_replaced_has_a_finite_gradient() -> Result<()> {
    for replaced_by_isnan in [true, false] {
        let x = Tensor::from_f64(F32, &[2, 3], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        let values = gradient(&x, |b, x| {
            let mask = b.constant(Tensor::from_f64(F32, &[2, 1], &[0.0, f64::NEG_INFINITY]));
            let masked = b.add(x, mask)?;
            let p = b.softmax("Softmax", masked, 1);
            let condition = if replaced_by_isnan {
                let ty = Type::new(DType::Bool, &[2, 3]);
                b.op("IsNaN", &[p], attrs([]), ty)
            } else {
                b.constant(Tensor::from_f64(DType::Bool, &[2, 1], &[0.0, 1.0]))
            };
            let zero = b.scalar(0.0, F32);
            let safe = b.select(condition, zero, p)?;
            let weights = b.constant(f32s(&[1.0, 2.0, 4.0]));
            Ok((b.mul(safe, weights)?, vec![]))
        })?;
        let dx = values[0].to_f32();
        assert!(dx[..3].iter().all(|v| v.abs() > 0.01), "{dx:?}");
        assert_eq!(dx[3..], [0.0; 3]);
    }
    Ok(())
}

/// Repeated rows add up exactly, whatever the number of threads.
#[test]
fn many_equal_indices_add_up() -> Result<()> {
    for (rows, width) in [(1000, 2), (2, 384)] {
        let x = Tensor::full(F32, &[rows, width], 1.0);
        let dx = gradient(&x, |b, x| {
            // Not a constant: argmax of ones is 0 everywhere.
            let noise = b.constant(Tensor::full(F32, &[4096, 2], 1.0));
            let first = b.slice(x, &[0, 1], &[0, 0], &[1, 1]);
            let noise = b.mul(noise, first)?;
            let ty = Type::new(DType::I64, &[4096]);
            let list = attrs([("axis", bisam::ir::Attr::Int(1)), ("keepdims", bisam::ir::Attr::Int(0))]);
            let indices = b.op("ArgMax", &[noise], list, ty);
            Ok((b.gather(x, indices, 0), vec![]))
        })?;
        let dx = dx[0].to_f32();
        assert!(dx[..width].iter().all(|v| *v == 4096.0), "{:?}", &dx[..width]);
        assert!(dx[width..].iter().all(|v| *v == 0.0));
    }
    Ok(())
}
