//! A cache for the text of a member's section. Every change renders the persist file, and most sections
//! stay the same.

use std::sync::{Arc, Mutex, PoisonError};

use crate::program::Scope;

/// The last rendered section of a member. It is not part of the member's value: a clone starts empty,
/// because it may become another member, and any two are equal.
#[derive(Debug, Default)]
pub struct Rendered(Mutex<Option<Text>>);

/// A rendered text and its inputs.
#[derive(Debug)]
struct Text {
    section: String,
    scope: Scope,
    proxy: Option<String>,
    text: Arc<str>,
}

impl Rendered {
    /// Returns the cached text for these inputs, or calls `render`.
    pub fn text(
        &self,
        section: &str,
        scope: Scope,
        proxy: Option<&str>,
        render: impl FnOnce() -> String,
    ) -> Arc<str> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = |last: &&Text| {
            last.section == section && last.scope == scope && last.proxy.as_deref() == proxy
        };
        if let Some(last) = last.as_ref().filter(is_current) {
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
    fn equal_inputs_are_rendered_once_and_a_clone_starts_empty() {
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
