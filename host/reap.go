package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/mount"
	"thaw/sandbox"
)

// Reap takes down what nobody keeps: instances whose process has gone, then
// images and fetchers without users. It disturbs nothing that is in use and
// goes on behind a failure. It names what it has removed.
func (h *Host) Reap(ctx context.Context) (removed []string, err error) {
	for _, step := range []func(context.Context) ([]string, error){h.reapInstances, h.reapImages, h.reapFetchers, h.reapMounts, h.reapOverlays, h.reapCgroups} {
		names, serr := step(ctx)
		removed = append(removed, names...)
		err = errors.Join(err, serr)
	}
	return removed, err
}

func (h *Host) reapInstances(ctx context.Context) (removed []string, err error) {
	items, err := os.ReadDir(h.dir("instances"))
	if err != nil {
		return nil, err
	}
	var work errgroup.Group
	work.SetLimit(reapsAtOnce)
	var mu sync.Mutex // guards removed and err
	for _, item := range items {
		work.Go(func() error {
			name := item.Name()
			done, ierr := h.reapInstance(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if ierr != nil {
				err = errors.Join(err, fmt.Errorf("instance %s: %w", name, ierr))
			}
			if done && !strings.HasPrefix(name, ".") {
				removed = append(removed, "instance "+name)
			}
			return nil
		})
	}
	_ = work.Wait() // none returns an error
	slices.Sort(removed)
	return removed, err
}

// reapsAtOnce is how many instances are taken down at a time: most of that is
// waiting for the kernel.
const reapsAtOnce = 8

// reapInstance removes an instance, unless a process keeps it.
func (h *Host) reapInstance(ctx context.Context, name string) (bool, error) {
	if strings.HasPrefix(name, ".") { // it had no name yet, or none any more: nothing is mounted
		if by, ok := hiddenBy(name); ok && by.alive() {
			return false, nil
		}
		return true, removeAll(h.dir("instances", name))
	}
	held, err := h.relockOrphan(ctx, name)
	if errors.Is(err, errHeld) {
		return false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return h.reapStray(ctx, name)
	}
	if err != nil {
		return false, err
	}
	defer held.Close()
	i, _ := h.readInstance(name) // what is known by the name alone can be cleaned by it
	return true, h.clean(ctx, i)
}

// relockOrphan takes the lock of an instance that no process keeps. What a killed
// keeper was just starting may hold it a moment longer, and so does who looks.
func (h *Host) relockOrphan(ctx context.Context, name string) (f *os.File, err error) {
	path := h.dir("instances", name, "lock")
	f, err = relock(path, unix.LOCK_EX)
	if i, ierr := h.readInstance(name); !errors.Is(err, errHeld) || ierr != nil || i.keeperLives() {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, orphanWait)
	defer cancel()
	_ = untilFree(ctx, path, func() error { // err says it
		f, err = relock(path, unix.LOCK_EX)
		return err
	})
	return f, err
}

// orphanWait is more than a program takes to be executed, once it has been
// started.
const orphanWait = 2 * time.Second

// keeperLives reports whether there is a process with the keeper's number.
func (i *Instance) keeperLives() bool {
	_, err := startTime(i.Keeper)
	return err == nil
}

// reapStray removes a folder without a lock. As long as an instance has its
// name it has its lock; but a runtime that was killed may have children that
// make folders anew on their way to their end.
func (h *Host) reapStray(ctx context.Context, name string) (bool, error) {
	if _, err := os.Stat(h.dir("instances", name)); errors.Is(err, fs.ErrNotExist) {
		return false, nil // it has just ended
	}
	i := &Instance{ID: name, host: h}
	return true, h.clean(ctx, i)
}

func (h *Host) reapImages(ctx context.Context) ([]string, error) {
	return h.reapShared("images", func(key string) error { return h.tearDownImage(ctx, key) })
}

func (h *Host) reapFetchers(ctx context.Context) ([]string, error) {
	return h.reapShared("fetchers", func(key string) error { return h.endFetcher(ctx, key) })
}

// reapShared takes down the things of a kind that have no users.
func (h *Host) reapShared(kind string, end func(key string) error) (removed []string, err error) {
	items, err := os.ReadDir(h.dir(kind))
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		key, isLock := strings.CutSuffix(item.Name(), ".lock")
		if !isLock {
			continue // its lock was there before it and is there after it
		}
		done, rerr := h.reapOne(kind, key, end)
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), key, rerr))
		}
		if done {
			removed = append(removed, strings.TrimSuffix(kind, "s")+" "+key)
		}
	}
	return removed, err
}

func (h *Host) reapOne(kind, key string, end func(key string) error) (bool, error) {
	held, err := lock(h.dir(kind, key+".lock"), unix.LOCK_EX)
	if errors.Is(err, errHeld) {
		return false, nil // being set up or taken down
	}
	if err != nil {
		return false, err
	}
	defer unlock(held)
	_, err = os.Stat(h.dir(kind, key))
	existed := err == nil
	if existed {
		users, err := lock(h.dir(kind, key, "users"), unix.LOCK_EX)
		if errors.Is(err, errHeld) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer unlock(users)
	}
	return existed, h.takeDown(kind, key, func() error { return end(key) })
}

// reapOverlays removes what instances wrote that are no more.
func (h *Host) reapOverlays(context.Context) (removed []string, err error) {
	items, err := os.ReadDir(h.overlays())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the state is gone
	}
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		// The instance's folder is there before its overlay and after it.
		if _, serr := os.Stat(h.dir("instances", item.Name())); !errors.Is(serr, fs.ErrNotExist) {
			continue
		}
		if rerr := removeAll(filepath.Join(h.overlays(), item.Name())); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		removed = append(removed, "overlay "+item.Name())
	}
	return removed, err
}

// reapCgroups removes groups of instances that are no more: a runtime that dies
// with its supervisor may make one after the instance was cleaned.
func (h *Host) reapCgroups(ctx context.Context) (removed []string, err error) {
	prefix := cgroupPrefix + filepath.Base(h.run) + "-"
	groups, err := sandbox.Cgroups(prefix)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		id := strings.TrimPrefix(group, prefix)
		if _, serr := os.Stat(h.dir("instances", id)); !errors.Is(serr, fs.ErrNotExist) {
			continue
		}
		if derr := sandbox.Delete(ctx, h.dir("instances", id, "runtime"), id, group); derr != nil {
			err = errors.Join(err, derr)
			continue
		}
		removed = append(removed, "cgroup "+group)
	}
	return removed, err
}

// refuseMounts fails if something is mounted under a folder.
func refuseMounts(dir string) error {
	mounts, err := mount.Under(dir)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(mounts, func(m mount.Mount) bool { return m.Dir != "" }); i >= 0 {
		return fmt.Errorf("%s is still mounted", mounts[i].Dir)
	}
	return nil
}
