//! Random programs whose values are hard to escape, and invalid ones.

use super::dice::Dice;

/// A program as a client sends it.
#[derive(Clone, Debug)]
pub(crate) struct ProgramInput {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) options: Vec<(String, String)>,
}

/// Parts of values that a parser may misread and that the daemon can expand.
pub(crate) const HARD: &[&str] = &[
    "a",
    "b",
    "/bin/cat",
    "x y",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\n \n",
    " ;",
    ";",
    " #",
    "#",
    "\n;",
    "\n#",
    "\t;",
    " ;;",
    " # ;",
    "[x]",
    "\n[program:evil]\n",
    "[group:evil]",
    "\ncommand=/bin/evil",
    "=",
    ":",
    "\\",
    "\\n",
    "\"",
    "'",
    ",",
    "%%",
    "%%%%",
    "%%(here)s",
    "%%%%(here)s",
    "%%s",
    "%(here)s",
    "%(here).3s",
    "%(here)r",
    "%(program_name)s",
    "%(group_name)s",
    "%(host_node_name)s",
    "%(ENV_ODD)s",
    "%(ENV_PERCENT)s",
    "%(ENV_EMPTY)s",
    "\u{a0}",
    "\u{a0};",
    "\u{3000}",
    "\u{3000}#",
    "\u{2028}",
    "\u{2029};",
    "\u{85}",
    "\u{1680}",
    "\u{202f}",
    "\u{feff}",
    "\u{200b}",
    "\u{7f}",
    "é",
    "😀",
    "\nrem x",
    "~",
    "${X}",
    "<&>",
    "(here)s",
    "s",
];

/// Parts of values that the file or XML cannot hold, or that the daemon cannot expand.
pub(crate) const BAD: &[&str] = &[
    "\r",
    "\0",
    "\u{1c}",
    "\u{1f}",
    "\u{b}",
    "\u{ffff}",
    "%",
    "%s",
    "%r",
    "%5.2f",
    "%(nope)s",
    "%(",
    "%(here",
    "%5",
    "%-",
    "%(here)y",
    "%(here)%",
    "%(program_name)d",
    "%(group_name)x",
    "%(here)d",
    "%(here)e",
    "%(ENV_ODD)c",
    "%(process_num)c",
    "%(a b)s",
    "%(x%(here)s)s",
    "%()s",
    "%(here)*d",
    "%(here)1001s",
    "%é",
    "%\n",
    "%(numprocs)d",
    "%(process_num)d",
    "%(ENV_SUPERVISOR_GROUP_NAME)s",
];

pub(crate) const NAME_PARTS: &[&str] = &[
    "a", "web", "-", "_", ".", "~", "'", "\"", "\\", ";", "#", "[", "(", ")", "=", "|", "<", "*",
    "@", "{", "$",
];

const TEXT_NAMES: &[&str] = &["program_name", "group_name"];
const ALL_NAMES: &[&str] = &["program_name", "group_name", "numprocs", "process_num"];

/// Returns a valid name, sometimes with percent signs.
fn name(dice: &mut Dice) -> String {
    let mut name = dice.text(NAME_PARTS, &[], 3);
    if dice.one_in(8) {
        name += dice.pick(&["%", "%%", "%(here)s", "%s"]);
    }
    name + dice.pick(&["a", "b0", "~1", "#"])
}

/// Returns the path of a log file in an existing directory, which the daemon can expand twice.
fn log_file(dice: &mut Dice) -> String {
    let once: Vec<_> = HARD
        .iter()
        .copied()
        .filter(|part| !part.contains("%%") && !part.contains('/') && !part.contains("%(here"))
        .filter(|part| *part != "%(ENV_PERCENT)s")
        .chain([
            "%%%%",
            "%%(process_num)02d",
            "%%(program_name)s",
            "%%(group_name) -#5.2s;",
        ])
        .chain(["%%(ENV_EMPTY)s", "%%%%(here)s", "%%(numprocs)d ;"])
        .collect();
    dice.pick(&["", "%(here)s/", "%%(here)s/"]).to_owned() + &dice.text(&once, TEXT_NAMES, 6)
}

/// Returns pairs in quotes, with hard values that do not have the same quotes.
fn environment(dice: &mut Dice, values: &mut usize) -> String {
    let pairs = 1 + dice.below(4);
    let mut pair = |key: usize| {
        let quote = dice.pick(&["\"", "'"]);
        let parts: Vec<_> = HARD
            .iter()
            .copied()
            .filter(|part| !part.contains(quote))
            .collect();
        *values += 1;
        let gap = dice.pick(&["", "", " ", "\n", "\n # x\n"]);
        format!(
            "{gap}K{key}={quote}{}{quote}",
            dice.text(&parts, ALL_NAMES, 8)
        )
    };
    (0..pairs).map(&mut pair).collect::<Vec<_>>().join(",")
}

/// Returns a program that the daemon should accept, and the number of its values.
pub(crate) fn good_program(dice: &mut Dice) -> (ProgramInput, usize) {
    let mut options = vec![("command".to_owned(), dice.text(HARD, ALL_NAMES, 12))];
    let mut values = 0;
    let mut add = |name: &str, text: String| options.push((name.to_owned(), text));
    add("directory", dice.text(HARD, ALL_NAMES, 8));
    add("serverurl", dice.text(HARD, TEXT_NAMES, 8));
    add(
        "X-Note",
        dice.text(HARD, ALL_NAMES, 4) + &dice.text(&["%", "%s", " ;", "\n["], &[], 3),
    );
    for log in ["stdout_logfile", "stderr_logfile"] {
        add(log, log_file(dice));
    }
    if dice.one_in(2) {
        add("environment", environment(dice, &mut values));
    }
    let several = dice.one_in(2);
    if several {
        add("numprocs", dice.pick(&["2", " 3 ", "+4"]).to_owned());
        add(
            "numprocs_start",
            dice.pick(&["0", "7", "-1", "+98"]).to_owned(),
        );
    }
    if several || dice.one_in(2) {
        let parts = [
            "a",
            "b-",
            "%%",
            "[x]",
            "'",
            "\"",
            "\\",
            ";",
            "#",
            "%%(here)s",
            "%(ENV_NUMBER)s",
            "%(host_node_name)s",
            "%(group_name).2s",
            "%(program_name)s",
            "%(numprocs)02d",
        ];
        let edge = dice.pick(&["", "", " ", "\n", "\u{3000}"]);
        let number = dice.pick(&["%(process_num)02d", "%(process_num)#x", "x%(process_num)s"]);
        add(
            "process_name",
            format!("{edge}{}{number}{edge}", dice.text(&parts, &[], 4)),
        );
    }
    for (name, choices) in [
        ("priority", ["5", " -1\n", "%(ENV_NUMBER)s", "1_0"]),
        ("StartSecs", ["0", "\t7", "%(ENV_NUMBER)5s", "+2"]),
        (
            "stopsignal",
            ["TERM", " usr1 ", "9", "%(program_name).0sINT"],
        ),
        ("exitcodes", ["0", "0, 2", "", "%(ENV_NUMBER)s,1"]),
        ("umask", ["022", " 7 ", "0o17", "0"]),
        (
            "stdout_logfile_maxbytes",
            ["0", "1KB", "%(process_num)03d", "%(numprocs)dMB"],
        ),
        (
            "redirect_stderr",
            ["true", "Off", "0", "%(group_name).0sfalse"],
        ),
        ("user", ["root", "0", "%(program_name).0sroot", "root"]),
    ] {
        if dice.one_in(4) {
            add(name, dice.pick(&choices).to_owned());
        }
    }
    values += options.len();
    (
        ProgramInput {
            group: name(dice),
            name: name(dice),
            options,
        },
        values,
    )
}

/// Returns a program with one option that is probably invalid.
pub(crate) fn bad_program(dice: &mut Dice) -> ProgramInput {
    let (option, text) = match dice.below(3) {
        0 => wrong_value(dice),
        _ => {
            let options = [
                "command",
                "directory",
                "environment",
                "process_name",
                "serverurl",
                "stdout_logfile",
                "stderr_logfile",
                "priority",
                "stdout_logfile_backups",
                "stopsignal",
                "user",
                "umask",
                "autostart",
                "stdout_syslog",
                "exitcodes",
                "stdout_capture_maxbytes",
            ];
            let bad = dice.pick(BAD).to_owned();
            let twice = dice.one_in(3);
            let bad = if twice { bad.replace('%', "%%") } else { bad };
            // In a second expansion, these parts would be invalid too, or insert all values.
            let hard: Vec<_> = HARD
                .iter()
                .copied()
                .filter(|part| !part.contains("%%") && !part.contains("PERCENT"))
                .collect();
            let (before, after) = (dice.text(&hard, &[], 3), dice.text(&hard, &[], 3));
            (dice.pick(&options), before + &bad + &after)
        }
    };
    let mut options = vec![(option.to_owned(), text)];
    if option != "command" && option != "x-note" {
        options.push(("command".to_owned(), "/bin/cat".to_owned()));
    }
    ProgramInput {
        group: name(dice),
        name: name(dice),
        options,
    }
}

fn wrong_value(dice: &mut Dice) -> (&'static str, String) {
    let (option, text) = [
        ("priority", "high"),
        ("priority", "%(numprocs)d"),
        ("priority", " 99999999999 "),
        ("startsecs", "1.5 ;x"),
        ("numprocs", "two"),
        ("numprocs", "2"),
        ("autostart", " maybe"),
        ("autorestart", "sometimes"),
        ("stopsignal", "NOPE ;"),
        ("stopsignal", "999"),
        ("user", "nobody here"),
        ("user", "12345678"),
        ("umask", "9"),
        ("exitcodes", "256"),
        ("exitcodes", "0;1"),
        ("stdout_logfile", "/no/such/dir ;/x"),
        ("stderr_logfile", "%(here)s/no/x"),
        ("stdout_logfile_maxbytes", "10TB"),
        ("stdout_syslog", "%(program_name)s"),
        ("stopasgroup", "true"),
        ("killasgroup", "perhaps"),
        ("environment", "A"),
        ("environment", "A=1,B"),
        ("environment", "A=1,B="),
        ("environment", ",A=1"),
        ("environment", "A=\"b ;c\"\n\"d"),
        ("environment", "A=1,%(ENV_A)s"),
        ("environment", "%(program_name)s"),
        ("process_name", " a b "),
        ("process_name", "a:b"),
        ("process_name", "a/b\n"),
        ("process_name", "%(process_num) d"),
        ("x-note", "no command"),
    ][dice.below(33)];
    (option, text.to_owned())
}
