package frontend

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
)

func TestConcurrency(t *testing.T) {
	_, c := deployed(t, "f", "g")
	f := aws.String("f")
	put := func(name string, n int32) error {
		_, err := c.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: &name, ReservedConcurrentExecutions: &n})
		return err
	}
	get := func() *int32 {
		return must(c.GetFunctionConcurrency(t.Context(), &lambda.GetFunctionConcurrencyInput{FunctionName: f})).ReservedConcurrentExecutions
	}
	if get() != nil {
		t.Error("a new function has reserved something")
	}
	for _, n := range []int32{0, 900, 1} {
		if err := put("f", n); err != nil || *get() != n {
			t.Errorf("put %d: %v, %v", n, err, get())
		}
	}
	const tooMany = "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its minimum value of [100]."
	wantError(t, put("g", 900), "InvalidParameterValueException", tooMany)
	wantError(t, put("f", 901), "InvalidParameterValueException", tooMany)
	if a := must(c.GetAccountSettings(t.Context(), &lambda.GetAccountSettingsInput{})); a.AccountLimit.ConcurrentExecutions != 1000 ||
		*a.AccountLimit.UnreservedConcurrentExecutions != 999 || a.AccountLimit.CodeSizeUnzipped != 262144000 || a.AccountLimit.CodeSizeZipped != 52428800 ||
		a.AccountLimit.TotalCodeSize != 80530636800 || a.AccountUsage.FunctionCount != 2 {
		t.Errorf("account: %+v %+v", a.AccountLimit, a.AccountUsage)
	}
	if got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f})); *got.Concurrency.ReservedConcurrentExecutions != 1 {
		t.Errorf("GetFunction: %+v", got.Concurrency)
	}
	must(c.DeleteFunctionConcurrency(t.Context(), &lambda.DeleteFunctionConcurrencyInput{FunctionName: f}))
	if get() != nil {
		t.Error("deleted, and still there")
	}
	wantError(t, put("no", 1), "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:no:$LATEST")
	wantError(t, put("f:1", 1), "InvalidParameterValueException", "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. "+
		"Please specify either a function name or an unqualified function ARN.")
}

func TestProvisioned(t *testing.T) {
	r, c := deployed(t, "f")
	r.publish(c, "f", "")
	for _, x := range []struct{ op, f, qualifier, kind, message string }{
		{"get", "f", "1", "ProvisionedConcurrencyConfigNotFoundException", "No Provisioned Concurrency Config found for this function"},
		{"get", "f", "$LATEST", "InvalidParameterValueException", "The function resource provided must be an alias or a published version."},
		{"get", "f", "10", "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:10"},
		{"get", "g", "no", "ResourceNotFoundException", "Cannot find alias arn: arn:aws:lambda:us-east-1:000000000000:function:g:no"},
		{"put", "f", "$LATEST", "InvalidParameterValueException", "Provisioned Concurrency Configs cannot be applied to unpublished function versions."},
		{"put", "f", "1", "InvalidParameterValueException", "Provisioned concurrency is not supported here yet."},
		{"put", "g", "1", "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g:1"},
		{"delete", "f", "no", "ResourceNotFoundException", "Cannot find alias arn: arn:aws:lambda:us-east-1:000000000000:function:f:no"},
	} {
		var err error
		switch x.op {
		case "get":
			_, err = c.GetProvisionedConcurrencyConfig(t.Context(), &lambda.GetProvisionedConcurrencyConfigInput{FunctionName: &x.f, Qualifier: &x.qualifier})
		case "put":
			_, err = c.PutProvisionedConcurrencyConfig(t.Context(), &lambda.PutProvisionedConcurrencyConfigInput{
				FunctionName: &x.f, Qualifier: &x.qualifier, ProvisionedConcurrentExecutions: aws.Int32(1)})
		case "delete":
			_, err = c.DeleteProvisionedConcurrencyConfig(t.Context(), &lambda.DeleteProvisionedConcurrencyConfigInput{FunctionName: &x.f, Qualifier: &x.qualifier})
		}
		wantError(t, err, x.kind, x.message)
	}
	if l := must(c.ListProvisionedConcurrencyConfigs(t.Context(), &lambda.ListProvisionedConcurrencyConfigsInput{FunctionName: aws.String("f")})); len(l.ProvisionedConcurrencyConfigs) != 0 {
		t.Errorf("listed: %+v", l)
	}
}

func TestEventConfig(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	status, _, body := r.raw("PUT", "/2019-09-25/functions/f/event-invoke-config", `{"MaximumRetryAttempts":0}`)
	if status != 200 || strings.Contains(body, `"LastModified":"`) {
		t.Errorf("status %d: %s", status, body)
	}
	sameJSON(t, body, `{"DestinationConfig":{"OnFailure":{},"OnSuccess":{}},"FunctionArn":"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST","LastModified":"*","MaximumRetryAttempts":0}`)
	put := must(c.PutFunctionEventInvokeConfig(t.Context(), &lambda.PutFunctionEventInvokeConfigInput{FunctionName: f, MaximumEventAgeInSeconds: aws.Int32(60)}))
	if put.MaximumRetryAttempts != nil || *put.MaximumEventAgeInSeconds != 60 {
		t.Errorf("a put has kept what was there: %+v", put)
	}
	updated := must(c.UpdateFunctionEventInvokeConfig(t.Context(), &lambda.UpdateFunctionEventInvokeConfigInput{FunctionName: f, MaximumRetryAttempts: aws.Int32(1)}))
	if *updated.MaximumRetryAttempts != 1 || *updated.MaximumEventAgeInSeconds != 60 {
		t.Errorf("updated: %+v", updated)
	}
	r.publish(c, "f", "")
	_, err := c.GetFunctionEventInvokeConfig(t.Context(), &lambda.GetFunctionEventInvokeConfigInput{FunctionName: f, Qualifier: aws.String("1")})
	wantError(t, err, "ResourceNotFoundException", "The function arn:aws:lambda:us-east-1:000000000000:function:f:1 doesn't have an EventInvokeConfig")
	must(c.PutFunctionEventInvokeConfig(t.Context(), &lambda.PutFunctionEventInvokeConfigInput{FunctionName: f, Qualifier: aws.String("1"), MaximumEventAgeInSeconds: aws.Int32(120)}))
	if l := must(c.ListFunctionEventInvokeConfigs(t.Context(), &lambda.ListFunctionEventInvokeConfigsInput{FunctionName: f})); len(l.FunctionEventInvokeConfigs) != 2 {
		t.Errorf("listed: %+v", l)
	}
	must(c.DeleteFunctionEventInvokeConfig(t.Context(), &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: f}))
	_, err = c.DeleteFunctionEventInvokeConfig(t.Context(), &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: f})
	wantError(t, err, "ResourceNotFoundException", "f:$LATEST doesn't have an EventInvokeConfig")
	_, err = c.UpdateFunctionEventInvokeConfig(t.Context(), &lambda.UpdateFunctionEventInvokeConfigInput{FunctionName: f, MaximumRetryAttempts: aws.Int32(1)})
	wantError(t, err, "ResourceNotFoundException", "f:$LATEST doesn't have an EventInvokeConfig")
	for _, x := range []struct {
		kind, message string
		in            lambda.PutFunctionEventInvokeConfigInput
	}{
		{"InvalidParameterValueException", "You must specify at least one of error handling or destination setting.", lambda.PutFunctionEventInvokeConfigInput{}},
		{"ResourceNotFoundException", "The function doesn't exist.", lambda.PutFunctionEventInvokeConfigInput{FunctionName: aws.String("g"), MaximumRetryAttempts: aws.Int32(1)}},
		{"ResourceNotFoundException", "The function doesn't exist.", lambda.PutFunctionEventInvokeConfigInput{Qualifier: aws.String("no"), MaximumRetryAttempts: aws.Int32(1)}},
		{"ValidationException", "at 'maximumRetryAttempts'", lambda.PutFunctionEventInvokeConfigInput{MaximumRetryAttempts: aws.Int32(3)}},
		{"ValidationException", "at 'maximumEventAgeInSeconds'", lambda.PutFunctionEventInvokeConfigInput{MaximumEventAgeInSeconds: aws.Int32(59)}},
		{"InvalidParameterValueException", "Destinations are not supported here yet.", lambda.PutFunctionEventInvokeConfigInput{
			DestinationConfig: &types.DestinationConfig{OnFailure: &types.OnFailure{Destination: aws.String("arn:aws:sqs:us-east-1:000000000000:q")}}}},
	} {
		if x.in.FunctionName == nil {
			x.in.FunctionName = f
		}
		_, err := c.PutFunctionEventInvokeConfig(t.Context(), &x.in)
		wantError(t, err, x.kind, x.message)
	}
}

func TestTags(t *testing.T) {
	_, c := deployed(t, "f")
	arn := aws.String("arn:aws:lambda:us-east-1:000000000000:function:f")
	tags := func() map[string]string {
		return must(c.ListTags(t.Context(), &lambda.ListTagsInput{Resource: arn})).Tags
	}
	if len(tags()) != 0 {
		t.Errorf("tags of a new function: %v", tags())
	}
	must(c.TagResource(t.Context(), &lambda.TagResourceInput{Resource: arn, Tags: map[string]string{"a": "1", "c+d/=": "x y"}}))
	must(c.TagResource(t.Context(), &lambda.TagResourceInput{Resource: arn, Tags: map[string]string{"a": "2"}}))
	if got := fmt.Sprint(tags()); got != "map[a:2 c+d/=:x y]" {
		t.Errorf("tags: %s", got)
	}
	if got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: arn})); len(got.Tags) != 2 {
		t.Errorf("GetFunction: %v", got.Tags)
	}
	must(c.UntagResource(t.Context(), &lambda.UntagResourceInput{Resource: arn, TagKeys: []string{"c+d/=", "none"}}))
	if got := fmt.Sprint(tags()); got != "map[a:2]" {
		t.Errorf("tags: %s", got)
	}
	for _, x := range []struct {
		kind, message, arn string
		tags               map[string]string
	}{
		{"InvalidParameterValueException", "Number of tags exceeds resource tag limit.", *arn, manyTags(50)},
		{"InvalidParameterValueException", "Tags on function aliases and versions are not supported. Please specify a function ARN.", *arn + ":1", manyTags(1)},
		{"InvalidParameterValueException", "An error occurred and the request cannot be processed.", *arn, map[string]string{}},
		{"InvalidParameterValueException", "must not start with aws:", *arn, map[string]string{"aws:x": "y"}},
		{"ResourceNotFoundException", "Function not found: " + *arn + "g", *arn + "g", manyTags(1)},
		{"ValidationException", "at 'resource' failed to satisfy constraint", "arn:aws:something", manyTags(1)},
		{"ValidationException", "at 'resource' failed to satisfy constraint", "arn:aws:lambda:us-east-1:000000000000:event-source-mapping:8f507cfc-0000-4697-b07a-ac58fc914c95", manyTags(1)},
	} {
		_, err := c.TagResource(t.Context(), &lambda.TagResourceInput{Resource: &x.arn, Tags: x.tags})
		wantError(t, err, x.kind, x.message)
	}
}

func TestURLs(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	create := func(qualifier *string) (*lambda.CreateFunctionUrlConfigOutput, error) {
		return c.CreateFunctionUrlConfig(t.Context(), &lambda.CreateFunctionUrlConfigInput{FunctionName: f, AuthType: types.FunctionUrlAuthTypeNone, Qualifier: qualifier})
	}
	made := must(create(nil))
	if made.InvokeMode != "" || made.AuthType != "NONE" || *made.FunctionArn != "arn:aws:lambda:us-east-1:000000000000:function:f" ||
		!strings.HasSuffix(*made.FunctionUrl, ".lambda-url.us-east-1.localhost:9000/") || *made.CreationTime == "" {
		t.Errorf("made: %+v", made)
	}
	_, err := create(nil)
	wantError(t, err, "ResourceConflictException", "Failed to create function url config for [functionArn = arn:aws:lambda:us-east-1:000000000000:function:f]. Error message:  FunctionUrlConfig exists for this Lambda function")
	updated := must(c.UpdateFunctionUrlConfig(t.Context(), &lambda.UpdateFunctionUrlConfigInput{FunctionName: f, AuthType: types.FunctionUrlAuthTypeAwsIam,
		InvokeMode: types.InvokeModeResponseStream, Cors: &types.Cors{AllowOrigins: []string{"*"}, MaxAge: aws.Int32(5), AllowCredentials: aws.Bool(true)}}))
	got := must(c.GetFunctionUrlConfig(t.Context(), &lambda.GetFunctionUrlConfigInput{FunctionName: f}))
	if got.AuthType != "AWS_IAM" || got.InvokeMode != "RESPONSE_STREAM" || *got.FunctionUrl != *made.FunctionUrl || got.Cors.AllowOrigins[0] != "*" ||
		*got.Cors.MaxAge != 5 || !*got.Cors.AllowCredentials || *got.LastModifiedTime != *updated.LastModifiedTime {
		t.Errorf("got: %+v", got)
	}
	r.publish(c, "f", "")
	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: f, Name: aws.String("live"), FunctionVersion: aws.String("1")}))
	must(create(aws.String("live")))
	l := must(c.ListFunctionUrlConfigs(t.Context(), &lambda.ListFunctionUrlConfigsInput{FunctionName: f, MaxItems: aws.Int32(1)}))
	next := must(c.ListFunctionUrlConfigs(t.Context(), &lambda.ListFunctionUrlConfigsInput{FunctionName: f, Marker: l.NextMarker}))
	if len(l.FunctionUrlConfigs) != 1 || *l.FunctionUrlConfigs[0].FunctionUrl != *made.FunctionUrl || len(next.FunctionUrlConfigs) != 1 ||
		*next.FunctionUrlConfigs[0].FunctionArn != "arn:aws:lambda:us-east-1:000000000000:function:f:live" || next.NextMarker != nil {
		t.Errorf("listed: %+v, then %+v", l, next)
	}
	must(c.DeleteFunctionUrlConfig(t.Context(), &lambda.DeleteFunctionUrlConfigInput{FunctionName: f}))
	_, err = c.GetFunctionUrlConfig(t.Context(), &lambda.GetFunctionUrlConfigInput{FunctionName: f})
	wantError(t, err, "ResourceNotFoundException", "The resource you requested does not exist.")
	_, err = c.DeleteFunctionUrlConfig(t.Context(), &lambda.DeleteFunctionUrlConfigInput{FunctionName: f})
	wantError(t, err, "ResourceNotFoundException", "The resource you requested does not exist.")
	_, err = c.UpdateFunctionUrlConfig(t.Context(), &lambda.UpdateFunctionUrlConfigInput{FunctionName: f, Qualifier: aws.String("no")})
	wantError(t, err, "ResourceNotFoundException", "Function does not exist")
	for _, q := range []string{"1", "$LATEST"} {
		_, err = create(&q)
		wantError(t, err, "ValidationException", "Value '"+q+"' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: ")
	}
	_, err = c.ListFunctionUrlConfigs(t.Context(), &lambda.ListFunctionUrlConfigsInput{FunctionName: aws.String("g")})
	wantError(t, err, "ResourceNotFoundException", "Function does not exist")
	must(c.DeleteAlias(t.Context(), &lambda.DeleteAliasInput{FunctionName: f, Name: aws.String("live")}))
	if l := must(c.ListFunctionUrlConfigs(t.Context(), &lambda.ListFunctionUrlConfigsInput{FunctionName: f})); len(l.FunctionUrlConfigs) != 0 {
		t.Errorf("of a deleted alias: %+v", l)
	}
}

// Pages hold each item once, whatever their size.
func TestPages(t *testing.T) {
	r, c := deployed(t, "c", "a", "b")
	r.publish(c, "b", "")
	for _, size := range []int32{1, 2, 3, 4, 100} {
		var names, all []string
		for p := lambda.NewListFunctionsPaginator(c, &lambda.ListFunctionsInput{MaxItems: &size}); p.HasMorePages(); {
			for _, f := range must(p.NextPage(t.Context())).Functions {
				names = append(names, *f.FunctionName)
			}
		}
		for p := lambda.NewListFunctionsPaginator(c, &lambda.ListFunctionsInput{MaxItems: &size, FunctionVersion: types.FunctionVersionAll}); p.HasMorePages(); {
			for _, f := range must(p.NextPage(t.Context())).Functions {
				all = append(all, *f.FunctionName+":"+*f.Version)
			}
		}
		if !slices.Equal(names, []string{"a", "b", "c"}) || !slices.Equal(all, []string{"a:$LATEST", "b:$LATEST", "b:1", "c:$LATEST"}) {
			t.Errorf("pages of %d: %v, %v", size, names, all)
		}
	}
	_, err := c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{Marker: aws.String("?")})
	wantError(t, err, "InvalidParameterValueException", "Invalid marker")
	_, err = c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{FunctionVersion: "invalid"})
	wantError(t, err, "ValidationException", "Value 'invalid' at 'functionVersion' failed to satisfy constraint: Member must satisfy enum value set: [ALL]")
}

// A function whose record is damaged is listed as such, beside all others, and can
// be deleted.
func TestDamagedIsListed(t *testing.T) {
	r, c := deployed(t, "a", "b", "c")
	r.publish(c, "b", "")
	if _, err := r.store.Update(t.Context(), functions.ID{Account: testAccount, Name: "b"}, func(f *functions.Function) error {
		f.Latest.Number = "" // no function's record
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, q := range []lambda.ListFunctionsInput{{}, {FunctionVersion: types.FunctionVersionAll}} {
		got := must(c.ListFunctions(t.Context(), &q)).Functions
		if len(got) != 3 || *got[1].FunctionName != "b" || got[1].State != types.StateFailed || !strings.Contains(*got[1].StateReason, "b is damaged") || got[2].State != "" {
			t.Errorf("listed %+v", got)
		}
	}
	if s := must(c.GetAccountSettings(t.Context(), &lambda.GetAccountSettingsInput{})); s.AccountUsage.FunctionCount != 3 {
		t.Errorf("%d functions are counted", s.AccountUsage.FunctionCount)
	}
	must(c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("b")}))
	if got := must(c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})).Functions; len(got) != 2 {
		t.Errorf("left are %+v", got)
	}
}

// A version whose record is damaged is listed as such, beside all others, and can
// be deleted.
func TestDamagedVersionIsListed(t *testing.T) {
	r, c := deployed(t, "f")
	r.publish(c, "f", "one")
	must(c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), MemorySize: aws.Int32(256)}))
	r.build("f", ready)
	r.publish(c, "f", "two")
	f := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	record := must(r.records.Get(t.Context(), "v/"+f.ID.String()+"/"+f.Versions["1"]))
	must(r.records.Update(t.Context(), record.Key, record.Value[:20], record.Revision))
	byFunction := must(c.ListVersionsByFunction(t.Context(), &lambda.ListVersionsByFunctionInput{FunctionName: aws.String("f")})).Versions
	all := must(c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{FunctionVersion: types.FunctionVersionAll})).Functions
	for _, got := range [][]types.FunctionConfiguration{byFunction, all} {
		if len(got) != 3 || *got[1].Version != "1" || got[1].State != types.StateFailed || !strings.Contains(*got[1].StateReason, f.Versions["1"]+" is damaged") ||
			!strings.HasSuffix(*got[1].FunctionArn, ":f:1") || *got[2].Version != "2" || got[2].State != "" {
			t.Errorf("listed %+v", got)
		}
	}
	must(c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f"), Qualifier: aws.String("1")}))
	if got := must(c.ListVersionsByFunction(t.Context(), &lambda.ListVersionsByFunctionInput{FunctionName: aws.String("f")})).Versions; len(got) != 2 {
		t.Errorf("left are %+v", got)
	}
}

// What has no use here is answered so that tools go on, or refused by name.
func TestManagement(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	if status, _, body := r.raw("GET", "/2020-06-30/functions/f/code-signing-config", ""); status != 200 || body != "{}" {
		t.Errorf("code signing: %d %s", status, body)
	}
	must(c.DeleteFunctionCodeSigningConfig(t.Context(), &lambda.DeleteFunctionCodeSigningConfigInput{FunctionName: f}))
	m := must(c.GetRuntimeManagementConfig(t.Context(), &lambda.GetRuntimeManagementConfigInput{FunctionName: f}))
	if m.UpdateRuntimeOn != types.UpdateRuntimeOnAuto || !strings.HasSuffix(*m.FunctionArn, ":f:$LATEST") {
		t.Errorf("runtime management: %+v", m)
	}
	must(c.PutRuntimeManagementConfig(t.Context(), &lambda.PutRuntimeManagementConfigInput{FunctionName: f, UpdateRuntimeOn: types.UpdateRuntimeOnFunctionUpdate}))
	if m := must(c.GetRuntimeManagementConfig(t.Context(), &lambda.GetRuntimeManagementConfigInput{FunctionName: f})); m.UpdateRuntimeOn != types.UpdateRuntimeOnFunctionUpdate {
		t.Errorf("runtime management: %+v", m)
	}
	if l := must(c.GetFunctionRecursionConfig(t.Context(), &lambda.GetFunctionRecursionConfigInput{FunctionName: f})); l.RecursiveLoop != types.RecursiveLoopTerminate {
		t.Errorf("recursion: %+v", l)
	}
	must(c.PutFunctionRecursionConfig(t.Context(), &lambda.PutFunctionRecursionConfigInput{FunctionName: f, RecursiveLoop: types.RecursiveLoopAllow}))
	if l := must(c.GetFunctionRecursionConfig(t.Context(), &lambda.GetFunctionRecursionConfigInput{FunctionName: f})); l.RecursiveLoop != types.RecursiveLoopAllow {
		t.Errorf("recursion: %+v", l)
	}
	if l := must(c.ListEventSourceMappings(t.Context(), &lambda.ListEventSourceMappingsInput{})); len(l.EventSourceMappings) != 0 {
		t.Errorf("mappings: %+v", l)
	}
	if l := must(c.ListCodeSigningConfigs(t.Context(), &lambda.ListCodeSigningConfigsInput{})); len(l.CodeSigningConfigs) != 0 {
		t.Errorf("code signing: %+v", l)
	}
	const csc = "arn:aws:lambda:us-east-1:000000000000:code-signing-config:csc-01234567890123456"
	_, err := c.GetCodeSigningConfig(t.Context(), &lambda.GetCodeSigningConfigInput{CodeSigningConfigArn: aws.String(csc)})
	wantError(t, err, "ResourceNotFoundException", "The Lambda code signing configuration "+csc+" can not be found.")
	_, err = c.PutFunctionCodeSigningConfig(t.Context(), &lambda.PutFunctionCodeSigningConfigInput{FunctionName: f, CodeSigningConfigArn: aws.String(csc)})
	wantError(t, err, "CodeSigningConfigNotFoundException", "The code signing configuration cannot be found.")
	_, err = c.PutRuntimeManagementConfig(t.Context(), &lambda.PutRuntimeManagementConfigInput{FunctionName: f, UpdateRuntimeOn: types.UpdateRuntimeOnManual,
		RuntimeVersionArn: aws.String("arn:aws:lambda:us-east-1::runtime:" + strings.Repeat("a", 64))})
	wantError(t, err, "InvalidParameterValueException", "Runtime versions are not supported here.")
	_, err = c.CreateEventSourceMapping(t.Context(), &lambda.CreateEventSourceMappingInput{FunctionName: f, EventSourceArn: aws.String("arn:aws:sqs:us-east-1:000000000000:q")})
	wantError(t, err, "InvalidParameterValueException", "Event source mappings are not supported here.")
}
