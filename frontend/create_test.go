package frontend

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
)

func imageInput(name string) *lambda.CreateFunctionInput {
	return &lambda.CreateFunctionInput{
		FunctionName: &name, Role: aws.String(testRole), PackageType: types.PackageTypeImage, Code: &types.FunctionCode{ImageUri: aws.String(testImage)}}
}

// The answers to a creation and a look-up are what AWS's are, member by member.
func TestCreateImageShape(t *testing.T) {
	r := newRegion(t)
	status, header, got := r.raw("POST", "/2015-03-31/functions", `{"FunctionName":"f","Role":"`+testRole+`","PackageType":"Image",
		"Code":{"ImageUri":"`+testImage+`"},"ImageConfig":{"Command":["-c","echo test"],"EntryPoint":["sh"],"WorkingDirectory":"/app1"},
		"Environment":{"Variables":{"CUSTOM_ENV":"test"}}}`)
	if status != 201 || header.Get("Content-Type") != "application/json" || header.Get("X-Amzn-Requestid") == "" {
		t.Errorf("status %d, header %v", status, header)
	}
	shape := `"Architectures":["x86_64"],"CodeSize":%s,"Description":"","Environment":{"Variables":{"CUSTOM_ENV":"test"}},
		"EphemeralStorage":{"Size":512},"FunctionArn":"arn:aws:lambda:us-east-1:000000000000:function:f","FunctionName":"f",
		"ImageConfigResponse":{"ImageConfig":{"Command":["-c","echo test"],"EntryPoint":["sh"],"WorkingDirectory":"/app1"}},
		"LastModified":"*","LoggingConfig":{"LogFormat":"Text","LogGroup":"/aws/lambda/f"},"MemorySize":128,"PackageType":"Image",
		"RevisionId":"*","Role":"` + testRole + `","SnapStart":{"ApplyOn":"None","OptimizationStatus":"Off"},"Timeout":3,
		"TracingConfig":{"Mode":"PassThrough"},"Version":"$LATEST"`
	sameJSON(t, got, `{`+fmt.Sprintf(shape, "0")+`,"State":"Pending","StateReason":"The function is being created.","StateReasonCode":"Creating"}`)
	var created struct{ LastModified, RevisionId string }
	if err := json.Unmarshal([]byte(got), &created); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000+0000", created.LastModified); err != nil {
		t.Error(err)
	}
	r.build("f", ready)
	status, _, got = r.raw("GET", "/2015-03-31/functions/f/", "")
	sameJSON(t, got, `{"Code":{"ImageUri":"`+testImage+`","RepositoryType":"ECR","ResolvedImageUri":"`+ready.ResolvedURI+`"},
		"Configuration":{`+fmt.Sprintf(shape, "7")+`,"CodeSha256":"`+testDigest+`","State":"Active","LastUpdateStatus":"Successful"}}`)
	if status != 200 || strings.Contains(got, created.RevisionId) {
		t.Errorf("status %d; the RevisionId is still that of the creation: %s", status, got)
	}
}

// A function from its creation to its end, through the SDK and its waiters.
func TestFunctionLife(t *testing.T) {
	r := newRegion(t)
	c, ctx := r.client(testAccount), t.Context()
	f := aws.String("f")
	must(c.CreateFunction(ctx, imageInput("f")))
	_, err := c.CreateFunction(ctx, imageInput("f"))
	wantError(t, err, "ResourceConflictException", "Function already exist: f")
	_, err = c.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: f, MemorySize: aws.Int32(256)})
	wantError(t, err, "ResourceConflictException", "The operation cannot be performed at this time. The function is currently in the following state: Pending")
	_, err = c.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: f})
	wantError(t, err, "ResourceConflictException", "following state: Pending")
	r.build("f", ready)
	if err := lambda.NewFunctionActiveV2Waiter(c).Wait(ctx, &lambda.GetFunctionInput{FunctionName: f}, 3*time.Minute); err != nil {
		t.Fatal(err)
	}

	updated := must(c.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
		FunctionName: f, MemorySize: aws.Int32(256), Timeout: aws.Int32(30), Description: aws.String("second"),
		EphemeralStorage: &types.EphemeralStorage{Size: aws.Int32(1024)}, ImageConfig: &types.ImageConfig{Command: []string{"/f"}}}))
	if updated.LastUpdateStatus != types.LastUpdateStatusInProgress || *updated.LastUpdateStatusReason != "The function is being created." ||
		updated.LastUpdateStatusReasonCode != "Creating" || updated.State != types.StateActive {
		t.Errorf("updated: %s %v %s", updated.LastUpdateStatus, updated.LastUpdateStatusReason, updated.State)
	}
	_, err = c.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String(testImage)})
	wantError(t, err, "ResourceConflictException", "The operation cannot be performed at this time. An update is in progress for resource: arn:aws:lambda:us-east-1:000000000000:function:f")
	r.build("f", ready)
	if err := lambda.NewFunctionUpdatedV2Waiter(c).Wait(ctx, &lambda.GetFunctionInput{FunctionName: f}, 3*time.Minute); err != nil {
		t.Fatal(err)
	}
	got := must(c.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: f}))
	if *got.MemorySize != 256 || *got.Timeout != 30 || *got.Description != "second" || *got.EphemeralStorage.Size != 1024 ||
		got.ImageConfigResponse.ImageConfig.Command[0] != "/f" || got.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Errorf("configured: %+v", got)
	}
	if got := must(c.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: f, ImageConfig: &types.ImageConfig{}})); got.ImageConfigResponse != nil {
		t.Errorf("an empty ImageConfig leaves %+v", got.ImageConfigResponse)
	}
	must(c.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: f}))
	_, err = c.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: f})
	wantError(t, err, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f")
	_, err = c.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: f, Qualifier: aws.String("7")})
	wantError(t, err, "ResourceNotFoundException", "function:f")
}

// What an image is refused for shows as the function's state.
func TestFailedImage(t *testing.T) {
	r := newRegion(t)
	c, f := r.client(testAccount), aws.String("f")
	in := imageInput("f")
	in.Architectures = []types.Architecture{types.ArchitectureArm64}
	in.Publish = true
	created := must(c.CreateFunction(t.Context(), in))
	if *created.Version != "1" || *created.FunctionArn != "arn:aws:lambda:us-east-1:000000000000:function:f" || created.Architectures[0] != types.ArchitectureArm64 {
		t.Errorf("created %s as %s", *created.Version, *created.FunctionArn)
	}
	r.build("f", functions.Result{Code: "InvalidImage", Reason: "It is for arm64."})
	for _, q := range []string{"$LATEST", "1"} {
		got := must(c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: f, Qualifier: &q}))
		if got.State != types.StateFailed || got.StateReasonCode != types.StateReasonCodeInvalidImage || *got.StateReason != "It is for arm64." {
			t.Errorf("%s: %s, %s, %v", q, got.State, got.StateReasonCode, got.StateReason)
		}
	}
	must(c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String("r/f@sha256:" + testDigest), Architectures: []types.Architecture{types.ArchitectureX8664}}))
	r.build("f", ready)
	got := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f}))
	if got.Configuration.State != types.StateActive || got.Configuration.Architectures[0] != types.ArchitectureX8664 {
		t.Errorf("mended: %+v", got.Configuration)
	}
}

func zipped(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, content)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestZip(t *testing.T) {
	r := newRegion(t)
	c, f := r.client(testAccount), aws.String("f")
	data := zipped(t, map[string]string{"bootstrap": "#!/bin/sh"})
	in := func() *lambda.CreateFunctionInput {
		return &lambda.CreateFunctionInput{FunctionName: f, Role: aws.String(testRole), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("h"), Code: &types.FunctionCode{ZipFile: data}}
	}
	got := must(c.CreateFunction(t.Context(), in()))
	if got.PackageType != types.PackageTypeZip || got.CodeSize != int64(len(data)) || len(*got.CodeSha256) != 44 || *got.Handler != "h" || got.Runtime != types.RuntimeProvidedal2023 {
		t.Errorf("created: %+v", got)
	}
	stored := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	if !bytes.Equal(r.zips[stored.Latest.Package.Zip], data) {
		t.Error("the package has not been kept")
	}
	own := in()
	own.FunctionName, own.Runtime = aws.String("own"), "ours-2.x" // no name of AWS's: the operator's
	if got := must(c.CreateFunction(t.Context(), own)); got.Runtime != "ours-2.x" {
		t.Errorf("created: %+v", got)
	}
	r.build("f", functions.Result{Image: "i", Root: "r1"})
	_, err := c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ImageUri: aws.String(testImage)})
	wantError(t, err, "InvalidParameterValueException", "Please don't provide ImageUri when updating a function with packageType Zip.")
	_, err = c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: f, Runtime: types.RuntimeRuby32})
	wantError(t, err, "InvalidParameterValueException", "The runtime parameter of ruby3.2 is not supported")

	dry := must(c.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, ZipFile: zipped(t, nil), DryRun: true}))
	if *dry.CodeSha256 == *got.CodeSha256 || dry.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Errorf("dry run: %+v", dry)
	}
	after := must(c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: f}))
	if *after.Configuration.CodeSha256 != *got.CodeSha256 || *after.Code.RepositoryType != "S3" {
		t.Error("a dry run has changed the code")
	}
	for want, change := range map[string]func(*lambda.CreateFunctionInput){
		"Could not unzip uploaded file. Please check your file, then try to upload again.": func(q *lambda.CreateFunctionInput) { q.Code.ZipFile = []byte("no zip") },
		"The runtime parameter of our-own.x is not supported":                              func(q *lambda.CreateFunctionInput) { q.Runtime = "our-own.x" },
		"The runtime parameter of nodejs22.x is not supported":                             func(q *lambda.CreateFunctionInput) { q.Runtime = types.RuntimeNodejs22x },
		"Runtime and Handler are mandatory parameters":                                     func(q *lambda.CreateFunctionInput) { q.Handler = nil },
		"Please provide a source for function code":                                        func(q *lambda.CreateFunctionInput) { q.Code.ZipFile = nil },
		"S3Bucket and S3Key are not supported here": func(q *lambda.CreateFunctionInput) {
			q.Code = &types.FunctionCode{S3Bucket: aws.String("bucket"), S3Key: aws.String("k")}
		},
		"Please don't provide ImageUri": func(q *lambda.CreateFunctionInput) { q.Code.ImageUri = aws.String("r/f") },
		"Please don't provide ImageConfig": func(q *lambda.CreateFunctionInput) {
			q.ImageConfig = &types.ImageConfig{WorkingDirectory: aws.String("/")}
		},
	} {
		q := in()
		q.FunctionName = aws.String("other")
		change(q)
		_, err := c.CreateFunction(t.Context(), q)
		wantError(t, err, "InvalidParameterValueException", want)
	}
}

// Every refusal of a creation, as a client reads it.
func TestCreateRefusals(t *testing.T) {
	r := newRegion(t)
	c := r.client(testAccount)
	const parameter, invalid = "InvalidParameterValueException", "ValidationException"
	for _, x := range []struct {
		kind, message string
		change        func(*lambda.CreateFunctionInput)
	}{
		{parameter, "Member must have length less than or equal to 64", func(q *lambda.CreateFunctionInput) { q.FunctionName = aws.String(strings.Repeat("a", 65)) }},
		{invalid, "Member must have length less than or equal to 140", func(q *lambda.CreateFunctionInput) {
			q.FunctionName = aws.String("arn:aws:lambda:us-east-1:000000000000:function:" + strings.Repeat("a", 100))
		}},
		{invalid, "at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern", func(q *lambda.CreateFunctionInput) { q.FunctionName = aws.String("invalid:function:name") }},
		{"ResourceNotFoundException", "Functions from 'ap-southeast-1' are not reachable in this region ('us-east-1')", func(q *lambda.CreateFunctionInput) {
			q.FunctionName = aws.String("arn:aws:lambda:ap-southeast-1:000000000000:function:f")
		}},
		{"AccessDeniedException", "", func(q *lambda.CreateFunctionInput) { q.FunctionName = aws.String("000000000001:function:f") }},
		{invalid, "Value 'r1' at 'role' failed to satisfy constraint", func(q *lambda.CreateFunctionInput) { q.Role = aws.String("r1") }},
		{invalid, "at 'memorySize'", func(q *lambda.CreateFunctionInput) { q.MemorySize = aws.Int32(64) }},
		{invalid, "Member must have value less than or equal to 10240", func(q *lambda.CreateFunctionInput) { q.MemorySize = aws.Int32(10241) }},
		{invalid, "at 'timeout'", func(q *lambda.CreateFunctionInput) { q.Timeout = aws.Int32(901) }},
		{invalid, "at 'architectures'", func(q *lambda.CreateFunctionInput) {
			q.Architectures = []types.Architecture{types.ArchitectureArm64, types.ArchitectureX8664}
		}},
		{parameter, "exceeded the 4KB limit", func(q *lambda.CreateFunctionInput) {
			q.Environment = &types.Environment{Variables: map[string]string{"VAR": strings.Repeat("x", 4096)}}
		}},
		{parameter, "Reserved keys used in this request: AWS_REGION, LAMBDA_TASK_ROOT", func(q *lambda.CreateFunctionInput) {
			q.Environment = &types.Environment{Variables: map[string]string{"LAMBDA_TASK_ROOT": "x", "AWS_REGION": "y"}}
		}},
		{parameter, "Please provide ImageUri when creating a function with packageType Image.", func(q *lambda.CreateFunctionInput) { q.Code.ImageUri = nil }},
		{parameter, "Please don't provide Handler or Runtime or Layer", func(q *lambda.CreateFunctionInput) { q.Handler = aws.String("h") }},
		{parameter, "none of them a space", func(q *lambda.CreateFunctionInput) { q.Code.ImageUri = aws.String("a b") }},
		{parameter, "Number of tags exceeds resource tag limit.", func(q *lambda.CreateFunctionInput) { q.Tags = manyTags(51) }},
		{parameter, "VpcConfig with subnets", func(q *lambda.CreateFunctionInput) {
			q.VpcConfig = &types.VpcConfig{SubnetIds: []string{"subnet-1"}, SecurityGroupIds: []string{"sg-1"}}
		}},
		{parameter, "DeadLetterConfig", func(q *lambda.CreateFunctionInput) {
			q.DeadLetterConfig = &types.DeadLetterConfig{TargetArn: aws.String("arn:aws:sqs:us-east-1:000000000000:q")}
		}},
		{parameter, "KMSKeyArn", func(q *lambda.CreateFunctionInput) {
			q.KMSKeyArn = aws.String("arn:aws:kms:us-east-1:000000000000:key/k")
		}},
		{parameter, "SnapStart", func(q *lambda.CreateFunctionInput) {
			q.SnapStart = &types.SnapStart{ApplyOn: types.SnapStartApplyOnPublishedVersions}
		}},
		{"CodeSigningConfigNotFoundException", "The code signing configuration cannot be found.", func(q *lambda.CreateFunctionInput) {
			q.CodeSigningConfigArn = aws.String("arn:aws:lambda:us-east-1:000000000000:code-signing-config:csc-01234567890123456")
		}},
	} {
		in := imageInput("f")
		x.change(in)
		_, err := c.CreateFunction(t.Context(), in)
		wantError(t, err, x.kind, x.message)
	}
	in := imageInput("f") // what says nothing is no refusal
	in.VpcConfig, in.DeadLetterConfig, in.SnapStart = &types.VpcConfig{}, &types.DeadLetterConfig{}, &types.SnapStart{ApplyOn: types.SnapStartApplyOnNone}
	in.Environment = &types.Environment{Variables: map[string]string{"VAR": strings.Repeat("x", 4086)}}
	must(c.CreateFunction(t.Context(), in))
}

func manyTags(n int) map[string]string {
	tags := map[string]string{}
	for i := range n {
		tags[fmt.Sprint("k", i)] = "v"
	}
	return tags
}

// A tenant sees and reaches nothing of another's.
func TestTenants(t *testing.T) {
	r := newRegion(t)
	mine, other := r.client(testAccount), r.client("000000000001")
	must(mine.CreateFunction(t.Context(), imageInput("f")))
	_, err := other.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")})
	wantError(t, err, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000001:function:f")
	arn := aws.String("arn:aws:lambda:us-east-1:000000000000:function:f")
	_, err = other.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: arn})
	wantError(t, err, "AccessDeniedException", "")
	_, err = other.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: arn})
	wantError(t, err, "AccessDeniedException", "")
	_, err = other.TagResource(t.Context(), &lambda.TagResourceInput{Resource: arn, Tags: map[string]string{"a": "b"}})
	wantError(t, err, "AccessDeniedException", "")
	if l := must(other.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})); len(l.Functions) != 0 {
		t.Errorf("another tenant lists %d functions", len(l.Functions))
	}
	must(other.CreateFunction(t.Context(), imageInput("f")))
	must(mine.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: arn}))
}

// Secrets of one function are in no error.
func TestErrorsHoldNoVariables(t *testing.T) {
	r := newRegion(t)
	in := imageInput("f")
	in.Environment = &types.Environment{Variables: map[string]string{"VAR": "hush" + strings.Repeat("x", 4096)}}
	_, err := r.client(testAccount).CreateFunction(t.Context(), in)
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("error: %v", err)
	}
}
