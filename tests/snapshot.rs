//! Text kept in the repository and compared; `BISAM_UPDATE=1 cargo test` writes it anew.

use crate::common::repo;

/// Whether what is kept is to be written anew.
pub fn updating() -> bool {
    std::env::var_os("BISAM_UPDATE").is_some()
}

/// Compares `text` with the file at `path`, or writes it.
pub fn check(path: &str, text: &str) {
    let file = repo(path);
    if updating() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("can be made");
        return std::fs::write(&file, text).expect("can be written");
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    if kept != text {
        let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
        let line = differs.unwrap_or(kept.lines().count().min(text.lines().count()));
        let at = |t: &str| t.lines().nth(line).unwrap_or("(end)").to_owned();
        panic!(
            "{path} is not current, from line {}:\n- {}\n+ {}\nread the change, then run `BISAM_UPDATE=1 cargo test`",
            line + 1,
            at(&kept),
            at(text)
        );
    }
}
