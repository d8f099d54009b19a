//! A daemon that accepts connections and closes them at once, as one does whose descriptors are
//! astray, while an old connection goes on working: a change is given up after a few tries, and
//! nothing is left of it.

use std::time::{Duration, Instant};

use crate::common::changes::{USER, View};
use crate::common::include::ensure_include_holds;
use crate::common::relay::Relay;
use crate::common::stuck::sections;
use crate::common::{Daemon, Sidecar, options};
use anyhow::{Context, Result, ensure};

/// A few tries with pauses take less than a second; without a bound they never end.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// So many take the daemon longer to read than a connection that is dropped stays open.
const PROGRAMS: usize = 80;
/// A few tries write a few lines each.
const FEW_LINES: usize = 40;

#[test]
fn a_change_is_given_up_and_leaves_nothing() -> Result<()> {
    let daemon = Daemon::start(&(sections(PROGRAMS) + USER))?;
    let relay = Relay::start(&daemon)?;
    for arguments in [
        &["--supervisord", &relay.url()][..],
        &["--supervisord", &relay.url(), "--persist"],
    ] {
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.socket_client();
        client.call("twiddler.addGroup", ("old", 1))?;
        let before = View::of(&client)?;
        let lines = || -> Result<usize> {
            let journal = daemon.read("conf.d/.twiddler-journal")?;
            Ok(journal.lines().count())
        };
        let written = lines()?;
        relay.drop_connections();
        let since = Instant::now();
        let program = options(&[("command", "/bin/cat"), ("autostart", "false")]);
        let outcome = client.call(
            "twiddler.addProgramToGroup",
            ("web", "new", program.clone()),
        );
        let taken = since.elapsed();
        let error = outcome.err().context("it was made")?;
        ensure!(error.status() == Some(502), "{error:?}");
        ensure!(taken < GIVEN_UP, "given up after {taken:?}");
        // The journal may have been tidied meanwhile.
        let written = lines()?.saturating_sub(written);
        ensure!(written < FEW_LINES, "{written} lines");
        ensure!(relay.dropped() > 0, "no connection was dropped");
        relay.hand_on_again();
        ensure!(View::of(&client)? == before, "{:?}", View::of(&client)?);
        let kept = ["zz-twiddler-persist.conf"];
        ensure_include_holds(&daemon, if arguments.len() > 2 { &kept } else { &[] })?;
        // And the next one is made.
        client.call("twiddler.addProgramToGroup", ("web", "new", program))?;
        client.call("twiddler.removeProcessFromGroup", ("web", "new"))?;
        client.call("twiddler.removeGroup", ("old",))?;
        sidecar.stop()?;
    }
    Ok(())
}
