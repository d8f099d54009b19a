//! The tests that talk to real daemons, in one binary: a module a subject, on one set of fixtures.

#[macro_use]
mod common;

mod access;
mod accounts;
mod additions;
mod browser;
mod bulk;
mod bystanders;
mod check;
mod clients;
mod configuration;
mod daemon_restarts;
mod disk;
mod dropped_connections;
mod exposure;
mod fault_points;
mod forwarding;
mod framing;
mod hanging_values;
mod hostile;
mod logging;
mod losses;
mod main_log;
mod oracle_parity;
mod pages;
mod pages_hidden;
mod persist;
mod placement;
mod proxy_dies;
mod random_sessions;
mod reload;
mod reverse_proxies;
mod run_verb;
mod secrets;
mod session;
mod shutdown;
mod strangers;
mod streaming;
mod tls;
mod turns;
mod twiddler;
mod two_proxies;
mod values;
mod verbs;
mod xmlrpc;
