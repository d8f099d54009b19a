#!/usr/bin/env python3
"""A session with a running proxy: prints each call and its answer, and removes what it added.

demo.py [URL]             runs the session, as often as you like
demo.py [URL] --keep      the same, but leaves what it added
demo.py [URL] --restarted looks whether what --keep left is still there

Needs Python alone. Exits with 1 when an answer is not the expected one.
"""

import argparse
import sys
import time
import xmlrpc.client

PATIENCE = 10  # seconds for what a process does in its own time


class Surprise(Exception):
    """An answer that nobody promised."""


class Session:
    """Evaluates calls on the proxy as a reader would type them."""

    def __init__(self, url):
        self.server = xmlrpc.client.ServerProxy(url, allow_none=True)
        print(f"# s = xmlrpc.client.ServerProxy({url!r})")

    def ask(self, call):
        return eval(call, {"s": self.server})

    def show(self, call, promised):
        """Prints a call and its answer; `promised` is the answer, or says whether it will do."""
        print(f">>> {call}", flush=True)
        fits = promised if callable(promised) else lambda answer: answer == promised
        deadline = time.monotonic() + PATIENCE
        answer = self.ask(call)
        # A process that was only just started may not have written yet.
        while callable(promised) and not fits(answer) and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = self.ask(call)
        print(repr(answer), flush=True)
        if not fits(answer):
            raise Surprise(call)

    def processes(self):
        return {
            f"{p['group']}:{p['name']}": (p["pid"], p["start"])
            for p in self.server.supervisor.getAllProcessInfo()
        }


GROUP = "dynamic_procs"
STATES = "[f\"{p['group']}:{p['name']} {p['statename']}\" for p in s.supervisor.getAllProcessInfo()]"
LOG_LINE = "the demo was here"


def joined(before):
    """Both new members beside what ran before."""

    def fits(answer):
        states = dict(entry.split(" ") for entry in answer)
        return (
            len(answer) == len(before) + 2
            and set(states) == {*before, "dynamic_procs:ls", "dynamic_procs:sleep"}
            and states["dynamic_procs:ls"] == "EXITED"
            and states["dynamic_procs:sleep"] == "RUNNING"
        )

    return fits


def clean(session):
    """Removes what an earlier run left, whatever became of it."""
    server = session.server
    if GROUP not in server.twiddler.getGroupNames():
        return
    print(f"# Removing {GROUP}, which an earlier run left.")
    server.supervisor.stopProcessGroup(GROUP)
    server.twiddler.removeGroup(GROUP)


def run(session, keep):
    clean(session)
    before = session.processes()

    session.show("s.twiddler.getAPIVersion()", "1.0")
    session.show("s.twiddler.addGroup('dynamic_procs', 999)", True)
    session.show(
        "s.twiddler.addProcessToGroup('dynamic_procs', 'ls', {'command': 'ls -l',"
        " 'autostart': 'false', 'autorestart': 'false', 'startsecs': '0'})",
        True,
    )
    # Not waited for: supervisord calls a program abnormal that has ended before it looks.
    session.show("s.supervisor.startProcess('dynamic_procs:ls', False)", True)
    session.show(
        "s.supervisor.readProcessLog('dynamic_procs:ls', 0, 50)",
        lambda answer: answer.startswith("total "),
    )

    print("# A second process joins the group that now has a member.")
    session.show(
        "s.twiddler.addProcessToGroup('dynamic_procs', 'sleep', {'command': 'sleep 3600', 'autostart': 'false'})",
        True,
    )
    session.show("s.supervisor.startProcess('dynamic_procs:sleep')", True)
    session.show(
        "s.supervisor.getProcessInfo('dynamic_procs:sleep')['statename']", "RUNNING"
    )
    session.show(STATES, joined(before))
    session.show(
        "s.twiddler.getGroupNames()", lambda answer: "dynamic_procs" in answer
    )

    session.show(f"s.twiddler.log({LOG_LINE!r})", True)
    session.show(
        f"'INFO {LOG_LINE}' in s.supervisor.readLog(-200, 0)", True
    )

    if not keep:
        remove(session, before)
    after = session.processes()
    for name, was in before.items():
        if after.get(name) != was:
            raise Surprise(f"{name} was {was} and is {after.get(name)}")
    if before:
        print(f"# Nothing else noticed: {', '.join(sorted(before))}.")


def remove(session, before):
    print("# One process leaves, while the other runs on; then all of the group.")
    session.show("s.twiddler.removeProcessFromGroup('dynamic_procs', 'ls')", True)
    session.show(
        "s.supervisor.getProcessInfo('dynamic_procs:sleep')['statename']", "RUNNING"
    )
    session.show("s.supervisor.stopProcess('dynamic_procs:sleep')", True)
    session.show("s.twiddler.removeGroup('dynamic_procs')", True)
    session.show(STATES, lambda answer: {entry.split(" ")[0] for entry in answer} == set(before))


def run_restarted(session):
    session.show(
        "s.twiddler.getGroupNames()", lambda answer: "dynamic_procs" in answer
    )
    session.show(
        "s.supervisor.getProcessInfo('dynamic_procs:sleep')['statename']", "RUNNING"
    )
    session.show(
        "s.supervisor.readProcessLog('dynamic_procs:ls', 0, 6)", "total "
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://localhost:9001")
    parser.add_argument("--keep", action="store_true", help="leave what was added")
    parser.add_argument("--restarted", action="store_true", help="look for what --keep left")
    args = parser.parse_args()
    try:
        session = Session(args.url)
        if args.restarted:
            run_restarted(session)
        else:
            run(session, args.keep)
    except Surprise as surprise:
        print(f"demo: not as promised: {surprise}", file=sys.stderr)
        return 1
    except xmlrpc.client.Fault as fault:
        print(f"demo: fault {fault.faultCode}: {fault.faultString}", file=sys.stderr)
        return 1
    except (OSError, xmlrpc.client.Error) as error:
        print(f"demo: {args.url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
