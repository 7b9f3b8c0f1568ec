//! Prepared bindings of a session's inputs and outputs to views of flat buffers.

use super::arena::Buffer;
use super::session::{Port, Ports, c_name};
use super::value::{Value, check};
use crate::error::{Error, Result};
use crate::ir::Type;
use ort::AsPointer;
use ort::sys;
use std::ops::Range;
use std::sync::Arc;

/// Ties inputs and outputs of one session to memory; made by [`Session::binding`](super::Session::binding).
///
/// Inputs are read where they lie each time the session runs, and outputs written there; on CUDA a run is only started, and what it
/// wrote is there for whatever the device does later. There this holds for inputs that
/// kernels read on the device; one that a kernel wants on the host (a shape, the condition of an `If`) is copied when it is
/// bound and must be a constant of the graph instead.
pub struct Binding {
    // Dropped before the values, and these before the buffers they look into.
    inner: ort::session::IoBinding,
    bound: Vec<Bound>,
    session: *const sys::OrtSession,
    ports: Arc<Ports>,
    unbound_inputs: usize,
    options: Option<RunOptions>,
}

/// Options of the runs over a binding.
pub(super) struct RunOptions(*mut sys::OrtRunOptions);

impl RunOptions {
    /// Of runs on a device over bound memory: nobody waits for their end, and they replay graph number `graph` once it is captured.
    pub fn bound(graph: usize) -> Result<Self> {
        Self::new(&[("disable_synchronize_execution_providers", "1"), ("gpu_graph_id", &graph.to_string())])
    }

    /// Of runs on a device over memory of the host, which are never captured.
    pub fn unbound() -> Result<Self> {
        Self::new(&[("gpu_graph_id", "-1")])
    }

    fn new(entries: &[(&str, &str)]) -> Result<Self> {
        let mut options = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        check(unsafe { (ort::api().CreateRunOptions)(&raw mut options) })?;
        let options = Self(options);
        for (key, value) in entries {
            let (key, value) = (c_name(key)?, c_name(value)?);
            // SAFETY: the options were just made, and both texts are copied.
            check(unsafe { (ort::api().AddRunConfigEntry)(options.0, key.as_ptr(), value.as_ptr()) })?;
        }
        Ok(options)
    }

    pub fn ptr(&self) -> *const sys::OrtRunOptions {
        self.0
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: made by this value, and no run is in flight.
        unsafe { (ort::api().ReleaseRunOptions)(self.0) };
    }
}

struct Bound {
    name: String,
    is_input: bool,
    addresses: Range<usize>,
    _value: Value,
    _buffer: Buffer,
}

impl Binding {
    pub(super) fn new(
        inner: ort::session::IoBinding,
        session: *const sys::OrtSession,
        ports: Arc<Ports>,
        options: Option<RunOptions>,
    ) -> Self {
        let unbound_inputs = ports.inputs.len();
        Self { inner, bound: Vec::new(), session, ports, unbound_inputs, options }
    }

    /// Binds input `name` to the bytes of `buffer` from `offset` on, read as `ty`. Bound again, the new place counts.
    ///
    /// # Errors
    /// A view that does not fit the buffer, lies across an output or is not aligned; an input the session does not have, or of
    /// another type or shape.
    pub fn input(&mut self, name: &str, buffer: &Buffer, offset: usize, ty: &Type) -> Result<()> {
        self.bind(true, name, buffer, offset, ty)
    }

    /// Binds output `name` to the bytes of `buffer` from `offset` on: the session writes straight into them.
    ///
    /// The place must not lie across anything else of this binding: ONNX Runtime orders nodes as it likes, so that a value
    /// could be overwritten before its last use.
    ///
    /// # Errors
    /// As [`Binding::input`].
    pub fn output(&mut self, name: &str, buffer: &Buffer, offset: usize, ty: &Type) -> Result<()> {
        self.bind(false, name, buffer, offset, ty)
    }

    fn bind(&mut self, is_input: bool, name: &str, buffer: &Buffer, offset: usize, ty: &Type) -> Result<()> {
        let (kind, ports) = if is_input { ("input", &self.ports.inputs) } else { ("output", &self.ports.outputs) };
        port(ports, kind, name)?.accepts(ty)?;
        let data = buffer.pointer(offset, ty.bytes())?;
        if !(data as usize).is_multiple_of(ty.dtype.width().max(1)) {
            crate::bail!("{kind} `{name}` at byte {offset} is not aligned for {}", ty.dtype);
        }
        let addresses = data as usize..data as usize + ty.bytes();
        self.bound.retain(|other| (other.is_input, other.name.as_str()) != (is_input, name));
        let across = |other: &&Bound| {
            (!is_input || !other.is_input)
                && other.addresses.start < addresses.end
                && addresses.start < other.addresses.end
        };
        if let Some(other) = self.bound.iter().find(across) {
            crate::bail!(
                "{kind} `{name}` lies across `{}` in memory, which is read or written in the same run",
                other.name
            );
        }
        // SAFETY: the pointer is valid for these bytes on the buffer's device as long as the buffer lives, and the buffer is
        // kept below; it was just seen to be aligned.
        let value = unsafe { Value::over(&buffer.info()?, data, ty)? };
        let c_name = c_name(name)?;
        let call = if is_input { ort::api().BindInput } else { ort::api().BindOutput };
        // SAFETY: the binding, the name and the value are valid; `self` keeps the value and its memory alive.
        check(unsafe { call(self.inner.ptr().cast_mut(), c_name.as_ptr(), value.ptr()) })?;
        let name = name.to_owned();
        self.bound.push(Bound { name, is_input, addresses, _value: value, _buffer: buffer.clone() });
        self.unbound_inputs = self.ports.inputs.len() - self.bound.iter().filter(|bound| bound.is_input).count();
        Ok(())
    }

    /// Whether `session` can run over this binding.
    pub(super) fn ready(&self, session: *const sys::OrtSession) -> Result<()> {
        if self.session != session {
            crate::bail!("a binding of another session was run");
        }
        if self.unbound_inputs > 0 {
            let is_bound = |port: &&Port| self.bound.iter().any(|bound| bound.is_input && bound.name == port.name);
            let missing = self.ports.inputs.iter().find(|port| !is_bound(port)).map_or("", |port| &port.name);
            crate::bail!("input `{missing}` is not bound");
        }
        Ok(())
    }

    pub(super) fn ptr(&self) -> *const sys::OrtIoBinding {
        self.inner.ptr()
    }

    /// The options to run with, or null.
    pub(super) fn options(&self) -> *const sys::OrtRunOptions {
        self.options.as_ref().map_or(std::ptr::null(), RunOptions::ptr)
    }
}

fn port<'a>(ports: &'a [Port], kind: &str, name: &str) -> Result<&'a Port> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        Error::new(format!("there is no {kind} `{name}`")).hint(format!("the {kind}s are {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{engine, sum_model};
    use super::super::{Layout, Memory};
    use super::*;
    use crate::ir::DType;

    /// `c = a + b` over views of flat buffers, with two bindings that trade places.
    #[test]
    fn views_at_offsets_are_read_and_written_in_place() -> Result<()> {
        let engine = engine();
        let mut session = engine.compile_model(&sum_model(&[2, 3])?)?;
        let memory = Memory::new(&engine)?;
        let shape: &[usize] = &[2, 3];
        let layout = Layout::new([&[5][..], shape, shape]);
        let flat = [memory.zeros(layout.len() * 4)?, memory.zeros(layout.len() * 4)?];
        let b = memory.zeros(24)?;
        let ((first, ty), (second, _)) = (layout.view(1), layout.view(2));
        let bind = |from: &Buffer, to: &Buffer| -> Result<Binding> {
            let mut binding = session.binding()?;
            binding.input("a", from, first, &ty)?;
            binding.input("b", &b, 0, &ty)?;
            binding.output("c", to, second, &ty)?;
            Ok(binding)
        };
        let bindings = [bind(&flat[0], &flat[1])?, bind(&flat[1], &flat[0])?];
        layout.write(&flat[0], [vec![9.0; 5], vec![1.0; 6], vec![7.0; 6]])?;
        layout.write(&flat[1], [vec![8.0; 5], vec![2.0; 6], vec![7.0; 6]])?;
        b.write_f32(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])?;
        session.run_bound(&bindings[0])?;
        let sum = |start: f32| (0..6).map(|i| start + i as f32).collect::<Vec<_>>();
        // Only the view is written: neighbours and gaps keep what they had.
        assert_eq!(layout.read(&flat[1])?, [vec![8.0; 5], vec![2.0; 6], sum(1.0)]);
        let whole = flat[1].read_f32(layout.len())?;
        assert!([5..64, 70..128, 134..192].into_iter().all(|gap| whole[gap].iter().all(|v| *v == 0.0)));
        session.run_bound(&bindings[1])?;
        assert_eq!(layout.read(&flat[0])?, [vec![9.0; 5], vec![1.0; 6], sum(2.0)]);
        // What is written into a bound buffer later is what the next run reads.
        b.write_f32(&[0.5; 6])?;
        session.run_bound(&bindings[0])?;
        assert_eq!(layout.read(&flat[1])?[2], vec![1.5; 6]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_bound_or_run_is_an_error_that_names_it() -> Result<()> {
        let engine = engine();
        let mut session = engine.compile_model(&sum_model(&[4])?)?;
        let buffer = Memory::new(&engine)?.zeros(1024)?;
        let ty = Type::new(DType::F32, &[4]);
        let mut binding = session.binding()?;
        let bad = |result: Result<()>| result.expect_err("is refused").to_string();
        assert_eq!(bad(binding.input("x", &buffer, 0, &ty)), "there is no input `x`");
        assert_eq!(bad(binding.output("a", &buffer, 0, &ty)), "there is no output `a`");
        assert_eq!(
            bad(binding.input("a", &buffer, 0, &Type::new(DType::F32, &[2, 2]))),
            "`a` is f32 [4], not f32 [2, 2]"
        );
        assert_eq!(bad(binding.output("c", &buffer, 0, &Type::new(DType::I32, &[4]))), "`c` is f32 [4], not i32 [4]");
        assert!(bad(binding.input("a", &buffer, 1016, &ty)).contains("do not fit"));
        assert!(bad(binding.input("a", &buffer, 2, &ty)).contains("not aligned"));
        binding.input("a", &buffer, 0, &ty)?;
        assert!(bad(binding.output("c", &buffer, 8, &ty)).contains("lies across `a`"));
        binding.output("c", &buffer, 16, &ty)?;
        assert!(bad(binding.input("b", &buffer, 20, &ty)).contains("lies across `c`"));
        assert_eq!(bad(session.run_bound(&binding)), "input `b` is not bound");
        binding.input("b", &buffer, 0, &ty)?;
        session.run_bound(&binding)?;
        let mut twin = engine.compile_model(&sum_model(&[4])?)?;
        assert!(bad(twin.run_bound(&binding)).contains("another session"));
        Ok(())
    }

    #[test]
    fn a_binding_outlives_its_session_and_the_callers_buffers() -> Result<()> {
        let engine = engine();
        let ty = Type::new(DType::F32, &[4]);
        let result = Memory::new(&engine)?.zeros(16)?;
        let binding = {
            let session = engine.compile_model(&sum_model(&[4])?)?;
            let buffer = Memory::new(&engine)?.zeros(16)?;
            let mut binding = session.binding()?;
            binding.input("a", &buffer, 0, &ty)?;
            binding.input("b", &buffer, 0, &ty)?;
            binding.output("c", &result, 0, &ty)?;
            binding
        };
        drop(binding);
        assert_eq!(result.read_f32(4)?, [0.0; 4]);
        Ok(())
    }
}
