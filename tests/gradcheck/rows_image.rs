//! Images read between pixels: resizing, sampling at computed places.

use super::Domain::Between;
use super::{Row, check_all, refused, row};
use bisam::ir::{DType, Tensor};

fn f32s(values: &[f64]) -> Tensor {
    Tensor::from_f64(DType::F32, &[values.len()], values)
}

fn resize(note: &str, shape: &[usize], scales: &[f64], mode: &str, transform: &str) -> Row {
    let row = row("Resize", note).x(shape).absent().constant(f32s(scales));
    row.str("mode", mode).str("coordinate_transformation_mode", transform)
}

fn resizes() -> Vec<Row> {
    let to = |note: &str, sizes: &[i64], mode: &str| {
        row("Resize", note).x(&[1, 2, 4, 5]).absent().absent().ints(sizes).str("mode", mode)
    };
    let mut rows = vec![
        resize("nearest, twice", &[2, 2, 3, 4], &[1., 1., 2., 3.], "nearest", "asymmetric")
            .str("nearest_mode", "floor"),
        resize("nearest, rounded", &[2, 2, 3, 4], &[1., 1., 2., 2.], "nearest", "half_pixel"),
        resize("nearest, ceil", &[2, 2, 3, 4], &[1., 1., 2., 2.], "nearest", "half_pixel").str("nearest_mode", "ceil"),
        resize("nearest, fraction", &[1, 2, 4, 5], &[1., 1., 1.5, 0.6], "nearest", "asymmetric"),
        resize("nearest, 3-D", &[1, 2, 2, 3, 2], &[1., 1., 2., 2., 2.], "nearest", "asymmetric")
            .str("nearest_mode", "floor"),
        resize("linear, 1-D", &[2, 2, 5], &[1., 1., 1.7], "linear", "half_pixel"),
        resize("linear, down, antialias", &[1, 2, 6, 5], &[1., 1., 0.5, 0.6], "linear", "half_pixel")
            .int("antialias", 1),
        resize("cubic, outside left out", &[1, 1, 5, 4], &[1., 1., 1.5, 2.], "cubic", "half_pixel")
            .int("exclude_outside", 1)
            .float("cubic_coeff_a", -0.5),
        resize("cubic, down, antialias", &[1, 1, 6, 6], &[1., 1., 0.5, 0.5], "cubic", "half_pixel").int("antialias", 1),
        to("sizes, linear", &[1, 2, 7, 3], "linear"),
        to("sizes, cubic", &[1, 2, 7, 3], "cubic"),
        to("sizes, nearest", &[1, 2, 8, 3], "nearest"),
        to("axes", &[7, 3], "linear").list("axes", &[2, 3]),
        to("not larger", &[7, 12], "linear").list("axes", &[2, 3]).str("keep_aspect_ratio_policy", "not_larger"),
        to("not smaller", &[7, 9], "nearest").list("axes", &[2, 3]).str("keep_aspect_ratio_policy", "not_smaller"),
        to("not smaller, cubic", &[3, 3], "cubic").list("axes", &[2, 3]).str("keep_aspect_ratio_policy", "not_smaller"),
        row("Resize", "crop")
            .x(&[1, 1, 4, 5])
            .floats(&[8], &[0., 0., 0.2, -0.3, 1., 1., 0.7, 1.2])
            .absent()
            .ints(&[1, 1, 3, 4])
            .str("mode", "linear")
            .str("coordinate_transformation_mode", "tf_crop_and_resize")
            .float("extrapolation_value", 10.0),
    ];
    for transform in ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"] {
        for mode in ["linear", "cubic"] {
            rows.push(resize(&format!("{mode}, {transform}"), &[1, 2, 4, 5], &[1., 1., 1.6, 0.7], mode, transform));
        }
    }
    rows
}

fn samples() -> Vec<Row> {
    let mut rows = Vec::new();
    for mode in ["linear", "nearest", "cubic"] {
        for padding in ["zeros", "border", "reflection"] {
            for aligned in [0, 1] {
                let note = format!("{mode}, {padding}, align_corners {aligned}");
                let sample = row("GridSample", &note);
                // Off the pixels, where every mode but the cubic has a kink.
                let grid: Vec<f64> = (0..36).map(|i| f64::from(i * 7 % 36) / 36.0 * 2.6 - 1.27).collect();
                let sample = if mode == "cubic" {
                    sample.x(&[2, 3, 4, 5]).x_in(&[2, 3, 3, 2], Between(-0.9, 0.9))
                } else {
                    sample.x(&[2, 3, 4, 5]).floats(&[2, 3, 3, 2], &grid)
                };
                rows.push(
                    sample
                        .str("mode", mode)
                        .str("padding_mode", padding)
                        .int("align_corners", aligned)
                        .tolerance(1e-5, 1e-2),
                );
            }
        }
    }
    rows.extend([
        row("GridSample", "the grid, linear")
            .floats(&[1, 1, 2, 2], &[0.3, 1.7, -0.6, 0.9])
            .x_in(&[1, 2, 2, 2], Between(-0.4, -0.2)),
        row("GridSample", "3-D")
            .x(&[1, 2, 3, 4, 2])
            .floats(&[1, 1, 2, 2, 3], &[0.1, -0.3, 0.7, 0.4, 0.9, -0.8, -1.3, 0.2, 0.5, 0.6, -0.55, 1.1]),
        row("AffineGrid", "2-D").x(&[2, 2, 3]).ints(&[2, 1, 3, 4]),
        row("AffineGrid", "2-D, aligned").x(&[2, 2, 3]).ints(&[2, 1, 3, 4]).int("align_corners", 1),
        row("AffineGrid", "3-D").x(&[1, 3, 4]).ints(&[1, 1, 2, 3, 4]),
    ]);
    let rois = [0.3, 0.4, 4.1, 3.2, -1.5, 0.9, 2.3, 6.1];
    let roi = |note: &str| {
        let images = Tensor::from_f64(DType::I64, &[2], &[1., 0.]);
        let row = row("RoiAlign", note).x(&[2, 2, 5, 6]).floats(&[2, 4], &rois).at_run_time(images);
        row.int("output_height", 2).int("output_width", 3).int("sampling_ratio", 2)
    };
    let whole = "output_half_pixel";
    rows.extend([
        roi("half a pixel"),
        roi("without an offset").str("coordinate_transformation_mode", whole).float("spatial_scale", 0.5),
    ]);
    let deform = |note: &str, parts: usize, group: i64| {
        let row = row("DeformConv", note).opset(22).x(&[2, 4, 4, 5]).x(&[2, 4 / group as usize, 2, 2]);
        row.x_in(&[2, parts * 8, 3, 4], Between(0.2, 0.8)).int("group", group).int("offset_group", parts as i64)
    };
    rows.extend([deform("plain", 1, 1), deform("groups, bias, mask", 2, 2).x(&[2]).x(&[2, 8, 3, 4])]);
    rows
}

pub fn rows() -> Vec<Row> {
    [resizes(), samples()].concat()
}

#[test]
fn images() {
    check_all(&rows());
}

#[test]
fn images_refuse() {
    let images = Tensor::from_f64(DType::I64, &[1], &[0.]);
    let roi = row("RoiAlign", "").x(&[2, 1, 5, 6]).floats(&[1, 4], &[0., 0., 3., 3.]).at_run_time(images);
    refused(&roi.clone(), "sampling_ratio");
    refused(&roi.int("sampling_ratio", 2).str("mode", "max"), "`max`");
}
