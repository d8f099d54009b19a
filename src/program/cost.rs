//! How long commands and environments keep the daemon busy, which serves nobody meanwhile.
//!
//! The daemon takes both apart with Python's `shlex`, the environment of each process when it reads
//! the section, the command each time that it starts the process. `shlex` takes 0.3 µs for each
//! character (measured with Python 3.11 on a 2-core machine), and it puts a word together character by
//! character, which costs the square of the word's length: 0.2 s for 128 KiB, 0.8 s for 256 KiB.

use super::{Program, Refusal};

/// Linux runs no program with a longer word or variable (execve(2), `MAX_ARG_STRLEN`, with its NUL).
const MAX_WORD: usize = 128 * 1024 - 1;
/// More of both together is refused.
const MAX_TEXT: usize = 256 * 1024;
/// All processes of a program together may take the daemon about a second.
const MAX_PICOSECONDS: u64 = 1_000_000_000_000;
/// For each character.
const LINEAR: u64 = 300_000;
/// For each character of a word, times the word's length.
const SQUARE: u64 = 10;

/// Checks a program that a client sent. One that is read back was checked when it came.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    let number = program.numprocs_start;
    let text = |option: &str| {
        let known = program.expanded(option, number);
        known.or_else(|| program.text(option).map(str::to_owned))
    };
    let mut total = 0;
    let mut cost: u64 = 0;
    for (option, ends) in [("command", " \t\r\n"), ("environment", " \t\r\n,")] {
        let text = text(option).unwrap_or_default();
        total += text.len();
        if total > MAX_TEXT {
            let reason = "command and environment have more than 256 KiB together, which keeps \
                          supervisord busy for too long: write long values to a file";
            return Err(Refusal::option(option, reason));
        }
        let words = words(&text, ends);
        if words.iter().any(|word| *word > MAX_WORD) {
            let reason = "has a word of 128 KiB or more, with which Linux runs no program: write it \
                          to a file";
            return Err(Refusal::option(option, reason));
        }
        cost += picoseconds(&words);
    }
    if cost.saturating_mul(program.numprocs.into()) > MAX_PICOSECONDS {
        let reason = format!(
            "command and environment of {} processes would keep supervisord busy for more than a \
             second: write long values to a file",
            program.numprocs
        );
        Err(Refusal::Ours(reason.into()))
    } else {
        Ok(())
    }
}

fn picoseconds(words: &[usize]) -> u64 {
    let cost = |word: &usize| {
        let length = *word as u64;
        LINEAR * length + SQUARE * length * length
    };
    words.iter().map(cost).sum()
}

/// The lengths in bytes of the words, quotes included, as `shlex` finds them; `ends` end one outside
/// of quotes.
fn words(text: &str, ends: &str) -> Vec<usize> {
    let mut words = Vec::new();
    let (mut length, mut quote, mut escaped) = (0, None, false);
    for c in text.chars() {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', None | Some('"')) => escaped = true,
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if ends.contains(c) => {
                words.push(length);
                length = 0;
                continue;
            }
            _ => {}
        }
        length += c.len_utf8();
    }
    words.push(length);
    words.retain(|length| *length > 0);
    words
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    #[test]
    fn words_are_found_as_shlex_finds_them() {
        let table: [(&str, &[usize]); 7] = [
            ("", &[]),
            ("a bc", &[1, 2]),
            ("a 'b c' d", &[1, 5, 1]),
            (r#"a"b 'c"d e"#, &[8, 1]),
            (r"a\ b c", &[4, 1]),
            (r#""a\" b" c"#, &[7, 1]),
            ("'a\\' b", &[4, 1]),
        ];
        for (text, expected) in table {
            assert_eq!(words(text, " "), expected, "{text}");
        }
        assert_eq!(words(r#"A="b, c",D=e"#, ","), [8, 3]);
    }

    #[test]
    fn what_keeps_the_daemon_busy_is_refused() {
        let word = |length: usize| "x".repeat(length);
        let eight = vec![word(120 * 1024); 8].join(" ");
        let short = vec![word(1000); 200].join(" ");
        let quoted = format!("A=\"{}\"", word(MAX_WORD));
        let table: [(&[(&str, &str)], &str); 8] = [
            (&[("command", &short)], ""),
            (&[("command", &word(MAX_WORD))], ""),
            (&[("command", &word(MAX_WORD + 1))], "a word of 128 KiB"),
            (&[("command", &eight)], "more than 256 KiB together"),
            (
                &[("command", "x"), ("environment", &quoted)],
                "a word of 128 KiB",
            ),
            (
                &[
                    ("command", &short),
                    ("environment", &format!("A=\"{short}\"")),
                ],
                "more than 256 KiB together",
            ),
            (
                &[
                    ("command", &word(60_000)),
                    ("numprocs", "100"),
                    ("process_name", "%(process_num)d"),
                ],
                "of 100 processes",
            ),
            (
                &[
                    ("command", &word(500)),
                    ("numprocs", "1000"),
                    ("process_name", "%(process_num)d"),
                ],
                "",
            ),
        ];
        for (options, expected) in table {
            let refused = parse(options).err().unwrap_or_default();
            let fits = refused.contains(expected) && refused.is_empty() == expected.is_empty();
            assert!(fits, "{expected}: {refused}");
        }
    }
}
