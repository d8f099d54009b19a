//! The table of `twiddler.*` methods: names, parameters and help texts.

use crate::daemon::conf::LogLevel;
use crate::fault::{INCORRECT_PARAMETERS, fault, without_detail};
use crate::program::{Name, Program};
use crate::twiddler::Change;
use crate::update;
use crate::xmlrpc::{Fault, Value};

/// The result of `getAPIVersion`.
pub const API_VERSION: &str = "1.0";
/// The range of XML-RPC integers, which have 32 bits. With a larger priority, clients could not read the
/// daemon's lists.
const INTEGERS: std::ops::RangeInclusive<i64> = i32::MIN as i64..=i32::MAX as i64;

/// One method of the namespace.
#[derive(Debug)]
pub struct Method {
    /// The name without the namespace.
    pub name: &'static str,
    /// The types of result and parameters, for `system.methodSignature`.
    pub signature: &'static [&'static str],
    /// The text for `system.methodHelp`.
    pub help: &'static str,
    /// The number of parameters that are not optional.
    required: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    ApiVersion,
    GroupNames,
    AddGroup,
    AddProgram,
    RemoveProcess,
    RemoveGroup,
    Log,
    Diff,
    Update,
    Programs,
    ProgramOptions,
    Redefine,
    Scale,
}

/// A call whose parameters are valid as far as the proxy can check without the daemon.
#[derive(Debug)]
pub enum Request {
    /// `getAPIVersion()`
    ApiVersion,
    /// `getGroupNames()`
    GroupNames,
    /// `log(message, level)`
    Log {
        /// The level of the line.
        level: LogLevel,
        /// The text of the line.
        message: String,
    },
    /// A change.
    Change(Change),
    /// A request about the files or about programs.
    Update(update::Request),
    /// An addition that is not valid. If the group is unknown, the fault about the group comes first.
    Invalid {
        /// The group.
        group: String,
        /// The program's name, if it is a string.
        program: Option<String>,
        /// The fault about the program.
        fault: Fault,
    },
}

/// All methods, by name.
pub static METHODS: &[Method] = &[
    Method {
        name: "addGroup",
        signature: &["boolean", "string", "int"],
        help: " Add a new, empty process group\n\n\
            @param string  name      Name of the new process group\n\
            @param int     priority  Priority of the group, as in supervisord.conf\n\
            @return boolean          Always True unless error\n",
        required: 2,
        kind: Kind::AddGroup,
    },
    Method {
        name: "addProcessToGroup",
        signature: &["boolean", "string", "string", "struct"],
        help: ADD_PROGRAM_HELP,
        required: 3,
        kind: Kind::AddProgram,
    },
    Method {
        name: "addProgramToGroup",
        signature: &["boolean", "string", "string", "struct"],
        help: ADD_PROGRAM_HELP,
        required: 3,
        kind: Kind::AddProgram,
    },
    Method {
        name: "diffConfig",
        signature: &["array", "array"],
        help: " Tell in which programs and groups the configuration files differ from what is in force\n\n\
            @param array  groups  Names of groups; all where none is named\n\
            @return array         An array of structs, one for each program or group\n",
        required: 0,
        kind: Kind::Diff,
    },
    Method {
        name: "getAPIVersion",
        signature: &["string"],
        help: " Return the version of the twiddler namespace\n\n@return string  version id\n",
        required: 0,
        kind: Kind::ApiVersion,
    },
    Method {
        name: "getAllProgramInfo",
        signature: &["array"],
        help: " List all programs with their processes\n\n\
            @return array  An array of structs, one for each program\n",
        required: 0,
        kind: Kind::Programs,
    },
    Method {
        name: "getGroupNames",
        signature: &["array"],
        help: " Return the names of all active process groups, empty ones too\n\n\
            @return array  Process group names\n",
        required: 0,
        kind: Kind::GroupNames,
    },
    Method {
        name: "getProgramOptions",
        signature: &["struct", "string", "string"],
        help: " Return the options that a program was defined with, as they were written\n\n\
            @param string  group    Name of the process group\n\
            @param string  program  Name of the program\n\
            @return struct          Options by name\n",
        required: 2,
        kind: Kind::ProgramOptions,
    },
    Method {
        name: "log",
        signature: &["boolean", "string", "string|int"],
        help: " Write a line to the main log of supervisord\n\n\
            @param string      message  What to write\n\
            @param string|int  level    Name (INFO, the default) or number (20) of the log level\n\
            @return boolean             Always True unless error\n",
        required: 1,
        kind: Kind::Log,
    },
    Method {
        name: "removeGroup",
        signature: &["boolean", "string"],
        help: " Remove a process group and its processes, all of which must be stopped\n\n\
            @param string  name  Name of the process group\n\
            @return boolean      Always True unless error\n",
        required: 1,
        kind: Kind::RemoveGroup,
    },
    Method {
        name: "removeProcessFromGroup",
        signature: &["boolean", "string", "string"],
        help: " Remove a stopped process from its process group\n\n\
            @param string  group    Name of the process group\n\
            @param string  process  Name of the process\n\
            @return boolean         Always True unless error\n",
        required: 2,
        kind: Kind::RemoveProcess,
    },
    Method {
        name: "scaleProgram",
        signature: &["struct", "string", "string", "int"],
        help: " Run another number of processes of a program\n\n\
            @param string  group     Name of the process group\n\
            @param string  program   Name of the program\n\
            @param int     numprocs  How many processes it is to have\n\
            @return struct           The names of the processes that were started and stopped\n",
        required: 3,
        kind: Kind::Scale,
    },
    Method {
        name: "updateConfig",
        signature: &["struct", "array"],
        help: " Put the configuration files in force; a process restarts only if its own definition changed\n\n\
            @param array  groups  Names of groups; all where none is named\n\
            @return struct        What was added, removed, started, restarted, stopped, left alone and not done\n",
        required: 0,
        kind: Kind::Update,
    },
    Method {
        name: "updateProgram",
        signature: &["boolean", "string", "string", "struct"],
        help: " Give a program that was added other options; its processes restart where these differ\n\n\
            @param string  group    Name of the process group\n\
            @param string  program  Name of the program\n\
            @param struct  options  All its options, as in supervisord.conf\n\
            @return boolean         Always True unless error\n",
        required: 3,
        kind: Kind::Redefine,
    },
];

const ADD_PROGRAM_HELP: &str = " Add a program to an existing process group: one process, or as many as its numprocs says\n\n\
    @param string  group    Name of an existing process group\n\
    @param string  program  Name of the new program\n\
    @param struct  options  Options of the program, as in supervisord.conf\n\
    @return boolean         Always True unless error\n";

/// Finds a method by its name without the namespace.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

impl Method {
    /// Whether the method makes a change in the daemon after no other check than the daemon's authorization.
    pub fn changes(&self) -> bool {
        matches!(
            self.kind,
            Kind::AddGroup | Kind::AddProgram | Kind::RemoveProcess | Kind::RemoveGroup
        )
    }

    /// Checks the number of parameters.
    ///
    /// # Errors
    /// The daemon's fault for a wrong number of parameters.
    pub fn check_count(&self, params: &[Value]) -> Result<(), Fault> {
        let most = self.signature.len() - 1;
        if (self.required..=most).contains(&params.len()) {
            Ok(())
        } else {
            Err(incorrect_parameters())
        }
    }

    /// Reads the parameters. `main_file` is the path of the daemon's configuration file, as in its texts.
    ///
    /// # Errors
    /// The fault for a parameter of a wrong type or value.
    pub fn request(&self, params: &[Value], main_file: &str) -> Result<Request, Fault> {
        self.check_count(params)?;
        let text = |at: usize| {
            params
                .get(at)
                .and_then(Value::as_str)
                .ok_or_else(incorrect_parameters)
        };
        Ok(match self.kind {
            Kind::ApiVersion => Request::ApiVersion,
            Kind::GroupNames => Request::GroupNames,
            Kind::Log => Request::Log {
                level: level(params.get(1))?,
                message: text(0)?.to_owned(),
            },
            Kind::AddGroup => Request::Change(add_group(text(0)?, &params[1])?),
            Kind::AddProgram => add_program(text(0)?, params, main_file),
            Kind::RemoveProcess => Request::Change(Change::RemoveProcess {
                group: text(0)?.to_owned(),
                process: text(1)?.to_owned(),
            }),
            Kind::Diff => Request::Update(update::Request::Diff(groups(params.first())?)),
            Kind::Update => Request::Update(update::Request::Update(groups(params.first())?)),
            Kind::Programs => Request::Update(update::Request::Programs),
            Kind::ProgramOptions => Request::Update(update::Request::Options {
                group: text(0)?.to_owned(),
                program: text(1)?.to_owned(),
            }),
            Kind::Redefine => Request::Update(update::Request::Redefine {
                group: text(0)?.to_owned(),
                program: text(1)?.to_owned(),
                options: params[2].clone(),
            }),
            Kind::Scale => Request::Update(update::Request::Scale {
                group: text(0)?.to_owned(),
                program: text(1)?.to_owned(),
                numprocs: params[2].as_int().ok_or_else(incorrect_parameters)?,
            }),
            Kind::RemoveGroup => Request::Change(Change::RemoveGroup {
                name: text(0)?.to_owned(),
            }),
        })
    }
}

fn incorrect_parameters() -> Fault {
    without_detail(INCORRECT_PARAMETERS)
}

/// The names of groups; an empty list means all groups.
fn groups(names: Option<&Value>) -> Result<Vec<String>, Fault> {
    let Some(names) = names else {
        return Ok(Vec::new());
    };
    let names = names.as_array().ok_or_else(incorrect_parameters)?.iter();
    let text = |name: &Value| {
        name.as_str()
            .map(str::to_owned)
            .ok_or_else(incorrect_parameters)
    };
    names.map(text).collect()
}

fn add_group(name: &str, priority: &Value) -> Result<Change, Fault> {
    let name = Name::parse(name).map_err(|error| fault(INCORRECT_PARAMETERS, error))?;
    let number = match priority {
        Value::Int(number) => Some(*number),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match number.filter(|number| INTEGERS.contains(number)) {
        Some(priority) => Ok(Change::AddGroup { name, priority }),
        None => Err(fault(
            INCORRECT_PARAMETERS,
            "priority must be an integer of at most 32 bits",
        )),
    }
}

fn add_program(group: &str, params: &[Value], main_file: &str) -> Request {
    let parsed = Name::parse_group(group)
        .map_err(|error| fault(INCORRECT_PARAMETERS, error))
        .and_then(|name| parse_program(&name, params, main_file));
    match parsed {
        Ok(program) => Request::Change(Change::AddProgram(Box::new(program))),
        Err(fault) => Request::Invalid {
            group: group.to_owned(),
            program: params[1].as_str().map(str::to_owned),
            fault,
        },
    }
}

fn parse_program(group: &Name, params: &[Value], main_file: &str) -> Result<Program, Fault> {
    let name = params[1].as_str().ok_or_else(incorrect_parameters)?;
    Program::parse(group, name, &params[2], main_file)
        .map_err(|error| fault(INCORRECT_PARAMETERS, error.into_marked_text()))
}

/// The level of a log line: the daemon's name for it in any case (`warn`), its code in the daemon's log
/// (`WARN`), or its number. The in-process supervisor_twiddler accepts only the latter two.
fn level(value: Option<&Value>) -> Result<LogLevel, Fault> {
    match value {
        None => Some(LogLevel::Info),
        Some(Value::String(name)) => LogLevel::parse(name).or_else(|| LogLevel::from_code(name)),
        Some(Value::Int(number)) => LogLevel::from_number(*number),
        Some(_) => None,
    }
    .ok_or_else(incorrect_parameters)
}
