//! Quotes the words of a command line for the option `command`, which supervisord splits into the same
//! words.

use std::borrow::Cow;

/// Joins `words` to the value of the option `command`. supervisord expands `%` in it first
/// (`supervisor/options.py`, `processes_from_section`), then splits it by Python's `shlex.split`
/// (`supervisor/process.py`, `get_execv_args`).
pub fn command(words: &[String]) -> String {
    let quoted: Vec<Cow<'_, str>> = words.iter().map(|word| quote(word)).collect();
    quoted.join(" ").replace('%', "%%")
}

/// One word, in single quotes where `shlex` would change it. `shlex` takes everything inside single
/// quotes literally, except the single quote, which stands outside of them.
fn quote(word: &str) -> Cow<'_, str> {
    if !word.is_empty() && word.bytes().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r#"'"'"'"#)))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_shlex_would_change_them() {
        for (words, expected) in [
            (&["/bin/api", "--port=80"][..], "/bin/api --port=80"),
            (&["a b"], "'a b'"),
            (&[""], "''"),
            (&["it's"], r#"'it'"'"'s'"#),
            (&["100%", "%(here)s"], "100%% '%%(here)s'"),
            (&["a\"b\\c", "#x", ";y"], "'a\"b\\c' '#x' ';y'"),
            (&["é"], "'é'"),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(command(&words), expected);
        }
    }
}
