package sandbox

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Runtime is an OCI runtime of this host. Find makes one.
type Runtime struct {
	Name string // crun, runc or runsc: which command line it understands
	Path string // absolute
	// hideUnified: it refuses hosts whose controllers are split over cgroup v1 and v2, and runs where it does not see v2.
	hideUnified bool
}

const unified = "/sys/fs/cgroup/unified" // where a hybrid host mounts cgroup v2

// Find picks the runtime of that name or path. With "" it is the fastest that this host has: crun, then runc, then runsc; crun starts a
// program in less than half of runc's time. It looks, but runs nothing: Check does.
func Find(name string) (Runtime, error) {
	if name != "" {
		return find(name)
	}
	for _, name := range runtimeNames() {
		if r, err := find(name); err == nil {
			return r, nil
		}
	}
	return Runtime{}, fmt.Errorf("no OCI runtime: found neither of %s; apt-get install crun", strings.Join(runtimeNames(), ", "))
}

// runtimeNames are those that we know how to call, the fastest first.
func runtimeNames() []string { return []string{"crun", "runc", "runsc"} }

func find(name string) (Runtime, error) {
	file, err := exec.LookPath(name)
	if err == nil {
		file, err = filepath.Abs(file)
	}
	if err != nil {
		return Runtime{}, fmt.Errorf("runtime %s: %w; apt-get install crun, or name another with --runtime", name, errors.Unwrap(err))
	}
	r := Runtime{Path: file}
	for _, kind := range runtimeNames() {
		if strings.HasPrefix(filepath.Base(file), kind) {
			r.Name = kind
			break
		}
	}
	switch r.Name {
	case "":
		return Runtime{}, fmt.Errorf("runtime %s: its name must begin with crun, runc or runsc, to tell how to call it", file)
	case "crun":
		r.hideUnified = isCgroup2(unified)
	}
	return r, nil
}

// options are what a runtime must be told besides the specification. gVisor has its own kernel: with a network stack of its own, which has
// the loopback alone, and an overlay of its own, of which there is no need.
func (r Runtime) options(network string) []string {
	if r.Name != "runsc" {
		return nil
	}
	return []string{"--platform=systrap", "--overlay2=none", "--network=" + network}
}

func isCgroup2(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
}
