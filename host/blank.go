package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"thaw/agent"
	"thaw/mount"
)

// Blank is an agent without an image: it is in its jail, has no key, and waits.
// UseImage makes it that of one image, for good. It ends with the process that
// started it, and leaves nothing. It is for one goroutine.
type Blank struct {
	cmd     *exec.Cmd
	link    *agent.Link
	process process
	users   *os.File // a user namespace of containers' ids, for the image's mount
}

// StartAgent starts an agent for an image that is to be read through a fetcher,
// and waits until it is in its jail. The caller closes it, unless UseImage gets
// it.
func (h *Host) StartAgent(ctx context.Context, fetcher *Use, program string) (*Blank, error) {
	f, err := h.Fetcher(fetcher)
	if err != nil {
		return nil, err
	}
	link, theirs, err := agent.NewLink()
	if err != nil {
		return nil, err
	}
	b := &Blank{link: link, cmd: exec.Command(program)}
	b.cmd.Args = []string{"thaw-agent", h.dir("jail"), f.Cache, h.dir("fetchers", fetcher.key)}
	b.cmd.Env, b.cmd.Dir = []string{}, "/" // it needs no environment, and may not see ours
	b.cmd.ExtraFiles = []*os.File{theirs}  // agent.FDParent
	b.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
	}
	var uerr error
	var work sync.WaitGroup
	work.Go(func() { b.users, uerr = userNamespace() })
	err = b.cmd.Start()
	_ = theirs.Close() // or its end would not be seen
	if err == nil {
		b.process, err = identify(b.cmd.Process.Pid)
		if why := link.Jailed(ctx); why != nil { // it may have ended before it was identified
			err = why
		}
	}
	work.Wait()
	if err = errors.Join(err, uerr); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Alive tells whether it still waits. One that does not may only be closed.
func (b *Blank) Alive() bool { return b.link.Alive() }

// Close ends the agent, and waits until it has gone.
func (b *Blank) Close() {
	_ = b.link.Close()
	if b.users != nil {
		_ = b.users.Close()
	}
	if b.cmd.Process != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait() // the signal says it
	}
}

// give mounts the file system of an image's agent, and makes a blank that agent,
// which outlives us then and ends with its file system. started is told its process
// before it gets to know anything; if it is told nothing because we are killed, it
// ends.
func (h *Host) give(ctx context.Context, b *Blank, key string, i Image, started func(process) error) error {
	fuse, err := mount.OpenFUSE(h.dir("images", key, "fuse"))
	if err != nil {
		return err
	}
	defer fuse.Close() // or a dead agent would be a hang
	control, err := listen(h.dir("images", key, "control"), 0o600)
	if err != nil {
		return err
	}
	defer control.Close()
	log, err := os.OpenFile(h.dir("images", key, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := started(b.process); err != nil {
		return err
	}
	err = b.link.Give(ctx, agent.Files{FUSE: fuse, Control: control, Log: log}, &agent.Setup{
		Image: i.Name, Root: i.Root, Deadline: i.Deadline, Start: i.Start, DataKey: i.DataKey, Manifest: i.Manifest,
		Trace: i.Trace, Prefetch: i.Prefetch, Record: i.Record,
	})
	if err != nil {
		return err
	}
	return errors.Join(b.link.Close(), b.cmd.Process.Release())
}
