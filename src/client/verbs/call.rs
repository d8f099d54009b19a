//! `call`: calls any method.

use super::Session;
use crate::client::args::{CallArgs, Format};
use crate::client::error::Error;
use crate::client::output::value;
use crate::fault::{INCORRECT_PARAMETERS, NOT_IN_WHITELIST};
use crate::xmlrpc::Value;

/// Calls the method and prints its result: a string unchanged, any other value as JSON.
///
/// # Errors
/// When the server does not answer, or with a fault.
pub async fn run(session: &Session, args: &CallArgs) -> Result<u8, Error> {
    let params: Vec<Value> = args.arguments.iter().map(|word| value(word)).collect();
    let result = match session.server.try_call(&args.method, &params).await? {
        Ok(result) => result,
        // The text of a fault about a name contains the name.
        Err(fault) => {
            let is_about_call = matches!(fault.code, INCORRECT_PARAMETERS | NOT_IN_WHITELIST);
            let subject = if is_about_call { &args.method } else { "" };
            return Err(Error::from_fault(fault, &args.method, subject));
        }
    };
    match (&result, session.output.format) {
        (Value::String(text), Format::Table | Format::Name) => session.output.line(text)?,
        _ => session.output.json(&result)?,
    }
    Ok(0)
}
