package frontend

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// permit lets S3 invoke a function.
func permit(t *testing.T, c *lambda.Client, f, sid, qualifier string) string {
	t.Helper()
	return *must(c.AddPermission(t.Context(), &lambda.AddPermissionInput{
		FunctionName: &f, StatementId: &sid, Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("s3.amazonaws.com"),
		SourceArn: aws.String("arn:aws:s3:::bucket"), Qualifier: some(qualifier)})).Statement
}

func TestPolicy(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	const one = `{"Sid":"s3","Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"lambda:InvokeFunction",` +
		`"Resource":"arn:aws:lambda:us-east-1:000000000000:function:f","Condition":{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::bucket"}}}`
	if got := permit(t, c, "f", "s3", ""); got != one {
		t.Errorf("statement: %s", got)
	}
	got := must(c.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: f}))
	if *got.Policy != `{"Version":"2012-10-17","Id":"default","Statement":[`+one+`]}` {
		t.Errorf("policy: %s", *got.Policy)
	}
	if v := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f})); *v.Configuration.RevisionId != *got.RevisionId {
		t.Error("the policy's RevisionId is not the function's")
	}
	r.publish(c, "f", "")
	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: f, Name: aws.String("live"), FunctionVersion: aws.String("1")}))
	for _, q := range []string{"1", "live"} {
		_, err := c.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: f, Qualifier: &q})
		wantError(t, err, "ResourceNotFoundException", "The resource you requested does not exist.")
		if s := permit(t, c, "f", "s3", q); !strings.Contains(s, `:function:f:`+q+`"`) {
			t.Errorf("statement for %s: %s", q, s)
		}
		p := must(c.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: f, Qualifier: &q}))
		if v := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f, Qualifier: aws.String("1")})); q == "1" && *v.Configuration.RevisionId != *p.RevisionId {
			t.Error("the policy's RevisionId is not the version's")
		}
		_, err = c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: f, StatementId: aws.String("s3"), Qualifier: &q, RevisionId: aws.String("x")})
		wantError(t, err, "PreconditionFailedException", "GetFunction/GetAlias API")
		must(c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: f, StatementId: aws.String("s3"), Qualifier: &q, RevisionId: p.RevisionId}))
	}
	_, err := c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: f, StatementId: aws.String("non-existent")})
	wantError(t, err, "ResourceNotFoundException", "Statement non-existent is not found in resource policy.")
	must(c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: f, StatementId: aws.String("s3")}))
	_, err = c.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: f})
	wantError(t, err, "ResourceNotFoundException", "The resource you requested does not exist.")
	_, err = c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: f, StatementId: aws.String("s3")})
	wantError(t, err, "ResourceNotFoundException", "No policy is associated with the given resource.")
}

// Statements are written as AWS has written them.
func TestStatements(t *testing.T) {
	_, c := deployed(t, "f")
	for i, x := range []struct {
		in   lambda.AddPermissionInput
		want string
	}{
		{lambda.AddPermissionInput{Principal: aws.String("*"), SourceAccount: aws.String("111111111111")},
			`"Principal":"*","Condition":{"StringEquals":{"AWS:SourceAccount":"111111111111"}}`},
		{lambda.AddPermissionInput{Principal: aws.String("111111111111")}, `"Principal":{"AWS":"arn:aws:iam::111111111111:root"}`},
		{lambda.AddPermissionInput{Principal: aws.String("arn:aws:iam::111111111111:user/u")}, `"Principal":{"AWS":"arn:aws:iam::111111111111:user/u"}`},
		{lambda.AddPermissionInput{Principal: aws.String("*"), EventSourceToken: aws.String("amzn1.ask.skill.x")},
			`"Principal":"*","Condition":{"StringEquals":{"lambda:EventSourceToken":"amzn1.ask.skill.x"}}`},
		{lambda.AddPermissionInput{Principal: aws.String("*"), FunctionUrlAuthType: types.FunctionUrlAuthTypeNone, PrincipalOrgID: aws.String("o-1234567890"), SourceArn: aws.String("arn:aws:s3:::b")},
			`"Principal":"*","Condition":{"StringEquals":{"lambda:FunctionUrlAuthType":"NONE","aws:PrincipalOrgID":"o-1234567890"},"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::b"}}`},
		{lambda.AddPermissionInput{Principal: aws.String("*"), InvokedViaFunctionUrl: aws.Bool(true)},
			`"Principal":"*","Condition":{"Bool":{"lambda:InvokedViaFunctionUrl":"true"}}`},
	} {
		sid := fmt.Sprint("s", i)
		x.in.FunctionName, x.in.StatementId, x.in.Action = aws.String("f"), &sid, aws.String("lambda:InvokeFunctionUrl")
		got := must(c.AddPermission(t.Context(), &x.in))
		sameJSON(t, *got.Statement, `{"Sid":"`+sid+`","Effect":"Allow","Action":"lambda:InvokeFunctionUrl",
			"Resource":"arn:aws:lambda:us-east-1:000000000000:function:f",`+x.want+`}`)
	}
}

func TestPolicyRefusals(t *testing.T) {
	_, c := deployed(t, "f")
	permit(t, c, "f", "s3", "")
	for _, x := range []struct{ kind, message, f, sid, qualifier, principal, revision string }{
		{"ValidationException", "Value 'example.com' at 'statementId' failed to satisfy constraint", "f", "example.com", "", "*", ""},
		{"InvalidParameterValueException", "The derived qualifier from the function name does not match", "f:1", "s", "2", "*", ""},
		{"InvalidParameterValueException", "We currently do not support adding policies for $LATEST.", "f", "s", "$LATEST", "*", ""},
		{"InvalidParameterValueException", "The provided principal was invalid. Please check the principal and try again.", "f", "s", "", "nobody", ""},
		{"ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g", "g", "s", "", "*", ""},
		{"ResourceNotFoundException", "Cannot find alias arn: arn:aws:lambda:us-east-1:000000000000:function:f:no", "f", "s", "no", "*", ""},
		{"ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:42", "f", "s", "42", "*", ""},
		{"ResourceConflictException", "The statement id (s3) provided already exists. Please provide a new statement id, or remove the existing statement.", "f", "s3", "", "*", ""},
		{"PreconditionFailedException", "Call the GetPolicy API to retrieve the latest Revision Id", "f", "s", "", "*", "x"},
	} {
		_, err := c.AddPermission(t.Context(), &lambda.AddPermissionInput{FunctionName: &x.f, StatementId: &x.sid, Qualifier: some(x.qualifier),
			Principal: &x.principal, RevisionId: some(x.revision), Action: aws.String("lambda:InvokeFunction")})
		wantError(t, err, x.kind, x.message)
	}
	_, err := c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: aws.String("g"), StatementId: aws.String("s")})
	wantError(t, err, "ResourceNotFoundException", "No policy found for: arn:aws:lambda:us-east-1:000000000000:function:g")
	_, err = c.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: aws.String("f"), StatementId: aws.String("s"), Qualifier: aws.String("no")})
	wantError(t, err, "ResourceNotFoundException", "Cannot find alias arn: ")
	for i := 0; ; i++ {
		_, err := c.AddPermission(t.Context(), &lambda.AddPermissionInput{FunctionName: aws.String("f"), StatementId: aws.String(fmt.Sprint(strings.Repeat("s", 90), i)),
			Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("*"), SourceArn: aws.String("arn:aws:s3:::" + strings.Repeat("b", 900))})
		if err == nil && i < 50 {
			continue
		}
		wantError(t, err, "PolicyLengthExceededException", "is bigger than the limit (20480).")
		break
	}
}
