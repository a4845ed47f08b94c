package cluster_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"thaw/cluster"
)

// TestAccess: who does not know the token stays outside, and nothing tells it.
func TestAccess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	var mu sync.Mutex // guards told
	var told []string
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: dir, Token: token, Warn: func(line string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, line)
	}})
	is(t, err, nil)
	t.Cleanup(func() { is(t, s.Close(), nil) })
	const other = "a token of quite another fleet"
	_, err = cluster.Dial(t.Context(), s.URL(), other)
	if err == nil || errors.Is(err, cluster.ErrUnavailable) || strings.Contains(err.Error(), other) {
		t.Errorf("with another token: %v", err)
	}
	for name, o := range map[string]nats.Option{"nobody": nats.Name("x"), "token as password": nats.UserInfo("thaw", token), "token": nats.Token(token)} {
		if _, err := nats.Connect(s.URL(), o, nats.Timeout(3*time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
		}
	}
	eventually(t, "the server warns", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) >= 4 })
	mu.Lock()
	defer mu.Unlock()
	for _, line := range told {
		if strings.Contains(line, token) || strings.Contains(line, other) {
			t.Errorf("told a secret: %s", line)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", info.Mode(), err)
	}
	if host, _, _ := net.SplitHostPort(strings.TrimPrefix(s.URL(), "nats://")); host != "127.0.0.1" {
		t.Errorf("listens on %s", host)
	}
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, dir)
	t.Cleanup(func() { is(t, s.Close(), nil) })
	taken := strings.TrimPrefix(s.URL(), "nats://")
	for name, c := range map[string]struct {
		o    cluster.ServerOptions
		want string
	}{
		"no folder":           {cluster.ServerOptions{Token: token}, "folder"},
		"short token":         {cluster.ServerOptions{Dir: t.TempDir(), Token: "short"}, "token"},
		"folder in use":       {cluster.ServerOptions{Dir: dir, Token: token}, "in use"},
		"port in use":         {cluster.ServerOptions{Dir: t.TempDir(), Token: token, Listen: taken}, "in use"},
		"no port":             {cluster.ServerOptions{Dir: t.TempDir(), Token: token, Listen: "127.0.0.1"}, "host:port"},
		"no host":             {cluster.ServerOptions{Dir: t.TempDir(), Token: token, Listen: ":4222"}, "host:port"},
		"peers alone":         {cluster.ServerOptions{Dir: t.TempDir(), Token: token, Peers: []string{"127.0.0.1:1"}}, "listen"},
		"no name":             {cluster.ServerOptions{Dir: t.TempDir(), Token: token, ClusterListen: "127.0.0.1:0"}, "name"},
		"even":                {cluster.ServerOptions{Dir: t.TempDir(), Token: token, ClusterListen: "127.0.0.1:0", Name: "a", Replicas: 2}, "replicas"},
		"peer without a port": {cluster.ServerOptions{Dir: t.TempDir(), Token: token, ClusterListen: "127.0.0.1:0", Name: "a", Peers: []string{"b"}}, "host:port"},
	} {
		got, err := cluster.Serve(t.Context(), c.o)
		if err == nil {
			got.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLeasesTTL: who asks for another TTL than the bucket has is told.
func TestLeasesTTL(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	c := dial(t, s.URL())
	t.Cleanup(func() { c.Close(); is(t, s.Close(), nil) })
	leases(t, c, time.Minute)
	if _, err := c.Leases(t.Context(), "TestLeasesTTL-leases", time.Hour); err == nil || !strings.Contains(err.Error(), "1m0s") {
		t.Errorf("another TTL: %v", err)
	}
	if _, err := c.Leases(t.Context(), "x", time.Millisecond); err == nil {
		t.Error("took a TTL of 1 ms")
	}
	if _, err := c.Records(t.Context(), "TestLeasesTTL-leases"); err == nil || !strings.Contains(err.Error(), "other kind") {
		t.Errorf("records where leases are: %v", err)
	}
	if _, err := c.Records(t.Context(), "no good name"); err == nil || errors.Is(err, cluster.ErrUnavailable) {
		t.Errorf("a bad name: %v", err)
	}
}
