//! Runs the daemon's own code, which reads configurations on request.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

/// A Python process with the daemon's code, and the files that it reads.
pub(crate) struct Oracle {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The main file, which includes the directory `included` beside it.
    main: PathBuf,
    _dir: tempfile::TempDir,
}

impl Oracle {
    /// Starts the process with a main file in a directory of this name.
    pub(crate) fn start(dir_name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let main = dir.path().join(dir_name).join("supervisord.conf");
        fs::create_dir_all(main.with_file_name("included"))?;
        fs::write(&main, "[supervisord]\n[include]\nfiles=included/*.conf\n")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/read_config.py");
        let mut child = Command::new(crate::common::python())
            .arg(script)
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .envs([
                ("LC_ALL", "C.UTF-8"),
                ("EMPTY", ""),
                ("ODD", " a ;b\t#c "),
                ("NUMBER", "7"),
            ])
            .env("PERCENT", "50%")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("no Python; set TEST_PYTHON to one that has supervisor installed")?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self {
            child,
            requests,
            answers,
            main,
            _dir: dir,
        })
    }

    pub(crate) fn main_file(&self) -> &str {
        self.main.to_str().unwrap_or_default()
    }

    /// Writes `included` to the included file, and makes the process read the main file.
    pub(crate) fn read(&mut self, included: &str, mut request: Json) -> Result<Json> {
        fs::write(
            self.main.with_file_name("included").join("zz-x.conf"),
            included,
        )?;
        request["main"] = self.main_file().into();
        writeln!(self.requests, "{request}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(
            !answer.is_empty(),
            "no answer; does {} have supervisor installed?",
            crate::common::python().display()
        );
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
