package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"thaw/agent"
	"thaw/cache"
	"thaw/chunk"
	"thaw/host"
	"thaw/origin"
	"thaw/text"
	"thaw/zone"
)

const (
	// fetcherMemory is a soft limit in bytes: chunks under way (64 MiB from the
	// folder and the zone, 32 from the origin), those that wait to be put into
	// the zone (32), and what the origin's driver takes. More --origin-requests
	// raise it.
	fetcherMemory = 160 << 20
	// idleSweep is how often memory that is not used is given back.
	idleSweep = 5 * time.Second
)

// fetcherCmd is the process that takes chunks from the origin into the cache;
// see package cache. Only thaw starts it, with a listening socket.
type fetcherCmd struct{}

// Run serves until it is told to end.
func (fetcherCmd) Run(ctx context.Context, g *Globals) error {
	debug.SetMemoryLimit(fetcherMemory + int64(g.OriginRequests)*chunk.DefaultSize)
	debug.SetGCPercent(50)
	f := os.NewFile(host.FetcherListener, "listener")
	listener, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("this verb is thaw's own: it needs a listening socket as descriptor %d: %w", host.FetcherListener, err)
	}
	_ = f.Close()
	leave := os.NewFile(host.FetcherLeave, "leave")
	_, err = leave.Read(make([]byte, 1))
	_ = leave.Close()
	if err != nil {
		return fmt.Errorf("whoever started this fetcher is gone: %w", err)
	}
	folder, err := cache.OpenFolder(g.Cache, int64(g.CacheSize))
	if err != nil {
		return err
	}
	folder.Warn = func(err error) { g.logger().Warn(text.Line(err.Error())) }
	o := lazyOrigin{url: g.Origin}
	defer o.close()
	options := cache.FetcherOptions{
		Folder: folder, Peers: []uint32{uint32(os.Getuid()), agent.UID}, OriginRequests: g.OriginRequests,
		Upstreams: []cache.Upstream{{Tier: cache.Origin, Source: o.chunks}},
		Warn:      folder.Warn,
	}
	near, err := g.zoneClient(zoneWorker())
	if err != nil {
		return err
	}
	if near != nil {
		defer near.Close()
		options.Upstreams = slices.Insert(options.Upstreams, 0, zoneUpstream(near))
		options.More = func() any { return map[string]any{"zone": near.Stats()} }
	}
	fetcher := cache.NewFetcher(options)
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work.Go(func() {
		tick := time.NewTicker(idleSweep)
		defer tick.Stop()
		for before := int64(0); ; {
			select {
			case <-tick.C:
				s := fetcher.Stats()
				if now := s.Cache.Hits + s.Zone.Hits + s.Origin.Hits; now != before { // it has collected since otherwise
					before = now
					debug.FreeOSMemory()
				}
			case <-ctx.Done():
				return
			}
		}
	})
	ready := os.NewFile(host.FetcherReady, "ready")
	_, _ = ready.Write([]byte{'\n'}) // nobody may be waiting
	_ = ready.Close()
	return fetcher.Serve(ctx, listener)
}

// zoneUpstream is the zone as a fetcher has it: one for all roots, since a
// chunk's name says what is in it.
func zoneUpstream(c *zone.Client) cache.Upstream {
	return cache.Upstream{
		Tier: cache.Zone, Hashes: true,
		Source: func(string) (chunk.Source, error) { return c, nil },
		Fill:   func(_ string, name chunk.Name, sealed []byte) { c.Fill(name, sealed) },
	}
}

// lazyOrigin opens the origin at the first fetch: with a warm cache there is
// none, and the origin may be down. A failure is the next fetch's to try again.
type lazyOrigin struct {
	url string

	mu   sync.Mutex // guards open
	open *origin.Origin
}

func (l *lazyOrigin) chunks(root string) (chunk.Source, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		o, err := origin.Open(context.Background(), l.url, originDrivers()...)
		if err != nil {
			return nil, err
		}
		l.open = o
	}
	return l.open.Chunks(root), nil
}

func (l *lazyOrigin) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		_ = l.open.Close()
	}
}
