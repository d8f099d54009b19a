//! What a client sends is what the daemon understands: random programs, written to files and read
//! by the daemon's own code, against the same programs set in its parser directly.
//!
//! The seed of a run is part of every failure; `TEST_SEED` repeats it.

#[path = "values/dice.rs"]
mod dice;
#[path = "values/oracle.rs"]
mod oracle;
#[path = "values/programs.rs"]
mod programs;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};
use supervisor_twiddler::program::{Name, Program, Scope, render_group};
use supervisor_twiddler::xmlrpc::Value;

use dice::{Dice, seed};
use oracle::Oracle;
use programs::{BAD, HARD, NAME_PARTS, Sent, bad_program, good_program};

/// Values that have to be compared in a run.
const VALUES: usize = 20_000;
/// Programs with something wrong in them.
const BAD_PROGRAMS: usize = 1_500;
/// What is said instead of a reason that shows them.
const HIDDEN: &str = "is not valid with what the variables of supervisord's environment hold";
/// Names, and how many of them go into one file.
const NAMES: usize = 4_000;
const NAMES_IN_A_FILE: usize = 200;

#[test]
fn values_are_read_back_whole() -> Result<()> {
    let (seed, how) = seed()?;
    let mut dice = Dice(seed);
    let mut oracles = [Oracle::start("etc")?, Oracle::start("o dd ;50%")?];
    let (mut compared, mut programs, mut refused) = (0, 0, 0);
    while compared < VALUES {
        let (sent, values) = good_program(&mut dice);
        let oracle = &mut oracles[usize::from(dice.one_in(8))];
        match compare(oracle, &sent).with_context(|| format!("{sent:#?}\n{how}"))? {
            Outcome::Read => {
                compared += values;
                programs += 1;
            }
            _ => refused += 1,
        }
        ensure!(
            refused < 1000 + 2 * programs,
            "too few programs are accepted; {how}"
        );
    }
    println!("{compared} values in {programs} programs compared, {refused} programs refused");
    Ok(())
}

#[test]
fn faults_are_told_as_if_the_program_were_in_the_main_file() -> Result<()> {
    let (seed, how) = seed()?;
    let mut dice = Dice(seed);
    let mut oracle = Oracle::start("etc")?;
    let mut outcomes = [0; 4];
    for _ in 0..BAD_PROGRAMS {
        let sent = bad_program(&mut dice);
        let outcome = compare(&mut oracle, &sent).with_context(|| format!("{sent:#?}\n{how}"))?;
        outcomes[outcome as usize] += 1;
    }
    let [refused, as_by_the_daemon, faulted, read] = outcomes;
    println!(
        "{refused} refused, {as_by_the_daemon} refused in the daemon's words, \
         {faulted} refused by the daemon, {read} taken"
    );
    ensure!(
        as_by_the_daemon > 100 && faulted > 100,
        "too few faults; {how}"
    );
    Ok(())
}

#[test]
fn names_come_back_whole() -> Result<()> {
    let (seed, how) = seed()?;
    let mut dice = Dice(seed);
    let mut oracle = Oracle::start("etc")?;
    let parts: Vec<_> = NAME_PARTS.iter().chain(HARD).chain(BAD).copied().collect();
    let (mut tried, mut taken) = (0, 0);
    while taken < NAMES {
        let mut names = BTreeMap::new();
        while names.len() < NAMES_IN_A_FILE {
            tried += 1;
            let text = dice.text(&parts, &[], 4);
            if let Ok(name) = Name::parse(&text) {
                ensure!(name.as_str().trim() == name.as_str(), "{text:?}; {how}");
                names.insert(name, names.len() as i64);
            }
        }
        taken += names.len();
        compare_names(&mut oracle, &names).with_context(|| format!("{names:#?}\n{how}"))?;
    }
    println!("{taken} names of {tried} taken and read back");
    Ok(())
}

/// Each name as that of a group, of its program and so of its process.
fn compare_names(oracle: &mut Oracle, names: &BTreeMap<Name, i64>) -> Result<()> {
    let mut text = String::new();
    for (name, priority) in names {
        text += &render_group(name.as_str(), *priority, &[name.as_str()]);
        text += &format!("[program:{name}]\ncommand=/bin/cat\n");
    }
    let file = &oracle.read(&text, json!({}))?["file"];
    let Some(groups) = file["groups"].as_object() else {
        bail!("{file}")
    };
    ensure!(groups.len() == names.len(), "{groups:#?}");
    for (name, priority) in names {
        let group = &groups
            .get(name.as_str())
            .with_context(|| format!("no group {name}"))?;
        let process = &group["processes"][0]["name"];
        ensure!(group["priority"] == *priority, "{name}: {group}");
        ensure!(process == name.as_str(), "{name}: {group}");
    }
    Ok(())
}

/// How a comparison went well.
enum Outcome {
    /// Refused for a reason of our own.
    Refused,
    /// Refused in the daemon's words.
    RefusedAsByTheDaemon,
    /// Refused by the daemon, with the same text both ways.
    Faulted,
    /// Read the same both ways.
    Read,
}

impl Sent {
    fn parse(&self, main_file: &str) -> Result<std::result::Result<Program, String>> {
        let member = |(name, text): &(String, String)| (name.clone(), Value::String(text.clone()));
        let options = Value::Struct(self.options.iter().map(member).collect());
        let group = Name::parse(&self.group)?;
        Ok(Program::parse(&group, &self.name, &options, main_file)
            .map_err(|error| error.into_marked_text().whole().to_owned()))
    }

    fn request(&self) -> Json {
        json!({"program": {"group": self.group, "name": self.name, "options": self.options}})
    }
}

fn compare(oracle: &mut Oracle, sent: &Sent) -> Result<Outcome> {
    let program = match sent.parse(oracle.main_file())? {
        Ok(program) => program,
        Err(text) => return compare_refusal(oracle, sent, &text),
    };
    let section = format!("{}~000001", program.name());
    let all = [
        render_group(program.group(), 7, &[&section]),
        program.render(&section, Scope::All),
    ];
    let answer = oracle.read(&all.concat(), sent.request())?;
    let memory = &answer["memory"];
    if let Some(fault) = memory["fault"].as_str() {
        same_fault(oracle, &program, &section, fault, &answer["file"])
            .with_context(|| all.concat())?;
        // The daemon complains of the first process that it does not take, which need not be the first.
        for index in 0..program.numprocs() {
            let own = program.render(&section, Scope::One(index));
            let answer = oracle.read(&(render_group("x", 7, &[&section]) + &own), json!({}))?;
            let is_last = index + 1 == program.numprocs();
            if is_last || answer["file"]["fault"].is_string() {
                same_fault(oracle, &program, &section, fault, &answer["file"]).context(own)?;
                break;
            }
        }
        return Ok(Outcome::Faulted);
    }
    let group = (program.group().to_owned(), memory["processes"].clone());
    same_reading(&answer["file"], &[group], &[section]).with_context(|| all.concat())?;
    compare_one_by_one(oracle, &program, memory)?;
    Ok(Outcome::Read)
}

/// A refusal that speaks as the daemon does says what the daemon would say, unless it could say
/// more than one thing.
fn compare_refusal(oracle: &mut Oracle, sent: &Sent, text: &str) -> Result<Outcome> {
    // What the daemon would let through, or say more about than can be known here.
    let own = [
        "has to name its value",
        "too big",
        "which cannot be expanded in section",
    ];
    if !text.ends_with(&format!("(file: '{}')", oracle.main_file()))
        || own.iter().any(|part| text.contains(part))
    {
        return Ok(Outcome::Refused);
    }
    let answer = oracle.read("", sent.request())?;
    let fault = answer["memory"]["fault"].as_str();
    ensure!(
        fault == Some(text) || fault.is_some() && sent.options.len() > 2,
        "refused with: {text}\nin memory: {}",
        answer["memory"]
    );
    Ok(Outcome::RefusedAsByTheDaemon)
}

fn same_fault(
    oracle: &Oracle,
    program: &Program,
    section: &str,
    in_memory: &str,
    file: &Json,
) -> Result<()> {
    let own = file["fault"].as_str().with_context(|| {
        format!("no fault from the file\nin memory: {in_memory}\nfrom the file: {file}")
    })?;
    let told = program.in_client_words(own, section, oracle.main_file());
    let text = told.whole();
    // What may hold values of the daemon's environment is not told.
    if text.contains(HIDDEN) {
        let ending = |text: &str| text.rfind(" in section ").map(|at| text[at..].to_owned());
        ensure!(ending(text) == ending(in_memory), "{text}\n{in_memory}");
        return Ok(());
    }
    // What the second expansion of a log file finds holds values of this machine already; those of
    // the program in it stay what they have become.
    let names = ["%(program_name)", "%(group_name)", "%(numprocs)"];
    if in_memory.contains("_logfile' ") && names.iter().any(|name| in_memory.contains(name)) {
        ensure!(
            text.starts_with("Format string ")
                && text.ends_with(&format!("(file: '{}')", oracle.main_file()))
        );
        return Ok(());
    }
    ensure!(
        text == in_memory,
        "from the file: {own}\ntold as: {text}\nin memory: {in_memory}"
    );
    Ok(())
}

/// Each process in a section and group of its own is the one that was read in memory.
fn compare_one_by_one(oracle: &mut Oracle, program: &Program, memory: &Json) -> Result<()> {
    let mut processes = memory["processes"]
        .as_array()
        .context("no processes")?
        .clone();
    ensure!(processes.len() == program.numprocs() as usize, "{memory}");
    if let Some(mut names) = program.process_names() {
        let read: Vec<_> = processes
            .iter()
            .filter_map(|process| process["name"].as_str())
            .collect();
        names.sort_unstable();
        ensure!(names == read, "foreseen: {names:?}\nread: {read:?}");
    }
    for process in &mut processes {
        let environment = process["environment"]
            .as_object_mut()
            .context("no environment")?;
        environment
            .entry("SUPERVISOR_GROUP_NAME")
            .or_insert_with(|| program.group().into());
    }
    let mut text = String::new();
    let (mut sections, mut groups) = (Vec::new(), Vec::new());
    for index in 0..program.numprocs() {
        let (section, group) = (format!("s~{index}"), format!("g~{index}"));
        text += &render_group(&group, 7, &[&section]);
        text += &program.render(&section, Scope::One(index));
        groups.push(group);
        sections.push(section);
    }
    let answer = oracle.read(&text, json!({}))?;
    // Which process went where shows by its name, which the daemon alone may know.
    let name_in = |group: &String| answer["file"]["groups"][group]["processes"][0]["name"].clone();
    let expected: Vec<_> = groups
        .into_iter()
        .map(|group| {
            let name = name_in(&group);
            let process = processes.iter().find(|process| process["name"] == name);
            (group, json!([process]))
        })
        .collect();
    if let Some(names) = program.process_names() {
        let read: Vec<_> = expected.iter().map(|(group, _)| name_in(group)).collect();
        ensure!(
            json!(names) == json!(read),
            "foreseen: {names:?}\nread: {read:?}\n{text}"
        );
    }
    same_reading(&answer["file"], &expected, &sections).context(text)
}

/// The daemon saw these groups and programs, each as it should be, and nothing else.
fn same_reading(file: &Json, groups: &[(String, Json)], programs: &[String]) -> Result<()> {
    let mut sections: Vec<String> = ["include", "supervisord"].map(String::from).into();
    sections.extend(groups.iter().map(|(group, _)| format!("group:{group}")));
    sections.extend(programs.iter().map(|program| format!("program:{program}")));
    sections.sort_unstable();
    let expected: BTreeMap<_, _> = groups
        .iter()
        .map(|(group, processes)| (group, json!({"priority": 7, "processes": processes})))
        .collect();
    let expected = json!({"groups": expected, "sections": sections});
    ensure!(
        *file == expected,
        "from the file: {file}\nexpected:      {expected}"
    );
    Ok(())
}
