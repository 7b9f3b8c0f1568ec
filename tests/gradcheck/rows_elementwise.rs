//! Arithmetic and elementwise functions.

use super::Domain::{Between, Distinct, Exactly, Off};
use super::{Row, check_all, row};
use bisam::ir::{DType, Tensor};

const POSITIVE: super::Domain = Between(0.3, 2.0);
const INSIDE: super::Domain = Between(-0.8, 0.8);

pub fn rows() -> Vec<Row> {
    let mask = Tensor::from_f64(DType::Bool, &[2, 3], &[1., 0., 0., 1., 1., 0.]);
    let flag = Tensor::from_f64(DType::Bool, &[3], &[1., 0., 1.]);
    let scalar = |v: f64| Tensor::scalar(DType::F32, v);
    let boolean = |v: f64| Tensor::scalar(DType::Bool, v);
    vec![
        row("Add", "same shape").x(&[2, 3]).x(&[2, 3]),
        row("Add", "broadcast both ways").x(&[2, 1, 3]).x(&[4, 1]),
        row("Sub", "broadcast").x(&[2, 3]).x(&[3]),
        row("Sub", "scalar").x(&[]).x(&[2, 3]),
        row("Mul", "same shape").x(&[2, 3]).x(&[2, 3]),
        row("Mul", "broadcast").x(&[2, 3, 2]).x(&[3, 1]),
        row("Div", "same shape").x(&[2, 3]).x(&[2, 3]),
        row("Div", "broadcast numerator").x(&[3]).x_in(&[2, 3], POSITIVE),
        row("Div", "broadcast denominator").x(&[2, 3]).x(&[2, 1]),
        row("Mod", "fmod")
            .x_in(&[4], Exactly(&[2.7, -2.7, 3.4, -1.3]))
            .x_in(&[4], Exactly(&[1., 1.1, -1.3, -0.5]))
            .int("fmod", 1),
        row("Mod", "fmod, broadcast")
            .x_in(&[2, 2], Exactly(&[2.7, -2.7, 3.4, -1.3]))
            .x_in(&[1], Exactly(&[0.8]))
            .int("fmod", 1),
        row("Pow", "both").x_in(&[2, 3], POSITIVE).x(&[2, 3]),
        row("Pow", "both, broadcast").x_in(&[2, 1], POSITIVE).x(&[3]),
        row("Pow", "exponent 2").x(&[2, 3]).floats(&[], &[2.]),
        row("Pow", "exponent 3").x(&[2, 3]).floats(&[1], &[3.]),
        row("Pow", "exponent 1").x(&[2, 3]).floats(&[], &[1.]),
        row("Pow", "exponent 0").x(&[2, 3]).floats(&[], &[0.]),
        row("Pow", "exponent 0.5").x_in(&[2, 3], POSITIVE).floats(&[], &[0.5]),
        row("Pow", "exponent -1.5").x_in(&[2, 3], POSITIVE).floats(&[], &[-1.5]),
        row("Pow", "integer exponent").x(&[2, 3]).constant(Tensor::scalar(DType::I64, 3.)),
        row("Pow", "integer exponents").x(&[3]).constant(Tensor::ints(&[3, 0, 2])),
        row("Pow", "exponents with 0 at base 0").x_in(&[3], Exactly(&[0., 1.5, -1.5])).floats(&[3], &[0., 2., 3.]),
        row("Pow", "exponent wanted at base 0").x_in(&[2], Exactly(&[0.7, 1.5])).x_in(&[2], Exactly(&[1.5, 2.])),
        row("Max", "two").x_in(&[2, 3], Distinct).x_in(&[2, 3], Exactly(&[0.4, -0.2, 0.0, -0.4, 0.2, 0.0])),
        row("Max", "three, broadcast").x_in(&[4], Distinct).x_in(&[2, 1], Exactly(&[-0.2, 0.2])).floats(&[], &[-2.]),
        row("Max", "one").x(&[3]),
        row("Min", "two").x_in(&[2, 3], Distinct).x_in(&[2, 3], Exactly(&[0.4, -0.2, 0.0, -0.4, 0.2, 0.0])),
        row("Min", "with a constant").x_in(&[2, 3], Off(&[0.5])).floats(&[1], &[0.5]),
        row("Sum", "three, broadcast").x(&[2, 3]).x(&[3]).x(&[2, 1]),
        row("Sum", "one").x(&[2, 3]),
        row("Mean", "three, broadcast").x(&[2, 3]).x(&[3]).x(&[]),
        row("Where", "same shape").at_run_time(mask.clone()).x(&[2, 3]).x(&[2, 3]),
        row("Where", "broadcast branches").at_run_time(mask).x(&[3]).x(&[]),
        row("Where", "broadcast condition").at_run_time(flag).x(&[2, 3]).x(&[2, 1]),
        row("Clip", "both bounds").x_in(&[3, 4], Off(&[-0.7, 0.9])).floats(&[], &[-0.7]).floats(&[], &[0.9]),
        row("Clip", "low").x_in(&[3, 4], Off(&[-0.7])).floats(&[], &[-0.7]),
        row("Clip", "high").x_in(&[3, 4], Off(&[0.9])).absent().floats(&[], &[0.9]),
        row("Clip", "none").x(&[3, 4]),
        row("Clip", "bounds wanted")
            .x_in(&[3, 4], Off(&[-0.7, 0.9]))
            .x_in(&[], Exactly(&[-0.7]))
            .x_in(&[], Exactly(&[0.9])),
        row("Cast", "to f64").x(&[2, 3]).int("to", 11),
        row("CastLike", "the type itself").x(&[2, 3]).floats(&[1], &[0.]),
        row("Identity", "any").x(&[2, 3]),
        row("Dropout", "evaluation by default").x(&[2, 3]),
        row("Dropout", "evaluation").x(&[2, 3]).constant(scalar(0.3)).constant(boolean(0.)),
        row("Dropout", "training, ratio 0").x(&[2, 3]).constant(scalar(0.)).constant(boolean(1.)),
        row("Neg", "any").x(&[2, 3]),
        row("Abs", "any").x(&[2, 3]),
        row("Sqrt", "any").x_in(&[2, 3], POSITIVE),
        row("Exp", "any").x(&[2, 3]),
        row("Log", "any").x_in(&[2, 3], POSITIVE),
        row("Reciprocal", "any").x_in(&[2, 3], POSITIVE),
        row("Sin", "any").x(&[2, 3]),
        row("Cos", "any").x(&[2, 3]),
        row("Tan", "any").x_in(&[2, 3], INSIDE),
        row("Asin", "any").x_in(&[2, 3], INSIDE),
        row("Acos", "any").x_in(&[2, 3], INSIDE),
        row("Atan", "any").x(&[2, 3]),
        row("Sinh", "any").x(&[2, 3]),
        row("Cosh", "any").x(&[2, 3]),
        row("Asinh", "any").x(&[2, 3]),
        row("Acosh", "any").x_in(&[2, 3], Between(1.3, 3.0)),
        row("Atanh", "any").x_in(&[2, 3], INSIDE),
        row("Erf", "any").x(&[2, 3]),
        row("DequantizeLinear", "scalar")
            .constant(Tensor::from_f64(DType::U8, &[2, 3], &[0., 9., 255., 7., 128., 3.]))
            .x(&[])
            .constant(Tensor::scalar(DType::U8, 128.)),
        row("DequantizeLinear", "blocks")
            .constant(Tensor::from_f64(DType::I8, &[2, 4], &[0., 9., -128., 7., 127., 3., 5., -6.]))
            .x(&[2, 2])
            .int("axis", 1)
            .int("block_size", 2)
            .opset(21),
        row("DequantizeLinear", "axis")
            .constant(Tensor::from_f64(DType::I8, &[2, 3], &[0., 9., -128., 7., 127., 3.]))
            .x(&[2])
            .int("axis", 0),
    ]
}

#[test]
fn elementwise() {
    check_all(&rows());
}
