//! Reloads the options while the proxy runs (SIGHUP).
//!
//! All options are read as at the start. If one is not valid, nothing changes.

use std::sync::Arc;

use crate::access::AccessRules;
use crate::access::method_policy::Policy;
use crate::config::{Config, ServeArgs, Settings};
use crate::current::Current;
use crate::daemon::Daemon;
use crate::logging::LevelHandle;
use crate::server::tls::Tls;

/// The name of the two keys in log messages: one is not valid without the other.
const LOGIN: &str = "username and password";

/// The name in log messages of the credentials that the proxy's ports require as supervisord's port does.
const PORT_LOGIN: &str = "the username and password of supervisord's port";

/// The configuration in use, and the parts of the running proxy that a reload changes.
pub struct Live {
    /// The arguments of the command line.
    pub args: ServeArgs,
    /// The configuration in use.
    pub config: Config,
    /// The daemon, which knows whether supervisord requires credentials.
    pub daemon: Arc<Daemon>,
    /// The access rules.
    pub access: Arc<Current<AccessRules>>,
    /// The methods that may be called.
    pub policy: Arc<Current<Policy>>,
    /// Certificate and key, where TLS is on.
    pub tls: Option<Arc<Tls>>,
    /// The log level.
    pub level: LevelHandle,
}

/// The keys whose values differ between two configurations.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Keys whose new values take effect at once.
    at_once: Vec<&'static str>,
    /// Keys whose new values take effect after a restart.
    restart: Vec<&'static str>,
}

impl Live {
    /// Reads all options and applies the new values that can be applied. Logs the keys, or the errors.
    pub async fn reload(&mut self) {
        let args = self.args.clone();
        // Loading writes a file into the include directory to test it, so it must not block this thread.
        let result = tokio::task::spawn_blocking(move || Config::load(&args)).await;
        let new = match result {
            Ok(Ok(new)) => new,
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
        if let (Some(tls), Some(files)) = (&self.tls, &new.settings.tls) {
            if let Err(error) = tls.reload(files) {
                let sentences = error.to_string();
                for sentence in sentences.lines() {
                    tracing::error!("kept the former settings: {sentence}");
                }
                return;
            }
            tracing::info!("read certificate and key again");
        }
        let changes = changes(&self.config, &new);
        apply(&mut self.config.settings, new.settings, &changes);
        let settings = &self.config.settings;
        self.access.set(self.config.access_rules(&self.daemon));
        self.policy.set(settings.policy());
        self.level.set(settings.log_level);
        changes.log();
    }
}

/// Copies the values that take effect at once; `used` keeps the others until the restart.
fn apply(used: &mut Settings, new: Settings, changes: &Changes) {
    if changes.at_once.contains(&LOGIN) {
        used.login = new.login;
    }
    if changes.at_once.contains(&PORT_LOGIN) {
        used.port_login = new.port_login;
    }
    if used.tls.is_some() && new.tls.is_some() {
        used.tls = new.tls;
    }
    used.hosts = new.hosts;
    used.allow = new.allow;
    used.whitelist = new.whitelist;
    used.log_level = new.log_level;
}

impl Changes {
    fn log(&self) {
        match self.at_once.as_slice() {
            [] => tracing::info!("read the options again: nothing new that can be taken up"),
            keys => tracing::info!("read the options again: took up {}", keys.join(", ")),
        }
        if !self.restart.is_empty() {
            let keys = self.restart.join(", ");
            tracing::warn!("restart twiddler to take up {keys}");
        }
    }
}

/// The keys whose values differ between the configuration in use and the new one.
fn changes(used_config: &Config, new_config: &Config) -> Changes {
    let (old, new) = (&used_config.settings, &new_config.settings);
    let mut changes = Changes::default();
    let mut add = |key, differs: bool, at_once: bool| match (differs, at_once) {
        (false, _) => {}
        (true, true) => changes.at_once.push(key),
        (true, false) => changes.restart.push(key),
    };
    let moved = old.listen != new.listen || used_config.daemon != new_config.daemon;
    // A configuration without credentials was accepted because of its addresses, which take effect only
    // after a restart. Until then the old credentials are required.
    add(LOGIN, old.login != new.login, new.login.is_some() || !moved);
    add(PORT_LOGIN, old.port_login != new.port_login, !moved);
    add("hosts", old.hosts != new.hosts, true);
    add("allow", old.allow != new.allow, true);
    add("whitelist", old.whitelist != new.whitelist, true);
    add("log_level", old.log_level != new.log_level, true);
    let tls_stays_on_or_off = old.tls.is_some() == new.tls.is_some();
    add(
        "tls_cert and tls_key",
        old.tls != new.tls,
        tls_stays_on_or_off,
    );
    add("listen", old.listen != new.listen, false);
    add("chmod and chown", old.socket != new.socket, false);
    let daemon_differs = used_config.daemon != new_config.daemon;
    add("supervisord", daemon_differs, false);
    add(
        "the username and password of supervisord",
        used_config.credentials != new_config.credentials,
        false,
    );
    let include_differs = used_config.include != new_config.include;
    add("include_dir", include_differs, false);
    add("persist", old.persist != new.persist, false);
    add("live_update", old.live_update != new.live_update, false);
    add("log_format", old.log_format != new.log_format, false);
    changes
}
