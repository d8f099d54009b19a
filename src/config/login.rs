//! The credentials that the proxy itself requires of callers.

use super::error::ConfigError;
use super::password_file;
use super::sources::{RawValue, Resolver};
use crate::access::basic_auth::Login;
use crate::daemon::conf::Credentials;

impl Resolver<'_> {
    /// The proxy's own credentials. The proxy presents the daemon's credentials on behalf of callers that
    /// have these, so the daemon's must be known in plain text. If they are not, and these are the same,
    /// they take the place of `daemon_credentials`.
    pub(super) fn login(&mut self, daemon_credentials: Option<&mut Credentials>) -> Option<Login> {
        let is_set = |raw: &RawValue| !raw.text.is_empty();
        let username = self.raw("username").filter(is_set);
        let colon = username.as_ref().filter(|name| name.text.contains(':'));
        let colon = colon.map(|name| name.error("a user name has no colon; write another"));
        let has_colon = colon.is_some();
        self.mistakes.extend(colon);
        let password = self.password();
        let password = self.ok_or_record(password)?;
        let lacks = [
            "there is no password; write username and password, or neither",
            "there is no username; write username and password, or neither",
        ];
        let (username, password) = self.pair(username, password, lacks)?;
        if has_colon {
            return None;
        }
        let unknown = daemon_credentials.filter(|credentials| !credentials.can_be_presented());
        if let Some(credentials) = unknown {
            let replaced = replace(credentials, &username, &password);
            self.ok_or_record(replaced);
        }
        let login =
            Login::new(&username.text, &password.text).map_err(|reason| password.error(reason));
        self.ok_or_record(login)
    }

    /// The password, from the option `password` or from the file in `password_file`. If both are set, the
    /// one from the source with the higher precedence counts.
    fn password(&self) -> Result<Option<RawValue>, ConfigError> {
        let is_set = |raw: &RawValue| !raw.text.is_empty();
        let password = self.raw("password").filter(is_set);
        let Some(file) = self.raw("password_file").filter(is_set) else {
            return Ok(password);
        };
        match password {
            Some(password) if password.origin.rank() == file.origin.rank() => {
                Err(file.error("there is a password beside it; write password or password_file"))
            }
            Some(password) if password.origin.rank() < file.origin.rank() => Ok(Some(password)),
            _ => password_file::read(&self.path(&file))
                .map(|text| {
                    let origin = file.origin.clone();
                    Some(RawValue { text, origin })
                })
                .map_err(|reason| file.error(reason)),
        }
    }

    /// The warning about `--password`: every account can read the arguments of a process.
    pub(super) fn password_warning(&self) -> Option<String> {
        self.args.value("password").map(|_| {
            "every account of this machine can read --password in the list of processes; write it into TWIDDLER_PASSWORD, or write --password-file PATH".to_owned()
        })
    }
}

/// Replaces credentials that the proxy cannot present to the daemon by these, if they are the same.
fn replace(
    credentials: &mut Credentials,
    username: &RawValue,
    password: &RawValue,
) -> Result<(), ConfigError> {
    let digest = Login::new(&credentials.username, &credentials.password);
    let login = Login::new(&username.text, &password.text);
    if credentials.is_unexpanded {
        // Only the daemon can check whether the options have the same password as its file.
        if !login.is_ok_and(|login| login.is_plain()) {
            return Err(password.error(
                "supervisord asks for a password that its file takes from a variable that is not set here, and a digest cannot be presented; write that password in plain text",
            ));
        }
        *credentials = Credentials::new(username.text.clone(), password.text.clone());
    } else if digest.is_ok_and(|digest| digest.is(&username.text, &password.text)) {
        credentials.password = password.text.clone();
    } else {
        return Err(username.error(
            "supervisord asks for a password of which its file has only the digest, so it cannot be presented; write that username and password in [twiddler], or the password in plain text in supervisord's section",
        ));
    }
    Ok(())
}
