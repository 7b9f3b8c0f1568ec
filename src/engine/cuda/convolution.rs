//! Convolutions by cuDNN, with the algorithm that its heuristics take for the best among those whose results repeat.

use super::super::kernels::Geometry;
use super::functions::{Algorithm, Cudnn, Handle, Status};
use super::operators::Pass;
use crate::error::{Error, Result};
use std::ffi::{CStr, c_int};
use std::ptr;
use std::sync::Arc;

/// `CUDNN_TENSOR_NCHW`, `CUDNN_DATA_FLOAT`, `CUDNN_DATA_BFLOAT16`, `CUDNN_CROSS_CORRELATION`, `CUDNN_DETERMINISTIC`.
const NCHW: c_int = 0;
const FLOAT: c_int = 0;
const BFLOAT16: c_int = 9;
const CROSS_CORRELATION: c_int = 1;
const DETERMINISTIC: c_int = 1;
/// `CUDNN_DEFAULT_MATH`, which may round factors to TF32, and `CUDNN_FMA_MATH`, which does not.
const DEFAULT_MATH: c_int = 0;
const FMA_MATH: c_int = 3;
/// As many algorithms as there are for a pass.
const ALGORITHMS: usize = 16;
/// Bytes of scratch memory that an algorithm may take.
const WORKSPACE: usize = 1 << 30;

/// A pass of one convolution, prepared.
pub struct Convolution {
    cudnn: Arc<Cudnn>,
    pass: Pass,
    geometry: Geometry,
    half: bool,
    x: Handle,
    y: Handle,
    filter: Handle,
    convolution: Handle,
    algorithm: c_int,
    workspace: usize,
}

// SAFETY: descriptors belong to this value, and cuDNN lets any thread use them.
unsafe impl Send for Convolution {}

impl Convolution {
    /// Prepares a pass for the handle that will run it, on tensors of f32 or, if `half`, bf16; `tf32` allows factors to be rounded.
    ///
    /// # Errors
    /// What cuDNN says, or when no algorithm serves.
    pub fn new(
        cudnn: Arc<Cudnn>,
        handle: Handle,
        pass: Pass,
        geometry: &Geometry,
        half: bool,
        tf32: bool,
    ) -> Result<Self> {
        let null = ptr::null_mut();
        let geometry = geometry.clone();
        let mut c = Self {
            cudnn,
            pass,
            geometry,
            half,
            x: null,
            y: null,
            filter: null,
            convolution: null,
            algorithm: 0,
            workspace: 0,
        };
        c.describe(tf32)?;
        c.choose(handle)?;
        Ok(c)
    }

    /// Whether this is that pass.
    pub fn is(&self, pass: Pass, geometry: &Geometry, half: bool) -> bool {
        self.pass == pass && self.half == half && self.geometry == *geometry
    }

    /// Bytes of scratch memory that a run needs.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    fn describe(&mut self, tf32: bool) -> Result<()> {
        let g = &self.geometry;
        let int = |n: usize| c_int::try_from(n).map_err(|_| Error::new(format!("a dimension of {n}")));
        let (n, c, m) = (int(g.n)?, int(g.c)?, int(g.m)?);
        let [[h, w], [oh, ow], [kh, kw]] = [g.input, g.output, g.kernel].map(|d| d.map(|n| n as c_int));
        let [begin, strides, dilations] = [g.begin, g.strides, g.dilations].map(|d| d.map(|n| n as c_int));
        let (group, inner) = (int(g.groups)?, int(g.c / g.groups.max(1))?);
        let ty = if self.half { BFLOAT16 } else { FLOAT };
        // Sums are f32 either way; factors of bf16 are not rounded any further.
        let math = if tf32 || self.half { DEFAULT_MATH } else { FMA_MATH };
        let f = &self.cudnn;
        // SAFETY: every descriptor is made before it is set, and lives as long as this value.
        let status = unsafe {
            [
                (f.cudnnCreateTensorDescriptor)(&raw mut self.x),
                (f.cudnnCreateTensorDescriptor)(&raw mut self.y),
                (f.cudnnCreateFilterDescriptor)(&raw mut self.filter),
                (f.cudnnCreateConvolutionDescriptor)(&raw mut self.convolution),
                (f.cudnnSetTensor4dDescriptor)(self.x, NCHW, ty, n, c, h, w),
                (f.cudnnSetTensor4dDescriptor)(self.y, NCHW, ty, n, m, oh, ow),
                (f.cudnnSetFilter4dDescriptor)(self.filter, ty, NCHW, m, inner, kh, kw),
                (f.cudnnSetConvolution2dDescriptor)(
                    self.convolution,
                    begin[0],
                    begin[1],
                    strides[0],
                    strides[1],
                    dilations[0],
                    dilations[1],
                    CROSS_CORRELATION,
                    FLOAT,
                ),
                (f.cudnnSetConvolutionGroupCount)(self.convolution, group),
                (f.cudnnSetConvolutionMathType)(self.convolution, math),
            ]
        };
        status.into_iter().try_for_each(|s| self.check(s))
    }

    fn choose(&mut self, handle: Handle) -> Result<()> {
        let mut found = [Algorithm::default(); ALGORITHMS];
        let mut n = 0;
        let (f, most, out) = (&self.cudnn, ALGORITHMS as c_int, found.as_mut_ptr());
        let (x, y, filter, convolution) = (self.x, self.y, self.filter, self.convolution);
        // SAFETY: descriptors are set, and there is room for as many results as are asked for.
        let status = unsafe {
            match self.pass {
                Pass::Forward => {
                    (f.cudnnGetConvolutionForwardAlgorithm_v7)(handle, x, filter, convolution, y, most, &raw mut n, out)
                }
                Pass::Input => (f.cudnnGetConvolutionBackwardDataAlgorithm_v7)(
                    handle,
                    filter,
                    y,
                    convolution,
                    x,
                    most,
                    &raw mut n,
                    out,
                ),
                Pass::Weight => (f.cudnnGetConvolutionBackwardFilterAlgorithm_v7)(
                    handle,
                    x,
                    y,
                    convolution,
                    filter,
                    most,
                    &raw mut n,
                    out,
                ),
            }
        };
        self.check(status)?;
        let serves = |a: &&Algorithm| a.status == 0 && a.deterministic == DETERMINISTIC && a.workspace <= WORKSPACE;
        let best = found.iter().take(usize::try_from(n).unwrap_or(0)).find(serves);
        let best =
            best.ok_or_else(|| Error::new("cuDNN has no algorithm for this convolution").hint("use --kernels plain"))?;
        (self.algorithm, self.workspace) = (best.algorithm, best.workspace);
        // What the chosen algorithm computes with.
        // SAFETY: the descriptor is this value's.
        self.check(unsafe { (self.cudnn.cudnnSetConvolutionMathType)(self.convolution, best.math) })
    }

    /// Runs in the handle's stream: X, W → Y, or W, Ȳ → X̄, or X, Ȳ → W̄.
    ///
    /// # Errors
    /// What cuDNN says.
    ///
    /// # Safety
    /// Tensors on the device have the shapes of the geometry, and `workspace` as many bytes as are needed.
    pub unsafe fn run(
        &self,
        handle: Handle,
        [a, b]: [*const f32; 2],
        workspace: *mut f32,
        out: *mut f32,
    ) -> Result<()> {
        let (one, zero) = (1.0f32, 0.0f32);
        let (one, zero) = (&raw const one, &raw const zero);
        let (f, algorithm, bytes) = (&self.cudnn, self.algorithm, self.workspace);
        let (x, y, w, c) = (self.x, self.y, self.filter, self.convolution);
        let space = workspace.cast();
        // SAFETY: the caller's promise.
        self.check(unsafe {
            match self.pass {
                Pass::Forward => {
                    (f.cudnnConvolutionForward)(handle, one, x, a, w, b, c, algorithm, space, bytes, zero, y, out)
                }
                Pass::Input => {
                    (f.cudnnConvolutionBackwardData)(handle, one, w, a, y, b, c, algorithm, space, bytes, zero, x, out)
                }
                Pass::Weight => (f.cudnnConvolutionBackwardFilter)(
                    handle, one, x, a, y, b, c, algorithm, space, bytes, zero, w, out,
                ),
            }
        })
    }

    fn check(&self, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a static text for any number.
        let text = unsafe { CStr::from_ptr((self.cudnn.cudnnGetErrorString)(status)) };
        Err(Error::new(format!("cuDNN: {} ({:?} of {:?})", text.to_string_lossy(), self.pass, self.geometry)))
    }
}

impl Drop for Convolution {
    fn drop(&mut self) {
        let f = &self.cudnn;
        // SAFETY: each was made by this value, or is null.
        unsafe {
            for tensor in [self.x, self.y].into_iter().filter(|t| !t.is_null()) {
                (f.cudnnDestroyTensorDescriptor)(tensor);
            }
            if !self.filter.is_null() {
                (f.cudnnDestroyFilterDescriptor)(self.filter);
            }
            if !self.convolution.is_null() {
                (f.cudnnDestroyConvolutionDescriptor)(self.convolution);
            }
        }
    }
}
