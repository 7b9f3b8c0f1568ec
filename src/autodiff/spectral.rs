//! Fourier transforms, which are linear: their transposes are transforms again.

use super::{Call, Cotangents, Lowered};
use crate::builder::{Builder, attrs};
use crate::ir::{Attr, Attrs, Tensor, Type, ValueId};

/// One transform along `axis` of `x`, whose last dimension holds real and imaginary parts; the output has `length` elements there,
/// complex ones unless `real`.
struct Transform {
    axis: usize,
    inverse: bool,
    onesided: bool,
}

impl Transform {
    fn emit(&self, b: &mut Builder<'_>, x: ValueId, length: usize, out: [usize; 2]) -> ValueId {
        let mut list: Attrs = attrs([]);
        for (name, flag) in [("inverse", self.inverse), ("onesided", self.onesided)] {
            if flag {
                list.insert(name.into(), Attr::Int(1));
            }
        }
        let length = b.constant(Tensor::scalar(crate::ir::DType::I64, length as f64));
        let mut inputs = vec![Some(x), Some(length)];
        if b.graph.opset() < 20 {
            list.insert("axis".into(), Attr::Int(self.axis as i64));
        } else {
            inputs.push(Some(b.constant(Tensor::scalar(crate::ir::DType::I64, self.axis as f64))));
        }
        let Type { dtype, mut shape } = b.ty(x);
        shape[self.axis] = out[0];
        let last = shape.len() - 1;
        shape[last] = out[1];
        b.raw("", "DFT", &inputs, list, &[Type::new(dtype, &shape)])[0]
    }
}

/// Y = FX, Yₖ = Σₜ Xₜ·e^(−2πikt/L) for L = `dft_length`, or the inverse, F*X/L: X̄ = F*Ȳ, or FȲ/L, cut or filled with zeros as X was; one-sided
/// spectra lack the other half, whose cotangent is 0; X […,n,…,1 or 2]; ONNX DFT-20.
pub fn dft(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let (inverse, onesided) = (c.attrs.flag("inverse", false)?, c.attrs.flag("onesided", false)?);
    let (from, to) = (b.shape(x).to_vec(), b.shape(dy).to_vec());
    let last = from.len() - 1;
    let default = if b.graph.opset() < 20 { 1 } else { -2 };
    let axis = match c.constant_ints(b, 2, "axis")?.as_deref() {
        Some([axis]) => *axis,
        _ => c.attrs.int("axis", default)?,
    };
    let axis = b.axis(x, axis)?;
    let given = c.constant_ints(b, 1, "dft_length")?.and_then(|l| l.first().map(|l| *l as usize));
    if onesided && inverse {
        // Real Y of L elements from half a spectrum: X̄ₖ = wₖ/L·(FȲ)ₖ, w = 2 but for the elements that stand for themselves.
        let length = given.unwrap_or(to[axis]);
        let half = length / 2 + 1;
        let forward = Transform { axis, inverse: false, onesided: true };
        let spectrum = forward.emit(b, dy, length, [half, 2]);
        let own = |k: usize| k == 0 || 2 * k == length;
        let weights: Vec<f64> = (0..half).map(|k| if own(k) { 1.0 } else { 2.0 } / length as f64).collect();
        let mut view = vec![1; from.len()];
        view[axis] = half;
        let weights = b.constant(Tensor::from_f64(b.dtype(x), &view, &weights));
        let dx = b.mul(spectrum, weights)?;
        return Ok(vec![Some(b.shift(dx, axis, 0, from[axis]))]);
    }
    let length = given.unwrap_or(from[axis]);
    let whole = b.shift(dy, axis, 0, length);
    let back = Transform { axis, inverse: !inverse, onesided: false };
    let dx = back.emit(b, whole, length, [length, 2]);
    let dx = b.scale(dx, if inverse { 1.0 / length as f64 } else { length as f64 })?;
    let dx = b.shift(dx, axis, 0, from[axis]);
    Ok(vec![Some(b.slice(dx, &[last], &[0], &[from[last]]))])
}

/// Y = the DFT of frames of X, one every `frame_step` elements, each times a window: written out; X [N,n,1 or 2], Y [N,frames,bins,2];
/// ONNX STFT-17.
pub fn stft(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let x = c.x(0)?;
    let onesided = c.attrs.flag("onesided", true)?;
    let step = c.constant_ints(b, 1, "frame_step")?.and_then(|s| s.first().copied()).unwrap_or(1);
    let given = c.constant_ints(b, 3, "frame_length")?.and_then(|l| l.first().copied());
    let window = c.opt(2);
    let length = match (given, window) {
        (Some(length), _) => length as usize,
        (None, Some(window)) => b.len(window),
        (None, None) => crate::bail!("neither a window nor a frame length is given"),
    };
    let out = b.ty(c.y(0)?);
    let (frames, bins) = (out.shape[1], out.shape[2]);
    let shape = b.shape(x).to_vec();
    let parts = if shape.len() == 3 { shape[2] } else { 1 };
    let x = b.reshape(x, &[shape[0], shape[1], parts]);
    let places: Vec<i64> = (0..frames as i64).flat_map(|f| (0..length as i64).map(move |t| f * step + t)).collect();
    let places = b.constant(Tensor::new(&[frames, length], &places)?);
    let mut framed = b.gather(x, places, 1);
    if let Some(window) = window {
        let window = b.reshape(window, &[length, 1]);
        framed = b.mul(framed, window)?;
    }
    let transform = Transform { axis: 2, inverse: false, onesided };
    Ok(vec![Some(transform.emit(b, framed, length, [bins, 2]))])
}
