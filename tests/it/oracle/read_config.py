"""Reads programs with supervisord's own code: from its files, and from options in memory.

Takes requests on standard input and answers on standard output, one JSON object per line. A request
has `main`, the path of the main configuration file, and may have `program` with `group`, `name` and
`options`. The answer has `file`, the configuration from the main file and its includes, and `memory`,
the program after its options were set in the parser directly. Each is either the configuration or a
`fault` with supervisord's text.
"""

import json
import os
import sys

from supervisor import options as supervisor_options
from supervisor.options import ProcessConfig, ServerOptions, UnhosedConfigParser

ATTRIBUTES = ProcessConfig.req_param_names + ProcessConfig.optional_param_names


class RecordingParser(UnhosedConfigParser):
    """Remembers the parser that read the files last."""

    last = None

    def __init__(self, *args, **kwargs):
        UnhosedConfigParser.__init__(self, *args, **kwargs)
        RecordingParser.last = self


def described(value):
    """Converts an attribute to JSON. Markers such as Automatic are classes."""
    if isinstance(value, type):
        return "<%s>" % value.__name__
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def process(config):
    return {name: described(getattr(config, name)) for name in ATTRIBUTES}


def by_name(configs):
    return [process(config) for config in sorted(configs, key=lambda config: config.name)]


def read_file(options, main):
    """Reads the files as reloadConfig does before it compares the groups."""
    options.configfile = main
    options.process_config(do_usage=False)
    groups = {
        group.name: {"priority": group.priority, "processes": by_name(group.process_configs)}
        for group in options.process_group_configs
    }
    return {"groups": groups, "sections": sorted(RecordingParser.last.sections())}


def read_memory(options, main, program):
    """Reads a program as an extension inside supervisord does, with the environment of the files."""
    options.configfile = main
    options.here = os.path.abspath(os.path.dirname(main))
    parser = UnhosedConfigParser()
    parser.expansions = options.environ_expansions
    section = "program:%s" % program["name"]
    parser.add_section(section)
    for name, text in program["options"]:
        parser.set(section, name, text)
    configs = options.processes_from_section(parser, section, program["group"])
    return {"processes": by_name(configs)}


def attempt(read, *args):
    try:
        return read(*args)
    except ValueError as error:
        return {"fault": str(error)}


def main():
    supervisor_options.UnhosedConfigParser = RecordingParser
    options = ServerOptions()
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"file": attempt(read_file, options, request["main"])}
        if "program" in request:
            answer["memory"] = attempt(
                read_memory, options, request["main"], request["program"]
            )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
