//! Whether there are data where a spec says, and what lies there instead.

use super::Spec;
use super::spec::guess;
use crate::error::{Error, Result};
use crate::files::{entries, folder_of, missing};
use crate::wording::list;
use std::path::{Path, PathBuf};

/// Folders that data sets unpack into are looked for so far down.
const DEPTH: usize = 3;

/// Checks that the path is there, and a file or folder as the format wants it.
///
/// # Errors
/// Says what lies there, or in the nearest folder that exists.
pub(super) fn check(spec: &Spec) -> Result<()> {
    let path = spec.path();
    if !path.exists() {
        return Err(missing(path));
    }
    let wants_folder = matches!(spec, Spec::Cifar10(_) | Spec::Cifar100(_) | Spec::Idx(_) | Spec::Images(_));
    if wants_folder && !path.is_dir() {
        let folder = folder_of(path).display().to_string();
        let other = || guess(path).map(|f| format!("did you mean {f}:{}?", path.display()));
        let own = || format!("give the folder, such as {}:{folder}", spec.format());
        let hint = unpack(path).or_else(other).unwrap_or_else(own);
        return Err(Error::new(format!("a folder is expected for {}:, but this is a file", spec.format()))
            .in_file(path)
            .hint(hint));
    }
    if matches!(spec, Spec::Npz(_)) && path.is_dir() {
        let files: Vec<String> = entries(path).into_iter().filter(|n| n.ends_with(".npz")).collect();
        let hint = if files.is_empty() {
            "give the .npz file itself; a folder of images is images:DIR".to_owned()
        } else {
            format!("give one of its files: {}", list(&files))
        };
        return Err(Error::new("a file is expected for npz:, but this is a folder").in_file(path).hint(hint));
    }
    Ok(())
}

/// How an archive becomes a folder.
pub(super) fn unpack(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_string_lossy().to_lowercase();
    let shown = file.display();
    let tar = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"].iter().any(|end| name.ends_with(end));
    if tar {
        return Some(format!("unpack the archive (tar -xf {shown}) and give the folder that comes of it"));
    }
    name.ends_with(".zip").then(|| format!("unpack the archive (unzip {shown}) and give the folder that comes of it"))
}

/// An archive in a folder, which somebody forgot to unpack.
pub(super) fn packed(dir: &Path) -> Option<String> {
    entries(dir).into_iter().find_map(|name| unpack(&dir.join(name)))
}

/// A folder below `dir` that holds `file`.
pub(super) fn below(dir: &Path, file: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut level = vec![dir.to_path_buf()];
    for _ in 0..DEPTH {
        let folders = level.iter().flat_map(|d| entries(d).into_iter().map(|n| d.join(n)));
        level = folders.filter(|p| p.is_dir()).collect();
        if let Some(found) = level.iter().find(|d| entries(d).iter().any(|n| file(n))) {
            return Some(found.clone());
        }
    }
    None
}
