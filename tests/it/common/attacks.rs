//! Requests of attackers.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use supervisor_twiddler::xmlrpc::write;

use super::client::{Client, basic};
use super::http::Connection;

/// How long a guess waits for its reply before it closes its connection.
const GUESS_TIME: Duration = Duration::from_millis(20);

/// The argon2 hash of a password, whose check takes `memory` bytes.
pub fn argon2_of(password: &str, memory: usize) -> Result<String> {
    use argon2::password_hash::PasswordHasher;
    let params = argon2::Params::new(u32::try_from(memory >> 10)?, 3, 1, None)
        .map_err(anyhow::Error::msg)?;
    let hash = argon2::Argon2::from(params)
        .hash_password_with_salt(password.as_bytes(), b"salt of tests")
        .map_err(anyhow::Error::msg)?;
    Ok(hash.to_string())
}

/// Guesses the password of `own`, and disconnects before the check can have ended.
pub fn guess(client: &Client, number: usize) -> Result<()> {
    let call = write::call("supervisor.getState", &[]);
    let authorization = basic("own", &format!("guess {number}"));
    let headers = [("Authorization", authorization.as_str())];
    let mut connection = client.connect()?;
    connection.send(&client.request_bytes("POST", "/RPC2", &headers, Some(&call)))?;
    sleep(GUESS_TIME);
    Ok(())
}

/// A call of this many bytes whose only parameter is text.
pub fn call_of(bytes: usize) -> Vec<u8> {
    let call = |text: String| write::call("supervisor.getState", &[text.into()]);
    let around = call(String::new()).len();
    call("x".repeat(bytes - around))
}

/// A call of this many bytes whose first tag has attributes and nothing else.
pub fn attributes_of(bytes: usize) -> Vec<u8> {
    let mut body = b"<methodCall".to_vec();
    for number in 0_u64.. {
        if body.len() + 100 > bytes {
            break;
        }
        body.extend(format!(" a{number}=\"\"").bytes());
    }
    body.extend(b"><methodName>supervisor.getState</methodName></methodCall>");
    body
}

/// Opens `number` connections and sends these bytes on each. Connections that fail are left out.
pub fn crowd(client: &Client, number: usize, bytes: &[u8]) -> Vec<Connection> {
    let open = |_| {
        let mut connection = client.connect().ok()?;
        connection.send(bytes).ok()?;
        Some(connection)
    };
    (0..number).filter_map(open).collect()
}

/// Raises the soft limit of open files to the hard limit.
pub fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
