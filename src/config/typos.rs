//! Finds sections and environment variables whose names are most likely misspelt. They are no mistakes,
//! because other programs may use them.

use super::options::{self, CONFIG, variable};
use crate::daemon::conf::DaemonConf;
use crate::words::is_misspelt;

/// The proxy's section of supervisord.conf.
const SECTION: &str = "twiddler";

/// A note for each section whose name is like [`SECTION`].
pub(super) fn sections(conf: &DaemonConf) -> impl Iterator<Item = String> {
    let misspelt = conf
        .sections
        .iter()
        .filter(|name| is_misspelt(name, SECTION));
    misspelt.map(|name| {
        let file = conf.file.display();
        format!("{file}: [{name}] counts for nothing; write [{SECTION}]")
    })
}

/// A note for each environment variable whose name is like that of an option.
pub(super) fn variables<'a>(
    names: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = String> {
    let keys = options::keys().into_iter().chain([CONFIG]);
    let known: Vec<String> = keys.map(variable).collect();
    names.filter_map(move |name| {
        // Names of variables are case-sensitive, so another case is a misspelling, too.
        let is_known = known.iter().any(|known| known == name);
        let similar = known
            .iter()
            .find(|known| !is_known && is_misspelt(name, known))?;
        Some(format!(
            "the variable {name} counts for nothing; write {similar}"
        ))
    })
}
