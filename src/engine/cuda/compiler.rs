//! The kernels of `kernels.cu`, compiled by NVRTC for one kind of device.

use super::functions::{Nvrtc, Status};
use crate::error::{Error, Result};
use std::ffi::{CString, c_char};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::ptr;

/// What every source begins with.
pub const HEAD: &str = concat!(include_str!("prelude.cuh"), include_str!("args.cuh"));
/// The kernels.
pub const KERNELS: &str = concat!(include_str!("prelude.cuh"), include_str!("args.cuh"), include_str!("kernels.cu"));

/// `source` compiled for devices of compute capability `major.minor`, from an earlier run's file where there is one.
///
/// # Errors
/// What the compiler says, or when it does not know the device.
pub fn image(nvrtc: &Nvrtc, source: &str, (major, minor): (i32, i32)) -> Result<Vec<u8>> {
    let kept = kept(nvrtc, source, major, minor);
    if let Some(found) = kept.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|image| !image.is_empty()) {
        return Ok(found);
    }
    let image = compile(nvrtc, source, &format!("sm_{major}{minor}"))?;
    if let Some(path) = kept
        && let Some(folder) = path.parent()
        && std::fs::create_dir_all(folder).is_ok()
    {
        // A folder that cannot be written to costs a second at the next start, no more.
        drop(crate::files::write_atomically(&path, &image));
    }
    Ok(image)
}

/// Where the compiled kernels are kept between runs: in the user's cache, by device, compiler and source.
fn kept(nvrtc: &Nvrtc, source: &str, major: i32, minor: i32) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    let (mut of, mut version) = (0, 0);
    // SAFETY: both pointers are valid for the call.
    unsafe { (nvrtc.nvrtcVersion)(&raw mut of, &raw mut version) };
    let mut hasher = DefaultHasher::new();
    (source, of, version).hash(&mut hasher);
    Some(cache.join("bisam").join(format!("kernels-sm_{major}{minor}-{:016x}.cubin", hasher.finish())))
}

/// Compiles CUDA C for an architecture such as `sm_90`.
pub(super) fn compile(nvrtc: &Nvrtc, source: &str, architecture: &str) -> Result<Vec<u8>> {
    let text = |s: String| CString::new(s).map_err(|e| Error::new(e.to_string()));
    let (source, name) = (text(source.to_owned())?, text("kernels.cu".to_owned())?);
    let option = text(format!("--gpu-architecture={architecture}"))?;
    let options = [option.as_ptr()];
    let failed = |what: &str, status: Status| Error::new(format!("NVRTC: {what} for {architecture} failed ({status})"));
    let mut program = ptr::null_mut();
    // SAFETY: the texts end with a zero and live through the calls; buffers have the sizes that NVRTC says.
    unsafe {
        let status =
            (nvrtc.nvrtcCreateProgram)(&raw mut program, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null());
        if status != 0 {
            return Err(failed("a program", status));
        }
        let status = (nvrtc.nvrtcCompileProgram)(program, 1, options.as_ptr());
        let result = if status == 0 {
            fetch(|size| (nvrtc.nvrtcGetCUBINSize)(program, size), |out| (nvrtc.nvrtcGetCUBIN)(program, out))
                .ok_or_else(|| failed("the image", status))
        } else {
            let log =
                fetch(|n| (nvrtc.nvrtcGetProgramLogSize)(program, n), |out| (nvrtc.nvrtcGetProgramLog)(program, out));
            let log = String::from_utf8_lossy(&log.unwrap_or_default()).trim_end_matches('\0').trim().to_owned();
            Err(Error::new(format!("{}: {log}", failed("compiling", status).cause())))
        };
        (nvrtc.nvrtcDestroyProgram)(&raw mut program);
        result
    }
}

/// What a pair of functions gives: the first its size, the second its bytes.
fn fetch(size: impl Fn(*mut usize) -> Status, bytes: impl Fn(*mut c_char) -> Status) -> Option<Vec<u8>> {
    let mut n = 0;
    if size(&raw mut n) != 0 {
        return None;
    }
    let mut out = vec![0u8; n];
    (bytes(out.as_mut_ptr().cast()) == 0).then_some(out)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_source_compiles_for_every_kind_of_device() {
        let nvrtc = super::super::tests::nvrtc();
        for architecture in ["sm_75", "sm_80", "sm_90", "sm_100"] {
            let image = compile(&nvrtc, KERNELS, architecture).expect("compiles");
            assert!(image.starts_with(b"\x7fELF"), "{architecture}");
        }
        let error = compile(&nvrtc, "__global__ void f() { nonsense; }", "sm_80").expect_err("no C");
        assert!(error.to_string().contains("nonsense"), "{error}");
        assert!(compile(&nvrtc, KERNELS, "sm_1").is_err());
    }
}
