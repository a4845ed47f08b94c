// Package host keeps what runs of Thaw on this machine: fetchers, mounted
// images, instances. It starts and shares them, takes them down with their last
// user, and cleans up what killed processes left.
//
// Everything is under one folder, made anew for each state folder:
//
//	/run/thaw/filters/                         compiled system call filters, of all states
//	/run/thaw/<12 hex of the state's path>/    for root, and what runs in containers, alone;
//	                                           a shared lock of each that has it open
//	    state                    the path of the state folder
//	    fetchers/<key>.lock      held while a fetcher is started or ended
//	    fetchers/<key>/users     shared lock of each user
//	                   sock      where agents connect
//	                   fetcher.json, log
//	    images/<key>.lock        held while an image is mounted or unmounted
//	    images/<key>/users       shared lock of each user
//	                 fuse/       the agent's file system: image, rw/<instance>
//	                 root/       its image, mounted read-only
//	                 mapped/     the same with the ids of containers
//	                 control     the agent's socket
//	                 image.json, log
//	    instances/<id>/lock      held by the instance's process
//	                   instance.json
//	                   bundle/, rootfs/, runtime/
//	    jail/                    where agents build their jails, each in a mount namespace of its own
//	STATE/overlays/<id>/         what the instance has written
//
// In use is what somebody holds a lock on. Locks are flock(2)'s: a killed
// process holds none, and whoever comes next takes down what is held by nobody
// (Reap). Only root can use the package.
package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"thaw/sandbox"
)

const (
	// runDir is where runtime files belong (hier(7)); a reboot may leave it.
	runDir = "/run/thaw"
	// searchOnly lets the user of a container reach its root file system, and
	// read no names on the way.
	searchOnly = 0o711
	// containersOnly keeps all others away from the mounts below, which show
	// images decrypted: the folder's group is that of root in containers, which
	// no user of this machine is in.
	containersOnly = 0o710
	// stateName is the file with the path of the state folder.
	stateName = "state"
	// patience is how long a process may take to end by itself.
	patience = 5 * time.Second
	// stopPatience is how long an instance may take to take itself down.
	stopPatience = 30 * time.Second
)

// Host is one state folder's part of this machine. It is safe for concurrent
// use, also by several processes.
type Host struct {
	state string
	run   string
	open  *os.File // run, under a shared lock
}

// Open makes the folders that are missing. Close it, or end the process.
func Open(state string) (*Host, error) { return openIn(runDir, state) }

// openIn is Open with another folder for runtime files.
func openIn(base, state string) (*Host, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("mounting and running need root: try with sudo")
	}
	sum := sha256.Sum256([]byte(state))
	h := &Host{state: state, run: filepath.Join(base, hex.EncodeToString(sum[:6]))}
	if err := h.enter(); err != nil {
		return nil, err
	}
	if err := h.makeAll(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// enter makes the runtime folder, or takes one that is there, and holds it. It
// waits for who just removes it.
func (h *Host) enter() error {
	return untilFree(context.Background(), h.run, func() error {
		err := h.fence()
		if err == nil {
			h.open, err = lockDir(h.run, unix.LOCK_SH)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = errHeld
		}
		return err
	})
}

// makeAll makes what is in the runtime folder and in that of the state.
func (h *Host) makeAll() error {
	if err := h.makeKinds(); err != nil {
		return err
	}
	// Between root and the file systems of containers lies this folder alone.
	if err := os.MkdirAll(h.state, searchOnly); err != nil {
		return err
	}
	if err := makeDir(h.overlays(), 0o700); err != nil {
		return err
	}
	return h.noteState()
}

func (h *Host) makeKinds() error {
	return errors.Join(makeDir(h.dir("jail"), searchOnly), makeDir(h.dir("fetchers"), searchOnly), makeDir(h.dir("images"), searchOnly), makeDir(h.dir("instances"), searchOnly))
}

// fence makes the runtime folder, or takes one that is there, and lets nobody in
// but root and containers. Nobody gets in meanwhile.
func (h *Host) fence() error {
	if err := errors.Join(makeDir(filepath.Dir(h.run), searchOnly), makeDir(h.run, 0o700)); err != nil {
		return err
	}
	if err := os.Chown(h.run, 0, sandbox.IDBase); err != nil {
		return err
	}
	return os.Chmod(h.run, containersOnly)
}

// Filters is the folder for what sandbox keeps of compiled system call filters:
// those of one state are like another's.
func (h *Host) Filters() string { return filepath.Join(filepath.Dir(h.run), "filters") }

// makeDir makes a folder with exactly these permissions, whatever the umask.
func makeDir(dir string, perm os.FileMode) error {
	err := os.Mkdir(dir, perm)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, perm)
}

func (h *Host) dir(kind string, names ...string) string {
	return filepath.Join(append([]string{h.run, kind}, names...)...)
}

func (h *Host) overlays() string { return filepath.Join(h.state, "overlays") }

// hashKey gives a short name for what several strings say.
func hashKey(parts ...string) string {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6])
}

// writeRecord keeps a record, whole or not at all.
func writeRecord(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readRecord reads what writeRecord wrote.
func readRecord(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
