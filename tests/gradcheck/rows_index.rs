//! Operators that move elements to places given by an integer input.

use super::Domain::{Distinct, Exactly};
use super::{Row, check_all, refused, row};
use bisam::ir::{DType, Tensor};

fn ints(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_f64(DType::I64, shape, values)
}

pub fn rows() -> Vec<Row> {
    let twice = ints(&[2, 2], &[1., 0., -1., 1.]);
    let small = Tensor::from_f64(DType::I32, &[3], &[2., 0., 2.]);
    let scalar = Tensor::scalar(DType::I64, -1.);
    let elements = ints(&[2, 3], &[0., 2., -1., 1., 1., 0.]);
    let distinct = ints(&[2, 3], &[2., 0., -2., 1., 2., 0.]);
    let tuples = ints(&[3, 2], &[0., 1., 1., -1., 0., 1.]);
    let rows_of = ints(&[2, 2, 1], &[1., -1., 1., 0.]);
    let bools = |v: &[f64]| Tensor::from_f64(DType::Bool, &[v.len()], v);
    let depth = Tensor::scalar(DType::I64, 4.);
    let k = |k: i64| Tensor::ints(&[k]);
    vec![
        row("ArrayFeatureExtractor", "matrix").of_domain("ai.onnx.ml").x(&[3, 4]).ints(&[2, 0, 2]).single(),
        row("ArrayFeatureExtractor", "vector").of_domain("ai.onnx.ml").x(&[4]).ints(&[3, 1]).single(),
        row("Gather", "wide rows: one-hot").x(&[3, 20]).at_run_time(twice.clone()),
        row("Gather", "thin rows: scatter").x(&[30, 1]).at_run_time(twice.clone()),
        row("Gather", "axis 1").x(&[2, 3, 4]).at_run_time(twice.clone()).int("axis", 1),
        row("Gather", "axis -1, i32").x(&[2, 3]).at_run_time(small).int("axis", -1),
        row("Gather", "scalar index at run time").x(&[2, 3]).at_run_time(scalar.clone()).int("axis", 1),
        row("Gather", "constant scalar").x(&[2, 3, 2]).constant(scalar).int("axis", 1),
        row("Gather", "constant range").x(&[5, 2]).constant(Tensor::ints(&[1, 2, 3])),
        row("Gather", "constant range, backwards by 2").x(&[2, 6]).constant(Tensor::ints(&[-1, 3, 1])).int("axis", 1),
        row("Gather", "constant permutation").x(&[4, 2]).constant(Tensor::ints(&[2, 0, -1, 1])),
        row("Gather", "constant with repeats").x(&[3, 2, 2]).constant(twice).int("axis", 0),
        row("Gather", "constant, one element twice").x(&[3]).constant(Tensor::ints(&[1, 1])),
        row("GatherElements", "axis 1").x(&[2, 3]).at_run_time(elements.clone()).int("axis", 1),
        row("GatherElements", "axis 0, fewer").x(&[4, 5]).at_run_time(elements).int("axis", 0),
        row("GatherElements", "constant").x(&[3, 3]).constant(distinct.clone()).int("axis", -2),
        row("GatherND", "elements").x(&[2, 3]).at_run_time(tuples.clone()),
        row("GatherND", "slices").x(&[2, 3, 20]).at_run_time(tuples.clone()),
        row("GatherND", "rows").x(&[3, 2]).at_run_time(rows_of.clone()),
        row("GatherND", "batch_dims").x(&[2, 3, 2]).at_run_time(rows_of.clone()).int("batch_dims", 1),
        row("GatherND", "batch_dims, constant").x(&[2, 3, 2]).constant(rows_of).int("batch_dims", 1),
        row("GatherND", "constant").x(&[2, 3, 2]).constant(tuples.clone()),
        row("ScatterElements", "none").x(&[3, 3]).at_run_time(distinct).x(&[2, 3]).int("axis", 0),
        row("ScatterElements", "none, axis -1")
            .x(&[2, 4])
            .at_run_time(ints(&[2, 3], &[2., 0., -1., 1., 2., 0.]))
            .x(&[2, 3])
            .int("axis", -1),
        row("ScatterElements", "add")
            .x(&[2, 3])
            .at_run_time(ints(&[2, 3], &[0., 2., 2., 1., 1., -3.]))
            .x(&[2, 3])
            .int("axis", 1)
            .str("reduction", "add"),
        row("ScatterElements", "max")
            .x_in(&[4], Distinct)
            .at_run_time(ints(&[4], &[1., 1., 3., -1.]))
            .x_in(&[4], Exactly(&[0.2, 0.4, -0.2, -0.6]))
            .str("reduction", "max"),
        row("ScatterElements", "min")
            .x_in(&[4], Distinct)
            .at_run_time(ints(&[4], &[1., 1., 3., -1.]))
            .x_in(&[4], Exactly(&[0.2, 0.4, -0.2, -0.6]))
            .str("reduction", "min"),
        row("ScatterND", "none").x(&[4, 2]).at_run_time(ints(&[2, 1], &[2., 0.])).x(&[2, 2]),
        row("ScatterND", "none, elements").x(&[2, 3]).at_run_time(ints(&[2, 2], &[1., 2., 0., -1.])).x(&[2]),
        row("ScatterElements", "mul, equal indices")
            .x(&[3, 3])
            .at_run_time(ints(&[2, 3], &[0., 2., 1., 0., 1., 1.]))
            .x(&[2, 3])
            .str("reduction", "mul"),
        row("ScatterElements", "mul by 0")
            .x(&[3])
            .at_run_time(ints(&[4], &[0., 2., 0., 2.]))
            .x_in(&[4], Exactly(&[0.0, 0.0, 3.0, 0.0]))
            .str("reduction", "mul"),
        row("ScatterND", "mul").x(&[3, 2]).at_run_time(ints(&[2, 1], &[2., 2.])).x(&[2, 2]).str("reduction", "mul"),
        row("ScatterND", "max")
            .x_in(&[2, 3], Exactly(&[0.5, -1.0, 2.0, 0.1, 0.7, -0.4]))
            .at_run_time(ints(&[2, 2], &[0., 1., 1., 2.]))
            .x_in(&[2], Exactly(&[-2.0, 0.9]))
            .str("reduction", "max"),
        row("ScatterND", "min, rows")
            .x_in(&[2, 2], Exactly(&[0.5, -1.0, 2.0, 0.1]))
            .at_run_time(ints(&[1, 1], &[1.]))
            .x_in(&[1, 2], Exactly(&[-2.0, 0.9]))
            .str("reduction", "min"),
        row("ScatterND", "add, equal indices").x(&[2, 3]).at_run_time(tuples).x(&[3]).str("reduction", "add"),
        row("OneHot", "last axis").at_run_time(ints(&[3], &[1., -1., 7.])).constant(depth.clone()).x(&[2]),
        row("OneHot", "axis 0")
            .at_run_time(ints(&[2, 3], &[1., 0., 2., 3., 1., 1.]))
            .constant(depth)
            .x(&[2])
            .int("axis", 0),
        row("TopK", "largest").x_in(&[2, 5], Distinct).constant(k(3)).outputs(&[true, false]),
        row("TopK", "smallest, axis 0")
            .x_in(&[4, 2], Distinct)
            .constant(k(2))
            .int("axis", 0)
            .int("largest", 0)
            .outputs(&[true, false]),
        row("Compress", "axis 1").x(&[2, 5]).constant(bools(&[1., 0., 0., 1., 1.])).int("axis", 1),
        row("Compress", "every second, shorter condition").x(&[5, 2]).constant(bools(&[0., 1., 0., 1.])).int("axis", 0),
        row("Compress", "flat").x(&[2, 3]).constant(bools(&[1., 1., 0., 0., 0., 1.])),
    ]
}

#[test]
fn indexing() {
    check_all(&rows());
}

#[test]
fn indexing_refuses() {
    let condition = Tensor::from_f64(DType::Bool, &[3], &[1., 0., 1.]);
    let compress = row("Compress", "at run time").x(&[3]).at_run_time(condition).int("axis", 0);
    refused(&compress, "`condition` is computed at run time");
}
