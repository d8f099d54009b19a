//! `call`: any method.

use super::Session;
use crate::client::args::{CallArgs, Format};
use crate::client::error::Error;
use crate::client::output::value;
use crate::daemon::fault::UNKNOWN_METHOD;
use crate::xmlrpc::{Fault, Value};

/// Calls the method and prints what it returned: a string as it is, anything else as JSON.
///
/// # Errors
/// When the server does not answer, or with a fault.
pub async fn run(session: &Session, args: &CallArgs) -> Result<u8, Error> {
    let params: Vec<Value> = args.arguments.iter().map(|word| value(word)).collect();
    let result = match session.server.try_call(&args.method, &params).await? {
        Ok(result) => result,
        Err(fault) => return Err(explain(session, &args.method, fault).await?),
    };
    match (&result, session.output.format) {
        (Value::String(text), Format::Table | Format::Name) => session.output.line(text)?,
        _ => session.output.json(&result)?,
    }
    Ok(0)
}

/// A fault of the method. One that a twiddler does not have is another matter than a supervisord
/// without any of them.
async fn explain(session: &Session, method: &str, fault: Fault) -> Result<Error, Error> {
    let is_missing = fault.code == UNKNOWN_METHOD && method.starts_with("twiddler.");
    let version = "twiddler.getAPIVersion";
    if is_missing && session.server.try_call(version, &[]).await?.is_ok() {
        return Ok(Error::NotDone(format!("the server has no method {method}")));
    }
    Ok(Error::Fault {
        fault,
        subject: method.to_owned(),
    })
}
