package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A blank agent is in its jail already, and has nothing of an image; then it
// serves one. Nothing tells it apart from one that was started for it.
func TestBlank(t *testing.T) {
	s := newSample(t)
	a := blank(t)
	if !a.link.Alive() {
		t.Error("it does not wait")
	}
	if items, err := os.ReadDir(a.proc("root")); err != nil || len(items) != 2 {
		t.Errorf("it sees %v, %v", items, err)
	}
	status, err := os.ReadFile(a.proc("status"))
	if err != nil || !strings.Contains(string(status), "CapEff:\t0000000000000000") || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("it has rights: %s%v", status, err)
	}
	for _, what := range opened(t, a.proc("")) {
		if kind, _, _ := strings.Cut(what, ":"); kind != "socket" && kind != "anon_inode" && what != "/dev/null" && !strings.HasPrefix(what, "/cpu.") {
			t.Errorf("it has %s", what)
		}
	}
	s.fetch(t, a.dir+"/fetch", a.dir+"/cache")
	if err := a.give(t, s.setup()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(a.dir, "fuse", "image")); err != nil || !bytes.Equal(got, s.bytes) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if a.link.Alive() {
		t.Error("it waits still")
	}
}

// A blank agent ends with its parent, and one whose parent ends within the setup
// says so.
func TestParentEnds(t *testing.T) {
	s := newSample(t)
	t.Run("blank", func(t *testing.T) {
		a := blank(t)
		a.files.close()
		_ = a.link.Close() // as the kernel does when it is killed
		if err := a.cmd.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("with files", func(t *testing.T) {
		a := blank(t)
		rights := unix.UnixRights(int(a.files.FUSE.Fd()), int(a.files.Control.Fd()), int(a.files.Log.Fd()))
		if _, _, err := a.link.conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
			t.Fatal(err)
		}
		_ = a.link.conn.CloseWrite()
		if err := a.link.await(t.Context(), wordOK); err == nil || !strings.Contains(err.Error(), "reading the setup") {
			t.Errorf("it said %v", err)
		}
	})
	t.Run("without files", func(t *testing.T) {
		a := blank(t)
		_ = s.setup().Send(a.link.conn) // it may end at the first byte
		if err := a.link.await(t.Context(), wordOK); err == nil || !strings.Contains(err.Error(), "0 files came") {
			t.Errorf("it said %v", err)
		}
	})
}

// Who is given an agent that was killed learns that, and who does not want to wait
// any more has the cause.
func TestKilledBlank(t *testing.T) {
	s := newSample(t)
	a := blank(t)
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	if a.link.Alive() {
		t.Error("it waits still")
	}
	if err := a.give(t, s.setup()); !errors.Is(err, ErrEnded) {
		t.Errorf("it said %v", err)
	}
	stopped := blank(t)
	if err := stopped.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := stopped.link.Give(ctx, stopped.files, s.setup()); !errors.Is(err, enough) {
		t.Errorf("it said %v", err)
	}
}
