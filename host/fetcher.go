package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent"
)

// Descriptors of a fetcher.
const (
	FetcherListener = 3 + iota // its listening socket
	FetcherLeave               // a pipe: one byte, once it may work; its end, if whoever started it died first
	FetcherReady               // a pipe: it writes one byte once it serves
)

// Fetcher says how to start a fetcher: the process that takes chunks from an
// origin, or a zone before it, into a cache. One serves all images of those.
type Fetcher struct {
	Origin string   // its URL
	Cache  string   // the cache's folder
	Zone   string   // which zone it asks before the origin, and how; in any words
	Args   []string // the command, with the program's path first
}

func (f *Fetcher) key() string { return hashKey(f.Origin, f.Cache, f.Zone) }

// fetcherRecord is fetcher.json.
type fetcherRecord struct {
	Process process `json:"process"`
	Fetcher Fetcher `json:"fetcher"`
	Log     int64   `json:"log"` // where in the log its words begin
}

// UseFetcher starts the fetcher unless it runs, and gives the lock that keeps
// it. Its users call ReleaseFetcher.
func (h *Host) UseFetcher(ctx context.Context, f Fetcher) (*Use, error) {
	u, err := h.use(ctx, "fetchers", f.key())
	if err != nil {
		return nil, fmt.Errorf("fetcher: %w", err)
	}
	defer u.unlock()
	if u.ready, err = h.ensureFetcher(u.key, f); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the fetcher: %w", err), h.giveBack(u, func() error { return h.endFetcher(ctx, u.key) }))
	}
	return u, nil
}

// Fetcher gives what the fetcher in use was started as: one that ran already
// may have been asked for in other words.
func (h *Host) Fetcher(u *Use) (Fetcher, error) {
	var r fetcherRecord
	err := readRecord(h.dir("fetchers", u.key, "fetcher.json"), &r)
	return r.Fetcher, err
}

// ensureFetcher starts the fetcher if it does not run, and gives the pipe by
// which it says that it serves. The key's lock is held.
func (h *Host) ensureFetcher(key string, f Fetcher) (ready *os.File, err error) {
	var r fetcherRecord
	dir := h.dir("fetchers", key)
	if readRecord(filepath.Join(dir, "fetcher.json"), &r) == nil && r.Process.alive() {
		return nil, nil
	}
	if err := makeDir(dir, searchOnly); err != nil { // agents search it
		return nil, err
	}
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer readyW.Close()
	if err := h.startFetcher(dir, f, readyW); err != nil {
		return nil, errors.Join(err, ready.Close())
	}
	return ready, nil
}

func (h *Host) startFetcher(dir string, f Fetcher, ready *os.File) error {
	listener, err := listen(filepath.Join(dir, agent.SocketName), 0o666) // it asks who connects
	if err != nil {
		return err
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r := fetcherRecord{Fetcher: f}
	if r.Log, err = log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	cmd := exec.Command(f.Args[0], f.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	leaveR, leaveW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer leaveW.Close()
	cmd.ExtraFiles = []*os.File{listener, leaveR, ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = leaveR.Close()
	if err != nil {
		return err
	}
	if r.Process, err = identify(cmd.Process.Pid); err != nil {
		return fmt.Errorf("it ended at once: %w", err)
	}
	// A fetcher that works has a record, so that it can be ended.
	if err := writeRecord(filepath.Join(dir, "fetcher.json"), r); err != nil {
		return err
	}
	// It outlives us; who ends it waits for it by its pidfd.
	_, err = leaveW.Write([]byte{'\n'})
	return errors.Join(err, cmd.Process.Release())
}

// untilFetcherEnds gives a ctx that ends with the fetcher, for its reason, if
// this use started it and it has not come to serve yet. Nobody waits for that:
// what is in the cache needs no fetcher. stop ends the watch.
func (h *Host) untilFetcherEnds(ctx context.Context, u *Use) (watched context.Context, stop func()) {
	if u.ready == nil {
		return ctx, func() {}
	}
	ready := u.ready
	u.ready = nil
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		if _, err := ready.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			cancel(errors.Join(errFetcherEnded, h.lastWords(u.key)))
		}
	})
	return ctx, func() {
		_ = ready.SetReadDeadline(time.Unix(1, 0))
		work.Wait()
		_ = ready.Close()
		cancel(nil)
	}
}

// errFetcherEnded says that there is nobody to fetch.
var errFetcherEnded = errors.New("the fetcher ended as soon as it was started")

// lastWords gives, as an error, what a fetcher said at its end, if it did.
func (h *Host) lastWords(key string) error {
	var r fetcherRecord
	log, err := os.ReadFile(h.dir("fetchers", key, "log"))
	if err != nil || readRecord(h.dir("fetchers", key, "fetcher.json"), &r) != nil || r.Log > int64(len(log)) {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(log[r.Log:])), "\n")
	if words, ok := strings.CutPrefix(lines[len(lines)-1], "thaw: "); ok {
		return errors.New(words)
	}
	return nil
}

// listen gives a listening unix socket in the place of any that was there.
// The path may be longer than the 107 bytes that an address holds.
func listen(path string, perm os.FileMode) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	defer u.Close()
	if err := os.Chmod(path, perm); err != nil {
		return nil, err
	}
	return u.File()
}

// ReleaseFetcher ends the fetcher if this was its last user.
func (h *Host) ReleaseFetcher(ctx context.Context, u *Use) error {
	return h.release(ctx, u, func() error { return h.endFetcher(ctx, u.key) })
}

// endFetcher ends the process. Nobody uses it, and the key's lock is held.
func (h *Host) endFetcher(ctx context.Context, key string) error {
	var r fetcherRecord
	err := readRecord(h.dir("fetchers", key, "fetcher.json"), &r)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil { // damaged: its log tells whose it is
		return h.endWriter(ctx, h.dir("fetchers", key, "log"))
	}
	// Killed, for it has nothing to put in order: what it keeps is whole at any
	// moment, and a polite end took as long as a start (package cache).
	if err := r.Process.signal(unix.SIGKILL); err != nil {
		return err
	}
	return r.Process.end(ctx, patience)
}

// endWriter ends the processes whose standard output is a file of ours.
func (h *Host) endWriter(ctx context.Context, path string) error {
	outputs, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		return err
	}
	for _, output := range outputs {
		if name, err := os.Readlink(output); err != nil || name != path {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(output, "/")[2])
		if err != nil {
			return err
		}
		p, err := identify(pid)
		if err != nil {
			continue // it has ended
		}
		if err := errors.Join(p.signal(unix.SIGKILL), p.end(ctx, patience)); err != nil {
			return err
		}
	}
	return nil
}

// ReviveFetcher starts the fetcher of a user again if it has ended, and gives a
// descriptor that becomes readable when it ends. Besides, the error may be what
// the ended one said at its end.
func (h *Host) ReviveFetcher(ctx context.Context, u *Use) (*os.File, error) {
	held, err := waitLock(ctx, u.lockPath)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	var r fetcherRecord
	record := h.dir("fetchers", u.key, "fetcher.json")
	if err := readRecord(record, &r); err != nil {
		return nil, err
	}
	var words error
	if !r.Process.alive() {
		words = h.lastWords(u.key)
	}
	ready, err := h.ensureFetcher(u.key, r.Fetcher)
	if err != nil {
		return nil, fmt.Errorf("starting the fetcher again: %w", err)
	}
	if ready != nil {
		_ = ready.Close() // its end comes by the descriptor
	}
	if err := readRecord(record, &r); err != nil {
		return nil, err
	}
	f, err := r.Process.open()
	if err == nil && words != nil {
		err = fmt.Errorf("the fetcher ended: %w", words)
	}
	return f, err
}
