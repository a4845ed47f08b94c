// Package agent is the process that serves the device of one image version on
// a worker, and holds its keys.
//
// It is started with descriptors only, and with root's rights only until it has
// jailed itself:
//
//	0      /dev/null
//	1, 2   its log
//	3      setup: a line of JSON (Setup), the sealed trace of as many bytes as
//	       the line says, then the sealed manifest, to the end
//	4      /dev/fuse, mounted by the parent, which keeps no copy: the end of the
//	       agent is the end of the file system, and never a hang
//	5      a listening unix socket for Control
//	6      a pipe: "ok\n" once requests are served, or one line that says why not
//
// Its jail is a mount namespace with two folders, the cache's (read-only) and
// the one with the fetcher's socket, and a network namespace with nothing in
// it. It runs as a user of its own without capabilities. It ends when its file
// system is unmounted.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"thaw/cache"
	"thaw/device"
	"thaw/manifest"
	"thaw/mount"
	"thaw/trace"
)

// Descriptors of the agent.
const (
	FDSetup = 3 + iota
	FDFuse
	FDControl
	FDReady
)

// UID is the user and group of agents: a number that no account has and that
// lies outside the ids of containers (1<<30 to 1<<31).
const UID = 1<<30 - 7

// maxManifest bounds what is read of the setup, in bytes. A manifest of 256 GiB
// in chunks of 64 KiB has 300 MB; one of 16 GiB in the default size 3 MB.
const maxManifest = 512 << 20

// maxSetup bounds the line of the setup, in bytes: three paths of 4096, each
// byte of which may take six in JSON, and names.
const maxSetup = 128 << 10

// gcPercent trades CPU for memory: the heap is small and most of it is buffers
// that live long.
const gcPercent = 50

// Setup is what an agent needs to know. It holds the key of the manifest's key
// table: it travels through a pipe, and is never logged or kept.
type Setup struct {
	Image    string        `json:"image"`    // for messages
	Root     string        `json:"root"`     // the origin's root that holds the chunks
	Jail     string        `json:"jail"`     // an empty folder to build the jail on
	Cache    string        `json:"cache"`    // the worker's cache
	Fetcher  string        `json:"fetcher"`  // the folder with the fetcher's socket, SocketName
	Deadline time.Duration `json:"deadline"` // how long a read may wait for its chunk
	Start    time.Time     `json:"start"`    // when the start that mounts began: reads of older ones come first
	DataKey  []byte        `json:"dataKey"`
	Prefetch int64         `json:"prefetch,omitempty"` // most bytes to fetch ahead, as the trace has it
	Record   bool          `json:"record,omitempty"`   // what is touched, until Conn.Ready

	TraceSize int    `json:"traceSize,omitempty"` // set by Send
	Trace     []byte `json:"-"`                   // sealed; empty if there is none
	Manifest  []byte `json:"-"`                   // sealed
}

// SocketName is the fetcher's socket in its folder.
const SocketName = "sock"

// String hides the key.
func (s Setup) String() string { return "agent setup of image " + s.Image }

// Format hides the key from every verb.
func (s Setup) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// Send writes the setup for an agent.
func (s *Setup) Send(w io.Writer) error {
	s.TraceSize = len(s.Trace)
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{append(line, '\n'), s.Trace, s.Manifest} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// receive reads what Send wrote.
func receive(r io.Reader) (*Setup, error) {
	in := bufio.NewReaderSize(io.LimitReader(r, maxManifest+maxSetup+trace.MaxSize), maxSetup)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("reading the setup: %w", err)
	}
	var s Setup
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, errors.New("the setup is damaged") // its text may hold the key
	}
	clear(line)
	if s.TraceSize < 0 || s.TraceSize > trace.MaxSize {
		return nil, fmt.Errorf("a trace of %d bytes", s.TraceSize)
	}
	s.Trace = make([]byte, s.TraceSize)
	if _, err := io.ReadFull(in, s.Trace); err != nil {
		return nil, fmt.Errorf("reading the trace: %w", err)
	}
	if s.Manifest, err = io.ReadAll(in); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return &s, nil
}

// Main is the agent. It returns the exit status.
func Main() int {
	debug.SetGCPercent(gcPercent)
	ready := os.NewFile(FDReady, "ready")
	err := serve(func() {
		_, _ = io.WriteString(ready, "ok\n")
		_ = ready.Close()
	})
	if err != nil {
		line := strings.ReplaceAll(err.Error(), "\n", "; ")
		_, _ = io.WriteString(ready, line+"\n") // closed if it was ready
		fmt.Fprintln(os.Stderr, "thaw-agent: "+line)
		return 1
	}
	return 0
}

// serve runs the agent until its file system is unmounted.
func serve(ready func()) error {
	in := os.NewFile(FDSetup, "setup")
	setup, err := receive(in)
	_ = in.Close()
	if err != nil {
		return err
	}
	if err := enterJail(setup); err != nil {
		return fmt.Errorf("entering the jail: %w", err)
	}
	m, traces, err := open(setup)
	if err != nil {
		return err
	}
	if traces.warn != "" {
		fmt.Fprintln(os.Stderr, "thaw-agent: starting without a trace: "+traces.warn)
	}
	chunks, err := cache.NewClient(cache.ClientOptions{
		Folder: jailCache, Root: setup.Root, Deadline: setup.Deadline, Start: setup.Start,
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", jailFetcher+"/"+SocketName)
		},
	})
	if err != nil {
		return err
	}
	defer chunks.Close()
	defer traces.begin(chunks)()
	dev, err := device.New(m, chunks)
	if err != nil {
		return err
	}
	if setup.Record {
		dev.OnTouch(traces.touch)
	}
	control, err := newControl(os.NewFile(FDControl, "control"), setup.Image, dev, chunks)
	if err != nil {
		return err
	}
	control.traces = traces
	server, err := mount.NewServer(os.NewFile(FDFuse, "fuse"), dev, control.report)
	if err != nil {
		return err
	}
	control.server = server
	control.start()
	defer control.close()
	ready()
	server.Serve()
	return nil
}

// open opens the manifest and forgets the key of its key table, after deriving
// that of traces.
func open(s *Setup) (*manifest.Manifest, *traces, error) {
	sealed, err := manifest.Parse(s.Manifest)
	if err != nil {
		return nil, nil, err
	}
	key := trace.NewKey(s.DataKey, sealed.ID())
	m, err := sealed.OpenWith(s.DataKey)
	clear(s.DataKey)
	s.DataKey, s.Manifest = nil, nil
	if err != nil {
		return nil, nil, err
	}
	m.Config = nil // environment and labels are the sandbox's, not ours
	return m, newTraces(s, m, key), nil
}
