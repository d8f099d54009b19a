//! A sidecar that adds and removes programs of an unmodified supervisord while it runs.
//!
//! The modules, from the outside in. Each imports only from modules below it:
//!
//! - [`cli`]: the command line and its help
//! - [`client`]: the verbs of the command line, which talk to a server like any other client
//! - [`check`]: tries whether a configuration works, and changes nothing
//! - [`start`]: the steps of a start, and the error text of each
//! - [`reload`]: reads the options again at SIGHUP
//! - [`server`]: listeners, connections, TLS, the shutdown
//! - [`logging`]: the proxy's own log
//! - [`config`]: the settings from command line, environment and file
//! - [`request_log`]: the log line of each request
//! - [`routes`]: the paths of HTTP requests
//! - [`lease`]: removes programs whose client has ended
//! - [`rpc`]: answers XML-RPC calls, or forwards them with other names
//! - [`access`]: decides who may call: credentials, browsers, methods
//! - [`body`]: reads and limits the bodies of requests
//! - [`limits`]: limits the number of connections and their time
//! - [`pages`]: rewrites names in the daemon's web interface and log paths
//! - [`translate`]: rewrites names in calls and replies between clients and the daemon
//! - [`forward`]: passes a request to the daemon, and the reply to the client
//! - [`failure`]: the reasons for error responses, and the responses
//! - [`update`]: compares the files with the daemon, and puts differences in force
//! - [`twiddler`]: the core: adds and removes programs, and recovers
//! - [`persist`]: the file of the programs that outlive the daemon
//! - [`registry`]: the changes in one epoch of the daemon, in memory and on disk
//! - [`audit`]: logs who did what
//! - [`daemon`]: calls supervisord, and reads its configuration file
//! - [`include_dir`], [`program`]: generated files, program sections
//! - [`mod@fault`]: the daemon's faults, and its complaints about its files
//! - [`xmlrpc`]: the wire format
//! - [`namespec`]: `group:process`, as supervisord writes it
//! - `python`: text and numbers as Python reads and prints them
//! - `failpoint`: points of a change at which a test stops the proxy
//! - [`current`]: a value that can be replaced while other tasks read it
//! - [`marked_text`]: texts in which values are marked
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
mod failpoint;
pub mod failure;
pub mod fault;
pub mod forward;
pub mod include_dir;
pub mod lease;
pub mod limits;
pub mod logging;
pub mod marked_text;
pub mod namespec;
pub mod pages;
pub mod persist;
pub mod program;
mod python;
pub mod registry;
pub mod reload;
pub mod request_log;
pub mod routes;
pub mod rpc;
pub mod server;
pub mod start;
pub mod translate;
pub mod twiddler;
pub mod update;
pub mod words;
pub mod xmlrpc;
