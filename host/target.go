package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"thaw/mount"
)

// Mounted reports whether the mount table still has the mount of the instance,
// also if another lies over it.
func (i *Instance) Mounted() bool {
	_, ok := i.onTarget()
	return ok
}

// onTarget finds the instance's mount: at its folder, with its id, and of a loop
// device that reads a file of the image's agent. Without an id, for the process
// that mounted it was killed at once, it is the topmost that is otherwise so.
func (i *Instance) onTarget() (mount.Mount, bool) {
	mounts, err := mount.Under(i.Target)
	if err != nil {
		return mount.Mount{}, false
	}
	loops, err := mount.Loops(i.host.dir("images", i.ImageOf))
	if err != nil {
		return mount.Mount{}, false
	}
	n := slices.IndexFunc(mounts, func(m mount.Mount) bool {
		return m.Dir == i.Target && slices.Contains(loops, m.Source) && (m.ID == i.Mount || i.Mount == 0)
	})
	if n < 0 {
		return mount.Mount{}, false
	}
	return mounts[n], true
}

// unmountTarget unmounts what the instance has mounted, and nothing else.
func (i *Instance) unmountTarget() error {
	m, ok := i.onTarget()
	if !ok {
		return nil
	}
	if i.Writes {
		settle(m)
	}
	return m.Unmount()
}

// MountedAt gives the instance whose mount is what a folder shows, or nil if no
// instance has one there. One that another mount lies over is an error that
// wraps mount.ErrCovered.
func (h *Host) MountedAt(dir string) (*Instance, error) {
	all, err := h.Instances()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i Instance) bool { return i.Kind != KindMount || i.Target != dir })
	if len(all) == 0 {
		return nil, nil
	}
	top, _, err := mount.At(dir)
	if err != nil {
		return nil, err
	}
	for n := range all {
		if all[n].Mount == top {
			return &all[n], nil
		}
	}
	last := &all[len(all)-1] // that is about to mount, or left over
	if last.Mount != 0 && last.Mounted() {
		return nil, fmt.Errorf("%s: %w", dir, mount.ErrCovered)
	}
	return last, nil
}

// detached tells whether a loop device's file may be one of ours that has no
// path any more: the kernel gives what is left of it.
func (h *Host) detached(device string) bool {
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	path := strings.TrimSpace(string(file))
	if err != nil || path == "" {
		return false // freed meanwhile
	}
	if !strings.HasPrefix(path, h.dir("images")+"/") {
		return !strings.Contains(path[1:], "/") // one with a path is another's
	}
	_, err = os.Stat(path)
	return err != nil
}

// reapMounts unmounts what shows an image that is gone, so that nothing of it
// can be read: another mount lay over it when its instance ended. What is still
// covered stays.
func (h *Host) reapMounts(context.Context) (removed []string, err error) {
	mounts, err := mount.Under("/")
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(mounts, func(m mount.Mount) bool {
		return m.Type != "ext4" || !strings.HasPrefix(m.Source, "/dev/loop") || strings.HasPrefix(m.Dir, filepath.Dir(h.run)+"/") || !h.detached(m.Source)
	})
	if len(mounts) == 0 {
		return nil, nil // as nearly always; what follows asks each loop device, for 5 ms
	}
	dead, err := mount.Loops(h.dir("images"))
	if err != nil {
		return nil, err
	}
	keys, err := h.keys("images") // an image's folder is there before its device, and after it
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		live, err := mount.Loops(h.dir("images", key))
		if err != nil {
			return nil, err
		}
		dead = slices.DeleteFunc(dead, func(device string) bool { return slices.Contains(live, device) })
	}
	for _, m := range mounts {
		if !slices.Contains(dead, m.Source) {
			continue
		}
		switch uerr := m.Unmount(); {
		case uerr == nil:
			removed = append(removed, "mount "+m.Dir)
		case !errors.Is(uerr, mount.ErrCovered):
			err = errors.Join(err, uerr)
		}
	}
	return removed, err
}
