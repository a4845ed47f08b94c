//go:build cloud

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/cluster"
	"thaw/frontend"
)

// serveRecords has the records of a platform that this process runs.
func serveRecords(t *testing.T) (g *Globals, r fleetRecord, out *bytes.Buffer) {
	t.Helper()
	out = new(bytes.Buffer)
	state := filepath.Join(t.TempDir(), "state")
	g = &Globals{State: state, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), OriginDeadline: patience, LogFormat: "text", stdout: out, stderr: io.Discard}
	token, err := g.fleetToken()
	try(t, err)
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: g.fleetPath("cluster"), Token: token})
	try(t, err)
	t.Cleanup(func() { try(t, s.Close()) })
	r = fleetRecord{Cluster: s.URL(), Region: "eu-thaw-1", Account: usualAccount, PID: os.Getpid()}
	try(t, writeJSON(g.fleetPath(platformFile), r))
	return g, r, out
}

// Whoever revokes the key that thaw's own verbs sign with gets another at once.
func TestRevokeOwnKey(t *testing.T) {
	g, r, out := serveRecords(t)
	first, err := g.firstKey(t.Context(), r)
	try(t, err)
	var other frontend.Key
	there := func(id string) (err error) {
		return g.keyStore(t.Context(), "", func(s *frontend.KeyStore) error {
			_, err := s.Lookup(t.Context(), id)
			return err
		})
	}
	try(t, g.keyStore(t.Context(), "", func(s *frontend.KeyStore) (err error) {
		other, err = s.Create(t.Context(), usualAccount, "")
		return err
	}))
	try(t, (&keysRevokeCmd{ID: other.ID}).Run(t.Context(), g))
	if now, err := g.credentials(); err != nil || now.ID != first.ID || out.Len() > 0 {
		t.Errorf("another key was revoked: %v, %v, %q", now, err, out)
	}
	try(t, (&keysRevokeCmd{ID: first.ID}).Run(t.Context(), g))
	now, err := g.credentials()
	if err != nil || now.ID == first.ID || there(now.ID) != nil || !errors.Is(there(first.ID), frontend.ErrNoKey) {
		t.Errorf("its own was revoked: %v, %v", now, err)
	}
	if said := out.String(); strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, first.ID+" was thaw up's own, which has "+now.ID+" now: ") || !strings.Contains(said, "thaw env") {
		t.Errorf("it says %q", said)
	}
}

// Events of a function that is not there are refused as the API would.
func TestEventsOfNone(t *testing.T) {
	g, _, out := serveRecords(t)
	err := (&eventsListCmd{Name: "nope"}).Run(t.Context(), g)
	if want := "ResourceNotFoundException: Function not found: arn:aws:lambda:eu-thaw-1:000000000000:function:nope"; err == nil || err.Error() != want || out.Len() > 0 {
		t.Errorf("%v, %q, want %s", err, out, want)
	}
	try(t, (&eventsListCmd{JSON: true}).Run(t.Context(), g))
	if err := (&eventsListCmd{Name: "no name *"}).Run(t.Context(), g); err == nil || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}
