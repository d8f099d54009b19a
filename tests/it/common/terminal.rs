//! Programs on a terminal.

use std::process::Command;

use anyhow::Result;

use super::ctl::python_command;
use super::process::Process;

/// Runs a program on a terminal with this many columns. The standard input of the script is the input of the
/// terminal, and the terminal's output is its standard output. Ends with the status of the program.
const DRIVER: &str = "\
import fcntl, os, pty, select, signal, struct, sys, termios
columns, words = int(sys.argv[1]), sys.argv[2:]
pid, master = pty.fork()
if pid == 0:
    for number in signal.SIGHUP, signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    os.execvp(words[0], words)
inputs = [0, master]
while True:
    for ready in select.select(inputs, [], [])[0]:
        try:
            data = os.read(ready, 65536)
        except OSError:
            data = b''
        if ready == master and not data:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
        elif ready == master:
            os.write(1, data)
        elif data:
            os.write(master, data)
        else:
            inputs.remove(0)";

/// Runs a program whose output is a terminal, which is closed when the script reads a line. Ends with the
/// status of the program.
const CLOSING: &str = "\
import os, subprocess, sys
master, terminal = os.openpty()
program = subprocess.Popen(sys.argv[1:], stdout=terminal, stderr=terminal)
sys.stdin.readline()
os.close(master)
sys.exit(program.wait() & 255)";

/// The character of Ctrl-C.
pub const CTRL_C: &[u8] = b"\x03";

/// Starts a program on a terminal. The process's standard output has the terminal's output. Killing the
/// process closes the terminal.
pub fn on_terminal(columns: u16, program: &Command) -> Result<Process> {
    let mut command = python_command(DRIVER);
    command.arg(columns.to_string());
    start(command, program)
}

/// Starts a program that prints on a terminal. [`close_terminal`] closes the terminal without a signal.
pub fn on_closing_terminal(program: &Command) -> Result<Process> {
    start(python_command(CLOSING), program)
}

/// Closes the terminal of [`on_closing_terminal`]: later writes fail with EIO.
pub fn close_terminal(process: &Process) -> Result<()> {
    process.write(b"\n")
}

fn start(mut driver: Command, program: &Command) -> Result<Process> {
    driver
        .arg(program.get_program())
        .args(program.get_args())
        .env("TERM", "xterm-256color");
    copy_environment(program, &mut driver);
    Process::spawn(&mut driver)
}

/// Copies the environment of a command to another one.
pub fn copy_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// The text in the output of a terminal, without control sequences.
pub fn without_escapes(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if rest.next_if_eq(&'[').is_some() {
            // A sequence ends with a letter.
            while rest.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
            rest.next();
        }
    }
    out
}
