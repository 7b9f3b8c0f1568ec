//! Convolutions.

use super::{Row, check_all, row};

/// What `pads`, `auto_pad`, strides and dilations do, for an operator with a kernel of 3×2 over 7×6.
fn variants(op: &'static str) -> Vec<Row> {
    let plain = |note| row(op, note).x(&[2, 2, 7, 6]).x(&[2, 2, 3, 2]).x(&[2]);
    vec![
        plain("plain"),
        plain("pads").list("pads", &[1, 1, 1, 1]),
        plain("asymmetric pads").list("pads", &[2, 0, 1, 1]),
        plain("dilations").list("dilations", &[2, 3]).list("pads", &[1, 2, 0, 1]),
        plain("strides").list("strides", &[2, 3]).list("pads", &[1, 1, 1, 1]),
        plain("one stride").list("strides", &[1, 2]).list("pads", &[0, 1, 2, 1]),
        plain("strides with a rest").list("strides", &[3, 4]),
        plain("strides and dilations").list("strides", &[2, 2]).list("dilations", &[2, 3]).list("pads", &[2, 1, 1, 2]),
        plain("valid").list("strides", &[2, 2]).str("auto_pad", "VALID"),
        plain("kernel_shape given").list("kernel_shape", &[3, 2]).str("auto_pad", "NOTSET"),
        row(op, "1-D").x(&[2, 3, 8]).x(&[3, 2, 3]).list("strides", &[2]).list("pads", &[1, 1]),
        row(op, "3-D")
            .x(&[1, 2, 4, 3, 5])
            .x(&[2, 2, 2, 2, 3])
            .x(&[2])
            .list("strides", &[2, 1, 2])
            .list("pads", &[1, 0, 1, 0, 1, 1]),
        row(op, "1×1").x(&[2, 3, 4, 3]).x(&[3, 2, 1, 1]),
        row(op, "1×1, strides").x(&[2, 3, 4, 5]).x(&[3, 2, 1, 1]).list("strides", &[2, 3]),
        row(op, "kernel as stride").x(&[2, 3, 6, 4]).x(&[3, 2, 3, 2]).list("strides", &[3, 2]),
        row(op, "large kernel").x(&[2, 2, 9, 8]).x(&[2, 3, 5, 5]).list("pads", &[2, 2, 2, 2]),
        row(op, "large kernel, strides")
            .x(&[2, 2, 10, 9])
            .x(&[2, 3, 5, 5])
            .list("strides", &[2, 3])
            .list("pads", &[1, 2, 2, 0]),
        row(op, "large kernel, dilations")
            .x(&[2, 2, 10, 9])
            .x(&[2, 3, 5, 5])
            .list("dilations", &[2, 1])
            .list("pads", &[1, 2, 2, 0]),
        row(op, "many channels").x(&[2, 32, 3, 3]).x(&[32, 24, 3, 3]).list("pads", &[1, 1, 1, 1]),
        row(op, "more padding than kernel")
            .x(&[1, 2, 3, 3])
            .x(&[2, 2, 2, 2])
            .list("pads", &[2, 0, 0, 3])
            .list("strides", &[1, 1]),
    ]
    .into_iter()
    // The weight of a Conv is [M,C,…], that of a ConvTranspose [C,M,…].
    .filter(|r| op == "Conv" || r.note != "more padding than kernel")
    .map(|r| if op == "Conv" { r.swap_weight() } else { r })
    .collect()
}

pub fn rows() -> Vec<Row> {
    let mut rows = variants("Conv");
    rows.extend(variants("ConvTranspose"));
    for mode in ["SAME_UPPER", "SAME_LOWER"] {
        let notes = if mode == "SAME_UPPER" {
            ["same, upper", "same, upper, strides", "same, upper, strides over the kernel"]
        } else {
            ["same, lower", "same, lower, strides", "same, lower, strides over the kernel"]
        };
        let same = |note| row("Conv", note).x(&[2, 2, 7, 6]).x(&[3, 2, 4, 2]).str("auto_pad", mode);
        rows.push(same(notes[0]));
        rows.push(same(notes[1]).list("strides", &[2, 3]));
        rows.push(same(notes[2]).list("strides", &[5, 3]));
    }
    rows.extend([
        row("Conv", "groups").x(&[2, 4, 5, 5]).x(&[6, 2, 3, 3]).x(&[6]).int("group", 2).list("pads", &[1, 1, 1, 1]),
        row("Conv", "groups, strides").x(&[2, 4, 5, 6]).x(&[6, 2, 3, 2]).int("group", 2).list("strides", &[2, 2]),
        row("Conv", "groups, many channels")
            .x(&[2, 32, 3, 3])
            .x(&[32, 16, 3, 3])
            .int("group", 2)
            .list("pads", &[1, 1, 1, 1]),
        row("Conv", "depthwise").x(&[2, 3, 5, 6]).x(&[3, 1, 3, 3]).x(&[3]).int("group", 3).list("pads", &[1, 1, 1, 1]),
        row("Conv", "depthwise, strides")
            .x(&[2, 3, 6, 5])
            .x(&[3, 1, 3, 2])
            .int("group", 3)
            .list("strides", &[2, 2])
            .list("pads", &[1, 0, 1, 1]),
        row("Conv", "depthwise, dilations")
            .x(&[2, 3, 6, 5])
            .x(&[3, 1, 3, 2])
            .int("group", 3)
            .list("dilations", &[2, 1]),
        row("Conv", "depthwise, two outputs each").x(&[2, 3, 5, 5]).x(&[6, 1, 3, 3]).int("group", 3),
        row("Conv", "depthwise, 1-D").x(&[2, 3, 8]).x(&[3, 1, 3]).int("group", 3).list("pads", &[1, 1]),
        row("Conv", "depthwise, many positions")
            .x(&[2, 3, 17, 16])
            .x(&[3, 1, 3, 2])
            .int("group", 3)
            .list("dilations", &[2, 1])
            .list("pads", &[2, 1, 1, 0]),
        row("Conv", "few outputs").x(&[2, 5, 6, 5]).x(&[2, 5, 3, 2]).list("pads", &[2, 0, 1, 1]),
        row("Conv", "few outputs, one stride")
            .x(&[2, 5, 6, 7])
            .x(&[2, 5, 3, 3])
            .list("strides", &[1, 2])
            .list("dilations", &[2, 1])
            .list("pads", &[2, 0, 1, 1]),
        row("Conv", "few outputs, padding alone in some rows")
            .x(&[2, 4, 1, 6])
            .x(&[2, 4, 5, 3])
            .list("pads", &[2, 1, 2, 1]),
        row("Conv", "few outputs, 1-D").x(&[2, 6, 7]).x(&[2, 6, 3]).list("pads", &[1, 0]),
        row("Conv", "few outputs, 3-D")
            .x(&[1, 5, 4, 5, 3])
            .x(&[2, 5, 3, 2, 2])
            .list("strides", &[1, 2, 1])
            .list("pads", &[1, 0, 1, 1, 1, 0]),
        row("Conv", "few outputs, groups")
            .x(&[2, 8, 8, 8])
            .x(&[4, 4, 3, 3])
            .int("group", 2)
            .list("pads", &[1, 1, 1, 1]),
        row("Conv", "few outputs, groups, many channels")
            .x(&[2, 24, 2, 3])
            .x(&[16, 12, 3, 3])
            .int("group", 2)
            .list("pads", &[1, 1, 1, 1]),
        row("Conv", "few inputs").x(&[2, 2, 6, 5]).x(&[5, 2, 3, 2]).list("pads", &[1, 0, 2, 1]),
        row("Conv", "7×7, strides")
            .x(&[2, 2, 9, 12])
            .x(&[3, 2, 7, 7])
            .list("strides", &[2, 3])
            .list("pads", &[3, 3, 3, 2]),
        row("Conv", "7×7, dilations")
            .x(&[1, 2, 15, 14])
            .x(&[4, 2, 7, 7])
            .list("strides", &[2, 2])
            .list("dilations", &[2, 1])
            .list("pads", &[1, 2, 3, 0]),
        // Large enough for the samples to be taken in two parts.
        row("Conv", "two parts").x(&[3, 16, 128, 128]).x(&[16, 16, 3, 3]).list("pads", &[1, 1, 1, 1]),
        row("Conv", "constant weight").x(&[1, 1, 3, 3]).floats(&[1, 1, 2, 2], &[1., 2., 3., 4.]),
        row("ConvTranspose", "groups")
            .x(&[2, 4, 4, 3])
            .x(&[4, 3, 3, 2])
            .x(&[6])
            .int("group", 2)
            .list("strides", &[2, 2]),
        row("ConvTranspose", "depthwise").x(&[2, 3, 4, 3]).x(&[3, 1, 3, 3]).int("group", 3).list("pads", &[1, 1, 1, 1]),
        row("ConvTranspose", "output_padding")
            .x(&[2, 2, 4, 3])
            .x(&[2, 3, 3, 3])
            .list("strides", &[2, 2])
            .list("pads", &[1, 1, 1, 1])
            .list("output_padding", &[1, 1]),
        row("ConvTranspose", "output_padding beyond the reach")
            .x(&[2, 2, 3, 3])
            .x(&[2, 3, 2, 2])
            .list("strides", &[3, 3])
            .list("output_padding", &[2, 1]),
        row("ConvTranspose", "output_shape")
            .x(&[1, 2, 4, 4])
            .x(&[2, 2, 4, 4])
            .list("strides", &[2, 2])
            .list("output_shape", &[8, 8]),
        row("ConvTranspose", "output_shape, odd padding")
            .x(&[1, 2, 4, 4])
            .x(&[2, 2, 3, 3])
            .list("strides", &[2, 2])
            .list("output_shape", &[8, 8]),
        row("ConvTranspose", "output_shape, odd padding, same upper")
            .x(&[1, 2, 4, 4])
            .x(&[2, 2, 3, 3])
            .list("strides", &[2, 2])
            .list("output_shape", &[8, 8])
            .str("auto_pad", "SAME_UPPER"),
        row("ConvTranspose", "same upper")
            .x(&[1, 2, 4, 4])
            .x(&[2, 2, 3, 3])
            .list("strides", &[2, 2])
            .str("auto_pad", "SAME_UPPER"),
        row("ConvTranspose", "same lower")
            .x(&[1, 2, 4, 4])
            .x(&[2, 2, 3, 3])
            .list("strides", &[2, 2])
            .str("auto_pad", "SAME_LOWER"),
        row("ConvTranspose", "output_shape beyond the reach")
            .x(&[1, 2, 3, 3])
            .x(&[2, 2, 3, 3])
            .list("strides", &[3, 2])
            .list("output_shape", &[10, 8]),
    ]);
    rows
}

#[test]
fn convolutions() {
    check_all(&rows());
}
