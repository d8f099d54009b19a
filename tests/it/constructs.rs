//! Edits of the constructs that real configurations use. supervisord's own parser decides the expected
//! result of each.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::common::judge::{Judge, diff, differing, ensure_as_judged, ensure_reported, settled};
use crate::common::provision::Version;
use crate::common::{Daemon, DaemonOptions, Sidecar, SidecarOptions};

/// An edit: the files before and after it, and the processes that it changes.
struct Edit {
    before: &'static [(&'static str, &'static str)],
    after: &'static [(&'static str, &'static str)],
    changes: &'static [&'static str],
}

/// An edit of one file.
macro_rules! edit {
    ($what:literal, $before:expr, $after:expr, $changes:expr) => {
        Edit {
            before: &[(concat!("conf.d/", $what, ".conf"), $before)],
            after: &[(concat!("conf.d/", $what, ".conf"), $after)],
            changes: &$changes,
        }
    };
}

const EDITS: &[Edit] = &[
    // A section in files of several include patterns.
    Edit {
        before: &[
            (
                "more/twice.conf",
                "[group:twice]\nprograms=twice1,twice2\n[program:twice1]\ncommand=/bin/sleep 600\n",
            ),
            (
                "conf.d/twice.conf",
                "[program:twice1]\ncommand=/bin/sleep 601\n[program:twice2]\ncommand=/bin/sleep 600\n",
            ),
        ],
        // The option in the file that is read last wins.
        after: &[
            (
                "more/twice.conf",
                "[group:twice]\nprograms=twice1,twice2\n[program:twice1]\ncommand=/bin/sleep 699\n",
            ),
            (
                "conf.d/twice.conf",
                "[program:twice1]\ncommand=/bin/sleep 601\n[program:twice2]\ncommand=/bin/sleep 602\n",
            ),
        ],
        changes: &["twice:twice2"],
    },
    // A program that moves to a file in another directory.
    Edit {
        before: &[
            (
                "conf.d/moves.conf",
                "[program:moves]\ncommand=/bin/sleep 600\n[program:here]\ncommand=/bin/sleep 600\ndirectory=%(here)s\n",
            ),
            ("more/moves.conf", ""),
        ],
        after: &[
            ("conf.d/moves.conf", ""),
            (
                "more/moves.conf",
                "[program:moves]\ncommand=/bin/sleep 600\n[program:here]\ncommand=/bin/sleep 600\ndirectory=%(here)s\n",
            ),
        ],
        changes: &["here:here"],
    },
    edit!(
        "here",
        "[group:h]\nprograms=h1,h2\n[program:h1]\ncommand=/bin/sleep 600\nenvironment=AT=\"%(here)s\"\n[program:h2]\ncommand=/bin/sleep 600\ndirectory=%(here)s\n",
        "[group:h]\nprograms=h1,h2\n[program:h1]\ncommand=/bin/sleep 600\nenvironment=AT=\"%(here)s/x\"\n[program:h2]\ncommand=/bin/sleep 600\ndirectory=%(here)s\n",
        ["h:h1"]
    ),
    edit!(
        "env-command",
        "[program:env1]\ncommand=/bin/sleep %(ENV_N)s\n[program:env2]\ncommand=/bin/sleep 600\n[program:env3]\ncommand=/bin/sleep %(ENV_N)s\n",
        "[program:env1]\ncommand=/bin/sleep 600\n[program:env2]\ncommand=/bin/sleep %(ENV_N)s\n[program:env3]\ncommand=/bin/sleep 601\n",
        ["env3:env3"]
    ),
    edit!(
        "env-priority",
        "[group:ep]\nprograms=ep1,ep2\npriority=%(ENV_N)s\n[program:ep1]\ncommand=/bin/sleep 600\npriority=%(ENV_N)s\n[program:ep2]\ncommand=/bin/sleep 600\nstopwaitsecs=%(ENV_TWO)s\n",
        "[group:ep]\nprograms=ep1,ep2\npriority=600\n[program:ep1]\ncommand=/bin/sleep 600\npriority=600\n[program:ep2]\ncommand=/bin/sleep 600\nstopwaitsecs=3\n",
        ["ep:ep2"]
    ),
    edit!(
        "env-members",
        "[group:em]\nprograms=em1,%(ENV_WORD)s\n[program:em1]\ncommand=/bin/sleep 600\n[program:word]\ncommand=/bin/sleep 600\n",
        "[group:em]\nprograms=em1,word\n[program:em1]\ncommand=/bin/sleep 601\n[program:word]\ncommand=/bin/sleep 600\n",
        ["em:em1"]
    ),
    edit!(
        "env-numprocs",
        "[group:en]\nprograms=en1,en2\n[program:en1]\ncommand=/bin/sleep 600\nnumprocs=%(ENV_TWO)s\nprocess_name=n%(process_num)d\n[program:en2]\ncommand=/bin/sleep 600\n",
        "[group:en]\nprograms=en1,en2\n[program:en1]\ncommand=/bin/sleep 600\nnumprocs=2\nprocess_name=n%(process_num)d\n[program:en2]\ncommand=/bin/sleep 601\n",
        ["en:en2"]
    ),
    edit!(
        "env-name",
        "[group:ename]\nprograms=ename1,ename2\n[program:ename1]\ncommand=/bin/sleep 600\nprocess_name=%(ENV_WORD)s_%(program_name)s\n[program:ename2]\ncommand=/bin/sleep 600\n",
        "[group:ename]\nprograms=ename1,ename2\n[program:ename1]\ncommand=/bin/sleep 600\nprocess_name=word_ename1\n[program:ename2]\ncommand=/bin/sleep 601\n",
        ["ename:ename2"]
    ),
    edit!(
        "numprocs-start",
        "[program:start]\ncommand=/bin/sleep 60%(process_num)d\nnumprocs=2\nprocess_name=n%(process_num)02d\n",
        "[program:start]\ncommand=/bin/sleep 60%(process_num)d\nnumprocs=2\nnumprocs_start=1\nprocess_name=n%(process_num)02d\n",
        ["start:n00", "start:n02"]
    ),
    edit!(
        "numprocs-told",
        "[program:told]\ncommand=/bin/sleep 60%(numprocs)d\nnumprocs=2\nprocess_name=n%(process_num)02d\n",
        "[program:told]\ncommand=/bin/sleep 60%(numprocs)d\nnumprocs=3\nprocess_name=n%(process_num)02d\n",
        ["told:n00", "told:n01", "told:n02"]
    ),
    edit!(
        "continued",
        "[group:con]\nprograms=con1,\n  con2,\n  con3\n[program:con1]\ncommand=/bin/sleep\n  600\nenvironment=A=\"1\",\n  B=\"2\"\n[program:con2]\ncommand=/bin/sh -c \":\n  exec sleep 600\"\n[program:con3]\ncommand=/bin/sleep 600\n",
        "[group:con]\nprograms=con1,con2,con3\n[program:con1]\ncommand=/bin/sleep\n     600\nenvironment=A=\"1\",B=\"2\"\n[program:con2]\ncommand=/bin/sh -c \": exec sleep 600; exec sleep 600\"\n[program:con3]\ncommand=/bin/sleep 600\n",
        ["con:con2"]
    ),
    edit!(
        "comments",
        "[group:com]\nprograms=com1,com2,com3 ; all of them\n[program:com1]\ncommand=/bin/sleep 600\n[program:com2]\ncommand=/bin/sleep 600 ; seconds\nenvironment=A=\"x;y\"\n[program:com3]\ncommand=/bin/sh -c \"exec sleep 600\"\n",
        "; a comment\n[group:com] ; of a section\nprograms=com1,com2,com3\n# another\n[program:com1]\n;command = /bin/sleep 1\ncommand=/bin/sleep 600 # seconds\n[program:com2]\ncommand=/bin/sleep 600\nenvironment=A='x;y'\n[program:com3]\ncommand=/bin/sh -c \"exec sleep 600;not\"\n",
        ["com:com3"]
    ),
    edit!(
        "capitals",
        "[program:caps1]\ncommand = /bin/sleep 600\nautostart=true\n[program:caps2]\nCOMMAND=/bin/sleep 600\n",
        "[program:caps1]\nCommand : /bin/sleep 600\nAutoStart = TRUE\n[program:caps2]\nCOMMAND=/bin/sleep 601\n",
        ["caps2:caps2"]
    ),
    edit!(
        "sections-twice",
        "[group:sec]\nprograms=sec1,sec2\n[program:sec1]\ncommand=/bin/sleep 600\n[program:sec2]\ncommand=/bin/sleep 600\n[program:sec1]\numask=022\n",
        "[program:sec1]\ncommand=/bin/sleep 1\numask=022\n[group:sec]\nprograms=sec1,sec2\n[program:sec1]\ncommand=/bin/sleep 600\n[program:sec2]\ncommand=/bin/sleep 600\n[program:sec2]\numask=022\n",
        ["sec:sec2"]
    ),
    edit!(
        "spaced-names",
        "[group: spaced ]\nprograms = sp1 , sp2\n[program:sp1]\ncommand=/bin/sleep 600\n[program:sp2]\ncommand=/bin/sleep 600\n[program: lonely ]\ncommand=/bin/sleep 600\n",
        "[group:spaced]\nprograms=sp1,sp2\n[program:sp1]\ncommand=/bin/sleep 601\n[program:sp2]\ncommand=/bin/sleep 600\n[program:lonely]\ncommand=/bin/sleep 600\n",
        ["spaced:sp1"]
    ),
    edit!(
        "line-ends",
        "[group:crlf]\nprograms=crlf1,crlf2\n[program:crlf1]\ncommand=/bin/sleep 600\n[program:crlf2]\ncommand=/bin/sleep 600\n",
        "[group:crlf]\r\nprograms=crlf1,crlf2\r\n[program:crlf1]\r\ncommand=/bin/sleep 600\r\n[program:crlf2]\r\ncommand=/bin/sleep 601\r\n",
        ["crlf:crlf2"]
    ),
    edit!(
        "expansions",
        "[group:exp]\nprograms=exp1,exp2\n[program:exp1]\ncommand=/bin/sleep 600 ; %%\nenvironment=P=\"%(program_name)s %(group_name)s %(host_node_name)s\",Q=\"100%%\"\n[program:exp2]\ncommand=/bin/sleep 600\nenvironment=P=\"%(process_num)d\"\n",
        "[group:exp]\nprograms=exp1,exp2\n[program:exp1]\ncommand=/bin/sleep 600\nenvironment=P=\"exp1 exp %(host_node_name)s\",Q=\"100%%\"\n[program:exp2]\ncommand=/bin/sleep 600\nenvironment=P=\"%(numprocs)d\"\n",
        ["exp:exp2"]
    ),
    edit!(
        "global-names",
        "[group:glo]\nprograms=glo1,glo2\n[program:glo1]\ncommand=/bin/sleep %(ENV_ALL)s00\n[program:glo2]\ncommand=/bin/sleep 600\nenvironment=ALL=\"6\"\n",
        "[group:glo]\nprograms=glo1,glo2\n[program:glo1]\ncommand=/bin/sleep 600\n[program:glo2]\ncommand=/bin/sleep %(ENV_ALL)s00\n",
        []
    ),
    edit!(
        "letters",
        "[group:let]\nprograms=let1,let2\n[program:let1]\ncommand=/bin/sleep 600\nenvironment=NAME=\"Zoë\"\n[program:let2]\ncommand=/bin/sleep 600\nenvironment=NAME=\"Zoë\"\n",
        "[group:let]\nprograms=let1,let2\n[program:let1]\ncommand=/bin/sleep 600\nenvironment=NAME='Zoë'\n[program:let2]\ncommand=/bin/sleep 600\nenvironment=NAME=\"Zoé\"\n",
        ["let:let2"]
    ),
    edit!(
        "unknown-keys",
        "[program:unk1]\ncommand=/bin/sleep 600\n[program:unk2]\ncommand=/bin/sleep 600\nautostrat=false\n",
        "[program:unk1]\ncommand=/bin/sleep 600\nfoo=%(nothing)s\n[program:unk2]\ncommand=/bin/sleep 600\nstartretries=4\n",
        ["unk2:unk2"]
    ),
    edit!(
        "order",
        "[group:ord]\nprograms=ord1,ord2,ord3\n[program:ord1]\ncommand=/bin/sleep 600\n[program:ord2]\ncommand=/bin/sleep 600\n[program:ord3]\ncommand=/bin/sleep 600\n",
        "[program:ord3]\ncommand=/bin/sleep 600\n[program:ord2]\ncommand=/bin/sleep 601\n[program:ord1]\ncommand=/bin/sleep 600\n[group:ord]\nprograms=ord3,ord1,ord2\n",
        ["ord:ord2"]
    ),
    edit!(
        "logs",
        "[group:log]\nprograms=log1,log2\n[program:log1]\ncommand=/bin/sleep 600\nstdout_logfile=%(here)s/%(program_name)s-%(ENV_N)s.out\n[program:log2]\ncommand=/bin/sleep 600\nstdout_logfile=/dev/null\nstdout_logfile_maxbytes=0\n",
        "[group:log]\nprograms=log1,log2\n[program:log1]\ncommand=/bin/sleep 600\nstdout_logfile=AUTO\n[program:log2]\ncommand=/bin/sleep 600\nstdout_logfile=NONE\nstdout_logfile_maxbytes=0\n",
        ["log:log2"]
    ),
    // Another include pattern.
    Edit {
        before: &[(
            "extra/extra.conf",
            "[program:extra]\ncommand=/bin/sleep 600\n",
        )],
        after: &[("supervisord.conf", "more/*.conf conf.d/*.conf extra/*.conf")],
        changes: &["extra:extra"],
    },
    // `[supervisord] environment`, which changes every program that does not set the variable itself.
    Edit {
        before: &[(
            "conf.d/own.conf",
            "[program:own]\ncommand=/bin/sleep 600\nenvironment=ALL=\"7\"\n",
        )],
        after: &[("supervisord.conf", "ALL=\"7\"")],
        changes: &[],
    },
];

/// Sets `startsecs=0`, so that the test does not wait for processes to start.
fn without_startsecs(text: &str) -> String {
    text.replace("command=/bin", "startsecs=0\ncommand=/bin")
}

/// Writes a file. In the main file it replaces the environment or the include patterns.
fn write(daemon: &Daemon, (path, text): (&str, &str)) -> Result<()> {
    if path != "supervisord.conf" {
        return daemon.write(path, &without_startsecs(text));
    }
    let conf = daemon.read(path)?;
    let (old, new) = if text.starts_with("ALL") {
        ("environment=ALL=\"6\"", format!("environment={text}"))
    } else {
        (
            "files = more/*.conf conf.d/*.conf",
            format!("files = {text}"),
        )
    };
    ensure!(conf.contains(old), "{conf}");
    daemon.write(path, &conf.replace(old, &new))
}

/// Makes all edits while the proxy has the variables `proxy_environment`.
fn each_construct(version: Version, proxy_environment: &[(&str, &str)]) -> Result<()> {
    let files = EDITS.iter().flat_map(|edit| edit.before);
    let files: Vec<(&str, String)> = files
        .map(|(path, text)| (*path, without_startsecs(text)))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (*path, text.as_str()))
        .collect();
    let daemon = Daemon::start_with(DaemonOptions {
        version,
        include: "more/*.conf conf.d/*.conf",
        extra_supervisord: "environment=ALL=\"6\"",
        files: &files,
        environment: &[("N", "600"), ("TWO", "2"), ("WORD", "word")],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            environment: proxy_environment,
            ..SidecarOptions::default()
        },
    )?;
    let client = sidecar.client();
    let mut judge = Judge::of(&daemon)?;
    let mut before = settled(&client)?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    // The last edit changes all programs.
    let (last, others) = EDITS.split_last().context("edits")?;
    for edits in others.chunks(6).chain([std::slice::from_ref(last)]) {
        for file in edits.iter().flat_map(|edit| edit.after) {
            write(&daemon, *file)?;
        }
        let verdict = judge.update()?;
        let difference = diff(&client)?;
        let reply = client.call("twiddler.updateConfig", ())?;
        let after = settled(&client)?;
        ensure_reported(&reply, &verdict, &before)
            .and_then(|()| ensure_as_judged(&verdict, &BTreeSet::new(), &before, &after))
            .with_context(|| format!("{reply:?}\n{difference:?}"))?;
        let changes: BTreeSet<String> = differing(&before, &after).into_iter().collect();
        let expected = edits.iter().flat_map(|edit| edit.changes);
        let expected: BTreeSet<String> = expected.map(|name| (*name).to_owned()).collect();
        if expected.is_empty() {
            ensure!(changes.len() > 20 && !changes.contains("own:own"))
        } else {
            ensure!(changes == expected, "{changes:?}: {difference:?}")
        }
        let difference = diff(&client)?;
        ensure!(difference.is_empty(), "still differs: {difference:?}");
        before = after;
    }
    Ok(())
}

#[test]
fn each_construct_is_edited_where_the_proxy_has_other_variables() -> Result<()> {
    each_construct(
        Version::V4_3_0,
        &[("N", "601"), ("TWO", "3"), ("WORD", "em1"), ("ALL", "9")],
    )
}

#[test]
fn each_construct_is_edited_where_the_proxy_has_none_of_the_variables() -> Result<()> {
    each_construct(Version::V4_2_5, &[])
}
