//! A user name and a password in a configuration file.

use std::fmt;

/// A user name and a password. Debug output hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password, or its digest after `{SHA}`.
    pub password: String,
    /// Whether one of them has a variable that is not set in this process. Both then have the text of the
    /// file, which can be compared but not presented.
    pub is_unexpanded: bool,
}

impl Credentials {
    /// Returns credentials that are fully expanded.
    pub fn new(username: String, password: String) -> Self {
        Credentials {
            username,
            password,
            is_unexpanded: false,
        }
    }

    /// Returns whether the proxy can present them to the daemon.
    pub fn can_be_presented(&self) -> bool {
        !self.is_unexpanded && !self.is_hashed()
    }

    /// Returns whether the password is a digest. The daemon can check a client's password with it, but
    /// the proxy cannot present it.
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
    fn a_digest_has_the_prefix_sha() {
        for (password, expected) in [("{SHA}82ab", true), ("{sha}82ab", false), ("x{SHA}", false)] {
            let credentials = Credentials::new("me".into(), password.into());
            assert_eq!(credentials.is_hashed(), expected, "{password}");
        }
    }

    #[test]
    fn a_password_is_not_in_debug_output() {
        let debug = format!("{:?}", Credentials::new("me".into(), "hush".into()));
        assert!(debug.contains("me") && !debug.contains("hush"), "{debug}");
    }
}
