//! A text in which option values are marked: the client gets it with the values, the log without.

use std::fmt::Display;

/// Replaces a value in the text for the log.
const HIDDEN: &str = "…";

/// A text with its values marked. The code that builds the text marks them, because the finished text does
/// not show which parts are values.
///
/// It does not implement `Display`, so that a caller has to choose one of the two forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkedText {
    whole: String,
    without_values: String,
}

impl MarkedText {
    /// Appends a text without values.
    #[must_use]
    pub fn and(mut self, text: impl Display) -> Self {
        let text = text.to_string();
        self.whole += &text;
        self.without_values += &text;
        self
    }

    /// Appends a value, which may be a secret.
    #[must_use]
    pub fn value(mut self, value: impl Display) -> Self {
        self.whole += &value.to_string();
        self.without_values += HIDDEN;
        self
    }

    /// Appends a text for the client only, because the line of the log has the same information in a field.
    #[must_use]
    pub fn unlogged(mut self, text: impl Display) -> Self {
        self.whole += &text.to_string();
        self
    }

    /// Appends another marked text.
    #[must_use]
    pub fn then(mut self, other: &Self) -> Self {
        self.whole += &other.whole;
        self.without_values += &other.without_values;
        self
    }

    /// Returns the text for the client.
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// Returns the text for the log.
    pub fn without_values(&self) -> &str {
        &self.without_values
    }

    /// Returns the texts for the client and for the log.
    pub fn into_parts(self) -> (String, String) {
        (self.whole, self.without_values)
    }
}

impl<T: Display> From<T> for MarkedText {
    fn from(text: T) -> Self {
        MarkedText::default().and(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_for_the_client_has_values() {
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
