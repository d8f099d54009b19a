"""Reads configuration files with supervisord's own code.

Usage: read_server_config.py LIST, a file with the path of one configuration file per line. Prints the
version of Python, then a JSON object per line: the daemon's settings, or the reason why it refuses the
file.
"""

import json
import platform
import re
import sys
import warnings

warnings.simplefilter("ignore")  # supervisor 4.2.5 uses the deprecated pkg_resources

from supervisor import options as supervisor_options


class Refused(Exception):
    pass


class Parser(supervisor_options.UnhosedConfigParser):
    """Remembers the parser, to read its sections after the daemon has read all files."""

    def __init__(self):
        super().__init__()
        Parser.latest = self


supervisor_options.UnhosedConfigParser = Parser


def refuse(message):
    raise Refused(str(message))


def realized(path):
    options = supervisor_options.ServerOptions()
    options.usage = refuse  # instead of an exit
    options.realize(["-c", path])
    return options


def servers(options):
    unix = [c for c in options.server_configs if "file" in c]
    inet = [c for c in options.server_configs if "file" not in c]
    for config in unix + inet:
        yield {
            "section": config["section"],
            "file": config.get("file"),
            "host": config.get("host"),
            "port": config.get("port"),
            "username": config["username"],
            "password": config["password"],
        }


def included(options):
    for info in options.parse_infos:
        path = re.match('Included extra file "(.*)" during parsing$', info, re.DOTALL).group(1)
        try:
            with open(path) as file:
                file.read()
        except OSError:
            continue  # the daemon skips it without a message
        yield path


def groups(options):
    for group in options.process_group_configs:
        yield {
            "name": group.name,
            "priority": group.priority,
            "empty": not group.process_configs,
            "processes": [process.name for process in group.process_configs],
        }


def twiddler(options):
    """Returns the options of [twiddler], expanded with the daemon's values for its own sections."""
    parser = Parser.latest
    names = {"here": options.here, "host_node_name": platform.node()}
    for key in parser._sections.get("twiddler", {}):
        if key in parser.defaults():
            continue  # inherited from [DEFAULT] when %(here)s was replaced in it
        yield key, parser.saneget("twiddler", key, expansions=names)


def accepted(path):
    options = realized(path)
    return {
        "servers": list(servers(options)),
        "logfile": options.logfile,
        "loglevel": options.loglevel,
        "included": list(included(options)),
        "groups": list(groups(options)),
        "twiddler": list(twiddler(options)),
    }


def answer(path):
    try:
        return {"accepted": accepted(path)}
    except Exception as error:
        return {"refused": "%s: %s" % (type(error).__name__, error)}


def main():
    print(json.dumps(sys.version_info[:2]))
    with open(sys.argv[1], encoding="utf-8") as paths:
        for path in paths:
            print(json.dumps(answer(path.rstrip("\n"))))


main()
