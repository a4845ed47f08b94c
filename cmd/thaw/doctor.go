package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"thaw/sandbox"
	"thaw/text"
)

type doctorCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Help teaches by example.
func (doctorCmd) Help() string {
	return `Looks at what "thaw run" and "thaw mount" need of this machine, and says for what is missing how
Debian gets it. As root it also makes a network with a way out, converts an image of one tiny
program, in a folder of its own that it removes, and starts it with every OCI runtime that is here. "MISSING" is what nothing
starts without, "without" what some things need.

  thaw doctor
  thaw doctor --json | jq -r 'select(.ok | not) | .mend'

Exit status 1: "thaw run" cannot work.`
}

// finding is one thing that a start needs of the machine, or that is better to
// have.
type finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // without it nothing starts
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // a command on Debian
}

const (
	// The oldest kernel is the one that package mount is written for: ext4 with
	// mapped ids came in 5.12, overlayfs over it in 5.19, and 6.1 is Debian 12's.
	oldestMajor, oldestMinor = 6, 1
	// enoughFiles is how many files a process should be allowed to open: an
	// agent keeps some for each chunk that is being read, and a fetcher two for
	// each agent.
	enoughFiles = 4096
	lookFurther = "see above, or the kernel's log (dmesg)"
)

// Run looks at the machine.
func (c *doctorCmd) Run(ctx context.Context, g *Globals) error {
	all := examine(ctx, g.State)
	if os.Geteuid() == 0 {
		all = append(all, forwardingFinding(), tryEgress(ctx))
		all = append(all, g.tryStarts(ctx)...)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.print(g.stdout, all); err != nil {
		return err
	}
	var missing []string
	for _, f := range all {
		if f.Needed && !f.OK && !slices.Contains(missing, f.Name) {
			missing = append(missing, f.Name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("thaw run cannot work here yet: %s", strings.Join(missing, ", "))
	}
	return nil
}

// examine looks at everything that can be seen without a try.
func examine(ctx context.Context, state string) []finding {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail
	all := []finding{kernelFinding(unix.ByteSliceToString(u.Release[:]))}
	for _, f := range sandbox.Check(ctx) {
		// Without limits an instance starts all the same, and without a filter of
		// system calls it does not.
		all = append(all, finding{f.Name, f.OK, f.Name != "cgroups", f.Detail, f.Mend})
	}
	// One runtime is enough.
	const runtime = "OCI runtime"
	works := slices.ContainsFunc(all, func(f finding) bool { return f.Name == runtime && f.OK })
	for i := range all {
		all[i].Needed = all[i].Needed && (all[i].Name != runtime || !works)
	}
	return append(all, stateFinding(state), filesFinding(), keyringFinding(), freezerFinding())
}

// kernelFinding wants a kernel's release, as uname gives it, not to be too old.
func kernelFinding(release string) finding {
	f := finding{Name: "kernel", Needed: true, Detail: release}
	var major, minor int
	if n, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || n != 2 {
		f.Detail = fmt.Sprintf("cannot tell the version of %q", release)
		return f
	}
	f.OK = major > oldestMajor || major == oldestMajor && minor >= oldestMinor
	if !f.OK {
		f.Detail += fmt.Sprintf(": older than %d.%d", oldestMajor, oldestMinor)
		f.Mend = "apt-get install linux-image-amd64 && reboot"
	}
	return f
}

// File systems on which overlayfs cannot keep what instances write, by the
// number that statfs(2) gives.
var notForOverlays = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", // as in a container
	unix.NFS_SUPER_MAGIC:       "NFS",
	unix.FUSE_SUPER_MAGIC:      "FUSE",
	unix.V9FS_MAGIC:            "9p",
	unix.MSDOS_SUPER_MAGIC:     "vfat",
}

// stateFinding looks at the file system of the state folder, which may not be
// there yet.
func stateFinding(dir string) finding {
	f := finding{Name: "state folder", Needed: true}
	at := dir
	var s unix.Statfs_t
	err := unix.Statfs(at, &s)
	for errors.Is(err, fs.ErrNotExist) && at != "/" {
		at = filepath.Dir(at)
		err = unix.Statfs(at, &s)
	}
	if err != nil {
		f.Detail, f.Mend = fmt.Sprintf("%s: %v", dir, err), "thaw --state DIR …"
		return f
	}
	kind, bad := notForOverlays[int64(s.Type)]
	free := text.Bytes(int64(s.Bavail) * s.Bsize)
	switch {
	case bad:
		f.Detail, f.Mend = fmt.Sprintf("%s is on %s, where overlayfs cannot write", dir, kind), "thaw --state DIR …, with DIR on a disk (ext4, xfs, btrfs)"
	case s.Flags&unix.ST_RDONLY != 0:
		f.Detail, f.Mend = dir+" is on a file system mounted read-only", "thaw --state DIR …"
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%s, %s free", dir, free)
	}
	return f
}

// filesFinding looks at the limit of open files, which the Go runtime raises to
// the hard one.
func filesFinding() finding {
	var l unix.Rlimit
	f := finding{Name: "open files"}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = l.Max >= enoughFiles, fmt.Sprintf("up to %d in a process", l.Max)
	if !f.OK {
		f.Mend = "ulimit -Hn 65536, as root (LimitNOFILE=65536 in a service)"
	}
	return f
}

// keyringFinding looks whether the kernel can remember keys.
func keyringFinding() finding {
	f := finding{Name: "keyring", OK: true, Detail: "remembers the keys of remote services while they are down"}
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true); err != nil {
		f.OK, f.Detail = false, fmt.Sprintf("none (%v): images whose key is with a remote service do not start while that is down", err)
	}
	return f
}

// print prints, what is well in one line each, and what is not in two.
func (c *doctorCmd) print(w io.Writer, all []finding) error {
	if c.JSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false) // commands have "&&"
		for _, f := range all {
			if err := enc.Encode(f); err != nil {
				return err
			}
		}
		return nil
	}
	for _, f := range all {
		word := "ok"
		switch {
		case !f.OK && f.Needed:
			word = "MISSING"
		case !f.OK:
			word = "without"
		}
		if _, err := fmt.Fprintf(w, "%-8s %-16s %s\n", word, f.Name, text.Line(f.Detail)); err != nil {
			return err
		}
		if !f.OK && f.Mend != "" {
			fmt.Fprintf(w, "%-8s %-16s → %s\n", "", "", f.Mend)
		}
	}
	return nil
}
