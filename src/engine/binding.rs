//! Prepared bindings of a session's inputs and outputs to views of flat buffers.

use super::arena::Buffer;
use super::ort_error;
use super::value::{Value, check};
use crate::error::{Error, Result};
use crate::ir::Type;
use ort::AsPointer;
use ort::sys;
use std::ffi::CString;

/// Ties inputs and outputs of one session to memory; made by [`Session::binding`](super::Session::binding).
pub struct Binding {
    inner: ort::session::IoBinding,
    values: Vec<Value>,
    buffers: Vec<Buffer>,
    on_device: bool,
}

impl Binding {
    pub(super) fn new(inner: ort::session::IoBinding) -> Self {
        Self { inner, values: Vec::new(), buffers: Vec::new(), on_device: false }
    }

    /// Binds input `name` to the bytes of `buffer` from `offset` on, read as `ty`.
    ///
    /// # Errors
    /// A view that does not fit the buffer, or an input the session does not have.
    pub fn input(&mut self, name: &str, buffer: &Buffer, offset: usize, ty: &Type) -> Result<()> {
        let bind = ort::api().BindInput;
        self.bind(name, buffer, offset, ty, |binding, name, value| {
            // SAFETY: the binding, the name and the value are valid; `self` keeps the value's memory alive.
            unsafe { bind(binding, name, value) }
        })
    }

    /// Binds output `name` to the bytes of `buffer` from `offset` on: the session writes straight into them.
    ///
    /// # Errors
    /// As [`Binding::input`].
    pub fn output(&mut self, name: &str, buffer: &Buffer, offset: usize, ty: &Type) -> Result<()> {
        let bind = ort::api().BindOutput;
        self.bind(name, buffer, offset, ty, |binding, name, value| {
            // SAFETY: as for inputs.
            unsafe { bind(binding, name, value) }
        })
    }

    fn bind(
        &mut self,
        name: &str,
        buffer: &Buffer,
        offset: usize,
        ty: &Type,
        call: impl Fn(*mut sys::OrtIoBinding, *const std::ffi::c_char, *const sys::OrtValue) -> sys::OrtStatusPtr,
    ) -> Result<()> {
        let data = buffer.pointer(offset, ty.bytes())?;
        // SAFETY: the pointer is valid for these bytes on the buffer's device as long as the buffer lives, and the buffer is
        // kept below; views are aligned by construction of the layout.
        let value = unsafe { Value::over(&buffer.info()?, data, ty)? };
        let c_name = CString::new(name).map_err(|_| Error::new(format!("name {name:?} contains a zero byte")))?;
        check(call(self.inner.ptr().cast_mut(), c_name.as_ptr(), value.ptr()))?;
        self.on_device |= buffer.on_device();
        self.values.push(value);
        self.buffers.push(buffer.clone());
        Ok(())
    }

    pub(super) fn ptr(&self) -> *const sys::OrtIoBinding {
        self.inner.ptr()
    }

    /// Waits until what the last run wrote can be read; runs on the CPU are over when they return.
    pub(super) fn synchronize(&self) -> Result<()> {
        if self.on_device { self.inner.synchronize_outputs().map_err(ort_error) } else { Ok(()) }
    }
}
