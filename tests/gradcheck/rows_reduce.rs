//! Reductions and cumulative sums.

use super::Domain::{self, Between, Distinct, Exactly, Plain};
use super::{Row, check_all, refused, row};
use bisam::ir::{DType, Tensor};

const POSITIVE: Domain = Between(0.3, 2.0);

/// The ways in which axes can be said.
fn variants(op: &'static str, domain: Domain) -> Vec<Row> {
    let x = |note, shape: &[usize]| row(op, note).x_in(shape, domain.clone());
    vec![
        x("all axes, absent", &[2, 3, 2]),
        x("all axes, empty", &[2, 3]).ints(&[]).int("keepdims", 0),
        x("axis 1", &[2, 3, 2]).ints(&[1]),
        x("axis -1, dropped", &[2, 3, 2]).ints(&[-1]).int("keepdims", 0),
        x("axes 0 and -1, dropped", &[2, 3, 2]).ints(&[-1, 0]).int("keepdims", 0),
        x("rank 1", &[4]).ints(&[0]).int("keepdims", 0),
        x("size 1", &[2, 1, 3]).ints(&[1]).int("keepdims", 0),
    ]
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for op in ["ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceLogSumExp"] {
        rows.extend(variants(op, Plain));
    }
    for op in ["ReduceMax", "ReduceMin"] {
        rows.extend(variants(op, Distinct));
    }
    rows.extend(variants("ReduceLogSum", POSITIVE));
    for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"] {
        let noop = |note| row(op, note).x_in(&[2, 3], Distinct).int("noop_with_empty_axes", 1);
        rows.push(noop("noop, axes absent"));
        rows.push(noop("noop, axes empty").ints(&[]));
        rows.push(noop("noop asked for, but axes given").ints(&[1]));
    }
    let axis = |a: f64| Tensor::scalar(DType::I64, a);
    rows.extend([
        row("ReduceProd", "zeros").x_in(&[3, 3], Exactly(&[0., 2., 3., 0., 0., 3., 1., 2., 3.])).ints(&[1]),
        row("CumSum", "axis 0").x(&[3, 2]).constant(axis(0.)),
        row("CumSum", "axis -1, exclusive").x(&[2, 4]).constant(axis(-1.)).int("exclusive", 1),
        row("CumSum", "reverse").x(&[2, 4]).constant(axis(1.)).int("reverse", 1),
        row("CumSum", "exclusive, reverse").x(&[2, 4]).constant(axis(1.)).int("exclusive", 1).int("reverse", 1),
    ]);
    rows
}

#[test]
fn reductions() {
    check_all(&rows());
}

#[test]
fn reductions_refuse() {
    for op in ["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"] {
        let noop = row(op, "noop").x_in(&[2, 3], POSITIVE).int("noop_with_empty_axes", 1);
        refused(&noop, "noop_with_empty_axes");
    }
    let axes = row("ReduceSum", "axes at run time").x(&[2, 3]).at_run_time(Tensor::ints(&[1]));
    refused(&axes, "`axes` is computed at run time");
}
