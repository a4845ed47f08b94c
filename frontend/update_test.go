package frontend

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
)

// deployed gives a region with functions that are Active.
func deployed(t *testing.T, names ...string) (*region, *lambda.Client) {
	t.Helper()
	r := newRegion(t)
	c := r.client(testAccount)
	for _, name := range names {
		must(c.CreateFunction(t.Context(), imageInput(name)))
		r.build(name, ready)
	}
	return r, c
}

func (r *region) publish(c *lambda.Client, name, description string) *lambda.PublishVersionOutput {
	return must(c.PublishVersion(r.t.Context(), &lambda.PublishVersionInput{FunctionName: &name, Description: &description}))
}

// reconfigure changes a function's description, so that it can be published anew.
func (r *region) reconfigure(c *lambda.Client, name, description string) {
	must(c.UpdateFunctionConfiguration(r.t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: &name, Description: &description}))
	r.build(name, ready)
}

func TestVersions(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	one := r.publish(c, "f", "first")
	if *one.Version != "1" || !strings.HasSuffix(*one.FunctionArn, ":function:f:1") || *one.Description != "first" || one.State != types.StateActive || one.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Errorf("published: %+v", one)
	}
	if again := r.publish(c, "f", "other"); *again.Version != "1" || *again.RevisionId != *one.RevisionId || *again.Description != "first" {
		t.Errorf("with nothing changed, version %s was published", *again.Version)
	}
	_, err := c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: f, CodeSha256: aws.String("x")})
	wantError(t, err, "InvalidParameterValueException", "CodeSHA256 (x) is different from current CodeSHA256 in $LATEST ("+testDigest+"). Please try again with the CodeSHA256 in $LATEST.")
	_, err = c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: f, RevisionId: aws.String("x")})
	wantError(t, err, "PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id")

	r.reconfigure(c, "f", "second")
	two := r.publish(c, "f", "")
	if *two.Version != "2" || *two.Description != "second" {
		t.Errorf("published: %+v", two)
	}
	got := must(c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f:1")}))
	if *got.Description != "first" {
		t.Errorf("version 1 has changed: %+v", got)
	}
	// An update that publishes gives a version that becomes what the build becomes.
	three := must(c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String("r/f:3"), Publish: true}))
	if *three.Version != "3" || three.State != types.StatePending || three.LastUpdateStatus != "" {
		t.Errorf("updated and published: %s is %s, %s", *three.Version, three.State, three.LastUpdateStatus)
	}
	r.build("f", ready)
	if got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f, Qualifier: aws.String("3")})); got.Configuration.State != types.StateActive || *got.Code.ImageUri != "r/f:3" {
		t.Errorf("built: %+v", got)
	}
	if r.publish(c, "f", ""); *r.publish(c, "f", "").Version != "3" {
		t.Error("what an update has published was published again")
	}
	must(c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: f, Qualifier: aws.String("2")}))
	list := must(c.ListVersionsByFunction(t.Context(), &lambda.ListVersionsByFunctionInput{FunctionName: f}))
	var numbers []string
	for _, v := range list.Versions {
		numbers = append(numbers, *v.Version)
		if v.State != "" || v.LastUpdateStatus != "" || !strings.HasSuffix(*v.FunctionArn, ":"+*v.Version) {
			t.Errorf("listed: %+v", v)
		}
	}
	if strings.Join(numbers, " ") != "$LATEST 1 3" {
		t.Errorf("listed %v", numbers)
	}
	_, err = c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f, Qualifier: aws.String("2")})
	wantError(t, err, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:2")
	for q, want := range map[string]string{
		"$LATEST": "$LATEST version cannot be deleted without deleting the function.", "live": "Deletion of aliases is not currently supported."} {
		_, err = c.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: f, Qualifier: &q})
		wantError(t, err, "InvalidParameterValueException", want)
	}
	_, err = c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f:1"), Qualifier: aws.String("3")})
	wantError(t, err, "InvalidParameterValueException", "The derived qualifier from the function name does not match the specified qualifier.")
}

// RevisionIds change when AWS's do, and stale ones are refused.
func TestRevisions(t *testing.T) {
	r, c := deployed(t, "f")
	f := aws.String("f")
	latest := func() string {
		return *must(c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: f})).RevisionId
	}
	seen := map[string]bool{latest(): true}
	fresh := func(after string) {
		t.Helper()
		if now := latest(); seen[now] {
			t.Errorf("%s has left the RevisionId", after)
		} else {
			seen[now] = true
		}
	}
	_, err := c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String(testImage), RevisionId: aws.String("x")})
	wantError(t, err, "PreconditionFailedException", "GetFunction/GetAlias API")
	_, err = c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: f, RevisionId: aws.String("x")})
	wantError(t, err, "PreconditionFailedException", "GetFunction/GetAlias API")
	must(c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String(testImage), RevisionId: aws.String(latest())}))
	fresh("an update")
	r.build("f", ready)
	fresh("a build")
	r.publish(c, "f", "")
	fresh("publishing")
	stored := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	permit(t, c, "f", "s", "")
	fresh("a permission")
	if now := must(r.store.Get(t.Context(), stored.ID)); now.Latest.Revision != stored.Latest.Revision {
		t.Error("a permission has made instances old")
	}
	before := latest()
	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: f, FunctionVersion: aws.String("1"), Name: aws.String("live")}))
	if latest() != before {
		t.Error("an alias has changed the function's RevisionId")
	}
}

// What has not been built is not published, and invokes go on with what was there.
func TestFailedUpdate(t *testing.T) {
	r, c := deployed(t, "f")
	must(c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("f"), ImageUri: aws.String("r/gone")}))
	r.build("f", functions.Result{Code: "ImageDeleted", Reason: "There is no such image."})
	got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")})).Configuration
	if got.State != types.StateActive || got.LastUpdateStatus != types.LastUpdateStatusFailed || *got.LastUpdateStatusReason != "There is no such image." ||
		got.LastUpdateStatusReasonCode != types.LastUpdateStatusReasonCodeImageDeleted {
		t.Errorf("failed: %+v", got)
	}
	_, err := c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f")})
	wantError(t, err, "ResourceConflictException", "The last update of the function has failed: There is no such image.")
	stored := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	if s := specOf(stored, stored.Invoked(), testRegion); s.Image != "i1" || s.Memory != 128 || s.Version != "$LATEST" || s.Revision == stored.Latest.Revision {
		t.Errorf("serves %v of %s", s, s.Image)
	}
}

func TestUpdateRefusals(t *testing.T) {
	r, c := deployed(t, "f")
	for want, in := range map[string]*lambda.UpdateFunctionCodeInput{
		"Please provide ImageUri when updating a function with packageType Image.": {ZipFile: zipped(t, nil)},
		"Please don't provide ZipFile or S3":                                       {ZipFile: zipped(t, nil), ImageUri: aws.String("r/f")},
		"Aliases and versions do not support":                                      {FunctionName: aws.String("f:1"), ImageUri: aws.String("r/f")},
	} {
		if in.FunctionName == nil {
			in.FunctionName = aws.String("f")
		}
		_, err := c.UpdateFunctionCode(t.Context(), in)
		wantError(t, err, "InvalidParameterValueException", want)
	}
	_, err := c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Handler: aws.String("h")})
	wantError(t, err, "InvalidParameterValueException", "Please don't provide Handler")
	_, err = c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("g")})
	wantError(t, err, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g")
	got := must(c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")}))
	if got.LastUpdateStatus != types.LastUpdateStatusSuccessful || got.Handler != nil {
		t.Errorf("a refused update has left %+v", got)
	}
	must(r.store.Update(t.Context(), functions.ID{Account: testAccount, Name: "f"}, func(f *functions.Function) error {
		f.Versions = map[string]string{}
		for n := range 1000 {
			f.Versions[fmt.Sprint(n+1)] = "none"
		}
		return nil
	}))
	_, err = c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f")})
	wantError(t, err, "CodeStorageExceededException", "The function has 1000 published versions, and may not have more: delete some.")
}

func TestLogging(t *testing.T) {
	r, c := deployed(t, "f")
	update := func(l types.LoggingConfig) (*lambda.UpdateFunctionConfigurationOutput, error) {
		out, err := c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), LoggingConfig: &l})
		if err == nil {
			r.build("f", ready)
		}
		return out, err
	}
	_, err := update(types.LoggingConfig{ApplicationLogLevel: types.ApplicationLogLevelDebug})
	wantError(t, err, "InvalidParameterValueException", "Log level is not supported with Text log format")
	out := must(update(types.LoggingConfig{LogFormat: types.LogFormatJson, SystemLogLevel: types.SystemLogLevelWarn, LogGroup: aws.String("own")}))
	if l := out.LoggingConfig; l.ApplicationLogLevel != "INFO" || l.SystemLogLevel != "WARN" || *l.LogGroup != "own" {
		t.Errorf("as JSON: %+v", l)
	}
	if l := must(update(types.LoggingConfig{LogFormat: types.LogFormatText})).LoggingConfig; l.ApplicationLogLevel != "" || l.SystemLogLevel != "" || *l.LogGroup != "own" {
		t.Errorf("as text: %+v", l)
	}
}
