//! `completions` and `man`: output that clap generates from the definition of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::client::args::{CompletionsArgs, ManArgs, Shell};
use crate::client::error::Error;

const NAME: &str = "twiddler";
/// Replaces clap's script for bash, which does not join the words that bash splits at a colon.
const BASH: &str = include_str!("completions.bash");
/// The only option of `serve` without a key in `[twiddler]`.
const CONFIG: &str = "config";

/// Prints the completion script of a shell. The script calls this program for the names of processes.
///
/// # Errors
/// When standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<u8, Error> {
    let mut out = io::stdout();
    match args.shell {
        Shell::Bash => out.write_all(BASH.as_bytes())?,
        shell => shell
            .completer()
            .write_registration("COMPLETE", NAME, NAME, NAME, &mut out)?,
    }
    out.flush()?;
    Ok(0)
}

/// Prints the manual page twiddler(1). With `--dir` it writes the pages of the program, of each verb and
/// of the configuration instead. `command` is the definition of the whole command line.
///
/// # Errors
/// When standard output or the directory cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<u8, Error> {
    let Some(dir) = &args.dir else {
        Man::new(command).render(&mut io::stdout())?;
        io::stdout().flush()?;
        return Ok(0);
    };
    let configuration = configuration(&command);
    for (name, command) in pages(command) {
        let mut page = Vec::new();
        Man::new(command).title(&name).render(&mut page)?;
        write(dir, 1, &name, &page)?;
    }
    write(dir, 5, "twiddler.conf", configuration.as_bytes())?;
    Ok(0)
}

fn write(dir: &Path, section: u8, name: &str, page: &[u8]) -> Result<(), Error> {
    let dir = dir.join(format!("man{section}"));
    let path = dir.join(format!("{name}.{section}"));
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&path, page))
        .map_err(|error| Error::NotDone(format!("cannot write {}: {error}", path.display())))
}

/// The name and the command of each page: the program and its verbs.
fn pages(mut command: Command) -> Vec<(String, Command)> {
    command.build();
    let mut pages = vec![(NAME.to_owned(), command.clone())];
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages.push((format!("{NAME}-{}", verb.get_name()), verb.clone()));
    }
    pages
}

/// The page twiddler.conf(5), which lists a key of `[twiddler]` for each option of `serve`.
fn configuration(command: &Command) -> String {
    let mut page = Roff::new();
    page.control("TH", ["twiddler.conf", "5"]);
    page.control("SH", ["NAME"]);
    page.text([roman(
        "twiddler.conf - the section [twiddler] of supervisord.conf",
    )]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(
        "supervisord ignores a section [twiddler] in its configuration file. twiddler serve and \
         twiddler check read it. An option on the command line wins over the environment variable, \
         and that over the key.",
    )]);
    page.control("SH", ["KEYS"]);
    let serve = command.find_subcommand("serve");
    for option in serve.into_iter().flat_map(Command::get_arguments) {
        if let Some(name) = option.get_long().filter(|name| *name != CONFIG) {
            page.control("TP", []);
            page.text([
                bold(name.replace('-', "_")),
                roman(" = "),
                roman(value_of(option)),
            ]);
            let help = option.get_long_help().or(option.get_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            page.text([roman(help.split_whitespace().collect::<Vec<_>>().join(" "))]);
        }
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("nf", []);
    page.text([roman(
        "[twiddler]\nlisten = unix:///run/twiddler/twiddler.sock\npersist = true",
    )]);
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text([
        bold("twiddler"),
        roman("(1), "),
        bold("supervisord"),
        roman("(1)"),
    ]);
    page.render()
}

fn value_of(option: &Arg) -> String {
    let names = option.get_value_names().unwrap_or_default();
    names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}
