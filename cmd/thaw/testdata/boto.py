# What a script of boto3's users does, against a whole platform: it takes
# everything from its environment, but for the image. An assertion that fails ends it.
import base64, json, os, sys, time

import boto3

at = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}  # versions before 1.28 do not read it
c, logs = boto3.client("lambda", **at), boto3.client("logs", **at)


def refused(kind, call, **args):
    try:
        call(**args)
    except getattr(c.exceptions, kind) as e:
        return e.response
    raise AssertionError(f"{call.__name__} was not refused with {kind}")


f = dict(FunctionName="boto")
made = c.create_function(
    **f, PackageType="Image", Code={"ImageUri": sys.argv[1]}, ImageConfig={"EntryPoint": ["/function"]},
    Role="arn:aws:iam::000000000000:role/any", MemorySize=256, Timeout=60, Environment={"Variables": {"GREETING": "hi"}}, Tags={"team": "a"})
assert made["State"] == "Pending", made
c.get_waiter("function_active_v2").wait(**f, WaiterConfig={"Delay": 1, "MaxAttempts": 300})

cold = c.invoke(**f, Payload=b'{"a": 1}', LogType="Tail")
log = base64.b64decode(cold["LogResult"]).decode()
assert (cold["StatusCode"], cold["ExecutedVersion"], cold["Payload"].read()) == (200, "$LATEST", b'{"a": 1}'), cold
assert "REPORT RequestId: " + cold["ResponseMetadata"]["RequestId"] in log and "Init Duration" in log, log
told = json.load(c.invoke(**f, Payload=b'{"do":{"env":["GREETING"]}}')["Payload"])
assert told["env"] == {"GREETING": "hi"} and told["memory_mb"] == 256, told
failed = c.invoke(**f, Payload=b'{"do":{"error":"no luck"}}')
assert failed["FunctionError"] == "Unhandled" and json.load(failed["Payload"])["errorMessage"] == "no luck", failed
assert c.invoke(**f, InvocationType="DryRun")["StatusCode"] == 204
queued = c.invoke(**f, InvocationType="Event", Payload=b'{"do":{"log_text":"an event"}}')
assert queued["StatusCode"] == 202, queued

assert c.publish_version(**f)["Version"] == "1"
c.get_waiter("published_version_active").wait(**f, Qualifier="1")
c.create_alias(**f, Name="live", FunctionVersion="1")
assert c.invoke(**f, Qualifier="live", Payload=b"1")["ExecutedVersion"] == "1"
c.update_function_configuration(**f, Description="second")
c.get_waiter("function_updated_v2").wait(**f, WaiterConfig={"Delay": 1, "MaxAttempts": 300})
names = [x["FunctionName"] for page in c.get_paginator("list_functions").paginate() for x in page["Functions"]]
assert "boto" in names, names
assert c.get_function(**f)["Tags"] == {"team": "a"}

refused("ResourceNotFoundException", c.invoke, FunctionName="none")
refused("InvalidRequestContentException", c.invoke, **f, Payload=b"{")
refused("ResourceConflictException", c.create_alias, **f, Name="live", FunctionVersion="1")
c.put_function_concurrency(**f, ReservedConcurrentExecutions=0)
quick = boto3.client("lambda", config=boto3.session.Config(retries={"max_attempts": 0}), **at)
for _ in range(1800):  # it becomes known
    try:
        quick.invoke(**f, Payload=b"1")
    except quick.exceptions.TooManyRequestsException as e:
        assert e.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", e.response
        break
    time.sleep(0.1)
else:
    raise AssertionError("reserved concurrency 0 does not throttle")
c.delete_function_concurrency(**f)

events = logs.get_paginator("filter_log_events")
for _ in range(1800):  # it is run when its turn comes
    lines = [e["message"] for page in events.paginate(logGroupName="/aws/lambda/boto", interleaved=True) for e in page["events"]]
    if "an event" in lines:
        break
    time.sleep(0.1)
else:
    raise AssertionError(f"the event has not run: {lines}")

if hasattr(c, "invoke_with_response_stream"):
    out = c.invoke_with_response_stream(**f, Payload=b'{"do":{"stream":{"pieces":3,"bytes":2}}}', LogType="Tail")
    parts = list(out["EventStream"])
    assert b"".join(p["PayloadChunk"]["Payload"] for p in parts[:-1]) == b"aabbcc", parts
    assert "REPORT" in base64.b64decode(parts[-1]["InvokeComplete"]["LogResult"]).decode(), parts
    print("with streams")
c.delete_function(**f)
refused("ResourceNotFoundException", c.get_function, **f)
print("all is well with", boto3.__version__)
