# What boto3 makes of the control API: run by a test, which builds functions meanwhile.
import datetime, io, os, zipfile
import boto3, botocore.config, botocore.exceptions

c = boto3.client("lambda", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="secret",
                 config=botocore.config.Config(retries={"total_max_attempts": 1}))
ROLE = "arn:aws:iam::000000000000:role/r"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:py"


def refused(kind, message, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as e:
        assert e.response["Error"]["Code"] == kind and message in e.response["Error"]["Message"], e.response
    else:
        raise AssertionError("not refused: " + message)


made = c.create_function(FunctionName="py", Role=ROLE, PackageType="Image", Code={"ImageUri": "r/f:1"}, Publish=True, Tags={"a b": "c+d/="})
assert made["State"] == "Pending" and made["Version"] == "1" and made["ResponseMetadata"]["HTTPStatusCode"] == 201, made
c.get_waiter("function_active_v2").wait(FunctionName="py", WaiterConfig={"Delay": 1})
c.get_waiter("published_version_active").wait(FunctionName=ARN, Qualifier="1", WaiterConfig={"Delay": 1})
assert c.get_function(FunctionName=ARN + ":$LATEST")["Code"]["ResolvedImageUri"].startswith("registry.example/f@sha256:")
c.update_function_configuration(FunctionName="py", MemorySize=512, Environment={"Variables": {"KEY": "ä\n"}})
c.get_waiter("function_updated_v2").wait(FunctionName="py", WaiterConfig={"Delay": 1})
assert c.get_function_configuration(FunctionName="py")["Environment"]["Variables"] == {"KEY": "ä\n"}
assert c.publish_version(FunctionName="py")["Version"] == "2"
c.create_alias(FunctionName="py", Name="live", FunctionVersion="1", RoutingConfig={"AdditionalVersionWeights": {"2": 0.25}})
assert c.get_alias(FunctionName="py", Name="live")["RoutingConfig"]["AdditionalVersionWeights"] == {"2": 0.25}
assert [v["Version"] for p in c.get_paginator("list_versions_by_function").paginate(FunctionName="py", MaxItems=1) for v in p["Versions"]] == ["$LATEST", "1", "2"]

assert c.list_tags(Resource=ARN)["Tags"] == {"a b": "c+d/="}
c.untag_resource(Resource=ARN, TagKeys=["a b"])
assert c.list_tags(Resource=ARN)["Tags"] == {}
config = c.put_function_event_invoke_config(FunctionName="py", MaximumRetryAttempts=0)
assert isinstance(config["LastModified"], datetime.datetime), config
age = datetime.datetime.now(datetime.timezone.utc) - config["LastModified"]
assert abs(age) < datetime.timedelta(hours=1), age
url = c.create_function_url_config(FunctionName="py", Qualifier="live", AuthType="AWS_IAM")
assert url["FunctionUrl"].startswith("http://") and url["FunctionArn"] == ARN + ":live", url
assert c.put_function_concurrency(FunctionName="py", ReservedConcurrentExecutions=0)["ReservedConcurrentExecutions"] == 0
assert "ReservedConcurrentExecutions" in c.get_function_concurrency(FunctionName="py")
assert c.get_account_settings()["AccountLimit"]["ConcurrentExecutions"] == 1000
assert c.get_function_code_signing_config(FunctionName="py")["ResponseMetadata"]["HTTPStatusCode"] == 200

refused("ResourceConflictException", "Function already exist: py", c.create_function, FunctionName="py", Role=ROLE, PackageType="Image", Code={"ImageUri": "r/f:1"})
refused("ResourceNotFoundException", "Function not found: " + ARN + "2", c.get_function, FunctionName="py2")
refused("PreconditionFailedException", "Call the GetFunction/GetAlias API", c.publish_version, FunctionName="py", RevisionId="x")
refused("ResourceNotFoundException", "The resource you requested does not exist.", c.get_policy, FunctionName="py")
refused("ProvisionedConcurrencyConfigNotFoundException", "No Provisioned", c.get_provisioned_concurrency_config, FunctionName="py", Qualifier="1")

package = io.BytesIO()
with zipfile.ZipFile(package, "w") as z:
    z.writestr("handler.py", "def handler(event, context): return event")
made = c.create_function(FunctionName="zip", Role=ROLE, Runtime="python3.13", Handler="handler.handler", Code={"ZipFile": package.getvalue()})
assert made["CodeSize"] == len(package.getvalue()) and made["PackageType"] == "Zip", made
assert [f["FunctionName"] for f in c.list_functions()["Functions"]] == ["py", "zip"]
for name in ["py", "zip"]:
    c.delete_function(FunctionName=name)
assert c.list_functions()["Functions"] == []
print("all is well")
