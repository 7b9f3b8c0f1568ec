//! Loads what the CUDA provider needs from the Python packages beside the ONNX Runtime library.
//!
//! `pip install "onnxruntime-gpu[cuda,cudnn]"` puts CUDA's libraries into `site-packages/nvidia`, where the dynamic loader does
//! not look. A library that is loaded already is not looked for again.

use super::super::find::entries;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Starts of the names of the libraries, each after what it needs itself.
const NEEDED: [&str; 9] = [
    "libcudart.so.",
    "libnvJitLink.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libnvrtc.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn.so.",
    "libcudnn_",
];

/// Loads CUDA's libraries for the ONNX Runtime at `runtime`, once. What is not there the provider will name.
pub fn preload(runtime: &Path) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for library in packaged(runtime) {
            load(&library);
        }
    });
}

/// CUDA's libraries in the packages beside `site-packages/onnxruntime/capi/libonnxruntime.so`, in the order of loading.
fn packaged(runtime: &Path) -> Vec<PathBuf> {
    let Some(packages) = runtime.ancestors().nth(3) else { return Vec::new() };
    let folders = entries(&packages.join("nvidia"));
    let mut files: Vec<PathBuf> = folders.iter().flat_map(|folder| entries(&folder.join("lib"))).collect();
    files.sort();
    let named = |start: &'static str| {
        let starts = move |file: &&PathBuf| {
            let name = file.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(start) && name.contains(".so."))
        };
        files.iter().filter(starts).cloned().collect::<Vec<_>>()
    };
    NEEDED.into_iter().flat_map(named).collect()
}

#[cfg(unix)]
fn load(library: &Path) {
    use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
    // SAFETY: NVIDIA's libraries are made to be loaded; they stay loaded for good, as the provider's own would.
    if let Ok(loaded) = unsafe { Library::open(Some(library), RTLD_LAZY | RTLD_LOCAL) } {
        std::mem::forget(loaded);
    }
}

/// On Windows the provider's own search serves.
#[cfg(not(unix))]
fn load(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaged_libraries_come_after_what_they_need() -> std::io::Result<()> {
        let packages = tempfile::tempdir()?;
        let place = |name: &str| packages.path().join("nvidia").join(name);
        for name in ["cudnn/lib/libcudnn_ops.so.9", "cudnn/lib/libcudnn.so.9", "cu13/lib/libcublas.so.13"] {
            std::fs::create_dir_all(place(name).parent().unwrap_or(Path::new("")))?;
            std::fs::write(place(name), "")?;
        }
        std::fs::write(place("cu13/lib/libcudart.so.13"), "")?;
        std::fs::write(place("cu13/lib/libcudart_static.a"), "")?;
        let found = packaged(&packages.path().join("onnxruntime/capi/libonnxruntime.so.1"));
        let expected = [
            "cu13/lib/libcudart.so.13",
            "cu13/lib/libcublas.so.13",
            "cudnn/lib/libcudnn.so.9",
            "cudnn/lib/libcudnn_ops.so.9",
        ];
        assert_eq!(found, expected.map(place));
        assert!(packaged(Path::new("libonnxruntime.so")).is_empty());
        Ok(())
    }
}
