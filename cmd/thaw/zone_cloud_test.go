//go:build cloud

package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Nodes are asked themselves: not whom they name instead, and by no proxy.
func TestNodesAreAskedThemselves(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another was asked") }))
	defer other.Close()
	node := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer node.Close()
	c, err := (&Globals{}).nodeClient()
	if err != nil {
		t.Fatal(err)
	}
	if transport := c.Transport.(*http.Transport); transport.Proxy != nil {
		t.Error("it has a proxy")
	}
	_, err = c.ask(t.Context(), http.MethodPost, strings.TrimPrefix(node.URL, "http://"), "/drain")
	if err == nil || !strings.Contains(err.Error(), "307") {
		t.Error(err)
	}
}

// What nodes have left that are not run any more goes, and nothing else does.
func TestSweepNodes(t *testing.T) {
	state := t.TempDir()
	at := func(names ...string) string { return filepath.Join(append([]string{state, "zone"}, names...)...) }
	for _, name := range []string{"0", "1", "2", "3", "4", "5", "40", "07", "mine"} {
		try(t, os.MkdirAll(at(name, "flash"), 0o700))
		for _, file := range []string{"flash/lock", "flash/segment", "address"} {
			try(t, os.WriteFile(at(name, file), []byte("x"), 0o600))
		}
	}
	try(t, os.WriteFile(at("3", "notes"), nil, 0o600)) // somebody's
	try(t, os.Remove(at("4", "flash", "lock")))
	used, err := os.Open(at("5", "flash", "lock"))
	try(t, err)
	defer used.Close()
	try(t, unix.Flock(int(used.Fd()), unix.LOCK_EX))
	try(t, os.Symlink(at("mine"), at("6")))
	try(t, errors.Join(os.Mkdir(at("7"), 0o700), os.Symlink(at("mine", "flash"), at("7", "flash"))))
	try(t, os.Symlink(at("mine", "address"), at("2", "flash", "link")))
	var said strings.Builder
	g := &Globals{State: state, stderr: &said}
	try(t, g.sweepNodes(1))
	left, err := filepath.Glob(at("*"))
	try(t, err)
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if got := strings.Join(left, " "); got != "0 07 3 4 40 5 6 7 mine" {
		t.Errorf("left are %s", got)
	}
	for _, file := range []string{"mine/flash/segment", "mine/address", "3/flash/segment"} {
		if _, err := os.Stat(at(file)); err != nil {
			t.Error(err)
		}
	}
	try(t, g.sweepNodes(1))
	try(t, (&Globals{State: t.TempDir()}).sweepNodes(0))
	if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "nodes=2") {
		t.Errorf("said %q", got)
	}
}

// The heap's bound grows with what is known of stripes.
func TestHeapLimit(t *testing.T) {
	for _, c := range []struct {
		memory, flash int64
		onFlash       bool
		want          int64
	}{
		{128 << 20, 50 << 30, false, heap + 512<<10},
		{1 << 30, 50 << 30, true, heap + 204<<20},
	} {
		if got := heapLimit(c.memory, c.flash, c.onFlash); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
