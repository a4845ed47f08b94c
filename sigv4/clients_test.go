package sigv4

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

const (
	arn = "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"
	odd = "c+d/= é~!*'()&%25;"
)

// AWS's SDK for Go, with names and tags that are hard to encode.
func TestSDK(t *testing.T) {
	for _, token := range []string{"", "session/token+="} {
		o := options()
		o.Now = nil
		o.Secret = known(Key{Secret: secret, Account: account, Token: token})
		g := newGate(t, o)
		c := lambda.New(lambda.Options{
			Region: region, BaseEndpoint: &g.URL, RetryMaxAttempts: 1,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret, SessionToken: token}, nil
			}),
		})
		ctx := t.Context()
		try := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		try(c.ListFunctions(ctx, &lambda.ListFunctionsInput{Marker: aws.String(odd)}))
		try(c.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String(arn), Qualifier: aws.String("$LATEST")}))
		try(c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f:$LATEST"), Payload: []byte(`{"a":"é"}`), InvocationType: "Event"}))
		try(c.TagResource(ctx, &lambda.TagResourceInput{Resource: aws.String(arn), Tags: map[string]string{odd: odd}}))
		try(c.UntagResource(ctx, &lambda.UntagResourceInput{Resource: aws.String(arn), TagKeys: []string{odd, "~", "é", "a b", "a!", "", "z"}}))
		try(c.GetAlias(ctx, &lambda.GetAliasInput{FunctionName: aws.String("a/b c"), Name: aws.String("ä%2F+")}))
		g.passed(t, 6)
	}
}

// botocore, and the AWS CLI over it.
func TestBotocore(t *testing.T) {
	if exec.Command("python3", "-c", "import boto3").Run() != nil {
		t.Skip("NOT TESTED: boto3 is missing (Debian: python3-boto3)")
	}
	o := options()
	o.Now = nil
	g := newGate(t, o)
	const script = `
import sys, boto3
from botocore.config import Config
c = boto3.client("lambda", endpoint_url=sys.argv[1], region_name="us-east-1", config=Config(retries={"max_attempts": 0}))
arn, odd = sys.argv[2:4]
c.list_functions(Marker=odd)
c.get_function(FunctionName=arn, Qualifier="$LATEST")
c.invoke(FunctionName="f:$LATEST", Payload=b'{"a":1}', InvocationType="Event")
c.tag_resource(Resource=arn, Tags={odd: odd})
c.untag_resource(Resource=arn, TagKeys=[odd, "~", "\u00e9", "a b", "a!", "z"])
`
	run(t, g, "python3", "-c", script, g.URL, arn, odd)
	g.passed(t, 5)
}

func TestCLI(t *testing.T) {
	if exec.Command("aws", "--version").Run() != nil {
		t.Skip("NOT TESTED: the AWS CLI is missing (Debian: awscli)")
	}
	o := options()
	o.Now = nil
	g := newGate(t, o)
	run(t, g, "aws", "--endpoint-url", g.URL, "lambda", "get-function", "--function-name", arn)
	run(t, g, "aws", "--endpoint-url", g.URL, "lambda", "untag-resource", "--resource", arn, "--tag-keys", odd, "~", "a b")
	g.passed(t, 2)
}

// run starts a client that finds the key and the gate in its environment, and nothing else.
func run(t *testing.T, g *gate, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append([]string{"AWS_ENDPOINT_URL=" + g.URL, "AWS_ACCESS_KEY_ID=" + keyID, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_DEFAULT_REGION=" + region,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1", "LC_ALL=C.UTF-8", "PATH=" + os.Getenv("PATH")}, "HOME="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args[:2], " "), err, out)
	}
}
