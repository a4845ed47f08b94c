// Package cgroups steers instances through the kernel's control groups: how
// much of the processor one gets, whether it runs at all, what it has used.
//
// Who makes the groups is package sandbox's runtime, under one path below every
// hierarchy, and who removes them is sandbox.Delete. Between the two a Group
// writes into them, on hosts with cgroup v1, with v2, and on hybrid ones, where
// each controller is in one of both. What is changed often (the quota, the
// freezer) is one write(2) to a descriptor that is kept open: some 10 µs, where
// a runtime's own command takes 30 ms.
package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
)

var (
	// ErrNoGroup: no hierarchy has the group, or it has been removed.
	ErrNoGroup = errors.New("no such cgroup")
	// ErrNoController: the host has no controller for what was asked, or it does
	// not reach this group.
	ErrNoController = errors.New("no such cgroup controller")
	// ErrThawed: the group was thawed, or killed, while it was being frozen.
	ErrThawed = errors.New("thawed while it was being frozen")
)

// Host is where this machine has its hierarchies. It does not change while a
// machine runs, so one look is enough. It is safe for concurrent use.
type Host struct {
	v1 map[string]string // mount points by controller
	v2 string            // mount point; "" = none
}

// Find looks for the hierarchies. It reads the table of mounts, which takes
// milliseconds where thousands are mounted.
func Find() (*Host, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	h := &Host{v1: map[string]string{}}
	for _, m := range mounts {
		switch {
		case m.FSType == "cgroup2" && h.v2 == "":
			h.v2 = m.Mountpoint
		case m.FSType == "cgroup":
			for option := range strings.SplitSeq(m.VFSOptions, ",") { // "rw,cpu,cpuacct": words that are no controller harm nobody
				if h.v1[option] == "" {
					h.v1[option] = m.Mountpoint
				}
			}
		}
	}
	if len(h.v1) == 0 && h.v2 == "" {
		return nil, fmt.Errorf("cgroups: %w: no hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup", ErrNoController)
	}
	return h, nil
}

// Version is "v1", "v2" or "hybrid".
func (h *Host) Version() string {
	switch {
	case h.v2 == "":
		return "v1"
	case len(h.v1) == 0:
		return "v2"
	}
	return "hybrid"
}

// Freezer names what stops groups: "cgroup.freeze" of v2, v1's "freezer.state",
// or "" if there is none.
func (h *Host) Freezer() string {
	switch {
	case h.v2 != "":
		return "cgroup.freeze"
	case h.v1["freezer"] != "":
		return "freezer.state"
	}
	return ""
}

// mounts lists each hierarchy once, v1's first: on a hybrid host a runtime may
// leave v2's group empty.
func (h *Host) mounts() []string {
	var dirs []string
	for _, dir := range h.v1 {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	if h.v2 != "" {
		dirs = append(dirs, h.v2)
	}
	return dirs
}

// Group is the cgroup of one instance, under the same path in all hierarchies.
// Nobody else should write its quota or freeze it meanwhile. It is safe for
// concurrent use, and holds at most four descriptors until Close.
type Group struct {
	path   string
	v1     map[string]string // the group's folder by controller
	v2     string            // "" = it has none
	all    []string          // its folders, each once, v1's first
	quota  *os.File          // cpu.cfs_quota_us or cpu.max; nil = no cpu controller
	state1 *os.File          // freezer.state; nil = none
	state2 *os.File          // cgroup.freeze; nil = none
	events *os.File          // cgroup.events; nil = none

	// mu guards what follows, and the order of writes.
	mu     sync.Mutex
	limit  string // of the processor, as the kernel's file takes it
	period string // v1: as last written; "" = unknown
	raised bool   // the kernel has no limit, though limit says one
	turn   int    // grows with each freeze and thaw: tells a freeze that it is over
	frozen bool
	peak   int64 // bytes, the most seen
}

// Open opens the group of an instance: path as sandbox.Config.Cgroup has it.
// The runtime must have made it. See Host.Open.
func Open(path string) (*Group, error) {
	h, err := Find()
	if err != nil {
		return nil, err
	}
	return h.Open(path)
}

// Open opens the group at an absolute path below every hierarchy. An error
// matches ErrNoGroup if none has it. A controller that is missing is an error
// only of what needs it.
func (h *Host) Open(group string) (*Group, error) {
	if !path.IsAbs(group) || path.Clean(group) == "/" {
		return nil, fmt.Errorf("cgroup %q: want an absolute path below /", group)
	}
	g := &Group{path: path.Clean(group), v1: map[string]string{}}
	for _, mount := range h.mounts() {
		dir := filepath.Join(mount, g.path)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			g.all = append(g.all, dir)
		}
	}
	for controller, mount := range h.v1 {
		if dir := filepath.Join(mount, g.path); slices.Contains(g.all, dir) {
			g.v1[controller] = dir
		}
	}
	if dir := filepath.Join(h.v2, g.path); h.v2 != "" && slices.Contains(g.all, dir) {
		g.v2 = dir
	}
	if len(g.all) == 0 {
		return nil, fmt.Errorf("cgroup %s: %w", g.path, ErrNoGroup)
	}
	if err := g.openFiles(); err != nil {
		g.Close()
		return nil, fmt.Errorf("cgroup %s: %w", g.path, err)
	}
	return g, nil
}

// openFiles opens what is written often, of what there is.
func (g *Group) openFiles() error {
	var err error
	open := func(dir, name string, flag int) *os.File {
		if dir == "" || err != nil {
			return nil
		}
		f, e := os.OpenFile(filepath.Join(dir, name), flag, 0)
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
		if e != nil {
			return nil
		}
		return f
	}
	if dir := g.v1["cpu"]; dir != "" {
		g.quota = open(dir, "cpu.cfs_quota_us", os.O_RDWR)
	} else {
		g.quota = open(g.v2, "cpu.max", os.O_RDWR)
	}
	g.state1 = open(g.v1["freezer"], "freezer.state", os.O_RDWR)
	g.state2 = open(g.v2, "cgroup.freeze", os.O_RDWR)
	g.events = open(g.v2, "cgroup.events", os.O_RDONLY)
	if g.quota != nil && err == nil {
		g.limit, err = read(g.quota)
	}
	return err
}

// Path is the group's path below every hierarchy.
func (g *Group) Path() string { return g.path }

// Close gives the descriptors back. It changes nothing of the group.
func (g *Group) Close() error {
	var err error
	for _, f := range []*os.File{g.quota, g.state1, g.state2, g.events} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// Procs lists the group's processes, in numbers of this process's namespace.
// Those of groups below it are not among them.
func (g *Group) Procs() ([]int, error) {
	var pids []int
	found := false
	for _, dir := range g.all {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("cgroup %s: %w", g.path, err)
		}
		found = found || err == nil
		pids = append(pids, numbers(data)...)
	}
	if !found {
		return nil, fmt.Errorf("cgroup %s: %w", g.path, ErrNoGroup)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
