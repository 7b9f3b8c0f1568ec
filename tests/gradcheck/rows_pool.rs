//! Pooling.

use super::Domain::{Distinct, Plain};
use super::{Row, check_all, row};
use bisam::ir::{DType, Tensor};

/// Windows, for either operator.
fn variants(op: &'static str) -> Vec<Row> {
    let domain = if op == "MaxPool" { Distinct } else { Plain };
    let over =
        |note, shape: &[usize], kernel: &[i64]| row(op, note).x_in(shape, domain.clone()).list("kernel_shape", kernel);
    let plain = |note| over(note, &[2, 2, 5, 6], &[3, 2]);
    vec![
        plain("plain"),
        plain("tiles").list("kernel_shape", &[2, 3]).list("strides", &[2, 3]),
        plain("strides").list("strides", &[2, 3]),
        plain("strides over the kernel").list("strides", &[4, 3]),
        plain("pads").list("strides", &[2, 2]).list("pads", &[1, 1, 1, 0]),
        plain("pads, stride 1").list("pads", &[1, 0, 2, 1]),
        plain("ceil_mode").list("strides", &[2, 4]).list("pads", &[1, 1, 1, 1]).int("ceil_mode", 1),
        plain("ceil_mode, window over the end")
            .list("kernel_shape", &[2, 4])
            .list("strides", &[2, 4])
            .int("ceil_mode", 1),
        plain("dilations").list("dilations", &[2, 3]),
        plain("dilations, strides, pads")
            .list("dilations", &[2, 1])
            .list("strides", &[2, 2])
            .list("pads", &[1, 0, 1, 1]),
        plain("same, upper").list("strides", &[2, 2]).str("auto_pad", "SAME_UPPER"),
        plain("same, lower").list("strides", &[2, 2]).str("auto_pad", "SAME_LOWER"),
        plain("valid").list("strides", &[2, 2]).str("auto_pad", "VALID"),
        over("1-D", &[2, 3, 7], &[3]).list("strides", &[2]).list("pads", &[1, 1]),
        over("3-D", &[1, 2, 4, 3, 5], &[2, 2, 3]).list("strides", &[2, 1, 2]).list("pads", &[0, 1, 1, 0, 0, 1]),
    ]
}

pub fn rows() -> Vec<Row> {
    let mut rows = variants("MaxPool");
    rows.extend(variants("AveragePool"));
    rows.extend(variants("AveragePool").into_iter().map(|r| r.int("count_include_pad", 1).renamed(", padding counts")));
    // ONNX Runtime 1.32 ignores dilations unless ceil_mode says something too.
    rows.extend(variants("LpPool"));
    let places = Tensor::from_f64(DType::I64, &[1, 2, 2, 2], &[5., 7., 13., 15., 16., 22., 26., 31.]);
    rows.extend([
        row("MaxPool", "indices asked for")
            .x_in(&[1, 2, 4, 4], Distinct)
            .list("kernel_shape", &[2, 2])
            .outputs(&[true, false]),
        row("MaxPool", "columns").x_in(&[2, 2, 4, 5], Distinct).list("kernel_shape", &[2, 2]).int("storage_order", 1),
        row("MaxPool", "columns, 3-D")
            .x_in(&[1, 2, 3, 4, 5], Distinct)
            .list("kernel_shape", &[2, 2, 3])
            .int("storage_order", 1),
        row("LpPool", "p 1").x(&[1, 2, 5, 4]).list("kernel_shape", &[3, 2]).int("p", 1),
        row("LpPool", "p 3, 1-D").x(&[2, 2, 7]).list("kernel_shape", &[3]).int("p", 3).list("strides", &[2]),
        row("GlobalLpPool", "p 2").x(&[2, 3, 4, 2]),
        row("GlobalLpPool", "p 1").x(&[2, 3, 4]).int("p", 1),
        row("GlobalLpPool", "p 3").x(&[2, 3, 4]).int("p", 3),
        row("MaxUnpool", "2-D")
            .x(&[1, 2, 2, 2])
            .at_run_time(places)
            .list("kernel_shape", &[2, 2])
            .list("strides", &[2, 2]),
        row("GlobalAveragePool", "2-D").x(&[2, 3, 4, 5]),
        row("GlobalAveragePool", "1-D").x(&[2, 3, 4]),
        row("GlobalMaxPool", "2-D").x_in(&[2, 3, 3, 2], Distinct),
    ]);
    rows
}

#[test]
fn pooling() {
    check_all(&rows());
}
