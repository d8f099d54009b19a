//! Limits on the length of `command` and `environment`. The daemon answers no other call while it
//! parses them.
//!
//! The daemon splits both with Python's `shlex`: `environment` for each process when it reads the
//! section, `command` each time that it starts the process. `shlex` takes 0.3 µs for each
//! character (measured with Python 3.11 on a 2-core machine). It also appends each character to a
//! string, which costs the square of the word's length: 0.2 s for 128 KiB, 0.8 s for 256 KiB.

use super::{Program, Refusal};

/// The longest argument or variable in bytes with which Linux executes a program (execve(2):
/// `MAX_ARG_STRLEN` includes the terminating NUL).
const MAX_WORD: usize = 128 * 1024 - 1;
/// The largest length of `command` and `environment` together, in bytes.
const MAX_TEXT: usize = 256 * 1024;
/// The longest time that the daemon may parse both for all processes of a program: one second.
const MAX_PICOSECONDS: u64 = 1_000_000_000_000;
/// The cost of a character, in picoseconds.
const LINEAR: u64 = 300_000;
/// The cost of a character for each character of its word, in picoseconds.
const SQUARE: u64 = 10;

/// Checks a program from a client's call. A program that is read from the journal was checked when the
/// client sent it.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    let first_process = program.numprocs_start;
    let text = |option: &str| {
        let expanded = program.expand(option, first_process);
        expanded.or_else(|| program.text(option).map(str::to_owned))
    };
    let mut total = 0;
    let mut cost: u64 = 0;
    for (option, separators) in [("command", " \t\r\n"), ("environment", " \t\r\n,")] {
        let text = text(option).unwrap_or_default();
        total += text.len();
        if total > MAX_TEXT {
            let reason = "command and environment have more than 256 KiB together, which keeps \
                          supervisord busy for too long: write long values to a file";
            return Err(Refusal::option(option, reason));
        }
        let words = words(&text, separators);
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
        Err(Refusal::Proxy(reason.into()))
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

/// Returns the lengths of the words that `shlex` finds, in bytes and with their quotes. A character of
/// `separators` ends a word outside of quotes.
fn words(text: &str, separators: &str) -> Vec<usize> {
    let mut words = Vec::new();
    let (mut length, mut quote, mut escaped) = (0, None, false);
    for c in text.chars() {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', None | Some('"')) => escaped = true,
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if separators.contains(c) => {
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
    fn words_are_split_as_shlex_splits_them() {
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
    fn commands_and_environments_that_block_the_daemon_are_refused() {
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
            let error = parse(options).err().unwrap_or_default();
            let fits = error.contains(expected) && error.is_empty() == expected.is_empty();
            assert!(fits, "{expected}: {error}");
        }
    }
}
