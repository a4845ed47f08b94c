package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"thaw/internal/tests3"
	"thaw/sdkhttp"
)

// pushed puts an image into the registry inside, as docker push does, and gives
// its reference.
func (r *region) pushed(t *testing.T, layout, name string) string {
	t.Helper()
	ref := r.registry + "/" + name
	push(t, layout, ref)
	return ref
}

// verbs tries those that only look at hello, or invoke it.
func (r *region) verbs(t *testing.T, c *lambda.Client) {
	t.Helper()
	if got := c.Options().Region; got != "eu-thaw-1" {
		t.Errorf("the region is %s", got)
	}
	r.starts(t)
	r.payloads(t)
	r.givenUp(t, c)
	r.triggered(t, c)
}

// firstScreen: what up says is what it takes, and how it is found.
func (r *region) firstScreen(t *testing.T) {
	t.Helper()
	var vars map[string]string
	try(t, json.Unmarshal([]byte(r.must("env", "--json")), &vars))
	want := fmt.Sprintf(`Thaw is up: %s
  takes     up to 3.2 GiB for functions, no zone cache, 10.0 GiB of chunks in %s
  registry  docker push %s/NAME
  key       %s
  secret    %s
  metrics   http://%s/metrics

In another shell:
  eval "$(THAW_STATE='%s' thaw env)"
  thaw deploy hello docker://IMAGE
  aws lambda invoke --function-name hello /dev/stdout
`, vars["AWS_ENDPOINT_URL"], filepath.Join(r.state, "cache"), r.registry, vars["AWS_ACCESS_KEY_ID"], vars["AWS_SECRET_ACCESS_KEY"], r.metrics, r.state)
	if r.screen != want {
		t.Errorf("up says\n%s\nwant\n%s", r.screen, want)
	}
	r.until(t, "the worker is listed", func() bool {
		for _, w := range r.workers() {
			if w.Memory != 4*gib-768*mib { // what is not for roles
				t.Errorf("the worker takes %d bytes", w.Memory)
			}
			return true
		}
		return false
	})
}

// deployedAgain: deploy gives a function another image, and of its configuration
// what flags say; one that cannot be had leaves it as it was.
func (r *region) deployedAgain(t *testing.T) {
	t.Helper()
	second := r.pushed(t, sampleLayout(t, "IMAGE=second"), "team/hello:2")
	if out := r.must("deploy", "hello", second, "--memory", "512", "-e", "GREETED=twice"); out != "hello: ready: thaw invoke hello\n" {
		t.Errorf("deployed again: %s", out)
	}
	is := func(name, version string) {
		t.Helper()
		var told toldOf
		out := r.must("invoke", name, `{"do":{"env":["IMAGE","GREETED","GREETING"]}}`)
		if err := decode([]byte(out), &told); err != nil || !maps.Equal(told.Env, map[string]string{"IMAGE": "second", "GREETED": "twice"}) || told.MemoryMB != 512 || told.Version != version {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
	is("hello", "$LATEST")
	var made struct{ State, Version string }
	if out := r.must("deploy", "hello", second, "--publish", "--json"); decode([]byte(out), &made) != nil || made.State != "Active" || made.Version != "1" {
		t.Errorf("deployed and published: %s", out)
	}
	is("hello:1", "1") // with the configuration that no flag has changed
	if e := r.thaw("deploy", "hello", r.registry+"/team/none:1"); e.code != 1 || e.out != "" || strings.Count(e.stderr, "\n") != 1 || !strings.Contains(e.stderr, "it is invoked as it was") {
		t.Errorf("deployed from nowhere: %+v", e)
	}
	if out := r.must("functions"); !strings.Contains(out, "Active, update failed") {
		t.Errorf("functions: %s", out)
	}
	if out := r.must("functions", "--json"); !strings.Contains(out, `"last_update_status":"Failed"`) || !strings.Contains(out, `"state":"Active"`) {
		t.Errorf("functions --json: %s", out)
	}
	is("hello", "$LATEST")
}

// payloads: invoke reads a file, and standard input.
func (r *region) payloads(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "event.json")
	if err := os.WriteFile(file, []byte(`{"from":"a file"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := r.must("invoke", "hello", "@"+file); out != `{"from":"a file"}`+"\n" {
		t.Errorf("invoke @FILE: %s", out)
	}
	cmd := r.command("invoke", "hello", "-")
	cmd.Stdin = strings.NewReader(`{"from":"a pipe"}`)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != `{"from":"a pipe"}`+"\n" {
		t.Errorf("invoke -: %s, %v", out, err)
	}
	if e := r.thaw("invoke", "hello", `{"do":{"error":"no luck"}}`); e.code != 1 || !strings.Contains(e.out, "no luck") {
		t.Errorf("a function that fails: %+v", e)
	}
}

// starts: coldstarts tells numbers of what is young enough.
func (r *region) starts(t *testing.T) {
	t.Helper()
	for since, want := range map[string]int{"1h": 1, "1ns": 0} {
		var got struct {
			Name          string
			Invokes, Cold int
			Init          struct {
				Count int
				Min   float64 `json:"min_ms"`
			}
		}
		out := r.must("coldstarts", "hello", "--json", "--since", since)
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Name != "hello" || got.Cold != want || got.Init.Count != want || got.Invokes < want || (got.Init.Min > 0) != (want > 0) {
			t.Errorf("coldstarts --since %s: %s, %v", since, out, err)
		}
	}
}

// letter gives the only dead letter of a function, once there is one that died
// after another.
func (r *region) letter(t *testing.T, after string) (id, died string) {
	t.Helper()
	r.until(t, "a dead letter of hello", func() bool {
		var l struct {
			ID, Function, Died, Reason string
			Tries                      int
		}
		out := r.must("events", "hello", "--json")
		if out == "" {
			return false
		}
		if err := json.Unmarshal([]byte(out), &l); err != nil || l.Function != "hello" || l.Reason != "RetriesExhausted" || l.Tries != 1 {
			t.Fatalf("events --json: %s, %v", out, err)
		}
		id, died = l.ID, l.Died
		return died != after
	})
	return id, died
}

// givenUp: an event that fails is listed, queued again and forgotten.
func (r *region) givenUp(t *testing.T, c *lambda.Client) {
	t.Helper()
	if _, err := c.PutFunctionEventInvokeConfig(t.Context(), &lambda.PutFunctionEventInvokeConfigInput{FunctionName: aws.String("hello"), MaximumRetryAttempts: aws.Int32(0)}); err != nil {
		t.Fatal(err)
	}
	if out := r.must("invoke", "hello", `{"do":{"error":"no luck"}}`, "--async"); out != "" {
		t.Errorf("invoke --async: %q", out)
	}
	id, died := r.letter(t, "")
	if out := r.must("events", "hello"); strings.Count(out, "\n") != 2 || !strings.HasPrefix(out, "ID ") || !strings.Contains(out, id+"  hello  ") || !strings.Contains(out, "RetriesExhausted") {
		t.Errorf("events hello: %s", out)
	}
	if e := r.thaw("events", "other"); e.code != 1 || e.out != "" || !strings.HasPrefix(e.stderr, "thaw: ResourceNotFoundException: Function not found: arn:aws:lambda:") || !strings.HasSuffix(e.stderr, ":function:other\n") {
		t.Errorf("events of no function: %+v", e)
	}
	r.must("events", "replay", id)
	if again, _ := r.letter(t, died); again != id {
		t.Errorf("%s came back as %s", id, again)
	}
	r.must("events", "remove", id)
	if out := r.must("events", "--json"); out != "" {
		t.Errorf("events after remove: %s", out)
	}
	for _, verb := range []string{"remove", "replay"} {
		if e := r.thaw("events", verb, id); e.code != 1 || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("events %s of what is gone: %+v", verb, e)
		}
	}
}

// revoked: a key opens functions until it is revoked.
func (r *region) revoked(t *testing.T, c *lambda.Client, id, secret string) {
	t.Helper()
	with := func(o *lambda.Options) {
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, nil
		})
	}
	if _, err := c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{}, with); err != nil {
		t.Errorf("with a new key: %v", err)
	}
	r.must("keys", "revoke", id)
	r.until3("the revoked key is refused", func() error {
		if _, err := c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{}, with); err == nil || !strings.Contains(err.Error(), "UnrecognizedClientException") {
			return errors.Join(err, errors.New("it is not refused"))
		}
		return nil
	})
	if out := r.must("keys", "list"); strings.Contains(out, id) {
		t.Errorf("keys list: %s", out)
	}
	if e := r.thaw("keys", "revoke", id); e.code != 1 || strings.Count(e.stderr, "\n") != 1 {
		t.Errorf("revoking what is gone: %+v", e)
	}
}

// triggered: what is put into a bucket invokes the function that lets it.
func (r *region) triggered(t *testing.T, c *lambda.Client) {
	t.Helper()
	hello, err := c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("hello")})
	if err != nil {
		t.Fatal(err)
	}
	account := strings.Split(*hello.FunctionArn, ":")[4]
	t.Setenv("VGW_EVENT_WEBHOOK_URL", r.endpoint+"/s3/"+account+"/hello") // of the S3 server
	server := tests3.Start(t)
	bucket, err := url.Parse(server.Bucket(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddPermission(t.Context(), &lambda.AddPermissionInput{
		FunctionName: aws.String("hello"), StatementId: aws.String("bucket"), Action: aws.String("lambda:InvokeFunction"),
		Principal: aws.String("s3.amazonaws.com"), SourceArn: aws.String("arn:aws:s3:::" + bucket.Host),
	}); err != nil {
		t.Fatal(err)
	}
	objects := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: &server.URL, UsePathStyle: true, HTTPClient: sdkhttp.Client(),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: server.Access, SecretAccessKey: server.Secret}, nil
		}),
	})
	invokes := func() int { return strings.Count(r.must("logs", "hello"), "REPORT RequestId") }
	before := invokes()
	r.until3("an object invokes the function", func() error { // the server tells of each once, however busy we are
		_, err := objects.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket.Host, Key: aws.String("photo"), Body: strings.NewReader("x")})
		if err == nil && invokes() == before {
			err = errors.New("no invoke is in its log")
		}
		return err
	})
}
