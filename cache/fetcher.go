package cache

import (
	"context"
	"errors"
	"fmt"
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
	// a fetcher. A request that waits takes some 10 KiB.
	defaultRequests    = 2048
	defaultBytes       = 64 << 20
	defaultConnections = 1024
	// defaultOriginRequests keeps a bucket busy that answers in 36 ms: 64
	// chunks of 512 KiB at a time are 0.9 GB/s.
	defaultOriginRequests = 64

	// firstTry bounds a first attempt at a tier, and each next is given twice
	// the time, up to lastTry: a connection that hangs is noticed, and one that
	// is slow gets there in the end.
	firstTry = 10 * time.Second
	lastTry  = 5 * time.Minute
	// firstRetry and lastRetry bound the pause between attempts.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
	// nearerEvery is how often a nearer tier is asked again for one chunk: what
	// it lacks it may get from other workers, and it must not pay for a last
	// tier that fails.
	nearerEvery = time.Second
	// nearerWithin bounds asking it again while a place at the last tier is held.
	nearerWithin = 100 * time.Millisecond
)

// Upstream is a tier beyond the folder.
type Upstream struct {
	Tier Tier
	// Source gives the tier's chunks of one root. It is called for each fetch,
	// by many goroutines at a time; an error counts as a failure of the tier,
	// which may pass. Its bytes are hashed, unless it Hashes itself.
	Source func(root string) (chunk.Source, error)
	// Hashes says that the Source has hashed what it gives: it is trusted.
	Hashes bool
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
	// More, if set, gives numbers to send along to AskStats, as JSON.
	More func() any

	Connections int   // at a time; more wait: 1,024
	Requests    int   // to get a chunk, at a time; more wait: 2,048
	Bytes       int64 // of chunks from the folder and nearer tiers at a time; more wait: 64 MiB
	// OriginRequests are the fetches from the last of Upstreams at a time: 64.
	// More wait in the order of their starts, outside of Bytes. What they bring
	// may take 512 KiB for each.
	OriginRequests int
}

// Fetcher serves the agents of a worker: it gives chunks from the folder, and
// fills the folder from the tiers beyond. What it gives has been hashed.
type Fetcher struct {
	o        FetcherOptions
	requests chan struct{}
	bytes    *semaphore.Weighted
	flights  flights[wanted, fetched]

	prefetches *semaphore.Weighted // bytes
	queue      *queue              // for the last tier

	refused, ended seldom // connections
	times          times
	now            gauges
	mu             sync.Mutex // guards stats
	stats          Stats
}

// wanted tells pieces of work apart: what one root lacks another may have.
type wanted struct {
	root string
	name chunk.Name
	size int
}

// fetched is a chunk. Each who gets one drops its hold once.
type fetched struct {
	data []byte // nobody changes it
	tier Tier
	hold *hold
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
	orDefault(&o.OriginRequests, defaultOriginRequests)
	f := &Fetcher{
		o: o, requests: make(chan struct{}, o.Requests), bytes: semaphore.NewWeighted(o.Bytes),
		prefetches: semaphore.NewWeighted(prefetchBytes),
		queue:      newQueue(o.OriginRequests, max(int64(o.OriginRequests)*chunk.DefaultSize, chunk.MaxSize)),
	}
	f.flights.share = func(v fetched, n int) {
		if n >= 0 {
			v.hold.refs.Add(int32(n))
			return
		}
		v.hold.drop()
	}
	return f
}

func orDefault[T int | int64 | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
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
