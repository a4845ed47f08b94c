package cluster_test

import (
	"context"
	"crypto/tls"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/fleet"
)

// members gives how two machines of a fleet speak, and one of another.
func members(t *testing.T) (first, second, foreign *tls.Config) {
	t.Helper()
	config := func(d fleet.Dir) *tls.Config {
		c, err := d.TLS()
		is(t, err, nil)
		return c
	}
	a, b, c := fleet.Dir(filepath.Join(t.TempDir(), "a")), fleet.Dir(filepath.Join(t.TempDir(), "b")), fleet.Dir(filepath.Join(t.TempDir(), "c"))
	is(t, errors.Join(a.Certify(), c.Certify()), nil)
	ca, machine, err := a.Invite()
	is(t, errors.Join(err, b.Join(ca, machine)), nil)
	return config(a), config(b), config(c)
}

// TestTLS: with certificates of one fleet all goes on as without, and who has
// none, or another's, stays outside, whatever token it knows.
func TestTLS(t *testing.T) {
	t.Parallel()
	first, second, foreign := members(t)
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: t.TempDir(), Token: token, TLS: first, Warn: func(line string) {
		if strings.Contains(line, "Handshake First") {
			t.Errorf("the server warns of what is so on purpose: %s", line)
		}
	}})
	is(t, err, nil)
	t.Cleanup(func() { is(t, s.Close(), nil) })
	if !strings.HasPrefix(s.URL(), "tls://127.0.0.1:") {
		t.Fatalf("listens at %s", s.URL())
	}
	c, err := cluster.DialTLS(t.Context(), s.URL(), token, second)
	is(t, err, nil)
	t.Cleanup(c.Close)
	r, err := c.Records(t.Context(), "r")
	is(t, err, nil)
	_, err = r.Create(t.Context(), "k", []byte("v"))
	is(t, err, nil)

	bare := second.Clone()
	bare.GetClientCertificate = nil
	for what, config := range map[string]*tls.Config{"no certificates": nil, "none of its own": bare, "of another fleet": foreign} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		got, err := cluster.DialTLS(ctx, s.URL(), token, config)
		cancel()
		if err == nil {
			got.Close()
		}
		if err == nil || errors.Is(err, cluster.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = cluster.DialTLS(t.Context(), s.URL(), "a token of quite another fleet", second)
	if err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("another token: %v", err)
	}
}

// TestTLSRoutes: servers of a cluster find each other over TLS.
func TestTLSRoutes(t *testing.T) {
	t.Parallel()
	first, second, _ := members(t)
	peers, url := ports(t, 3), ""
	for i, config := range []*tls.Config{first, second, second} {
		s, err := cluster.Serve(t.Context(), cluster.ServerOptions{
			Dir: t.TempDir(), Token: token, TLS: config, Name: peers[i], ClusterListen: peers[i], Peers: peers,
		})
		is(t, err, nil)
		t.Cleanup(func() { is(t, s.Close(), nil) })
		url = s.URL()
	}
	c, err := cluster.DialTLS(t.Context(), url, token, second)
	is(t, err, nil)
	t.Cleanup(c.Close)
	var r *cluster.Records
	eventually(t, "a majority keeps records", func() bool { r, err = c.Records(t.Context(), "r"); return err == nil })
	eventually(t, "a record is kept", func() bool {
		_, err := r.Create(t.Context(), "k", []byte("v"))
		return err == nil || errors.Is(err, cluster.ErrExists)
	})
}
