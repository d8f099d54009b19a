//! `completions` and `man`, which are made from the definition of the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::Args;
use crate::client::args::{CompletionsArgs, ManArgs};
use crate::client::error::Error;

const NAME: &str = "twiddler";

/// Prints the script that completes in a shell. It calls this program for live names.
///
/// # Errors
/// When standard output is gone.
pub fn completions(args: &CompletionsArgs) -> Result<u8, Error> {
    let completer = args.shell.completer();
    completer.write_registration("COMPLETE", NAME, NAME, NAME, &mut io::stdout())?;
    Ok(0)
}

/// Prints the manual page of the program, or writes a page for it and for each verb.
///
/// # Errors
/// When standard output is gone, or the directory cannot be written.
pub fn man(args: &ManArgs) -> Result<u8, Error> {
    let command = Args::command();
    let Some(dir) = &args.dir else {
        Man::new(command).render(&mut io::stdout())?;
        return Ok(0);
    };
    let section = dir.join("man1");
    let failed = |path: &Path, error: io::Error| {
        Error::NotDone(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(&section).map_err(|error| failed(&section, error))?;
    for (name, command) in pages(command) {
        let path = section.join(format!("{name}.1"));
        let mut page = Vec::new();
        Man::new(command).title(&name).render(&mut page)?;
        fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    Ok(0)
}

/// The program and each of its verbs, with the names of their pages.
fn pages(mut command: Command) -> Vec<(String, Command)> {
    command.build();
    let mut pages = vec![(NAME.to_owned(), command.clone())];
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages.push((format!("{NAME}-{}", verb.get_name()), verb.clone()));
    }
    pages
}
