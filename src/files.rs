//! Files and folders of the user: written whole or not at all, and what lies where one is missing.

use crate::error::{Error, IoContext, Result};
use crate::wording::{list, nearest};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it. A link stays, and what it leads to is replaced;
/// a device or pipe, such as `/dev/null`, is written to.
///
/// # Errors
/// An I/O error; `path` is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = |target: &Path| -> std::io::Result<()> {
        if fs::metadata(target).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            return fs::OpenOptions::new().write(true).open(target)?.write_all(bytes);
        }
        written_beside(target, bytes)?.persist(target).map(drop).map_err(|e| e.error)
    };
    write(&path.canonicalize().unwrap_or_else(|_| path.to_owned())).file(path)
}

/// Does all that [`write_atomically`] does but for the renaming: `path` stays as it is, and nothing is left beside it.
///
/// # Errors
/// An I/O error.
pub fn write_to_temporary(path: &Path, bytes: &[u8]) -> Result<()> {
    written_beside(path, bytes).map(drop).file(path)
}

/// A temporary file beside `target` that holds `bytes`, synced.
fn written_beside(target: &Path, bytes: &[u8]) -> std::io::Result<tempfile::NamedTempFile> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut options = tempfile::Builder::new();
    // As any new file: readable to whom the user's mask lets read.
    #[cfg(unix)]
    options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = options.tempfile_in(folder_of(target))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder that a file lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names in a folder, sorted, hidden ones aside; none where there is no such folder.
pub fn entries(dir: &Path) -> Vec<String> {
    let there = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = there.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

/// The error about a `path` that does not exist: the hint says what lies in the nearest folder that does, first the name that was
/// most likely meant. Of several files, those named like the one that is missing (`*.onnx`) are listed, if there are any.
pub fn missing(path: &Path) -> Error {
    let mut at = path;
    while !folder_of(at).exists() && at.parent().is_some() {
        at = folder_of(at);
    }
    let (folder, wanted) = (folder_of(at), at.file_name().unwrap_or_default().to_string_lossy());
    let there = entries(folder);
    let meant =
        nearest(&wanted, &there).map_or_else(String::new, |n| format!("did you mean {}? ", folder.join(n).display()));
    let alike =
        |name: &&String| at == path && path.extension().is_some() && Path::new(name).extension() == path.extension();
    let mut shown: Vec<&String> = there.iter().filter(alike).collect();
    if shown.is_empty() {
        shown = there.iter().collect();
    }
    let holds = if shown.is_empty() { "is empty".to_owned() } else { format!("holds: {}", list(&shown)) };
    Error::new("there is no such file or folder").in_file(path).hint(format!("{meant}{} {holds}", folder.display()))
}
