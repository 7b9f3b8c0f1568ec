//! Owned handles on ONNX Runtime's tensors, over memory of ours or its own.

use super::ort_error;
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor, Type};
use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::sys::{self, ONNXTensorElementDataType as ElementType};
use std::ptr::NonNull;

/// Turns a status of the C interface into a result, and releases it.
pub(super) fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: every caller passes a status that a function of the C interface just returned.
    unsafe { ort::Error::<()>::result_from_status(status) }.map_err(ort_error)
}

/// Where the elements of a tensor of floats are, on its device.
pub(super) fn floats(value: *mut sys::OrtValue) -> Result<*mut f32> {
    let mut data = std::ptr::null_mut();
    // SAFETY: callers pass the value of a kernel's input or output, which is declared to be a tensor of floats.
    check(unsafe { (ort::api().GetTensorMutableData)(value, &raw mut data) })?;
    Ok(data.cast())
}

/// An `OrtValue`, released on drop.
#[derive(Debug)]
pub(super) struct Value(NonNull<sys::OrtValue>);

// SAFETY: a value is a reference-counted handle without thread affinity; it is only mutated through `&mut` or runs.
unsafe impl Send for Value {}

impl Value {
    /// Takes over a value that the C interface returned.
    ///
    /// # Safety
    /// `value` is null or owned by the caller and not released elsewhere.
    pub unsafe fn from_raw(value: *mut sys::OrtValue) -> Result<Self> {
        NonNull::new(value).map(Self).ok_or_else(|| Error::new("ONNX Runtime returned no value"))
    }

    /// A tensor over memory that stays somebody else's.
    ///
    /// # Safety
    /// `data` is valid for the bytes of `ty` on the device `info` describes, aligned for its element type, as long as
    /// the value or a binding it was given to lives; and it is writable if the value is bound as an output.
    pub unsafe fn over(info: &MemoryInfo<'_>, data: *mut u8, ty: &Type) -> Result<Self> {
        let shape: Vec<i64> = ty.shape.iter().map(|d| *d as i64).collect();
        let bytes = ty.shape.iter().product::<usize>() * ty.dtype.width();
        let element = element_type(ty.dtype)?;
        let mut value = std::ptr::null_mut();
        // SAFETY: `shape` outlives the call, which copies it; the caller vouches for `data`.
        check(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                data.cast(),
                bytes,
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            )
        })?;
        // SAFETY: the value was just made for this caller.
        unsafe { Self::from_raw(value) }
    }

    /// The handle for the C interface.
    pub fn ptr(&self) -> *mut sys::OrtValue {
        self.0.as_ptr()
    }

    /// Copies a tensor in host memory out.
    ///
    /// # Errors
    /// When the value is not a tensor, or of a type that this crate has no tensors of.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let api = ort::api();
        let mut is_tensor = 0;
        // SAFETY: the handle is valid; the out-parameter too.
        check(unsafe { (api.IsTensor)(self.ptr(), &mut is_tensor) })?;
        if is_tensor == 0 {
            crate::bail!("a sequence, map or empty optional cannot be read as a tensor");
        }
        let (dtype, shape) = self.type_and_shape()?;
        let bytes = shape.iter().product::<usize>() * dtype.width();
        let mut data = std::ptr::null_mut();
        // SAFETY: the handle is a tensor's; the pointer it yields is only read.
        check(unsafe { (api.GetTensorMutableData)(self.ptr(), &mut data) })?;
        let content = if bytes == 0 || data.is_null() {
            Vec::new()
        } else {
            // SAFETY: a dense tensor in host memory has exactly this many bytes, and nothing runs that could write them.
            unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) }.to_vec()
        };
        Tensor::from_bytes(dtype, &shape, content)
    }

    fn type_and_shape(&self) -> Result<(DType, Vec<usize>)> {
        let api = ort::api();
        let mut info = std::ptr::null_mut();
        // SAFETY: the handle is a tensor's; the info is released on every path by the guard.
        check(unsafe { (api.GetTensorTypeAndShape)(self.ptr(), &mut info) })?;
        let _release = OnDrop(|| unsafe { (api.ReleaseTensorTypeAndShapeInfo)(info) });
        // Read as a number: a newer library may know element types that the enum of the bindings lacks.
        let mut element: i32 = 0;
        // SAFETY: the enum is represented as an i32, so one can be written through this pointer.
        check(unsafe { (api.GetTensorElementType)(info, (&raw mut element).cast()) })?;
        let mut rank = 0;
        // SAFETY: `info` is valid until the guard drops.
        check(unsafe { (api.GetDimensionsCount)(info, &mut rank) })?;
        let mut dims = vec![0i64; rank];
        // SAFETY: `dims` has room for `rank` numbers.
        check(unsafe { (api.GetDimensions)(info, dims.as_mut_ptr(), rank) })?;
        let dtype = DType::from_onnx(element).filter(|dtype| *dtype != DType::Str);
        let dtype = dtype.ok_or_else(|| Error::new(format!("tensors of {} are not supported", type_name(element))))?;
        let shape = dims.iter().map(|d| usize::try_from(*d)).collect::<std::result::Result<_, _>>();
        Ok((dtype, shape.map_err(|_| Error::new(format!("a tensor has the impossible shape {dims:?}")))?))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the handle is owned and valid.
        unsafe { (ort::api().ReleaseValue)(self.ptr()) };
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn type_name(element: i32) -> String {
    DType::from_onnx(element).map_or_else(|| format!("ONNX element type {element}"), |dtype| dtype.to_string())
}

fn element_type(dtype: DType) -> Result<ElementType> {
    Ok(match dtype {
        DType::F32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::F64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DType::F16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::BF16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::I8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::I16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::I32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::I64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::U8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::U16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::U32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::U64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::Bool => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DType::Str => crate::bail!("tensors of strings are not supported"),
    })
}
