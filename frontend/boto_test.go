package frontend

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"thaw/functions"
)

// builder settles whatever is to be built, until the test ends.
func (r *region) builder() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := r.store.Watch(ctx, func(id functions.ID, f *functions.Function) error {
			if f == nil || f.Latest.Build == "" {
				return nil
			}
			err := r.store.Settle(ctx, id, f.Latest.Build, ready)
			if errors.Is(err, functions.ErrConflict) || errors.Is(err, functions.ErrNotFound) {
				return nil
			}
			return err
		})
		if ctx.Err() == nil {
			r.t.Errorf("the builder has ended: %v", err)
		}
	})
	r.t.Cleanup(wg.Wait)
	r.t.Cleanup(cancel)
}

// boto3, which checks what it gets against its own model of the service.
func TestBoto(t *testing.T) {
	if err := exec.Command("python3", "-c", "import boto3").Run(); err != nil {
		t.Skip("SKIPPED: boto3 is not installed (Debian: python3-boto3); the control API is not tried with it")
	}
	r := newRegion(t)
	r.builder()
	cmd := exec.CommandContext(t.Context(), "python3", "testdata/control.py")
	cmd.Env = append(os.Environ(), "ENDPOINT="+r.url, "AWS_EC2_METADATA_DISABLED=true")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all is well") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The AWS CLI, which waits for the function by its own waiter.
func TestCLI(t *testing.T) {
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skip("SKIPPED: the AWS CLI is not installed (Debian: awscli); the control API is not tried with it")
	}
	r := newRegion(t)
	r.builder()
	for _, c := range []struct{ args, want string }{
		{"create-function --function-name cli --package-type Image --code ImageUri=" + testImage + " --role " + testRole, `"State": "Pending"`},
		{"wait function-active-v2 --function-name cli", ""},
		{"get-function --function-name cli --query Code.ResolvedImageUri --output text", "registry.example/f@sha256:"},
		{"delete-function --function-name arn:aws:lambda:us-east-1:000000000000:function:cli", ""},
	} {
		cmd := exec.CommandContext(t.Context(), "aws", append([]string{"--endpoint-url", r.url, "lambda"}, strings.Fields(c.args)...)...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=secret", "AWS_DEFAULT_REGION=us-east-1", "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("aws lambda %s: %v\n%s", c.args, err, out)
		}
	}
}
