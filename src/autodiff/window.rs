//! Where the windows of a convolution or a pooling lie.

use super::Call;
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::ValueId;

/// Along each spatial dimension: output o reads the places o·stride − begin + t·dilation of the input, for t < kernel.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Spatial size of the input.
    pub input: Vec<usize>,
    /// Spatial size of the output.
    pub output: Vec<usize>,
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Padding before the first element.
    pub begin: Vec<usize>,
    /// Padding after the last element, as the file says it; windows may end before it.
    pub end: Vec<usize>,
}

/// The sizes in `given`, or 1 for each of `rank` dimensions.
fn sizes(given: Option<Vec<i64>>, rank: usize, name: &str) -> Result<Vec<usize>> {
    let Some(given) = given else { return Ok(vec![1; rank]) };
    if given.len() != rank || given.iter().any(|v| *v < 1) {
        crate::bail!("`{name}` is {given:?} for {rank} spatial dimensions");
    }
    Ok(given.into_iter().map(|v| v as usize).collect())
}

impl Window {
    /// Reads `strides`, `dilations`, `pads` and `auto_pad` of an operator that slides a window of `kernel` over its first input.
    pub fn new(b: &Builder<'_>, c: &Call<'_>, kernel: Vec<usize>) -> Result<Self> {
        let (input, output) = (spatial(b, c.x(0)?)?, spatial(b, c.y(0)?)?);
        let mut w = Self::read(c, input, output, kernel)?;
        let mode = c.attrs.str("auto_pad", "NOTSET")?;
        if mode.starts_with("SAME") {
            for i in 0..w.kernel.len() {
                let total = w.reach(i).saturating_sub(w.input[i]);
                w.begin[i] = if mode == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                w.end[i] = total - w.begin[i];
            }
        }
        Ok(w)
    }

    /// As [`Window::new`] for a transposed convolution: the window slides over its first output, and its first input is the
    /// window's output.
    ///
    /// Where the file gives only the output's shape, an odd padding has its larger half at the start; with `SAME_UPPER` at the end, as
    /// ONNX Runtime has it.
    pub fn transposed(b: &Builder<'_>, c: &Call<'_>, kernel: Vec<usize>) -> Result<Self> {
        let (input, output) = (spatial(b, c.y(0)?)?, spatial(b, c.x(0)?)?);
        let rest = c.attrs.ints("output_padding")?.unwrap_or_else(|| vec![0; kernel.len()]);
        let mut w = Self::read(c, input, output, kernel)?;
        let shape_given = c.attrs.ints("output_shape")?.is_some_and(|s| !s.is_empty());
        let mode = c.attrs.str("auto_pad", "NOTSET")?;
        if shape_given || mode.starts_with("SAME") {
            for i in 0..w.kernel.len() {
                let total = (w.reach(i) + rest.get(i).map_or(0, |r| *r as usize)).saturating_sub(w.input[i]);
                w.begin[i] = if mode == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                w.end[i] = total - w.begin[i];
            }
        }
        Ok(w)
    }

    fn read(c: &Call<'_>, input: Vec<usize>, output: Vec<usize>, kernel: Vec<usize>) -> Result<Self> {
        let rank = kernel.len();
        if input.len() != rank || output.len() != rank {
            crate::bail!("a window of {rank} dimensions over {} dimensions", input.len());
        }
        // Known from the weight, or read by the caller.
        c.attrs.ignore(&["kernel_shape"]);
        let strides = sizes(c.attrs.ints("strides")?, rank, "strides")?;
        let dilations = sizes(c.attrs.ints("dilations")?, rank, "dilations")?;
        let given = c.attrs.ints("pads")?.unwrap_or_default();
        let pads = match c.attrs.str("auto_pad", "NOTSET")? {
            "NOTSET" if !given.is_empty() => given,
            "NOTSET" | "VALID" | "SAME_UPPER" | "SAME_LOWER" => vec![0; 2 * rank],
            other => crate::bail!("`auto_pad` is `{other}`"),
        };
        if pads.len() != 2 * rank || pads.iter().any(|p| *p < 0) {
            crate::bail!("the gradient with pads {pads:?} for {rank} spatial dimensions is not supported");
        }
        let pads: Vec<usize> = pads.into_iter().map(|p| p as usize).collect();
        let (begin, end) = (pads[..rank].to_vec(), pads[rank..].to_vec());
        Ok(Self { input, output, kernel, strides, dilations, begin, end })
    }

    /// The same along all dimensions but the first.
    pub fn without_first(&self) -> Self {
        let rest = |v: &[usize]| v[1..].to_vec();
        Self {
            input: rest(&self.input),
            output: rest(&self.output),
            kernel: rest(&self.kernel),
            strides: rest(&self.strides),
            dilations: rest(&self.dilations),
            begin: rest(&self.begin),
            end: rest(&self.end),
        }
    }

    /// Places from the first to the last element of one window.
    pub fn extent(&self, i: usize) -> usize {
        self.dilations[i] * (self.kernel[i] - 1) + 1
    }

    /// Places from the first element of the first window to the last element of the last.
    pub fn reach(&self, i: usize) -> usize {
        (self.output[i].max(1) - 1) * self.strides[i] + self.extent(i)
    }

    /// Number of elements of a window.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Whether the windows lie next to each other from the first element on, without padding.
    pub fn tiles(&self) -> bool {
        (0..self.kernel.len()).all(|i| {
            let dense = self.dilations[i] == 1 || self.kernel[i] == 1;
            dense && self.kernel[i] == self.strides[i] && self.begin[i] == 0 && self.reach(i) <= self.input[i]
        })
    }

    /// Whether no element is in two windows.
    pub fn apart(&self) -> bool {
        (0..self.kernel.len()).all(|i| self.strides[i] >= self.extent(i) || self.output[i] <= 1)
    }

    /// `x` with exactly what the windows read along its last dimensions: zeros around it, and nothing they do not reach.
    pub fn frame(&self, b: &mut Builder<'_>, x: ValueId) -> ValueId {
        let before: Vec<i64> = self.begin.iter().map(|p| *p as i64).collect();
        let size = |i: usize| self.reach(i) as i64 - before[i] - self.input[i] as i64;
        let after: Vec<i64> = (0..before.len()).map(size).collect();
        resize(b, x, &before, &after)
    }

    /// For every element of a window, in row-major order, the elements of `framed` ([`Window::frame`]) that all windows have
    /// there: as many as there are windows.
    pub fn slices(&self, b: &mut Builder<'_>, framed: ValueId) -> Vec<ValueId> {
        let rank = self.kernel.len();
        let first = b.rank(framed) - rank;
        let axes: Vec<usize> = (first..first + rank).collect();
        (0..self.taps())
            .map(|tap| {
                let (mut rest, mut starts) = (tap, vec![0; rank]);
                for i in (0..rank).rev() {
                    starts[i] = rest % self.kernel[i] * self.dilations[i];
                    rest /= self.kernel[i];
                }
                let end = |i: usize| starts[i] + (self.output[i] - 1) * self.strides[i] + 1;
                let ends: Vec<usize> = (0..rank).map(end).collect();
                b.slice_by(framed, &axes, &starts, &ends, &self.strides)
            })
            .collect()
    }
}

/// The dimensions after the first two.
fn spatial(b: &Builder<'_>, v: ValueId) -> Result<Vec<usize>> {
    let shape = b.shape(v);
    if shape.len() < 3 {
        crate::bail!("an input of shape {shape:?} has no spatial dimensions");
    }
    Ok(shape[2..].to_vec())
}

/// Adds zeros around the last dimensions of `x`; a negative number takes elements away.
pub(super) fn resize(b: &mut Builder<'_>, x: ValueId, before: &[i64], after: &[i64]) -> ValueId {
    let first = b.rank(x) - before.len();
    let axes: Vec<usize> = (first..b.rank(x)).collect();
    let starts: Vec<usize> = before.iter().map(|p| (-p).max(0) as usize).collect();
    let ends: Vec<usize> = axes.iter().zip(after).map(|(a, p)| b.shape(x)[*a] - (-p).max(0) as usize).collect();
    let x = b.slice(x, &axes, &starts, &ends);
    let around = |pads: &[i64]| -> Vec<usize> {
        std::iter::repeat_n(0, first).chain(pads.iter().map(|p| *p.max(&0) as usize)).collect()
    };
    b.pad(x, &around(before), &around(after))
}
