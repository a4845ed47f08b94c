package cluster_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"thaw/cluster"
	"thaw/internal/testmount"
)

// TestPowerCut: what was acknowledged is on the disk, not only in the kernel's
// memory. The state lies in a file system of its own, whose disk is copied while
// a child writes, as it would be found after a power cut.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: cutting the power needs root to mount; run the tests as root too")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	is(t, err, nil)
	is(t, f.Truncate(256<<20), nil)
	is(t, f.Close(), nil)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	live, unmount := testmount.Ext4(t, disk, "commit=300") // the kernel writes nothing by itself
	p := startProcess(t, "writer", cluster.ServerOptions{Dir: filepath.Join(live, "state"), Token: token})
	var acknowledged []string
	for range 200 {
		line, err := p.out.ReadString('\n')
		is(t, err, nil)
		acknowledged = append(acknowledged, strings.TrimSpace(line))
	}
	is(t, p.cmd.Process.Signal(syscall.SIGSTOP), nil) // a copy takes longer than a write
	after := filepath.Join(t.TempDir(), "after")
	copyFile(t, after, disk)
	p.kill()
	unmount()

	found, unmount := testmount.Ext4(t, after, "")
	s := serve(t, filepath.Join(found, "state"))
	t.Cleanup(func() { s.Close() }) // if the test fails
	c := dial(t, s.URL())
	r, err := c.Records(t.Context(), "r")
	is(t, err, nil)
	has(t, r, acknowledged)
	c.Close()
	is(t, s.Close(), nil)
	unmount()
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	is(t, err, nil)
	defer in.Close()
	out, err := os.Create(to)
	is(t, err, nil)
	defer out.Close()
	_, err = io.Copy(out, in)
	is(t, err, nil)
}
