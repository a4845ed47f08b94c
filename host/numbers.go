package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"thaw/agent"
	"thaw/cache"
)

const (
	// answerTime is how long a process may take to give its numbers, which are in
	// its memory, and askTime how long all of them together: Prometheus waits 10 s.
	answerTime = time.Second
	askTime    = 5 * time.Second
	// askAtOnce bounds the connections; those who hang hold one for answerTime.
	askAtOnce = 64
)

// Numbers are what runs, and what it says of itself.
type Numbers struct {
	Fetchers  []FetcherNumbers
	Images    []ImageNumbers
	Instances []Instance // also what was left over
}

// Asked is a process that was asked for its numbers.
type Asked struct {
	Key   string // of the fetcher or image; what is started in its place has the same
	PID   int
	Since time.Time // when it was started, or its image was mounted
	// Err says why there are no numbers: os.ErrProcessDone if the process was
	// killed, anything else if it does not answer.
	Err error
}

// FetcherNumbers are one fetcher's.
type FetcherNumbers struct {
	Asked
	Origin string // its URL, without what may be secret in it
	Cache  string // the cache's folder
	Stats  cache.FetcherStats
}

// ImageNumbers are those of one image's agent.
type ImageNumbers struct {
	Asked
	ID      string // image id
	Name    string // as it was asked for first
	Mounted bool   // or about to be
	Stats   cache.Stats
}

// Ask asks all fetchers and agents for their numbers. It gives what came within
// seconds: one that hangs holds up nobody. What has just ended is left out.
func (h *Host) Ask(ctx context.Context) (n Numbers, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if n.Instances, err = h.Instances(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return n, err
	}
	if n.Fetchers, err = askAll(ctx, h, "fetchers", h.askFetcher); err == nil {
		n.Images, err = askAll(ctx, h, "images", h.askImage)
	}
	return n, err
}

// askAll asks about all of a kind, and gives those that ask knows.
func askAll[T any](ctx context.Context, h *Host, kind string, ask func(ctx context.Context, key string) (T, bool)) ([]T, error) {
	keys, err := h.keys(kind)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	answers := make([]*T, len(keys))
	var work sync.WaitGroup
	room := make(chan struct{}, askAtOnce)
	for i, key := range keys {
		room <- struct{}{}
		work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, answerTime)
			defer cancel()
			if a, ok := ask(ctx, key); ok {
				answers[i] = &a
			}
			<-room
		})
	}
	work.Wait()
	var all []T
	for _, a := range answers {
		if a != nil {
			all = append(all, *a)
		}
	}
	return all, nil
}

func (h *Host) askFetcher(ctx context.Context, key string) (n FetcherNumbers, ok bool) {
	var r fetcherRecord
	record := h.dir("fetchers", key, "fetcher.json")
	if n.Asked, ok = asked(key, record, &r); !ok {
		return n, false
	}
	n.PID, n.Origin, n.Cache = r.Process.PID, bare(r.Fetcher.Origin), r.Fetcher.Cache
	if !r.Process.alive() {
		n.Err = os.ErrProcessDone
	} else if n.Stats, n.Err = fetcherStats(ctx, h.dir("fetchers", key, agent.SocketName)); n.Err != nil {
		return n, there(record, &n.Asked)
	}
	return n, true
}

// bare takes user, password and parameters from a URL.
func bare(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// FetcherStats gives what a fetcher says of itself. One that does not answer has
// numbers for nobody.
func (h *Host) FetcherStats(ctx context.Context, u *Use) cache.FetcherStats {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	s, _ := fetcherStats(ctx, h.dir("fetchers", u.key, agent.SocketName))
	return s
}

func fetcherStats(ctx context.Context, socket string) (cache.FetcherStats, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return cache.FetcherStats{}, fmt.Errorf("the fetcher does not answer: %w", err)
	}
	defer conn.Close()
	return cache.AskStats(ctx, conn)
}

func (h *Host) askImage(ctx context.Context, key string) (n ImageNumbers, ok bool) {
	var r imageRecord
	record := h.dir("images", key, "image.json")
	if n.Asked, ok = asked(key, record, &r); !ok {
		return n, false
	}
	n.PID, n.ID, n.Name, n.Mounted = r.Process.PID, r.ID, r.Name, r.Mounted
	if !r.Process.alive() {
		n.Err = os.ErrProcessDone
	} else if n.Stats, n.Err = agentStats(ctx, h.dir("images", key, "control")); n.Err != nil {
		return n, there(record, &n.Asked)
	}
	return n, true
}

func agentStats(ctx context.Context, socket string) (cache.Stats, error) {
	conn, err := agent.Dial(ctx, socket)
	if err != nil {
		return cache.Stats{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	return conn.Stats()
}

// asked reads a process' record. There is none of what has not been started
// yet, or has ended.
func asked(key, record string, r any) (Asked, bool) {
	info, err := os.Stat(record)
	if err != nil || readRecord(record, r) != nil {
		return Asked{}, false
	}
	return Asked{Key: key, Since: info.ModTime().UTC()}, true
}

// there tells whether the process that did not answer should have: its record
// is still the one that was read.
func there(record string, a *Asked) bool {
	info, err := os.Stat(record)
	return err == nil && info.ModTime().Equal(a.Since)
}
