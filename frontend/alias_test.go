package frontend

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

func weights(version string, weight float64) *types.AliasRoutingConfiguration {
	return &types.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{version: weight}}
}

// twoVersions gives a function f with versions 1 and 2.
func twoVersions(t *testing.T) (*region, *lambda.Client) {
	t.Helper()
	r, c := deployed(t, "f")
	r.publish(c, "f", "")
	r.reconfigure(c, "f", "second")
	r.publish(c, "f", "")
	return r, c
}

func TestAliases(t *testing.T) {
	_, c := twoVersions(t)
	f, live := aws.String("f"), aws.String("live")
	made := must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{
		FunctionName: f, Name: live, FunctionVersion: aws.String("1"), Description: aws.String("custom"), RoutingConfig: weights("2", 0.2)}))
	if *made.AliasArn != "arn:aws:lambda:us-east-1:000000000000:function:f:live" || *made.FunctionVersion != "1" ||
		*made.Description != "custom" || made.RoutingConfig.AdditionalVersionWeights["2"] != 0.2 {
		t.Errorf("made: %+v", made)
	}
	got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f, Qualifier: live}))
	if *got.Configuration.FunctionArn != *made.AliasArn || *got.Configuration.Version != "1" {
		t.Errorf("by alias: %+v", got.Configuration)
	}
	updated := must(c.UpdateAlias(t.Context(), &lambda.UpdateAliasInput{FunctionName: f, Name: live, Description: aws.String("other")}))
	if updated.RoutingConfig == nil || *updated.Description != "other" {
		t.Errorf("an update that says nothing of weights: %+v", updated)
	}
	updated = must(c.UpdateAlias(t.Context(), &lambda.UpdateAliasInput{FunctionName: f, Name: live, RevisionId: updated.RevisionId, FunctionVersion: aws.String("2"),
		RoutingConfig: &types.AliasRoutingConfiguration{}})) // as Terraform takes weights away
	if updated.RoutingConfig != nil || *updated.FunctionVersion != "2" || *updated.Description != "other" || *updated.RevisionId == *made.RevisionId {
		t.Errorf("updated: %+v", updated)
	}
	_, err := c.UpdateAlias(t.Context(), &lambda.UpdateAliasInput{FunctionName: f, Name: live, RevisionId: made.RevisionId})
	wantError(t, err, "PreconditionFailedException", "GetFunction/GetAlias API")
	_, err = c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: f, Qualifier: aws.String("2")})
	wantError(t, err, "ResourceConflictException", "the following aliases reference it: [live]")

	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: f, Name: aws.String("next"), FunctionVersion: aws.String("$LATEST")}))
	if l := must(c.ListAliases(t.Context(), &lambda.ListAliasesInput{FunctionName: f})); len(l.Aliases) != 2 || *l.Aliases[0].Name != "live" {
		t.Errorf("listed: %+v", l.Aliases)
	}
	if l := must(c.ListAliases(t.Context(), &lambda.ListAliasesInput{FunctionName: f, FunctionVersion: aws.String("2")})); len(l.Aliases) != 1 {
		t.Errorf("of version 2: %+v", l.Aliases)
	}
	must(c.DeleteAlias(t.Context(), &lambda.DeleteAliasInput{FunctionName: f, Name: live}))
	must(c.DeleteAlias(t.Context(), &lambda.DeleteAliasInput{FunctionName: f, Name: live}))
	_, err = c.GetAlias(t.Context(), &lambda.GetAliasInput{FunctionName: f, Name: live})
	wantError(t, err, "ResourceNotFoundException", "Cannot find alias arn: arn:aws:lambda:us-east-1:000000000000:function:f:live")
	_, err = c.UpdateAlias(t.Context(), &lambda.UpdateAliasInput{FunctionName: f, Name: live})
	wantError(t, err, "ResourceNotFoundException", "Alias not found: arn:aws:lambda:us-east-1:000000000000:function:f:live")
	_, err = c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f, Qualifier: live})
	wantError(t, err, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:live")
}

func TestAliasRefusals(t *testing.T) {
	_, c := twoVersions(t)
	const parameter, invalid, missing = "InvalidParameterValueException", "ValidationException", "ResourceNotFoundException"
	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: aws.String("f"), Name: aws.String("custom"), FunctionVersion: aws.String("1")}))
	for _, x := range []struct {
		kind, message     string
		f, alias, version string
		routing           *types.AliasRoutingConfiguration
	}{
		{parameter, "Number of items in AdditionalVersionWeights cannot be greater than 1", "f", "a", "1",
			&types.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{"1": 0.1, "2": 0.2}}},
		{invalid, "at 'routingConfig.additionalVersionWeights' failed to satisfy constraint", "f", "a", "1", weights("2", 2)},
		{invalid, "at 'routingConfig.additionalVersionWeights' failed to satisfy constraint", "f", "a", "1", weights("2", -1)},
		{invalid, "Map keys must satisfy constraint", "f", "a", "1", weights("$LATEST", 0.5)},
		{parameter, "Invalid function version 1. Function version 1 is already included in routing configuration.", "f", "a", "1", weights("1", 0.5)},
		{missing, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:10", "f", "a", "10", nil},
		{missing, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:10", "f", "a", "1", weights("10", 0.5)},
		{parameter, "$LATEST is not supported for an alias pointing to more than 1 version", "f", "a", "$LATEST", weights("1", 0.5)},
		{missing, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g:1", "g", "a", "1", nil},
		{"ResourceConflictException", "Alias already exists: arn:aws:lambda:us-east-1:000000000000:function:f:custom", "f", "custom", "1", nil},
		{invalid, "at 'name' failed to satisfy constraint", "f", "12", "1", nil},
		{invalid, "at 'name' failed to satisfy constraint", "f", "a.b", "1", nil},
	} {
		_, err := c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: &x.f, Name: &x.alias, FunctionVersion: &x.version, RoutingConfig: x.routing})
		wantError(t, err, x.kind, x.message)
	}
}
