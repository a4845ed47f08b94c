//go:build cloud

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/cluster"
	"thaw/internal/testoci"
	"thaw/zone/node"
)

// zoneMember is a node of a zone that can be made another, empty one, at the same
// address.
type zoneMember struct {
	t *testing.T
	*httptest.Server
	now  atomic.Pointer[node.Node]
	away atomic.Bool
}

func newZoneMember(t *testing.T) *zoneMember {
	m := &zoneMember{t: t}
	m.empty()
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.away.Load() {
			panic(http.ErrAbortHandler)
		}
		m.now.Load().Handler().ServeHTTP(w, r)
	}))
	t.Cleanup(m.Close)
	return m
}

func (m *zoneMember) empty() {
	m.t.Helper()
	n, err := node.Open(node.Options{Memory: 64 << 20})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			m.t.Error(err)
		}
	})
	m.now.Store(n)
}

// address is where it listens.
func (m *zoneMember) address() string { return m.Listener.Addr().String() }

// basesRig is a zone of five nodes, and what looks after a base image in it.
type basesRig struct {
	*zoneBases
	t       *testing.T
	nodes   map[string]*zoneMember // by address
	first   *zoneMember
	base    baseImage
	log     bytes.Buffer
	records []cluster.Record
}

func newBasesRig(t *testing.T) *basesRig {
	state := filepath.Join(t.TempDir(), "state")
	layout := testoci.Layout(t, t.TempDir(), []string{"FROM=image"}, testoci.Tar(t, testoci.File("random", testoci.Noise(1, 3<<20))))
	r := &basesRig{t: t, nodes: map[string]*zoneMember{}}
	r.base = baseImage{Name: "ours", Tenant: "default", Image: imageOf(t, must(t, "--state", state, "convert", layout, "--name", "ours", "--json")), Root: "r1"}
	var list []string
	for range 5 {
		r.first = newZoneMember(t)
		list = append(list, r.first.address())
		r.nodes[r.first.address()] = r.first
	}
	g := &Globals{
		State: state, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), LogFormat: "text", stderr: &r.log,
		OriginDeadline: patience, Zone: strings.Join(list, ","), zoneFlags: zoneFlags{ZoneDeadline: "1m"},
	}
	var err error
	if r.zoneBases, err = g.zoneBases(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.zone.Close() })
	value, err := json.Marshal(r.base)
	if err != nil {
		t.Fatal(err)
	}
	r.records = []cluster.Record{{Key: r.base.Name, Value: value}}
	r.list = func(context.Context) ([]cluster.Record, error) { return r.records, nil }
	r.pace = time.Millisecond
	return r
}

// gives looks once, a while later, and tells whether any node was given the base.
func (r *basesRig) gives(later time.Duration) bool {
	r.t.Helper()
	given, failed := r.tries(later)
	if failed {
		r.t.Error(r.log.String())
	}
	return given
}

// tries is gives where some may fail.
func (r *basesRig) tries(later time.Duration) (given, failed bool) {
	before := r.log.Len()
	r.look(r.t.Context(), time.Unix(0, 0).Add(later))
	said := r.log.String()[before:]
	return strings.Contains(said, "are given a base image"), strings.Contains(said, "it is tried again")
}

// whole waits until all nodes but some have all of it.
func (r *basesRig) whole(but ...string) {
	r.t.Helper()
	chunks, err := r.g.baseChunks(r.t.Context(), r.base)
	if err != nil {
		r.t.Fatal(err)
	}
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for late := time.After(patience); ; {
		missing, heard := "", map[string]bool{}
		err := r.zone.Survey(r.t.Context(), namesOf(chunks), func(addr string, held, lacking []chunk.Name) {
			heard[addr] = true
			if len(lacking) > 0 && addr != strings.Join(but, "") {
				missing += fmt.Sprintf("%s lacks %d, ", addr, len(lacking))
			}
		})
		if err != nil {
			r.t.Fatal(err)
		}
		if missing == "" && len(heard) == 5-len(but) {
			return
		}
		select {
		case <-look.C:
		case <-late:
			r.t.Fatalf("%s%d nodes answer", missing, len(heard))
		}
	}
}

// A node of the zone that has nothing of a base image is given it, from the origin
// and from the other nodes, once: not what it loses then, unless that is all.
func TestZoneBases(t *testing.T) {
	r := newBasesRig(t)
	if !r.gives(0) {
		t.Error("to an empty zone nothing was given")
	}
	r.whole()
	if r.gives(time.Minute) {
		t.Error("a zone that has it was given it")
	}
	r.first.empty()
	if !r.gives(2 * time.Minute) {
		t.Error("a node that came back empty was given nothing")
	}
	r.whole()
	r.gives(3 * time.Minute)
	r.first.empty()
	r.first.now.Load().Drain() // it keeps nothing
	for _, c := range []struct {
		later time.Duration
		want  bool
	}{{4 * time.Minute, true}, {5 * time.Minute, false}, {63 * time.Minute, false}, {64 * time.Minute, true}, {65 * time.Minute, false}} {
		if r.gives(c.later) != c.want {
			t.Errorf("after %v: given %v, though it keeps nothing", c.later, !c.want)
		}
	}
	r.records = nil
	if r.gives(3*time.Hour) || len(r.given) != 0 {
		t.Error("what is no base any more is given, or remembered")
	}
}

// A chunk that is lost keeps no other from the zone; nothing at all is tried again
// soon.
func TestZoneBasesLost(t *testing.T) {
	r := newBasesRig(t)
	chunks, err := filepath.Glob(filepath.Join(r.g.State, "origin", "roots", "r1", "chunks", "*"))
	if err != nil || len(chunks) < 3 {
		t.Fatalf("%d folders of chunks: %v", len(chunks), err)
	}
	aside := filepath.Join(t.TempDir(), "aside")
	try(t, os.Rename(filepath.Dir(chunks[0]), aside))
	for later := range time.Duration(2) {
		if given, failed := r.tries(later * time.Minute); !given || !failed {
			t.Errorf("with no chunks in the origin: %v, %v", given, failed)
		}
	}
	try(t, os.Rename(aside, filepath.Dir(chunks[0])))
	try(t, os.RemoveAll(chunks[0]))
	r.first.now.Load().Drain() // it keeps nothing
	if given, failed := r.tries(2 * time.Minute); !given || !failed {
		t.Errorf("with a chunk lost: %v, %v", given, failed)
	}
	if given, failed := r.tries(3 * time.Minute); given || failed {
		t.Errorf("once more: %v, %v", given, failed)
	}
}

// Without a zone nobody looks after it; a node that is away keeps nobody.
func TestZoneBasesAway(t *testing.T) {
	if z, err := (&Globals{}).zoneBases(nil); z != nil || err != nil {
		t.Errorf("%v, %v", z, err)
	}
	r := newBasesRig(t)
	r.first.away.Store(true)
	if !r.gives(0) {
		t.Error("nothing was given")
	}
	r.whole(r.first.address())
	r.first.away.Store(false)
	if !r.gives(time.Minute) {
		t.Error("a node that came back empty was given nothing")
	}
	r.whole()
}
