//go:build cloud

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thaw/cache"
	"thaw/catalog"
	"thaw/chunk"
	"thaw/cluster"
	"thaw/host"
	"thaw/invokewire"
	"thaw/manifest"
	"thaw/text"
	"thaw/worker"
)

const (
	// pinEvery is how often a worker looks whether all that it pins is there.
	pinEvery = time.Minute
	// pinAtOnce bounds the chunks of base images that are fetched at a time: they
	// come behind what starts read.
	pinAtOnce = 8
)

// pinner keeps base images in the cache of this worker, as the records have
// them. One that joins later does as well.
type pinner struct {
	g       *Globals
	host    *host.Host
	fetcher func(context.Context) (*host.Use, error)
	records *cluster.Records
	folder  *cache.Folder
	limit   int64 // bytes
	log     *slog.Logger
	kick    chan struct{}

	mu     sync.Mutex // guards what follows
	synced bool       // want is all that there is
	want   map[string]baseImage
	states map[string]invokewire.Pin // by name
}

// pinner makes one for a worker of these options.
func (c *workerCmd) pinner(ctx context.Context, g *Globals, m *joined, o *worker.Options) (*pinner, error) {
	p := &pinner{
		g: g, host: o.Host, fetcher: o.Fetcher, limit: min(int64(c.PinSize), int64(g.CacheSize)/2), log: g.logger(),
		kick: make(chan struct{}, 1), want: map[string]baseImage{}, states: map[string]invokewire.Pin{},
	}
	var err error
	if p.records, err = m.conn.Records(ctx, baseRecords); err != nil {
		return nil, err
	}
	if p.folder, err = cache.OpenFolder(g.Cache, int64(g.CacheSize)); err != nil {
		return nil, err
	}
	o.Pins = p.list
	return p, nil
}

// list tells how far it is.
func (p *pinner) list() []invokewire.Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.states), func(a, b invokewire.Pin) int { return strings.Compare(a.Name, b.Name) })
}

// run follows the records until ctx ends.
func (p *pinner) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		if err := p.records.Watch(ctx, "", p.tell); err != nil && ctx.Err() == nil {
			p.log.Error("base images are not followed any more", "cause", text.Line(err.Error()))
		}
	})
	tick := time.NewTicker(pinEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.kick:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		p.keepAll(ctx)
	}
}

// tell takes what the records say.
func (p *pinner) tell(c cluster.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var base baseImage
	switch {
	case c.Synced:
		p.synced = true
	case c.Deleted:
		delete(p.want, c.Key)
	case json.Unmarshal(c.Value, &base) == nil && base.Name == c.Key:
		p.want[c.Key] = base
	default:
		p.log.Warn("the record of a base image is not understood", "name", text.Line(c.Key))
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
	return nil
}

// keepAll pins and fetches what is missing, the oldest base first.
func (p *pinner) keepAll(ctx context.Context) {
	p.mu.Lock()
	all := slices.SortedFunc(maps.Values(p.want), func(a, b baseImage) int { return a.Added.Compare(b.Added) })
	synced := p.synced
	p.mu.Unlock()
	if !synced {
		return // what it knew before is still pinned
	}
	budget := &pinBudget{left: p.limit, chosen: map[chunk.Name]bool{}}
	keep := map[string]bool{}
	for _, base := range all {
		if ctx.Err() != nil {
			return
		}
		keep[base.Image] = true
		s := invokewire.Pin{Name: base.Name, Image: base.Image}
		if err := p.keep(ctx, base, budget, &s); err != nil && ctx.Err() == nil {
			s.Error = text.Line(err.Error())
			p.log.Warn("a base image is not kept whole; it is tried again", "name", text.Line(base.Name), "cause", s.Error)
		}
		p.set(s)
	}
	p.forget(all, keep)
}

func (p *pinner) set(s invokewire.Pin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.states[s.Name] = s
}

// forget unpins what is no base any more.
func (p *pinner) forget(all []baseImage, keep map[string]bool) {
	lists, err := p.folder.Pins()
	for _, list := range lists {
		if err == nil && !keep[list] {
			err = p.folder.Unpin(list)
		}
	}
	if err != nil {
		p.log.Warn("what is no base image any more stays in the cache", "cause", text.Line(err.Error()))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.states, func(name string, _ invokewire.Pin) bool {
		return !slices.ContainsFunc(all, func(b baseImage) bool { return b.Name == name })
	})
}

// pinBudget is what is left of the bytes for bases, and whose chunks have it.
type pinBudget struct {
	left   int64
	chosen map[chunk.Name]bool
}

// choose gives the chunks that fit, in the order of the device: what a file
// system needs to be mounted comes first. Those that an older base has are
// chosen for both and counted for that.
func (b *pinBudget) choose(chunks []manifest.Entry, s *invokewire.Pin) (fit []manifest.Entry) {
	for _, c := range chunks {
		switch {
		case b.chosen[c.Name]:
		case b.left < int64(c.Size):
			s.Left += int64(c.Size)
			continue
		default:
			b.chosen[c.Name] = true
			b.left -= int64(c.Size)
			s.Pinned += int64(c.Size)
		}
		fit = append(fit, c)
	}
	return fit
}

// keep pins one image's chunks, and fetches those that are missing. s says how
// far it is.
func (p *pinner) keep(ctx context.Context, base baseImage, budget *pinBudget, s *invokewire.Pin) error {
	chunks, err := p.g.baseChunks(ctx, base)
	if err != nil {
		return err
	}
	chunks = budget.choose(chunks, s)
	if err := p.folder.Pin(base.Image, namesOf(chunks)); err != nil {
		return err
	}
	chunks = slices.DeleteFunc(chunks, func(e manifest.Entry) bool { return p.folder.Has(e.Name, int(e.Size)) })
	if s.Missing = len(chunks); s.Missing == 0 {
		return nil
	}
	p.set(*s)
	use, err := p.fetcher(ctx)
	if err != nil {
		return err
	}
	err = p.fetch(ctx, use, base.Root, chunks, s)
	if rerr := p.host.ReleaseFetcher(context.WithoutCancel(ctx), use); err == nil {
		err = rerr
	}
	return err
}

func namesOf(chunks []manifest.Entry) []chunk.Name {
	names := make([]chunk.Name, 0, len(chunks))
	for _, c := range chunks {
		names = append(names, c.Name)
	}
	return names
}

// fetch has the fetcher bring chunks. It goes on behind a failure, and gives the
// first.
func (p *pinner) fetch(ctx context.Context, use *host.Use, root string, chunks []manifest.Entry, s *invokewire.Pin) error {
	client, err := cache.NewClient(cache.ClientOptions{
		Folder: p.g.Cache, Root: root, Deadline: p.g.OriginDeadline,
		Dial: func(ctx context.Context) (net.Conn, error) { return p.host.DialFetcher(ctx, use) },
	})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var first error
	var gets errgroup.Group
	gets.SetLimit(pinAtOnce)
	for _, c := range chunks {
		if ctx.Err() != nil {
			break
		}
		gets.Go(func() error {
			err := client.Prefetch(ctx, c.Name, int(c.Size))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				s.Missing--
				p.set(*s)
			} else if first == nil {
				first = err
			}
			return nil
		})
	}
	_ = gets.Wait() // they say it in first
	if err := client.Close(); first == nil {
		first = err
	}
	return first
}

// baseChunks reads which chunks a base image has, which takes no key.
func (g *Globals) baseChunks(ctx context.Context, base baseImage) ([]manifest.Entry, error) {
	g = g.forTenant(base.Tenant)
	path := g.local().manifest(base.Root, base.Image)
	if _, err := os.Stat(path); err != nil {
		if err := g.fetchManifest(ctx, g.local(), catalog.Reference{Image: base.Image, Root: base.Root}); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sealed, err := parseManifest(bytes.Clone(data), base.Image)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", base.Image, err)
	}
	return sealed.Readable().Chunks, nil
}
