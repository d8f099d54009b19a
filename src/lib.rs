//! A sidecar that lets an unmodified supervisord change while it runs.
//!
//! From the outside in; each module imports only from those below it:
//!
//! - [`cli`]: what can be typed
//! - [`client`]: the verbs of the command line, which talk to a server like any other client
//! - [`check`]: whether a set-up would work
//! - [`start`]: the steps of a start, and the sentence about each that fails
//! - [`reload`]: options that are read again while the proxy runs
//! - [`server`]: listeners, connections, TLS, the end
//! - [`logging`]: the proxy's own log
//! - [`config`]: what the proxy was told
//! - [`request_log`]: what is logged of each request
//! - [`routes`]: what comes in over HTTP
//! - [`lease`]: programs that go when the client that wanted them is gone
//! - [`rpc`]: who answers a call or a page, and in which names
//! - [`access`]: who may call: credentials, browsers, methods
//! - [`body`]: what is read and held of requests' bodies
//! - [`limits`]: how many connections there may be, and how long they may take
//! - [`pages`]: names in the daemon's web interface and log paths
//! - [`translate`]: between the names of clients and those of the daemon
//! - [`forward`]: a request on its way to the daemon, and the reply on its way back
//! - [`failure`]: why a request gets no answer, and the response that says so
//! - [`update`]: differences between the files and the daemon, judged by the daemon
//! - [`twiddler`]: the core, which makes changes and recovers from those that were cut short
//! - [`persist`]: the file of what outlives the daemon
//! - [`registry`]: what was changed in one epoch of the daemon, in memory and on disk
//! - [`audit`]: who did what, as the log says it
//! - [`daemon`]: the supervisord on the other side, and its configuration file
//! - [`include_dir`], [`program`]: generated files, program sections
//! - [`mod@fault`]: the daemon's faults, and its complaints about what stands in its files
//! - [`xmlrpc`]: the wire format
//! - [`namespec`]: `group:process`, as supervisord writes it
//! - `python`: text and numbers as Python reads and prints them
//! - `failpoint`: points of a change at which a test stops the proxy
//! - [`current`]: a value that can be exchanged while others read it
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
