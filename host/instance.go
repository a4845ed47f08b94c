package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"thaw/mount"
	"thaw/sandbox"
)

// cgroupPrefix begins the name of an instance's group in every hierarchy; the
// name of the host's runtime folder and the instance's id follow.
const cgroupPrefix = "/thaw-"

// Kinds of instances.
const (
	KindRun      = "run"      // a container
	KindMount    = "mount"    // an image at a folder
	KindFunction = "function" // an instance of a function, kept by a worker; also before it is one's
	KindRoot     = "root"     // the root file system of a function version's instances
)

// Instance is a container, or a mounted folder, and the process that keeps it:
// its record, instance.json. It holds no secret.
type Instance struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Image   string    `json:"image"`   // as it was asked for
	ImageID string    `json:"imageID"` // manifest id
	Command []string  `json:"command,omitempty"`
	Target  string    `json:"target,omitempty"`  // the folder of a mount
	Mount   int       `json:"mount,omitempty"`   // the kernel's id of what is mounted there, once it is
	Runtime string    `json:"runtime,omitempty"` // program of a container
	Writes  bool      `json:"writes,omitempty"`  // has a writable device
	Started time.Time `json:"started"`
	Keeper  int       `json:"keeper"` // pid of the process that keeps it
	ImageOf string    `json:"imageKey"`
	Fetcher string    `json:"fetcherKey"`

	host *Host
	lock *os.File

	// Of MountScratch.
	scratch     *os.File
	scratchSize int64
	damaged     bool
}

// readInstance reads the record of an instance. One that is damaged, or is not
// there, has only its ID.
func (h *Host) readInstance(id string) (*Instance, error) {
	i := &Instance{}
	err := readRecord(h.dir("instances", id, "instance.json"), i)
	if err == nil && !slices.Contains([]string{KindRun, KindMount, KindFunction, KindRoot}, i.Kind) {
		err = fmt.Errorf("a record of kind %q", i.Kind)
	}
	if err != nil {
		i = &Instance{damaged: true}
	}
	i.ID, i.host = id, h
	return i, err
}

// Damaged reports whether the instance's record says nothing.
func (i *Instance) Damaged() bool { return i.damaged }

// NewInstance makes an instance that this process keeps: its folder, and the
// lock that says so. The caller sets what it knows and calls Save. One that has
// no image yet, nil, is given one by Assign.
func (h *Host) NewInstance(kind string, image, fetcher *Use) (*Instance, error) {
	var id [6]byte
	_, _ = rand.Read(id[:]) // never fails
	i := &Instance{ID: hex.EncodeToString(id[:]), Kind: kind, Started: time.Now().UTC(), Keeper: os.Getpid(), host: h}
	if image != nil {
		i.Assign(image, fetcher)
	}
	// Nobody may find it without its lock: it gets its name when it is held.
	hidden, err := h.hidden(i.ID)
	if err == nil {
		err = i.fill(hidden)
	}
	if err == nil {
		err = os.Rename(hidden, i.Dir())
	}
	if err != nil {
		return nil, fmt.Errorf("making an instance: %w", errors.Join(err, os.RemoveAll(hidden)))
	}
	return i, nil
}

// Assign says which image and fetcher the instance uses.
func (i *Instance) Assign(image, fetcher *Use) { i.ImageOf, i.Fetcher = image.key, fetcher.key }

// hidden is where this process makes or removes the folder of an instance. The
// name says whose it is: what nobody who lives made or removes is left over.
func (h *Host) hidden(id string) (string, error) {
	self, err := identify(os.Getpid())
	return h.dir("instances", fmt.Sprintf(".%s.%d.%d.%s", id, self.PID, self.Start, self.Boot)), err
}

// hiddenBy reads a name that hidden gave.
func hiddenBy(name string) (by process, ok bool) {
	fields := strings.Split(name, ".")
	if len(fields) != 5 || fields[0] != "" {
		return by, false
	}
	by.Boot = fields[4]
	var perr, serr error
	by.PID, perr = strconv.Atoi(fields[2])
	by.Start, serr = strconv.ParseUint(fields[3], 10, 64)
	return by, perr == nil && serr == nil
}

func (i *Instance) fill(dir string) error {
	for _, sub := range []string{"", "bundle", "rootfs", "runtime"} {
		if err := makeDir(filepath.Join(dir, sub), searchOnly); err != nil {
			return err
		}
	}
	var err error
	if i.lock, err = lock(filepath.Join(dir, "lock"), unix.LOCK_EX); err != nil {
		return err
	}
	return i.save(dir)
}

// Save writes the record.
func (i *Instance) Save() error { return i.save(i.Dir()) }

func (i *Instance) save(dir string) error {
	return writeRecord(filepath.Join(dir, "instance.json"), i)
}

// Dir is the instance's folder.
func (i *Instance) Dir(names ...string) string {
	return i.host.dir("instances", append([]string{i.ID}, names...)...)
}

// Cgroup is the instance's group, as a path in a hierarchy.
func (i *Instance) Cgroup() string {
	return cgroupPrefix + filepath.Base(i.host.run) + "-" + i.ID
}

// MountOverlay gives the instance a root file system of its own: the image, and
// above it what the instance writes.
func (i *Instance) MountOverlay(image *Use) error {
	dir := filepath.Join(i.host.overlays(), i.ID)
	for _, sub := range []string{"", "upper", "work"} {
		if err := makeDir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	upper := filepath.Join(dir, "upper")
	// The root of what is seen is the upper folder: it takes the image's owner
	// and permissions. Owners are those that containers have.
	var st unix.Stat_t
	if err := unix.Stat(i.host.Rootfs(image, true), &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return err
	}
	return mount.MountOverlay(i.Dir("rootfs"), mount.Overlay{
		Lower: []string{i.host.Rootfs(image, true)}, Upper: upper, Work: filepath.Join(dir, "work"),
	})
}

// MountWritable mounts the image's own file system at dir, writable: what is
// written goes to a file without a name, encrypted, and is gone with the
// instance. mapped gives files the ids of containers.
func (i *Instance) MountWritable(ctx context.Context, image *Use, dir string, mapped bool) error {
	conn, err := i.host.Agent(ctx, image)
	if err != nil {
		return err
	}
	defer conn.Close()
	file, err := os.OpenFile(i.host.overlays(), unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("a file for what is written: %w", err)
	}
	defer file.Close()
	i.Writes = true
	if err := errors.Join(i.Save(), conn.Add(i.ID, file)); err != nil {
		return err
	}
	loop, err := mount.AttachLoop(i.host.dir("images", image.key, "fuse", "rw", i.ID), false)
	if err != nil {
		return err
	}
	defer loop.Close()
	plain := i.Dir("plain")
	if err := makeDir(plain, 0o700); err != nil {
		return err
	}
	if err := mount.MountExt4(loop.Device, plain, false); err != nil {
		return err
	}
	if err := i.showPlain(plain, dir, mapped); err != nil {
		return err
	}
	return mount.Unmount(plain) // the other keeps the file system
}

// showPlain mounts a file system elsewhere, with its ids or those of containers.
func (i *Instance) showPlain(plain, dir string, mapped bool) error {
	if !mapped {
		return i.bind(plain, dir, false)
	}
	users, err := userNamespace()
	if err != nil {
		return err
	}
	defer users.Close()
	return mount.IDMap(plain, dir, users)
}

// MapVolume gives the path of a file or folder of this machine, with all that is
// mounted below it but Thaw's own, whose owners an instance sees as they are
// here: what its root writes is root's. n tells the instance's volumes apart. The
// tree says what it found.
func (i *Instance) MapVolume(n int, source string, readOnly bool) (string, *mount.Tree, error) {
	info, err := os.Stat(source)
	if err != nil {
		return "", nil, err
	}
	if err := makeDir(i.Dir("volumes"), searchOnly); err != nil {
		return "", nil, err
	}
	at := i.Dir("volumes", strconv.Itoa(n))
	if info.IsDir() {
		err = makeDir(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", nil, err
	}
	users, err := userNamespace()
	if err != nil {
		return "", nil, err
	}
	defer users.Close()
	tree := &mount.Tree{Source: source, ReadOnly: readOnly, Users: users, Without: runDir}
	return at, tree, tree.Mount(at)
}

// BindTo shows the image at a folder, read-only.
func (i *Instance) BindTo(image *Use, dir string) error {
	return i.bind(i.host.Rootfs(image, false), dir, true)
}

// bind shows a folder at another, and remembers which mount that is.
func (i *Instance) bind(from, dir string, readOnly bool) (err error) {
	if i.Mount, err = mount.Bind(from, dir, readOnly); err != nil {
		return err
	}
	return i.Save()
}

// End takes the instance down: its processes, groups, mounts, files. It can be
// called again.
func (i *Instance) End(ctx context.Context) error {
	if err := i.host.clean(ctx, i); err != nil {
		return fmt.Errorf("instance %s: %w", i.ID, err)
	}
	if i.scratch != nil {
		_ = i.scratch.Close() // its blocks are free now
	}
	return i.lock.Close()
}

// clean removes what an instance has. The caller holds its lock.
func (h *Host) clean(ctx context.Context, i *Instance) error {
	dir := h.dir("instances", i.ID)
	if i.Kind != KindMount {
		if err := sandbox.Delete(ctx, filepath.Join(dir, "runtime"), i.ID, i.Cgroup()); err != nil {
			return err
		}
	}
	if i.Target != "" {
		if err := i.unmountTarget(); err != nil {
			return err
		}
	}
	if i.Writes {
		mounts, _ := mount.Under(dir)
		settle(mounts...)
	}
	if err := mount.DetachAll(dir); err != nil {
		return err
	}
	if i.Writes {
		h.removeWritable(ctx, i)
	}
	if err := removeAll(filepath.Join(h.overlays(), i.ID)); err != nil {
		return err
	}
	return h.forget(i.ID)
}

// settle has the kernel write nothing more to a writable device, which goes next:
// who has a copy of its mount keeps the file system alive, and the kernel's log
// would tell of data lost for as long. That is all there is to it, for what was
// written goes with the instance; so a file system that cannot settle, since a
// file is open in it or its agent has ended, goes as it is.
func settle(mounts ...mount.Mount) {
	for _, m := range mounts {
		if m.Type == "ext4" {
			_ = m.Settle()
		}
	}
}

// forget removes the folder of an instance, whose lock the caller holds. It
// loses its name first: with a name it has its lock.
func (h *Host) forget(id string) error {
	dir := h.dir("instances", id)
	hidden, err := h.hidden(id)
	if err == nil {
		err = refuseMounts(dir)
	}
	if err == nil {
		err = os.Rename(dir, hidden)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was forgotten before
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(hidden)
}

// removeWritable has the agent forget the instance's pages. An agent that has
// ended has forgotten them.
func (h *Host) removeWritable(ctx context.Context, i *Instance) {
	conn, err := h.Agent(ctx, &Use{kind: "images", key: i.ImageOf})
	if err == nil {
		_ = conn.Remove(i.ID)
		_ = conn.Close()
	}
}

// Instances lists what is kept, and what was left over, also if it is damaged.
func (h *Host) Instances() ([]Instance, error) {
	ids, err := h.keys("instances")
	var all []Instance
	for _, id := range ids {
		i, err := h.readInstance(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just ended
		}
		all = append(all, *i)
	}
	slices.SortFunc(all, func(a, b Instance) int { return a.Started.Compare(b.Started) })
	return all, err
}

// Kept reports whether a process keeps the instance.
func (i *Instance) Kept() bool {
	f, err := os.Open(i.Dir("lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock(f, unix.LOCK_SH), errHeld)
}

// Stop asks the process that keeps the instance to end it, and waits until it
// has. It kills nothing: a process that does not end in time is an error.
func (i *Instance) Stop(ctx context.Context) error {
	p, err := identify(i.Keeper)
	if err != nil || !i.Kept() {
		return nil // a leftover, for Reap
	}
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	f, err := p.open()
	if f == nil {
		return err
	}
	defer f.Close()
	if !waitFd(ctx, int(f.Fd()), stopPatience) {
		return fmt.Errorf("process %d, which keeps instance %s, does not end", i.Keeper, i.ID)
	}
	return nil
}
