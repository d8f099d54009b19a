//! The documentation agrees with the program: its tables, messages, links and test names are compared with the
//! program and the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::common::sidecar::twiddler_command;
use crate::common::{Client, Daemon, Sidecar, run, stderr_text, stdout_text};

/// The pages in the root directory. The pages in docs/ are found by a search.
const ROOT_PAGES: [&str; 4] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn page(name: &str) -> Result<String> {
    read(&root().join("docs").join(name))
}

/// All files below a directory whose names end with `ending`.
fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            paths.extend(files(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = files(&root().join("docs"), ".md")?;
    pages.extend(ROOT_PAGES.map(|name| root().join(name)));
    Ok(pages)
}

/// The cells of each row in the first table below the line that begins with `head`.
fn table(text: &str, head: &str) -> Result<Vec<Vec<String>>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(head));
    lines.next().with_context(|| format!("no table {head}"))?;
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    Ok(rows.map(cells).collect())
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_matches('|').replace(r"\|", "\u{1}");
    let cells = row.split('|');
    cells
        .map(|cell| cell.trim().replace('\u{1}', "|"))
        .collect()
}

/// The texts between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let parts = text.split("\n```").step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// An option in `--help`.
#[derive(Debug)]
struct HelpOption {
    name: String,
    /// The option with its placeholder, such as `--listen ADDR`.
    typed: String,
    help: String,
}

/// The largest indentation of options. Explanations have a larger one.
const INDENT: usize = 8;

fn help_options() -> Result<Vec<HelpOption>> {
    let help = run(twiddler_command().args(["serve", "--help"]))?;
    let mut options: Vec<HelpOption> = Vec::new();
    for line in stdout_text(&help).lines() {
        let text = line.trim_start();
        if line.len() - text.len() <= INDENT && text.starts_with('-') {
            let (_, long) = text.split_once("--").context("a short option alone")?;
            let (typed, help) = long.split_once("  ").unwrap_or((long, ""));
            let typed = typed.split('[').next().unwrap_or(typed);
            options.push(HelpOption {
                name: typed.split(' ').next().unwrap_or(typed).to_owned(),
                typed: format!("--{}", typed.replace(['<', '>'], "")),
                help: format!("{} ", help.trim()),
            });
        } else if let Some(option) = options.last_mut() {
            option.help += &format!("{text} ");
        }
    }
    let own = |option: &HelpOption| option.help.contains("[env: TWIDDLER_");
    Ok(options.into_iter().filter(own).collect())
}

/// The keys in the error about an unknown key.
fn keys() -> Result<BTreeSet<String>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("supervisord.conf");
    fs::write(&file, "[supervisord]\n[twiddler]\nqqqqqqqqqqqq=1\n")?;
    let output = run(twiddler_command().args(["check", "-c"]).arg(&file))?;
    let printed = stdout_text(&output) + &stderr_text(&output);
    let (_, listed) = printed
        .split_once("is not a twiddler option; write one of ")
        .with_context(|| printed.clone())?;
    let listed = listed.lines().next().unwrap_or_default();
    Ok(listed.split(", ").map(str::to_owned).collect())
}

#[test]
fn the_table_of_options_matches_the_help() -> Result<()> {
    let rows = table(&page("options.md")?, "| key in `[twiddler]`")?;
    let options = help_options()?;
    ensure!(options.len() > 15, "{options:?}");
    ensure!(rows.len() == options.len(), "{} rows", rows.len());
    for option in &options {
        let variable = format!(
            "`TWIDDLER_{}`",
            option.name.replace('-', "_").to_uppercase()
        );
        let row = rows
            .iter()
            .find(|row| row[2] == variable)
            .with_context(|| format!("docs/options.md has no row with {variable}"))?;
        let typed = quoted(&row[1]).last().unwrap_or_default();
        ensure!(typed == option.typed, "{row:?}: {option:?}");
        if let Some((_, default)) = option.help.split_once("[default: ") {
            let default = default.split(']').next().unwrap_or(default);
            ensure!(row[3].replace('`', "") == default, "{row:?}: {option:?}");
        }
    }
    let written: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| quoted(&row[0]).next())
        .map(str::to_owned)
        .collect();
    assert_eq!(written, keys()?);
    Ok(())
}

/// The signature `name(a, b)` in the help of a method.
fn described(client: &Client, method: &str) -> Result<String> {
    let help = client.call("system.methodHelp", (method,))?;
    let help = help.as_str().context("no text")?;
    let params = help.lines().map(str::trim).filter_map(|line| {
        let mut words = line.strip_prefix("@param ")?.split_whitespace();
        words.nth(1)
    });
    let params = params.collect::<Vec<_>>().join(", ");
    let name = method.trim_start_matches("twiddler.");
    Ok(format!("{name}({params})"))
}

#[test]
fn the_table_of_methods_matches_the_proxy() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let listed = client.call("system.listMethods", ())?;
    let listed = listed.as_array().context("no array")?;
    let own = listed
        .iter()
        .filter_map(|name| name.as_str())
        .filter(|name| name.starts_with("twiddler."));
    let own: Result<BTreeSet<_>> = own.map(|method| described(&client, method)).collect();
    let rows = table(&page("namespace.md")?, "| method | returns")?;
    let written: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| quoted(&row[0]).next())
        .map(str::to_owned)
        .collect();
    assert_eq!(written, own?, "docs/namespace.md and the proxy");
    Ok(())
}

#[test]
fn documented_messages_exist_in_the_sources() -> Result<()> {
    let mut code = String::new();
    for file in files(&root().join("src"), ".rs")? {
        code += &read(&file)?;
    }
    // A string literal with a line break continues after the indentation.
    let mut lines = code.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let code = lines.fold(first, |code, line| code + line.trim_start());
    let text = page("troubleshooting.md")?;
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let mut messages = 0;
    for row in rows {
        let cells = cells(row);
        for message in quoted(&cells[0]) {
            messages += 1;
            for part in message.split('…').map(str::trim) {
                ensure!(code.contains(part), "no message has {part:?}: {row}");
            }
        }
    }
    ensure!(messages > 40, "{messages} messages");
    Ok(())
}

/// Whether the path of a test may contain this letter.
fn is_of_path(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '_' | ':')
}

#[test]
fn documented_tests_exist() -> Result<()> {
    let mut sources = String::new();
    for file in files(&root().join("src"), ".rs")? {
        sources += &read(&file)?;
    }
    let mut named = 0;
    for page in files(&root().join("docs"), ".md")? {
        let text = prose(&read(&page)?);
        for test in quoted(&text) {
            let page = page.display();
            if let Some(name) = test.strip_prefix("--lib ") {
                let there = sources.contains(&format!("fn {name}("));
                ensure!(there, "{page}: src/ has no {test}");
                named += 1;
            } else if let Some((module, name)) = test.split_once("::")
                && test.chars().all(is_of_path)
            {
                let tests = root().join("tests/it");
                let mut written = read(&tests.join(format!("{module}.rs"))).unwrap_or_default();
                if tests.join(module).is_dir() {
                    for file in files(&tests.join(module), ".rs")? {
                        written += &read(&file)?;
                    }
                }
                let name = name.rsplit("::").next().unwrap_or(name);
                let there = written.contains(&format!("fn {name}("));
                ensure!(there, "{page}: tests/it has no {test}");
                named += 1;
            }
        }
    }
    ensure!(named > 60, "{named} tests");
    Ok(())
}

/// The anchors of a page's headings on GitHub.
fn anchors(text: &str) -> BTreeSet<String> {
    let text = prose(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let letters = heading.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        });
        letters.collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_have_targets() -> Result<()> {
    let readme = read(&root().join("README.md"))?;
    for page in pages()? {
        let (text, path) = (read(&page)?, page.display());
        let dir = page.parent().context("no directory")?;
        for link in prose(&text).split("](").skip(1) {
            let link = link.split(')').next().unwrap_or(link);
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => dir.join(file),
            };
            ensure!(target.exists(), "{path}: {link}");
            if !anchor.is_empty() {
                let there = anchors(&read(&target)?).contains(anchor);
                ensure!(there, "{path}: {link} has no such heading");
            }
        }
        let name = page.strip_prefix(root())?.to_string_lossy().into_owned();
        let linked = name == "README.md" || readme.contains(&format!("]({name})"));
        ensure!(linked, "README.md does not lead to {name}");
    }
    Ok(())
}

#[test]
fn the_architecture_names_each_module() -> Result<()> {
    let text = read(&root().join("ARCHITECTURE.md"))?;
    for entry in fs::read_dir(root().join("src"))? {
        let entry = entry?;
        let slash = if entry.path().is_dir() { "/" } else { "" };
        let name = format!("`{}{slash}`", entry.file_name().display());
        ensure!(text.contains(&name), "ARCHITECTURE.md lacks {name}");
    }
    Ok(())
}

/// The recipes of `just` are the steps of CI.
#[test]
fn the_justfile_has_the_steps_of_ci() -> Result<()> {
    let (ci, justfile) = (
        read(&root().join(".ci/run"))?,
        read(&root().join("justfile"))?,
    );
    let named = ci.lines().filter_map(|line| line.strip_prefix("step "));
    let steps: Vec<&str> = named.collect();
    ensure!(steps.len() > 5, "{steps:?}");
    for step in steps {
        let recipe = format!("\n{step}:\n    bash .ci/run {step}\n");
        ensure!(justfile.contains(&recipe), "justfile lacks {recipe}");
    }
    Ok(())
}

/// The modules that a source imports by paths that begin with `prefix`, without its unit tests.
fn imports(source: &str, prefix: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next();
    let lines = code.into_iter().flat_map(str::lines);
    let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
    let paths = lines.flat_map(|line| line.split(prefix).skip(1));
    let names = |path: &str| -> Vec<String> {
        let several = path.strip_prefix('{').and_then(|path| path.split_once('}'));
        let paths = several.map_or(path, |(several, _)| several).split(", ");
        let is_end = |c: char| !c.is_alphanumeric() && c != '_';
        let name = |path: &str| path.split(is_end).next().unwrap_or_default().to_owned();
        match several {
            Some(_) => paths.map(name).collect(),
            None => vec![name(path)],
        }
    };
    paths.flat_map(names).collect()
}

#[test]
fn modules_import_only_from_those_below_them_in_the_map() -> Result<()> {
    let sources = root().join("src");
    let map = read(&sources.join("lib.rs"))?;
    let entries = map.lines().filter_map(|line| line.strip_prefix("//! - "));
    let modules: Vec<&str> = entries
        .flat_map(|entry| entry.split(": ").next().unwrap_or_default().split(", "))
        .map(|name| {
            name.trim_matches(['[', ']', '`'])
                .trim_start_matches("mod@")
        })
        .collect();
    let mut imported = 0;
    for path in files(&sources, ".rs")? {
        let relative = path.strip_prefix(&sources)?;
        let first = relative.components().next().context("a path")?;
        let module = Path::new(&first).with_extension("");
        let module = module.to_string_lossy();
        let Some(place) = modules.iter().position(|name| *name == module) else {
            ensure!(
                ["main", "lib"].contains(&&*module),
                "{module} is not in the map"
            );
            continue;
        };
        for name in imports(&read(&path)?, "crate::") {
            let Some(from) = modules.iter().position(|module| *module == name) else {
                continue;
            };
            ensure!(place <= from, "{} imports from {name}", path.display());
            imported += 1;
        }
    }
    ensure!(imported > 100, "{imported} imports were found");
    Ok(())
}

#[test]
fn the_core_has_no_circular_imports() -> Result<()> {
    for dir in ["src/twiddler", "src/twiddler/model"] {
        let mut remaining = Vec::new();
        for entry in fs::read_dir(root().join(dir))? {
            let path = entry?.path();
            let name = path.file_stem().context("a name")?.to_string_lossy();
            if path.is_file() && name != "mod" {
                remaining.push((name.into_owned(), imports(&read(&path)?, "super::")));
            }
        }
        ensure!(remaining.len() > 5, "{dir} has {} files", remaining.len());
        // Each round removes the modules that import none of the remaining ones.
        loop {
            let names: BTreeSet<String> = remaining.iter().map(|(name, _)| name.clone()).collect();
            let before = remaining.len();
            remaining.retain(|(name, from)| {
                from.iter().any(|from| from != name && names.contains(from))
            });
            if remaining.len() == before {
                break;
            }
        }
        let names: Vec<&String> = remaining.iter().map(|(name, _)| name).collect();
        ensure!(names.is_empty(), "{dir}: {names:?} import in a circle");
    }
    Ok(())
}
