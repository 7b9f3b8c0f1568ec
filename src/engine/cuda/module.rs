//! The compiled kernels on one device.

use super::compiler::{HEAD, KERNELS};
use super::device::Device;
use super::functions::{Cudnn, Driver, Handle, Nvrtc};
use super::operators::{Args, THREADS};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels of `kernels.cu` on one device, what compiles others, and cuDNN.
pub struct Module {
    nvrtc: Nvrtc,
    capability: (i32, i32),
    driver: Driver,
    pub(super) cudnn: Arc<Cudnn>,
    module: Handle,
    functions: Mutex<BTreeMap<&'static str, usize>>,
    pub(super) number: i32,
}

// SAFETY: the driver's functions may be called from any thread, and the module is never unloaded.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Compiles, or finds, the kernels for a device and loads them there.
    ///
    /// # Errors
    /// A library that is missing, or what CUDA says.
    pub fn load(device: &Device) -> Result<Self> {
        Self::open(device, Nvrtc::load()?, Driver::load()?, Cudnn::load()?)
    }

    /// The same with open libraries.
    pub(super) fn open(device: &Device, nvrtc: Nvrtc, driver: Driver, cudnn: Cudnn) -> Result<Self> {
        let (capability, number, cudnn) = (device.capability()?, device.number(), Arc::new(cudnn));
        device.select()?;
        let (functions, module) = (Mutex::default(), ptr::null_mut());
        let mut this = Self { nvrtc, capability, driver, cudnn, module, functions, number };
        this.module = this.load_source(KERNELS)?;
        Ok(this)
    }

    /// Compiles source onto the device, where it stays.
    fn load_source(&self, source: &str) -> Result<Handle> {
        let image = super::compiler::image(&self.nvrtc, source, self.capability)?;
        let mut module = ptr::null_mut();
        // SAFETY: the image is a whole one, and the device's context is this thread's.
        let status = unsafe { (self.driver.cuModuleLoadData)(&raw mut module, image.as_ptr().cast()) };
        self.check(status, "loading kernels").map(|()| module)
    }

    /// A kernel by its source.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, source: &str, name: &str) -> Result<Handle> {
        self.find(self.load_source(&format!("{HEAD}{source}"))?, name)
    }

    fn find(&self, module: Handle, name: &str) -> Result<Handle> {
        let c_name = CString::new(name).map_err(|e| Error::new(e.to_string()))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        let status = unsafe { (self.driver.cuModuleGetFunction)(&raw mut function, module, c_name.as_ptr()) };
        self.check(status, name).map(|()| function)
    }

    fn function(&self, name: &'static str) -> Result<Handle> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(*function as Handle);
        }
        let function = self.find(self.module, name)?;
        functions.insert(name, function as usize);
        Ok(function)
    }

    pub(super) fn launch(&self, name: &'static str, blocks: [usize; 2], args: &Args, stream: Handle) -> Result<()> {
        self.start(self.function(name)?, name, blocks, args, stream)
    }

    /// Starts a kernel; `name` is for messages.
    pub(super) fn start(
        &self,
        function: Handle,
        name: &str,
        [x, y]: [usize; 2],
        args: &Args,
        stream: Handle,
    ) -> Result<()> {
        let mut pointers = [ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let threads = THREADS as u32;
        // SAFETY: every kernel takes one `Args` by value, which is copied before the call returns.
        let status = unsafe {
            (self.driver.cuLaunchKernel)(
                function,
                x as u32,
                y as u32,
                1,
                threads,
                1,
                1,
                0,
                stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check(status, name)
    }

    fn check(&self, status: i32, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: the pointer is valid for the call; the text is static, or null for an unknown number.
        let text = unsafe {
            (self.driver.cuGetErrorString)(status, &raw mut text);
            if text.is_null() { "unknown error".into() } else { std::ffi::CStr::from_ptr(text).to_string_lossy() }
        };
        Err(Error::new(format!("device cuda:{}: {what}: {text} (CUDA error {status})", self.number)))
    }
}
