//! A sidecar that lets an unmodified supervisord change while it runs.
//!
//! From the outside in; each module imports only from those below it:
//!
//! - [`client`]: the verbs of the command line, which talk to a server like any other client
//! - [`check`]: whether a set-up would work
//! - [`start`]: the steps of a start, and the sentence about each that fails
//! - [`reload`]: options that are read again while the proxy runs
//! - [`server`]: listeners, connections, the end
//! - [`tls`]: certificates for TCP
//! - [`request_log`]: what is logged of each request
//! - [`doors`]: who may come in
//! - [`http`]: what comes in over HTTP
//! - [`body`]: what is read and held of requests' bodies
//! - [`pace`]: how many there may be, and how long they may take
//! - [`rpc`]: who answers a call or a page, and in which names
//! - [`pages`]: names in the daemon's web interface and log paths
//! - [`names`]: between the names of clients and those of the daemon
//! - [`relay`]: passing a request on and its reply back
//! - [`twiddler`]: what was changed at run time, and how it is changed
//! - [`logging`]: the proxy's own log
//! - [`audit`]: who did what, as the log says it
//! - [`config`], [`cli`]: what the proxy was told
//! - [`daemon`]: the supervisord on the other side, and its configuration file
//! - [`include_dir`], [`program`], [`xmlrpc`]: files, program sections, the wire format
//! - `python`: text and numbers as Python reads and prints them
//! - [`access`]: what browsers may be made to send
//! - [`password`], [`policy`]: what callers must present, and which methods there are for them
//! - [`current`]: a value that can be exchanged while others read it
//! - [`words`]: words that nearly match

pub mod access;
pub mod audit;
pub mod body;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod current;
pub mod daemon;
pub mod doors;
pub mod http;
pub mod include_dir;
pub mod logging;
pub mod names;
pub mod pace;
pub mod pages;
pub mod password;
pub mod policy;
pub mod program;
mod python;
pub mod relay;
pub mod reload;
pub mod request_log;
pub mod rpc;
mod seam;
pub mod server;
pub mod start;
pub mod tls;
pub mod twiddler;
pub mod words;
pub mod xmlrpc;
