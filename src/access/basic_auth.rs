//! The proxy's own user name and password, and the check of a caller's credentials.
//!
//! A comparison takes the same time for right and wrong credentials. Of HTTP, this module knows only the
//! form of Basic credentials.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::daemon::{Client, Origin, Share, SlotLimits, Slots};

/// The prefix of a SHA-1 digest in supervisord's files.
const SHA_PREFIX: &str = "{SHA}";
/// The prefix of argon2 hashes, the only slow hashes that are supported.
const ARGON2_PREFIX: &str = "$argon2";
/// The prefixes of hashes that are not supported. Without this list they would count as passwords in plain
/// text.
const OTHER_HASHES: [&str; 10] = [
    "$1$", "$2a$", "$2b$", "$2x$", "$2y$", "$5$", "$6$", "$7$", "$y$", "$pbkdf2",
];
/// The largest memory cost of a hash in KiB: a caller without the password can cause one check after the
/// other.
const MAX_HASH_MEMORY: u32 = 256 * 1024;
/// The largest time cost of a hash, for the same reason.
const MAX_HASH_PASSES: u32 = 64;

/// A SHA-256 digest. Credentials are compared by their digests, which all have the same length.
type Sha256Digest = [u8; 32];

/// A user name and a password. Debug output shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    username: Sha256Digest,
    password: Password,
}

/// The digest of a password. The plain text is not stored.
#[derive(Clone, PartialEq, Eq)]
enum Password {
    /// Configured in plain text.
    Plain(Sha256Digest),
    /// Configured as supervisord's `{SHA}`.
    Sha1([u8; 20]),
    /// Configured as a PHC string of argon2.
    Argon2(Arc<str>),
}

impl Login {
    /// Parses a password in one of three forms: plain text, supervisord's `{SHA}` with a hexadecimal SHA-1
    /// digest, or a PHC string of argon2 (`$argon2id$...`).
    ///
    /// # Errors
    /// The user name or the password is not valid. The text says why and what to write, and does not
    /// contain the password.
    pub fn new(username: &str, password: &str) -> Result<Self, String> {
        if username.contains(':') {
            return Err("a user name has no colon; write another".to_owned());
        }
        Ok(Login {
            username: sha256(username.as_bytes()),
            password: Password::parse(password)?,
        })
    }

    /// Whether the password was configured in plain text.
    pub fn is_plain(&self) -> bool {
        matches!(self.password, Password::Plain(_))
    }

    /// Whether these are its user name and its password. An argon2 hash blocks the thread for its time.
    pub fn is(&self, username: &str, password: &str) -> bool {
        let has_name: bool = sha256(username.as_bytes()).ct_eq(&self.username).into();
        has_name & self.password.is(password.as_bytes())
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl Password {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty password guards nothing; write one".to_owned());
        }
        if let Some(digest) = text.strip_prefix(SHA_PREFIX) {
            return sha1_digest(digest).map(Password::Sha1).ok_or_else(|| {
                "what follows {SHA} is no SHA-1 digest; write its 40 hexadecimal digits".to_owned()
            });
        }
        if text.starts_with(ARGON2_PREFIX) {
            check_argon2(text)?;
            return Ok(Password::Argon2(text.into()));
        }
        if OTHER_HASHES.iter().any(|prefix| text.starts_with(prefix)) {
            return Err(
                "this looks like a hash that is not understood; write $argon2id$..., {SHA}... or the password itself"
                    .to_owned(),
            );
        }
        Ok(Password::Plain(sha256(text.as_bytes())))
    }

    /// Whether this is the password. An argon2 hash takes milliseconds to seconds, the other forms
    /// microseconds.
    fn is(&self, presented: &[u8]) -> bool {
        match self {
            Password::Plain(expected) => sha256(presented).ct_eq(expected).into(),
            Password::Sha1(expected) => Sha1::digest(presented).as_slice().ct_eq(expected).into(),
            Password::Argon2(hash) => Argon2::default()
                .verify_password(presented, hash.as_ref())
                .is_ok(),
        }
    }
}

/// Checks callers' credentials against one login.
#[derive(Debug)]
pub struct BasicAuth {
    login: Login,
    /// The credentials that were valid last. They need no second check of a costly hash.
    last_valid: Mutex<Option<Sha256Digest>>,
    /// One slot: argon2 hashes are computed one at a time, so that guesses cannot use up all cores.
    slots: Arc<Slots>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The credentials are valid.
    Valid,
    /// The credentials are not valid, or are missing.
    Invalid,
    /// The credentials were not checked, because too many others wait for their check.
    Unchecked,
}

impl Verdict {
    fn of(is_valid: bool) -> Self {
        if is_valid {
            Verdict::Valid
        } else {
            Verdict::Invalid
        }
    }
}

impl BasicAuth {
    /// A check against this login.
    pub fn new(login: Login) -> Self {
        BasicAuth {
            login,
            last_valid: Mutex::default(),
            slots: Arc::new(Slots::new(SlotLimits::ONE)),
        }
    }

    /// Checks the value of an `Authorization` header, which was sent from `origin`. The credentials that
    /// were valid last do not wait for other checks.
    pub async fn verify(&self, authorization: &[u8], origin: Option<Origin>) -> Verdict {
        let Some(pair) = basic(authorization) else {
            return Verdict::Invalid;
        };
        let (username, password) = match pair.iter().position(|byte| *byte == b':') {
            Some(colon) => (&pair[..colon], &pair[colon + 1..]),
            None => return Verdict::Invalid,
        };
        let has_name: bool = sha256(username).ct_eq(&self.login.username).into();
        match &self.login.password {
            Password::Argon2(_) => self.verify_argon2(&pair, password, has_name, origin).await,
            // `&` checks the password for a wrong name, too, so that both take the same time.
            quick => Verdict::of(has_name & quick.is(password)),
        }
    }

    /// Checks an argon2 hash on another thread, for a wrong name, too.
    async fn verify_argon2(
        &self,
        pair: &[u8],
        password: &[u8],
        has_name: bool,
        origin: Option<Origin>,
    ) -> Verdict {
        let presented = sha256(pair);
        if self.is_last_valid(&presented) {
            return Verdict::Valid;
        }
        let Ok(slot) = self
            .slots
            .take(Client::At(origin, None), Share::Quick)
            .await
        else {
            return Verdict::Unchecked;
        };
        if self.is_last_valid(&presented) {
            return Verdict::Valid;
        }
        let (expected, password) = (self.login.password.clone(), password.to_vec());
        let check = tokio::task::spawn_blocking(move || {
            // The check holds the slot to its end, even if the caller disconnects.
            let _slot = slot;
            expected.is(&password)
        });
        let is_valid = has_name & check.await.unwrap_or(false);
        if is_valid {
            let mut last_valid = self
                .last_valid
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *last_valid = Some(presented);
        }
        Verdict::of(is_valid)
    }

    fn is_last_valid(&self, presented: &Sha256Digest) -> bool {
        let last_valid = *self
            .last_valid
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last_valid.is_some_and(|last_valid| last_valid.ct_eq(presented).into())
    }
}

/// The `name:password` of Basic credentials.
fn basic(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    STANDARD.decode(rest.trim_ascii()).ok()
}

fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256::digest(bytes).into()
}

fn sha1_digest(hexadecimal: &str) -> Option<[u8; 20]> {
    let digits: Vec<u8> = hexadecimal
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect::<Option<_>>()?;
    if digits.len() != 40 {
        return None;
    }
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    bytes.try_into().ok()
}

fn check_argon2(text: &str) -> Result<(), String> {
    let advice = "write all of it, as `argon2 SALT -id -e` prints it: $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH";
    let hash = PasswordHash::new(text)
        .map_err(|error| format!("this is no argon2 hash ({error}); {advice}"))?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(format!(
            "this argon2 hash lacks its salt or its end; {advice}"
        ));
    }
    let params = Params::try_from(&hash)
        .map_err(|error| format!("this is no argon2 hash ({error}); {advice}"))?;
    if params.m_cost() > MAX_HASH_MEMORY || params.t_cost() > MAX_HASH_PASSES {
        return Err(format!(
            "each check of this argon2 hash costs too much; write one with m up to {MAX_HASH_MEMORY} and t up to {MAX_HASH_PASSES}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{MAX_QUEUED, Slot};

    const ORIGIN: Option<Origin> = Some(Origin::Account(1));

    /// An argon2id hash of `secret` with low costs.
    fn argon2_hash() -> String {
        argon2_hash_with(64)
    }

    /// An argon2id hash of `secret` with this memory cost in KiB.
    fn argon2_hash_with(memory: u32) -> String {
        use argon2::password_hash::PasswordHasher;
        let argon2 = Argon2::from(Params::new(memory, 1, 1, None).unwrap());
        argon2
            .hash_password_with_salt(b"secret", b"salt of tests")
            .unwrap()
            .to_string()
    }

    fn header(pair: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(pair)).into_bytes()
    }

    #[tokio::test]
    async fn only_the_right_name_with_the_right_password_is_valid() {
        let sha = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";
        for password in ["secret", sha, &sha.to_uppercase(), &argon2_hash()] {
            let auth = BasicAuth::new(Login::new("user", password).unwrap());
            for (pair, expected) in [
                ("user:secret", true),
                ("user:secret", true),
                ("user:Secret", false),
                ("user:secret ", false),
                ("user:", false),
                ("user", false),
                ("User:secret", false),
                (":secret", false),
                ("", false),
                (&*format!("user:{password}"), password == "secret"),
                ("user:secret", true),
            ] {
                assert_eq!(
                    auth.verify(&header(pair), ORIGIN).await,
                    Verdict::of(expected),
                    "{pair} for {password}"
                );
            }
        }
    }

    #[tokio::test]
    async fn headers_without_basic_credentials_are_invalid() {
        let auth = BasicAuth::new(Login::new("user", "secret").unwrap());
        let good = STANDARD.encode("user:secret");
        for header in [
            "",
            "Basic",
            "Basic ",
            "Bearer x",
            "Basic %%%",
            &good,
            &format!("Digest {good}"),
        ] {
            assert_eq!(
                auth.verify(header.as_bytes(), ORIGIN).await,
                Verdict::Invalid,
                "{header}"
            );
        }
        for header in [format!("basic {good}"), format!("BASIC  {good} ")] {
            assert_eq!(
                auth.verify(header.as_bytes(), ORIGIN).await,
                Verdict::Valid,
                "{header}"
            );
        }
    }

    #[tokio::test]
    async fn a_wrong_name_is_not_remembered_for_its_right_password() {
        let auth = BasicAuth::new(Login::new("user", &argon2_hash()).unwrap());
        for _ in 0..2 {
            assert_eq!(
                auth.verify(&header("other:secret"), ORIGIN).await,
                Verdict::Invalid
            );
        }
    }

    /// Takes the only slot.
    async fn take_slot(auth: &BasicAuth) -> Slot {
        let slot = auth.slots.take(Client::Proxy, Share::Quick).await;
        slot.unwrap()
    }

    #[tokio::test]
    async fn the_last_valid_credentials_do_not_wait_for_guesses() {
        let auth = BasicAuth::new(Login::new("user", &argon2_hash()).unwrap());
        let valid = header("user:secret");
        assert_eq!(auth.verify(&valid, ORIGIN).await, Verdict::Valid);
        let slot = take_slot(&auth).await;
        let guess = header("user:guess");
        let mut waiting: Vec<_> = (0..MAX_QUEUED)
            .map(|_| Box::pin(auth.verify(&guess, ORIGIN)))
            .collect();
        for guess in &mut waiting {
            assert!(poll(guess.as_mut()).await.is_none());
        }
        assert_eq!(auth.verify(&guess, ORIGIN).await, Verdict::Unchecked);
        assert_eq!(auth.verify(&valid, ORIGIN).await, Verdict::Valid);
        // When one caller disconnects, another one may wait.
        drop(waiting.pop());
        let mut last = Box::pin(auth.verify(&guess, ORIGIN));
        assert!(poll(last.as_mut()).await.is_none());
        drop(slot);
        assert_eq!(waiting.swap_remove(0).await, Verdict::Invalid);
    }

    #[tokio::test]
    async fn a_flood_of_guesses_does_not_lock_out_other_places() {
        let auth = BasicAuth::new(Login::new("user", &argon2_hash()).unwrap());
        let slot = take_slot(&auth).await;
        let guess = header("user:guess");
        let mut waiting: Vec<_> = (0..MAX_QUEUED)
            .map(|_| Box::pin(auth.verify(&guess, ORIGIN)))
            .collect();
        for guess in &mut waiting {
            assert!(poll(guess.as_mut()).await.is_none());
        }
        // The queue is full, so a caller from another origin replaces the newest guess.
        let valid = header("user:secret");
        let mut valid = Box::pin(auth.verify(&valid, Some(Origin::Account(2))));
        assert!(poll(valid.as_mut()).await.is_none());
        let newest = waiting.pop().unwrap();
        assert_eq!(newest.await, Verdict::Unchecked);
        drop(slot);
        // Only one guess is checked before it.
        assert_eq!(waiting.swap_remove(0).await, Verdict::Invalid);
        assert_eq!(valid.await, Verdict::Valid);
        assert!(poll(waiting.swap_remove(0).as_mut()).await.is_none());
    }

    #[tokio::test]
    async fn a_check_holds_its_slot_after_its_caller_has_disconnected() {
        let hash = argon2_hash_with(16 * 1024); // takes milliseconds at least
        let auth = BasicAuth::new(Login::new("user", &hash).unwrap());
        let guess = header("user:guess");
        let mut abandoned = Box::pin(auth.verify(&guess, ORIGIN));
        assert!(poll(abandoned.as_mut()).await.is_none());
        drop(abandoned);
        let mut next = Box::pin(take_slot(&auth));
        assert!(poll(next.as_mut()).await.is_none());
        drop(next.await);
        assert_eq!(auth.verify(&guess, ORIGIN).await, Verdict::Invalid);
    }

    /// The output of a future if it is ready.
    async fn poll<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn errors_about_passwords_do_not_contain_them() {
        for (password, expected) in [
            ("", "empty"),
            ("{SHA}", "40 hexadecimal"),
            ("{SHA}zz89b4f2", "40 hexadecimal"),
            ("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ", "lacks"),
            ("$argon2id$garbage", "argon2"),
            (
                "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo",
                "costs too much",
            ),
            ("$2y$10$abcdefghijklmnopqrstuv", "not understood"),
            ("$6$salt$hash", "not understood"),
        ] {
            let reason = Login::new("user", password).unwrap_err();
            assert!(reason.contains(expected), "{password}: {reason}");
            assert!(password.len() < 8 || !reason.contains(password), "{reason}");
        }
        assert!(Login::new("a:b", "secret").is_err());
        assert!(Login::new("user", "$money$").is_ok());
        let auth = BasicAuth::new(Login::new("user", "secret").unwrap());
        let debug = format!("{auth:?}");
        assert!(
            !debug.contains("user") && !debug.contains("secret"),
            "{debug}"
        );
    }
}
