//! The text of a section, kept beside the member that it is made of: the file of what is kept is written
//! with every change, and most of it stays as it was.

use std::sync::{Arc, Mutex, PoisonError};

use crate::program::Scope;

/// What was rendered of a member last. It is no part of what the member is: a copy, which may become
/// another one, has nothing of it, and two members that differ in this alone are equal.
#[derive(Debug, Default)]
pub struct Rendered(Mutex<Option<Text>>);

/// A text, and what it was rendered for.
#[derive(Debug)]
struct Text {
    section: String,
    scope: Scope,
    proxy: Option<String>,
    text: Arc<str>,
}

impl Rendered {
    /// The text for these, which `render` makes unless it is there.
    pub fn text(
        &self,
        section: &str,
        scope: Scope,
        proxy: Option<&str>,
        render: impl FnOnce() -> String,
    ) -> Arc<str> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |last: &&Text| {
            last.section == section && last.scope == scope && last.proxy.as_deref() == proxy
        };
        if let Some(last) = last.as_ref().filter(is_it) {
            return last.text.clone();
        }
        let text: Arc<str> = render().into();
        *last = Some(Text {
            section: section.to_owned(),
            scope,
            proxy: proxy.map(str::to_owned),
            text: text.clone(),
        });
        text
    }
}

impl Clone for Rendered {
    fn clone(&self) -> Self {
        Rendered::default()
    }
}

impl PartialEq for Rendered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_rendered_once_for_the_same_and_anew_for_a_copy() {
        let rendered = Rendered::default();
        let text = |of: &Rendered, section, scope, proxy, text: &str| {
            of.text(section, scope, proxy, || text.to_owned())
        };
        for (section, scope, proxy, new, expected) in [
            ("a", Scope::All, None, "first", "first"),
            ("a", Scope::All, None, "second", "first"),
            ("b", Scope::All, None, "third", "third"),
            ("b", Scope::One(1), None, "fourth", "fourth"),
            ("b", Scope::One(1), Some("http://h"), "fifth", "fifth"),
            ("b", Scope::One(1), Some("http://h"), "sixth", "fifth"),
            ("b", Scope::One(1), Some("http://i"), "seventh", "seventh"),
        ] {
            assert_eq!(&*text(&rendered, section, scope, proxy, new), expected);
        }
        let copy = rendered.clone();
        assert_eq!(
            &*text(&copy, "b", Scope::One(1), Some("http://i"), "eighth"),
            "eighth"
        );
        assert_eq!(copy, rendered);
    }
}
