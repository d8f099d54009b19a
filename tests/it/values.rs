//! Option values reach the daemon unchanged. The daemon's own code reads random programs from generated
//! files, and the test compares the result with the same programs set in the daemon's parser directly.
//!
//! Every failure prints its seed; `TEST_SEED` repeats the run.

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
use programs::{BAD, HARD, NAME_PARTS, ProgramInput, bad_program, good_program};

/// The number of values that a run compares.
const VALUES: usize = 20_000;
/// The number of invalid programs that a run compares.
const BAD_PROGRAMS: usize = 1_500;
/// The reason that replaces one with variables of the daemon's environment.
const HIDDEN: &str = "is not valid with what the variables of supervisord's environment hold";
/// The number of names that a run compares.
const NAMES: usize = 4_000;
const NAMES_PER_FILE: usize = 200;

#[test]
fn values_are_read_back_unchanged() -> Result<()> {
    let (seed, hint) = seed()?;
    let mut dice = Dice(seed);
    let mut oracles = [Oracle::start("etc")?, Oracle::start("o dd ;50%")?];
    let (mut compared, mut programs, mut refused) = (0, 0, 0);
    while compared < VALUES {
        let (input, values) = good_program(&mut dice);
        let oracle = &mut oracles[usize::from(dice.one_in(8))];
        match compare(oracle, &input).with_context(|| format!("{input:#?}\n{hint}"))? {
            Outcome::Accepted => {
                compared += values;
                programs += 1;
            }
            _ => refused += 1,
        }
        ensure!(
            refused < 1000 + 2 * programs,
            "too few programs are accepted; {hint}"
        );
    }
    println!("{compared} values in {programs} programs compared, {refused} programs refused");
    Ok(())
}

#[test]
fn faults_are_those_of_a_program_in_the_main_file() -> Result<()> {
    let (seed, hint) = seed()?;
    let mut dice = Dice(seed);
    let mut oracle = Oracle::start("etc")?;
    let mut outcomes = [0; 4];
    for _ in 0..BAD_PROGRAMS {
        let input = bad_program(&mut dice);
        let outcome =
            compare(&mut oracle, &input).with_context(|| format!("{input:#?}\n{hint}"))?;
        outcomes[outcome as usize] += 1;
    }
    let [refused, in_daemons_wording, faults, accepted] = outcomes;
    println!(
        "{refused} refused, {in_daemons_wording} refused in the daemon's wording, \
         {faults} refused by the daemon, {accepted} accepted"
    );
    ensure!(
        in_daemons_wording > 100 && faults > 100,
        "too few faults; {hint}"
    );
    Ok(())
}

#[test]
fn names_are_read_back_unchanged() -> Result<()> {
    let (seed, hint) = seed()?;
    let mut dice = Dice(seed);
    let mut oracle = Oracle::start("etc")?;
    let parts: Vec<_> = NAME_PARTS.iter().chain(HARD).chain(BAD).copied().collect();
    let (mut tries, mut accepted) = (0, 0);
    while accepted < NAMES {
        let mut names = BTreeMap::new();
        while names.len() < NAMES_PER_FILE {
            tries += 1;
            let text = dice.text(&parts, &[], 4);
            if let Ok(name) = Name::parse(&text) {
                ensure!(name.as_str().trim() == name.as_str(), "{text:?}; {hint}");
                names.insert(name, names.len() as i64);
            }
        }
        accepted += names.len();
        compare_names(&mut oracle, &names).with_context(|| format!("{names:#?}\n{hint}"))?;
    }
    println!("{accepted} names of {tries} accepted and read back");
    Ok(())
}

/// Checks each name as the name of a group and of its program, which is also its process's name.
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

/// The outcome of a successful comparison.
enum Outcome {
    /// The proxy refuses the program in its own wording.
    Refused,
    /// The proxy refuses the program in the daemon's wording.
    RefusedInDaemonsWording,
    /// The daemon refuses the program with the same text both ways.
    Fault,
    /// The daemon reads the same program both ways.
    Accepted,
}

impl ProgramInput {
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

fn compare(oracle: &mut Oracle, input: &ProgramInput) -> Result<Outcome> {
    let program = match input.parse(oracle.main_file())? {
        Ok(program) => program,
        Err(text) => return compare_refusal(oracle, input, &text),
    };
    let section = format!("{}~000001", program.name());
    let all = [
        render_group(program.group(), 7, &[&section]),
        program.render(&section, Scope::All),
    ];
    let answer = oracle.read(&all.concat(), input.request())?;
    let memory = &answer["memory"];
    if let Some(fault) = memory["fault"].as_str() {
        same_fault(oracle, &program, &section, fault, &answer["file"])
            .with_context(|| all.concat())?;
        // The daemon reports the first invalid process, which may be any process of the program.
        for index in 0..program.numprocs() {
            let text = program.render(&section, Scope::One(index));
            let answer = oracle.read(&(render_group("x", 7, &[&section]) + &text), json!({}))?;
            let is_last = index + 1 == program.numprocs();
            if is_last || answer["file"]["fault"].is_string() {
                same_fault(oracle, &program, &section, fault, &answer["file"]).context(text)?;
                break;
            }
        }
        return Ok(Outcome::Fault);
    }
    let group = (program.group().to_owned(), memory["processes"].clone());
    same_reading(&answer["file"], &[group], &[section]).with_context(|| all.concat())?;
    compare_one_by_one(oracle, &program, memory)?;
    Ok(Outcome::Accepted)
}

/// Checks a refusal of the proxy. One in the daemon's wording has to be the daemon's fault, unless several
/// options are invalid, of which the daemon may report another one.
fn compare_refusal(oracle: &mut Oracle, input: &ProgramInput, text: &str) -> Result<Outcome> {
    // The daemon would accept these, or list the available names, which the proxy does not know.
    let proxys = [
        "has to name its value",
        "too big",
        "which cannot be expanded in section",
    ];
    if !text.ends_with(&format!("(file: '{}')", oracle.main_file()))
        || proxys.iter().any(|part| text.contains(part))
    {
        return Ok(Outcome::Refused);
    }
    let answer = oracle.read("", input.request())?;
    let fault = answer["memory"]["fault"].as_str();
    ensure!(
        fault == Some(text) || fault.is_some() && input.options.len() > 2,
        "refused with: {text}\nin memory: {}",
        answer["memory"]
    );
    Ok(Outcome::RefusedInDaemonsWording)
}

fn same_fault(
    oracle: &Oracle,
    program: &Program,
    section: &str,
    in_memory: &str,
    file: &Json,
) -> Result<()> {
    let from_file = file["fault"].as_str().with_context(|| {
        format!("no fault from the file\nin memory: {in_memory}\nfrom the file: {file}")
    })?;
    let rewritten = program.in_client_words(from_file, section, oracle.main_file());
    let text = rewritten.whole();
    // The proxy hides a reason that may have values of the daemon's environment.
    if text.contains(HIDDEN) {
        let ending = |text: &str| text.rfind(" in section ").map(|at| text[at..].to_owned());
        ensure!(ending(text) == ending(in_memory), "{text}\n{in_memory}");
        return Ok(());
    }
    // A fault about the second expansion of a log file quotes the result of the first, in which the
    // program's values are already expanded.
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
        "from the file: {from_file}\nrewritten: {text}\nin memory: {in_memory}"
    );
    Ok(())
}

/// Checks that each process, rendered to a section and group of its own, equals the one in memory.
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
        ensure!(names == read, "predicted: {names:?}\nread: {read:?}");
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
    // The processes are matched by name, because only the daemon may be able to expand the names.
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
            "predicted: {names:?}\nread: {read:?}\n{text}"
        );
    }
    same_reading(&answer["file"], &expected, &sections).context(text)
}

/// Checks that the daemon read exactly these groups, programs and processes.
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
