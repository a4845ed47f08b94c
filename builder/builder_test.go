package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/functions"
)

const (
	token   = "a token of tests, long enough"
	account = "000000000000"
)

const (
	// longTTL is for builders that do not die: this machine may be slow to renew.
	longTTL = 30 * time.Second
	// shortTTL is for those that wait for one that has died.
	shortTTL = time.Second
)

// fleet is a cluster with the records that builders need.
type fleet struct {
	t     *testing.T
	url   string
	ttl   time.Duration // of leases
	store *functions.Store
}

func newFleet(t *testing.T) *fleet { return newFleetFor(t, longTTL) }

func newFleetFor(t *testing.T, ttl time.Duration) *fleet {
	t.Helper()
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: t.TempDir(), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &fleet{t: t, url: s.URL(), ttl: ttl}
	o, closeAll, err := connect(t.Context(), f.url, ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeAll)
	f.store = o.Functions
	return f
}

// connect gives what a builder is made of, for processes too.
func connect(ctx context.Context, url string, ttl time.Duration) (Options, func(), error) {
	c, err := cluster.Dial(ctx, url, token)
	if err != nil {
		return Options{}, nil, err
	}
	o := Options{TTL: ttl, pause: 10 * time.Millisecond, every: 10 * time.Millisecond}
	records, err := c.Records(ctx, "functions")
	if err == nil {
		o.Functions = functions.NewStore(records)
		o.Records, err = c.Records(ctx, "builds")
	}
	if err == nil {
		o.Leases, err = c.Leases(ctx, "leases", ttl)
	}
	return o, c.Close, err
}

// start runs a builder until the test or stop ends it.
func (f *fleet) start(change func(*Options)) (stop func()) {
	f.t.Helper()
	o, closeAll, err := connect(f.t.Context(), f.url, f.ttl)
	if err != nil {
		f.t.Fatal(err)
	}
	o.ID = "builder"
	change(&o)
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- New(o).Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("builder: %v", err)
		}
		closeAll()
	}
	f.t.Cleanup(stop)
	return stop
}

func (f *fleet) create(name string) functions.ID {
	f.t.Helper()
	id := functions.ID{Account: account, Name: name}
	v := functions.Version{Package: functions.Package{ImageURI: "registry.test/" + name + ":v1"}}
	if err := f.store.Create(f.t.Context(), functions.NewFunction(id, v, time.Now()), false); err != nil {
		f.t.Fatal(err)
	}
	return id
}

// wait polls a function until it is as wanted.
func (f *fleet) wait(id functions.ID, what string, as func(*functions.Version) bool) *functions.Version {
	f.t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		fn, err := f.store.Get(f.t.Context(), id)
		if err != nil {
			f.t.Fatal(err)
		}
		if as(&fn.Latest) {
			return &fn.Latest
		}
		if time.Now().After(deadline) {
			v := &fn.Latest
			f.t.Fatalf("%s is not %s: %s %s %q %s", id, what, v.State, v.StateReasonCode, v.StateReason, v.LastUpdateStatus)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func active(v *functions.Version) bool { return v.State == functions.Active && v.Build == "" }
func failed(v *functions.Version) bool { return v.State == functions.Failed }

var built = functions.Result{Image: "image", Root: "r1", CodeSha256: "abc", CodeSize: 7}

func TestBuild(t *testing.T) {
	f := newFleet(t)
	before := f.create("before")
	proceed := make(chan struct{})
	f.start(func(o *Options) {
		o.Convert = func(ctx context.Context, j *Job) (functions.Result, error) {
			if err := j.Resolve(ctx, "registry.test/x@sha256:00"); err != nil {
				return functions.Result{}, err
			}
			j.Report("Half of it is done.")
			<-proceed
			return built, nil
		}
	})
	f.wait(before, "reporting", func(v *functions.Version) bool { return v.StateReason == "Half of it is done." })
	close(proceed)
	v := f.wait(before, "active", active)
	if v.Package.Image != "image" || v.Package.Root != "r1" || v.CodeSha256 != "abc" || v.CodeSize != 7 || v.Package.ResolvedURI != "registry.test/x@sha256:00" {
		t.Errorf("got %+v", v)
	}
	f.wait(f.create("after"), "active", active)
}

func TestRefusal(t *testing.T) {
	f := newFleet(t)
	var tries atomic.Int64
	f.start(func(o *Options) {
		o.Convert = func(context.Context, *Job) (functions.Result, error) {
			tries.Add(1)
			return functions.Result{}, fmt.Errorf("looking at it: %w", Refuse(InvalidImage, "It is for %s.", "arm64"))
		}
	})
	v := f.wait(f.create("f"), "failed", failed)
	if v.StateReasonCode != InvalidImage || v.StateReason != "It is for arm64." || tries.Load() != 1 {
		t.Errorf("%s: %q after %d tries", v.StateReasonCode, v.StateReason, tries.Load())
	}
}

func TestTriesAreBounded(t *testing.T) {
	f := newFleet(t)
	var tries atomic.Int64
	f.start(func(o *Options) {
		o.Tries = 3
		o.Convert = func(_ context.Context, j *Job) (functions.Result, error) {
			if tries.Add(1) == 2 && j.Name == "better" {
				return built, nil
			}
			return functions.Result{}, errors.New("the registry\nis away")
		}
	})
	f.wait(f.create("better"), "active", active)
	tries.Store(10)
	v := f.wait(f.create("never"), "failed", failed)
	if v.StateReasonCode != InternalError || v.StateReason != "Given up after 3 tries: the registry is away." || tries.Load() != 13 {
		t.Errorf("%s: %q after %d tries", v.StateReasonCode, v.StateReason, tries.Load()-10)
	}
}

// TestOneOfSeveral has three builders share thirty functions.
func TestOneOfSeveral(t *testing.T) {
	f := newFleet(t)
	const n = 30
	var conversions, at, most atomic.Int64
	for i := range 3 {
		f.start(func(o *Options) {
			o.ID = fmt.Sprint("builder", i)
			o.Convert = func(context.Context, *Job) (functions.Result, error) {
				conversions.Add(1)
				if now := at.Add(1); now > most.Load() {
					most.Store(now)
				}
				defer at.Add(-1)
				<-time.After(5 * time.Millisecond)
				return built, nil
			}
		})
	}
	var ids []functions.ID
	for i := range n {
		ids = append(ids, f.create(fmt.Sprint("f", i)))
	}
	for _, id := range ids {
		f.wait(id, "active", active)
	}
	if conversions.Load() != n || most.Load() > 3 {
		t.Errorf("%d conversions for %d functions, up to %d at once", conversions.Load(), n, most.Load())
	}
}

// TestChangedMeanwhile ends a build that is not wanted any more.
func TestChangedMeanwhile(t *testing.T) {
	f := newFleet(t)
	begun, ended := make(chan bool, 2), make(chan error, 2)
	f.start(func(o *Options) {
		o.Convert = func(ctx context.Context, j *Job) (functions.Result, error) {
			if j.Version.Package.ImageURI == "second" {
				return built, nil
			}
			begun <- true
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return functions.Result{}, ctx.Err()
		}
	})
	id := f.create("deleted")
	<-begun
	if err := f.store.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, errUnwanted) {
		t.Errorf("ended by %v", err)
	}
	id = f.create("again")
	<-begun
	if _, err := f.store.Update(t.Context(), id, func(fn *functions.Function) error {
		fn.Latest.Build, fn.Latest.Package.ImageURI = "another", "second"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.wait(id, "active", active)
}

// TestStopped ends a builder in the middle, again and again, which uses up no
// tries: the last one goes on.
func TestStopped(t *testing.T) {
	f := newFleet(t)
	id := f.create("f")
	for range defaultTries + 1 {
		begun := make(chan struct{}, 1)
		stop := f.start(func(o *Options) {
			o.Convert = func(ctx context.Context, _ *Job) (functions.Result, error) {
				begun <- struct{}{}
				<-ctx.Done()
				return functions.Result{}, ctx.Err()
			}
		})
		<-begun
		stop()
	}
	f.start(func(o *Options) {
		o.Convert = func(context.Context, *Job) (functions.Result, error) { return built, nil }
	})
	f.wait(id, "active", active)
}

// Variables of the process that TestKilled starts.
const (
	childURL = "BUILDER_TEST_URL"
	childDo  = "BUILDER_TEST_DO" // hang or die
)

func TestMain(m *testing.M) {
	url := os.Getenv(childURL)
	if url == "" {
		os.Exit(m.Run())
	}
	o, closeAll, err := connect(context.Background(), url, shortTTL)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer closeAll()
	o.ID = "child"
	o.Convert = func(context.Context, *Job) (functions.Result, error) {
		if os.Getenv(childDo) == "die" {
			os.Exit(9)
		}
		fmt.Println("begun")
		select {}
	}
	if err := New(o).Run(context.Background()); err != nil {
		fmt.Println(err)
	}
}

func (f *fleet) child(do string) *exec.Cmd {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), childURL+"="+f.url, childDo+"="+do)
	return c
}

// TestKilled kills a builder at work: another takes its function over once the
// lease has ended.
func TestKilled(t *testing.T) {
	f := newFleetFor(t, shortTTL)
	c := f.child("hang")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	id := f.create("f")
	line := make([]byte, 64)
	n, err := out.Read(line)
	_ = c.Process.Kill() // it hangs
	_ = c.Wait()
	if err != nil || !strings.HasPrefix(string(line[:n]), "begun") {
		t.Fatalf("the child says %q, %v", line[:n], err)
	}
	f.start(func(o *Options) {
		o.Convert = func(context.Context, *Job) (functions.Result, error) { return built, nil }
	})
	f.wait(id, "active", active)
}

// TestKillsItsBuilder has a function that ends every builder: it is not tried
// for ever.
func TestKillsItsBuilder(t *testing.T) {
	f := newFleetFor(t, shortTTL)
	id := f.create("f")
	for range defaultTries {
		c := f.child("die")
		if out, err := c.CombinedOutput(); c.ProcessState.ExitCode() != 9 {
			t.Fatalf("%v: %s", err, out)
		}
	}
	f.start(func(o *Options) {
		o.Convert = func(context.Context, *Job) (functions.Result, error) {
			t.Error("it is tried again")
			return built, nil
		}
	})
	if v := f.wait(id, "failed", failed); v.StateReasonCode != InternalError || !strings.Contains(v.StateReason, "4 tries") {
		t.Errorf("%s: %s", v.StateReasonCode, v.StateReason)
	}
}
