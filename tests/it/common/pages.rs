//! Parses the daemon's web pages.

use anyhow::{Context, Result, ensure};

use super::client::Client;
use super::http::Reply;
use super::values::{member, text};
use super::wait::{LIMIT, eventually};

/// The row of this process on the status page, from the attributes of its tag.
pub fn row<'a>(page: &'a str, name: &str) -> Result<&'a str> {
    page.split("<tr")
        .find(|row| row.contains(&format!(">{name}</a></td>")))
        .with_context(|| format!("no row of {name}:\n{page}"))
}

/// The target of the link with this text in a row, relative to the page.
pub fn link(row: &str, label: &str) -> Result<String> {
    let (before, _) = row
        .split_once(&format!(">{label}</a>"))
        .with_context(|| format!("no link {label}: {row}"))?;
    let (_, href) = before.rsplit_once("href=\"").context("an href")?;
    let (href, _) = href.split_once('"').context("the end of an href")?;
    Ok(format!("/{}", href.replace("&amp;", "&")))
}

/// The path and the query of a redirect from a page at the root.
pub fn location(reply: &Reply) -> Result<&str> {
    ensure!(reply.status == 301, "no redirect: {reply:?}");
    let relative = reply.header("location").context("a Location")?;
    relative
        .strip_prefix('.')
        .with_context(|| format!("not relative: {reply:?}"))
}

/// Fails unless the head has the length of the body.
pub fn ensure_right_length(reply: &Reply) -> Result<()> {
    let length = reply.header("content-length").context("a length")?;
    ensure!(length == reply.body.len().to_string(), "{reply:?}");
    Ok(())
}

/// Waits until this client sees the process in this state.
pub fn wait_for_state(client: &Client, name: &str, state: &str) -> Result<()> {
    eventually(LIMIT, || {
        let info = client.call("supervisor.getProcessInfo", (name,))?;
        let current = text(member(&info, "statename")?)?.to_owned();
        ensure!(current == state, "{name} is {current}, not {state}");
        Ok(())
    })
}
