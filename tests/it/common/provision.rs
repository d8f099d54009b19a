//! The daemons under test: supervisor releases in virtual environments under `target/test-envs`.
//!
//! `python3 -m venv` and pip create an environment when a test first needs it. A file lock lets one test
//! binary create it while others wait. A stamp, which is written last, shows that the environment is
//! complete, by the current recipe, at this path, and with a Python that exists.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::{command_line, run_within, succeeded};

const ADVICE: &str = "\
The tests run against real supervisor releases and could not get one. They need
  - python3 (3.8 or newer) with the venv module: on Debian and Ubuntu `apt install python3 python3-venv`
  - pip able to download packages (network, or its usual configuration for a mirror)
and cannot run without.";

/// Variables of the caller's environment that would make Python or pip use another environment.
const MISLEADING: [&str; 7] = [
    "PIP_PREFIX",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "PYTHONHOME",
    "PYTHONPATH",
];

/// How long a complete build may take on a small machine.
const BUILD_TIME: Duration = Duration::from_secs(30 * 60);

/// A release of supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The newest release.
    #[default]
    V4_3_0,
    /// The release of Debian 12.
    V4_2_5,
    /// The newest release, with supervisor_twiddler 1.0.0.
    Oracle,
    /// The newest release, with superlance 2.0.0.
    Superlance,
}

impl Version {
    /// The stock releases that the sidecar must work with.
    pub const STOCK: [Version; 2] = [Version::V4_3_0, Version::V4_2_5];

    /// The release's number, as `getSupervisorVersion` returns it.
    pub fn number(self) -> &'static str {
        match self {
            Version::V4_3_0 | Version::Oracle | Version::Superlance => "4.3.0",
            Version::V4_2_5 => "4.2.5",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Version::V4_3_0 => "supervisor-4.3.0",
            Version::V4_2_5 => "supervisor-4.2.5",
            Version::Oracle => "supervisor-4.3.0-with-twiddler-1.0.0",
            Version::Superlance => "supervisor-4.3.0-with-superlance-2.0.0",
        }
    }

    /// The arguments of the calls of `pip install`, in their order.
    fn installs(self) -> &'static [&'static [&'static str]] {
        match self {
            Version::V4_3_0 => &[&["supervisor==4.3.0"]],
            // supervisor 4.2.5 imports pkg_resources, which setuptools 81 has removed.
            Version::V4_2_5 => &[&["setuptools<81"], &["supervisor==4.2.5"]],
            // The extension is a source archive, whose build needs an older setuptools, too.
            Version::Oracle => &[
                &["setuptools<81", "wheel"],
                &["supervisor==4.3.0"],
                &["--no-build-isolation", "supervisor_twiddler==1.0.0"],
            ],
            Version::Superlance => &[&["supervisor==4.3.0", "superlance==2.0.0"]],
        }
    }

    fn modules(self) -> &'static str {
        match self {
            Version::V4_3_0 | Version::V4_2_5 => "supervisor.supervisord",
            Version::Oracle => "supervisor.supervisord, supervisor_twiddler.rpcinterface",
            Version::Superlance => "supervisor.supervisord, superlance.httpok",
        }
    }
}

/// A virtual environment with a release of supervisor in it.
#[derive(Debug)]
pub struct Venv {
    dir: PathBuf,
}

/// The environment of this release. It is created if it does not exist.
///
/// # Panics
///
/// If it cannot be created. The message has advice. A missing daemon fails a test and never skips it.
pub fn venv(version: Version) -> &'static Venv {
    static VENVS: [OnceLock<Result<Venv, String>>; 4] = [const { OnceLock::new() }; 4];
    let environment = VENVS[version as usize]
        .get_or_init(|| provision(version).map_err(|error| format!("{error:#}\n\n{ADVICE}")));
    match environment {
        Ok(venv) => venv,
        Err(text) => panic!("{text}"),
    }
}

impl Venv {
    /// Its Python interpreter.
    pub fn python(&self) -> PathBuf {
        self.dir.join("bin/python")
    }

    /// `python -m module` without the caller's environment, with the programs of this one first in `PATH`.
    pub fn command(&self, module: &str) -> Command {
        let mut command = self.bare_command();
        command.args(["-m", module]);
        command
    }

    /// The interpreter without arguments, in the same environment as [`Venv::command`].
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(self.python());
        scrub(&mut command);
        command.env(
            "PATH",
            format!("{}:{}", self.dir.join("bin").display(), search_path()),
        );
        command
    }
}

/// Runs a check on both stock releases concurrently: it waits for its daemon most of the time.
pub fn with_both_releases(check: impl Fn(Version) -> Result<()> + Sync) -> Result<()> {
    let check = &check;
    thread::scope(|scope| {
        let checks = Version::STOCK.map(|version| scope.spawn(move || check(version)));
        for (version, done) in Version::STOCK.into_iter().zip(checks) {
            let done = done.join().expect("no panic");
            done.with_context(|| format!("with {version:?}"))?;
        }
        Ok(())
    })
}

/// Clears the environment of a command except `PATH`, and sets the locale.
pub fn scrub(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", search_path())
        .env("LANG", "C.UTF-8");
}

/// The path of an optimized binary with debug assertions, for tests that measure time and memory. It is built
/// if it does not exist.
pub fn optimized() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_optimized().map_err(|error| format!("{error:#}")));
    match built {
        Ok(path) => Ok(path),
        Err(text) => bail!("{text}"),
    }
}

fn build_optimized() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--bin", "twiddler"])
        .args(["--profile", "fuzz", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    succeeded(run_within(BUILD_TIME, &mut command, b"")?)?;
    Ok(target.join("fuzz/twiddler"))
}

fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned())
}

fn provision(version: Version) -> Result<Venv> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-envs");
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    let dir = root.join(version.name());
    let lock = lock_file(&root.join(format!("{}.lock", version.name())))?;
    if !is_whole(version, &dir) {
        make(version, &dir, &lock)?;
    }
    Ok(Venv { dir })
}

/// Holds the lock until the file is closed.
fn lock_file(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say(&format!(
                "waiting for another test binary, which holds {}",
                path.display()
            ));
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("locking"),
    }
    Ok(file)
}

fn make(version: Version, dir: &Path, lock: &File) -> Result<()> {
    say(&format!("making {} (once)", dir.display()));
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    step(Command::new("python3").args(["-m", "venv"]).arg(dir), lock)?;
    for arguments in version.installs() {
        say(&format!("pip install {}", arguments.join(" ")));
        step(
            python_in(dir)
                .args(["-m", "pip", "install", "--quiet"])
                .args(*arguments),
            lock,
        )?;
    }
    step(
        python_in(dir).args(["-c", &format!("import {}", version.modules())]),
        lock,
    )?;
    fs::write(stamp_file(dir), stamp(version, dir)?).context("writing the stamp")?;
    say(&format!("{} is ready", dir.display()));
    Ok(())
}

fn python_in(dir: &Path) -> Command {
    Command::new(dir.join("bin/python"))
}

/// Runs one step, with the (empty) lock file as its standard input. So a step that outlives a killed test
/// run still holds the lock, and no other test run builds concurrently.
fn step(command: &mut Command, lock: &File) -> Result<()> {
    for variable in MISLEADING {
        command.env_remove(variable);
    }
    let output = command
        .stdin(lock.try_clone()?)
        .output()
        .map_err(anyhow::Error::from);
    output
        .and_then(succeeded)
        .with_context(|| command_line(command))?;
    Ok(())
}

fn is_whole(version: Version, dir: &Path) -> bool {
    let written = fs::read_to_string(stamp_file(dir));
    matches!((written, stamp(version, dir)), (Ok(written), Ok(expected)) if written == expected)
}

fn stamp_file(dir: &Path) -> PathBuf {
    dir.join("made-by-the-tests")
}

/// The expected content of the stamp. Fails if there is no interpreter.
fn stamp(version: Version, dir: &Path) -> Result<String> {
    let interpreter = fs::canonicalize(dir.join("bin/python"))?;
    Ok(format!(
        "{:?}\n{}\n{}\n",
        version.installs(),
        dir.display(),
        interpreter.display()
    ))
}

/// Prints to standard error directly, because the test harness would capture it.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "test fixture: {text}");
}
