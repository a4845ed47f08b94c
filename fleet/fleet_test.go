package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// newDir gives a machine that has begun a fleet.
func newDir(t *testing.T, hosts ...string) Dir {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "fleet"))
	is(t, d.Certify(hosts...))
	return d
}

// joined gives another machine of a fleet.
func joined(t *testing.T, first Dir, hosts ...string) Dir {
	t.Helper()
	ca, machine, err := first.Invite(hosts...)
	is(t, err)
	d := Dir(filepath.Join(t.TempDir(), "fleet"))
	is(t, d.Join(ca, machine))
	return d
}

func is(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks that an error says why.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want %q", err, want)
	}
}

// over has a client say something to a server, and gives what the server says of
// that. The two are joined by a pipe: no address is left that is not loopback.
func over(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	is(t, err)
	defer l.Close()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return
		}
		defer c.Close()
		secure := tls.Client(c, client)
		_, _ = secure.Write([]byte("hello"))
		_, _ = secure.Read(make([]byte, 1)) // until the server has seen it
	})
	c, err := l.Accept()
	is(t, err)
	defer c.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(tls.Server(c, server), got); err != nil {
		return err
	}
	if string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	return nil
}

// config is how a machine speaks.
func config(t *testing.T, d Dir) *tls.Config {
	t.Helper()
	c, err := d.TLS()
	is(t, err)
	return c
}

// Members speak to each other; who shows nothing, or a certificate of another
// fleet, of no fleet or of the past, is not heard, nor spoken to.
func TestMembers(t *testing.T) {
	first := newDir(t)
	second, foreign := joined(t, first), newDir(t)
	server := config(t, first)
	is(t, over(t, config(t, second), server))
	is(t, over(t, server, config(t, second)))

	a, err := first.authority()
	is(t, err)
	shows := func(data []byte) *tls.Config {
		pair, err := tls.X509KeyPair(data, data)
		is(t, err)
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}} // a stranger takes any server
	}
	expired, err := a.issue(nil, time.Now().Add(-2*machineLife), machineLife)
	is(t, err)
	early, err := a.issue(nil, time.Now().Add(2*skew), machineLife)
	is(t, err)
	other, err := foreign.authority()
	is(t, err)
	alien, err := other.issue(nil, time.Now(), machineLife)
	is(t, err)
	old := shows(alien)
	old.MaxVersion = tls.VersionTLS12
	for what, c := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true}, "expired": shows(expired), "of tomorrow": shows(early), "of another fleet": shows(alien), "TLS 1.2": old,
	} {
		if over(t, c, server) == nil {
			t.Errorf("%s: was heard", what)
		}
	}
	for what, data := range map[string][]byte{"expired": expired, "of another fleet": alien} {
		pretender := shows(data)
		if over(t, server, pretender) == nil {
			t.Errorf("%s: was spoken to", what)
		}
	}
	public, err := newDir(t, "192.0.2.1").Public("192.0.2.1")
	is(t, err)
	if over(t, server, public) == nil {
		t.Error("another fleet's public door was spoken to")
	}
}

// A new certificate counts at once, and one that has expired does not, without
// anything being started again.
func TestRenewal(t *testing.T) {
	first := newDir(t)
	second := joined(t, first)
	server, client := config(t, first), config(t, second)
	a, err := first.authority()
	is(t, err)
	expired, err := a.issue(nil, time.Now().Add(-2*machineLife), machineLife)
	is(t, err)
	is(t, os.WriteFile(second.path(machineFile), expired, 0o600))
	if over(t, client, server) == nil {
		t.Error("an expired certificate was shown and taken")
	}
	_, err = second.TLS()
	refused(t, err, "has expired on ")
	refused(t, second.Certify(), "has expired on ")
	ca, machine, err := first.Invite()
	is(t, err)
	is(t, second.Join(ca, machine))
	is(t, over(t, client, server))
	if end, err := second.Expires(); err != nil || time.Until(end) < machineLife-time.Hour {
		t.Errorf("expires %v, %v", end, err)
	}

	is(t, os.WriteFile(first.path(machineFile), expired, 0o600))
	is(t, first.Certify("a.example"))
	is(t, first.Certify("192.0.2.7")) // keeps what it had
	for _, host := range []string{"a.example", "192.0.2.7"} {
		if _, err := first.Public(host); err != nil {
			t.Error(err)
		}
	}
	before, err := os.ReadFile(first.path(machineFile))
	is(t, err)
	is(t, first.Certify("a.example"))
	if after, _ := os.ReadFile(first.path(machineFile)); !bytes.Equal(before, after) {
		t.Error("a certificate that is good was issued again")
	}
}

func TestRefusals(t *testing.T) {
	none := Dir(filepath.Join(t.TempDir(), "none"))
	for what, f := range map[string]func() error{
		"TLS":    func() error { _, err := none.TLS(); return err },
		"Public": func() error { _, err := none.Public("a"); return err },
		"Invite": func() error { _, _, err := none.Invite(); return err },
		"Listen": func() error { _, err := none.Listen(t.Context(), "192.0.2.1:0"); return err },
		"Dial":   func() error { _, err := none.Dialer()(t.Context(), "tcp", "192.0.2.1:1"); return err },
		"Client": func() error { _, err := none.Client().Get("http://192.0.2.1:1/"); return err },
	} {
		if err := f(); !errors.Is(err, ErrNone) {
			t.Errorf("%s without certificates: %v", what, err)
		}
	}
	first, other := newDir(t), newDir(t)
	second := joined(t, first, "b.example")
	for _, address := range []string{"0.0.0.0:1", "[::]:1", ":1", "nonsense"} {
		_, err := first.Listen(t.Context(), address)
		refused(t, err, "no address that other machines can be told")
	}
	_, _, err := second.Invite()
	refused(t, err, "invite where the fleet began")
	is(t, second.Certify("b.example"))
	refused(t, second.Certify("c.example"), "invite this machine again")
	_, err = second.Public("c.example")
	refused(t, err, "--host c.example")
	ca, machine, err := other.Invite()
	is(t, err)
	refused(t, second.Join(ca, machine), "of another fleet")
	refused(t, first.Join(ca, machine), "of another fleet")
	mine, _, err := first.Invite()
	is(t, err)
	refused(t, second.Join(mine, machine), "not of the fleet's authority")
	_, err = Invited(mine, machine)
	refused(t, err, "not of the fleet's authority")
	for _, bad := range [][]byte{nil, []byte("x"), machine, append(bytes.Clone(ca), machine...)} {
		refused(t, second.Join(bad, machine), "the fleet's certificate")
	}
	refused(t, second.Join(mine, mine), "want a certificate and its key")
	refused(t, Dir(t.TempDir()).Join(machine[:bytes.Index(machine, []byte("-----BEGIN PRIVATE"))], machine), "no authority's")
	is(t, os.Chmod(second.path(machineFile), 0o644))
	_, err = second.TLS()
	refused(t, err, "may be read by others")
	is(t, os.WriteFile(first.path(authorityFile), []byte("x"), 0o600))
	refused(t, first.Certify(), "want an authority's certificate")
	if _, _, err := first.Invite(make([]string, maxHosts+1)...); err == nil {
		t.Error("invited a hundred hosts and one")
	}
}

// Who is invited is a member before it has kept the invitation, and who has left
// is none, and may join another fleet.
func TestJoinAndLeave(t *testing.T) {
	first, other := newDir(t), newDir(t)
	ca, machine, err := first.Invite()
	is(t, err)
	client, err := Invited(ca, machine)
	is(t, err)
	is(t, over(t, client, config(t, first)))
	if over(t, client, config(t, other)) == nil {
		t.Error("another fleet takes the invitation")
	}
	second := Dir(t.TempDir())
	is(t, second.Leave())
	is(t, second.Join(ca, machine))
	is(t, second.Leave())
	is(t, second.Leave())
	_, err = second.TLS()
	if !errors.Is(err, ErrNone) || second.Began() || !first.Began() {
		t.Errorf("it has left: %v; one began the fleet: %v, %v", err, second.Began(), first.Began())
	}
	ca, machine, err = other.Invite()
	is(t, err)
	is(t, second.Join(ca, machine))
}

// Of many that begin a fleet at once, all are of the same one.
func TestBeginOnce(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "fleet"))
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			if err := d.Certify(); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if _, err := d.TLS(); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(string(d) + "/*.pem.*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	for name, mode := range map[string]os.FileMode{authorityFile: 0o600, machineFile: 0o600, caFile: 0o644} {
		if info, err := os.Stat(d.path(name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// On loopback roles speak plainly; a public door is trusted by members.
func TestPlainAndPublic(t *testing.T) {
	d := newDir(t, "127.0.0.1")
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	plain := httptest.NewServer(hello)
	defer plain.Close()
	client := d.Client()
	defer client.CloseIdleConnections()
	resp, err := client.Get(plain.URL)
	is(t, err)
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	l, err := d.Listen(t.Context(), "127.0.0.1:0")
	is(t, err)
	defer l.Close()

	door := httptest.NewUnstartedServer(hello)
	public, err := d.Public("127.0.0.1")
	is(t, err)
	door.Listener = tls.NewListener(door.Listener, public)
	door.Start()
	defer door.Close()
	roots, err := d.Roots()
	is(t, err)
	through := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer through.CloseIdleConnections()
	resp, err = through.Get(strings.Replace(door.URL, "http://", "https://", 1))
	is(t, err)
	is(t, resp.Body.Close())
	c, err := d.Door()(context.Background(), "tcp", plain.Listener.Addr().String())
	is(t, err)
	is(t, c.Close())
	if _, err := Dir(t.TempDir()).Roots(); err != nil {
		t.Error(err)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:0": true, "localhost:80": true,
		"0.0.0.0:1": false, "[::]:1": false, ":1": false, "10.0.0.1:1": false, "localhost.example:1": false, "127.0.0.1": false, "": false,
	} {
		if Loopback(address) != want {
			t.Errorf("%q: %v", address, !want)
		}
	}
}

// Whatever an invitation holds, a machine joins with it or says why not, and
// never keeps what does not belong together.
func FuzzJoin(f *testing.F) {
	d := Dir(filepath.Join(f.TempDir(), "fleet"))
	if err := d.Certify("a.example"); err != nil {
		f.Fatal(err)
	}
	ca, machine, err := d.Invite("b.example", "192.0.2.1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca, machine)
	f.Add(machine, ca)
	f.Add(ca, ca)
	f.Add([]byte(nil), []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add(bytes.Replace(ca, []byte("M"), []byte("N"), 1), machine)
	f.Fuzz(func(t *testing.T, ca, machine []byte) {
		d := Dir(filepath.Join(t.TempDir(), "fleet"))
		err := d.Join(ca, machine)
		if _, terr := d.TLS(); (err == nil) != (terr == nil) {
			t.Errorf("joined: %v; and then: %v", err, terr)
		}
	})
}

// Whatever fails before a connection stands is said to be of dialling: nothing
// was sent.
func TestDialError(t *testing.T) {
	d := newDir(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	conn, err := net.Dial("tcp", plain.Listener.Addr().String())
	is(t, err)
	_, err = secure(t.Context(), conn, config(t, d))
	if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "dial" {
		t.Errorf("a handshake with what speaks no TLS: %v", err)
	}
}

// HTTP between members goes over TLS as it goes plainly, and a stranger gets no
// answer.
func TestHTTP(t *testing.T) {
	first := newDir(t)
	second := joined(t, first)
	l, err := Listen(t.Context(), "127.0.0.1:0", config(t, first))
	is(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	is(t, s.Listener.Close())
	s.Listener, s.Config.ErrorLog = l, log.New(io.Discard, "", 0)
	s.Start()
	defer s.Close()
	ask := func(c *tls.Config) (string, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: c}}
		defer client.CloseIdleConnections()
		resp, err := client.Post("https://"+l.Addr().String(), "", strings.NewReader("hello"))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if got, err := ask(config(t, second)); err != nil || got != "hello" {
		t.Errorf("a member: %q, %v", got, err)
	}
	if got, err := ask(&tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Errorf("a stranger got %q", got)
	}
}
