//go:build cloud

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/fleet"
	"thaw/text"
)

const (
	// devEnd is how long nodes may take to end; they write to flash what they
	// have queued.
	devEnd = 15 * time.Second
)

// devNode is a node that runs as a child.
type devNode struct {
	address string
	cmd     *exec.Cmd
	ended   chan error // gets how it ended
}

// dev runs nodes as children until ctx ends, or none is left.
func (c *zoneServeCmd) dev(ctx context.Context, g *Globals) error {
	if c.Dev < 1 || c.Dev > maxDev {
		return fmt.Errorf("--dev %d: want 1 to %d nodes", c.Dev, maxDev)
	}
	if c.Listen != "" {
		return errors.New("--dev: nodes pick ports of their own on loopback: it takes no --listen")
	}
	if c.Flash != "" || c.TLSCert != "" || c.TLSKey != "" || c.TLSClientCA != "" {
		return errors.New("--dev runs on loopback in folders of its own: it takes neither --flash nor TLS")
	}
	// The kernel ends a child with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var nodes []*devNode
	var addresses []string
	var err error
	for i := range c.Dev {
		var n *devNode
		if n, err = c.child(ctx, g, filepath.Join(g.State, "zone", strconv.Itoa(i))); err != nil {
			err = fmt.Errorf("node %d: %w", i, err)
			break
		}
		nodes = append(nodes, n)
		addresses = append(addresses, n.address)
	}
	if err == nil {
		_, err = fmt.Fprintln(g.stdout, strings.Join(addresses, ","))
	}
	if err != nil {
		cancel()
	}
	died := 0
	for _, n := range nodes {
		if e := <-n.ended; ctx.Err() == nil {
			g.logger().Error("a node has ended, and is not started again: "+text.Line(e.Error()), "node", n.address)
			died++
		}
	}
	if err == nil && died == len(nodes) {
		err = errors.New("no node is left")
	}
	return err
}

// child starts a node in a folder, with the address that it had before if that
// is free: what its flash holds is asked for there.
func (c *zoneServeCmd) child(ctx context.Context, g *Globals, dir string) (*devNode, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := awaitFormer(ctx, filepath.Join(dir, "flash", "lock")); err != nil {
		return nil, err
	}
	record := filepath.Join(dir, "address")
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, "--state="+g.State, "--log-format="+g.LogFormat, "zone",
		"--listen="+formerAddress(record), "--flash="+filepath.Join(dir, "flash"),
		"--memory="+cmp.Or(c.Memory, devMemory).String(), "--flash-size="+cmp.Or(c.FlashSize, devFlash).String())
	cmd.Stderr = os.Stderr
	// A group of its own, so that Ctrl-C reaches it once: the second kills.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: orphaned}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = devEnd
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	n := &devNode{address: strings.TrimSpace(line), cmd: cmd, ended: make(chan error, 1)}
	if err != nil {
		return nil, errors.Join(errors.New("it did not start"), cmd.Wait())
	}
	go func() { n.ended <- cmp.Or(cmd.Wait(), errors.New("it has ended by itself")) }()
	return n, os.WriteFile(record, []byte(line), 0o600)
}

// sweepNodes removes the folders of nodes that dev has run and does not any more:
// those from the n-th on. What may be anything else, or is in use, stays.
func (g *Globals) sweepNodes(n int) error {
	dir, gone := filepath.Join(g.State, "zone"), 0
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil
	}
	for i := n; i < maxDev; i++ {
		removed, err := removeNode(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return fmt.Errorf("removing what a zone node has left: %w", err)
		}
		if removed {
			gone++
		}
	}
	if gone > 0 {
		g.logger().Info("removed the caches of zone nodes that are not run any more", "nodes", gone, "folder", dir)
	}
	return nil
}

// removeNode removes a node's folder, if it is surely one and no node runs in it.
func removeNode(dir string) (removed bool, err error) {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false, nil
	}
	items, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, item := range items {
		own := item.Name() == "flash" && item.IsDir() || item.Name() == "address" && item.Type().IsRegular()
		if !own {
			return false, nil
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "flash", "lock"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, nil
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	return true, os.RemoveAll(dir)
}

// awaitFormer waits, for devEnd at most, until the node that has a folder's lock
// has ended, and left its address before: who had started it was killed.
func awaitFormer(ctx context.Context, lock string) error {
	f, err := os.Open(lock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_ = poll(ctx, 20*time.Millisecond, devEnd, func() (bool, error) { // late: the next one says that it is in use
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil, nil
	})
	return nil
}

// formerAddress reads the address that a node had, if nobody listens there.
func formerAddress(record string) string {
	b, _ := os.ReadFile(record) // none is there the first time
	address := strings.TrimSpace(string(b))
	if !fleet.Loopback(address) {
		return anyLoopback
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return anyLoopback
	}
	_ = l.Close()
	return address
}
