package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

const testKey = "0123456789ab"

// A thing stays with its last user, whichever process that is.
func TestUse(t *testing.T) {
	h := openTest(t)
	thing := h.dir("images", testKey, "thing")
	one := h.helper(t, "use", testKey)
	one.expect("used")
	two := h.helper(t, "use", testKey)
	two.expect("used")
	if err := os.WriteFile(thing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped %v, %v", removed, err)
	}
	one.leave()
	if _, err := os.Stat(thing); err != nil {
		t.Fatal("gone with the first of two users")
	}
	two.leave()
	h.empty(t)
	// A killed user holds nothing.
	three := h.helper(t, "use", testKey)
	three.expect("used")
	three.kill()
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) != 1 || removed[0] != "image "+testKey {
		t.Errorf("reaped %v, %v", removed, err)
	}
	h.empty(t)
}

// Who waits for a thing that is being made goes on once it is, or its maker is
// gone.
func TestUseWaits(t *testing.T) {
	h := openTest(t)
	maker := h.helper(t, "make", testKey)
	maker.expect("making")
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped %v, %v", removed, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lockWait)
	defer cancel()
	if _, err := h.use(ctx, "images", testKey); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	waiter := h.helper(t, "use", testKey)
	maker.kill()
	waiter.expect("used")
	waiter.kill()
}

// A share that could not be set up is given back, and takes its folder along.
func TestGiveBack(t *testing.T) {
	h := openTest(t)
	u, err := h.use(t.Context(), "images", testKey)
	if err != nil {
		t.Fatal(err)
	}
	failed := errors.New("it does not end")
	if err := h.giveBack(u, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	u.unlock()
	if _, err := os.Stat(h.dir("images", testKey)); err != nil {
		t.Errorf("what does not end has no folder any more: %v", err)
	}
	if u, err = h.use(t.Context(), "images", testKey); err != nil {
		t.Fatal(err)
	}
	ends := 0
	if err := h.giveBack(u, func() error { ends++; return nil }); err != nil || ends != 1 {
		t.Errorf("%d, %v", ends, err)
	}
	u.unlock()
	h.empty(t)
}

// What is mounted is never deleted through.
func TestRemoveAllRefusesMounts(t *testing.T) {
	h := openTest(t)
	dir := h.dir("images", "x")
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, dir+"/a/b")
	if err := os.WriteFile(dir+"/a/b/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeAll(dir); err == nil || !strings.Contains(err.Error(), dir+"/a/b is still mounted") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir + "/a/b/precious"); err != nil {
		t.Fatal(err)
	}
	if err := h.tearDownImage(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := removeAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is there still")
	}
}

// Processes that take and give back the same thing, while others reap.
func TestRacingUsers(t *testing.T) {
	h := openTest(t)
	var all []*helper
	for _, verb := range []string{"race", "race", "race", "reap", "reap"} {
		all = append(all, h.helper(t, verb, testKey))
	}
	for _, p := range all {
		if line, err := p.out.ReadString('\n'); err == nil {
			t.Error(line)
		}
		p.leave()
	}
	if _, err := h.Reap(t.Context()); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// Instances that come and go, while others reap.
func TestRacingInstances(t *testing.T) {
	h := openTest(t)
	var all []*helper
	for _, verb := range []string{"churn", "churn", "reap", "reap"} {
		all = append(all, h.helper(t, verb, testKey))
	}
	for _, p := range all {
		if line, err := p.out.ReadString('\n'); err == nil {
			t.Error(line)
		}
		p.leave()
	}
	h.empty(t)
}
