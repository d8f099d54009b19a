"""Tells which processes changed between two readings of the same files, as supervisord compares them.

Takes requests on standard input and answers on standard output, one JSON object a line. `start` reads
the main file anew: that is in force. `update` reads it again, answers which processes are `same`,
`changed`, `added` and `removed`, and what is in force afterwards is what was read, but for those that
are the same. A log that the files leave to supervisord is a path once it is in force.
"""

import json
import sys

from supervisor.datatypes import Automatic
from supervisor.options import ServerOptions

OPTIONS = ServerOptions()
IN_FORCE = {}


def read(main):
    OPTIONS.configfile = main
    OPTIONS.process_config(do_usage=False)
    return {
        "%s:%s" % (group.name, config.name): config
        for group in OPTIONS.process_group_configs
        for config in group.process_configs
    }


def put_in_force(name, config):
    for log in ("stdout_logfile", "stderr_logfile"):
        if getattr(config, log) is Automatic:
            setattr(config, log, "/a/path/that/supervisord/has/chosen")
    IN_FORCE[name] = config


def start(main):
    IN_FORCE.clear()
    for name, config in read(main).items():
        put_in_force(name, config)
    return {}


def update(main):
    files = read(main)
    answer = {"same": [], "changed": [], "added": {}, "removed": []}
    for name in sorted(set(IN_FORCE) - set(files)):
        answer["removed"].append(name)
        del IN_FORCE[name]
    for name, config in sorted(files.items()):
        if name not in IN_FORCE:
            answer["added"][name] = config.autostart
            put_in_force(name, config)
        elif IN_FORCE[name] == config:
            answer["same"].append(name)
        else:
            answer["changed"].append([name, config.autostart])
            put_in_force(name, config)
    return answer


def main():
    for line in sys.stdin:
        request = json.loads(line)
        action = {"start": start, "update": update}[request["action"]]
        try:
            answer = action(request["main"])
        except ValueError as error:
            answer = {"fault": str(error)}
        print(json.dumps(answer), flush=True)


main()
