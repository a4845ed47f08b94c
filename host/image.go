package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent"
	"thaw/cache"
	"thaw/mount"
	"thaw/sandbox"
)

// readAhead is how far the kernel reads ahead on an image's device, in KiB. What
// it reads past the end of a chunk opens the next: of python, node and a JRE
// that say hello, 8.0, 21.2 and 11.8 % of the files' bytes are read with 32 KiB,
// 8.1, 21.8 and 11.8 % with 128, and 9.4, 25.6 and 12.9 % with the 2,560 that a
// loop device has by itself.
const readAhead = 128

// Image says what to mount, and how its agent gets at the chunks.
type Image struct {
	ID       string // image id
	Name     string // for messages
	Root     string // the origin's root
	Agent    string // the agent's program
	Deadline time.Duration
	Start    time.Time // when the start that mounts it began
	Manifest []byte    // sealed
	DataKey  []byte    // of the manifest's key table
	Trace    []byte    // sealed, or none
	Prefetch int64     // most bytes to fetch ahead, as the trace has it
	Record   bool      // what is touched, if it is not mounted yet

	// Blank gives an agent that was started ahead for the same fetcher, or nil; nil:
	// there are none.
	Blank func() *Blank
	// Lap is told when the agent of an image that was not mounted yet serves it:
	// StageBlank or StageAgent; nil: nobody is.
	Lap func(stage string)
}

// What it takes until an agent serves an image.
const (
	StageBlank = "blank" // of one that was started ahead
	StageAgent = "agent" // of one that had to be started
)

// key is that of an image version as one fetcher serves it.
func (i *Image) key(fetcher *Use) string { return hashKey(i.ID, i.Root, fetcher.key) }

// imageRecord is image.json. It is there before the agent does anything.
type imageRecord struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Process process `json:"process"` // the agent
	Mounted bool    `json:"mounted"` // and to be shared

	Deadline time.Duration `json:"deadline"` // of its reads
}

// UseImage mounts an image unless it is, and gives the lock that keeps it. Its
// users call ReleaseImage.
func (h *Host) UseImage(ctx context.Context, fetcher *Use, i Image) (*Use, error) {
	u, err := h.use(ctx, "images", i.key(fetcher))
	if err != nil {
		return nil, fmt.Errorf("mounting image %s: %w", i.Name, err)
	}
	defer u.unlock()
	if h.mounted(u.key) {
		return u, nil
	}
	watched, stop := h.untilFetcherEnds(ctx, fetcher)
	defer stop()
	err = h.setUpImage(watched, u.key, fetcher, i)
	if i.Blank != nil && errors.Is(err, agent.ErrEnded) { // a blank that was killed is no reason to fail
		i.Blank = nil
		err = h.setUpImage(watched, u.key, fetcher, i)
	}
	if err != nil {
		end := func() error { return h.tearDownImage(context.WithoutCancel(ctx), u.key) }
		return nil, fmt.Errorf("mounting image %s: %w", i.Name, errors.Join(err, end(), h.giveBack(u, end)))
	}
	u.made = true
	return u, nil
}

// mounted reports whether an image is there to be shared.
func (h *Host) mounted(key string) bool {
	var r imageRecord
	return readRecord(h.dir("images", key, "image.json"), &r) == nil && r.Mounted && r.Process.alive()
}

// setUpImage has an agent serve the image, and mounts what it serves.
func (h *Host) setUpImage(ctx context.Context, key string, fetcher *Use, i Image) error {
	// What an agent left that died: its users see only errors and are ending.
	if err := h.tearDownImage(ctx, key); err != nil {
		return fmt.Errorf("clearing what was left: %w", err)
	}
	for _, dir := range []string{"", "fuse", "root", "mapped"} {
		if err := makeDir(h.dir("images", key, dir), searchOnly); err != nil {
			return err
		}
	}
	record := imageRecord{ID: i.ID, Name: i.Name, Deadline: i.Deadline}
	users, err := h.engage(ctx, key, fetcher, i, func(p process) error {
		record.Process = p
		return writeRecord(h.dir("images", key, "image.json"), record)
	})
	if err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	defer users.Close()                                                   // the mapped mount keeps it
	abort := func() { _ = mount.AbortFUSE(h.dir("images", key, "fuse")) } // without it the mount fails at its deadline
	if err := interruptible(ctx, abort, func() error { return h.mountImage(key, users) }); err != nil {
		return errors.Join(err, h.fault(context.WithoutCancel(ctx), key))
	}
	record.Mounted = true
	return writeRecord(h.dir("images", key, "image.json"), record)
}

// engage has an agent serve the image. It gives its user namespace, which the
// caller closes.
func (h *Host) engage(ctx context.Context, key string, fetcher *Use, i Image, started func(process) error) (users *os.File, err error) {
	var b *Blank
	stage := StageBlank
	if i.Blank != nil {
		b = i.Blank()
	}
	if b == nil {
		stage = StageAgent
		if b, err = h.StartAgent(ctx, fetcher, i.Agent); err != nil {
			return nil, err
		}
	}
	if err := h.give(ctx, b, key, i, started); err != nil {
		b.Close()
		return nil, err
	}
	if i.Lap != nil {
		i.Lap(stage)
	}
	return b.users, nil
}

// Deadline gives how long the reads of a mounted image wait: one that was
// mounted already keeps the deadline that it had.
func (h *Host) Deadline(u *Use) (time.Duration, error) {
	var r imageRecord
	err := readRecord(h.dir("images", u.key, "image.json"), &r)
	return r.Deadline, err
}

// interruptible runs f, and abort as soon as ctx ends, which is to end f; then
// its error is that of ctx as well.
func interruptible(ctx context.Context, abort func(), f func() error) error {
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		abort()
	})
	err := f()
	if stop() {
		return err
	}
	<-aborted
	return errors.Join(context.Cause(ctx), err)
}

// Interruptible runs f, which reads the image through the kernel. If ctx ends
// meanwhile, and nobody else uses the image, its reads fail from then on, and
// all that is left to do is ReleaseImage. Otherwise f ends when its reads do.
func (h *Host) Interruptible(ctx context.Context, u *Use, f func() error) error {
	return interruptible(ctx, func() {
		held, err := waitLock(context.WithoutCancel(ctx), u.lockPath)
		if err != nil {
			return
		}
		defer held.Close()
		if flock(u.users, unix.LOCK_EX) == nil {
			_ = mount.AbortFUSE(h.dir("images", u.key, "fuse"))
		}
	}, f)
}

// mountImage has the kernel read the agent's file.
func (h *Host) mountImage(key string, users *os.File) error {
	loop, err := mount.AttachLoop(h.dir("images", key, "fuse", "image"), true)
	if err != nil {
		return err
	}
	defer loop.Close() // the mount keeps it
	if err := loop.SetReadAhead(readAhead); err != nil {
		return err
	}
	if err := mount.MountExt4(loop.Device, h.dir("images", key, "root"), true); err != nil {
		return err
	}
	return mount.IDMap(h.dir("images", key, "root"), h.dir("images", key, "mapped"), users)
}

// userNamespace maps the ids of files to those of containers.
func userNamespace() (*os.File, error) {
	return mount.UserNamespace(sandbox.IDBase, sandbox.IDCount)
}

// ReleaseImage unmounts the image and ends its agent if this was its last user.
func (h *Host) ReleaseImage(ctx context.Context, u *Use) error {
	return h.release(ctx, u, func() error { return h.tearDownImage(ctx, u.key) })
}

// tearDownImage unmounts all that an image has mounted and waits until its
// agent has ended. The key's lock is held.
func (h *Host) tearDownImage(ctx context.Context, key string) error {
	dir := h.dir("images", key)
	var r imageRecord
	known := readRecord(filepath.Join(dir, "image.json"), &r) == nil
	if known && r.Process.alive() {
		for _, sub := range []string{"mapped", "root", "fuse"} { // with the last the agent ends
			if err := mount.Unmount(filepath.Join(dir, sub)); err != nil {
				return fmt.Errorf("unmounting: %w", err)
			}
		}
	}
	if err := mount.DetachAll(dir); err != nil { // what is left of one that died
		return fmt.Errorf("unmounting: %w", err)
	}
	if known {
		if err := r.Process.end(ctx, patience); err != nil {
			return fmt.Errorf("ending the agent: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "image.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Rootfs is where the image is mounted, as its own ids have it or as containers
// see it.
func (h *Host) Rootfs(u *Use, mapped bool) string {
	if mapped {
		return h.dir("images", u.key, "mapped")
	}
	return h.dir("images", u.key, "root")
}

// Agent connects to the agent of an image.
func (h *Host) Agent(ctx context.Context, u *Use) (*agent.Conn, error) {
	return agent.Dial(ctx, h.dir("images", u.key, "control"))
}

// Stats gives what the image's agent has read so far. One that does not answer
// has numbers for nobody.
func (h *Host) Stats(ctx context.Context, u *Use) (stats cache.Stats) {
	conn, err := h.Agent(ctx, u)
	if err == nil {
		defer conn.Close()
		stats, _ = conn.Stats()
	}
	return stats
}

// Explain adds to an I/O error, in which the kernel puts all that fails, the
// last read of the image that did fail.
func (h *Host) Explain(ctx context.Context, u *Use, err error) error {
	if errors.Is(err, unix.EIO) {
		return errors.Join(err, h.fault(context.WithoutCancel(ctx), u.key))
	}
	return err
}

// fault gives, as an error, the last read that failed of an image, or nil.
func (h *Host) fault(ctx context.Context, key string) error {
	conn, err := agent.Dial(ctx, h.dir("images", key, "control"))
	if err != nil {
		return nil // it has ended, and its words are in its log
	}
	defer conn.Close()
	fault, _ := conn.Fault() // or it has ended
	return fault
}

// AgentEnd gives a descriptor that becomes readable when the image's agent
// ends, or nil if it has ended.
func (h *Host) AgentEnd(u *Use) (*os.File, error) {
	var r imageRecord
	if err := readRecord(h.dir("images", u.key, "image.json"), &r); err != nil {
		return nil, err
	}
	return r.Process.open()
}
