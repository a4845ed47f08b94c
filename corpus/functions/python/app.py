"""The sample function in Python. It answers with its event, but for {"do": {…}}: see handler."""

import os
import time
import uuid

INSTANCE = uuid.uuid4().hex
invokes = 0


def handler(event, context):
    global invokes
    invokes += 1
    do = event.get("do") if isinstance(event, dict) else None
    if do is None:
        return event
    if "log_text" in do:
        print(do["log_text"])
    time.sleep(do.get("sleep_ms", 0) / 1000)
    if "numpy" in do:  # a large library, read from the image when it is first wanted
        import numpy

        return float(numpy.arange(do["numpy"]).sum())
    if "error" in do:
        raise ValueError(do["error"])
    if "exit" in do:
        os._exit(do["exit"])
    return {
        "instance": INSTANCE,
        "invokes": invokes,
        "request_id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "function": context.function_name,
        "remain_ms": context.get_remaining_time_in_millis(),
        "env": {name: os.environ[name] for name in do.get("env", []) if name in os.environ},
    }
