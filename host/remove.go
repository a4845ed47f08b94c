package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove ends what nobody keeps and removes the runtime folder, for a state
// folder that is to go. Nobody else may use that state.
func (h *Host) Remove(ctx context.Context) error {
	_, err := h.Reap(ctx)
	if err = errors.Join(err, refuseMounts(h.run)); err != nil {
		return err
	}
	return os.RemoveAll(h.run)
}

// noteState keeps beside the runtime files whose they are: their folder's name
// does not tell.
func (h *Host) noteState() error {
	path := filepath.Join(h.run, stateName)
	if was, err := os.ReadFile(path); err == nil && string(was) == h.state {
		return nil
	}
	f, err := os.CreateTemp(h.run, stateName+".new") // others may do the same
	if err != nil {
		return err
	}
	_, err = f.WriteString(h.state)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// ReapOthers is Reap for all state folders that are gone, whose runtime folders
// it removes too, unless something of them runs.
func ReapOthers(ctx context.Context) (removed []string, err error) { return reapOthers(ctx, runDir) }

func reapOthers(ctx context.Context, base string) (removed []string, err error) {
	dir, err := os.Open(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock(dir)
	// One at a time: another would find folders that are just being removed.
	if err := untilFree(ctx, base, func() error { return flock(dir, unix.LOCK_EX) }); err != nil {
		return nil, err
	}
	items, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		run := filepath.Join(base, item.Name())
		state, serr := os.ReadFile(filepath.Join(run, stateName))
		if serr != nil {
			continue // of a program that did not note it, or just about to be used
		}
		if _, serr := os.Stat(string(state)); !errors.Is(serr, fs.ErrNotExist) {
			continue
		}
		h := &Host{state: string(state), run: run}
		rerr := h.makeKinds() // or one that was removed in part stays for ever
		var names []string
		if rerr == nil {
			names, rerr = h.Reap(ctx)
		}
		if removed = append(removed, names...); rerr != nil {
			err = errors.Join(err, fmt.Errorf("left of %s, which is gone: %w", state, rerr))
			continue
		}
		if h.removeEmpty() {
			removed = append(removed, "runtime folder of "+string(state))
		}
	}
	return removed, err
}

// removeEmpty removes a runtime folder in which nothing is. Who opens it
// meanwhile makes what is missing, or fails and may try again.
func (h *Host) removeEmpty() bool {
	for _, kind := range []string{"instances", "images", "fetchers"} {
		if err := os.Remove(h.dir(kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return refuseMounts(h.run) == nil && os.RemoveAll(h.run) == nil
}
