package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Close ends the use of the Host. The last to do so removes the runtime folder, if
// nothing is in it; what is left over stays for Reap.
func (h *Host) Close() { h.depart() }

// depart is Close, and reports whether the folder is removed. Of several that leave
// at once, the last finds the others' locks gone.
func (h *Host) depart() (removed bool) {
	defer unlock(h.open)
	return flock(h.open, unix.LOCK_EX) == nil && h.removeEmpty()
}

// Remove ends what nobody keeps and removes the runtime folder, for a state
// folder that is to go. Nobody else may use that state.
func (h *Host) Remove(ctx context.Context) error {
	defer unlock(h.open)
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
		names, ierr := reapOther(ctx, filepath.Join(base, item.Name()))
		removed, err = append(removed, names...), errors.Join(err, ierr)
	}
	return removed, err
}

// reapOther does it for one runtime folder. One that says not of which state it
// is goes if nobody has it open and nothing is in it.
func reapOther(ctx context.Context, run string) (removed []string, err error) {
	h := &Host{run: run}
	if name := filepath.Base(run); len(name) != 12 || strings.Trim(name, "0123456789abcdef") != "" {
		return nil, nil // no state's
	}
	if h.open, err = lockDir(run, unix.LOCK_SH); err != nil {
		return nil, nil // somebody removes it
	}
	state, err := os.ReadFile(filepath.Join(run, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		h.depart()
		return nil, nil
	}
	if _, serr := os.Stat(string(state)); err != nil || !errors.Is(serr, fs.ErrNotExist) {
		return nil, errors.Join(err, unlock(h.open))
	}
	h.state = string(state)
	if err = h.makeKinds(); err == nil { // or one that was removed in part stays for ever
		removed, err = h.Reap(ctx)
	}
	if err != nil {
		return removed, errors.Join(fmt.Errorf("left of %s, which is gone: %w", state, err), unlock(h.open))
	}
	if h.depart() {
		removed = append(removed, "runtime folder of "+h.state)
	}
	return removed, nil
}

// removeEmpty removes a runtime folder in which nothing is, and which nobody else
// has open.
func (h *Host) removeEmpty() bool {
	for _, kind := range []string{"instances", "images", "fetchers"} {
		if items, err := os.ReadDir(h.dir(kind)); len(items) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return refuseMounts(h.run) == nil && os.RemoveAll(h.run) == nil
}
