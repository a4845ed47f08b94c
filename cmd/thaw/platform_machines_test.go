package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"thaw/fleet"
	"thaw/invokewire"
	"thaw/sdkhttp"
)

// Addresses of two machines, in network namespaces of their own.
const firstHost, secondHost = "10.77.0.1", "10.77.0.2"

// newLink gives two network namespaces that are linked, as files.
func newLink(t *testing.T) (first, second string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: network namespaces need root")
	}
	files, handles := [2]string{}, [2]*netlink.Handle{}
	var last netns.NsHandle
	for i := range files {
		files[i] = filepath.Join(t.TempDir(), "net")
		try(t, os.WriteFile(files[i], nil, 0o600))
		if out, err := exec.Command("unshare", "--net="+files[i], "true").CombinedOutput(); err != nil {
			t.Fatalf("unshare: %v: %s", err, out)
		}
		t.Cleanup(func() { try(t, syscall.Unmount(files[i], syscall.MNT_DETACH)) })
		ns, err := netns.GetFromPath(files[i])
		try(t, err)
		t.Cleanup(func() { try(t, ns.Close()) })
		handles[i], err = netlink.NewHandleAt(ns)
		try(t, err)
		t.Cleanup(handles[i].Close)
		last = ns
	}
	try(t, handles[0].LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "other", PeerNamespace: netlink.NsFd(last)}))
	for i, host := range []string{firstHost, secondHost} {
		for name, address := range map[string]string{"lo": "", "other": host + "/24"} {
			link, err := handles[i].LinkByName(name)
			try(t, err)
			if address != "" {
				a, err := netlink.ParseAddr(address)
				try(t, errors.Join(err, handles[i].AddrAdd(link, a)))
			}
			try(t, handles[i].LinkSetUp(link))
		}
	}
	return files[0], files[1]
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within calls f in a network namespace: a socket belongs to that of the thread
// which makes it.
func within(file string, f func() error) (err error) {
	var work sync.WaitGroup
	work.Go(func() {
		runtime.LockOSThread() // and it ends with the goroutine
		ns, nerr := netns.GetFromPath(file)
		if err = nerr; err != nil {
			return
		}
		defer ns.Close()
		if err = netns.Set(ns); err == nil {
			err = f()
		}
	})
	work.Wait()
	return err
}

// dialIn gives what dials in a network namespace.
func dialIn(file string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = within(file, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// newFirst brings a platform up in a network namespace, with flags more, that other
// machines may join, and gives a client of it that is on the machine.
func newFirst(t *testing.T, file string, more ...string) (*region, *lambda.Client) {
	t.Helper()
	m := newMachine(t)
	m.net = file
	r := &region{machine: m, up: m.start(append([]string{"up", "--listen=" + firstHost + ":0", "--fleet=" + firstHost + ":0", "--registry=127.0.0.1:0", "--nodes=0", "--budget=4GiB"}, more...)...)}
	r.up.late.Reset(upLife)
	t.Cleanup(r.down)
	r.ready(t)
	var vars map[string]string
	try(t, json.Unmarshal([]byte(r.must("env", "--json")), &vars))
	ca, err := os.ReadFile(vars["AWS_CA_BUNDLE"])
	try(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) || !strings.HasPrefix(vars["AWS_ENDPOINT_URL"], "https://"+firstHost+":") {
		t.Fatalf("the door is %s, with an authority of %d bytes", vars["AWS_ENDPOINT_URL"], len(ca))
	}
	client := sdkhttp.Client(func(t *http.Transport) {
		t.DialContext = dialIn(file)
		t.TLSClientConfig.RootCAs = roots
	})
	t.Cleanup(client.CloseIdleConnections)
	return r, lambda.New(lambda.Options{
		Region: vars["AWS_REGION"], BaseEndpoint: aws.String(vars["AWS_ENDPOINT_URL"]), Retryer: aws.NopRetryer{}, HTTPClient: client,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: vars["AWS_ACCESS_KEY_ID"], SecretAccessKey: vars["AWS_SECRET_ACCESS_KEY"]}, nil
		}),
	})
}

// workers are those of the fleet, by their ids, as thaw fleet lists them.
func (r *region) workers() map[string]invokewire.WorkerState {
	r.t.Helper()
	all := map[string]invokewire.WorkerState{}
	for line := range strings.Lines(r.must("fleet", "--json")) {
		var w invokewire.WorkerState
		try(r.t, json.Unmarshal([]byte(line), &w))
		all[w.ID] = w
	}
	return all
}

// known tells what is not so yet of the second worker's address; "" if it is not
// known. Both machines have the same host name.
func known(r *region, ok func(address string) bool) func() error {
	return func() error {
		a := ""
		for _, w := range r.workers() {
			if strings.HasPrefix(w.Address, secondHost+":") {
				a = w.Address
			}
		}
		if !ok(a) {
			return fmt.Errorf("its address is %q", a)
		}
		return nil
	}
}

// joinSecond makes a machine in another network namespace one of the fleet.
func joinSecond(t *testing.T, r *region, file string) *machine {
	t.Helper()
	m := newMachine(t)
	m.net = file
	m.flags = []string{"--origin=" + fileURL(r.state, "origin")}
	invitation := filepath.Join(t.TempDir(), "second.json")
	r.must("fleet", "invite", "--host="+secondHost, invitation)
	if info, err := os.Stat(invitation); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the invitation: %v, %v", info, err)
	}
	m.must("fleet", "join", invitation)
	m.must("fleet", "join", invitation) // again, as to renew
	m.refused(t, "without the key", "no key at", "worker")
	data, err := os.ReadFile(filepath.Join(r.state, "keys", "default"))
	try(t, errors.Join(err, os.MkdirAll(filepath.Dir(m.key()), 0o700), os.WriteFile(m.key(), data, 0o600)))
	return m
}

// key is the file of the tenant's key.
func (m *machine) key() string { return filepath.Join(m.state, "keys", "default") }

// refused wants a command to fail with one line, behind warnings of a slow machine.
func (m *machine) refused(t *testing.T, what, want string, args ...string) {
	t.Helper()
	e := m.thaw(args...)
	said := slices.DeleteFunc(slices.Collect(strings.Lines(e.stderr)), func(line string) bool { return strings.Contains(line, "level=WARN") })
	if e.code != 1 || len(said) != 1 || !strings.Contains(said[0], want) {
		t.Errorf("%s: status %d: %s", what, e.code, e.stderr)
	}
}

// until3 waits for something, for as long as a slow machine may take.
func (r *region) until3(what string, done func() error) {
	r.t.Helper()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	late := time.After(3 * time.Minute)
	for err := done(); err != nil; err = done() {
		select {
		case <-look.C:
		case <-late:
			r.t.Fatalf("waited three minutes: %s: %v", what, err)
		}
	}
}

// A worker in a second network namespace joins over mutual TLS, takes load, is
// killed, and its load moves. One that cannot start anything does not run, or is
// no harm. Whoever has no certificate of the fleet does not
// get in. Nothing is left.
func TestPlatformMachines(t *testing.T) {
	here, there := newLink(t)
	office := newOffice(t, there)
	r, c := newFirst(t, here, "--allow="+secondHost+"/32", "--ca-bundle="+office.ca)
	r.must("deploy", "f", sampleLayout(t), "--command", "/function", "--timeout", "10", "--memory", "256")
	office.reached(t, r)
	second := joinSecond(t, r, there)
	strangers(t, r, there)
	alone(t, r, c, second)
	worker := second.start("worker", "--memory=2GiB")
	worker.late.Reset(upLife)
	address := worker.line()
	if !strings.HasPrefix(address, secondHost+":") {
		t.Fatalf("the second worker listens at %s: %+v", address, worker.wait())
	}
	r.until3("the second worker is known", known(r, func(a string) bool { return a == address }))
	overPlain(t, there, address)

	stray := joinSecond(t, r, there)
	stray.flags = nil
	stray.refused(t, "without the origin", "is what it is on mounted?", "worker")
	versions := spread(t, r, c)
	t.Logf("%d versions run on two workers", len(versions))
	l := &moving{c: c, versions: versions, stop: make(chan struct{})}
	for range 2 {
		l.work.Go(func() { l.run(t) })
	}
	r.until3("the load is answered", l.answered(20))
	try(t, worker.cmd.Process.Kill())
	worker.wait()
	r.until3("the dead worker is forgotten", known(r, func(a string) bool { return a == "" }))
	r.until3("the load goes on", l.answered(4*len(versions)))
	close(l.stop)
	l.work.Wait()
	t.Logf("%d invokes were answered, %d refused", l.good.Load(), l.bad.Load())
	for _, v := range versions {
		r.until3("version "+v+" answers from the first worker", func() error { return invokes(t.Context(), c, v) })
	}
	for _, w := range r.workers() {
		has := map[string]bool{}
		for _, i := range w.Instances {
			has[i.Version] = true
		}
		if len(has) < len(versions) {
			t.Errorf("%s has %v of versions %q", w.ID, has, versions)
		}
	}
	r.must("base", "add", sampleLayout(t), "--name", "ours")
	again := second.start("worker", "--memory=2GiB", "--pin-size=1MiB") // ends what its predecessor has left
	if line := again.line(); !strings.HasPrefix(line, secondHost+":") {
		t.Errorf("started again it says %q", line)
	}
	r.until3("the second worker is back", known(r, func(a string) bool { return a != "" }))
	r.until3("it keeps what it may of the base image that was added before it came", r.kept(mib))
	try(t, os.Remove(second.key()))
	v := publish(t, r, c, 100)
	r.until3("a version answers", func() error {
		err := invokes(t.Context(), c, v)
		if err != nil && strings.Contains(err.Error(), "could not be started") {
			t.Error(err) // on the second worker, where no start succeeds
		}
		return err
	})
	try(t, again.cmd.Process.Kill())
	again.wait()
	if out := second.must("prune"); !strings.Contains(out, "removed network thaw-") {
		t.Errorf("pruned %q", out)
	}
}

// alone runs a door and a builder on the second machine, each by its verb, while
// the first machine's builder stands still: a function is ordered at that door,
// made by that builder, and answers there.
func alone(t *testing.T, r *region, c *lambda.Client, second *machine) {
	t.Helper()
	first := r.role(t, "builder")
	stop(t, first)
	defer func() { try(t, syscall.Kill(first, syscall.SIGCONT)) }()
	roles := map[string]*running{"frontend": second.start("frontend", "--listen="+secondHost+":0"), "builder": second.start("builder")}
	said := map[string]string{}
	for name, role := range roles {
		if said[name] = role.line(); strings.Contains(said[name], "(EOF)") {
			t.Fatalf("%s alone: %+v", name, role.wait())
		}
	}
	if !strings.HasPrefix(said["frontend"], secondHost+":") || !strings.HasPrefix(said["builder"], "127.0.0.1:") {
		t.Errorf("they listen at %q", said)
	}
	there := func(o *lambda.Options) { o.BaseEndpoint = aws.String("https://" + said["frontend"]) }
	_, err := c.CreateFunction(t.Context(), &lambda.CreateFunctionInput{
		FunctionName: aws.String("alone"), Role: aws.String(usualRoleOfTests), PackageType: types.PackageTypeImage, Timeout: aws.Int32(60),
		Code: &types.FunctionCode{ImageUri: aws.String(sampleLayout(t))}, ImageConfig: &types.ImageConfig{EntryPoint: []string{"/function"}},
	}, there)
	try(t, err)
	r.until3("a function answers at the second door", func() error {
		out, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("alone"), Payload: []byte(`{"n":1}`)}, there)
		if err == nil && string(out.Payload) != `{"n":1}` {
			err = fmt.Errorf("it answers %s", out.Payload)
		}
		return err
	})
	for name, role := range roles {
		try(t, role.cmd.Process.Signal(syscall.SIGTERM))
		if e := role.wait(); e.code != 0 && e.code != exitInterrupted {
			t.Errorf("%s alone ended with status %d: %s", name, e.code, e.stderr)
		}
	}
}

// kept tells whether the two workers have all that they are to have of the base
// image that was added: one of them no more than a budget.
func (r *region) kept(budget int64) func() error {
	return func() error {
		var base basesOf
		if err := json.Unmarshal([]byte(r.must("base", "list", "--json")), &base); err != nil {
			return err
		}
		whole, part := 0, 0
		for _, w := range base.Workers {
			switch {
			case w.Missing != 0 || w.Error != "":
			case w.Left == 0 && w.Pinned > budget:
				whole++
			case w.Left > 0 && w.Pinned > 0 && w.Pinned <= budget:
				part++
			}
		}
		if whole != 1 || part != 1 {
			return fmt.Errorf("%+v", base.Workers)
		}
		return nil
	}
}

// A machine joins what can be reached, has no platform of its own then, and
// leaves once its roles have ended.
func TestFleetMember(t *testing.T) {
	here, there := newLink(t)
	first, second := newMachine(t), newMachine(t)
	first.net, second.net = here, there
	refused := func(m *machine, want string, args ...string) {
		t.Helper()
		m.refused(t, strings.Join(args, " "), want, args...)
	}
	records := first.start("cluster", "--listen="+firstHost+":0")
	at, ok := strings.CutPrefix(records.line(), "tls://")
	if !ok {
		t.Fatalf("no records: %+v", records.wait())
	}
	good, bad := filepath.Join(t.TempDir(), "good"), filepath.Join(t.TempDir(), "bad")
	first.must("fleet", "invite", "--cluster=tls://"+at, good)
	first.must("fleet", "invite", "--cluster=tls://"+firstHost+":1", bad)
	refused(second, "nobody answers at tls://"+firstHost+":1", "fleet", "join", bad)
	if out := second.must("fleet", "leave"); out != "this machine has joined no fleet\n" {
		t.Error(out)
	}
	second.must("fleet", "join", good)
	refused(first, "began here", "fleet", "join", good)
	refused(second, "has joined the fleet of "+at+": ", "up")
	refused(second, "no platform runs with this --state: this machine has joined the fleet of "+at+": ask", "functions")
	role := second.start("manager")
	if address := role.line(); !strings.HasPrefix(address, secondHost+":") {
		t.Fatalf("the manager listens at %s: %+v", address, role.wait())
	}
	metrics := func() error {
		if out := second.must("metrics", "--once"); !strings.Contains(out, "thaw_role_up") {
			return errors.New("the manager's numbers are not to be had")
		}
		return nil
	}
	(&region{machine: second}).until3("the manager works", metrics)
	refused(second, "roles of the fleet run with this --state, manager-", "fleet", "leave")
	try(t, role.cmd.Process.Signal(syscall.SIGTERM))
	role.wait()
	for _, want := range []string{"left the fleet of " + at, "this machine has joined no fleet"} {
		if out := second.must("fleet", "leave"); out != want+"\n" {
			t.Errorf("said %q, want %q", out, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(second.state, "fleet", "*.*")); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	try(t, os.WriteFile(filepath.Join(second.state, "fleet", "token"), []byte(strings.Repeat("0", 64)), 0o600))
	refused(second, "has a platform of its own", "fleet", "join", good)
	refused(first, "--fleet 10.0.0.5:9010 takes this port", "up", "--listen=10.0.0.5:9012", "--fleet=10.0.0.5:9010")
}

// strangers try to join.
func strangers(t *testing.T, r *region, file string) {
	t.Helper()
	var record struct{ Cluster string }
	data, err := os.ReadFile(filepath.Join(r.state, "fleet", "platform.json"))
	try(t, errors.Join(err, json.Unmarshal(data, &record)))
	token, err := os.ReadFile(filepath.Join(r.state, "fleet", "token"))
	try(t, err)
	m := newMachine(t)
	m.net = file
	refused := func(what, want string, args ...string) { t.Helper(); m.refused(t, what, want, args...) }
	dir := filepath.Join(m.state, "fleet")
	try(t, errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "token"), token, 0o600)))
	refused("without certificates", "belongs to no fleet", "worker", "--cluster="+record.Cluster)
	refused("without TLS", "has to speak TLS", "worker", "--cluster="+strings.Replace(record.Cluster, "tls://", "nats://", 1))
	refused("a door at no address", "give --tls-cert and --tls-key", "up", "--listen=0.0.0.0:0")
	junk := filepath.Join(t.TempDir(), "junk")
	try(t, os.WriteFile(junk, []byte(`{"cluster": "tls://a:1", "more": 1}`), 0o600))
	refused("with what is no invitation", "is no invitation", "fleet", "join", junk)
	try(t, fleet.Dir(dir).Certify())
	refused("with another fleet's certificate", "certificates of one fleet", "worker", "--cluster="+record.Cluster)
}

// overPlain asks a worker as a stranger does.
func overPlain(t *testing.T, file, address string) {
	t.Helper()
	for _, scheme := range []string{"http://", "https://"} {
		transport := &http.Transport{DialContext: dialIn(file), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		resp, err := (&http.Client{Transport: transport}).Get(scheme + address + "/healthz")
		if err == nil && resp.StatusCode == http.StatusOK {
			t.Errorf("%s: the worker answered a stranger", scheme)
		}
		if err == nil {
			try(t, resp.Body.Close())
		}
		transport.CloseIdleConnections()
	}
}

// publish makes a version with a number of its own.
func publish(t *testing.T, r *region, c *lambda.Client, n int) (version string) {
	t.Helper()
	r.until3("a version is published", func() error {
		in := &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Environment: &types.Environment{Variables: map[string]string{"NUMBER": fmt.Sprint(n)}}}
		if _, err := c.UpdateFunctionConfiguration(t.Context(), in); err != nil {
			return err
		}
		v, err := c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f")})
		if err == nil {
			version = *v.Version
		}
		return err
	})
	return version
}

// spread publishes versions and invokes them until both workers have instances.
func spread(t *testing.T, r *region, c *lambda.Client) (versions []string) {
	t.Helper()
	for n := range 12 {
		v := publish(t, r, c, n)
		versions = append(versions, v)
		r.until3("version "+v+" answers", func() error { return invokes(t.Context(), c, v) })
		busy := 0
		for _, w := range r.workers() {
			busy += min(1, len(w.Instances))
		}
		if busy == 2 {
			return versions
		}
	}
	t.Fatalf("all of %d versions run on one worker", len(versions))
	return nil
}

// errAnswer says that an answer is wrong.
var errAnswer = errors.New("a wrong answer")

// invokes a version, once.
func invokes(ctx context.Context, c *lambda.Client, version string) error {
	out, err := c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Qualifier: aws.String(version), Payload: []byte(`{"n":1}`)})
	switch {
	case err != nil:
		return err
	case out.FunctionError != nil: // its worker was killed
		return errors.New(string(out.Payload))
	case string(out.Payload) != `{"n":1}`:
		return fmt.Errorf("%w: %s", errAnswer, out.Payload)
	}
	return nil
}

// moving invokes versions in turn.
type moving struct {
	c         *lambda.Client
	versions  []string
	stop      chan struct{}
	work      sync.WaitGroup
	good, bad atomic.Int64
}

// answered tells whether n more invokes were answered.
func (l *moving) answered(n int) func() error {
	want := l.good.Load() + int64(n)
	return func() error {
		if good := l.good.Load(); good < want {
			return fmt.Errorf("%d invokes were answered, %d not", good, l.bad.Load())
		}
		return nil
	}
}

func (l *moving) run(t *testing.T) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		case <-pace.C:
		}
		switch err := invokes(context.Background(), l.c, l.versions[n%len(l.versions)]); {
		case err == nil:
			l.good.Add(1)
		case errors.Is(err, errAnswer):
			t.Error(err)
			return
		default:
			l.bad.Add(1) // it was on the worker that was killed
		}
	}
}
