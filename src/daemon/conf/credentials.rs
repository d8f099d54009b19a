//! A user name and its password, as a configuration file has them.

use std::fmt;

/// A user name and a password. Debug output hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password, or its digest after `{SHA}`.
    pub password: String,
    /// Whether one of both holds a variable that is not set here. Then they are as written, which
    /// serves to compare them alone: they are nobody's.
    pub is_unread: bool,
}

impl Credentials {
    /// These.
    pub fn new(username: String, password: String) -> Self {
        Credentials {
            username,
            password,
            is_unread: false,
        }
    }

    /// Whether they can be presented to the daemon.
    pub fn can_be_presented(&self) -> bool {
        !self.is_unread && !self.is_hashed()
    }

    /// Whether supervisord.conf holds a digest in place of the password: then it serves to check
    /// what clients send, and cannot be presented to the daemon.
    pub fn is_hashed(&self) -> bool {
        self.password.starts_with("{SHA}")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_digest_is_no_password() {
        for (password, expected) in [("{SHA}82ab", true), ("{sha}82ab", false), ("x{SHA}", false)] {
            let credentials = Credentials::new("me".into(), password.into());
            assert_eq!(credentials.is_hashed(), expected, "{password}");
        }
    }

    #[test]
    fn a_password_is_not_in_debug_output() {
        let shown = format!("{:?}", Credentials::new("me".into(), "hush".into()));
        assert!(shown.contains("me") && !shown.contains("hush"), "{shown}");
    }
}
