//! User names and passwords of the proxy's own, and whether somebody presents the right ones.
//!
//! Every comparison takes the same time whatever is presented. A leaf: knows nothing of HTTP but the
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

/// What supervisord puts before the SHA-1 digest of a password.
const SHA_PREFIX: &str = "{SHA}";
/// Begins the only strong hashes that are understood.
const ARGON2_PREFIX: &str = "$argon2";
/// How hashes begin that would otherwise be taken for passwords in plain text.
const OTHER_HASHES: [&str; 10] = [
    "$1$", "$2a$", "$2b$", "$2x$", "$2y$", "$5$", "$6$", "$7$", "$y$", "$pbkdf2",
];
/// The memory that one check of a password may take, in KiB: somebody without a password can ask
/// for as many as there are requests, one after the other.
const MAX_HASH_MEMORY: u32 = 256 * 1024;
/// The largest time cost for the same reason.
const MAX_HASH_PASSES: u32 = 64;

/// A digest of what is compared, so that all that is compared has the same length.
type Mark = [u8; 32];

/// Who may come in. Debug output shows neither name nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    username: Mark,
    password: Password,
}

/// A password as it is kept: never in plain text.
#[derive(Clone, PartialEq, Eq)]
enum Password {
    /// From plain text.
    Plain(Mark),
    /// From supervisord's `{SHA}`.
    Sha1([u8; 20]),
    /// A PHC string of argon2.
    Argon2(Arc<str>),
}

impl Login {
    /// Reads a password as it is configured: in plain text, `{SHA}` and the hexadecimal SHA-1
    /// digest as supervisord has it, or a PHC string of argon2 (`$argon2id$...`).
    ///
    /// # Errors
    /// What is wrong, and what to write; never with the password in it.
    pub fn new(username: &str, password: &str) -> Result<Self, String> {
        if username.contains(':') {
            return Err("a user name has no colon; write another".to_owned());
        }
        Ok(Login {
            username: mark(username.as_bytes()),
            password: Password::read(password)?,
        })
    }

    /// Whether the password was given in plain text.
    pub fn is_plain(&self) -> bool {
        matches!(self.password, Password::Plain(_))
    }

    /// Whether these are its user name and its password. For one at a time: a strong hash takes long.
    pub fn is(&self, username: &str, password: &str) -> bool {
        let named: bool = mark(username.as_bytes()).ct_eq(&self.username).into();
        named & self.password.is(password.as_bytes())
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl Password {
    fn read(text: &str) -> Result<Self, String> {
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
        Ok(Password::Plain(mark(text.as_bytes())))
    }

    /// Takes long for argon2, and no time worth speaking of for the others.
    fn is(&self, presented: &[u8]) -> bool {
        match self {
            Password::Plain(expected) => mark(presented).ct_eq(expected).into(),
            Password::Sha1(expected) => Sha1::digest(presented).as_slice().ct_eq(expected).into(),
            Password::Argon2(hash) => Argon2::default()
                .verify_password(presented, hash.as_ref())
                .is_ok(),
        }
    }
}

/// One who lets in whoever has the login.
#[derive(Debug)]
pub struct BasicAuth {
    login: Login,
    /// Who was let in last: a strong hash is costly, and its check need not be made twice.
    last: Mutex<Option<Mark>>,
    /// Strong hashes are checked one at a time, so that guessing cannot take the whole machine.
    turns: Arc<Slots>,
}

/// Whether somebody comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With the right credentials.
    Right,
    /// With others, or none.
    Wrong,
    /// Nobody has looked: too many wait for that already.
    Unknown,
}

impl Verdict {
    fn of(is_right: bool) -> Self {
        if is_right {
            Verdict::Right
        } else {
            Verdict::Wrong
        }
    }
}

impl BasicAuth {
    /// One for this login.
    pub fn new(login: Login) -> Self {
        BasicAuth {
            login,
            last: Mutex::default(),
            turns: Arc::new(Slots::new(SlotLimits::ONE)),
        }
    }

    /// Whether these are the right credentials: the value of an `Authorization` header, sent from
    /// `origin`. Whoever was let in before is let in at once, however many others are being looked at.
    pub async fn verify(&self, authorization: &[u8], origin: Option<Origin>) -> Verdict {
        let Some(pair) = basic(authorization) else {
            return Verdict::Wrong;
        };
        let (username, password) = match pair.iter().position(|byte| *byte == b':') {
            Some(colon) => (&pair[..colon], &pair[colon + 1..]),
            None => return Verdict::Wrong,
        };
        let named: bool = mark(username).ct_eq(&self.login.username).into();
        match &self.login.password {
            Password::Argon2(_) => self.verify_strongly(&pair, password, named, origin).await,
            // Both were looked at, whichever is wrong.
            quick => Verdict::of(named & quick.is(password)),
        }
    }

    /// Checks a strong hash beside the runtime, whether the name was right or not.
    async fn verify_strongly(
        &self,
        pair: &[u8],
        password: &[u8],
        named: bool,
        origin: Option<Origin>,
    ) -> Verdict {
        let presented = mark(pair);
        if self.was_last(&presented) {
            return Verdict::Right;
        }
        let Ok(turn) = self
            .turns
            .take(Client::At(origin, None), Share::Quick)
            .await
        else {
            return Verdict::Unknown;
        };
        if self.was_last(&presented) {
            return Verdict::Right;
        }
        let (expected, password) = (self.login.password.clone(), password.to_vec());
        let checked = tokio::task::spawn_blocking(move || {
            // The turn ends with the work, not with whoever began it: he may hang up.
            let _turn = turn;
            expected.is(&password)
        });
        let is_right = named & checked.await.unwrap_or(false);
        if is_right {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        }
        Verdict::of(is_right)
    }

    fn was_last(&self, presented: &Mark) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.ct_eq(presented).into())
    }
}

/// User name, colon and password of Basic credentials.
fn basic(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    STANDARD.decode(rest.trim_ascii()).ok()
}

fn mark(bytes: &[u8]) -> Mark {
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
    let whole = "write the whole of it, as `argon2 SALT -id -e` prints it: $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH";
    let hash = PasswordHash::new(text)
        .map_err(|error| format!("this is no argon2 hash ({error}); {whole}"))?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(format!(
            "this argon2 hash lacks its salt or its end; {whole}"
        ));
    }
    let params = Params::try_from(&hash)
        .map_err(|error| format!("this is no argon2 hash ({error}); {whole}"))?;
    if params.m_cost() > MAX_HASH_MEMORY || params.t_cost() > MAX_HASH_PASSES {
        return Err(format!(
            "this argon2 hash costs too much for each who knocks; write one with m up to {MAX_HASH_MEMORY} and t up to {MAX_HASH_PASSES}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{MAX_QUEUED, Slot};

    /// Where callers are who are not said to be elsewhere.
    const HERE: Option<Origin> = Some(Origin::Account(1));

    /// argon2id of `secret`, cheap on purpose.
    fn strong() -> String {
        strong_with(64)
    }

    /// argon2id of `secret` that takes so many KiB.
    fn strong_with(memory: u32) -> String {
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
    async fn only_the_right_name_with_the_right_password_comes_in() {
        let sha = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";
        for password in ["secret", sha, &sha.to_uppercase(), &strong()] {
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
                    auth.verify(&header(pair), HERE).await,
                    Verdict::of(expected),
                    "{pair} for {password}"
                );
            }
        }
    }

    #[tokio::test]
    async fn other_headers_do_not_come_in() {
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
                auth.verify(header.as_bytes(), HERE).await,
                Verdict::Wrong,
                "{header}"
            );
        }
        for header in [format!("basic {good}"), format!("BASIC  {good} ")] {
            assert_eq!(
                auth.verify(header.as_bytes(), HERE).await,
                Verdict::Right,
                "{header}"
            );
        }
    }

    #[tokio::test]
    async fn a_wrong_name_is_not_remembered_for_its_right_password() {
        let auth = BasicAuth::new(Login::new("user", &strong()).unwrap());
        for _ in 0..2 {
            assert_eq!(
                auth.verify(&header("other:secret"), HERE).await,
                Verdict::Wrong
            );
        }
    }

    /// Takes the one turn there is.
    async fn busy(auth: &BasicAuth) -> Slot {
        let turn = auth.turns.take(Client::Proxy, Share::Quick).await;
        turn.unwrap()
    }

    #[tokio::test]
    async fn whoever_was_let_in_passes_by_all_who_wait() {
        let auth = BasicAuth::new(Login::new("user", &strong()).unwrap());
        let known = header("user:secret");
        assert_eq!(auth.verify(&known, HERE).await, Verdict::Right);
        let turn = busy(&auth).await;
        let guess = header("user:guess");
        let mut waiting: Vec<_> = (0..MAX_QUEUED)
            .map(|_| Box::pin(auth.verify(&guess, HERE)))
            .collect();
        for guess in &mut waiting {
            assert!(poll(guess.as_mut()).await.is_none());
        }
        assert_eq!(auth.verify(&guess, HERE).await, Verdict::Unknown);
        assert_eq!(auth.verify(&known, HERE).await, Verdict::Right);
        // One hangs up, and another may wait in his place.
        drop(waiting.pop());
        let mut last = Box::pin(auth.verify(&guess, HERE));
        assert!(poll(last.as_mut()).await.is_none());
        drop(turn);
        assert_eq!(waiting.swap_remove(0).await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_flood_of_guesses_does_not_lock_out_other_places() {
        let auth = BasicAuth::new(Login::new("user", &strong()).unwrap());
        let turn = busy(&auth).await;
        let guess = header("user:guess");
        let mut waiting: Vec<_> = (0..MAX_QUEUED)
            .map(|_| Box::pin(auth.verify(&guess, HERE)))
            .collect();
        for guess in &mut waiting {
            assert!(poll(guess.as_mut()).await.is_none());
        }
        // Nobody there was let in before; the newest guess makes room.
        let known = header("user:secret");
        let mut known = Box::pin(auth.verify(&known, Some(Origin::Account(2))));
        assert!(poll(known.as_mut()).await.is_none());
        let newest = waiting.pop().unwrap();
        assert_eq!(newest.await, Verdict::Unknown);
        drop(turn);
        // One guess is checked before, and no other.
        assert_eq!(waiting.swap_remove(0).await, Verdict::Wrong);
        assert_eq!(known.await, Verdict::Right);
        assert!(poll(waiting.swap_remove(0).as_mut()).await.is_none());
    }

    #[tokio::test]
    async fn a_check_whose_caller_hung_up_stays_counted_until_it_ends() {
        let strong = strong_with(16 * 1024); // milliseconds at least
        let auth = BasicAuth::new(Login::new("user", &strong).unwrap());
        let guess = header("user:guess");
        let mut abandoned = Box::pin(auth.verify(&guess, HERE));
        assert!(poll(abandoned.as_mut()).await.is_none());
        drop(abandoned);
        let mut next = Box::pin(busy(&auth));
        assert!(poll(next.as_mut()).await.is_none());
        drop(next.await);
        assert_eq!(auth.verify(&guess, HERE).await, Verdict::Wrong);
    }

    /// What a future has come to without any waiting.
    async fn poll<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn passwords_that_cannot_be_meant_are_refused_without_being_repeated() {
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
        let shown = format!(
            "{:?}",
            BasicAuth::new(Login::new("user", "secret").unwrap())
        );
        assert!(
            !shown.contains("user") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
