package testmount_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testmount"
)

// TestUnmountWaits has a process keep a copy of the mount: unmounting is over
// when that has gone as well, and the file system is clean.
func TestUnmountWaits(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.ext4", "-q", image, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir, unmount := testmount.Ext4(t, image, "rw")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("unshare", "--mount", "--propagation=private", "sh", "-c", "echo; read line")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has its copy
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		for isMounted(dir) {
		}
		_ = in.Close()
		gone <- holder.Wait()
	}()
	unmount()
	unmount()
	<-gone
	if out, err := exec.Command("dumpe2fs", "-h", image).CombinedOutput(); err != nil || strings.Contains(string(out), "needs_recovery") {
		t.Errorf("not clean: %v: %s", err, out)
	}
}

func isMounted(dir string) bool {
	mounts, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(mounts), " "+dir+" ")
}
