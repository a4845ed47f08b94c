package cache

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
)

// TestStatsOfFetcher asks over the wire what a fetcher has done.
func TestStatsOfFetcher(t *testing.T) {
	r := &rig{origin: new(fakeOrigin), folder: newFolder(t, 1<<20)}
	r.chunks = r.origin.put(t, 3, small)
	r.fetcher = serve(t, FetcherOptions{
		Folder: r.folder, Upstreams: upstream(r.origin), More: func() any { return map[string]int{"answer": 42} },
	})
	r.client = r.bare(t)
	for _, c := range r.chunks {
		r.read(t, c)
	}
	conn, err := dialer(r.fetcher.socket)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := AskStats(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if s.Origin.Chunks != 3 || s.Origin.Bytes != 3*small || s.Origin.Latency.Count() != 3 || s.Hash.Count() != 3 || s.Queue.Count() != 3 || s.Keep.Count() != 3 {
		t.Errorf("it counted %+v", s.Stats)
	}
	if s.Folder.Used != 3*small || s.Connections != 2 || s.LastTier.Most != defaultOriginRequests || s.LastTier.Busy+s.LastTier.Waiting != 0 || s.LastTier.Bytes != 0 {
		t.Errorf("it stands at %+v", s)
	}
	if string(s.More) != `{"answer":42}` {
		t.Errorf("more: %s", s.More)
	}
	c := r.client.Stats()
	if c.Origin.Latency.Count() != 3 || c.IsZero() || !(Stats{}).IsZero() {
		t.Errorf("the client counted %+v", c)
	}
	r.read(t, r.chunks[0])
	if c = r.client.Stats(); c.Cache.Latency.Count() != 1 || c.Hash.Count() != 1 {
		t.Errorf("the client counted %+v after a read of the folder", c)
	}
}

// TestStatsRefused: numbers that cannot be sent, and a peer that is no fetcher,
// are errors.
func TestStatsRefused(t *testing.T) {
	for what, more := range map[string]func() any{
		"numbers of numbers": func() any { return strings.Repeat("x", maxStats) },
		"unsupported type":   func() any { return func() {} },
	} {
		f := serve(t, FetcherOptions{Folder: newFolder(t, 1<<20), More: more})
		conn, err := dialer(f.socket)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = AskStats(t.Context(), conn)
		if err == nil || !errors.Is(err, errInternal) {
			t.Errorf("%s: %v", what, err)
		}
		_ = conn.Close()
	}
	for _, answer := range [][]byte{
		header{1, statusFound, 0, maxStats + 1}.append(nil),
		append(header{1, statusFound, 0, 2}.append(nil), "[]"...),
		[]byte("HTTP/1.1 400 Bad Request"),
		nil,
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 100))
			_, _ = theirs.Write(answer)
			_ = theirs.Close()
		}()
		if s, err := AskStats(t.Context(), ours); err == nil {
			t.Errorf("%q was taken for %+v", answer, s)
		}
		_ = ours.Close()
	}
}

// TestStatsJSON: numbers survive their way, and no numbers are short.
func TestStatsJSON(t *testing.T) {
	line, err := json.Marshal(Stats{})
	if err != nil || len(line) > 400 {
		t.Errorf("no numbers are %s, %v", line, err)
	}
	var s Stats
	if err := json.Unmarshal(line, &s); err != nil || !s.IsZero() {
		t.Errorf("they came back as %+v, %v", s, err)
	}
}
