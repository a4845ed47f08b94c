package host

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Use is the right to something shared: as long as its lock is held, by this
// process or by one that inherited it, the thing stays.
type Use struct {
	kind, key string
	lockPath  string
	users     *os.File // shared lock
	held      *os.File // the key's own lock, until unlock
	made      bool
	ready     *os.File // of a fetcher that this use started: it writes when it serves
}

// Made reports whether this use set the thing up, so that all that it has done
// so far was done for this use.
func (u *Use) Made() bool { return u.made }

// use takes a share of a thing and holds the thing's own lock, so that the
// caller can look what is there and set it up.
func (h *Host) use(ctx context.Context, kind, key string) (*Use, error) {
	u := &Use{kind: kind, key: key, lockPath: h.dir(kind, key+".lock")}
	var err error
	if u.held, err = waitLock(ctx, u.lockPath); err != nil {
		return nil, err
	}
	if err = makeDir(h.dir(kind, key), searchOnly); err == nil {
		u.users, err = lock(h.dir(kind, key, "users"), unix.LOCK_SH)
	}
	if err != nil {
		u.unlock()
		return nil, err
	}
	return u, nil
}

func (u *Use) unlock() {
	if u.held != nil {
		_ = unlock(u.held)
		u.held = nil
	}
}

// release gives a share back. If it was the last, end takes the thing down and
// its folder is removed.
func (h *Host) release(ctx context.Context, u *Use, end func() error) error {
	held, err := waitLock(ctx, u.lockPath)
	if err != nil {
		return errors.Join(err, unlock(u.users))
	}
	defer unlock(held)
	return h.giveBack(u, end)
}

// giveBack is release for who holds the key's lock.
func (h *Host) giveBack(u *Use, end func() error) error {
	defer unlock(u.users)
	if err := flock(u.users, unix.LOCK_EX); err != nil {
		if errors.Is(err, errHeld) {
			return nil // others use it
		}
		return err
	}
	return h.takeDown(u.kind, u.key, end)
}

// takeDown ends a thing and removes its folder and its lock, which the caller
// holds. Nobody uses it.
func (h *Host) takeDown(kind, key string, end func() error) error {
	if err := end(); err != nil {
		return err // the next Reap tries again
	}
	dir := h.dir(kind, key)
	if err := removeAll(dir); err != nil {
		return err
	}
	return os.Remove(dir + ".lock")
}

// removeAll removes a folder of ours. It never crosses into a file system that
// is still mounted there: unlinkat(2) would delete what is in it.
func removeAll(dir string) error {
	if err := refuseMounts(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// keys lists the things of a kind that have a folder.
func (h *Host) keys(kind string) ([]string, error) {
	items, err := os.ReadDir(h.dir(kind))
	var keys []string
	for _, item := range items {
		if item.IsDir() && !strings.HasPrefix(item.Name(), ".") {
			keys = append(keys, item.Name())
		}
	}
	return keys, err
}
