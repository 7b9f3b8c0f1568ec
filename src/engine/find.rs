//! Where an ONNX Runtime library may lie when nobody names one.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};

/// What the search looks at; taken from the process, or made up by a test.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Working directory.
    pub working: Option<PathBuf>,
    /// The running executable, links resolved.
    pub executable: Option<PathBuf>,
    /// Folders that hold a `lib/python3.x`, most specific first.
    pub prefixes: Vec<PathBuf>,
}

impl Places {
    /// The places around this process.
    pub fn of_process() -> Self {
        let executable = std::env::current_exe().ok().map(|exe| exe.canonicalize().unwrap_or(exe));
        Self { working: std::env::current_dir().ok(), executable, prefixes: python_prefixes() }
    }

    /// Libraries in the order they are tried: fetched by the set-up, beside the executable, of a Python package, the
    /// system's (a bare name, which the dynamic loader looks up).
    pub fn libraries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let exe_folders: Vec<&Path> = self.executable.iter().flat_map(|exe| exe.ancestors().skip(1)).collect();
        for folder in self.working.iter().map(PathBuf::as_path).chain(exe_folders.iter().copied()) {
            found.extend(libraries_in(&folder.join(".onnxruntime/lib")));
        }
        found.extend(exe_folders.first().into_iter().flat_map(|folder| libraries_in(folder)));
        for packages in self.prefixes.iter().flat_map(|prefix| package_folders(prefix)) {
            found.extend(libraries_in(&packages.join("onnxruntime/capi")));
        }
        found.push(PathBuf::from(format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")));
        let mut seen = std::collections::HashSet::new();
        found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
        found
    }
}

/// Library files of one folder, the newest version first.
pub(super) fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_library))
        .filter(|path| path.is_file())
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
    found
}

/// `libonnxruntime.so`, `libonnxruntime.so.1.32.0`, `libonnxruntime.1.32.0.dylib`, `onnxruntime.dll`; not the providers.
fn is_library(name: &str) -> bool {
    let rest = name.strip_prefix(DLL_PREFIX).and_then(|name| name.strip_prefix("onnxruntime"));
    rest.is_some_and(|rest| rest.starts_with(DLL_SUFFIX) || (rest.starts_with('.') && rest.ends_with(DLL_SUFFIX)))
}

/// The numbers in a file's name, for sorting versions.
fn numbers(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn python_prefixes() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = std::env::home_dir();
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(var).collect();
    prefixes.extend(std::env::current_dir().ok().map(|folder| folder.join(".venv")));
    // A `bin` folder of PATH with a Python in it belongs to that Python's prefix.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bins = std::env::split_paths(&path).filter(|bin| bin.join("python3").exists());
    prefixes.extend(bins.filter_map(|bin| bin.parent().map(Path::to_path_buf)));
    prefixes.extend(home.as_ref().map(|home| home.join(".local")));
    let pyenv = var("PYENV_ROOT").or_else(|| home.map(|home| home.join(".pyenv")));
    let mut versions = pyenv.map(|root| entries(&root.join("versions"))).unwrap_or_default();
    versions.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
    prefixes.extend(versions);
    prefixes.extend(["/usr/local", "/usr", "/opt/homebrew"].map(PathBuf::from));
    prefixes
}

/// `site-packages` and `dist-packages` of every Python 3 under `prefix`, the newest first.
fn package_folders(prefix: &Path) -> Vec<PathBuf> {
    let mut pythons = Vec::new();
    for lib in ["lib", "lib64"] {
        pythons.extend(entries(&prefix.join(lib)).into_iter().filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python3"))
        }));
    }
    pythons.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
    let mut folders: Vec<PathBuf> =
        pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name))).collect();
    folders.push(prefix.join("Lib/site-packages"));
    folders
}

/// Entries of a folder; none when it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
        std::fs::write(&path, b"").expect("file");
        path
    }

    #[test]
    fn the_set_up_comes_before_python_and_the_system_and_new_versions_before_old() {
        let dir = tempfile::tempdir().expect("folder");
        let root = dir.path().canonicalize().expect("path");
        let old = touch(root.join("work/.onnxruntime/lib/libonnxruntime.so.1.9.0"));
        let new = touch(root.join("work/.onnxruntime/lib/libonnxruntime.so.1.32.0"));
        touch(root.join("work/.onnxruntime/lib/libonnxruntime_providers_shared.so"));
        let above = touch(root.join("repo/.onnxruntime/lib/libonnxruntime.so"));
        let beside = touch(root.join("repo/target/release/libonnxruntime.so"));
        let python = touch(root.join("venv/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.30.0"));
        let places = Places {
            working: Some(root.join("work")),
            executable: Some(root.join("repo/target/release/bisam")),
            prefixes: vec![root.join("venv"), root.join("none")],
        };
        let system = PathBuf::from("libonnxruntime.so");
        assert_eq!(places.libraries(), [new, old, above, beside, python, system]);
    }
}
