//! Pooling.

use super::Domain::{Distinct, Plain};
use super::{Row, check_all, refused, row};

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
    rows.extend([
        row("MaxPool", "indices asked for")
            .x_in(&[1, 2, 4, 4], Distinct)
            .list("kernel_shape", &[2, 2])
            .outputs(&[true, false]),
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

#[test]
fn pooling_refuses() {
    let columns =
        row("MaxPool", "columns").x_in(&[1, 1, 4, 4], Distinct).list("kernel_shape", &[2, 2]).int("storage_order", 1);
    refused(&columns, "storage_order");
}
