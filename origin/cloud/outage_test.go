package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/api/googleapi"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/internal/faults"
	"thaw/internal/tests3"
	"thaw/origin"
)

// slowing is what those who limit requests look for.
type slowing interface {
	error
	SlowDown() time.Duration
}

// with puts samples into a bucket of the server, and opens it as reached at
// another endpoint.
func with(t *testing.T, s *tests3.Server, endpoint string, samples ...chunk.Sealed) *bucket {
	t.Helper()
	raw := s.Bucket(t, "")
	chunks := open(t, raw).Chunks("r1")
	for _, c := range samples {
		if _, err := chunks.Put(t.Context(), c.Name, c.Data); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(strings.Replace(raw, url.QueryEscape(s.URL), url.QueryEscape(endpoint), 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), u, 64)
	if err != nil {
		t.Fatal(err)
	}
	c := b.Reader.(*bucket)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func key(c chunk.Sealed) string {
	name := c.Name.String()
	return "roots/r1/chunks/" + name[:2] + "/" + name
}

// checkLine holds an error to what may be printed.
func checkLine(t *testing.T, s *tests3.Server, err error) {
	t.Helper()
	text := fmt.Sprint(err)
	for _, secret := range []string{s.Secret, "Signature=", "Credential=", "token-"} {
		if strings.Contains(text, secret) {
			t.Errorf("the error holds %q: %s", secret, text)
		}
	}
	if strings.ContainsAny(text, "\n\t") {
		t.Errorf("more than one line: %q", text)
	}
}

// TestReadIsAskedThrice and then fails with what the bucket asks of us.
func TestReadIsAskedThrice(t *testing.T) {
	server := tests3.Start(t)
	sample := chunktest.Sample(1, chunk.MinSize)
	for status, want := range map[int]bool{503: true, 429: true, 500: false, 502: false} {
		front := server.Front(t, faults.OnMethod(faults.Fault{Kind: faults.Status, Status: status}, "GET", 3), "")
		b := with(t, server, front.URL, sample)
		_, err := b.Get(t.Context(), key(sample), chunk.MaxSize)
		var slow slowing
		if err == nil || errors.As(err, &slow) != want {
			t.Errorf("%d: %v", status, err)
		}
		checkLine(t, server, err)
		if n := front.Seen().Requests; n != readAttempts {
			t.Errorf("%d: asked %d times", status, n)
		}
		if got, err := b.Get(t.Context(), key(sample), chunk.MaxSize); err != nil || !bytes.Equal(got, sample.Data) {
			t.Errorf("%d: afterwards: %v", status, err)
		}
	}
}

// TestReadsShareABudget: an origin that fails altogether is not asked more for
// it. The readers do not wait, so that the test does not.
func TestReadsShareABudget(t *testing.T) {
	r := newReads()
	r.passing = passes
	failed := &googleapi.Error{Code: 503}
	asked := 0
	for range 100 {
		for asked++; r.worthwhile(failed); asked++ {
		}
	}
	if asked != 120 {
		t.Errorf("asked %d times for 100 reads", asked)
	}
	for range 10 {
		r.succeeded()
	}
	if !r.worthwhile(failed) || !r.worthwhile(errBroken) || r.worthwhile(errStalled) {
		t.Error("10 reads that succeed are to pay for 2 repetitions")
	}
	if full := newReads(); full.worthwhile(errors.New("another")) || full.worthwhile(failed) {
		t.Error("repeated what will not pass, or what an SDK repeats")
	}
}

// TestReadsThroughFewFaults: one request in a hundred must not show.
func TestReadsThroughFewFaults(t *testing.T) {
	server := tests3.Start(t)
	sample := chunktest.Sample(1, chunk.MinSize)
	front := server.Front(t, nil, "")
	b := with(t, server, front.URL, sample)
	front.Set(faults.Random(1, 0.01, 1000,
		faults.Fault{Kind: faults.Status, Status: 503}, faults.Fault{Kind: faults.Truncate, At: 99}, faults.Fault{Kind: faults.Reset}))
	const gets = 400
	for range gets {
		if got, err := b.Get(t.Context(), key(sample), chunk.MaxSize); err != nil || !bytes.Equal(got, sample.Data) {
			t.Fatal(err)
		}
	}
	if n := front.Seen().Requests; n <= gets || n > gets*105/100 {
		t.Errorf("%d requests for %d reads", n, gets)
	}
}

// TestRetryAfter: what is to be left alone for long is not asked again.
func TestRetryAfter(t *testing.T) {
	server := tests3.Start(t)
	later := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for after, want := range map[string]time.Duration{"7": 7 * time.Second, later: time.Hour} {
		asked := 0
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked++
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte("<Error><Code>SlowDown</Code><Message>Please reduce\nyour request rate.</Message></Error>"))
		}))
		t.Cleanup(front.Close)
		_, err := with(t, server, front.URL).Get(t.Context(), "k", 1)
		var slow slowing
		if !errors.As(err, &slow) || slow.SlowDown() > want || slow.SlowDown() < want-time.Minute || asked != 1 {
			t.Errorf("Retry-After %s: %v, asked %d times", after, err, asked)
		}
		checkLine(t, server, err)
	}
	other := http.Header{"Retry-After": {"7"}}
	if got := askedPause(&googleapi.Error{Code: 503, Header: other}); got != 7*time.Second {
		t.Errorf("Cloud Storage: %v", got)
	}
	if got := askedPause(&googleapi.Error{Code: 503, Header: http.Header{"Retry-After": {"-7"}}}); got != 0 {
		t.Errorf("nonsense: %v", got)
	}
}

// TestOriginReturns: down in several ways, and back, with one bucket opened once.
func TestOriginReturns(t *testing.T) {
	server := tests3.Start(t)
	proxy, err := faults.NewProxy(strings.TrimPrefix(server.URL, "http://"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	sample := chunktest.Sample(1, chunk.DefaultSize)
	b := with(t, server, "http://"+proxy.Addr(), sample)
	for _, c := range []struct {
		name string
		link faults.Link
		is   error
	}{
		{"refused", faults.Link{Refuse: true}, syscall.ECONNREFUSED},
		{"silent", faults.Link{Stall: true}, errStalled},
		{"silent in the middle", faults.Link{Bandwidth: 1}, errStalled},
		{"reset", faults.Link{ResetAfter: 1000}, syscall.ECONNRESET},
		{"cut", faults.Link{CutAfter: 1000}, errBroken},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.stall = stallTimeout
			proxy.Set(faults.Link{})
			got, err := b.Get(t.Context(), key(sample), chunk.MaxSize)
			if err != nil || !bytes.Equal(got, sample.Data) {
				t.Fatalf("up: %v", err)
			}
			if c.is == errStalled { // the others may come later than that
				b.stall = 100 * time.Millisecond
			}
			proxy.Set(c.link)
			if c.link.Refuse {
				proxy.Cut()
			}
			_, err = b.Get(t.Context(), key(sample), chunk.MaxSize)
			if !errors.Is(err, c.is) || errors.Is(err, origin.ErrNotFound) {
				t.Errorf("down: %v", err)
			}
			checkLine(t, server, err)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if _, err := b.Get(ctx, key(sample), chunk.MaxSize); err == nil {
				t.Error("down, with a deadline: no error")
			}
		})
	}
	b.stall = stallTimeout
	proxy.Set(faults.Link{})
	if got, err := b.Get(t.Context(), key(sample), chunk.MaxSize); err != nil || !bytes.Equal(got, sample.Data) {
		t.Errorf("up at last: %v", err)
	}
}

// TestReadsThroughBadLines: whatever happens to the bytes, headers too, a read
// ends, and its error can be printed. What is wrong with bytes its caller finds.
func TestReadsThroughBadLines(t *testing.T) {
	server := tests3.Start(t)
	proxy, err := faults.NewProxy(strings.TrimPrefix(server.URL, "http://"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	sample := chunktest.Sample(1, chunk.MinSize)
	b := with(t, server, "http://"+proxy.Addr(), sample)
	b.stall = 200 * time.Millisecond
	for _, l := range []faults.Link{
		{CutAfter: 1 << 17, Anywhere: true, Share: 0.5}, {ResetAfter: 1 << 17, Anywhere: true}, {Flip: 1e-3}, {Flip: 1e-4},
	} {
		proxy.Set(l)
		for range 15 {
			got, err := b.Get(t.Context(), key(sample), chunk.MaxSize)
			if err != nil {
				checkLine(t, server, err)
			} else if l.Flip == 0 && !bytes.Equal(got, sample.Data) {
				t.Errorf("%+v: other bytes", l)
			}
		}
		proxy.Cut()
	}
}

// TestOriginMoves: many connections are kept that lead to nobody any more. Only
// the first is waited for.
func TestOriginMoves(t *testing.T) {
	server := tests3.Start(t)
	proxy, err := faults.NewProxy(strings.TrimPrefix(server.URL, "http://"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	sample := chunktest.Sample(1, chunk.DefaultSize)
	b := with(t, server, "http://"+proxy.Addr(), sample)
	for range 20 {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, err := b.Get(t.Context(), key(sample), chunk.MaxSize); err != nil {
					t.Error(err)
				}
			})
		}
		if wg.Wait(); proxy.Counts().Open > 3 {
			break
		}
	}
	before := proxy.Counts().Connections
	proxy.Set(faults.Link{Stall: true})
	b.stall = 50 * time.Millisecond
	if _, err := b.Get(t.Context(), key(sample), chunk.MaxSize); !errors.Is(err, errStalled) {
		t.Errorf("%v", err)
	}
	for end := time.Now().Add(3 * time.Minute); proxy.Counts().Connections == before; { // it may not have looked yet
		if time.Now().After(end) {
			t.Fatal("the further attempts made no connection")
		}
	}
}
