package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// removeTime bounds how long a group's processes may take to end once killed: they may be in the middle of a large exit.
const removeTime = 10 * time.Second

const (
	letters   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	maxIDSize = 128 // bytes
)

func checkID(id string) error {
	if id == "" || len(id) > maxIDSize || !strings.Contains(letters, id[:1]) || strings.Trim(id, letters+"_.-") != "" {
		return fmt.Errorf("instance id %q: want letters, digits, _ . -", id)
	}
	return nil
}

// hierarchies lists where cgroup hierarchies are mounted: one with cgroup v2, about ten with v1, and on hybrid hosts those and v2's.
func hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs, nil
}

// Cgroups lists the groups, in any hierarchy, whose path begins with prefix ("/thaw-1f2e3d4c5b6a-"): those of the folder that prefix lies
// in. Each is a path for Delete. They may be what a killed supervisor left, or somebody's who lives: the caller knows.
func Cgroups(prefix string) ([]string, error) {
	dirs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	parent, start := path.Split(prefix)
	var found []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(dir, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), start) {
				found = append(found, path.Join("/", parent, e.Name()))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// Delete removes all that is left of an instance: its processes, its cgroup and the runtime's state, whether it runs, has ended, never
// started, or its supervisor was killed in the middle of anything. It asks no runtime, whose state may be half-written. What is gone
// already is fine. It does not touch the bundle.
func Delete(ctx context.Context, state, id, cgroup string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := removeCgroup(ctx, cgroup); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(state, id+"_sandbox:*")) // runsc's
	for _, name := range append(names, filepath.Join(state, "runsc-"+id+".sock")) {
		err = errors.Join(err, os.RemoveAll(name))
	}
	err = errors.Join(err, removeState(filepath.Join(state, id)))
	if rest, _ := filepath.Glob(filepath.Join(state, "*_sandbox:*.state")); len(rest) == 0 { // the last of runsc's
		nowhere := filepath.Join(state, "null-netns") // a network namespace, mounted
		_ = unix.Unmount(nowhere, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		err = errors.Join(err, os.RemoveAll(nowhere))
	}
	return err
}

// removeState removes a container's folder. Of a runc that was killed its own
// program may be mounted there, which it mounts on a file, opens and unmounts (its
// nsenter/cloned_binary.c); of one that is dying, a moment later.
func removeState(dir string) (err error) {
	const tries = 10 // each of the few processes of a start mounts once
	for range tries {
		mounted, _ := filepath.Glob(filepath.Join(dir, "runc.*"))
		for _, name := range mounted {
			_ = unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // most are none
		}
		if err = os.RemoveAll(dir); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return err
}

// removeCgroup kills every process in a group and below it, in every hierarchy, and removes it.
func removeCgroup(ctx context.Context, group string) error {
	if !path.IsAbs(group) || path.Clean(group) == "/" {
		return fmt.Errorf("cgroup %q: want an absolute path below /", group)
	}
	mounted, err := hierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		busy := error(nil)
		for _, dir := range mounted {
			busy = errors.Join(busy, removeTree(filepath.Join(dir, group)))
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: processes do not end: %w", group, busy)
		case <-time.After(pause):
		}
	}
}

// removeTree tries once to empty and remove one hierarchy's group. It leaves it thawed: a frozen process does not die on v1.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	write := func(file, text string) { // of these a hierarchy has the ones it has
		if f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(text)
			f.Close()
		}
	}
	write("cgroup.kill", "1")
	write("freezer.state", "FROZEN") // so that none forks between the list and the signal
	pids, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, field := range strings.Fields(string(pids)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	write("freezer.state", "THAWED")
	write("cgroup.freeze", "0")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	if again := unix.Rmdir(dir); again == nil || errors.Is(again, fs.ErrNotExist) {
		return nil
	}
	return err
}

// OOMKilled tells whether the kernel killed a process of a group because the group was out of memory. Ask before Delete.
func OOMKilled(cgroup string) bool {
	dirs, _ := hierarchies()
	for _, dir := range dirs {
		for _, file := range []string{"memory.events", "memory.oom_control"} { // v2, v1
			data, _ := os.ReadFile(filepath.Join(dir, cgroup, file))
			for line := range strings.Lines(string(data)) {
				if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
					return true
				}
			}
		}
	}
	return false
}
