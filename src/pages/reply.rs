//! What the daemon's pages say, put into the names of clients.

use super::quote::{escape, quote, unquote};
use crate::namespec::{namespec, split_namespec};
use crate::registry::Registry;
use crate::translate::Alias;

/// A page after it was looked through.
#[derive(Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// It shows nothing that lives elsewhere.
    Same,
    /// It says this instead.
    Page(String),
}

const ROW: &str = "<tr";
const ROW_END: &str = "</tr>";
/// The link of a row that bears its name.
const NAME_LINK: &str = "<a href=\"tail.html?processname=";
/// `supervisor/web.py`, `StatusView.render`, and where the table was.
const NOTHING_LEFT: &str = "No programs to manage";

/// The status page: placed processes as members of their groups, in the daemon's order, and no
/// hidden ones. Those that are to be seen again must have been looked for before.
pub fn status_back(registry: &Registry, page: &str) -> Rewritten {
    let Some(table) = Table::read(page) else {
        return Rewritten::Same;
    };
    let mut touched = false;
    let mut rows: Vec<Row> = Vec::with_capacity(table.rows.len());
    for row in &table.rows {
        match shown(registry, row) {
            Shown::AsIs(row) => rows.push(row),
            Shown::Renamed(row) => {
                touched = true;
                rows.push(row);
            }
            Shown::Not => touched = true,
        }
    }
    if !touched {
        return Rewritten::Same;
    }
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    Rewritten::Page(table.with(&rows))
}

/// A row and what the daemon sorts it by: group and process.
struct Row {
    key: (String, String),
    html: String,
}

enum Shown {
    AsIs(Row),
    Renamed(Row),
    Not,
}

fn shown(registry: &Registry, html: &str) -> Shown {
    let quoted = named_in(html).unwrap_or_default();
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
        (Some(_), _) => Shown::Not,
        (None, Some(group)) => {
            let shown = namespec(group, process);
            Shown::Renamed(row(group, renamed(html, quoted, &real, &shown)))
        }
        (None, None) => Shown::AsIs(row(real_group, html.to_owned())),
    }
}

/// The name in a row's link, as it is quoted there.
fn named_in(row: &str) -> Option<&str> {
    let (_, rest) = row.split_once(NAME_LINK)?;
    Some(rest.split_once('"')?.0)
}

/// A row with another name in its links and as the text of the first.
fn renamed(row: &str, quoted: &str, real: &str, shown: &str) -> String {
    const LINK: &str = "href=\"";
    let new = quote(shown);
    let mut pieces = row.split(LINK);
    let mut html = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (target, rest) = piece.split_once('"').unwrap_or((piece, ""));
        html += &format!("{LINK}{}\"{rest}", target.replace(quoted, &new));
    }
    let text = |name: &str| format!(">{}</a></td>", escape(name));
    html.replacen(&text(real), &text(shown), 1)
}

/// The table of the status page.
struct Table<'a> {
    /// Everything before the first row.
    before: &'a str,
    rows: Vec<&'a str>,
    /// What stands between two rows.
    between: &'a str,
    /// Everything after the last row.
    after: &'a str,
}

impl<'a> Table<'a> {
    /// Text and attributes hold no `<` (`supervisor/templating.py`), so tags are tags.
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

    /// The page without its table, whose place the text takes up to the end of the form.
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

/// The page that shows the end of a process's log. The log itself is left alone.
pub fn tail_back(alias: &Alias, page: &str) -> Rewritten {
    let (real, shown) = (escape(&alias.real), escape(&alias.shown));
    let page = inside(page, "<title>", "</title>", |title| {
        title.replace(&real, &shown)
    });
    let page = inside(&page, "<pre>", "</pre>", |text| {
        if text.starts_with("ERROR: unexpected rpc fault [")
            || text == format!("No file for {real}")
        {
            text.replace(&real, &shown)
        } else {
            text.to_owned()
        }
    });
    // The last link of the page; what comes before it may be the log's.
    let Some(at) = page.rfind("href=\"tail.html?processname=") else {
        return Rewritten::Page(page);
    };
    let link = page[at..].replacen(&quote(&alias.real), &quote(&alias.shown), 1);
    Rewritten::Page(format!("{}{link}", &page[..at]))
}

/// Changes what stands between the first `open` and the last `close`.
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

/// Where an action sends its caller: the message says the client's name.
pub fn message_back(alias: &Alias, location: &str) -> Option<String> {
    let (page, message) = location.rsplit_once(MESSAGE)?;
    let message = alias.text_back(&unquote(message));
    Some(format!("{page}{MESSAGE}{}", quote(&message)))
}

/// Where `restartall` sends its caller, made from where `refresh` does: the time is the daemon's.
pub fn restarted(location: &str) -> Option<String> {
    let (page, message) = location.rsplit_once(MESSAGE)?;
    let message = message.replacen("Page%20refreshed", "All%20restarted", 1);
    Some(format!("{page}{MESSAGE}{message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alias() -> Alias {
        Alias {
            real: "web~1:a&b".to_owned(),
            shown: "web:a&b".to_owned(),
            group: "web".to_owned(),
        }
    }

    #[test]
    fn a_tail_page_names_its_process_but_keeps_its_log() {
        let page = |name: &str, log: &str, link: &str| {
            format!(
                "<title>{name}</title><pre>{log}</pre><a href=\"tail.html?processname={link}&amp;limit=1\">"
            )
        };
        let (real, shown) = ("web~1:a&amp;b", "web:a&amp;b");
        for (log, expected) in [
            (
                format!("No file for {real}"),
                format!("No file for {shown}"),
            ),
            (
                format!("ERROR: unexpected rpc fault [10] BAD_NAME: {real}"),
                format!("ERROR: unexpected rpc fault [10] BAD_NAME: {shown}"),
            ),
            (format!("{real}</pre>{real}"), format!("{real}</pre>{real}")),
        ] {
            let told = tail_back(&alias(), &page(real, &log, "web~1%3Aa%26b"));
            assert_eq!(told, Rewritten::Page(page(shown, &expected, "web%3Aa%26b")));
        }
    }

    #[test]
    fn messages_say_the_name_of_the_client() {
        let told = "http://web~1:a&b/?message=Process%20web~1%3Aa%26b%20stopped";
        let expected = "http://web~1:a&b/?message=Process%20web%3Aa%26b%20stopped";
        assert_eq!(message_back(&alias(), told).as_deref(), Some(expected));
        assert_eq!(message_back(&alias(), "http://h/images/"), None);
        let told = "http://h/?message=Page%20refreshed%20at%20Sun";
        let expected = "http://h/?message=All%20restarted%20at%20Sun";
        assert_eq!(restarted(told).as_deref(), Some(expected));
    }

    proptest! {
        #[test]
        fn any_page_is_taken(page in "(<tbody>|<tr|</tr>|<pre>|</pre>|href=\"tail[.]html[?]processname=|[a\"> \u{e9}]){0,12}") {
            status_back(&Registry::default(), &page);
            tail_back(&alias(), &page);
        }
    }
}
