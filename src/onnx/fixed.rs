//! Tensors whose values say that they are computed, not learned: masks, tables of sines, ramps, windows, filters.

use crate::ir::Tensor;

/// An additive mask holds values such as -1e4, -1e9 or -inf; no weight is that large.
const MASK_MAGNITUDE: f64 = 5e3;

/// Elements from which on a table is not looked at: one of positions is smaller, one of words is learned.
const LARGEST: usize = 1 << 22;

/// Whether the values are those of a mask: too large for a weight, or 0 and one other number.
pub(super) fn is_mask(tensor: &Tensor) -> bool {
    if tensor.any(|v| !v.is_finite() || v.abs() > MASK_MAGNITUDE) {
        return true;
    }
    if tensor.len() < 4 || tensor.uniform().is_some() {
        return false;
    }
    let values = tensor.to_f64();
    let other = values.iter().copied().find(|v| *v != 0.0);
    other.is_some_and(|o| values.iter().all(|v| *v == 0.0 || *v == o))
}

/// Whether the values run along an axis as those of a formula do: sines and cosines of positions, ramps, geometric series, windows.
///
/// Each of them fulfils x(t+1) + x(t−1) = k·x(t), itself or in its differences, with one k along each line.
pub(super) fn is_formula(tensor: &Tensor) -> bool {
    if tensor.uniform().is_some() || !(5..LARGEST).contains(&tensor.len()) {
        return false;
    }
    let (shape, values) = (tensor.shape(), tensor.to_f64());
    (0..shape.len()).filter(|axis| shape[*axis] >= 5).any(|axis| {
        let stride: usize = shape[axis + 1..].iter().product();
        let mut lines = (0..values.len())
            .filter(|i| (i / stride).is_multiple_of(shape[axis]))
            .map(|first| (0..shape[axis]).map(move |t| first + t * stride));
        let mut varies = false;
        let fits = lines.all(|line| {
            let x: Vec<f64> = line.map(|i| values[i]).collect();
            varies |= x.iter().any(|v| *v != x[0]);
            let differences: Vec<f64> = x.windows(2).map(|w| w[1] - w[0]).collect();
            recurs(&x, &x) || x.len() >= 6 && recurs(&differences, &x) && !is_parabola(&x)
        });
        fits && varies
    })
}

/// Whether the values are those of a polynomial of degree 2, as far as float32 shows: RWKV begins so with its decays, which are trained.
fn is_parabola(x: &[f64]) -> bool {
    let middle = (x.len() - 1) as f64 / 2.0;
    let places: Vec<f64> = (0..x.len()).map(|i| (i as f64 - middle) / middle).collect();
    // Least squares; odd moments of the places vanish.
    let moment = |power: i32| places.iter().map(|t| t.powi(power)).sum::<f64>();
    let weighted = |power: i32| places.iter().zip(x).map(|(t, x)| t.powi(power) * x).sum::<f64>();
    let (n, second, fourth) = (x.len() as f64, moment(2), moment(4));
    let square = (n * weighted(2) - second * weighted(0)) / (n * fourth - second * second);
    let slope = weighted(1) / second;
    let constant = (weighted(0) - square * second) / n;
    let (low, high) = x.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |r, v| (r.0.min(*v), r.1.max(*v)));
    let fits = |(t, x): (&f64, &f64)| (constant + slope * t + square * t * t - x).abs() <= 1e-4 * (high - low);
    square.abs() >= 1e-2 * (high - low) && places.iter().zip(x).all(fits)
}

/// Whether every row is as long as sines and cosines of the same angles are, Σx² = D/2, but for rows of zeros.
pub(super) fn is_sinusoidal(tensor: &Tensor) -> bool {
    let Some(width) = tensor.shape().last().copied().filter(|w| w.is_multiple_of(2) && *w >= 4) else { return false };
    if tensor.len() > LARGEST {
        return false;
    }
    let values = tensor.to_f64();
    let lengths: Vec<f64> =
        values.chunks(width).map(|row| row.iter().map(|v| v * v).sum()).filter(|s| *s > 0.0).collect();
    let half = width as f64 / 2.0;
    lengths.len() >= 2
        && values.iter().all(|v| v.abs() <= 1.0 + 1e-6)
        && values.iter().any(|v| (1e-3..0.999).contains(&v.abs()))
        && lengths.iter().all(|s| (s - half).abs() <= 1e-4 * half)
}

/// Whether x(t+1) + x(t−1) = k·x(t) for some k, as far as the rounding of `original` lets it be seen.
fn recurs(x: &[f64], original: &[f64]) -> bool {
    let (low, high) = x.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |r, v| (r.0.min(*v), r.1.max(*v)));
    let largest = original.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let tolerance = 1e-3 * (high - low) + 1e-6 * largest;
    let inner = 1..x.len() - 1;
    let Some(t) = inner.clone().max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs())) else { return false };
    if x[t].abs() <= tolerance {
        return x.iter().all(|v| v.abs() <= tolerance);
    }
    let k = (x[t + 1] + x[t - 1]) / x[t];
    inner.clone().all(|t| (x[t + 1] + x[t - 1] - k * x[t]).abs() <= tolerance * k.abs().max(1.0))
}

/// Whether a convolution's weight [M, C/g, k…] is one filter for all channels, such as a blur or an edge detector.
pub(super) fn is_filter(tensor: &Tensor) -> bool {
    let [channels, 1, kernel @ ..] = tensor.shape() else { return false };
    let size: usize = kernel.iter().product();
    if size < 2 || tensor.uniform().is_some() {
        return false;
    }
    let values = tensor.to_f64();
    let (first, rest) = values.split_at(size);
    let alike = rest.chunks(size).all(|k| k.iter().zip(first).all(|(a, b)| (a - b).abs() <= 1e-6));
    let blurs = first.iter().all(|v| *v >= 0.0) && (first.iter().sum::<f64>() - 1.0).abs() < 1e-4;
    let symmetric = first.iter().eq(first.iter().rev());
    alike && (*channels > 1 || blurs && symmetric)
}

/// Whether a matrix in front of all weights is a filter bank or the basis of a transform: sparse and nowhere negative, or with a row or column of zeros
/// among others, as the sine of frequency 0.
pub(super) fn is_bank(tensor: &Tensor) -> bool {
    let values = tensor.to_f64();
    let Some((rows, columns)) = tensor.shape().split_first().map(|(r, rest)| (*r, rest.iter().product::<usize>()))
    else {
        return false;
    };
    if rows < 2 || columns < 2 || tensor.uniform().is_some() {
        return false;
    }
    let zeros = values.iter().filter(|v| **v == 0.0).count();
    let sparse = values.iter().all(|v| *v >= 0.0) && 2 * zeros > values.len();
    let empty_row = values.chunks(columns).any(|r| r.iter().all(|v| v.abs() < 1e-6));
    let empty_column = (0..columns).any(|c| values.iter().skip(c).step_by(columns).all(|v| v.abs() < 1e-6));
    sparse || empty_row || empty_column
}

/// Whether a vector has norm 1, as the vectors of a power iteration have.
pub(super) fn is_unit_vector(tensor: &Tensor) -> bool {
    let long = tensor.shape().iter().filter(|d| **d > 1).count();
    long <= 1 && tensor.len() > 1 && (tensor.to_f64().iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    fn table(rows: usize, columns: usize, f: impl Fn(f64, f64) -> f64) -> Tensor {
        let values: Vec<f64> = (0..rows * columns).map(|i| f((i / columns) as f64, (i % columns) as f64)).collect();
        Tensor::from_f64(DType::F32, &[rows, columns], &values)
    }

    fn random(t: f64, c: f64) -> f64 {
        ((t * 12.9898 + c * 78.233).sin() * 43758.5453).fract()
    }

    #[test]
    fn tables_of_formulas_are_told_from_learned_ones() {
        let frequency = |c: f64| 1e4f64.powf(-(c / 2.0).floor() / 8.0);
        assert!(is_formula(&table(32, 16, |t, c| if c % 2.0 == 0.0 {
            (t * frequency(c)).sin()
        } else {
            (t * frequency(c)).cos()
        })));
        assert!(is_formula(&table(1, 8, |_, c| 2f64.powf(-c))), "slopes");
        assert!(is_formula(&table(3, 9, |_, c| c / 8.0)), "ramp");
        assert!(is_formula(&table(1, 64, |_, c| 0.5 - 0.5 * (std::f64::consts::TAU * c / 64.0).cos())), "window");
        assert!(!is_formula(&table(16, 8, random)));
        assert!(!is_formula(&table(1, 16, |_, c| -5.0 + 8.0 * (c / 15.0).powi(2))), "decays");
        assert!(!is_formula(&table(1, 16, |t, c| 1.0 + 1e-4 * random(t, c))), "gains that have hardly moved");
    }

    #[test]
    fn rows_of_sines_and_cosines_have_one_length() {
        let angle = |t: f64, c: f64| t * 1e4f64.powf(-(c / 2.0).floor() / 8.0);
        let sines = |t: f64, c: f64| if c % 2.0 == 0.0 { angle(t, c).sin() } else { angle(t, c).cos() };
        assert!(is_sinusoidal(&table(9, 16, sines)));
        // A grid's, behind a row of zeros for the class token.
        let grid =
            |t: f64, c: f64| if t == 0.0 { 0.0 } else { sines(if c < 8.0 { t % 4.0 } else { (t / 4.0).floor() }, c) };
        assert!(is_sinusoidal(&table(17, 16, grid)));
        assert!(!is_sinusoidal(&table(9, 16, random)));
        assert!(!is_sinusoidal(&table(9, 16, |_, c| f64::from(c < 8.0))), "zeros and ones");
    }

    #[test]
    fn masks_have_two_values_or_large_ones() {
        assert!(
            is_mask(&table(4, 4, |t, c| f64::from(t >= c)))
                && is_mask(&table(4, 4, |t, c| if t >= c { 0.0 } else { -100.0 }))
        );
        assert!(
            is_mask(&table(1, 2, |_, _| -1e9)) && !is_mask(&table(4, 4, random)) && !is_mask(&table(1, 8, |_, _| 1.0))
        );
    }

    #[test]
    fn filters_are_alike_in_all_channels() {
        let blur = [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0].map(|v: f64| v / 16.0);
        let weight =
            |kernels: &[[f64; 9]]| Tensor::from_f64(DType::F32, &[kernels.len(), 1, 3, 3], kernels.as_flattened());
        assert!(is_filter(&weight(&[blur, blur])) && is_filter(&weight(&[blur])));
        assert!(!is_filter(&weight(&[blur, blur.map(|v| v * 1.1)])) && !is_filter(&table(4, 9, random)));
    }
}
