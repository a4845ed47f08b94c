"""A small client of the Runtime API: runs the handler that _HANDLER names, as "module.function".

It is a runtime for images, and with a base image that has it as its entrypoint one for zip packages too.
"""

import http.client
import importlib
import json
import os
import sys
import time
import traceback

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
PREFIX = "/2018-06-01/runtime/"


class Context:
    """What a handler may ask of its invoke."""

    def __init__(self, headers):
        self.aws_request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        self.invoked_function_arn = headers.get("Lambda-Runtime-Invoked-Function-Arn")
        self.function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self._deadline = int(headers["Lambda-Runtime-Deadline-Ms"])

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline - int(time.time() * 1000))


def request(connection, method, path, body=None, headers=()):
    connection.request(method, PREFIX + path, body, dict(headers))
    response = connection.getresponse()
    data = response.read()
    if response.status not in (200, 202):
        raise SystemExit(f"the Runtime API answers {response.status} to {path}")
    return response.headers, data


def failure(error):
    """The error as the API wants it, and its type for the header."""
    kind = type(error).__name__
    trace = [line.rstrip("\n") for line in traceback.format_tb(error.__traceback__)]
    body = json.dumps({"errorMessage": str(error), "errorType": kind, "stackTrace": trace}).encode()
    return body, [("Lambda-Runtime-Function-Error-Type", "Function." + kind)]


def load(name):
    sys.path.insert(0, os.environ.get("LAMBDA_TASK_ROOT", os.getcwd()))
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module.replace("/", ".")), function)


def main():
    connection = http.client.HTTPConnection(API)  # without a time limit: next may take for ever
    try:
        handler = load(os.environ.get("_HANDLER") or sys.argv[1])
    except Exception as error:
        request(connection, "POST", "init/error", *failure(error))
        raise SystemExit(1)
    while True:
        headers, event = request(connection, "GET", "invocation/next")
        invocation = "invocation/" + headers["Lambda-Runtime-Aws-Request-Id"]
        try:
            answer = json.dumps(handler(json.loads(event), Context(headers))).encode()
        except Exception as error:
            request(connection, "POST", invocation + "/error", *failure(error))
            continue
        request(connection, "POST", invocation + "/response", answer, [("Content-Type", "application/json")])


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
