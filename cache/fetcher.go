package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"thaw/chunk"
)

const (
	// perConnection bounds the requests of one agent under way: the kernel
	// keeps no more FUSE reads than that in flight for long.
	perConnection = 64
	// defaultRequests, defaultBytes and defaultConnections bound all agents of
	// a fetcher: 128 chunks of 512 KiB at a time keep a bucket busy.
	defaultRequests    = 256
	defaultBytes       = 64 << 20
	defaultConnections = 1024

	// firstTry bounds a first attempt at a tier, and each next is given twice
	// the time, up to lastTry: a connection that hangs is noticed, and one that
	// is slow gets there in the end.
	firstTry = 10 * time.Second
	lastTry  = 5 * time.Minute
	// firstRetry and lastRetry bound the pause between attempts.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Upstream is a tier beyond the folder.
type Upstream struct {
	Tier Tier
	// Source gives the tier's chunks of one root. It is called for each fetch,
	// by many goroutines at a time; an error counts as a failure of the tier,
	// which may pass. The Source is not trusted: its bytes are hashed.
	Source func(root string) (chunk.Source, error)
	// Fill, if set, is told of a chunk that this tier was asked for and a later
	// one gave. The bytes have been hashed, and nobody may change them. A reader
	// waits for its return, so it leaves the work to others and drops what is too
	// much.
	Fill func(root string, name chunk.Name, sealed []byte)
}

// FetcherOptions say what a Fetcher does. Zero bounds have defaults.
type FetcherOptions struct {
	Folder    *Folder
	Upstreams []Upstream // asked in this order; the last one knows what there is
	// Peers are the user ids whose connections are taken; empty: those of all
	// who can reach the listener.
	Peers []uint32
	// Warn, if set, is told what went wrong with a connection. Any goroutine
	// may call it.
	Warn func(error)

	Connections int   // at a time; more wait
	Requests    int   // under way at a time; more wait
	Bytes       int64 // of chunks under way at a time; more wait
}

// Fetcher serves the agents of a worker: it gives chunks from the folder, and
// fills the folder from the tiers beyond. What it gives has been hashed.
type Fetcher struct {
	o        FetcherOptions
	requests chan struct{}
	bytes    *semaphore.Weighted
	flights  flights[wanted, fetched]

	prefetches *semaphore.Weighted // bytes

	mu    sync.Mutex // guards stats
	stats Stats
}

// wanted tells pieces of work apart: what one root lacks another may have.
type wanted struct {
	root string
	name chunk.Name
	size int
}

type fetched struct {
	data []byte // nobody changes it
	tier Tier
}

// NewFetcher makes a Fetcher for one Serve.
func NewFetcher(o FetcherOptions) *Fetcher {
	orDefault(&o.Connections, defaultConnections)
	orDefault(&o.Requests, defaultRequests)
	orDefault(&o.Bytes, defaultBytes)
	o.Bytes = max(o.Bytes, chunk.MaxSize)
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	return &Fetcher{
		o: o, requests: make(chan struct{}, o.Requests), bytes: semaphore.NewWeighted(o.Bytes),
		prefetches: semaphore.NewWeighted(prefetchBytes),
	}
}

func orDefault[T int | int64 | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// Stats counts the chunks got, by tier. The cache's errors are chunks that
// could not be kept.
func (f *Fetcher) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	s.Cache.Corrupt, s.Cache.Errors = f.o.Folder.corrupt.Load(), f.o.Folder.failures.Load()
	return s
}

func (f *Fetcher) count(t Tier, change func(c *Count)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.stats.of(t))
}

// Serve takes connections until ctx ends, and then gives nil; it closes l, and
// all that it began has ended when it returns.
func (f *Fetcher) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer f.flights.close()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	slots := make(chan struct{}, f.o.Connections)
	for pause := firstRetry; ; {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if err == nil {
			pause = firstRetry
			running.Go(func() {
				defer func() { <-slots }()
				f.serveConn(ctx, conn)
			})
			continue
		}
		<-slots
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("cache: accept: %w", err)
		}
		f.o.Warn(fmt.Errorf("cache: accept: %w", err)) // out of descriptors, perhaps: it passes
		if sleep(ctx, pause) != nil {
			return nil
		}
		pause = min(2*pause, lastRetry)
	}
}

// checkPeer holds the user at the other end to the list.
func (f *Fetcher) checkPeer(conn net.Conn) error {
	if len(f.o.Peers) == 0 {
		return nil
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("connection of type %T does not tell its user", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if !slices.Contains(f.o.Peers, peer.Uid) {
		return fmt.Errorf("user %d, process %d may not connect", peer.Uid, peer.Pid)
	}
	return nil
}

// get is the work for one chunk: the folder's copy, or a tier's.
func (f *Fetcher) get(w wanted) work[fetched] {
	return func(ctx context.Context, tell func(error)) (fetched, error) {
		tier := Cache
		data, _, err := f.o.Folder.Fill(ctx, w.name, w.size, func(ctx context.Context) (data []byte, err error) {
			data, tier, err = f.fetch(ctx, w, tell)
			return data, err
		})
		if err != nil {
			return fetched{}, err
		}
		f.count(tier, func(c *Count) { c.Chunks, c.Bytes, c.Hits = c.Chunks+1, c.Bytes+int64(w.size), c.Hits+1 })
		return fetched{data, tier}, nil
	}
}

// fetch asks the tiers in turn until one gives the chunk, the last one says
// that it has none, or has a bad one, or ctx ends.
func (f *Fetcher) fetch(ctx context.Context, w wanted, tell func(error)) ([]byte, Tier, error) {
	try, pause := firstTry, firstRetry
	for first := true; ; first = false {
		var err error
		for i, u := range f.o.Upstreams {
			if first { // later, why it failed before says more
				tell(&failure{statusUnavailable, u.Tier, "no answer"})
			}
			var data []byte
			if data, err = f.ask(ctx, u, w, try); err == nil {
				for _, nearer := range f.o.Upstreams[:i] {
					if nearer.Fill != nil {
						nearer.Fill(w.root, w.name, data)
					}
				}
				return data, u.Tier, nil
			}
		}
		if err == nil {
			err = &failure{statusNotFound, 0, "no tiers to ask"}
		}
		var last *failure
		if !errors.As(err, &last) || last.status != statusUnavailable {
			return nil, 0, err
		}
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		tell(err)
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil { // not all in step
			return nil, 0, err
		}
		try, pause = min(2*try, lastTry), min(2*pause, lastRetry)
	}
}

// ask asks one tier, and once more if it gave bytes that are not the chunk's:
// they may have been damaged on the way. Its error is a *failure.
func (f *Fetcher) ask(ctx context.Context, u Upstream, w wanted, try time.Duration) ([]byte, error) {
	data, err := f.askOnce(ctx, u, w, try)
	if errors.Is(err, chunk.ErrCorrupt) {
		data, err = f.askOnce(ctx, u, w, try)
	}
	return data, err
}

func (f *Fetcher) askOnce(ctx context.Context, u Upstream, w wanted, try time.Duration) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, try)
	defer cancel()
	source, err := u.Source(w.root)
	var data []byte
	if err == nil {
		data, err = source.Get(wait, w.name)
	}
	if err == nil && len(data) != w.size {
		err = fmt.Errorf("%w: %d bytes, should be %d", chunk.ErrCorrupt, len(data), w.size)
	}
	if err == nil {
		err = chunk.Check(data, w.name)
	}
	if err == nil {
		return data, nil
	}
	failed := &failure{statusUnavailable, u.Tier, oneLine(err.Error())}
	switch {
	case errors.Is(err, chunk.ErrNotFound):
		failed.status = statusNotFound
	case errors.Is(err, chunk.ErrCorrupt):
		failed.status = statusCorrupt
		f.count(u.Tier, func(c *Count) { c.Corrupt++ })
	case ctx.Err() == nil: // else we ended it, not the tier
		f.count(u.Tier, func(c *Count) { c.Errors++ })
	}
	return nil, failed
}
