//! Operators that move elements to places known beforehand.

use super::{Row, check_all, refused, row};
use bisam::ir::{DType, Tensor};

const MIN: i64 = i64::MIN;
const MAX: i64 = i64::MAX;

pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("Reshape", "with 0 and -1").x(&[2, 3, 4]).ints(&[0, -1]),
        row("Reshape", "to a scalar").x(&[1, 1]).ints(&[]),
        row("Reshape", "allowzero").x(&[2, 6]).ints(&[3, 4]).int("allowzero", 1),
        row("Flatten", "default").x(&[2, 3, 2]),
        row("Flatten", "axis 0").x(&[2, 3]).int("axis", 0),
        row("Flatten", "axis -1").x(&[2, 3, 2]).int("axis", -1),
        row("Squeeze", "all").x(&[1, 3, 1]),
        row("Squeeze", "axis -1").x(&[1, 3, 1]).ints(&[-1]),
        row("Unsqueeze", "two axes").x(&[2, 3]).ints(&[0, -1]),
        row("Transpose", "default").x(&[2, 3, 4]),
        row("Transpose", "a cycle").x(&[2, 3, 4]).list("perm", &[1, 2, 0]),
        row("Concat", "axis 1").x(&[2, 3]).x(&[2, 1]).x(&[2, 2]).int("axis", 1),
        row("Concat", "axis -2").x(&[2, 3]).x(&[1, 3]).int("axis", -2),
        row("Concat", "with a constant").x(&[2]).floats(&[1], &[1.]).x(&[3]).int("axis", 0),
        row("Concat", "one").x(&[2, 3]).int("axis", 0),
        row("Split", "sizes").x(&[2, 6]).ints(&[1, 3, 2]).int("axis", 1).outputs(&[true, true, true]),
        row("Split", "num_outputs, uneven").x(&[7, 2]).absent().int("num_outputs", 3).outputs(&[true, true, true]),
        row("Split", "axis -1").x(&[2, 4]).int("axis", -1).int("num_outputs", 2).outputs(&[true, true]),
        row("Split", "one cotangent").x(&[2, 6]).ints(&[1, 3, 2]).int("axis", 1).outputs(&[false, true, false]),
        row("Split", "not the first").x(&[6]).ints(&[1, 3, 2]).outputs(&[false, true, true]),
        row("Slice", "two axes").x(&[4, 5]).ints(&[1, 0]).ints(&[3, 4]),
        row("Slice", "axes given").x(&[3, 4, 5]).ints(&[1, 2]).ints(&[MAX, 4]).ints(&[-1, 0]),
        row("Slice", "negative start and end").x(&[6]).ints(&[-4]).ints(&[-1]).ints(&[0]),
        row("Slice", "step 2").x(&[7]).ints(&[1]).ints(&[MAX]).ints(&[0]).ints(&[2]),
        row("Slice", "step 3, end inside").x(&[8]).ints(&[0]).ints(&[7]).ints(&[0]).ints(&[3]),
        row("Slice", "step 2 on two axes").x(&[2, 4, 5]).ints(&[1, 0]).ints(&[4, 5]).ints(&[1, 2]).ints(&[2, 2]),
        row("Slice", "reverse").x(&[2, 5]).ints(&[-1]).ints(&[MIN]).ints(&[1]).ints(&[-1]),
        row("Slice", "step -2").x(&[8]).ints(&[6]).ints(&[0]).ints(&[0]).ints(&[-2]),
        row("Slice", "step -3, start beyond the end").x(&[3, 8]).ints(&[100]).ints(&[-100]).ints(&[-1]).ints(&[-3]),
        row("Slice", "one element by a large step").x(&[5]).ints(&[3]).ints(&[5]).ints(&[0]).ints(&[7]),
        row("Slice", "everything").x(&[2, 3]).ints(&[0]).ints(&[MAX]).ints(&[1]),
        row("Expand", "new axis").x(&[3, 1]).ints(&[2, 3, 4]),
        row("Expand", "shape smaller than x").x(&[2, 3]).ints(&[1, 3]),
        row("Tile", "two axes").x(&[2, 3]).ints(&[2, 3]),
        row("Tile", "one of three").x(&[2, 1, 3]).ints(&[1, 4, 1]),
        row("Pad", "constant").x(&[2, 3]).ints(&[1, 0, 2, 1]),
        row("Pad", "constant, value wanted").x(&[2, 3]).ints(&[1, 0, 2, 1]).x(&[]),
        row("Pad", "constant, axes").x(&[2, 3, 4]).ints(&[1, 2, 0, 1]).floats(&[], &[3.]).ints(&[-1, 0]),
        row("Pad", "constant, negative").x(&[4, 5]).ints(&[-1, 1, 1, -2]).x(&[]),
        row("DepthToSpace", "DCR").x(&[2, 8, 2, 3]).int("blocksize", 2),
        row("DepthToSpace", "CRD").x(&[1, 9, 2, 1]).int("blocksize", 3).str("mode", "CRD"),
        row("SpaceToDepth", "any").x(&[2, 3, 4, 6]).int("blocksize", 2),
        row("SpaceToDepth", "CRD").x(&[2, 3, 4, 6]).int("blocksize", 2).str("mode", "CRD").opset(28),
        row("Trilu", "upper").x(&[2, 3, 4]),
        row("Trilu", "lower, k -1").x(&[4, 3]).constant(Tensor::scalar(bisam::ir::DType::I64, -1.)).int("upper", 0),
        row("ReverseSequence", "batch first")
            .x(&[2, 4, 3])
            .constant(Tensor::ints(&[3, 2]))
            .int("batch_axis", 0)
            .int("time_axis", 1),
        row("CenterCropPad", "both").x(&[3, 8, 5]).ints(&[6, 5, 5]),
        row("CenterCropPad", "axes").x(&[4, 7, 3]).ints(&[5, 2]).list("axes", &[1, -1]),
        row("Col2Im", "2-D").x(&[2, 12, 9]).ints(&[3, 4]).ints(&[2, 3]).list("pads", &[0, 1, 1, 0]).opset(18),
        row("Col2Im", "strides, dilations")
            .x(&[1, 8, 4])
            .ints(&[6, 5])
            .ints(&[2, 2])
            .list("strides", &[2, 1])
            .list("dilations", &[3, 3]),
        row("Col2Im", "1-D").x(&[1, 6, 4]).ints(&[6]).ints(&[3]),
        row("CumProd", "axis 1").x(&[2, 4, 2]).constant(Tensor::scalar(DType::I64, 1.0)).opset(26),
        row("CumProd", "exclusive, reverse")
            .x(&[3, 2])
            .constant(Tensor::scalar(DType::I64, 0.0))
            .int("exclusive", 1)
            .int("reverse", 1)
            .opset(26),
    ];
    for mode in ["reflect", "edge", "wrap"] {
        let pad = |note, shape: &[usize], pads: &[i64]| row("Pad", note).x(shape).ints(pads).str("mode", mode);
        let notes: [&str; 5] = match mode {
            "reflect" => ["reflect 1-D", "reflect 2-D", "reflect one side", "reflect, axes", "reflect, negative"],
            "edge" => ["edge 1-D", "edge 2-D", "edge one side", "edge, axes", "edge, negative"],
            _ => ["wrap 1-D", "wrap 2-D", "wrap one side", "wrap, axes", "wrap, negative"],
        };
        rows.extend([
            pad(notes[0], &[5], &[2, 4]),
            pad(notes[1], &[3, 4], &[1, 2, 2, 3]),
            pad(notes[2], &[1, 1, 3, 3], &[0, 0, 0, 1, 0, 0, 0, 0]),
            pad(notes[3], &[2, 3, 4], &[2, 1, 1, 0]).absent().ints(&[2, 1]),
            pad(notes[4], &[5], &[-1, -2]),
        ]);
    }
    rows
}

#[test]
fn layout() {
    check_all(&rows());
}

#[test]
fn layout_refuses() {
    let pad = row("Pad", "signs").x(&[6]).ints(&[-1, 2]).str("mode", "reflect");
    refused(&pad, "positive and a negative pad");
}
