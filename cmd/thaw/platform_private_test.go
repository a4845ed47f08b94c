package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/vishvananda/netlink"

	"thaw/fleet"
)

// serveTLS serves h at a host's address, in a network namespace or, if there is
// none, in the test's, with a certificate of the authority that is kept in a folder.
func serveTLS(t *testing.T, h http.Handler, host, namespace string, of fleet.Dir) (address string) {
	t.Helper()
	try(t, of.Certify(host))
	config, err := of.Public(host)
	try(t, err)
	var l net.Listener
	listen := func() (err error) {
		l, err = fleet.Listen(t.Context(), net.JoinHostPort(host, "0"), config)
		return err
	}
	if namespace == "" {
		err = listen()
	} else {
		err = within(namespace, listen)
	}
	try(t, err)
	s := httptest.NewUnstartedServer(h)
	try(t, s.Listener.Close())
	s.Listener, s.Config.ErrorLog = l, log.New(io.Discard, "", 0) // who does not trust it hangs up
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}

// certificates is the file of an authority that programs are to trust.
func certificates(of fleet.Dir) string { return filepath.Join(string(of), "ca.pem") }

// guarded is a registry that demands credentials: somebody's, whose password is the canary.
type guarded string // its address

// newGuarded starts one, with an image team/private:1. What is started from then on
// trusts it.
func newGuarded(t *testing.T, layout string) guarded {
	t.Helper()
	all := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "somebody" || password != canary {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		all.ServeHTTP(w, r)
	})
	of := fleet.Dir(t.TempDir())
	address := serveTLS(t, h, "127.0.0.1", "", of)
	t.Setenv("SSL_CERT_FILE", certificates(of)) // besides those in the system's folder
	push(t, layout, address+"/team/private:1", "--dest-creds=somebody:"+canary)
	return guarded(address)
}

// push copies an image into a registry, as docker push does.
func push(t *testing.T, layout, ref string, flags ...string) {
	t.Helper()
	args := append([]string{"--insecure-policy", "--tmpdir", t.TempDir(), "copy", "--dest-tls-verify=false"}, flags...)
	if out, err := exec.Command("skopeo", append(args, layout, "docker://"+ref)...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
}

// deploy deploys the function "private" from it.
func (g guarded) deploy(r *region, tag string) ended {
	return r.thaw("deploy", "private", string(g)+"/team/private:"+tag, "--command", "/function", "--memory", "256", "--timeout", "60")
}

// refused wants a deployment to fail for its credentials, and to say so in one line.
func (g guarded) refused(t *testing.T, r *region, when, tag string) {
	t.Helper()
	want := fmt.Sprintf(" %s answers 401 Unauthorized for team/private: no such image, or the credentials known for %[1]s do not allow it", string(g))
	if e := g.deploy(r, tag); e.code != 1 || strings.Count(e.stderr, "\n") != 1 || !strings.Contains(e.stderr, want) || strings.Contains(e.stderr, canary) {
		t.Errorf("%s: %+v", when, e)
	}
}

// login: an image is deployed once there are credentials for its registry, and not
// before, in the place of one that could not be.
func (g guarded) login(t *testing.T, r *region) {
	t.Helper()
	g.refused(t, r, "before login", "0")
	login := r.command("registry", "login", string(g), "-u", "somebody")
	login.Stdin = strings.NewReader(canary + "\n")
	if out, err := login.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("registry login: %s %v", out, err)
	}
	if out := r.must("registry", "list"); out != string(g)+"\n" {
		t.Errorf("registry list: %q", out)
	}
	if e := g.deploy(r, "1"); e.code != 0 {
		t.Fatalf("with credentials: %+v", e)
	}
}

// logout: credentials that were forgotten are not used, and what is deployed runs.
func (g guarded) logout(t *testing.T, r *region) {
	t.Helper()
	r.must("registry", "logout", string(g))
	if out := r.must("registry", "list"); out != "" {
		t.Errorf("registry list after logout: %q", out)
	}
	g.refused(t, r, "after logout", "1")
	if out := r.must("invoke", "private", `{"b":2}`); out != `{"b":2}`+"\n" {
		t.Errorf("what was deployed before: %q", out)
	}
}

// bounded: while /tmp and logs take more than thaw up --disk says, a function that
// has no instance yet is not started; it is once what has taken the disk ends.
func (r *region) bounded(t *testing.T, c *lambda.Client, disk int64) {
	t.Helper()
	ask := func(name, payload string) error {
		out, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte(payload)})
		if err == nil && out.FunctionError != nil {
			err = fmt.Errorf("%s: %s", aws.ToString(out.FunctionError), out.Payload)
		}
		return err
	}
	done := make(chan error, 1)
	go func() { done <- ask("hello", `{"do":{"write_mb":48,"hold_ms":600000}}`) }()
	r.until(t, "more is written than may be", func() bool {
		for _, w := range r.workers() {
			if w.Disk != disk {
				t.Fatalf("the limit is %d bytes, want %d", w.Disk, disk)
			}
			return w.DiskUsed > disk
		}
		return false
	})
	refused(t, ask("private", `1`), 429, "TooManyRequestsException", "Rate Exceeded.")
	for _, pid := range r.inside("function", []string{"hello"}) {
		try(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	if err := <-done; err == nil {
		t.Error("what has taken the disk was not ended")
	}
	r.until3("private is started", func() error { return ask("private", `1`) })
}

// office has servers in a second machine's network: those with a certificate of an
// authority of its own, at two addresses, and a stranger with another's.
type office struct {
	ca             string // file
	near, stranger string // host:port at secondHost
	far            string // at another address
}

func newOffice(t *testing.T, namespace string) *office {
	t.Helper()
	const host = "10.77.0.3"
	try(t, within(namespace, func() error {
		link, err := netlink.LinkByName("other")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(host + "/24")
		return errors.Join(err, netlink.AddrAdd(link, a))
	}))
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "from inside") })
	ours, theirs := fleet.Dir(t.TempDir()), fleet.Dir(t.TempDir())
	return &office{
		ca: certificates(ours), near: serveTLS(t, h, secondHost, namespace, ours), stranger: serveTLS(t, h, secondHost, namespace, theirs), far: serveTLS(t, h, host, namespace, ours),
	}
}

// reached: a function reaches the private address that thaw up --allow names, and
// no other, and trusts the authority of --ca-bundle, and no other.
func (o *office) reached(t *testing.T, r *region) {
	t.Helper()
	urls := []string{"https://" + o.near, "https://" + o.stranger, "https://" + o.far}
	ask, err := json.Marshal(map[string]any{"do": map[string]any{"get": urls}})
	try(t, err)
	var told toldOf
	r.until3("a function is answered by what it may reach", func() error {
		e := r.thaw("invoke", "f", string(ask)) // there are ten seconds for it
		if e.code != 0 {
			return fmt.Errorf("%+v", e)
		}
		try(t, decode([]byte(e.out), &told))
		if slices.ContainsFunc(urls[:2], func(url string) bool { return strings.Contains(told.Get[url], "deadline exceeded") }) {
			return fmt.Errorf("%q", told.Get)
		}
		return nil
	})
	for i, want := range []string{"200 from inside", "certificate signed by unknown authority", "connection refused"} {
		if got := told.Get[urls[i]]; !strings.Contains(got, want) {
			t.Errorf("a function is told by %s: %q, want %q", urls[i], got, want)
		}
	}
	conn, err := dialIn(r.net)(t.Context(), "tcp", o.far) // the machine itself reaches it
	try(t, err)
	try(t, conn.Close())
}
