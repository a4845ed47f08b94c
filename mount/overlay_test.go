package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	hostID = 1 << 30
	idSpan = 1 << 30
)

// probe is a program in a container: user namespace, uid 0 of it. It works in the directory that it is started in.
func probe() error {
	owner := func(name string) string {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%s %d:%d", name, st.Uid, st.Gid)
	}
	steps := []error{
		os.WriteFile("new", []byte("new"), 0o600),
		os.WriteFile("bin/file-01", []byte("copied up"), 0o600),
		os.Chown("bin/file-02", 7, 8),
		os.Remove("bin/file-03"),
		os.Mkdir("folder", 0o755),
	}
	for _, err := range steps {
		if err != nil {
			return err
		}
	}
	for _, name := range []string{".", "bin", "owned", "new", "bin/file-01", "bin/file-02", "folder"} {
		fmt.Println(owner(name))
	}
	return nil
}

func userNamespace(t testing.TB) *os.File {
	t.Helper()
	ns, err := UserNamespace(hostID, idSpan)
	try(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func contain(t *testing.T, dir string) string {
	t.Helper()
	ids := []syscall.SysProcIDMap{{HostID: hostID, Size: idSpan}}
	c := exec.Command("/proc/self/exe")
	c.Env = []string{role + "=container"}
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{}}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("in the container: %v\n%s", err, out)
	}
	return string(out)
}

// TestContainerOwners runs a program in a user namespace on an overlay over the id-mapped file system of an image.
func TestContainerOwners(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "ext4")
	makeImage(t, tree(t, mkdir(t, base, "source")), file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	plain, mapped := mkdir(t, base, "plain"), mkdir(t, base, "mapped")
	mountLoop(t, s.image(), plain, true)
	try(t, IDMap(plain, mapped, userNamespace(t)))
	try(t, Unmount(plain))
	merged, upper, work := mkdir(t, base, "merged:,\\"), mkdir(t, base, "upper:,\\"), mkdir(t, base, "work")
	try(t, os.Chown(upper, hostID, hostID))
	try(t, MountOverlay(merged, Overlay{Lower: []string{mapped}, Upper: upper, Work: work}))
	want := `. 0:0
bin 0:0
owned 1000:1000
new 0:0
bin/file-01 0:0
bin/file-02 7:8
folder 0:0
`
	if got := contain(t, merged); got != want {
		t.Errorf("in the container:\n%swant:\n%s", got, want)
	}
	// On the host everything belongs to the map.
	for name, uid := range map[string]uint32{"new": hostID, "bin/file-01": hostID, "bin/file-02": hostID + 7, "bin": hostID} {
		var st unix.Stat_t
		try(t, unix.Stat(filepath.Join(upper, name), &st))
		if st.Uid != uid {
			t.Errorf("%s belongs to %d on the host, want %d", name, st.Uid, uid)
		}
	}
	if data, err := os.ReadFile(filepath.Join(mapped, "bin/file-01")); err != nil || strings.HasPrefix(string(data), "copied") {
		t.Errorf("the lower file changed: %v", err)
	}
	try(t, Unmount(merged), Unmount(mapped))
}

// TestOverlayForms mounts overlays with many lowers, without an upper, and impossible ones.
func TestOverlayForms(t *testing.T) {
	base := place(t)
	var lowers []string
	for i := range 30 {
		dir := mkdir(t, base, strings.Repeat("long", 50)+fmt.Sprint(i)) // more than a page of paths
		try(t, os.WriteFile(filepath.Join(dir, "same"), fmt.Append(nil, i), 0o600), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
		lowers = append(lowers, dir)
	}
	merged := mkdir(t, base, "merged")
	try(t, MountOverlay(merged, Overlay{Lower: lowers}))
	if data, err := os.ReadFile(filepath.Join(merged, "same")); err != nil || string(data) != "0" {
		t.Errorf("the first is not on top: %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(merged, "29")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(merged, "new"), nil, 0o600); err == nil {
		t.Error("an overlay without an upper was written to")
	}
	try(t, Unmount(merged))
	for name, o := range map[string]Overlay{
		"nothing":  {},
		"one":      {Lower: lowers[:1]},
		"missing":  {Lower: []string{filepath.Join(base, "none")}, Upper: lowers[0], Work: lowers[1]},
		"no work":  {Lower: lowers[:1], Upper: lowers[1]},
		"no upper": {Lower: lowers[:1], Work: lowers[1]},
	} {
		if err := MountOverlay(merged, o); err == nil {
			t.Errorf("%s: mounted", name)
			try(t, Unmount(merged))
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", name, err)
		}
	}
}

// bound leaves out the id of a mount.
func bound(_ int, err error) error { return err }

// TestBind binds read-only and for writing, and refuses what is not there.
func TestBind(t *testing.T) {
	base := place(t)
	from, to := mkdir(t, base, "from"), mkdir(t, base, "to")
	try(t, bound(Bind(from, to, true)))
	if err := os.WriteFile(filepath.Join(to, "new"), nil, 0o600); err == nil {
		t.Error("wrote to a read-only bind")
	}
	var st unix.Statfs_t
	try(t, unix.Statfs(to, &st))
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_RDONLY); st.Flags&want != want {
		t.Errorf("flags %#x, want %#x", st.Flags, want)
	}
	try(t, bound(Bind(from, to, false)), os.WriteFile(filepath.Join(to, "new"), nil, 0o600))
	if mounts, err := Under(to); err != nil || len(mounts) != 2 {
		t.Errorf("stacked: %+v, %v", mounts, err)
	}
	try(t, DetachAll(to))
	if _, err := Bind(filepath.Join(base, "none"), to, true); err == nil {
		t.Error("bound what is not there")
	}
	if err := IDMap(from, filepath.Join(base, "none"), userNamespace(t)); err == nil {
		t.Error("mounted on nothing")
	}
	if err := MountExt4("/dev/null", to, true); err == nil {
		t.Error("mounted no device")
	}
}

// TestUserNamespace refuses a map that cannot be, and leaves no process behind.
func TestUserNamespace(t *testing.T) {
	asRoot(t)
	if ns, err := UserNamespace(hostID, 0); err == nil {
		t.Errorf("a namespace without ids: %v", ns.Close())
	}
	first, second := userNamespace(t), userNamespace(t)
	a, err := first.Stat()
	try(t, err)
	b, err := second.Stat()
	try(t, err)
	if os.SameFile(a, b) {
		t.Error("two namespaces are one")
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

// private makes dir a mount point of its own that passes nothing on: a test's mounts are not copied to services' namespaces.
func private(dir string) error {
	return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
}
