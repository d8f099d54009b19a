//! Words that nearly match: what somebody most likely meant.

/// The known word that is most like another one, if one is like it at all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distances = known
        .into_iter()
        .map(|known| (strsim::levenshtein(&word, &known.to_lowercase()), known));
    let (distance, best) = distances.min_by_key(|(distance, _)| *distance)?;
    // A quarter of the letters: more would be another word.
    (distance <= 1 + best.len() / 4).then_some(best)
}

/// Whether one word was most likely meant for another one that it is not: a letter or two differ,
/// or their case, or spaces around it.
pub fn is_misspelt(word: &str, meant: &str) -> bool {
    let plain = word.trim().to_lowercase();
    word != meant && strsim::damerau_levenshtein(&plain, &meant.to_lowercase()) <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_named_if_there_is_one() {
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
    fn a_word_is_misspelt_by_a_letter_or_two() {
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
