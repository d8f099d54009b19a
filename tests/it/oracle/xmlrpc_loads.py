"""Parses request bodies with the daemon's own code.

Reads one base64 body per line and answers each with one line of JSON:

    {"method": NAME, "params": [VALUE, ...]}    the daemon would make this call
    {"refused": REASON}                         the daemon would answer 400

A VALUE is a pair of kind and content: ["nil", null], ["boolean", true], ["int", "0x5"],
["double", "1.5"], ["string", "x"], ["dateTime", ISO], ["array", [VALUE, ...]] or
["struct", [[VALUE, VALUE], ...]], where a name is a VALUE because it may not be a text.

Run it with a Python that can import supervisor. Each answer is written at once, in order.
"""

import base64
import datetime
import json
import sys

from supervisor.compat import as_string
from supervisor.xmlrpc import supervisor_xmlrpc_handler

sys.setrecursionlimit(100_000)


def tagged(value):
    """Returns the value with its kind, because JSON has fewer kinds."""
    if value is None:
        return ["nil", None]
    if isinstance(value, bool):
        return ["boolean", value]
    if isinstance(value, int):
        return ["int", hex(value)]
    if isinstance(value, float):
        return ["double", repr(value)]
    if isinstance(value, str):
        return ["string", value]
    if isinstance(value, datetime.datetime):
        return ["dateTime", value.isoformat()]
    if isinstance(value, (list, tuple)):
        return ["array", [tagged(item) for item in value]]
    return ["struct", [[tagged(name), tagged(item)] for name, item in value.items()]]


def understood(body):
    """Returns the call in a body, as medusa's collector and `continue_request` read it."""
    try:
        # Of the handler, `loads` only uses a table, which is a member of the class.
        params, method = supervisor_xmlrpc_handler.loads(
            supervisor_xmlrpc_handler, as_string(body)
        )
    except Exception as error:  # the daemon catches all exceptions too
        return {"refused": "%s: %s" % (type(error).__name__, error)}
    if not method:
        return {"refused": "no method name"}
    return {"method": method, "params": [tagged(item) for item in params or ()]}


for line in sys.stdin:
    answer = understood(base64.b64decode(line))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
