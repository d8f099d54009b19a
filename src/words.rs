//! Finds the word that a user most likely intended.

/// Returns the known word with the smallest edit distance to `word`, ignoring case, or `None` if the
/// distance is more than a quarter of the known word's letters.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distances = known
        .into_iter()
        .map(|known| (strsim::levenshtein(&word, &known.to_lowercase()), known));
    let (distance, best) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + best.len() / 4).then_some(best)
}

/// Returns whether `word` is a misspelling of `expected`: they differ in one or two letters, in case, or in
/// the spaces around them.
pub fn is_misspelt(word: &str, expected: &str) -> bool {
    let plain = word.trim().to_lowercase();
    word != expected && strsim::damerau_levenshtein(&plain, &expected.to_lowercase()) <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_if_there_is_one() {
        let known = [
            "listen",
            "include_dir",
            "log_level",
            "whitelist",
            "addGroup",
        ];
        for (word, expected) in [
            ("listn", Some("listen")),
            ("include-dir", Some("include_dir")),
            ("loglevel", Some("log_level")),
            ("white_list", Some("whitelist")),
            ("ADDGROUP", Some("addGroup")),
            ("colour", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn a_misspelt_word_differs_in_one_or_two_letters() {
        for (word, expected) in [
            ("twidler", true),
            ("Twiddler", true),
            ("twiddler ", true),
            ("twidlder", true),
            ("twiddler", false),
            ("twist", false),
            ("supervisord", false),
        ] {
            assert_eq!(is_misspelt(word, "twiddler"), expected, "{word}");
        }
    }
}
