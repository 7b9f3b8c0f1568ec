//! What a file is by its first bytes, whatever its name says.

/// The formats that are decoded.
const IMAGES: [&[u8]; 2] = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"];

/// First bytes of files that turn up among images, and what to call them.
const OTHERS: [(&[u8], &str); 21] = [
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\x01\0", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"8BPS", "a Photoshop file"),
    (b"P2\n", "a PGM"),
    (b"P3\n", "a PPM"),
    (b"P5\n", "a PGM"),
    (b"P6\n", "a PPM"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<?xml", "an XML file"),
    (b"version https://git-lfs", "a pointer of Git LFS (`git lfs pull` fetches the image)"),
];

/// Whether these first bytes are those of a JPEG or PNG.
pub(super) fn is_image(head: &[u8]) -> bool {
    IMAGES.iter().any(|start| head.starts_with(start))
}

/// Names what these first bytes, of neither JPEG nor PNG, are those of.
pub(super) fn name(head: &[u8]) -> &'static str {
    let is = |at: usize, word: &[u8]| head.get(at..).is_some_and(|h| h.starts_with(word));
    let start = String::from_utf8_lossy(&head[..head.len().min(64)]).trim_start().to_lowercase();
    if is(0, b"RIFF") && is(8, b"WEBP") {
        return "a WebP";
    }
    if is(4, b"ftypavif") {
        return "an AVIF";
    }
    if is(4, b"ftyphei") || is(4, b"ftypmif1") {
        return "a HEIC";
    }
    if start.starts_with("<!doctype html") || start.starts_with("<html") {
        return "an HTML page, as failed downloads leave it";
    }
    if let Some((_, name)) = OTHERS.iter().find(|(bytes, _)| is(0, bytes)) {
        return name;
    }
    let text = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace() || *b >= 0x80;
    if head.iter().all(text) && std::str::from_utf8(&head[..head.len().min(64)]).is_ok() {
        "text"
    } else {
        "no known image format"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_files_have_names() {
        assert!(is_image(b"\xff\xd8\xff\xe0rest") && is_image(b"\x89PNG\r\n\x1a\nrest") && !is_image(b"GIF89a"));
        let cases: [(&[u8], &str); 7] = [
            (b"GIF89a\x01\0", "a GIF"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP"),
            (b"\0\0\0\x20ftypheic", "a HEIC"),
            (b"  <!DOCTYPE html><html>", "an HTML page"),
            (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
            (b"hello", "text"),
            (b"\x01\x02\x03", "no known image format"),
        ];
        for (head, want) in cases {
            assert!(name(head).starts_with(want), "{want}: {}", name(head));
        }
    }
}
