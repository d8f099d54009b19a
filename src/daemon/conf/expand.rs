//! Expands values: Python's `%` formatting, home directories, and the `KEY=value` lists of
//! `environment`.

use nix::unistd::{Uid, User};

/// Looks up an environment variable by name.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Looks up a variable in the environment of this process.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The largest width and precision, which bounds the memory for padding.
const MAX_WIDTH: usize = 4096;

const LONE_PERCENT: &str = "a % alone stands for nothing; write %% for a percent sign";

/// The values of `%(name)s`.
pub(super) struct Variables<'a> {
    pub(super) here: String,
    pub(super) host: String,
    pub(super) environment: Vec<(String, String)>,
    pub(super) outer: &'a Environment<'a>,
}

impl Variables<'_> {
    pub(super) fn get(&self, name: &str) -> Option<String> {
        match name {
            "here" => Some(self.here.clone()),
            "host_node_name" => Some(self.host.clone()),
            _ => self.variable(name.strip_prefix("ENV_")?),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        // If `environment` sets a name twice, the later value wins.
        let pair = self.environment.iter().rev().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.clone())
            .or_else(|| (self.outer)(name))
    }

    pub(super) fn format(&self, text: &str) -> Result<String, ExpandError> {
        format(text, |name| self.get(name))
    }
}

/// Expands `text` as Python's `text % names` does (`supervisor/options.py`, `expand`). Refuses `%s`
/// without a name, for which the daemon would insert all its values.
pub(super) fn format(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut formatted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        formatted.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            formatted.push('%');
            rest = after;
            continue;
        }
        let (field, after) =
            Field::parse(after).ok_or_else(|| ExpandError::Invalid(LONE_PERCENT.to_owned()))?;
        let value = lookup(field.name).ok_or_else(|| field.unknown())?;
        formatted.push_str(&field.pad(&value));
        rest = after;
    }
    formatted.push_str(rest);
    Ok(formatted)
}

/// Why a value cannot be expanded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExpandError {
    /// An environment variable is not set in this process. The daemon may have it.
    Variable(String),
    /// The daemon cannot expand the value either, for this reason.
    Invalid(String),
}

/// A conversion `(name)s`, with optional flags, width and precision before the `s`.
struct Field<'a> {
    name: &'a str,
    left: bool,
    width: usize,
    precision: usize,
}

impl<'a> Field<'a> {
    fn parse(text: &'a str) -> Option<(Self, &'a str)> {
        let inner = text.strip_prefix('(')?;
        let end = closing(inner)?;
        let (flags, rest) = cut(&inner[end + 1..], |letter| "#0- +".contains(letter));
        let (width, rest) = cut(rest, |letter| letter.is_ascii_digit());
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(rest) => cut(rest, |letter| letter.is_ascii_digit()),
            None => ("4096", rest),
        };
        let rest = rest
            .strip_prefix(['h', 'l', 'L'])
            .unwrap_or(rest)
            .strip_prefix('s')?;
        let field = Field {
            name: &inner[..end],
            left: flags.contains('-'),
            width: amount(width)?,
            precision: amount(precision)?,
        };
        Some((field, rest))
    }

    fn pad(&self, value: &str) -> String {
        let (width, precision) = (self.width, self.precision);
        let value = if precision < MAX_WIDTH {
            value.chars().take(precision).collect()
        } else {
            value.to_owned()
        };
        if self.left {
            format!("{value:<width$}")
        } else {
            format!("{value:>width$}")
        }
    }

    fn unknown(&self) -> ExpandError {
        match self.name.strip_prefix("ENV_") {
            Some(variable) => ExpandError::Variable(variable.to_owned()),
            None => ExpandError::Invalid(format!(
                "%({})s stands for nothing here; write %(here)s, %(host_node_name)s or %(ENV_NAME)s, or %% for a percent sign",
                self.name
            )),
        }
    }
}

/// Returns the position of the parenthesis that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.char_indices().find_map(|(at, letter)| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })
}

fn cut(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|letter| !belongs(letter)).unwrap_or(text.len()))
}

fn amount(digits: &str) -> Option<usize> {
    if digits.is_empty() {
        Some(0)
    } else {
        digits.parse().ok().filter(|amount| *amount <= MAX_WIDTH)
    }
}

/// Parses the pairs of `KEY=value,KEY="value"` (`supervisor/datatypes.py`, `dict_of_key_value_pairs`).
/// Returns `None` if the daemon would refuse the text.
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    // The daemon accepts any word between two pairs, not only a comma.
    words(text)?
        .chunks(4)
        .map(|chunk| match chunk {
            [key, equals, value, ..] if equals == "=" => {
                Some((key.clone(), value.trim_matches(['\'', '"']).to_owned()))
            }
            _ => None,
        })
        .collect()
}

/// Splits a text as Python's `shlex` does in its non-POSIX mode. Returns `None` if a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_blank);
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '#' => (String::new(), after_comment(rest)),
            '\'' | '"' => {
                let end = rest[1..].find(first)? + 2;
                (rest[..end].to_owned(), &rest[end..])
            }
            _ if is_word(first) => word(rest),
            _ => (first.to_string(), &rest[first.len_utf8()..]),
        };
        words.extend(Some(word).filter(|word| !word.is_empty()));
        rest = after.trim_start_matches(is_blank);
    }
    Some(words)
}

/// Reads a word and returns the rest. A quote does not end a word. A comment does not either: the word
/// continues on the next line.
fn word(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut rest = text;
    loop {
        let (run, after) = cut(rest, |letter| is_word(letter) || "'\"".contains(letter));
        word.push_str(run);
        rest = after;
        if !rest.starts_with('#') {
            return (word, rest);
        }
        rest = after_comment(rest);
    }
}

fn after_comment(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, after)| after)
}

fn is_blank(letter: char) -> bool {
    " \t\r\n".contains(letter)
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_/.+-():".contains(letter)
}

/// Replaces `~` or `~user` at the beginning by the home directory, as Python's `expanduser` does. An
/// unknown user is left as it is.
pub(super) fn home(path: &str, env: &Environment<'_>) -> String {
    let Some(rest) = path.strip_prefix('~') else {
        return path.to_owned();
    };
    let (user, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let home = match user {
        "" => env("HOME").or_else(|| home_of(User::from_uid(Uid::current()))),
        user => home_of(User::from_name(user)),
    };
    let Some(home) = home else {
        return path.to_owned();
    };
    let path = format!("{}{rest}", home.trim_end_matches('/'));
    if path.is_empty() {
        "/".to_owned()
    } else {
        path
    }
}

fn home_of(user: nix::Result<Option<User>>) -> Option<String> {
    let dir = user.ok()??.dir;
    dir.into_os_string().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        [("here", "/etc"), ("ENV_A", "1"), ("a(b)", "2")]
            .iter()
            .find_map(|(known, value)| (*known == name).then(|| (*value).to_owned()))
    }

    #[test]
    fn conversions_are_expanded_as_python_expands_them() {
        for (text, expected) in [
            ("a", "a"),
            ("%(here)s/x", "/etc/x"),
            ("%%(here)s", "%(here)s"),
            ("%(ENV_A)5s|", "    1|"),
            ("%(ENV_A)-5s|", "1    |"),
            ("%(here).2s", "/e"),
            ("%(here).s", ""),
            ("%(here)#0 +3.1ls", "  /"),
            ("%(a(b))s", "2"),
            ("100%%", "100%"),
        ] {
            assert_eq!(format(text, lookup).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_conversion_or_variable() {
        for (text, expected) in [
            ("%(x)s", "%(x)s stands"),
            ("%()s", "%()s stands"),
            ("100%", LONE_PERCENT),
            ("%s", LONE_PERCENT),
            ("%(here)d", LONE_PERCENT),
            ("%(here", LONE_PERCENT),
            ("%(here)99999s", LONE_PERCENT),
            ("% %", LONE_PERCENT),
        ] {
            match format(text, lookup).unwrap_err() {
                ExpandError::Invalid(reason) if reason.starts_with(expected) => {}
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert_eq!(
            format("%(ENV_A)s%(ENV_B)s%(ENV_C)s", lookup),
            Err(ExpandError::Variable("B".to_owned()))
        );
    }

    #[test]
    fn environments_are_split_as_the_daemon_splits_them() {
        for (text, expected) in [
            ("", Some(&[][..])),
            ("A=1", Some(&[("A", "1")])),
            ("A=1,B=\"x,y\"", Some(&[("A", "1"), ("B", "x,y")])),
            ("A='1';B=2 C", Some(&[("A", "1"), ("B", "2")])),
            (
                "A=a/b.c+d-(e):f,\nB=2,",
                Some(&[("A", "a/b.c+d-(e):f"), ("B", "2")]),
            ),
            ("A=x#y\nz,B=2", Some(&[("A", "xz"), ("B", "2")])),
            ("A=x#y", Some(&[("A", "x")])),
            ("#a\nA='',B=\"'\"", Some(&[("A", ""), ("B", "")])),
            ("A=b'c,B=2", Some(&[("A", "b'c"), ("B", "2")])),
            ("A=1 B=2", None),
            ("A", None),
            ("A=", None),
            ("A=\"1", None),
            ("A 1", None),
            ("Aé=1", None),
        ] {
            let expected = expected.map(|expected| {
                expected
                    .iter()
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect::<Vec<_>>()
            });
            assert_eq!(pairs(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_tilde_is_a_home_directory() {
        let env = |name: &str| (name == "HOME").then(|| "/home/me/".to_owned());
        for (path, expected) in [
            ("~", "/home/me"),
            ("~/x", "/home/me/x"),
            ("/~", "/~"),
            ("~nobody-has-this-name/x", "~nobody-has-this-name/x"),
        ] {
            assert_eq!(home(path, &env), expected);
        }
        assert!(home("~root/x", &env).ends_with("/x") && !home("~root/x", &env).starts_with('~'));
    }
}
