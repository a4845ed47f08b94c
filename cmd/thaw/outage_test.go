package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/internal/faults"
	"thaw/internal/tests3"
)

// A bucket and the key service go away, in both ways, and come back.
func TestOriginOutage(t *testing.T) {
	server := tests3.Start(t)
	m := newMachine(t)
	way := newProxy(t, strings.TrimPrefix(server.URL, "http://"), 1)
	vault, asked := startVault(t)
	keys := newProxy(t, strings.TrimPrefix(vault, "http://"), 2)
	set := func(l faults.Link) {
		for _, p := range []*faults.Proxy{way, keys} {
			p.Set(l)
			p.Cut()
		}
	}
	m.env = append(m.env, "VAULT_ADDR=http://"+keys.Addr(), "VAULT_TOKEN=hvs.token", "VAULT_MAX_RETRIES=0")
	m.flags = []string{"--origin", server.Bucket(t, "http://"+way.Addr()) + "&region=us-east-1", "--key", "hashivault://app"}
	m.convert("app", 1)
	m.convert("other", 100)
	m.keep("app")
	if asked.Load() == 0 {
		t.Fatal("the key service was not asked")
	}
	m.flags = append(m.flags, "--origin-deadline", "2s")
	stats := filepath.Join(t.TempDir(), "stats.json")
	for how, down := range map[string]faults.Link{"refused": {Refuse: true}, "hanging": {Stall: true}} {
		set(down)
		// What was started before starts, and nothing else.
		e := m.thaw("run", "--stats-json", stats, "app", "/bin/inside", "echo", "again")
		if e.code != 0 || e.out != "again\n" || !strings.Contains(e.stderr, "starting what was started before") {
			t.Errorf("%s: %+v", how, e)
		}
		if n := numbersOf(t, stats); n.Chunks["origin"] != 0 || n.Chunks["cache"] == 0 {
			t.Errorf("%s: %+v", how, n)
		}
		if e := m.thaw("run", "other"); e.code != exitRunFailed || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", how, e)
		}
		// Its reads fail when their time is up, and work again with the origin.
		r, began := m.serve("app"), time.Now()
		file := 3
		if how == "hanging" {
			file = 5
		}
		if got := r.ask("sum %s", dataPath(file)); got != "error: input/output error" {
			t.Errorf("%s: %s", how, got)
		}
		set(faults.Link{})
		failed := 1 + r.readsAgain(1, file)
		e = r.end()
		causes := causesTold(e.stderr)
		most := 1 + int(time.Since(began)/time.Second) // of one: again after a second
		if e.code != 0 || len(causes) == 0 || len(causes) > 4*failed {
			t.Errorf("%s: %d reads failed; it told:\n%s", how, failed, e.stderr)
		}
		for cause, times := range causes {
			if times > most {
				t.Errorf("%s: told %d times, in which it may have %d: %s", how, times, most, cause)
			}
		}
	}
}

// startVault is a key service that speaks as Vault does, and hides nothing. It
// counts what it is asked.
func startVault(t *testing.T) (url string, asked *atomic.Int64) {
	asked = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var in struct{ Plaintext, Ciphertext string }
		err := json.NewDecoder(r.Body).Decode(&in)
		var out map[string]string
		switch r.URL.Path {
		case "/v1/transit/encrypt/app":
			out = map[string]string{"ciphertext": "vault:v1:" + in.Plaintext}
		case "/v1/transit/decrypt/app":
			out = map[string]string{"plaintext": strings.TrimPrefix(in.Ciphertext, "vault:v1:")}
		}
		if out == nil || err != nil {
			http.Error(w, r.URL.Path, http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": out}) // who has gone is not there to hear
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

// causesTold counts by their causes the lines that say that a read of app failed.
func causesTold(stderr string) map[string]int {
	line := regexp.MustCompile(`(?m)^thaw: image app: read of image: .*chunk [0-9a-f]{12}.*origin: .*\(waited \d+\.\d s\)$`)
	varies := regexp.MustCompile(`chunk [0-9a-f]{12}|\d+`)
	causes := map[string]int{}
	for _, told := range line.FindAllString(stderr, -1) {
		causes[varies.ReplaceAllString(told, "")]++
	}
	return causes
}

// An origin's folder is not mounted, and comes back.
func TestOriginFolderAway(t *testing.T) {
	m := newMachine(t)
	dir := filepath.Join(t.TempDir(), "origin")
	m.flags = []string{"--origin", "file://" + dir}
	hasty := append(slices.Clone(m.flags), "--origin-deadline", "2s")
	if out := m.must("images"); strings.Count(out, "\n") != 1 {
		t.Fatalf("a fresh origin has %s", out)
	}
	m.convert("app", 1)
	m.convert("other", 100)
	m.keep("app")
	for how, leave := range map[string]func() error{
		"missing": func() error { return nil },
		"empty":   func() error { return os.Mkdir(dir, 0o755) },
	} {
		if err := errors.Join(os.Rename(dir, dir+".away"), leave()); err != nil {
			t.Fatal(err)
		}
		usual := m.flags
		m.flags = hasty
		e := m.thaw("run", "app", "/bin/inside", "echo", "again")
		if e.code != 0 || e.out != "again\n" || !strings.Contains(e.stderr, "starting what was started before") {
			t.Errorf("%s: %+v", how, e)
		}
		if e := m.thaw("run", "other"); e.code != exitRunFailed || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", how, e)
		}
		r := m.serve("app")
		if got := r.ask("sum %s", dataPath(3)); got != "error: input/output error" {
			t.Errorf("%s: %s", how, got)
		}
		_ = os.Remove(dir)
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		r.readsAgain(1, 3)
		if e := r.end(); e.code != 0 || !strings.Contains(e.stderr, "is what it is on mounted?") {
			t.Errorf("%s: %+v", how, e)
		}
		m.flags = usual
		if err := os.RemoveAll(filepath.Join(m.state, "cache", "chunks")); err != nil {
			t.Fatal(err)
		}
		m.keep("app")
	}
}

// A cache that cannot be written to is none, and no start waits for it.
func TestCacheReadOnly(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	m.flags = []string{"--cache", dir}
	m.convert("app", 1)
	for range 2 {
		e := m.thaw("run", "app", "/bin/inside", "echo", "on")
		if e.code != 0 || e.out != "on\n" || !strings.Contains(e.stderr, "what is read is not kept") || !strings.Contains(e.stderr, ", 0 from the cache") {
			t.Errorf("%+v", e)
		}
	}
}
