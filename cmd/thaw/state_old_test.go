package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// -update makes testdata/state anew, of a platform of the present: only if what an
// older build has written need not be read any more.
var update = flag.Bool("update", false, "write the golden state anew")

// What testdata/state has: a backup, compressed; the tenant's key; and the keys of
// a client. The build that wrote it had the records' server of NATS 2.15.2.
const (
	oldBackup = "testdata/state/backup.gz"
	oldKey    = "testdata/state/key"
	oldClient = "testdata/state/client.json"
)

// clientKeys is what thaw keys create --json says.
type clientKeys struct{ ID, Secret string }

// A whole state that an earlier build has written, as cluster backup gives it, is
// what this one begins with: function, versions, alias and all that belongs to them,
// sealed variables, keys, credentials of a registry, and an event that is queued.
// The images are not in it.
func TestStateOfOld(t *testing.T) {
	if *update {
		writeState(t)
	}
	packed, err := os.Open(oldBackup)
	try(t, err)
	defer packed.Close()
	backup, err := gzip.NewReader(packed)
	try(t, err)
	var pair clientKeys
	text, err := os.ReadFile(oldClient)
	try(t, errors.Join(err, json.Unmarshal(text, &pair)))
	m := newMachine(t)
	try(t, os.MkdirAll(filepath.Dir(m.key()), 0o700))
	key, err := os.ReadFile(oldKey)
	try(t, errors.Join(err, os.WriteFile(m.key(), key, 0o600)))
	restore := m.command("cluster", "restore", "-")
	restore.Stdin = backup
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := restarted(t, &region{machine: m})
	t.Cleanup(r.down)
	c := (&contract{region: r}).keyed(pair.ID, pair.Secret, "")
	oldFunction(t, c)
	if out := r.must("keys", "list"); !strings.Contains(out, pair.ID) {
		t.Errorf("keys: %s", out)
	}
	if out := r.must("registry", "list"); out != "registry.example:5000\n" {
		t.Errorf("credentials: %s", out)
	}
	r.until(t, "the queued event is tried, and given up", func() bool { // it has become too old, and the image is not there
		out := r.must("events", "old", "--json")
		if out != "" && (strings.Count(out, "\n") != 1 || !strings.Contains(out, "EventAgeExceeded")) {
			t.Fatalf("events: %s", out)
		}
		return out != ""
	})
}

// oldFunction looks at all that there is of the function.
func oldFunction(t *testing.T, c *lambda.Client) {
	t.Helper()
	ctx, name := t.Context(), aws.String("old")
	f, err := c.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: name})
	try(t, err)
	if v := f.Configuration; v.State != types.StateActive || aws.ToInt32(v.MemorySize) != 256 || v.Environment == nil || v.Environment.Variables["GREETING"] != canary ||
		f.Tags["team"] != "a" || f.Concurrency == nil || aws.ToInt32(f.Concurrency.ReservedConcurrentExecutions) != 7 || !strings.Contains(aws.ToString(f.Code.ResolvedImageUri), "@sha256:") {
		t.Errorf("the function: %+v, %+v, %v, %+v", v, v.Environment, f.Tags, f.Concurrency)
	}
	versions, err := c.ListVersionsByFunction(ctx, &lambda.ListVersionsByFunctionInput{FunctionName: name})
	try(t, err)
	if len(versions.Versions) != 3 {
		t.Errorf("%d versions", len(versions.Versions))
	}
	alias, err := c.GetAlias(ctx, &lambda.GetAliasInput{FunctionName: name, Name: aws.String("live")})
	try(t, err)
	if aws.ToString(alias.FunctionVersion) != "1" || alias.RoutingConfig == nil || alias.RoutingConfig.AdditionalVersionWeights["2"] != 0.25 {
		t.Errorf("the alias: %+v", alias)
	}
	policy, err := c.GetPolicy(ctx, &lambda.GetPolicyInput{FunctionName: name})
	try(t, err)
	if !strings.Contains(aws.ToString(policy.Policy), `"AWS:SourceArn":"arn:aws:s3:::b"`) {
		t.Errorf("the policy: %s", aws.ToString(policy.Policy))
	}
	retries, err := c.GetFunctionEventInvokeConfig(ctx, &lambda.GetFunctionEventInvokeConfigInput{FunctionName: name})
	try(t, err)
	if aws.ToInt32(retries.MaximumRetryAttempts) != 0 || aws.ToInt32(retries.MaximumEventAgeInSeconds) != 60 {
		t.Errorf("the event-invoke config: %+v", retries)
	}
	at, err := c.GetFunctionUrlConfig(ctx, &lambda.GetFunctionUrlConfigInput{FunctionName: name})
	try(t, err)
	if at.AuthType != types.FunctionUrlAuthTypeNone || aws.ToString(at.FunctionUrl) == "" {
		t.Errorf("the URL: %+v", at)
	}
}

// writeState has a platform write a state with one of everything.
func writeState(t *testing.T) {
	t.Helper()
	r := newRegion(t)
	c, ctx, name := r.client(t), t.Context(), aws.String("old")
	r.must("deploy", "old", sampleLayout(t), "--command", "/function", "--memory", "256", "-e", "GREETING="+canary, "--publish")
	_, err := c.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: name, Description: aws.String("second")})
	try(t, err)
	(&contract{region: r, c: c}).active(t, "old")
	steps := []func() error{
		func() error {
			_, err := c.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: name})
			return err
		},
		func() error {
			weights := &types.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{"2": 0.25}}
			_, err := c.CreateAlias(ctx, &lambda.CreateAliasInput{FunctionName: name, Name: aws.String("live"), FunctionVersion: aws.String("1"), RoutingConfig: weights})
			return err
		},
		func() error {
			_, err := c.TagResource(ctx, &lambda.TagResourceInput{Resource: aws.String("arn:aws:lambda:us-east-1:000000000000:function:old"), Tags: map[string]string{"team": "a"}})
			return err
		},
		func() error {
			_, err := c.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: name, ReservedConcurrentExecutions: aws.Int32(7)})
			return err
		},
		func() error {
			_, err := c.AddPermission(ctx, &lambda.AddPermissionInput{
				FunctionName: name, StatementId: aws.String("s3"), Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("s3.amazonaws.com"), SourceArn: aws.String("arn:aws:s3:::b"),
			})
			return err
		},
		func() error {
			_, err := c.CreateFunctionUrlConfig(ctx, &lambda.CreateFunctionUrlConfigInput{FunctionName: name, AuthType: types.FunctionUrlAuthTypeNone})
			return err
		},
		func() error {
			_, err := c.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{FunctionName: name, MaximumRetryAttempts: aws.Int32(0), MaximumEventAgeInSeconds: aws.Int32(60)})
			return err
		},
	}
	for _, step := range steps {
		try(t, step())
	}
	login := r.command("registry", "login", "registry.example:5000", "-u", "somebody")
	login.Stdin = strings.NewReader(canary + "\n")
	try(t, login.Run())
	var pair clientKeys
	try(t, json.Unmarshal([]byte(r.must("keys", "create", "--json")), &pair))
	worker := r.role(t, "worker")
	stop(t, worker)
	r.must("invoke", "old", `1`, "--async")
	backup := r.must("cluster", "backup", "-")
	try(t, syscall.Kill(worker, syscall.SIGCONT))
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = io.WriteString(w, backup)
	try(t, errors.Join(err, w.Close()))
	key, err := os.ReadFile(filepath.Join(r.state, "keys", "default"))
	try(t, err)
	text, err := json.Marshal(pair)
	try(t, errors.Join(err, os.MkdirAll(filepath.Dir(oldKey), 0o755)))
	for path, data := range map[string][]byte{oldBackup: packed.Bytes(), oldKey: key, oldClient: append(text, '\n')} {
		try(t, os.WriteFile(path, data, 0o600))
	}
}
