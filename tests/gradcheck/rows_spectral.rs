//! Fourier transforms.

use super::{Row, check_all, row};
use bisam::ir::{DType, Tensor};

pub fn rows() -> Vec<Row> {
    let int = |v: f64| Tensor::scalar(DType::I64, v);
    let dft = |note: &str, shape: &[usize]| row("DFT", note).x(shape).absent().constant(int(1.0));
    let old = |note: &str, shape: &[usize]| row("DFT", note).x(shape).opset(17).int("axis", 1);
    let long = |note: &str, shape: &[usize], n: f64| row("DFT", note).x(shape).constant(int(n)).constant(int(1.0));
    let stft = |note: &str, shape: &[usize]| row("STFT", note).x(shape).constant(int(3.0));
    vec![
        dft("complex", &[2, 5, 2]),
        dft("real", &[2, 6, 1]),
        dft("real, one-sided", &[2, 6, 1]).int("onesided", 1),
        dft("real, one-sided, odd", &[2, 5, 1]).int("onesided", 1),
        dft("inverse", &[2, 5, 2]).int("inverse", 1),
        long("cut", &[2, 7, 2], 5.0),
        long("filled", &[2, 5, 1], 8.0).int("onesided", 1),
        row("DFT", "default axis").x(&[2, 4, 3, 2]),
        old("opset 17", &[2, 6, 1]),
        old("opset 17, inverse", &[2, 4, 2]).int("inverse", 1),
        stft("window", &[2, 14, 1]).floats(&[6], &[0.1, 0.5, 0.9, 1.0, 0.6, 0.2]),
        stft("window, both sides", &[1, 12, 1]).floats(&[4], &[0.1, 0.5, 0.9, 1.0]).int("onesided", 0),
        stft("length", &[1, 14, 1]).absent().constant(int(5.0)),
        stft("learned window", &[1, 12, 1]).x(&[4]),
        stft("opset 17", &[1, 12, 1]).floats(&[4], &[0.1, 0.5, 0.9, 1.0]).opset(17),
    ]
}

#[test]
fn fourier() {
    check_all(&rows());
}
