//! A text for people in which values are marked: whole for the client who sent them, without them for
//! the log.

use std::fmt::Display;

/// What stands for a value.
const HIDDEN: &str = "…";

/// A text, and the same without values. Values are marked where the text is made: nobody else knows
/// what in it is one.
///
/// It cannot be displayed, so that nobody takes one for the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkedText {
    whole: String,
    without_values: String,
}

impl MarkedText {
    /// Goes on with words of our own, or with names.
    #[must_use]
    pub fn and(mut self, words: impl Display) -> Self {
        let words = words.to_string();
        self.whole += &words;
        self.without_values += &words;
        self
    }

    /// Goes on with something that may be a secret.
    #[must_use]
    pub fn value(mut self, value: impl Display) -> Self {
        self.whole += &value.to_string();
        self.without_values += HIDDEN;
        self
    }

    /// Goes on with what a line of the log says anyway.
    #[must_use]
    pub fn unlogged(mut self, words: impl Display) -> Self {
        self.whole += &words.to_string();
        self
    }

    /// Goes on with another one.
    #[must_use]
    pub fn then(mut self, other: &Self) -> Self {
        self.whole += &other.whole;
        self.without_values += &other.without_values;
        self
    }

    /// For the client.
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// For the log.
    pub fn without_values(&self) -> &str {
        &self.without_values
    }

    /// Both.
    pub fn into_parts(self) -> (String, String) {
        (self.whole, self.without_values)
    }
}

impl<T: Display> From<T> for MarkedText {
    fn from(words: T) -> Self {
        MarkedText::default().and(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_for_the_client_alone() {
        let text = MarkedText::from("Invalid user name ")
            .value("s3cret")
            .and(" of ")
            .then(&MarkedText::from("p"))
            .unlogged(" in section 'program:p'");
        let (whole, logged) = text.into_parts();
        assert_eq!(
            whole,
            "Invalid user name s3cret of p in section 'program:p'"
        );
        assert_eq!(logged, "Invalid user name … of p");
    }
}
