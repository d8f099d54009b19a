//! A terminal, with a program in it.

use std::process::Command;

use anyhow::Result;

use super::ctl::python_command;
use super::process::Process;

/// Puts a program on a terminal of so many columns: what is written to this one is typed there, and
/// what it shows is written here. Ends as the program does.
const DRIVER: &str = "\
import fcntl, os, pty, select, signal, struct, sys, termios
columns, words = int(sys.argv[1]), sys.argv[2:]
pid, master = pty.fork()
if pid == 0:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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

/// What Ctrl-C types.
pub const CTRL_C: &[u8] = b"\x03";

/// A program on a terminal. Its standard output is what the terminal shows; killing it closes the
/// terminal.
pub fn on_terminal(columns: u16, program: &Command) -> Result<Process> {
    let mut command = python_command(DRIVER);
    command
        .arg(columns.to_string())
        .arg(program.get_program())
        .args(program.get_args())
        .env("TERM", "xterm-256color");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Process::spawn(&mut command)
}

/// What is to be read of what a terminal shows.
pub fn without_escapes(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if rest.next_if_eq(&'[').is_some() {
            // Up to the letter that ends it.
            while rest.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
            rest.next();
        }
    }
    out
}
