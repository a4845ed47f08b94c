package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"thaw/catalog"
	"thaw/manifest"
	"thaw/origin"
	"thaw/text"
	"thaw/trace"
)

const (
	// traceLife is how long a start does without asking the origin whether other
	// machines have recorded more, or anything at all.
	traceLife = 10 * time.Minute
	// tracePatience is how long a start waits for a trace: it would save less.
	tracePatience = time.Second
	// keepTime bounds the keeping of a trace; an instance that ends waits a
	// little longer.
	keepTime = 8 * time.Second
	// mostAhead bounds in bytes what one start fetches ahead, and half of the
	// cache does: it must not push out what it has brought.
	mostAhead = 1 << 30
)

// tracing is what a start does with the trace of its image.
type tracing struct {
	ahead  bool // fetch ahead what earlier starts touched
	record bool // what this start touches
}

// traceCmd is what instances call.
type traceCmd struct {
	Put tracePutCmd `cmd:"" help:"Keep the trace on standard input."`
}

type tracePutCmd struct {
	Root  string `arg:""`
	Image string `arg:""`
}

// Run stores a trace that an agent has sealed: here, and in the origin for other
// machines.
func (c *tracePutCmd) Run(ctx context.Context, g *Globals) error {
	sealed, err := io.ReadAll(io.LimitReader(os.Stdin, trace.MaxSize+1))
	if err == nil {
		_, err = manifest.ParseID(c.Image)
	}
	if err != nil {
		return err
	}
	return g.storeTrace(ctx, c.Root, c.Image, sealed)
}

// storeTrace keeps the trace of an image of the tenant's.
func (g *Globals) storeTrace(ctx context.Context, root, image string, sealed []byte) error {
	if err := trace.Check(sealed); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	kerr := keep(g.local().trace(root, image), sealed)
	o, err := origin.Open(ctx, g.Origin, originDrivers()...)
	if err == nil {
		err = errors.Join(o.PutTrace(ctx, root, g.Tenant, image, sealed), o.Close())
	}
	return errors.Join(kerr, err)
}

// trace is where the trace of an image is kept, sealed; an empty file says that
// there is none.
func (l local) trace(root, id string) string {
	return filepath.Join(l.state, "traces", url.PathEscape(root), id)
}

// askTrace gets the last trace of an image: from this machine, or, if it was not
// asked for lately, from the origin, while the caller does other things. The
// function it gives waits, not for long, and gives the trace or nothing.
func (g *Globals) askTrace(ctx context.Context, store *store, ref catalog.Reference) (wait func() []byte) {
	path := g.local().trace(ref.Root, ref.Image)
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) < traceLife {
		return func() []byte { return readTrace(path) }
	}
	ctx, cancel := context.WithTimeout(ctx, tracePatience)
	var sealed []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		sealed, err = store.Trace(ctx, ref.Root, g.Tenant, ref.Image)
	}()
	return sync.OnceValue(func() []byte {
		defer cancel()
		<-done
		switch {
		case errors.Is(err, origin.ErrNotFound):
			sealed = nil
		case err != nil:
			return readTrace(path)
		}
		_ = keep(path, sealed) // the next start asks again
		return sealed
	})
}

// readTrace reads what is kept.
func readTrace(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, trace.MaxSize+1))
	if err != nil {
		return nil
	}
	return sealed
}

// checkTrace drops a trace of no use, and says so: the next start asks for
// another.
func (g *Globals) checkTrace(s *startable) (damaged bool) {
	if len(s.trace) == 0 {
		return false
	}
	_, err := trace.NewKey(s.dataKey, s.id).Open(s.trace)
	if err == nil {
		return false
	}
	g.logger().Warn(fmt.Sprintf("%s: its trace cannot be used: starting without", s.name), "cause", text.Line(err.Error()))
	_ = os.Remove(g.local().trace(s.root, s.id.String()))
	s.trace = nil
	return true
}

// keepTrace is the command that keeps the trace of this start.
func (g *Globals) keepTrace(s *started) ([]string, error) {
	self, err := os.Executable()
	return []string{
		self, "trace", "put", "--origin=" + g.Origin, "--state=" + g.State, "--tenant=" + g.Tenant, "--log-format=" + g.LogFormat, s.root, s.id.String(),
	}, err
}
