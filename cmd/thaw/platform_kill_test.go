package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"
)

// killsEach is how many moments each kind of process is killed at, unless
// THAW_KILLS says more, as make soak does.
const killsEach = 2

// client gives the SDK's client, which tries nothing twice.
func (r *region) client(t *testing.T) *lambda.Client {
	t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(r.must("env", "--json")), &vars); err != nil {
		t.Fatal(err)
	}
	return lambda.New(lambda.Options{
		Region: vars["AWS_REGION"], BaseEndpoint: aws.String(r.endpoint), Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: vars["AWS_ACCESS_KEY_ID"], SecretAccessKey: vars["AWS_SECRET_ACCESS_KEY"]}, nil
		}),
	})
}

// children are the processes that a process has started, by the verb that they
// run.
func children(pid int) map[string]int {
	all := map[string]int{}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	for _, path := range tasks {
		list, _ := os.ReadFile(path) // it may have ended
		for _, word := range strings.Fields(string(list)) {
			line, _ := os.ReadFile("/proc/" + word + "/cmdline")
			for _, arg := range bytes.Split(line, []byte{0}) {
				if verb := string(arg); slices.Contains(platformRoles, verb) {
					all[verb], _ = strconv.Atoi(word)
				}
			}
		}
	}
	return all
}

// platformRoles are what thaw up runs.
var platformRoles = []string{"cluster", "builder", "manager", "worker", "frontend"}

// load invokes a function again and again, and queues events for it.
type load struct {
	c         *lambda.Client
	stop      chan struct{}
	work      errgroup.Group
	good, bad atomic.Int64
	accepted  []string // what the function is to say of each event; to be read once work has ended
}

func newLoad(ctx context.Context, c *lambda.Client) *load {
	l := &load{c: c, stop: make(chan struct{})}
	for range 3 {
		l.work.Go(func() error { return l.repeat(time.Millisecond, func(int) error { return l.invoke(ctx) }) })
	}
	l.work.Go(func() error {
		return l.repeat(50*time.Millisecond, func(n int) error {
			text := fmt.Sprintf("event %d.", n)
			in := &lambda.InvokeInput{FunctionName: aws.String("e"), InvocationType: types.InvocationTypeEvent, Payload: fmt.Appendf(nil, `{"do":{"log_text":%q}}`, text)}
			if _, err := c.Invoke(ctx, in); err == nil {
				l.accepted = append(l.accepted, text)
			}
			return nil
		})
	})
	return l
}

// repeat calls f until the load is to end.
func (l *load) repeat(pace time.Duration, f func(n int) error) error {
	next := time.NewTicker(pace)
	defer next.Stop()
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return nil
		case <-next.C:
		}
		if err := f(n); err != nil {
			return err
		}
	}
}

// invoke fails if an answer is wrong, late, or none of Lambda's.
func (l *load) invoke(ctx context.Context) error {
	began := time.Now()
	out, err := l.c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"n":1}`)})
	switch api := smithy.APIError(nil); {
	case err == nil && (out.FunctionError != nil || string(out.Payload) == `{"n":1}`):
		l.good.Add(1)
	case err == nil:
		return fmt.Errorf("a wrong answer: %q", out.Payload)
	case errors.As(err, &api) || errors.As(err, new(*net.OpError)) || strings.Contains(err.Error(), "EOF"):
		l.bad.Add(1) // what Lambda says, or nobody is there to say it
	default:
		return err
	}
	if took := time.Since(began); took > 2*time.Minute {
		return fmt.Errorf("an invoke took %v", took)
	}
	return nil
}

// Whatever is killed while a function is invoked again and again: each invoke
// ends in time, with an answer or with an error of Lambda's shape; soon all is
// well again; every event that was accepted is tried; and nothing is left.
func TestPlatformKill(t *testing.T) {
	r := newRegion(t)
	c := r.client(t)
	layout := sampleLayout(t)
	r.must("deploy", "f", layout, "--command", "/function", "--timeout", "10")
	r.must("deploy", "e", layout, "--command", "/function", "--timeout", "10") // for events: what is read of a log at once is bounded
	kills := killsEach
	if text := os.Getenv("THAW_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	l := newLoad(t.Context(), c)
	for range kills {
		for _, name := range platformRoles {
			r.kill(t, c, name, time.Duration(draw.IntN(300))*time.Millisecond)
		}
	}
	close(l.stop)
	if err := l.work.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d invokes were answered, %d refused; %d events were accepted", l.good.Load(), l.bad.Load(), len(l.accepted))
	if l.good.Load() == 0 || len(l.accepted) == 0 {
		t.Error("nothing was invoked")
	}
	r.until(t, "every event that was accepted is tried", func() bool {
		said := r.must("logs", "e")
		return !slices.ContainsFunc(l.accepted, func(event string) bool { return !strings.Contains(said, event) })
	})
	if out := r.must("events", "--json"); out != "" {
		t.Errorf("events were given up: %s", out)
	}
}

// kill kills a role some time after an invoke was answered, and waits until
// invokes are again.
func (r *region) kill(t *testing.T, c *lambda.Client, name string, after time.Duration) {
	t.Helper()
	up := r.up.cmd.Process.Pid
	pid := children(up)[name]
	if pid == 0 {
		t.Errorf("%s does not run", name)
		return
	}
	r.until(t, name+" answers before it is killed", func() bool { return r.works(c) })
	<-time.NewTimer(after).C
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	r.until(t, name+" is there again", func() bool { p := children(up)[name]; return p != 0 && p != pid })
	r.until(t, "invokes work after "+name+" was killed", func() bool { return r.works(c) })
}

// works tells whether an invoke is answered.
func (r *region) works(c *lambda.Client) bool {
	out, err := c.Invoke(r.t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{}`)})
	return err == nil && out.FunctionError == nil
}

// until waits for something, and fails if it never comes: an event may have to
// wait for its second retry, which comes three minutes after its first try.
func (r *region) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.Now().Add(6 * time.Minute)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		if time.Now().After(late) {
			t.Fatalf("waited in vain: %s\n%s", what, r.up.stderr)
		}
		<-look.C
	}
}
