package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long to wait before the next look at whether a group has frozen or its
// processes have ended. v2 freezes within a millisecond, v1 in 5 to 170 of them.
const (
	firstLook = 100 * time.Microsecond
	lastLook  = 5 * time.Millisecond
)

// Freeze stops the group's processes where they are, and returns when all have
// stopped. They use no processor until Thaw; their sockets and clocks go on.
//
// The quota is lifted meanwhile, since processes that wait for their quota do
// not get to where they can stop, and is back when Freeze returns. If ctx ends
// first, the group runs as before, and the error is ctx's. A Thaw or a Kill
// meanwhile ends it with ErrThawed; it does not wait for it.
func (g *Group) Freeze(ctx context.Context) error {
	mine, frozen, err := g.beginFreeze()
	for pause := firstLook; err == nil; pause = min(2*pause, lastLook) {
		var done bool
		if done, err = g.endFreeze(mine, frozen); done || err != nil {
			break
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(pause):
		}
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrThawed) {
		err = errors.Join(err, g.undo(mine))
	}
	return fmt.Errorf("cgroup %s: freeze: %w", g.path, err)
}

// beginFreeze tells the kernel, and returns its turn and what tells whether
// all have stopped.
func (g *Group) beginFreeze() (int, func() (bool, error), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn++
	file, word, frozen, err := g.freezer()
	if err == nil {
		err = g.raise()
	}
	if err == nil {
		err = write(file, word)
	}
	return g.turn, frozen, err
}

// freezer picks v2's where the processes are in its group, else v1's.
func (g *Group) freezer() (file *os.File, word string, frozen func() (bool, error), err error) {
	if g.state2 != nil && g.events != nil {
		populated := g.state1 == nil
		if !populated {
			populated, err = g.event("populated")
		}
		if populated || err != nil {
			return g.state2, "1", func() (bool, error) { return g.event("frozen") }, err
		}
	}
	if g.state1 == nil {
		return nil, "", nil, fmt.Errorf("%w: freezer", ErrNoController)
	}
	return g.state1, "FROZEN", func() (bool, error) {
		text, err := read(g.state1)
		return text == "FROZEN", err
	}, nil
}

// event reads one line of cgroup.events.
func (g *Group) event(name string) (bool, error) {
	text, err := read(g.events)
	return fields([]byte(text))[name] == 1, err
}

// endFreeze looks once. All have stopped: it gives the quota back.
func (g *Group) endFreeze(mine int, frozen func() (bool, error)) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turn != mine {
		return false, ErrThawed
	}
	done, err := frozen()
	if !done || err != nil {
		return false, err
	}
	g.frozen = true
	return true, g.lower()
}

// undo thaws after a freeze that failed, unless somebody has done so.
func (g *Group) undo(mine int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turn != mine {
		return nil
	}
	return g.thaw()
}

// Thaw lets the group's processes run again, with the quota as it was set. It
// returns as soon as the kernel has been told, which takes one write(2) for
// each freezer the group has; on v2 the processes follow within microseconds.
// A group that is not frozen stays as it is.
func (g *Group) Thaw() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.thaw(); err != nil {
		return fmt.Errorf("cgroup %s: thaw: %w", g.path, err)
	}
	return nil
}

// Frozen tells whether the last Freeze has succeeded and no Thaw has followed.
func (g *Group) Frozen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen
}

// thaw thaws. The caller holds mu.
func (g *Group) thaw() error {
	g.turn++
	err := g.lower()
	if g.state2 != nil {
		err = errors.Join(err, write(g.state2, "0"))
	}
	if g.state1 != nil {
		err = errors.Join(err, write(g.state1, "THAWED"))
	}
	if err == nil {
		g.frozen = false
	}
	return err
}

// Kill ends all processes of the group, frozen or not, and returns when none
// is left; the group stays, with its counters, for sandbox.Delete. The quota is
// lifted for good. Groups below it are sandbox.Delete's too.
func (g *Group) Kill(ctx context.Context) error {
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		pids, err := g.Procs()
		if errors.Is(err, ErrNoGroup) || err == nil && len(pids) == 0 {
			return nil
		}
		if err == nil {
			err = g.killOnce()
		}
		if err != nil && !errors.Is(err, ErrNoGroup) {
			return fmt.Errorf("cgroup %s: kill: %w", g.path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: kill: %d processes do not end: %w", g.path, len(pids), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// killOnce sends each process the signal. On v1 they are frozen for it, so that
// none forks between the list and the signal, and thawed, since a frozen
// process does not die there.
func (g *Group) killOnce() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn++
	err := g.raise()
	if g.v2 != "" {
		err = errors.Join(err, writeTo(g.v2, "cgroup.kill", "1"))
	}
	if g.state1 != nil {
		err = errors.Join(err, write(g.state1, "FROZEN"))
	}
	pids, listed := g.Procs()
	for _, pid := range pids {
		if pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // what has gone meanwhile is gone
		}
	}
	if g.raised { // for good: what is dying needs the processor
		g.limit, g.raised = unlimited(g.splitCPU()), false
	}
	return errors.Join(err, listed, g.thaw())
}

// ThawAll thaws all groups, in any hierarchy, whose path begins with prefix
// ("/thaw-1f2e3d4c5b6a-"): those of the folder that prefix lies in. After a
// crash, frozen groups are what does not die.
func (h *Host) ThawAll(prefix string) error {
	parent, start := path.Split(prefix)
	var all error
	for _, mount := range h.mounts() {
		entries, err := os.ReadDir(filepath.Join(mount, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("cgroups: %w", err))
		}
		for _, e := range entries {
			if !e.IsDir() || !strings.HasPrefix(e.Name(), start) {
				continue
			}
			dir := filepath.Join(mount, parent, e.Name())
			file, word := "cgroup.freeze", "0"
			if mount != h.v2 {
				if file, word = "freezer.state", "THAWED"; mount != h.v1["freezer"] {
					continue
				}
			}
			if err := writeTo(dir, file, word); err != nil && !errors.Is(err, ErrNoGroup) {
				all = errors.Join(all, fmt.Errorf("cgroup %s: thaw: %w", dir, err))
			}
		}
	}
	return all
}
