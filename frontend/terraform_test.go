package frontend

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

const (
	tfPath = "/2015-03-31/functions/tf"
	tfARN  = "arn:aws:lambda:us-east-1:000000000000:function:tf"
)

// terraformReads is what it asks to compare all with what it has planned.
func terraformReads(version, memory string) []step {
	return []step{
		{"GET", tfPath, "", 200, `"ImageUri":"` + testImage + `"`, false},
		{"GET", tfPath, "", 200, `"MemorySize":` + memory, false},
		{"GET", tfPath + "/versions?MaxItems=10000", "", 200, `"Version":"` + version + `"}]}`, false}, // the last is the newest
		{"GET", tfPath + "/aliases/live", "", 200, `"FunctionVersion":"` + version + `"`, false},
		{"GET", "/2021-10-31/functions/tf/url", "", 200, `"AuthType":"NONE"`, false},
		{"GET", "/2019-09-25/functions/tf/event-invoke-config", "", 200, `"MaximumRetryAttempts":1`, false},
		{"GET", tfPath + "/policy", "", 200, `\"Sid\":\"s3\"`, false},
		{"GET", tfPath + "/policy", "", 200, `\"Sid\":\"FunctionURLAllowPublicAccess\"`, false},
		{"GET", tfPath + "/policy?Qualifier=live", "", 200, `\"Resource\":\"` + tfARN + `:live\"`, false},
	}
}

// What Terraform's AWS provider asks for a function of an image with reserved
// concurrency, permissions, a function URL, an event-invoke config and an alias,
// from create to destroy: recorded of version 5.100.0 with testdata/terraform,
// which TestTerraformItself runs, with what its source has had since, to 6: a
// published version that does not say it is Successful is waited for, and so is a
// function's end; a statement may be for calls through the function's URL alone.
func TestTerraform(t *testing.T) {
	r := newRegion(t)
	const f, arn = tfPath, tfARN
	const escaped = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Atf"
	create := []step{
		{"POST", "/2015-03-31/functions", `{"Code":{"ImageUri":"` + testImage + `"},"Description":"","Environment":{"Variables":{"GREETING":"hello"}},
			"FunctionName":"tf","ImageConfig":{"EntryPoint":["/function"],"WorkingDirectory":""},"MemorySize":128,"PackageType":"Image","Publish":true,
			"Role":"` + testRole + `","Tags":{"team":"a"},"Timeout":3}`, 201, `"State":"Pending"`, false},
		{"GET", f, "", 200, `"State":"Pending"`, true},
		{"GET", f, "", 200, `"State":"Active"`, false},
		{"PUT", "/2017-10-31/functions/tf/concurrency", `{"ReservedConcurrentExecutions":5}`, 200, `5`, false},
		{"GET", f, "", 200, `"Concurrency":{"ReservedConcurrentExecutions":5}`, false},
		{"PUT", "/2019-09-25/functions/tf/event-invoke-config", `{"MaximumRetryAttempts":1}`, 200, `$LATEST`, false},
		{"POST", f + "/policy", `{"Action":"lambda:InvokeFunction","Principal":"s3.amazonaws.com","SourceArn":"arn:aws:s3:::b","StatementId":"s3"}`, 201, `"Statement":"{`, false},
		{"POST", "/2021-10-31/functions/tf/url", `{"AuthType":"NONE","InvokeMode":"BUFFERED"}`, 201, `"FunctionUrl":"http://`, false},
		{"POST", f + "/policy", `{"Action":"lambda:InvokeFunctionUrl","FunctionUrlAuthType":"NONE","Principal":"*","StatementId":"FunctionURLAllowPublicAccess"}`, 201, `"Statement":"{`, false},
		{"POST", f + "/policy", `{"Action":"lambda:InvokeFunction","InvokedViaFunctionUrl":true,"Principal":"*","StatementId":"FunctionURLAllowInvokeAction"}`, 201, `"Statement":"{`, false},
		{"POST", f + "/aliases", `{"Description":"","FunctionVersion":"1","Name":"live","RoutingConfig":{}}`, 201, `:live"`, false},
		{"POST", f + "/policy?Qualifier=live", `{"Action":"lambda:InvokeFunction","Principal":"s3.amazonaws.com","StatementId":"s3"}`, 201, `"Statement":"{`, false},
	}
	update := []step{
		{"POST", "/2017-03-31/tags/" + escaped, `{"Tags":{"team":"b"}}`, 204, "", false},
		{"PUT", f + "/configuration", `{"MemorySize":256}`, 200, `"InProgress"`, true},
		{"GET", f, "", 200, `"LastUpdateStatus":"Successful"`, false},
		{"PUT", f + "/code", `{"ImageUri":"` + testImage + `"}`, 200, `"InProgress"`, true},
		{"GET", f, "", 200, `"LastUpdateStatus":"Successful"`, false},
		{"DELETE", "/2017-10-31/functions/tf/concurrency", "", 204, "", false},
		{"POST", f + "/versions", `{}`, 201, `"Version":"2"`, false},
		{"GET", "/2015-03-31/functions/" + escaped + "%3A2/configuration?Qualifier=2", "", 200, `"LastUpdateStatus":"Successful"`, false},
		{"PUT", f + "/aliases/live", `{"Description":"","FunctionVersion":"2","RoutingConfig":{}}`, 200, `"FunctionVersion":"2"`, false},
		{"GET", "/2017-03-31/tags/" + escaped, "", 200, `{"Tags":{"team":"b"}}`, false},
		{"DELETE", "/2017-03-31/tags/" + escaped + "?tagKeys=team", "", 204, "", false},
	}
	destroy := []step{
		{"DELETE", f + "/policy/s3", "", 204, "", false},
		{"DELETE", "/2019-09-25/functions/tf/event-invoke-config", "", 204, "", false},
		{"GET", "/2019-09-25/functions/tf/event-invoke-config", "", 404, `"Type":"User"`, false},
		{"DELETE", "/2021-10-31/functions/tf/url", "", 204, "", false},
		{"GET", "/2021-10-31/functions/tf/url", "", 404, `"Type":"User"`, false},
		{"GET", f + "/policy", "", 200, `FunctionURLAllowPublicAccess`, false}, // nobody removes it, at AWS neither
		{"DELETE", f + "/policy/s3?Qualifier=live", "", 204, "", false},
		{"GET", f + "/policy?Qualifier=live", "", 404, "The resource you requested does not exist.", false},
		{"DELETE", f + "/aliases/live", "", 204, "", false},
		{"DELETE", f, "", 204, "", false},
		{"GET", f, "", 404, "Function not found: " + arn, false},
	}
	for _, part := range [][]step{create, terraformReads("1", "128"), update, terraformReads("2", "256"), destroy} {
		for _, s := range part {
			status, header, body := r.raw(s.method, s.path, s.body)
			if status != s.status || !strings.Contains(body, s.holds) {
				t.Errorf("%s %s: %d %s\nwant %d with %s", s.method, s.path, status, body, s.status, s.holds)
			}
			if kind := header.Get("X-Amzn-Errortype"); status == http.StatusNotFound && kind != "ResourceNotFoundException" { // by which it judges what is gone
				t.Errorf("%s %s: the error is %q", s.method, s.path, kind)
			}
			if s.build {
				r.build("tf", ready)
			}
		}
	}
}

// providers finds where Terraform's AWS provider is unpacked: there is no
// registry to ask in a test.
func providers() string {
	home, _ := os.UserHomeDir() // or none
	for _, in := range []string{filepath.Join(home, ".terraform.d/plugins"), "/usr/local/share/terraform/plugins", "/usr/share/terraform/plugins", "/opt/*"} {
		if found, _ := filepath.Glob(filepath.Join(in, "*/hashicorp/aws")); len(found) > 0 { // the pattern is right
			return filepath.Join(found[0], "../../..")
		}
	}
	return ""
}

// Terraform itself, where it is: it creates all, changes in place what it is told
// to and nothing else, finds nothing to change then, and destroys all.
func TestTerraformItself(t *testing.T) {
	dir := providers()
	if _, err := exec.LookPath("terraform"); err != nil || dir == "" {
		t.Skip("SKIPPED: terraform, or its AWS provider in a folder of plugins, is not installed; what the provider sends is replayed by TestTerraform")
	}
	r := newRegion(t)
	r.builder()
	work := t.TempDir()
	if err := errors.Join(os.CopyFS(work, os.DirFS("testdata/terraform")), os.WriteFile(filepath.Join(work, "empty"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"init -plugin-dir=" + dir, "has been successfully initialized"},
		{"apply -auto-approve", "Resources: 6 added, 0 changed, 0 destroyed."},
		{"apply -auto-approve -var=memory=256 -var=reserved=-1 -var=team=b -var=image=registry.example/f:2", "Resources: 0 added, 2 changed, 0 destroyed."},
		{"plan -detailed-exitcode -var=memory=256 -var=reserved=-1 -var=team=b -var=image=registry.example/f:2", "No changes."},
		{"destroy -auto-approve -refresh=false", "Resources: 6 destroyed."},
	} {
		cmd := exec.CommandContext(t.Context(), "terraform", append(strings.Fields(c.args), "-no-color", "-input=false")...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "TF_VAR_endpoint="+r.url, "TF_CLI_CONFIG_FILE="+filepath.Join(work, "empty"), "CHECKPOINT_DISABLE=1", "AWS_EC2_METADATA_DISABLED=true")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), c.want) {
			t.Fatalf("terraform %s: %v\n%s", c.args, err, out)
		}
	}
	if status, _, body := r.raw("GET", "/2015-03-31/functions", ""); status != http.StatusOK || !strings.Contains(body, `"Functions":[]`) {
		t.Errorf("left: %d %s", status, body)
	}
}
