package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"golang.org/x/sys/unix"

	"thaw/host"
	"thaw/mount"
	"thaw/sandbox"
	"thaw/text"
)

type runCmd struct {
	Image   string   `arg:"" help:"IMAGE, or a SOURCE that is converted first: docker://REF, oci:DIR[:TAG], …, or a reference alone."`
	Command []string `arg:"" optional:"" passthrough:"all" help:"Command and arguments, in place of the image's Cmd."`

	sourceFlags
	Interactive bool     `short:"i" help:"Keep standard input."`
	TTY         bool     `short:"t" help:"Give it a terminal."`
	Env         []string `short:"e" sep:"none" help:"K=V, or K alone for the value that it has here." placeholder:"K=V"`
	Workdir     string   `short:"w" help:"Working directory." placeholder:"DIR"`
	User        string   `short:"u" help:"User, by name or number, and :GROUP." placeholder:"USER"`
	Volume      []string `short:"v" sep:"none" help:"Folder or file of this machine: SRC:DST[:ro]." placeholder:"SRC:DST"`
	Memory      byteSize `short:"m" help:"Limit of memory."`
	CPUs        float64  `name:"cpus" help:"Limit of processors, such as 0.5." placeholder:"N"`
	Net         string   `help:"Network: none, or this machine's (host)." enum:"none,host" default:"none"`
	Runtime     string   `help:"OCI runtime: runc, crun, runsc, or a path (by default the best that this machine can run)." placeholder:"R"`
	RwBlock     bool     `help:"Write through the image's own ext4 file system, in place of an overlay of folders."`
	StatsJSON   string   `name:"stats-json" help:"File for the numbers of this start, as JSON." placeholder:"FILE"`
	Record      bool     `help:"Remember what the program reads of the image until it ends, for a minute at most: later starts fetch that ahead."`
	Ready       string   `help:"Record, but only until a line of the program's output holds this text." placeholder:"TEXT"`
	Prefetch    bool     `help:"Fetch ahead what recorded starts have read." negatable:"" default:"true"`
}

// Help teaches by example.
func (runCmd) Help() string {
	return `The program starts at once: what it touches of the image is fetched when it is touched. The
exit status is the program's; 125 if thaw failed, 126 if the command cannot be executed, 127 if
it is not there.

  thaw run debian:12 cat /etc/os-release
  thaw run -it --net host oci:./layout:v1 /bin/bash
  thaw run -m 512MiB --cpus 0.5 -v "$PWD":/work:ro -w /work app ./task
  thaw run --ready 'listening on' app         record this start: the next ones have less to wait for

What was loaded is told on stderr at the end.`
}

// Run starts the image's program. It returns only an error: the shim takes the
// place of this process.
func (c *runCmd) Run(ctx context.Context, g *Globals) error {
	outlivePipes()
	if err := c.run(ctx, g); err != nil {
		return &exitError{sandbox.ExitCode(err), err}
	}
	return nil
}

func (c *runCmd) run(ctx context.Context, g *Globals) error {
	if c.TTY && c.Interactive && !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("-it: standard input is no terminal: use -i alone")
	}
	volumes := make([]sandbox.Volume, len(c.Volume))
	for i, v := range c.Volume {
		var err error
		if volumes[i], err = sandbox.ParseVolume(v); err != nil {
			return err
		}
	}
	if _, err := sandbox.Find(c.Runtime); err != nil {
		return err // before anything is mounted
	}
	if !utf8.ValidString(c.Ready + c.StatsJSON) {
		return errors.New("--ready, --stats-json: want UTF-8")
	}
	if strings.ContainsAny(c.Ready, "\r\n") {
		return errors.New("--ready: want a text within one line")
	}
	s, err := g.start(ctx, subject{c.Image, c.options()}, host.KindRun, tracing{c.Prefetch, c.Record || c.Ready != ""})
	if err != nil {
		return err
	}
	if err = s.host.Interruptible(ctx, s.image, func() error { return c.prepare(ctx, s, volumes) }); err != nil {
		err = s.host.Explain(ctx, s.image, err)
	} else {
		err = s.hand(ctx, g, host.Order{Runtime: c.Runtime, Interactive: c.Interactive, StatsFile: c.StatsJSON, Ready: c.Ready})
	}
	return errors.Join(err, s.release(ctx))
}

// outlivePipes keeps this process from ending, half done, since nobody reads
// what it says. What it starts has signals as they are by themselves: one that
// is caught is not passed on, as one that is ignored would be.
func outlivePipes() {
	if !signal.Ignored(unix.SIGPIPE) {
		signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	}
}

// prepare makes the root file system and the bundle.
func (c *runCmd) prepare(ctx context.Context, s *started, volumes []sandbox.Volume) error {
	var err error
	if c.RwBlock {
		err = s.instance.MountWritable(ctx, s.image, s.instance.Dir("rootfs"), true)
	} else {
		err = s.instance.MountOverlay(s.image)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", s.name, err)
	}
	s.watch.lap("rootfs")
	s.instance.Command, s.instance.Runtime = c.Command, c.Runtime
	if volumes, err = mapVolumes(s, volumes); err != nil {
		return err
	}
	err = sandbox.WriteBundle(sandbox.Config{
		Image: s.Config, Root: s.instance.Dir("rootfs"), Bundle: s.instance.Dir("bundle"), Cgroup: s.instance.Cgroup(), Hostname: s.instance.ID,
		Args: c.Command, Env: c.Env, Dir: c.Workdir, User: c.User, Volumes: volumes, Terminal: c.TTY, HostNetwork: c.Net == "host",
		Filters: s.host.Filters(),
		Memory:  int64(c.Memory), CPUs: c.CPUs,
	})
	s.watch.lap("bundle")
	return err
}

// mapVolumes shows volumes with the owners that they have here. A file system
// that cannot map owners (of those in use only old ones and some of networks)
// is shown as it is: files of root are nobody's inside.
func mapVolumes(s *started, volumes []sandbox.Volume) (all []sandbox.Volume, err error) {
	for n, v := range volumes {
		at, tree, err := s.instance.MapVolume(n, v.Source, v.ReadOnly)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Source, err)
		}
		if len(tree.Unmapped) > 0 {
			fmt.Fprintf(os.Stderr, "thaw: %s: its file system cannot map owners: inside, the files of root here are nobody's\n", text.Line(few(tree.Unmapped)))
		}
		if len(tree.Unseen) > 0 {
			fmt.Fprintf(os.Stderr, "thaw: %s: not shown inside: it may not be mounted twice\n", text.Line(few(tree.Unseen)))
		}
		all = append(all, sandbox.Volume{Source: at, Target: v.Target, ReadOnly: v.ReadOnly})
		for _, name := range tree.Below { // crun has what is mounted below a source only if it is told
			all = append(all, sandbox.Volume{Source: filepath.Join(at, name), Target: filepath.Join(v.Target, name), ReadOnly: v.ReadOnly})
		}
	}
	return all, nil
}

// few names the first of many.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

type mountCmd struct {
	Image string `arg:"" help:"IMAGE or SOURCE."`
	Dir   string `arg:"" type:"path" help:"An empty folder."`
	sourceFlags
	RW        bool   `name:"rw" help:"Writable: what is written is gone with the mount."`
	StatsJSON string `name:"stats-json" help:"File for the numbers of this mount, as JSON." placeholder:"FILE"`
}

// Help teaches by example.
func (mountCmd) Help() string {
	return `Stays in the foreground until the folder is unmounted, or a signal comes.

  thaw mount debian:12 /mnt &
  ls /mnt/etc
  thaw umount /mnt`
}

// Run mounts the image. It returns only an error: the shim takes the place of
// this process.
func (c *mountCmd) Run(ctx context.Context, g *Globals) error {
	outlivePipes()
	dir, err := filepath.EvalSymlinks(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: make the folder first", c.Dir)
	}
	if err != nil {
		return err
	}
	if err := checkTarget(dir); err != nil {
		return fmt.Errorf("%s %w", c.Dir, err)
	}
	s, err := g.start(ctx, subject{c.Image, c.options()}, host.KindMount, tracing{})
	if err != nil {
		return err
	}
	s.instance.Target = dir
	// The shim mounts: who sees the mount may send a signal, and this process
	// would lose it in becoming that one.
	err = s.hand(ctx, g, host.Order{Writable: c.RW, StatsFile: c.StatsJSON})
	return errors.Join(err, s.release(ctx))
}

// checkTarget refuses what a mount would hide.
func checkTarget(dir string) error {
	if !utf8.ValidString(dir) {
		return errors.New("is not a name in UTF-8, which all records of mounts are in")
	}
	items, err := os.ReadDir(dir)
	switch _, root, merr := mount.At(dir); {
	case errors.Is(err, unix.ENOTDIR):
		return errors.New("is not a folder")
	case merr != nil:
		return merr
	case root:
		return errors.New("has something mounted on it: thaw umount or umount it first")
	case err != nil:
		return fmt.Errorf("cannot be read: %w", err)
	case len(items) > 0:
		return fmt.Errorf("is not empty (%s): a mount would hide what is there", items[0].Name())
	}
	return nil
}
