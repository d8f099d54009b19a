//! The credentials that callers must present to the proxy itself.

use super::error::ConfigError;
use super::password_file;
use super::sources::{RawValue, Resolver};
use crate::access::basic_auth::Login;
use crate::daemon::conf::Credentials;

impl Resolver<'_> {
    /// The proxy's own credentials. Whoever has them gets what the daemon asks for, so that must be
    /// known.
    pub(super) fn login(&mut self, asked: Option<&mut Credentials>) -> Option<Login> {
        let named = |raw: &RawValue| !raw.text.is_empty();
        let username = self.raw("username").filter(named);
        let colon = username.as_ref().filter(|name| name.text.contains(':'));
        let colon = colon.map(|name| name.wrong("a user name has no colon; write another"));
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
        if let Some(asked) = asked.filter(|asked| !asked.can_be_presented()) {
            let presented = present(asked, &username, &password);
            self.ok_or_record(presented);
        }
        let login =
            Login::new(&username.text, &password.text).map_err(|reason| password.wrong(reason));
        self.ok_or_record(login)
    }

    /// The password, from `password` or from the file that `password_file` names: of two sources the
    /// one that goes before counts.
    fn password(&self) -> Result<Option<RawValue>, ConfigError> {
        let named = |raw: &RawValue| !raw.text.is_empty();
        let written = self.raw("password").filter(named);
        let Some(file) = self.raw("password_file").filter(named) else {
            return Ok(written);
        };
        match written {
            Some(written) if written.origin.rank() == file.origin.rank() => {
                Err(file.wrong("there is a password beside it; write password or password_file"))
            }
            Some(written) if written.origin.rank() < file.origin.rank() => Ok(Some(written)),
            _ => password_file::read(&self.path(&file))
                .map(|text| {
                    let origin = file.origin.clone();
                    Some(RawValue { text, origin })
                })
                .map_err(|reason| file.wrong(reason)),
        }
    }

    /// What is wrong with a password that was typed: the arguments of a process are for all to read.
    pub(super) fn shown_password(&self) -> Option<String> {
        self.args.value("password").map(|_| {
            "every account of this machine can read --password in the list of processes; write it into TWIDDLER_PASSWORD, or write --password-file PATH".to_owned()
        })
    }
}

/// Puts these credentials in place of those that the proxy cannot present to the daemon, if they
/// are the same.
fn present(
    asked: &mut Credentials,
    username: &RawValue,
    password: &RawValue,
) -> Result<(), ConfigError> {
    let digest = Login::new(&asked.username, &asked.password);
    let login = Login::new(&username.text, &password.text);
    if asked.is_unexpanded {
        // The option says what the file does not. The daemon judges whether it is right.
        if !login.is_ok_and(|login| login.is_plain()) {
            return Err(password.wrong(
                "supervisord asks for a password that its file takes from a variable that is not set here, and a digest cannot be presented; write that password in plain text",
            ));
        }
        *asked = Credentials::new(username.text.clone(), password.text.clone());
    } else if digest.is_ok_and(|digest| digest.is(&username.text, &password.text)) {
        // The same in plain text, which can be presented.
        asked.password = password.text.clone();
    } else {
        return Err(username.wrong(
            "supervisord asks for a password of which its file has only the digest, so it cannot be presented; write that username and password in [twiddler], or the password in plain text in supervisord's section",
        ));
    }
    Ok(())
}
