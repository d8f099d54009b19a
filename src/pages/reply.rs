//! The daemon's pages, rewritten into the names of clients.

use super::quote::{escape, quote, unquote};
use crate::namespec::{namespec, split_namespec};
use crate::registry::Registry;
use crate::translate::NameMapping;

/// The result of a rewrite.
#[derive(Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// The page needs no change.
    Same,
    /// The new page.
    Page(String),
}

const ROW: &str = "<tr";
const ROW_END: &str = "</tr>";
/// The start of the link in a row whose target and text are the process's name.
const NAME_LINK: &str = "<a href=\"tail.html?processname=";
/// The text in place of an empty table (`supervisor/web.py`, `StatusView.render`).
const NOTHING_LEFT: &str = "No programs to manage";

/// Rewrites the status page: placed processes are shown as members of their groups, in the daemon's order, and
/// hidden ones are left out. The caller must have checked before which processes are still hidden.
pub fn rewrite_status(registry: &Registry, page: &str) -> Rewritten {
    let Some(table) = Table::read(page) else {
        return Rewritten::Same;
    };
    let mut is_changed = false;
    let mut rows: Vec<Row> = Vec::with_capacity(table.rows.len());
    for row in &table.rows {
        match visibility(registry, row) {
            Visibility::Unchanged(row) => rows.push(row),
            Visibility::Renamed(row) => {
                is_changed = true;
                rows.push(row);
            }
            Visibility::Hidden => is_changed = true,
        }
    }
    if !is_changed {
        return Rewritten::Same;
    }
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    Rewritten::Page(table.with(&rows))
}

/// A row with the daemon's sort key: group and process.
struct Row {
    key: (String, String),
    html: String,
}

enum Visibility {
    Unchanged(Row),
    Renamed(Row),
    Hidden,
}

fn visibility(registry: &Registry, html: &str) -> Visibility {
    let quoted = quoted_name(html).unwrap_or_default();
    let real = unquote(quoted);
    let (real_group, process) = split_namespec(&real);
    let process = process.unwrap_or_default();
    let row = |group: &str, html: String| Row {
        key: (group.to_owned(), process.to_owned()),
        html,
    };
    match (
        registry.hidden_start(real_group, process),
        registry.owner(real_group),
    ) {
        (Some(_), _) => Visibility::Hidden,
        (None, Some(group)) => {
            let name = namespec(group, process);
            Visibility::Renamed(row(group, renamed(html, quoted, &real, &name)))
        }
        (None, None) => Visibility::Unchanged(row(real_group, html.to_owned())),
    }
}

/// The quoted name in a row's link.
fn quoted_name(row: &str) -> Option<&str> {
    let (_, rest) = row.split_once(NAME_LINK)?;
    Some(rest.split_once('"')?.0)
}

/// The row with the name `client` instead of `real` in its links and in the text of the first link. `quoted` is
/// the real name as it is in the links.
fn renamed(row: &str, quoted: &str, real: &str, client: &str) -> String {
    const LINK: &str = "href=\"";
    let new = quote(client);
    let mut pieces = row.split(LINK);
    let mut html = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (target, rest) = piece.split_once('"').unwrap_or((piece, ""));
        html += &format!("{LINK}{}\"{rest}", target.replace(quoted, &new));
    }
    let text = |name: &str| format!(">{}</a></td>", escape(name));
    html.replacen(&text(real), &text(client), 1)
}

/// The table of the status page.
struct Table<'a> {
    /// The text before the first row.
    before: &'a str,
    rows: Vec<&'a str>,
    /// The text between two rows.
    between: &'a str,
    /// The text after the last row.
    after: &'a str,
}

impl<'a> Table<'a> {
    /// Finds the table in the status page. Text and attributes hold no `<` (`supervisor/templating.py`), so the
    /// names of tags can be searched as text.
    fn read(page: &'a str) -> Option<Table<'a>> {
        let body = page.find("<tbody>")?;
        let start = body + page[body..].find(ROW)?;
        let end = page.rfind(ROW_END)? + ROW_END.len();
        let inner = page.get(start..end)?;
        let mut rows = Vec::new();
        let mut between = "";
        for piece in inner.split_inclusive(ROW_END) {
            let (space, row) = piece.split_at(piece.find(ROW)?);
            if !rows.is_empty() {
                between = space;
            }
            rows.push(row);
        }
        Some(Table {
            before: &page[..start],
            rows,
            between,
            after: &page[end..],
        })
    }

    /// The page with other rows.
    fn with(&self, rows: &[Row]) -> String {
        if rows.is_empty() {
            return self.with_none();
        }
        let shaded = rows.iter().enumerate().map(|(at, row)| {
            let class = if at % 2 == 1 { "shade" } else { "" };
            let cells = row.html.split_once('>').map_or("", |(_, cells)| cells);
            format!("<tr class=\"{class}\">{cells}")
        });
        let rows: Vec<String> = shaded.collect();
        format!("{}{}{}", self.before, rows.join(self.between), self.after)
    }

    /// The page with a text instead of the table and the rest of the form.
    fn with_none(&self) -> String {
        let before = self
            .before
            .rfind("<table")
            .map_or(self.before, |at| &self.before[..at]);
        let after = self
            .after
            .find("</form>")
            .map_or(self.after, |at| &self.after[at..]);
        format!("{before}{NOTHING_LEFT}{after}")
    }
}

/// Rewrites the page with the end of a process's log. The log itself is unchanged.
pub fn rewrite_tail(mapping: &NameMapping, page: &str) -> Rewritten {
    let (real, client) = (escape(&mapping.real), escape(&mapping.client));
    let page = inside(page, "<title>", "</title>", |title| {
        title.replace(&real, &client)
    });
    let page = inside(&page, "<pre>", "</pre>", |text| {
        if text.starts_with("ERROR: unexpected rpc fault [")
            || text == format!("No file for {real}")
        {
            text.replace(&real, &client)
        } else {
            text.to_owned()
        }
    });
    // Only the last link is the page's own. The log may hold text that looks like a link.
    let Some(at) = page.rfind("href=\"tail.html?processname=") else {
        return Rewritten::Page(page);
    };
    let link = page[at..].replacen(&quote(&mapping.real), &quote(&mapping.client), 1);
    Rewritten::Page(format!("{}{link}", &page[..at]))
}

/// Applies `change` to the text between the first `open` and the last `close` after it.
fn inside(page: &str, open: &str, close: &str, change: impl FnOnce(&str) -> String) -> String {
    let range = page.find(open).and_then(|start| {
        let start = start + open.len();
        let end = start + page[start..].rfind(close)?;
        Some(start..end)
    });
    match range {
        Some(range) => format!(
            "{}{}{}",
            &page[..range.start],
            change(&page[range.clone()]),
            &page[range.end..]
        ),
        None => page.to_owned(),
    }
}

const MESSAGE: &str = "?message=";

/// Rewrites the redirect after an action: the message in it gets the client's name. None if the redirect has no
/// message.
pub fn rewrite_message(mapping: &NameMapping, location: &str) -> Option<String> {
    let (page, message) = location.rsplit_once(MESSAGE)?;
    let message = mapping.rewrite_text(&unquote(message));
    Some(format!("{page}{MESSAGE}{}", quote(&message)))
}

/// Rewrites the redirect of the action `refresh` into that of `restartall`, with the daemon's time in it.
pub fn rewrite_refresh_message(location: &str) -> Option<String> {
    let (page, message) = location.rsplit_once(MESSAGE)?;
    let message = message.replacen("Page%20refreshed", "All%20restarted", 1);
    Some(format!("{page}{MESSAGE}{message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping() -> NameMapping {
        NameMapping {
            real: "web~1:a&b".to_owned(),
            client: "web:a&b".to_owned(),
            group: "web".to_owned(),
        }
    }

    #[test]
    fn a_tail_page_is_rewritten_but_for_its_log() {
        let page = |name: &str, log: &str, link: &str| {
            format!(
                "<title>{name}</title><pre>{log}</pre><a href=\"tail.html?processname={link}&amp;limit=1\">"
            )
        };
        let (real, client) = ("web~1:a&amp;b", "web:a&amp;b");
        for (log, expected) in [
            (
                format!("No file for {real}"),
                format!("No file for {client}"),
            ),
            (
                format!("ERROR: unexpected rpc fault [10] BAD_NAME: {real}"),
                format!("ERROR: unexpected rpc fault [10] BAD_NAME: {client}"),
            ),
            (format!("{real}</pre>{real}"), format!("{real}</pre>{real}")),
        ] {
            let rewritten = rewrite_tail(&mapping(), &page(real, &log, "web~1%3Aa%26b"));
            assert_eq!(
                rewritten,
                Rewritten::Page(page(client, &expected, "web%3Aa%26b"))
            );
        }
    }

    #[test]
    fn messages_in_redirects_have_the_names_of_clients() {
        let location = "http://web~1:a&b/?message=Process%20web~1%3Aa%26b%20stopped";
        let expected = "http://web~1:a&b/?message=Process%20web%3Aa%26b%20stopped";
        assert_eq!(
            rewrite_message(&mapping(), location).as_deref(),
            Some(expected)
        );
        assert_eq!(rewrite_message(&mapping(), "http://h/images/"), None);
        let location = "http://h/?message=Page%20refreshed%20at%20Sun";
        let expected = "http://h/?message=All%20restarted%20at%20Sun";
        assert_eq!(rewrite_refresh_message(location).as_deref(), Some(expected));
    }

    proptest! {
        #[test]
        fn no_page_makes_the_rewrite_panic(page in "(<tbody>|<tr|</tr>|<pre>|</pre>|href=\"tail[.]html[?]processname=|[a\"> \u{e9}]){0,12}") {
            rewrite_status(&Registry::default(), &page);
            rewrite_tail(&mapping(), &page);
        }
    }
}
