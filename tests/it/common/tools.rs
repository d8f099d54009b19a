//! Programs that some tests use, and that a machine may lack.

use std::io::{self, Write};
use std::process::Command;
use std::{env, thread};

use anyhow::{Result, ensure};

use super::process::run;
use super::provision::scrub;

/// The variable that makes a test fail if its program is missing.
const ALL: &str = "TEST_ALL";

/// A program that a test needs.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its name in messages.
    name: &'static str,
    /// The commands that must be in `PATH`.
    programs: &'static [&'static str],
    /// A command that must succeed; empty if the commands in `PATH` are enough.
    trial: &'static [&'static str],
    /// Its packages in Debian and Ubuntu.
    packages: &'static str,
}

/// A browser, with its driver.
pub const CHROMIUM: Tool = Tool {
    name: "Chromium with its driver",
    programs: &["chromium", "chromedriver"],
    trial: &[],
    packages: "chromium chromium-driver",
};
/// curl.
pub const CURL: Tool = Tool {
    name: "curl",
    programs: &["curl"],
    trial: &[],
    packages: "curl",
};
/// Ruby's XML-RPC client.
pub const RUBY: Tool = Tool {
    name: "Ruby with its xmlrpc library",
    programs: &["ruby"],
    trial: &["ruby", "-e", "require 'xmlrpc/client'"],
    packages: "ruby ruby-xmlrpc",
};
/// nginx.
pub const NGINX: Tool = Tool {
    name: "nginx",
    programs: &["nginx"],
    trial: &[],
    packages: "nginx-light",
};
/// HAProxy.
pub const HAPROXY: Tool = Tool {
    name: "HAProxy",
    programs: &["haproxy"],
    trial: &[],
    packages: "haproxy",
};

/// zsh.
pub const ZSH: Tool = Tool {
    name: "zsh",
    programs: &["zsh"],
    trial: &[],
    packages: "zsh",
};
/// fish.
pub const FISH: Tool = Tool {
    name: "fish",
    programs: &["fish"],
    trial: &[],
    packages: "fish",
};

/// Whether the machine has the program. If not, prints a line that the test harness does not capture.
///
/// # Errors
///
/// The program is missing, and `TEST_ALL=1` is set.
pub fn have(tools: &[Tool]) -> Result<bool> {
    let Some(tool) = tools.iter().find(|tool| !tool.is_here()) else {
        return Ok(true);
    };
    let thread = thread::current();
    let message = format!(
        "{} needs {} in PATH: on Debian and Ubuntu `apt install {}`",
        thread.name().unwrap_or("this test"),
        tool.name,
        tool.packages
    );
    let must = env::var(ALL).is_ok_and(|value| value == "1");
    ensure!(!must, "{message}");
    let _ = writeln!(io::stderr(), "test left out: {message}");
    Ok(false)
}

impl Tool {
    fn is_here(&self) -> bool {
        let Some((program, arguments)) = self.trial.split_first() else {
            return self.programs.iter().all(|program| is_in_path(program));
        };
        let mut trial = Command::new(program);
        scrub(&mut trial);
        run(trial.args(arguments)).is_ok_and(|output| output.status.success())
    }
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
