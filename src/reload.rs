//! Options that are read again while the proxy runs (SIGHUP).
//!
//! All of them are read as at the start. Where something is wrong, nothing changes.

use std::sync::Arc;

use crate::access::AccessRules;
use crate::access::method_policy::Policy;
use crate::config::{Config, ServeArgs, Settings};
use crate::current::Current;
use crate::daemon::Daemon;
use crate::logging::LevelHandle;
use crate::server::tls::Tls;

/// What is said of both keys, neither of which means anything alone.
const LOGIN: &str = "username and password";

/// What is said of what callers of ports present because supervisord's port asks for it.
const PORT_LOGIN: &str = "the username and password of supervisord's port";

/// What holds while the proxy runs, and what it was made of.
pub struct Live {
    /// What was typed at the start.
    pub args: ServeArgs,
    /// What was read last.
    pub config: Config,
    /// The daemon, which says whether it asks for credentials.
    pub daemon: Arc<Daemon>,
    /// Who may come in.
    pub access: Arc<Current<AccessRules>>,
    /// What may be called.
    pub policy: Arc<Current<Policy>>,
    /// TLS, where it is on.
    pub tls: Option<Arc<Tls>>,
    /// How much is logged.
    pub level: LevelHandle,
}

/// What differs between two readings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Keys whose new values hold now.
    taken: Vec<&'static str>,
    /// Keys whose new values hold after a restart.
    restart: Vec<&'static str>,
}

impl Live {
    /// Reads everything again, and says what came of it.
    pub async fn read_again(&mut self) {
        let args = self.args.clone();
        // The include directory is tried, which is work for a disk.
        let read = tokio::task::spawn_blocking(move || Config::load(&args)).await;
        let fresh = match read {
            Ok(Ok(fresh)) => fresh,
            Ok(Err(errors)) => {
                for mistake in errors.iter() {
                    tracing::error!("kept the former settings: {mistake}");
                }
                return;
            }
            Err(error) => {
                return tracing::error!(%error, "kept the former settings: they could not be read");
            }
        };
        if let (Some(tls), Some(files)) = (&self.tls, &fresh.settings.tls) {
            if let Err(error) = tls.reload(files) {
                let sentences = error.to_string();
                for sentence in sentences.lines() {
                    tracing::error!("kept the former settings: {sentence}");
                }
                return;
            }
            tracing::info!("read certificate and key again");
        }
        let changes = changes(&self.config, &fresh);
        take(&mut self.config.settings, fresh.settings, &changes);
        let settings = &self.config.settings;
        self.access.set(self.config.access_rules(&self.daemon));
        self.policy.set(settings.policy());
        self.level.set(settings.log_level);
        changes.log();
    }
}

/// Takes up what can be; the rest stays as it is in use.
fn take(used: &mut Settings, fresh: Settings, changes: &Changes) {
    if changes.taken.contains(&LOGIN) {
        used.login = fresh.login;
    }
    if changes.taken.contains(&PORT_LOGIN) {
        used.port_login = fresh.port_login;
    }
    if used.tls.is_some() && fresh.tls.is_some() {
        used.tls = fresh.tls;
    }
    used.hosts = fresh.hosts;
    used.allow = fresh.allow;
    used.whitelist = fresh.whitelist;
    used.log_level = fresh.log_level;
}

impl Changes {
    fn log(&self) {
        match self.taken.as_slice() {
            [] => tracing::info!("read the options again: nothing new that can be taken up"),
            taken => tracing::info!("read the options again: took up {}", taken.join(", ")),
        }
        if !self.restart.is_empty() {
            let keys = self.restart.join(", ");
            tracing::warn!("restart twiddler to take up {keys}");
        }
    }
}

/// The keys whose values differ from those in use.
fn changes(used: &Config, fresh: &Config) -> Changes {
    let (old, new) = (&used.settings, &fresh.settings);
    let mut changes = Changes::default();
    let mut note = |key, differs: bool, at_once: bool| match (differs, at_once) {
        (false, _) => {}
        (true, true) => changes.taken.push(key),
        (true, false) => changes.restart.push(key),
    };
    let moved = old.listen != new.listen || used.daemon != fresh.daemon;
    // Whether nobody need be asked was judged for the new addresses, which are not in use.
    note(LOGIN, old.login != new.login, new.login.is_some() || !moved);
    note(PORT_LOGIN, old.port_login != new.port_login, !moved);
    note("hosts", old.hosts != new.hosts, true);
    note("allow", old.allow != new.allow, true);
    note("whitelist", old.whitelist != new.whitelist, true);
    note("log_level", old.log_level != new.log_level, true);
    let both = old.tls.is_some() == new.tls.is_some();
    note("tls_cert and tls_key", old.tls != new.tls, both);
    note("listen", old.listen != new.listen, false);
    note("chmod and chown", old.socket != new.socket, false);
    note("supervisord", used.daemon != fresh.daemon, false);
    note(
        "the username and password of supervisord",
        used.credentials != fresh.credentials,
        false,
    );
    note("include_dir", used.include != fresh.include, false);
    note("persist", old.persist != new.persist, false);
    note("live_update", old.live_update != new.live_update, false);
    note("log_format", old.log_format != new.log_format, false);
    changes
}
