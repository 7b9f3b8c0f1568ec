//! Matrix products.

use super::{Row, check_all, row};

pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("MatMul", "2-D").x(&[2, 3]).x(&[3, 4]),
        row("MatMul", "vector and vector").x(&[3]).x(&[3]),
        row("MatMul", "vector and matrix").x(&[3]).x(&[3, 4]),
        row("MatMul", "matrix and vector").x(&[2, 3]).x(&[3]),
        row("MatMul", "vector and batch").x(&[3]).x(&[2, 3, 4]),
        row("MatMul", "batch and vector").x(&[2, 4, 3]).x(&[3]),
        row("MatMul", "batch and matrix").x(&[2, 2, 4, 3]).x(&[3, 2]),
        row("MatMul", "matrix and batch").x(&[4, 3]).x(&[2, 3, 2]),
        row("MatMul", "batches").x(&[2, 4, 3]).x(&[2, 3, 2]),
        row("MatMul", "batches broadcast").x(&[3, 1, 2, 3]).x(&[2, 3, 2]),
        row("MatMul", "batches broadcast both ways").x(&[3, 1, 2, 3]).x(&[1, 2, 3, 2]),
        row("MatMul", "a constant factor").x(&[2, 2]).floats(&[2, 2], &[1., 2., 3., 4.]),
        row("Gemm", "without C").x(&[2, 3]).x(&[3, 4]),
        row("Gemm", "C a scalar").x(&[2, 3]).x(&[3, 4]).x(&[]).float("beta", 0.5),
        row("Gemm", "C a row").x(&[2, 3]).x(&[3, 4]).x(&[4]),
        row("Gemm", "C a column").x(&[2, 3]).x(&[3, 4]).x(&[2, 1]),
        row("Gemm", "C full, scaled").x(&[2, 3]).x(&[3, 4]).x(&[2, 4]).float("alpha", 0.5).float("beta", -2.0),
        row("Einsum", "matrix product").x(&[2, 3]).x(&[3, 4]).str("equation", "ij, jk -> ik"),
        row("Einsum", "implicit output").x(&[2, 3]).x(&[3, 4]).str("equation", "ij,jk"),
        row("Einsum", "attention").x(&[2, 3, 2, 4]).x(&[2, 5, 2, 4]).str("equation", "bqhd,bkhd->bhqk"),
        row("Einsum", "outer").x(&[2]).x(&[3]).str("equation", "i,j->ji"),
        row("Einsum", "three operands").x(&[2, 3]).x(&[3]).x(&[3, 4]).str("equation", "ij,j,jk->ik"),
        row("Einsum", "a letter summed in one operand").x(&[2, 3, 2]).x(&[3]).str("equation", "ijk,j->i"),
        row("Einsum", "ellipsis").x(&[2, 3, 4]).x(&[4, 5]).str("equation", "...ij,jk->...ik"),
        row("Einsum", "ellipsis broadcast").x(&[2, 1, 3]).x(&[1, 4, 3]).str("equation", "...i,...i->..."),
        row("Einsum", "ellipsis, implicit output").x(&[2, 3, 4]).x(&[2, 4, 2]).str("equation", "...ij,...jk"),
        row("Einsum", "diagonal").x(&[3, 3]).str("equation", "ii->i"),
        row("Einsum", "trace of a product").x(&[2, 3, 3]).x(&[2]).str("equation", "bii,b->"),
        row("Det", "one").x(&[3, 3]),
        row("Det", "batch").x(&[2, 2, 4, 4]),
        row("Det", "of one row").x(&[2, 1, 1]),
        row("Einsum", "transpose").x(&[2, 3]).str("equation", "ij->ji"),
        row("Einsum", "sum").x(&[2, 3]).str("equation", "ij->"),
    ];
    for (note, ta, tb) in [("transA", 1, 0), ("transB", 0, 1), ("transA and transB", 1, 1)] {
        let a: &[usize] = if ta == 1 { &[3, 2] } else { &[2, 3] };
        let b: &[usize] = if tb == 1 { &[4, 3] } else { &[3, 4] };
        rows.push(row("Gemm", note).x(a).x(b).x(&[4]).int("transA", ta).int("transB", tb).float("alpha", 2.0));
    }
    rows
}

#[test]
fn linalg() {
    check_all(&rows());
}
