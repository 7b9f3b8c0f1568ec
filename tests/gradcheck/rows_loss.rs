//! Losses that a graph computes itself.

use super::{Row, check_all, row};
use bisam::ir::{DType, Tensor};

pub fn rows() -> Vec<Row> {
    let classes = |shape: &[usize], v: &[f64]| Tensor::from_f64(DType::I64, shape, v);
    let vector = classes(&[3], &[2., 0., 3.]);
    let map = classes(&[2, 3], &[2., 0., 3., 1., 1., 2.]);
    let mut rows = Vec::new();
    for op in ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"] {
        rows.extend([
            row(op, "mean").x(&[3, 4]).at_run_time(vector.clone()),
            row(op, "sum, weighted").x(&[3, 4]).at_run_time(vector.clone()).x(&[4]).str("reduction", "sum"),
            row(op, "mean, weighted").x(&[2, 4, 3]).at_run_time(map.clone()).floats(&[4], &[0.5, 1.0, 2.0, 3.0]),
            row(op, "none").x(&[2, 4, 3]).at_run_time(map.clone()).str("reduction", "none"),
            row(op, "ignore").x(&[2, 4, 3]).at_run_time(map.clone()).int("ignore_index", 1),
            row(op, "ignore, weighted")
                .x(&[2, 4, 3])
                .at_run_time(map.clone())
                .floats(&[4], &[0.5, 1.0, 2.0, 3.0])
                .int("ignore_index", 2),
        ]);
    }
    let ignored = classes(&[3], &[-100., 0., 3.]);
    rows.push(row("SoftmaxCrossEntropyLoss", "both outputs").x(&[3, 4]).at_run_time(vector).outputs(&[true, true]));
    rows.push(row("SoftmaxCrossEntropyLoss", "ignore -100").x(&[3, 4]).at_run_time(ignored).int("ignore_index", -100));
    rows
}

#[test]
fn losses() {
    check_all(&rows());
}
