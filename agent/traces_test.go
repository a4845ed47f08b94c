package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/manifest"
	"thaw/trace"
)

// traceKey gives the key of the sample's traces.
func (s *sample) traceKey(t *testing.T) trace.Key {
	t.Helper()
	parsed, err := manifest.Parse(bytes.Clone(s.sealed))
	if err != nil {
		t.Fatal(err)
	}
	return trace.NewKey(s.dataKey, parsed.ID())
}

// table is a manifest of chunks that exist on paper only.
func table(chunks int) *manifest.Manifest {
	m := &manifest.Manifest{Kind: manifest.Image, ChunkSize: chunk.MinSize, Size: int64(chunks) * chunk.MinSize}
	for i := range chunks {
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(2 * i), Size: chunk.MinSize, Name: chunk.Name{byte(i), byte(i >> 8), 1}})
	}
	return m
}

func planned(t *traces) (indexes []uint32) {
	for _, e := range t.plan {
		indexes = append(indexes, e.Index)
	}
	return indexes
}

func TestNewTraces(t *testing.T) {
	key := trace.NewKey(make([]byte, 32), manifest.ID{1})
	m := table(5)
	sealed := func(run ...uint32) []byte { return key.Seal(new(trace.Trace).Merge(run)) }
	for name, c := range map[string]struct {
		trace []byte
		limit int64
		want  []uint32
		warn  string
	}{
		"no trace":            {nil, 1 << 30, nil, ""},
		"in order":            {sealed(8, 0, 4), 1 << 30, []uint32{8, 0, 4}, ""},
		"none wanted":         {sealed(8, 0, 4), 0, nil, ""},
		"up to a bound":       {sealed(8, 0, 4), 2*chunk.MinSize + 1, []uint32{8, 0}, ""},
		"of zeros and beyond": {sealed(3, 0, 10, 1<<32-1, 4), 1 << 30, []uint32{0, 4}, ""},
		"another image's":     {trace.NewKey(make([]byte, 32), manifest.ID{2}).Seal(new(trace.Trace).Merge([]uint32{1})), 1 << 30, nil, "corrupt"},
		"damaged":             {[]byte("thaw"), 1 << 30, nil, "corrupt"},
	} {
		tr := newTraces(&Setup{Trace: c.trace, Prefetch: c.limit, Record: true}, m, key)
		if !slices.Equal(planned(tr), c.want) || (tr.warn != "") != (c.warn != "") || !strings.Contains(tr.warn, c.warn) {
			t.Errorf("%s: %v, %q", name, planned(tr), tr.warn)
		}
		tr.touch(6)
		tr.touch(2)
		var out bytes.Buffer
		if err := tr.finish(&out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if next, err := key.Open(out.Bytes()); err != nil || next.Len() < 2 {
			t.Errorf("%s: recorded %v, %v", name, next, err)
		}
	}
}

func TestFinish(t *testing.T) {
	key := trace.NewKey(make([]byte, 32), manifest.ID{1})
	var out bytes.Buffer
	quiet := newTraces(&Setup{}, table(1), key)
	quiet.touch(0)
	if err := quiet.finish(&out); err == nil || out.Len() > 0 {
		t.Errorf("what nobody asked for was recorded: %v", err)
	}
	tr := newTraces(&Setup{Record: true}, table(trace.MaxChunks+9), key)
	for i := range uint32(trace.MaxChunks + 9) {
		tr.touch(2 * i)
	}
	if err := tr.finish(&out); err != nil || out.Len() != trace.MaxSize {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	tr.touch(1)
	if err := tr.finish(&out); err == nil {
		t.Error("it ended twice")
	}
	if err := newTraces(&Setup{Record: true}, table(1), key).finish(&out); err == nil {
		t.Error("nothing was recorded")
	}
	tr = newTraces(&Setup{Record: true}, table(1), key)
	tr.touch(0)
	if err := tr.finish(failing{}); !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// fetched notes what is fetched ahead.
type fetched struct {
	mu      sync.Mutex // guards what follows
	indexes []uint32
	now     int
	most    int
	full    func() // as many are under way as there may be
}

func (f *fetched) begin(e manifest.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.indexes = append(f.indexes, e.Index)
	f.now++
	f.most = max(f.most, f.now)
	if f.full != nil && f.now == aheadAtOnce {
		f.full()
	}
}

func (f *fetched) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
}

// All that is planned is fetched once, as many at a time as there may be.
func TestReplay(t *testing.T) {
	const chunks = 10 * aheadAtOnce
	tr := &traces{plan: table(chunks).Chunks}
	f := new(fetched)
	full := make(chan struct{})
	f.full = sync.OnceFunc(func() { close(full) })
	tr.replay(t.Context(), func(_ context.Context, e manifest.Entry) error {
		f.begin(e)
		defer f.end()
		<-full
		return nil
	})
	slices.Sort(f.indexes)
	if want := planned(tr); f.most != aheadAtOnce || !slices.Equal(f.indexes, want) {
		t.Errorf("%d at once; %v", f.most, f.indexes)
	}
	new(traces).replay(t.Context(), nil) // nothing is planned
}

// Whoever is down is left alone.
func TestReplayOfFailures(t *testing.T) {
	tr := &traces{plan: table(1000).Chunks}
	f := new(fetched)
	tr.replay(t.Context(), func(_ context.Context, e manifest.Entry) error {
		f.begin(e)
		defer f.end()
		return chunk.ErrNotFound
	})
	if n := len(f.indexes); n <= aheadFailures || n > aheadFailures+2+2*aheadAtOnce {
		t.Errorf("%d were tried", n)
	}
}

// The end of the agent ends what is under way.
func TestReplayEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traces{plan: table(1000).Chunks}
	f := new(fetched)
	tr.replay(ctx, func(ctx context.Context, e manifest.Entry) error {
		f.begin(e)
		defer f.end()
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if n := len(f.indexes); n > 2*aheadAtOnce {
		t.Errorf("%d were tried", n)
	}
}

// record has the agent write the trace, and opens it.
func (a *jailed) record(t *testing.T, key trace.Key) (*trace.Trace, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trace")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := a.dial(t).Ready(file); err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := key.Open(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return tr, sealed
}

// readChunk reads a byte of a chunk of the sample.
func (a *jailed) readChunk(t *testing.T, s *sample, index int64) {
	t.Helper()
	f, err := os.Open(a.dir + "/fuse/image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, index*chunk.MinSize+7); err != nil || b[0] != s.bytes[index*chunk.MinSize+7] {
		t.Errorf("chunk %d: %v, %v", index, b, err)
	}
}

// One agent records, another fetches ahead what that one has read, and records
// in its turn.
func TestRecordAndReplay(t *testing.T) {
	s := newSample(t)
	key := s.traceKey(t)
	first := servesWith(t, s, func(s *Setup) { s.Record = true })
	first.readChunk(t, s, 2)
	first.readChunk(t, s, 0)
	first.readChunk(t, s, 2)
	tr, sealed := first.record(t, key)
	if !slices.Equal(tr.Plan(), []uint32{2, 0}) || tr.Runs() != 1 {
		t.Errorf("%v, plan %v", tr, tr.Plan())
	}
	if err := first.dial(t).Ready(nil); err == nil {
		t.Error("it was ready without a file")
	}

	second := servesWith(t, s, func(s *Setup) { s.Record, s.Trace, s.Prefetch = true, sealed, 1<<30 })
	conn := second.dial(t)
	for late := time.Now().Add(patience); ; { // it has nothing else to do
		stats, err := conn.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if stats.Prefetched.Chunks == 2 {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("fetched ahead: %+v", stats.Prefetched)
		}
	}
	second.readChunk(t, s, 2)
	second.readChunk(t, s, 3)
	stats, err := conn.Stats()
	if err != nil || stats.PrefetchUsed.Chunks != 1 || stats.Origin.Chunks != 1 || stats.Cache.Chunks != 1 {
		t.Errorf("%+v, %v", stats, err)
	}
	if tr, _ := second.record(t, key); !slices.Equal(tr.Plan(), []uint32{2}) || tr.Runs() != 2 || tr.Len() != 3 {
		t.Errorf("%v, plan %v", tr, tr.Plan())
	}
}

// A trace of no use is said to be so, and nothing else suffers.
func TestDamagedTrace(t *testing.T) {
	s := newSample(t)
	a := servesWith(t, s, func(s *Setup) { s.Trace, s.Prefetch = []byte("nonsense"), 1<<30 })
	a.readChunk(t, s, 1)
	log, err := os.ReadFile(a.dir + "/log")
	if err != nil || !strings.Contains(string(log), "without a trace: trace corrupt") || strings.Count(string(log), "\n") != 1 {
		t.Errorf("its log: %s%v", log, err)
	}
}
