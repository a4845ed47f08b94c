package frontend

import (
	"net/http"
	"strings"
	"testing"
)

// A step of a recording: a request, what is expected of its answer, and whether
// a builder comes by afterwards.
type step struct {
	method, path, body string
	status             int
	holds              string // a part of the answer
	build              bool
}

// What Terraform's AWS provider asks for a function of an image with reserved
// concurrency, a permission, a function URL, an event-invoke config and an alias,
// through create, plan, update and destroy: by what it is known to send, not recorded.
func TestTerraform(t *testing.T) {
	r := newRegion(t)
	const f = "/2015-03-31/functions/tf"
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:tf"
	read := []step{
		{"GET", f, "", 200, `"ResolvedImageUri"`, false},
		{"GET", f + "/versions?MaxItems=10000", "", 200, `"Version":"$LATEST"`, false},
		{"GET", "/2020-06-30/functions/tf/code-signing-config", "", 200, "{}", false},
		{"GET", f + "/policy", "", 200, `\"Sid\":\"s3\"`, false},
		{"GET", "/2021-10-31/functions/tf/url", "", 200, `"AuthType":"NONE"`, false},
		{"GET", "/2019-09-25/functions/tf/event-invoke-config?Qualifier=$LATEST", "", 200, `"MaximumRetryAttempts":1`, false},
		{"GET", f + "/aliases/live", "", 200, `"FunctionVersion":"1"`, false},
		{"GET", "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Atf", "", 200, `{"Tags":{"team":"a"}}`, false},
		{"GET", "/2021-07-20/functions/tf/runtime-management-config", "", 200, `"Auto"`, false},
		{"GET", "/2024-08-31/functions/tf/recursion-config", "", 200, `"Terminate"`, false},
		{"GET", "/2019-09-30/functions/tf/concurrency", "", 200, `{"ReservedConcurrentExecutions":5}`, false},
	}
	create := []step{
		{"GET", f, "", 404, "Function not found: " + arn, false},
		{"POST", "/2015-03-31/functions", `{"FunctionName":"tf","Role":"` + testRole + `","PackageType":"Image","Code":{"ImageUri":"` + testImage + `"},
			"Architectures":["x86_64"],"Description":"","EphemeralStorage":{"Size":512},"MemorySize":128,"Publish":true,"Timeout":3,"Tags":{"team":"a"},
			"TracingConfig":{"Mode":"PassThrough"},"LoggingConfig":{"LogFormat":"Text","LogGroup":"/aws/lambda/tf"}}`, 201, `"State":"Pending"`, false},
		{"GET", f, "", 200, `"State":"Pending"`, true},
		{"GET", f, "", 200, `"State":"Active"`, false},
		{"PUT", "/2017-10-31/functions/tf/concurrency", `{"ReservedConcurrentExecutions":5}`, 200, `5`, false},
		{"POST", f + "/policy", `{"Action":"lambda:InvokeFunction","Principal":"s3.amazonaws.com","StatementId":"s3","SourceArn":"arn:aws:s3:::b"}`, 201, `"Statement":"{`, false},
		{"POST", "/2021-10-31/functions/tf/url", `{"AuthType":"NONE","InvokeMode":"BUFFERED"}`, 201, `"FunctionUrl":"http://`, false},
		{"PUT", "/2019-09-25/functions/tf/event-invoke-config?Qualifier=$LATEST", `{"MaximumRetryAttempts":1}`, 200, `$LATEST`, false},
		{"POST", f + "/aliases", `{"Name":"live","FunctionVersion":"1","Description":""}`, 201, `:live"`, false},
	}
	update := []step{
		{"PUT", f + "/configuration", `{"MemorySize":256,"Timeout":3,"Description":"","Environment":{"Variables":{}}}`, 200, `"InProgress"`, true},
		{"GET", f, "", 200, `"LastUpdateStatus":"Successful"`, false},
		{"PUT", f + "/code", `{"ImageUri":"` + testImage + `","Architectures":["x86_64"]}`, 200, `"InProgress"`, true},
		{"GET", f + "/configuration", "", 200, `"LastUpdateStatus":"Successful"`, false},
		{"POST", f + "/versions", `{}`, 201, `"Version":"2"`, false},
		{"POST", "/2017-03-31/tags/" + arn, `{"Tags":{"team":"b"}}`, 204, "", false},
		{"DELETE", "/2017-03-31/tags/" + arn + "?tagKeys=team", "", 204, "", false},
	}
	destroy := []step{
		{"DELETE", f + "/aliases/live", "", 204, "", false},
		{"DELETE", "/2019-09-25/functions/tf/event-invoke-config?Qualifier=$LATEST", "", 204, "", false},
		{"DELETE", "/2021-10-31/functions/tf/url", "", 204, "", false},
		{"DELETE", f + "/policy/s3", "", 204, "", false},
		{"GET", f + "/policy", "", 404, "The resource you requested does not exist.", false},
		{"DELETE", "/2017-10-31/functions/tf/concurrency", "", 204, "", false},
		{"DELETE", f, "", 204, "", false},
		{"GET", f, "", 404, "Function not found", false},
	}
	for _, part := range [][]step{create, read, read, update, destroy} {
		for _, s := range part {
			status, header, body := r.raw(s.method, s.path, s.body)
			if status != s.status || !strings.Contains(body, s.holds) {
				t.Errorf("%s %s: %d %s\nwant %d with %s", s.method, s.path, status, body, s.status, s.holds)
			}
			if status >= http.StatusBadRequest && header.Get("X-Amzn-Errortype") == "" {
				t.Errorf("%s %s: the error has no type", s.method, s.path)
			}
			if s.build {
				r.build("tf", ready)
			}
		}
	}
}
