package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"

	"thaw/cache"
	"thaw/host"
	"thaw/sdkhttp"
)

// killsEach is how many moments each kind of process is killed at, unless
// THAW_KILLS says more, as make soak does: so many fit into some two minutes of a
// machine with two cores. Those beside invokes are killed killsBeside times for
// it. THAW_KILLS_SEED repeats a run's.
const killsEach, killsBeside = 15, 5

// client gives the SDK's client, which tries nothing twice.
func (r *region) client(t *testing.T) *lambda.Client {
	t.Helper()
	return r.clientOver(t, sdkhttp.Client())
}

func (r *region) clientOver(t *testing.T, over *http.Client) *lambda.Client {
	t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(r.must("env", "--json")), &vars); err != nil {
		t.Fatal(err)
	}
	return lambda.New(lambda.Options{
		Region: vars["AWS_REGION"], BaseEndpoint: aws.String(r.endpoint), Retryer: aws.NopRetryer{}, HTTPClient: over,
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
				if verb := string(arg); slices.Contains(platformRoles, verb) || verb == "metrics" {
					all[verb], _ = strconv.Atoi(word)
				}
			}
		}
	}
	return all
}

// role gives the process of one of a platform's roles, once it runs.
func (r *region) role(t *testing.T, name string) (pid int) {
	t.Helper()
	r.until(t, name+" runs", func() bool {
		pid = children(r.up.cmd.Process.Pid)[name]
		return pid != 0
	})
	return pid
}

// platformRoles are what thaw up runs; with --metrics, one more.
var platformRoles = []string{"zone", "cluster", "builder", "manager", "worker", "frontend"}

// victims are what is killed: what thaw up runs, an instance's first process, and
// the function's own. Those beside are what gives Prometheus the numbers, an agent,
// and the fetcher of one that reads an image which is not in the cache.
var (
	victims       = append(slices.Clone(platformRoles), "init", "function")
	victimsBeside = []string{"metrics", "agent", "fetcher"}
)

// load invokes a function again and again, and queues events for another.
type load struct {
	c         *lambda.Client
	over      *http.Client // of c
	stop      chan struct{}
	work      errgroup.Group
	good, bad atomic.Int64
	door      atomic.Int64 // odd while the frontend is away

	mu       sync.Mutex      // guards what follows
	accepted int             // events
	awaited  map[string]bool // what the function is to say of those that it was not seen to say yet
}

func newLoad(t *testing.T, r *region) *load {
	l := &load{over: sdkhttp.Client(), stop: make(chan struct{}), awaited: map[string]bool{}}
	l.c = r.clientOver(t, l.over)
	ctx, c := t.Context(), l.c
	for range 3 {
		l.work.Go(func() error {
			return l.repeat(5*time.Millisecond, func(n int) error { return l.invoke(ctx, n%len(ways)) })
		})
	}
	l.work.Go(func() error {
		return l.repeat(200*time.Millisecond, func(n int) error {
			text := fmt.Sprintf("event %d.", n)
			in := &lambda.InvokeInput{FunctionName: aws.String("e"), InvocationType: types.InvocationTypeEvent, Payload: fmt.Appendf(nil, `{"do":{"log_text":%q}}`, text)}
			if _, err := c.Invoke(ctx, in); err == nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.accepted++
				l.awaited[text] = true
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

const (
	// killedTimeout is the function's timeout, in seconds: a machine that is slow may
	// need a while for an init within an invoke, and what hangs is told by it.
	killedTimeout = "60"
	// invokeLimit is far more than that, and less than nothing ever ends by itself.
	invokeLimit = 4 * time.Minute
)

// killedAnswer is what an invoke was answered; failed: by a function's error.
type killedAnswer struct {
	body   string
	failed bool
	id     string
}

// ways are how an invoke may ask for its answer.
var ways = []func(context.Context, *lambda.Client) (killedAnswer, error){
	func(ctx context.Context, c *lambda.Client) (killedAnswer, error) {
		return invokeOnce(ctx, c, types.LogTypeNone)
	},
	func(ctx context.Context, c *lambda.Client) (killedAnswer, error) {
		return invokeOnce(ctx, c, types.LogTypeTail)
	},
	streamOnce,
}

func invokeOnce(ctx context.Context, c *lambda.Client, log types.LogType) (killedAnswer, error) {
	out, err := c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"n":1}`), LogType: log})
	if err != nil {
		return killedAnswer{}, err
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	return killedAnswer{string(out.Payload), out.FunctionError != nil, id}, nil
}

// streamOnce takes a stream for whole that says so at its end. One that was cut
// looks to be over without an error: smithy-go 1.28 makes an end of each
// io.ErrUnexpectedEOF (internal/eventstream, isEOF).
func streamOnce(ctx context.Context, c *lambda.Client) (a killedAnswer, err error) {
	out, err := c.InvokeWithResponseStream(ctx, &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f"), Payload: []byte(`{"n":1}`)})
	if err != nil {
		return a, err
	}
	a.id, _ = awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	stream, whole := out.GetStream(), false
	defer stream.Close()
	for e := range stream.Events() {
		switch e := e.(type) {
		case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
			a.body += string(e.Value.Payload)
		case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
			whole = true
			switch code := aws.ToString(e.Value.ErrorCode); code {
			case "":
			case "ServiceException":
				return a, &smithy.GenericAPIError{Code: code, Message: aws.ToString(e.Value.ErrorDetails)}
			default:
				a.body, a.failed = aws.ToString(e.Value.ErrorDetails), true
			}
		}
	}
	if err = stream.Err(); err == nil && !whole {
		err = io.ErrUnexpectedEOF
	}
	return a, err
}

// leave says that the frontend is about to be killed, and back that it answers
// again: a connection that was cut then is used no more.
func (l *load) leave() { l.door.Add(1) }

func (l *load) back() {
	l.over.CloseIdleConnections()
	l.door.Add(1)
}

// invoke fails if an answer is wrong, late, or none of Lambda's: which it is
// unless the frontend was away meanwhile.
func (l *load) invoke(ctx context.Context, way int) error {
	began, door := time.Now(), l.door.Load()
	out, err := ways[way](ctx, l.c)
	cut := door%2 == 1 || door != l.door.Load()
	switch api := smithy.APIError(nil); {
	case err == nil && !out.failed && out.body == `{"n":1}`:
		l.good.Add(1)
	case err == nil && out.failed && strings.Contains(out.body, `"errorType":"Runtime.ExitError"`):
		l.bad.Add(1) // its instance was killed
	case err == nil && out.id == "" && cut:
		l.bad.Add(1) // no frontend's: another test has its port until it is back
	case err == nil:
		return fmt.Errorf("a wrong answer: %q, failed %v, request %s, asked for by way %d at %v", out.body, out.failed, out.id, way, began)
	case errors.As(err, &api):
		l.bad.Add(1)
	case cut && (errors.As(err, new(*net.OpError)) || strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), idleClosed)):
		l.bad.Add(1) // nobody is there to say it
	default:
		return fmt.Errorf("asked for by way %d at %v: %w", way, began, err)
	}
	if took := time.Since(began); took > invokeLimit {
		return fmt.Errorf("an invoke took %v", took)
	}
	return nil
}

// idleClosed is net/http's error for a connection that was ended while a request
// was about to use it, for which it has no value that others could know.
const idleClosed = "server closed idle connection"

// said takes what the function has said, and tells whether that is all it is to say.
func (l *load) said(log string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.awaited, func(text string, _ bool) bool { return strings.Contains(log, text) })
	return len(l.awaited) == 0
}

// Whatever is killed while a function is invoked again and again, with its log,
// without, and as a stream: each invoke ends in time, with an answer or with an
// error of Lambda's shape; soon all is
// well again; every event that was accepted is tried; and nothing is left.
func TestPlatformKill(t *testing.T) {
	r := newRegion(t, "--nodes=5", "--metrics=127.0.0.1:0")
	for _, name := range []string{"f", "e"} { // e is for events: what is read of a log at once is bounded
		r.must("deploy", name, sampleLayout(t, "OF="+name), "--command", "/function", "--timeout", killedTimeout) // each has its agent
	}
	kills, seed := numberOf(t, "THAW_KILLS", killsEach), numberOf(t, "THAW_KILLS_SEED", rand.Uint64())
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	l := newLoad(t, r)
	r.up.late.Reset(upLife + time.Duration(kills)*time.Minute)
	away := map[string][]time.Duration{}
	for n := range kills {
		// An event whose instance is killed is tried again a minute later, which is
		// not to be waited for in the end.
		of := []string{"e", "f"}
		if n > kills/5 {
			of = of[1:]
		}
		now := victims
		if n*killsBeside/killsEach < (n+1)*killsBeside/killsEach {
			now = slices.Concat(victims, victimsBeside)
		}
		for _, i := range draw.Perm(len(now)) {
			name := now[i]
			away[name] = append(away[name], r.kill(t, l, draw, name, of))
		}
		if e := r.thaw("logs", "e"); e.code == 0 {
			l.said(e.out) // now: it is more than what is read at once in the end
		}
	}
	close(l.stop)
	if err := l.work.Wait(); err != nil {
		t.Error(err)
	}
	for name, times := range away {
		slices.Sort(times)
		t.Logf("%-9s killed %d times, invokes worked again after %v in the middle, %v at most", name, len(times), times[len(times)/2].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
	}
	t.Logf("%d invokes were answered, %d refused; %d events were accepted", l.good.Load(), l.bad.Load(), l.accepted)
	if l.good.Load() == 0 || l.accepted == 0 {
		t.Error("nothing was invoked")
	}
	r.until(t, "every event that was accepted is tried", func() bool {
		e := r.thaw("logs", "e")
		return e.code == 0 && l.said(e.out)
	})
	if out := r.must("events", "--json"); out != "" {
		t.Errorf("events were given up: %s", out)
	}
	r.until(t, "the zone's nodes are where others look for them", func() bool {
		return r.thaw("--zone="+r.zone(t), "zone", "status").code == 0
	})
}

// numberOf is what a variable says, or else the usual.
func numberOf[N int | uint64](t *testing.T, name string, usual N) N {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return N(n)
}

// kill kills a role, or a process of an instance of one of some functions or
// behind it, some time after an invoke was answered, waits until that is there
// again and invokes are answered, and tells how long that took.
func (r *region) kill(t *testing.T, l *load, draw *rand.Rand, name string, of []string) time.Duration {
	t.Helper()
	if name == "frontend" {
		l.leave()
		defer l.back()
	}
	r.until(t, "invokes work before "+name+" is killed", func() bool { return r.works(l.c) })
	if name == "fetcher" { // it is to have something to do
		r.forget(t, of)
	}
	<-time.NewTimer(time.Duration(draw.IntN(300)) * time.Millisecond).C
	pid := 0
	r.until(t, "a "+name+" runs", func() bool {
		all := r.pidsOf(t, name, of)
		if len(all) > 0 {
			pid = all[draw.IntN(len(all))]
		}
		return len(all) > 0
	})
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("killing %s: %v", name, err)
	}
	if name != "init" && name != "function" {
		r.until(t, name+" is there again", func() bool {
			all := r.pidsOf(t, name, of)
			return len(all) > 0 && !slices.Contains(all, pid)
		})
	}
	r.until(t, "invokes work after "+name+" was killed", func() bool { return r.works(l.c) })
	if name == "metrics" {
		r.until(t, "the roles' numbers are to be had", func() bool { return r.rolesUp() >= len(platformRoles)-1 }) // the zone may tell its own
	}
	return time.Since(began)
}

// pidsOf lists processes of a kind: a role, or those of instances of some
// functions and behind them.
func (r *region) pidsOf(t *testing.T, name string, of []string) (pids []int) {
	t.Helper()
	switch name {
	case "init", "function":
		return r.inside(name, of)
	case "agent", "fetcher":
		n := r.numbers(t)
		if name == "fetcher" {
			for _, f := range n.Fetchers {
				if !errors.Is(f.Err, os.ErrProcessDone) {
					pids = append(pids, f.PID)
				}
			}
			return pids
		}
		return agentsOf(n, of)
	}
	if pid := children(r.up.cmd.Process.Pid)[name]; pid != 0 {
		pids = []int{pid}
	}
	return pids
}

// numbers are what the worker's processes say of themselves.
func (r *region) numbers(t *testing.T) host.Numbers {
	t.Helper()
	h, err := host.Open(r.state)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	n, err := h.Ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// agentsOf gives the processes that serve the images of instances of functions.
func agentsOf(n host.Numbers, of []string) (pids []int) {
	for _, image := range n.Images {
		used := slices.ContainsFunc(n.Instances, func(i host.Instance) bool {
			return i.ImageOf == image.Key && i.Kind == host.KindFunction && slices.ContainsFunc(of, func(f string) bool {
				return len(i.Command) > 0 && strings.Contains(i.Command[0], ":function:"+f+":")
			})
		})
		if used && !errors.Is(image.Err, os.ErrProcessDone) {
			pids = append(pids, image.PID)
		}
	}
	return pids
}

// forget empties the worker's cache, and kills the agents of functions, so that
// what starts next reads all anew.
func (r *region) forget(t *testing.T, of []string) {
	t.Helper()
	folder, err := cache.OpenFolder(filepath.Join(r.state, "cache"), gib)
	if err == nil {
		_, err = folder.Empty(t.Context(), true)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range r.pidsOf(t, "agent", of) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// rolesUp counts the roles of which there are numbers to be had.
func (r *region) rolesUp() int {
	res, err := http.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	if err != nil {
		return 0
	}
	up := 0
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "thaw_role_up{") && strings.HasSuffix(line, " 1\n") {
			up++
		}
	}
	return up
}

// inside lists processes in instances of some functions: those that run the
// function, or the first ones.
func (r *region) inside(name string, of []string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, dir := range dirs {
		group, _ := os.ReadFile(dir + "/cgroup") // it may have ended
		env, _ := os.ReadFile(dir + "/environ")
		if !strings.Contains(string(group), "/thaw-"+filepath.Base(r.runDir())+"-") || !slices.ContainsFunc(of, func(f string) bool { return bytes.Contains(env, []byte("AWS_LAMBDA_FUNCTION_NAME="+f+"\x00")) }) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if name == "init" {
			stat, _ := os.ReadFile(dir + "/stat")
			_, rest, _ := strings.Cut(string(stat), ") ") // behind the name are the state and the parent
			if _, err := fmt.Sscanf(rest, "%s %d", new(string), &pid); err != nil {
				continue
			}
			if parents, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !bytes.Equal(parents, group) {
				continue // its parent has ended, and somebody else has it
			}
		}
		pids = append(pids, pid)
	}
	return pids
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
	look := time.NewTicker(50 * time.Millisecond) // several tests of one account ask, which is held to a rate
	defer look.Stop()
	for !ok() {
		if time.Now().After(late) {
			t.Fatalf("waited in vain: %s\n%s", what, r.up.stderr)
		}
		<-look.C
	}
}
