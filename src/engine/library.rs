//! Finds and loads ONNX Runtime, once per process.
//!
//! A library is looked at before `ort` gets it: a missing, foreign or too old one is an error that says so.

use super::find::{Places, libraries_in};
use super::ort_error;
use crate::error::{Error, Result};
use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The version the set-up fetches.
pub const FETCHED_VERSION: &str = "1.32.0";
/// Oldest version that works, 1.23. The interface used is that of 1.22, but sessions let ONNX Runtime choose among the
/// devices it discovers, and 1.22 discovers none on Linux, not even the CPU.
pub const OLDEST_MINOR: u32 = 23;

/// The loaded ONNX Runtime.
#[derive(Debug)]
pub struct Runtime {
    /// The library, as it was found; a bare name when the system's loader found it.
    pub path: PathBuf,
    /// Its version, such as `1.32.0`.
    pub version: String,
    /// Execution providers it was built with, such as `CPUExecutionProvider`.
    pub providers: Vec<String>,
    /// Threads of the pool that sessions share.
    pub threads: usize,
    /// Libraries that came earlier in the search and could not be used.
    pub skipped: Vec<Error>,
    environment: Environment,
}

impl Runtime {
    /// Whether the library was built for CUDA; that a device can be used shows only when a session is made on it.
    pub fn has_cuda(&self) -> bool {
        self.providers.iter().any(|name| name == "CUDAExecutionProvider")
    }

    /// The process-wide environment sessions are made in.
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());
/// What ONNX Runtime logged as an error and nobody has asked for yet; see [`take_log`].
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Loads ONNX Runtime with a pool of as many threads as the process may use; see [`load_with`].
///
/// # Errors
/// See [`load_with`].
pub fn load(path: Option<&Path>) -> Result<&'static Runtime> {
    load_with(path, None)
}

/// Loads ONNX Runtime from `path`, else from `ORT_DYLIB_PATH`, else from where [the set-up](FETCHED_VERSION), a Python
/// package or the system keeps one, and gives sessions a shared pool of `threads` threads.
///
/// A library that was named is the one that is used or the error; in the search, unusable ones are passed over and
/// listed in [`Runtime::skipped`]. Later calls return what the first one loaded.
///
/// # Errors
/// When there is no library, it is not an ONNX Runtime, it is older than 1.23, or another one is loaded already.
pub fn load_with(path: Option<&Path>, threads: Option<usize>) -> Result<&'static Runtime> {
    let _one_at_a_time = lock(&LOADING);
    if let Some(runtime) = RUNTIME.get() {
        if let Some(path) = path.filter(|path| !same_file(path, &runtime.path)) {
            let cause = format!("another ONNX Runtime is loaded already, {}", runtime.path.display());
            return Err(Error::new(cause).in_file(path));
        }
        return Ok(runtime);
    }
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty()).map(PathBuf::from);
    let (path, version, skipped) = match path.map(Path::to_path_buf).or(named) {
        Some(path) => {
            let path = library_at(&path)?;
            let version = inspect(&path)?;
            (path, version, Vec::new())
        }
        None => search()?,
    };
    let runtime = start(path, version, threads, skipped)?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Messages ONNX Runtime logged as errors since the last call, oldest first.
///
/// Some reasons, such as a library that CUDA needs and that is missing, are only ever logged.
pub(super) fn take_log() -> Vec<String> {
    std::mem::take(&mut *lock(&LOG))
}

/// Threads this process may use, as the system and its limits say.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn same_file(path: &Path, loaded: &Path) -> bool {
    let real =
        |path: &Path| library_at(path).and_then(|path| path.canonicalize().map_err(|e| Error::new(e.to_string())));
    path == loaded || matches!((real(path), real(loaded)), (Ok(a), Ok(b)) if a == b)
}

fn install_hint() -> String {
    format!(
        "run `make setup`, or `pip install onnxruntime=={FETCHED_VERSION}`, or name a library of version 1.{OLDEST_MINOR} or \
         newer with `--ort PATH` or ORT_DYLIB_PATH"
    )
}

/// The library a user means by `path`: a file, a folder with one in it, or a bare name for the system's loader.
fn library_at(path: &Path) -> Result<PathBuf> {
    let bare = path.components().count() == 1 && path.is_relative() && path.parent() == Some(Path::new(""));
    if path.is_file() {
        // The dynamic loader takes a name without a folder for a name to look up.
        return Ok(if bare { Path::new(".").join(path) } else { path.to_path_buf() });
    }
    if path.is_dir() {
        let inside = [path.to_path_buf(), path.join("lib"), path.join("capi")];
        let found = inside.iter().flat_map(|folder| libraries_in(folder)).next();
        return found
            .ok_or_else(|| Error::new("no ONNX Runtime library in this folder").in_file(path).hint(install_hint()));
    }
    if bare {
        return Ok(path.to_path_buf());
    }
    Err(Error::new("no such file; an ONNX Runtime library was expected").in_file(path).hint(install_hint()))
}

/// The first usable library of the usual places, its version, and why earlier ones were passed over.
fn search() -> Result<(PathBuf, String, Vec<Error>)> {
    let mut skipped = Vec::new();
    for path in Places::of_process().libraries() {
        match inspect(&path) {
            Ok(version) => return Ok((path, version, skipped)),
            Err(error) => skipped.push(error),
        }
    }
    // The last place is the system's name for it, whose absence says nothing.
    skipped.pop();
    let found = skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let cause = if found.is_empty() { String::new() } else { format!(" that can be used ({found})") };
    Err(Error::new(format!("no ONNX Runtime library found{cause}")).hint(install_hint()))
}

/// Opens a library, makes sure that it is an ONNX Runtime that is new enough, and returns its version.
fn inspect(path: &Path) -> Result<String> {
    let fail = |cause: String| Error::new(cause).in_file(path).hint(install_hint());
    // SAFETY: loading runs the library's initializers; the user or the search named this file as a library to load.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| fail(reason(path, &error)))?;
    let foreign = || fail("not an ONNX Runtime library: it has no usable `OrtGetApiBase`".to_owned());
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: the signature is the one that every ONNX Runtime has exported under this name.
    let get_base = unsafe { library.get::<GetApiBase>(b"OrtGetApiBase\0") }.map_err(|_| foreign())?;
    // SAFETY: a function without arguments that returns a pointer to a static table, or null.
    let base = unsafe { get_base().as_ref() }.ok_or_else(foreign)?;
    // SAFETY: the table's entries are set in every release.
    let version: *const c_char = unsafe { (base.GetVersionString)() };
    if version.is_null() {
        return Err(foreign());
    }
    // SAFETY: a static string that ends with a zero, and the library is still open.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next().flatten(), parts.next().flatten());
    if major != Some(1) || minor.is_none() {
        return Err(fail(format!(
            "ONNX Runtime `{version}` is of an unknown version; 1.{OLDEST_MINOR} or newer is needed"
        )));
    }
    // Asked for an interface it lacks, an old library prints to the terminal; so the version is compared first.
    if minor < Some(OLDEST_MINOR) {
        return Err(fail(format!("ONNX Runtime {version} is too old; 1.{OLDEST_MINOR} or newer is needed")));
    }
    // SAFETY: as above; an interface that does not exist is null.
    if unsafe { (base.GetApi)(ort::MINOR_VERSION) }.is_null() {
        return Err(fail(format!("ONNX Runtime {version} does not offer the interface of 1.{}", ort::MINOR_VERSION)));
    }
    Ok(version)
}

/// The loader's own words, without the file's name that the error carries already.
fn reason(path: &Path, error: &libloading::Error) -> String {
    use std::error::Error as _;
    let words = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let words = words.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&words);
    format!("cannot be loaded as a library: {words}")
}

/// Hands the inspected library to `ort` and sets up the environment all sessions share.
fn start(path: PathBuf, version: String, threads: Option<usize>, skipped: Vec<Error>) -> Result<Runtime> {
    let threads = threads.unwrap_or_else(available_threads).max(1);
    // A path with folders is not looked up beside the executable.
    let absolute =
        if path.is_file() { std::path::absolute(&path).unwrap_or_else(|_| path.clone()) } else { path.clone() };
    let builder = ort::init_from(&absolute).map_err(|error| Error::new(error.to_string()).in_file(&path))?;
    // One pool for all sessions: with a pool each, the threads of the last session still spin while the next one runs.
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|pool| pool.with_inter_threads(1))
        .and_then(|pool| pool.with_spin_control(true))
        .map_err(ort_error)?;
    let mut builder = builder.with_name("bisam").with_telemetry(false).with_global_thread_pool(pool);
    let user_wants_log = std::env::var_os("ORT_LOG").is_some();
    if !user_wants_log {
        builder = builder.with_logger(Arc::new(|level, _: &str, _: &str, _: &str, message: &str| keep(level, message)));
    }
    let environment = builder.build().map_err(|error| ort_error(error).in_file(&path))?;
    if !user_wants_log {
        environment.set_log_level(LogLevel::Error);
    }
    super::heap::register(&environment).or_else(|_| share_arena(&environment))?;
    Ok(Runtime { path, version, providers: providers()?, threads, skipped, environment })
}

/// One of ONNX Runtime's arenas for the host tensors of all sessions, where [`heap`](super::heap) is not to be had: they run one after the
/// other, and each would keep its own peak.
fn share_arena(environment: &Environment) -> Result<()> {
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default);
    let info = info.map_err(ort_error)?;
    let (default, mut config) = (-1, std::ptr::null_mut());
    // SAFETY: the out-parameter is valid; 0 is no limit, and the others are the runtime's own choices.
    super::value::check(unsafe { (ort::api().CreateArenaCfg)(0, default, default, default, &mut config) })?;
    // SAFETY: the pointers are valid through the call, which copies what it needs.
    let made = unsafe {
        (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), info.ptr(), config.cast_const())
    };
    // SAFETY: made above and not used again.
    unsafe { (ort::api().ReleaseArenaCfg)(config) };
    super::value::check(made)
}

/// Keeps an error message of ONNX Runtime for [`take_log`]; only the newest few.
fn keep(level: LogLevel, message: &str) {
    if level >= LogLevel::Error {
        let mut log = lock(&LOG);
        if log.len() >= 16 {
            log.remove(0);
        }
        log.push(message.trim().to_owned());
    }
}

fn providers() -> Result<Vec<String>> {
    let (mut names, mut count) = (std::ptr::null_mut::<*mut c_char>(), 0);
    // SAFETY: the out-parameters are valid; on success they describe an array of `count` strings.
    super::value::check(unsafe { (ort::api().GetAvailableProviders)(&mut names, &mut count) })?;
    let all = (0..usize::try_from(count).unwrap_or(0))
        // SAFETY: `names` has `count` entries, each a string that ends with a zero, until they are released below.
        .map(|i| unsafe { CStr::from_ptr(*names.add(i)) }.to_string_lossy().into_owned())
        .collect();
    // SAFETY: the array came from `GetAvailableProviders` and is not used again.
    super::value::check(unsafe { (ort::api().ReleaseAvailableProviders)(names, count) })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_twice_gives_the_same_runtime_and_another_path_is_refused() {
        let first = load(None).expect("run `make setup` first");
        let again = load(Some(&first.path)).expect("the same path");
        assert!(std::ptr::eq(first, again));
        assert!(first.version.starts_with("1."));
        assert!(first.providers.iter().any(|name| name == "CPUExecutionProvider"));
        let other = load(Some(Path::new("/elsewhere/libonnxruntime.so"))).expect_err("another library");
        assert!(other.to_string().contains("loaded already"), "{other}");
    }

    #[test]
    fn a_missing_library_says_what_to_do() {
        let error = library_at(Path::new("/nowhere/libonnxruntime.so")).expect_err("missing");
        assert!(error.to_string().starts_with("/nowhere/libonnxruntime.so: no such file"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("make setup")));
    }
}
