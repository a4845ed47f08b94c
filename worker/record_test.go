package worker

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"thaw/cache"
	"thaw/host"
	"thaw/invokewire"
	"thaw/manifest"
	"thaw/trace"
)

// kept are the traces that a worker has had kept.
type kept struct {
	mu  sync.Mutex
	all [][]byte
}

func (k *kept) keep(_ context.Context, tenant, image, root string, sealed []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if tenant == "default" && image == "image" && root == "r1" {
		k.all = append(k.all, sealed)
	}
	return nil
}

func (k *kept) last(n int) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) < n {
		return nil
	}
	return k.all[n-1]
}

// emptyRig is a worker whose cache has nothing, whose origin has all, and that
// knows a trace.
func emptyRig(t *testing.T, k *kept, known []byte) *rig {
	return newRig(t, func(o *Options) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		empty, full := filepath.Join(t.TempDir(), "cache"), filepath.Join(parts, "cache")
		h := o.Host
		o.Fetcher = func(ctx context.Context) (*host.Use, error) {
			return h.UseFetcher(ctx, host.Fetcher{Origin: "another folder", Cache: empty, Args: []string{self, asRemote, empty, full}})
		}
		o.Image = func(context.Context, string, string, string) (host.Image, []byte, error) {
			i, config, err := imageOf(parts)
			i.Trace, i.Prefetch = known, 1<<30
			return i, config, err
		}
		o.KeepTrace = k.keep
	})
}

// opened reads a trace of the tests' image.
func opened(t *testing.T, sealed []byte) *trace.Trace {
	t.Helper()
	image, _, err := imageOf(parts)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(bytes.Clone(image.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := trace.NewKey(image.DataKey, parsed.ID()).Open(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// What the first start of a version touches until its init is over is recorded,
// once a mount; the next start with an empty cache has it fetched ahead, whether
// it asks for it or not.
func TestInitIsRecorded(t *testing.T) {
	needRoot(t)
	k := &kept{}
	r := emptyRig(t, k, nil)
	stats := func() cache.Stats { return r.w.o.Host.Stats(t.Context(), r.w.find("i").box.root.image) }
	r.start("i", "", spec(nil))
	if got := r.invoke("i", "r1", "1"); got.kind != invokewire.StartFull || got.body != "1" {
		t.Fatalf("%+v", got)
	}
	r.until("the trace is kept", func() bool { return k.last(1) != nil })
	first, demanded := opened(t, k.last(1)), stats()
	if n := demanded.Origin.Chunks + demanded.Cache.Chunks; first.Runs() != 1 || first.Len() < 2 || int64(first.Len()) > n || demanded.Prefetched.Chunks > 0 {
		t.Errorf("%v of %d chunks touched, %d ahead", first, n, demanded.Prefetched.Chunks)
	}
	r.start("again", "", spec(nil))
	r.invoke("again", "r2", "1")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if k.last(2) != nil {
		t.Error("one mount was recorded twice")
	}

	r = emptyRig(t, k, k.last(1))
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Entrypoint = []string{"/nothing"} })) // it reads next to nothing itself
	if got := r.invoke("i", "r1", "1"); got.failed == "" {
		t.Fatalf("%+v", got)
	}
	var s cache.Stats
	r.until("all of the trace is there", func() bool {
		s = stats()
		return s.Prefetched.Chunks+s.Origin.Chunks >= int64(first.Len())
	})
	if s.Prefetched.Chunks == 0 || s.Prefetched.Chunks <= s.PrefetchUsed.Chunks {
		t.Errorf("%d chunks ahead, %d of them used, %d asked for", s.Prefetched.Chunks, s.PrefetchUsed.Chunks, s.Origin.Chunks)
	}
	if k.last(2) != nil {
		t.Error("an init that failed was recorded")
	}
	r.start("i2", "", spec(nil))
	r.invoke("i2", "r1", "1")
	r.until("the trace is kept", func() bool { return k.last(2) != nil })
	if second := opened(t, k.last(2)); second.Runs() != 2 {
		t.Errorf("%v after %v", second, first)
	}
}
