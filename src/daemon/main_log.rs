//! Lines in the daemon's own main log.
//!
//! The daemon has no call for it, so the line is appended to its file in its format
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

/// While the daemon rotates its log there is no file of that name for an instant.
const ROTATION: Duration = Duration::from_secs(5);
/// open(2): where writes go, and whether there are any.
const O_APPEND: u32 = 0o2000;
const O_ACCMODE: u32 = 0o3;
/// How often to look for the file meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The daemon's main log, as the proxy reaches it.
#[derive(Clone, Debug)]
pub struct MainLog {
    file: LogFile,
    threshold: LogLevel,
}

impl MainLog {
    /// The log that the configuration names, and the level below which nothing is written.
    pub fn new(file: LogFile, threshold: LogLevel) -> Self {
        MainLog { file, threshold }
    }

    /// Appends `message`, unless `level` is below the daemon's `loglevel`. The process number of the
    /// `daemon` helps to see whether it would write over the line.
    ///
    /// # Errors
    /// A fault that says why the file cannot be written from here.
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
            Target::Nothing => return Ok(()),
            Target::OutOfReach(reason) => return Err(fault(FAILED, reason)),
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

/// Where lines for the daemon's log go.
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// To this file.
    File(&'a Path),
    /// Nowhere: the daemon throws them away.
    Nothing,
    /// Where only the daemon can write, for this reason.
    OutOfReach(String),
}

/// What the daemon's log is to another process than the daemon.
pub fn target(file: &LogFile) -> Target<'_> {
    let path = match file {
        LogFile::File(path) => path,
        LogFile::Syslog => {
            let reason = "supervisord logs to syslog, which has no file to write to";
            return Target::OutOfReach(reason.to_owned());
        }
        LogFile::Unknown(missing) => {
            return Target::OutOfReach(format!(
                "twiddler does not know where supervisord logs: {missing} for twiddler"
            ));
        }
    };
    match destination(path) {
        end if end == Path::new("/dev/null") => Target::Nothing,
        end if is_own_descriptor(&end) => Target::OutOfReach(format!(
            "supervisord logs to {}, which is its own output and another file for every other process",
            path.display()
        )),
        _ => Target::File(path),
    }
}

/// Where symbolic links lead, but for those of the kernel's that lead elsewhere for each process.
fn destination(path: &Path) -> PathBuf {
    /// As many as Linux follows (path_resolution(7)).
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

fn is_own_descriptor(path: &Path) -> bool {
    const STANDARD: [&str; 3] = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
    const DIRECTORIES: [&str; 3] = ["/dev/fd", "/proc/self", "/proc/thread-self"];
    STANDARD.iter().any(|name| path == Path::new(name))
        || DIRECTORIES.iter().any(|dir| path.starts_with(dir))
}

/// The message without anything that ends a line, moves a terminal's cursor or turns the direction of
/// text: such characters are written as Python writes them in a string. A tab stays.
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

/// Writes `line` in one piece, so that it stays whole beside the daemon's own.
async fn append(path: &Path, daemon: Option<Pid>, line: &str) -> io::Result<()> {
    let deadline = tokio::time::Instant::now() + ROTATION;
    let mut asked_about = None;
    loop {
        let in_time = tokio::time::Instant::now() < deadline;
        match open(path) {
            Ok(mut file) => {
                let spoilt = daemon.filter(|daemon| in_time && overwrites(*daemon, &file));
                // Each rotation makes another file, about which the daemon must be asked again.
                let inode = file.metadata()?.ino();
                let waits = spoilt.is_some_and(|daemon| {
                    asked_about.replace(inode) == Some(inode) || ask_to_reopen(daemon)
                });
                if !waits {
                    return file.write_all(line.as_bytes());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound && in_time && was_rotated(path) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Opens a log to append to it. The file must be there: one that we made would not be the daemon's.
///
/// # Errors
/// When it cannot be written, or is not a regular file: a FIFO without a reader would hold us up.
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

/// Rotation leaves the earlier log beside it.
fn was_rotated(path: &Path) -> bool {
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(".1");
    PathBuf::from(rotated).exists()
}

/// Whether the daemon writes to `file` where it left off rather than at the end, and so over what
/// others append. It does so after it rotated its log (`supervisor/loggers.py`, `doRollover`).
/// What cannot be seen from here, in another container say, is taken for harmless.
fn overwrites(daemon: Pid, file: &File) -> bool {
    writers(daemon, file).is_ok_and(|flags| flags.iter().any(|flags| flags & O_APPEND == 0))
}

/// The flags of the daemon's descriptors that are open for writing to the same file.
fn writers(daemon: Pid, file: &File) -> io::Result<Vec<u32>> {
    let same = file.metadata()?;
    let process = PathBuf::from(format!("/proc/{daemon}"));
    let mut flags = Vec::new();
    for entry in std::fs::read_dir(process.join("fd"))?.flatten() {
        let Ok(found) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if (found.dev(), found.ino()) == (same.dev(), same.ino()) {
            let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name()))?;
            flags.extend(descriptor_flags(&info).filter(|flags| flags & O_ACCMODE != 0));
        }
    }
    Ok(flags)
}

/// The octal `flags:` line of a descriptor (proc(5)).
fn descriptor_flags(info: &str) -> Option<u32> {
    let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// Lets the daemon open its logs again, at their end this time. False where we may not.
fn ask_to_reopen(daemon: Pid) -> bool {
    let asked = kill(daemon, Signal::SIGUSR2);
    tracing::debug!(
        ?asked,
        "asked supervisord to open its log again, because it overwrites what others append"
    );
    asked.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_from_what_is_another_file_for_each_process() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let named = |name: &str, target: &str| {
            let path = dir.path().join(name);
            std::os::unix::fs::symlink(target, &path).map(|()| path)
        };
        let own = named("own", "/dev/stdout")?;
        for (path, out_of_reach) in [
            ("/dev/stdout".into(), true),
            ("/dev/stderr".into(), true),
            ("/dev/fd/7".into(), true),
            ("/proc/self/fd/1".into(), true),
            (own, true),
            (named("again", "own")?, true),
            (named("log", "elsewhere")?, false),
            (named("round", "round")?, false),
            ("/var/log/dev/stdout".into(), false),
        ] {
            let file = LogFile::File(path);
            match target(&file) {
                Target::OutOfReach(_) => assert!(out_of_reach, "{file:?}"),
                target => assert_eq!((target, out_of_reach), (as_file(&file), false)),
            }
        }
        let null = LogFile::File(named("null", "/dev/null")?);
        assert_eq!(target(&null), Target::Nothing);
        assert_eq!(target(&LogFile::File("/dev/null".into())), Target::Nothing);
        Ok(())
    }

    #[test]
    fn a_log_without_a_reader_is_not_waited_for() -> io::Result<()> {
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
            LogFile::Syslog | LogFile::Unknown(_) => Target::Nothing,
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_it_holds() {
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
    fn flags_are_read_from_their_line() {
        let info = "pos:\t12\nflags:\t0102001\nmnt_id:\t29\n";
        assert_eq!(descriptor_flags(info), Some(0o102001));
        assert_eq!(descriptor_flags("pos:\t0\n"), None);
    }
}
