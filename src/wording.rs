//! Parts of what people read: counted nouns, short lists, and the known name that an unknown one is nearest to.

/// More names than this are cut off in a list.
const SHOWN: usize = 8;

/// `1 class`, `3 classes`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 {
        return format!("1 {noun}");
    }
    let es = ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    format!("{n} {noun}{}", if es { "es" } else { "s" })
}

/// `a, b, c`; of many the first ones, and how many more there are.
pub fn list<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The one of `known` that was most likely meant by `name`: the same but for case, or else the one with the fewest typing errors,
/// when these are at most a third of its letters.
pub fn nearest<'a, T: AsRef<str>>(name: &str, known: &'a [T]) -> Option<&'a str> {
    let (name, known) = (name.to_lowercase(), known.iter().map(AsRef::as_ref));
    let scored = known.map(|k| (distance(&name, &k.to_lowercase()), k));
    let close = scored.filter(|(d, k)| *d <= k.chars().count().max(name.chars().count()) / 3);
    close.min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// Letters to insert, remove, replace or swap with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!(count(1, "class"), "1 class");
        assert_eq!(count(0, "class"), "0 classes");
        assert_eq!(count(2, "image"), "2 images");
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list(&["a", "b"]), "a, b");
        assert_eq!(list(&["x"; 10]), "x, x, x, x, x, x, x, x and 2 more");
    }

    #[test]
    fn typing_errors_are_seen_through() {
        let known = ["images", "idx", "npz", "cifar10", "cifar100"];
        for (typed, meant) in [("image", "images"), ("IMAGES", "images"), ("cifra10", "cifar10"), ("npy", "npz")] {
            assert_eq!(nearest(typed, &known), Some(meant), "{typed}");
        }
        assert_eq!(nearest("parquet", &known), None);
        assert_eq!(nearest("Cat", &["bat", "cat"]), Some("cat"));
    }
}
