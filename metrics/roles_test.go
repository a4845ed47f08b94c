package metrics

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"thaw/host"
)

// serveRole serves a role's numbers until stop is called.
func serveRole(t *testing.T, dir, role string, all ...prometheus.Collector) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		if err := ServeRole(ctx, dir, role, all...); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); work.Wait() })
	t.Cleanup(stop)
	return stop
}

// awaitRoles asks until as many processes answer.
func awaitRoles(t *testing.T, dir string, n int) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	e := New(func(context.Context) (host.Numbers, error) { return host.Numbers{}, nil }, Roles(dir))
	for end := time.Now().Add(3 * time.Minute); ; {
		out, families := text(t, e)
		if strings.Count(out, "\nthaw_role_up{") == n {
			return out, families
		}
		if time.Now().After(end) {
			t.Fatalf("want %d roles:\n%s", n, out)
		}
	}
}

// Numbers of all roles are at one place, each series with its process; who ends
// is gone, and who was killed leaves nothing.
func TestRoles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // a socket's path has 107 bytes at most
	if _, families := awaitRoles(t, dir, 0); families["thaw_role_up"] != nil {
		t.Error("a role that is not there")
	}
	count := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "thaw_test_seen_total", Help: "What was seen."}, []string{"what"})
	count.WithLabelValues("a thing").Add(3)
	first := serveRole(t, dir, "first", count)
	serveRole(t, dir, "second", count)
	out, families := awaitRoles(t, dir, 2)
	f := families["thaw_test_seen_total"]
	if len(f.GetMetric()) != 2 || f.Metric[0].GetCounter().GetValue() != 3 || !strings.Contains(out, `process="second-`) {
		t.Error(out)
	}
	killed, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	killed.(*net.UnixListener).SetUnlinkOnClose(false)
	dead := filepath.Join(dir, "killed-1")
	if err := os.Rename(killed.Addr().String(), dead); err != nil {
		t.Fatal(err)
	}
	killed.Close()
	awaitRoles(t, dir, 2)
	if _, err := os.Stat(dead); err != nil {
		t.Errorf("the socket of one that is about to listen: %v", err)
	}
	old := time.Now().Add(-2 * listensWithin)
	if err := os.Chtimes(dead, old, old); err != nil {
		t.Fatal(err)
	}
	awaitRoles(t, dir, 2)
	if _, err := os.Stat(dead); err == nil {
		t.Error("a killed role's socket stays")
	}
	first()
	if out, _ := awaitRoles(t, dir, 1); strings.Contains(out, "first-") {
		t.Error(out)
	}
}

// A process that was killed does not keep one that gets its number, as in a
// container, from telling its own numbers.
func TestRoleAfterKill(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "role-"+strconv.Itoa(os.Getpid()))})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	serveRole(t, dir, "role")
	if out, _ := awaitRoles(t, dir, 1); !strings.Contains(out, "} 1\n") {
		t.Error(out)
	}
}
