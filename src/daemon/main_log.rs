//! Writes lines to the daemon's main log.
//!
//! The daemon has no method for it, so the proxy appends lines to the file in the daemon's format
//! (`supervisor/options.py`, `make_logger`; `supervisor/loggers.py`, `LogRecord.asdict`).

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::conf::{LogFile, LogLevel};
use crate::fault::{FAILED, fault};
use crate::xmlrpc::Fault;

/// How long a rotation of the log may take, during which the file may be missing.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to try again during a rotation.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Flags of open(2).
const O_APPEND: u32 = 0o2000;
const O_ACCMODE: u32 = 0o3;

/// The daemon's main log.
#[derive(Clone, Debug)]
pub struct MainLog {
    file: LogFile,
    threshold: LogLevel,
}

impl MainLog {
    /// Returns the main log with the `logfile` and `loglevel` of the daemon's configuration.
    pub fn new(file: LogFile, threshold: LogLevel) -> Self {
        MainLog { file, threshold }
    }

    /// Appends `message`, unless `level` is below the daemon's `loglevel`. `daemon` is the pid of the
    /// daemon, which helps to detect that the daemon would overwrite the line.
    ///
    /// # Errors
    /// The fault `FAILED` with the reason why the proxy cannot write the file.
    pub async fn write(
        &self,
        level: LogLevel,
        message: &str,
        daemon: Option<i64>,
    ) -> Result<(), Fault> {
        if level.number() < self.threshold.number() {
            return Ok(());
        }
        let path = match target(&self.file) {
            Target::File(path) => path,
            Target::Discarded => return Ok(()),
            Target::Unreachable(reason) => return Err(fault(FAILED, reason)),
        };
        let now = chrono::Local::now().format("%Y-%m-%d %H:%M:%S,%3f");
        let line = format!("{now} {} {}\n", level.code(), one_line(message));
        let daemon = daemon
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        append(path, daemon, &line).await.map_err(|error| {
            let path = path.display();
            fault(
                FAILED,
                format!("cannot write supervisord's log {path} from here: {error}"),
            )
        })
    }
}

/// The target of a line for the daemon's log.
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A file.
    File(&'a Path),
    /// `/dev/null`: the daemon discards its log.
    Discarded,
    /// Only the daemon can write its log, for this reason.
    Unreachable(String),
}

/// Returns the target of a line that another process than the daemon writes.
pub fn target(file: &LogFile) -> Target<'_> {
    let path = match file {
        LogFile::File(path) => path,
        LogFile::Syslog => {
            let reason = "supervisord logs to syslog, which has no file to write to";
            return Target::Unreachable(reason.to_owned());
        }
        LogFile::Unknown(missing) => {
            return Target::Unreachable(format!(
                "twiddler does not know where supervisord logs: {missing} for twiddler"
            ));
        }
    };
    match destination(path) {
        end if end == Path::new("/dev/null") => Target::Discarded,
        end if is_own_descriptor(&end) => Target::Unreachable(format!(
            "supervisord logs to {}, which is its own output and another file for every other process",
            path.display()
        )),
        _ => Target::File(path),
    }
}

/// Follows symbolic links, except those of the kernel that differ for each process.
fn destination(path: &Path) -> PathBuf {
    /// The number of links that Linux follows (path_resolution(7)).
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if is_own_descriptor(&path) {
            break;
        }
        let Ok(target) = std::fs::read_link(&path) else {
            break;
        };
        path = path
            .parent()
            .map_or(target.clone(), |dir| dir.join(&target));
    }
    path
}

/// Returns whether a path means another file in each process.
fn is_own_descriptor(path: &Path) -> bool {
    const STANDARD: [&str; 3] = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
    const DIRECTORIES: [&str; 3] = ["/dev/fd", "/proc/self", "/proc/thread-self"];
    STANDARD.iter().any(|name| path == Path::new(name))
        || DIRECTORIES.iter().any(|dir| path.starts_with(dir))
}

/// Escapes characters that end a line, move a terminal's cursor or change the direction of text, in the
/// notation of Python's strings. A tab is not escaped.
fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        match (c, u32::from(c)) {
            ('\n', _) => line.push_str("\\n"),
            ('\r', _) => line.push_str("\\r"),
            ('\t', _) => line.push(c),
            (_, code @ 0..0x100) if c.is_control() => line.push_str(&format!("\\x{code:02x}")),
            (_, code @ (0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069)) => {
                line.push_str(&format!("\\u{code:04x}"));
            }
            _ => line.push(c),
        }
    }
    line
}

/// Appends `line` with one write, so that no line of the daemon splits it. Waits while the daemon rotates
/// its log or would overwrite the line.
async fn append(path: &Path, daemon: Option<Pid>, line: &str) -> io::Result<()> {
    let deadline = tokio::time::Instant::now() + ROTATION_TIMEOUT;
    let mut inode_of_last_request = None;
    loop {
        let in_time = tokio::time::Instant::now() < deadline;
        match open(path) {
            Ok(mut file) => {
                let overwriting = daemon.filter(|daemon| in_time && overwrites(*daemon, &file));
                // One request per file is enough, and each rotation makes another file.
                let inode = file.metadata()?.ino();
                let has_to_wait = overwriting.is_some_and(|daemon| {
                    inode_of_last_request.replace(inode) == Some(inode) || request_reopen(daemon)
                });
                if !has_to_wait {
                    return file.write_all(line.as_bytes());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound && in_time && was_rotated(path) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Opens an existing log for appending. It creates no file, because the daemon would not write to it.
///
/// # Errors
/// If the file cannot be written, or is not a regular file: opening a FIFO without a reader would block.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .append(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    }
}

/// Returns whether the earlier log that a rotation leaves exists.
fn was_rotated(path: &Path) -> bool {
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(".1");
    PathBuf::from(rotated).exists()
}

/// Returns whether the daemon writes to `file` without `O_APPEND`, and so overwrites lines that other
/// processes append. It does so after a rotation (`supervisor/loggers.py`, `doRollover`). Returns
/// false if the daemon's descriptors are not visible, for example in another container.
fn overwrites(daemon: Pid, file: &File) -> bool {
    writers(daemon, file).is_ok_and(|flags| flags.iter().any(|flags| flags & O_APPEND == 0))
}

/// Returns the flags of the daemon's descriptors that are open for writing to `file`.
fn writers(daemon: Pid, file: &File) -> io::Result<Vec<u32>> {
    let log = file.metadata()?;
    let process = PathBuf::from(format!("/proc/{daemon}"));
    let mut flags = Vec::new();
    for entry in std::fs::read_dir(process.join("fd"))?.flatten() {
        let Ok(metadata) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if (metadata.dev(), metadata.ino()) == (log.dev(), log.ino()) {
            let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name()))?;
            flags.extend(descriptor_flags(&info).filter(|flags| flags & O_ACCMODE != 0));
        }
    }
    Ok(flags)
}

/// Parses the octal `flags:` line of `/proc/PID/fdinfo/FD` (proc(5)).
fn descriptor_flags(info: &str) -> Option<u32> {
    let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// Sends SIGUSR2, on which the daemon opens its logs again for appending. Returns false if the proxy may
/// not signal the daemon.
fn request_reopen(daemon: Pid) -> bool {
    let result = kill(daemon, Signal::SIGUSR2);
    tracing::debug!(
        asked = ?result,
        "asked supervisord to open its log again, because it overwrites lines that others append"
    );
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_differ_for_each_process_are_unreachable() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = |name: &str, target: &str| {
            let path = dir.path().join(name);
            std::os::unix::fs::symlink(target, &path).map(|()| path)
        };
        let own = link("own", "/dev/stdout")?;
        for (path, is_unreachable) in [
            ("/dev/stdout".into(), true),
            ("/dev/stderr".into(), true),
            ("/dev/fd/7".into(), true),
            ("/proc/self/fd/1".into(), true),
            (own, true),
            (link("again", "own")?, true),
            (link("log", "elsewhere")?, false),
            (link("loop", "loop")?, false),
            ("/var/log/dev/stdout".into(), false),
        ] {
            let file = LogFile::File(path);
            match target(&file) {
                Target::Unreachable(_) => assert!(is_unreachable, "{file:?}"),
                target => assert_eq!((target, is_unreachable), (as_file(&file), false)),
            }
        }
        let null = LogFile::File(link("null", "/dev/null")?);
        assert_eq!(target(&null), Target::Discarded);
        assert_eq!(
            target(&LogFile::File("/dev/null".into())),
            Target::Discarded
        );
        Ok(())
    }

    #[test]
    fn a_log_that_is_no_regular_file_is_not_opened() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
        assert!(open(&fifo).is_err());
        assert!(open(Path::new("/dev/null")).is_err());
        assert!(!dir.path().join("none").exists() && open(&dir.path().join("none")).is_err());
        Ok(())
    }

    fn as_file(file: &LogFile) -> Target<'_> {
        match file {
            LogFile::File(path) => Target::File(path),
            LogFile::Syslog | LogFile::Unknown(_) => Target::Discarded,
        }
    }

    #[test]
    fn every_message_is_one_line() {
        let table = [
            (
                "plain äöü \t tab, \\n as it is",
                "plain äöü \t tab, \\n as it is",
            ),
            ("a\nb\r\nc", "a\\nb\\r\\nc"),
            ("\u{1b}[2Jx\0\u{7f}\u{85}", "\\x1b[2Jx\\x00\\x7f\\x85"),
            (
                "\u{2028}\u{2029}\u{202e}\u{2066}",
                "\\u2028\\u2029\\u202e\\u2066",
            ),
        ];
        for (message, line) in table {
            assert_eq!(one_line(message), line);
        }
    }

    #[test]
    fn descriptor_flags_are_parsed() {
        let info = "pos:\t12\nflags:\t0102001\nmnt_id:\t29\n";
        assert_eq!(descriptor_flags(info), Some(0o102001));
        assert_eq!(descriptor_flags("pos:\t0\n"), None);
    }
}
